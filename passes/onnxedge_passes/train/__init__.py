"""The family of training: graphs made trainable, and the weights that come back from it."""

from onnxedge_passes.train.prepare_training import PrepareTraining

__all__ = ["PrepareTraining"]
