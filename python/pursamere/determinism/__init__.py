"""What makes results deterministic: frozen modules, networks that are checked, micro-batches of few fixed sizes."""

from .cudnn import repeatable_algorithms
from .fixed_module import FixedModule, copy_with
from .micro_batches import candidate_sizes, default_micro_batch, map_micro_batches
from .network import check_evaluation_mode, check_same_device, is_compiled, parameters_of
from .network_check import INVARIANCE_MODES, NetworkCheck, algorithm_settings, sample_images
from .network_results import NetworkResults
from .random_numbers import NoRandomNumbers, RandomNumbersError, without_random_numbers
from .snapshot import LatestSnapshot, Snapshot

__all__ = [
    "INVARIANCE_MODES",
    "FixedModule",
    "LatestSnapshot",
    "NetworkCheck",
    "NetworkResults",
    "NoRandomNumbers",
    "RandomNumbersError",
    "Snapshot",
    "algorithm_settings",
    "candidate_sizes",
    "check_evaluation_mode",
    "check_same_device",
    "copy_with",
    "default_micro_batch",
    "is_compiled",
    "map_micro_batches",
    "parameters_of",
    "repeatable_algorithms",
    "sample_images",
    "without_random_numbers",
]
