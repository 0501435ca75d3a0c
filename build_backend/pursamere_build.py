"""PEP 517 build backend: scikit-build-core, building against the torch that the caller already has.

With torch in ``build-system.requires``, every isolated build would download the newest one (gigabytes with CUDA)
even if torch is installed. So torch is required only if none is recent enough.
"""

from scikit_build_core import build as _backend
from scikit_build_core.build import *  # noqa: F403  (the other hooks are scikit-build-core's own)

from find_torch import OLDEST, find_torch


def _torch_requirement():
    try:
        find_torch()
    except LookupError:
        return [f"torch>={OLDEST}"]
    return []


def get_requires_for_build_wheel(config_settings=None):
    """Requirements of scikit-build-core, and torch where the caller has none."""
    return [*_backend.get_requires_for_build_wheel(config_settings), *_torch_requirement()]


def get_requires_for_build_editable(config_settings=None):
    """Requirements of scikit-build-core, and torch where the caller has none."""
    return [*_backend.get_requires_for_build_editable(config_settings), *_torch_requirement()]
