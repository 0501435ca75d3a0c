"""Fixtures that more than one file uses."""

import os

import pytest
import torch

from pursamere._validation import BUILT_WITH_CUDA


@pytest.fixture
def cuda():
    """A CUDA device. Without one the test is skipped, unless PURSAMERE_REQUIRE_CUDA=1: then it fails."""
    missing = None
    if not torch.cuda.is_available():
        missing = "there is no CUDA device"
    elif not BUILT_WITH_CUDA:
        missing = "pursamere was built without CUDA"
    if missing and os.environ.get("PURSAMERE_REQUIRE_CUDA") == "1":
        pytest.fail(f"PURSAMERE_REQUIRE_CUDA=1, but {missing}")
    if missing:
        pytest.skip(missing)
    return torch.device("cuda", torch.cuda.current_device())
