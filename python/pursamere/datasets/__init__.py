"""Labeled images: built-in data sets, MNIST and CIFAR-10, image folders and ``.npz`` files."""

from .dataset import Dataset
from .loading import load, splits
from .standard import DATA_VARIABLE

__all__ = ["DATA_VARIABLE", "Dataset", "load", "splits"]
