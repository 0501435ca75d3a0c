"""The library's own network architectures, and their checkpoints."""

from .checkpoints import load_checkpoint, save_checkpoint
from .conv_classifier import ConvClassifier
from .edm_unet import EDMUNet

__all__ = ["ConvClassifier", "EDMUNet", "load_checkpoint", "save_checkpoint"]
