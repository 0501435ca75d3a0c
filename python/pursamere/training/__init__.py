"""Training of denoisers and classifiers; ``pursamere train`` is its command line.

Import it by its name, ``import pursamere.training``: ``import pursamere`` does not load it.
"""

from pursamere.training.configuration import ClassifierConfiguration, DenoiserConfiguration, configuration
from pursamere.training.loop import Watcher
from pursamere.training.run import TrainingResult, train

__all__ = [
    "ClassifierConfiguration",
    "DenoiserConfiguration",
    "TrainingResult",
    "Watcher",
    "configuration",
    "train",
]
