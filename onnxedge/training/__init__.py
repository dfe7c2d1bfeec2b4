"""Training from ONNX files alone: student and loss composed into one graph, and the engines that train it."""
