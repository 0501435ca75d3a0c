"""PEP 517 build backend: scikit-build-core, building against the torch that the caller already has.

Naming torch in ``build-system.requires`` would make every isolated build download the newest one, gigabytes with CUDA,
even where a torch is installed. So it is asked for only where there is none that is recent enough.
"""

import os
import subprocess
import sys

from packaging.requirements import Requirement
from scikit_build_core import build as _backend
from scikit_build_core.build import *  # noqa: F403  (the other hooks are scikit-build-core's own)

_TORCH = "torch>=2.11"


def _torch_requirement():
    # pip hides the caller's site-packages from an isolated build through PYTHONPATH, which -E ignores. The working
    # directory is the root because -c puts it on sys.path.
    result = subprocess.run(
        [sys.executable, "-E", "-c", "from importlib.metadata import version; print(version('torch'))"],
        cwd=os.path.abspath(os.sep),
        capture_output=True,
        text=True,
    )
    found = result.returncode == 0 and Requirement(_TORCH).specifier.contains(result.stdout.strip(), prereleases=True)
    return [] if found else [_TORCH]


def get_requires_for_build_wheel(config_settings=None):
    """Requirements of scikit-build-core, and torch where the caller has none."""
    return [*_backend.get_requires_for_build_wheel(config_settings), *_torch_requirement()]


def get_requires_for_build_editable(config_settings=None):
    """Requirements of scikit-build-core, and torch where the caller has none."""
    return [*_backend.get_requires_for_build_editable(config_settings), *_torch_requirement()]
