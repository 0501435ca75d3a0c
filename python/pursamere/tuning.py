"""Measures the ways to run a denoiser's network, so that the fastest can be written down."""

from __future__ import annotations

import itertools
import math
import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ._validation import check_integer, check_positive, check_sizes
from .denoisers.protocol import Denoiser
from .determinism import sample_images
from .execution import Execution
from .noise import GaussianNoise
from .purifier import DIRECTIONS, Purifier

__all__ = ["MICRO_BATCHES", "Trial", "best", "combinations", "tune"]

MICRO_BATCHES = (1, 8, 32)
_ROUNDS = 5
_CLOSE = 1.05
_HOPELESS = 3.0  # a trial that takes this many times the fastest one's time is not measured again


@dataclass
class Trial:
    """A way to run the network, and what was measured.

    Attributes:
        direction: "score" for forward passes, "ere" for forward and backward passes.
        options: arguments of :class:`pursamere.Execution` that differ from its defaults.
        micro_batch: images per call of the denoiser; ``None`` for the default.
        images_per_second: the median; an image is passed through the network once for each draw. ``None`` if it failed.
        largest_difference: of a pixel from float32 with the other defaults, after a step; ``None`` if either failed.
        mean_difference: the mean absolute difference.
        failure: why it failed.
        warnings: what was warned of.
    """

    direction: str
    options: Mapping[str, str | bool]
    micro_batch: int | None = None
    images_per_second: float | None = None
    largest_difference: float | None = None
    mean_difference: float | None = None
    failure: str | None = None
    warnings: tuple[str, ...] = ()
    _run: Callable[[], Tensor] | None = field(default=None, repr=False)


def combinations(device: torch.device, *, compiled: bool = True) -> list[dict[str, str | bool]]:
    """Return the combinations of precision, channels-last, compilation and, on CUDA, CUDA graphs, defaults first."""
    choices: dict[str, list[str | bool]] = {
        "compile": [False, True] if compiled else [False],
        "precision": ["float32", "bfloat16"],
        "channels_last": [False, True],
        "cuda_graphs": [False, True] if device.type == "cuda" else [False],
    }
    defaults = {name: values[0] for name, values in choices.items()}
    found = (dict(zip(choices, values, strict=True)) for values in itertools.product(*choices.values()))
    return [{name: value for name, value in each.items() if value != defaults[name]} for each in found]


def tune(
    denoiser: Denoiser,
    shape: Sequence[int],
    *,
    sigma: float,
    draws: int = 8,
    batch: int = 32,
    device: torch.device | str = "cpu",
    compiled: bool = True,
    micro_batches: Sequence[int] = MICRO_BATCHES,
    progress: Callable[[int], None] = lambda _: None,
) -> list[Trial]:
    """Measure the ways to run a denoiser's network.

    A trial is one step of a :class:`Purifier` without ascent: a forward pass of every image and draw, and a backward
    pass for the direction "ere". All combinations are measured with the default micro-batch, then other micro-batches
    with the best combination (:func:`best`). Trials take turns, and times are medians. The images are made of noise.

    Args:
        denoiser: see :class:`pursamere.denoisers.Denoiser`, on ``device``.
        shape: (C, H, W) of the images.
        sigma: standard deviation of the noise, in pixel units, positive.
        draws: draws of the noise, even.
        batch: number of images.
        device: where to measure.
        compiled: whether ``torch.compile`` is tried, which takes minutes.
        micro_batches: other micro-batches to try; those larger than ``batch`` are left out.
        progress: is called with 1 after every trial's first call, of which there are
            ``2 * (len(combinations(...)) + len(micro_batches))`` or fewer.

    Returns:
        The trials of "score", then those of "ere".

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: an argument is out of range.
    """
    device = torch.device(device)
    check_positive("sigma", sigma)
    noise = GaussianNoise(draws=draws)
    images = sample_images(
        (check_integer("batch", batch, low=1), *check_sizes("shape", shape, length=3)), device, torch.float32
    )
    sizes = [size for size in (check_integer("micro_batches", size, low=1) for size in micro_batches) if size <= batch]

    def prepare(trial: Trial) -> Trial:
        _prepare(trial, denoiser, images, sigma, noise)
        progress(1)
        return trial

    trials = []
    for direction in sorted(DIRECTIONS, reverse=True):
        found = [prepare(Trial(direction, options)) for options in combinations(device, compiled=compiled)]
        _measure(found, batch, device)
        chosen = best(found)
        if chosen is not None and sizes:
            others = [prepare(Trial(direction, chosen.options, size)) for size in sizes]
            _measure([chosen, *others], batch, device)
            found += others
        _compare(found)
        trials += found
    return trials


def best(trials: Sequence[Trial]) -> Trial | None:
    """Return the first trial that is at most 5 % slower than the fastest one; the plainer ones come first."""
    speeds = [trial.images_per_second or 0.0 for trial in trials]
    close = (trial for trial, speed in zip(trials, speeds, strict=True) if speed > 0 and speed >= max(speeds) / _CLOSE)
    return next(close, None)


def _prepare(trial: Trial, denoiser: Denoiser, images: Tensor, sigma: float, noise: GaussianNoise) -> None:
    """Make the trial's function and call it once: that compiles, and checks the network."""
    try:
        with _recorded(trial):
            # With this factor the score direction gives the mean denoised image, in pixel units.
            purifier = Purifier(
                denoiser,
                sigma=sigma,
                radius=math.inf,
                steps=1,
                step_rule="gradient",
                step_size=0.5,
                ascent_radius=0.0,
                direction=trial.direction,
                noise=noise,
                micro_batch=trial.micro_batch,
                invariance="warn" if trial.micro_batch is None else "strict",
                execution=Execution(**trial.options),  # type: ignore[arg-type]
            )
            purifier(images)
            trial._run = lambda: purifier(images)
    except Exception as error:  # a network may raise anything, and the other trials go on
        trial.failure = f"{type(error).__name__}: {error}"


def _measure(trials: Sequence[Trial], batch: int, device: torch.device) -> None:
    """Fill in the speeds."""
    times: dict[int, list[float]] = {number: [] for number, trial in enumerate(trials) if trial._run is not None}
    for _ in range(_ROUNDS):
        fastest = min((min(taken) for taken in times.values() if taken), default=math.inf)
        for number, taken in times.items():
            if not taken or min(taken) <= _HOPELESS * fastest:
                taken.append(_seconds(trials[number], device))
    for number, taken in times.items():
        trials[number].images_per_second = batch / statistics.median(taken)


def _compare(trials: Sequence[Trial]) -> None:
    """Fill in the differences from the first trial's result, and drop the functions with their networks."""
    expected = trials[0]._run() if trials[0]._run is not None else None
    for trial in trials:
        if expected is not None and trial._run is not None:
            difference = (trial._run() - expected).abs()
            trial.largest_difference, trial.mean_difference = float(difference.max()), float(difference.mean())
        trial._run = None


def _seconds(trial: Trial, device: torch.device) -> float:
    assert trial._run is not None  # only those that did not fail are measured
    start = time.perf_counter()
    trial._run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


@contextmanager
def _recorded(trial: Trial) -> Iterator[None]:
    """Record what is warned of in the block."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    told = [str(each.message) for each in caught if issubclass(each.category, UserWarning | RuntimeWarning)]
    trial.warnings = tuple(dict.fromkeys(told))
