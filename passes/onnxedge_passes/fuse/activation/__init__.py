"""Activations and Softmax, recognised by what they compute."""
