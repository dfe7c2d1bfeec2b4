"""A vendor's plugin, outside of onnxedge: one pass, one target file."""
