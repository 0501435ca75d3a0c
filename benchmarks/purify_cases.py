"""What ``bench_purify.py`` measures: networks, ways to run them, and the candidates of a case."""

from __future__ import annotations

import functools
import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from peers import FORWARD_AND_BACKWARD, FORWARD_ONLY
from torch import Tensor

import pursamere as ps
from pursamere.pretrained import TUNED, folder

SETTINGS: dict[str, dict[str, Any]] = {
    "mnist": {name: TUNED["mnist"][name] for name in ("sigma", "radius", "steps", "ascent_radius", "draws")},
    # Those that its classifier was trained with, with the ascent, and one step, since the network is slower.
    "cifar10": {"sigma": 0.2, "radius": 0.06, "steps": 1, "ascent_radius": 0.05, "draws": 2},
}
DIRECTIONS = ("ere", "score")
ROWS = (2, 4, 8, 16, 32, 64, 128)  # batch sizes of the bare network that are tried
COMPILED_ROWS = 64
EAGER_FLOAT32 = "float32"
FLOOR, FULL = "floor", "floor, full batches"


@dataclass(frozen=True)
class Case:
    """Purification of ``batch`` images with the settings of a network.

    Attributes:
        network: "mnist" or "cifar10".
        mode: how the purifier's network runs: the precision, and optionally "+compile" and "+channels_last".
        direction: "ere" or "score".
        batch: number of images.
        device: "cpu" or "cuda".
    """

    network: str
    mode: str
    direction: str
    batch: int
    device: str = "cpu"


def load_network(name: str, device: str) -> Any:
    """Load a denoiser that ships."""
    return ps.load_checkpoint(folder(name) / "denoiser", device)


def execution(mode: str) -> ps.Execution:
    """Return how the network runs in a mode."""
    precision, *options = mode.split("+")
    return ps.Execution(precision=precision, **dict.fromkeys(options, True))


def make_images(case: Case, shape: tuple[int, ...]) -> Tensor:
    return torch.rand(case.batch, *shape, generator=torch.Generator().manual_seed(0)).to(case.device)


def make_purifier(case: Case, network: Any) -> ps.Purifier:
    settings = dict(SETTINGS[case.network])
    noise = ps.GaussianNoise(draws=settings.pop("draws"))
    how = {"direction": case.direction, "execution": execution(case.mode)}
    return ps.Purifier(network, noise=noise, **how, **settings)


class BarePasses:
    """The network alone: forward passes, each followed by a backward pass for the direction "ere"."""

    def __init__(self, case: Case, network: Any) -> None:
        self._execution = execution(case.mode)
        self._network = torch.compile(network, dynamic=False) if self._execution.compile else network
        self._format = torch.channels_last if self._execution.channels_last else torch.contiguous_format
        self._case = case
        self._shape = network.image_shape
        self._sigma = SETTINGS[case.network]["sigma"]
        self._per_row: dict[int, float] = {}

    def run(self, rows: int, *, at_once: int) -> None:
        """Pass ``rows`` images through the network, ``at_once`` in a batch; the last batch may be smaller."""
        low = self._execution.precision == "bfloat16"
        for start in range(0, rows, at_once):
            y = torch.zeros(min(at_once, rows - start), *self._shape, device=self._case.device)
            y = y.to(memory_format=self._format).requires_grad_(self._case.direction == "ere")
            with torch.set_grad_enabled(y.requires_grad), torch.autocast(y.device.type, torch.bfloat16, enabled=low):
                output = self._network(y, self._sigma)
            if y.requires_grad:
                torch.autograd.grad(output, y, output.detach())

    def seconds_per_row(self, size: int, finish: Callable[[], object]) -> float:
        """Return the time of an image in a batch of ``size``, measured once."""
        if size not in self._per_row:
            times = []
            for _ in range(4):
                start = time.perf_counter()
                self.run(size, at_once=size)
                finish()
                times.append(time.perf_counter() - start)
            self._per_row[size] = min(times) / size
        return self._per_row[size]


@functools.cache
def _shared_passes(case: Case, network: Any) -> BarePasses:
    return BarePasses(case, network)


def bare_passes(case: Case, network: Any) -> BarePasses:
    """Return the bare passes of a case, the same ones for every batch."""
    return _shared_passes(replace(case, batch=0), network)


def floor_sizes(case: Case, network: Any, finish: Callable[[], object]) -> tuple[int, int]:
    """Return the fastest batch sizes of the bare network, for the candidates "floor" and "floor, full batches".

    The steps of a purification follow one another, so at most one row for each image and draw can be in the network at
    once. That bounds the first size but not the second.
    """
    bare, at_once = bare_passes(case, network), case.batch * SETTINGS[case.network]["draws"]
    # Compiling for every size would take minutes.
    tried = {min(at_once, COMPILED_ROWS), COMPILED_ROWS} if "compile" in case.mode else {*ROWS}
    per_row = {size: bare.seconds_per_row(size, finish) for size in sorted(tried)}
    return min((size for size in per_row if size <= at_once), key=per_row.__getitem__), min(
        per_row, key=per_row.__getitem__
    )


def make_candidates(
    case: Case, network: Any, purifier: ps.Purifier, sizes: tuple[int, int]
) -> dict[str, Callable[[], object]]:
    """Return the purifier, the floors and the peers' loops, which do equally many network passes.

    :data:`FULL` is a single pass, since a small batch has fewer rows in all; its time must be scaled.
    """
    images = make_images(case, network.image_shape)
    forward, backward = purifier.network_passes
    bare, sigma = bare_passes(case, network), SETTINGS[case.network]["sigma"]
    calls: dict[str, Callable[[], object]] = {
        "purifier": functools.partial(purifier, images),
        FLOOR: functools.partial(bare.run, case.batch * forward, at_once=sizes[0]),
    }
    if sizes[1] > sizes[0]:
        calls[FULL] = functools.partial(bare.run, sizes[1], at_once=sizes[1])
    peers = FORWARD_AND_BACKWARD if backward else FORWARD_ONLY
    return calls | {
        name: functools.partial(loop, network, images, steps=forward, sigma=sigma) for name, loop in peers.items()
    }


def cases(networks: list[str], modes: list[str], directions: list[str], batches: list[int], device: str) -> list[Case]:
    """Return all combinations."""
    return [Case(*names, device) for names in itertools.product(networks, modes, directions, batches)]
