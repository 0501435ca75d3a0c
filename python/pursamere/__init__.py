"""Deterministic adversarial purification for PyTorch, after PurSAMERE (arXiv 2602.06269)."""

from importlib import metadata as _metadata

import pursamere_ext as _extension  # noqa: F401 (registers torch.ops.pursamere)

from . import attacks, baselines, datasets, denoisers, evaluation, functional, models, pretrained
from ._evaluate import evaluate
from ._extras import MissingExtraError
from ._validation import NotFiniteError
from .classifier import PurifiedClassifier
from .execution import Execution
from .models import ConvClassifier, load_checkpoint, save_checkpoint
from .noise import GaussianNoise
from .objective import expected_reconstruction_error
from .pretrained import load_pretrained
from .purifier import PurificationTrace, Purifier
from .stepping import IterativePurifier

try:
    __version__ = _metadata.version("pursamere")
except _metadata.PackageNotFoundError:  # vendored or frozen, without the distribution's metadata
    __version__ = "unknown"

__all__ = [
    "ConvClassifier",
    "Execution",
    "GaussianNoise",
    "IterativePurifier",
    "MissingExtraError",
    "NotFiniteError",
    "PurificationTrace",
    "PurifiedClassifier",
    "Purifier",
    "__version__",
    "attacks",
    "baselines",
    "datasets",
    "denoisers",
    "evaluate",
    "evaluation",
    "expected_reconstruction_error",
    "functional",
    "load_checkpoint",
    "load_pretrained",
    "models",
    "pretrained",
    "save_checkpoint",
]
