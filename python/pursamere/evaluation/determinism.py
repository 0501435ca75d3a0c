"""Checks that a model's logits depend neither on the call nor on the batch."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["CHECKED", "check_deterministic", "first_difference"]

CHECKED = 16  # number of images to check with


@torch.no_grad()
def check_deterministic(model: Callable[[Tensor], Tensor], images: Tensor) -> None:
    """Require bitwise equal logits over reruns, batch sizes and permutations of (up to 16) images.

    NaN equals NaN; a model that raises ``NotFiniteError`` must be wrapped to return NaN for these images.

    Raises:
        RuntimeError: logits differ; the message shows the first two that do.
    """
    images = images[:CHECKED]
    count = len(images)
    expected = model(images)
    _require_equal("in a second call", expected, model(images), "call .eval(), and fix its noise")
    _require_equal("one by one", expected, torch.cat([model(image[None]) for image in images]))
    back = torch.arange(count - 1, -1, -1, device=images.device)
    _require_equal("in reversed order", expected, model(images[back])[back])
    half = max(1, count // 3)
    _require_equal("in batches of another size", expected, torch.cat([model(part) for part in images.split(half)]))


def first_difference(expected: Tensor, got: Tensor) -> tuple[int, int, float, float] | None:
    """Sample, class and both values of the first of the logits [n, classes] that differ; NaN equals NaN."""
    different = (expected != got) & ~(expected.isnan() & got.isnan())
    if not bool(different.any()):
        return None
    sample, logit = (int(i) for i in different.nonzero()[0])
    return sample, logit, float(expected[sample, logit]), float(got[sample, logit])


_ROWS = "a second call agreed, so rows depend on one another: call .eval(); where only rounding differs, micro_batch=1"


def _require_equal(how: str, expected: Tensor, got: Tensor, advice: str = _ROWS) -> None:
    different = first_difference(expected, got)
    if different is None:
        return
    sample, logit, first, second = different
    raise RuntimeError(
        f"model must be deterministic: logit {logit} of sample {sample} was {first!r}, and {second!r} {how}; "
        f"an evaluation needs the same logits in every call and in every batch ({advice})"
    )
