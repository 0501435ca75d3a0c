"""Fixtures, markers and a summary that all test files share."""

import os
from collections import Counter

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


@pytest.hookimpl(tryfirst=True)  # before pytest selects tests by their markers
def pytest_collection_modifyitems(items):
    for item in items:
        if "cuda" in getattr(item, "fixturenames", ()):
            item.add_marker("cuda")


def pytest_terminal_summary(terminalreporter):
    """One line for each reason to skip, with the number of tests."""
    skipped = terminalreporter.stats.get("skipped", [])
    reasons = Counter(report.longrepr[2].removeprefix("Skipped: ") for report in skipped)
    for reason, count in reasons.most_common():
        terminalreporter.write_line(f"skipped {count}: {reason}")
