"""Checks that a network repeats its results and treats the rows of a batch independently, bit for bit."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from pursamere._warn import warn_user
from pursamere.noise import GaussianNoise

from .micro_batches import candidate_sizes, default_micro_batch
from .network import is_compiled, refused_training_layers
from .network_results import NetworkResults
from .random_numbers import without_random_numbers
from .snapshot import Snapshot
from .vector_tails import elements_fill_vectors

__all__ = ["INVARIANCE_MODES", "NetworkCheck", "algorithm_settings", "sample_images"]

INVARIANCE_MODES = ("warn", "strict", "off")

_CALLS_TO_SETTLE = 4  # TorchScript rewrites a network during its first calls; after that its results repeat
_MOST_ROWS_ALONE = 8  # that a lone image may cost on a CPU

_Rows = Callable[[Tensor], Sequence[Tensor]]


class NetworkCheck(NetworkResults[tuple[int, ...]]):
    """Checks a network and finds the micro-batch sizes to run it with, once per shape, dtype and device.

    Once more when it runs differently: other modules or functions, in other modes, dtypes or memory formats.

    Its results must repeat and its rows must be independent: the same bits in every row, beside any other rows and in
    micro-batches of every size that is used. Sizes are found by comparing bits, never by timing.

    Args:
        name: the network's name in messages.
        micro_batch: the size, with all batches padded to multiples of it; ``None`` to find sizes.
        invariance: what to do if rows of micro-batches of the given size depend on one another: "warn", "strict"
            (raise) or "off" (no check, and no sizes but the default one).
    """

    def __init__(self, name: str, micro_batch: int | None, invariance: str) -> None:
        super().__init__()
        self.name, self.micro_batch, self.invariance = name, micro_batch, invariance
        self._complained: set[tuple[Any, ...]] = set()

    def __call__(
        self,
        function: _Rows,
        like: Tensor,
        draws: int,
        kind: str = "value",
        *,
        eager: _Rows,
        network: object,
        constants: bool = True,
        few: bool = False,
    ) -> tuple[int, ...]:
        """Return the sizes to run ``function`` with, the largest first.

        Args:
            function: runs the network on images; its results have a row for each image.
            like: [B, C, H, W], whose image shape, dtype and device count.
            draws: rows of the network for each image.
            kind: names the function among those that are checked.
            eager: the function as PyTorch's own operations: not itself where a purifier compiles the network.
            network: what it runs; if the user compiled it, its operations can't be seen.
            constants: whether all calls have the noise levels of ``function``, see ``elements_fill_vectors``.
            few: whether to find two sizes at most and to try few, since each is compiled.

        Raises:
            ValueError: it runs a layer in training mode that is random, mixes samples, or updates itself.
            RuntimeError: the network draws random numbers from PyTorch's global state, its results differ between
                calls, or, with ``invariance="strict"``, rows depend on one another.
        """
        key = (kind, draws, tuple(like.shape[1:]), like.dtype, like.device, *algorithm_settings(like.device))
        found = self._results_of(network)
        if key not in found:
            candidates = candidate_sizes(draws, like.shape[1:], like.device)
            if few:  # the largest, and those that a lone image is cheap in
                candidates = (candidates[0], *(n for n in candidates[1:] if n == 1 or n * draws <= _MOST_ROWS_ALONE))
            visible = None if is_compiled(network) else eager
            aligned = functools.partial(self._elements_fill_vectors, visible, like, draws, constants)
            with refused_training_layers(self.name, Snapshot(network).modules):
                found[key] = self._find(function, like, draws, candidates, aligned, few)
        return found[key]

    def told(self) -> str:
        """The sizes that were found for PyTorch's present settings, for ``repr``; empty if the size was given."""
        found = {
            f"{sizes[0]} for {'x'.join(map(str, shape))} {str(dtype).removeprefix('torch.')} on {device.type}"
            for (kind, _, shape, dtype, device, *settings), sizes in self._results.items()
            if kind == "value" and tuple(settings) == algorithm_settings(device)
        }
        return f" ({', '.join(sorted(found))})" if found and self.micro_batch is None else ""

    def _find(
        self,
        function: _Rows,
        like: Tensor,
        draws: int,
        candidates: Sequence[int],
        aligned: Callable[[int], bool],
        few: bool,
    ) -> tuple[int, ...]:
        device, larger = like.device, candidates[0]
        fixed = self.micro_batch or (default_micro_batch(device) if self.invariance == "off" else None)
        if fixed is not None:
            candidates = (fixed,)
        elif device.type == "cpu":
            candidates = [*filter(aligned, candidates[:-1]), 1]
        if device.type == "meta":
            return (candidates[0],)
        for i, size in enumerate(candidates):
            images = _images(size, like)
            expected = self._repeated(function, images)
            if self.invariance == "off" or fixed == 1:
                return (size,)
            if fixed is not None:
                if _depends_on_companions(function, images, expected):
                    self._complain(
                        like,
                        f"the {self.name}'s results for one image depend on the other images in a micro-batch of "
                        f"{size}; set micro_batch=1, or None to find a size where they do not",
                    )
                return (size,)
            if size == 1:
                if larger > 1 and _mixes_rows(function, _images(candidates[i - 1] if i > 0 else 2, like)):
                    self._complain(
                        like,
                        f"the {self.name} mixes the images of a batch, but rows must be independent (no statistics "
                        "over the batch)",
                        warned="images are run one by one, with all draws of the noise in one batch",
                        refused="invariance='warn' would run images one by one",
                    )
                return (size,)
            matching = (
                part
                for part in (reversed(candidates[i + 1 :]) if few else candidates[i + 1 :])
                if _same(_in_parts(function, images, part), expected)
                and (part > 1 or device.type != "cpu" or aligned(1))
            )
            sizes = (size, *itertools.islice(matching, 1 if few else None))
            if sizes[-1] == 1:  # every row has the bits that it has alone
                return sizes
            cheap = device.type != "cpu" or sizes[-1] * draws <= _MOST_ROWS_ALONE
            if cheap and not _depends_on_companions(function, images, expected):
                return sizes
        raise AssertionError("the last candidate is 1")

    @staticmethod
    def _elements_fill_vectors(function: _Rows | None, like: Tensor, draws: int, constants: bool, size: int) -> bool:
        if function is None:
            return False
        images = _images(size, like)
        functions = [functools.partial(function, each) for each in (images, 1 - images)]
        return elements_fill_vectors(functions, size * draws, constants=constants)

    def _repeated(self, function: _Rows, images: Tensor) -> Sequence[Tensor]:
        """Return ``function(images)`` once it has repeated."""
        expected = without_random_numbers(self.name, lambda: function(images))
        for _ in range(_CALLS_TO_SETTLE):
            previous, expected = expected, function(images)
            if _same(previous, expected):
                return expected
        raise RuntimeError(
            f"the {self.name} returned other values when it was called again with the same images; it must be "
            "deterministic (switch it to evaluation mode, fix its noise, or see torch.use_deterministic_algorithms)"
        )

    def _complain(self, like: Tensor, message: str, *, warned: str = "", refused: str = "") -> None:
        """Raise or warn; ``refused`` or ``warned`` ends the message."""
        if self.invariance == "strict":
            raise RuntimeError("; ".join(filter(None, (message, refused))))
        key = (tuple(like.shape[1:]), like.dtype, like.device)
        if key not in self._complained:  # about values, and it is as true of derivatives
            self._complained.add(key)
            warn_user("; ".join(filter(None, (message, warned))))


def algorithm_settings(device: torch.device) -> tuple[object, ...]:
    """Return PyTorch's settings that decide which of its algorithms run."""
    autocast = torch.is_autocast_enabled(device.type) and torch.get_autocast_dtype(device.type)
    backends: Any = torch.backends  # whose stubs lack some
    cuda = backends.cuda
    # Those of older names (allow_tf32, float32_matmul_precision) read the same settings, and raise if both are in use.
    precisions = (
        group.fp32_precision
        for group in (cuda.matmul, backends.cudnn.conv, backends.mkldnn.matmul, backends.mkldnn.conv)
    )
    attention = (
        cuda.math_sdp_enabled(),
        cuda.flash_sdp_enabled(),
        cuda.mem_efficient_sdp_enabled(),
        cuda.cudnn_sdp_enabled(),
    )
    flags = (backends.mkldnn.enabled, backends.cudnn.enabled, torch.are_deterministic_algorithms_enabled())
    return torch.get_num_threads(), autocast, *precisions, *attention, *flags


def _images(size: int, like: Tensor) -> Tensor:
    return sample_images((size, *like.shape[1:]), like.device, like.dtype)


def sample_images(shape: Sequence[int], device: torch.device, dtype: torch.dtype) -> Tensor:
    """Return different images in [0, 1] to run a network on, of shape [B, C, H, W]."""
    bank = GaussianNoise(seed=0, draws=shape[0], antithetic=False).sample(tuple(shape[1:]), device, dtype)
    return (0.5 + 0.25 * bank).clamp(0.0, 1.0)


def _in_parts(function: _Rows, images: Tensor, size: int) -> list[Tensor]:
    parts = [function(part.clone()) for part in images.split(size)]  # a view's alignment would depend on its position
    return [torch.cat(results) for results in zip(*parts, strict=True)]


def _depends_on_companions(function: _Rows, images: Tensor, expected: Sequence[Tensor]) -> bool:
    """Whether a row's result depends on its position or on the other rows.

    Compares ``expected = function(images)`` with three other arrangements: reversed, rotated by one, and the first
    image in every row.
    """
    rows = torch.arange(len(images), device=images.device)
    return not all(
        _same(function(images[order]), [want[order] for want in expected])
        for order in (rows.flip(0), rows.roll(1), torch.zeros_like(rows))
    )


def _mixes_rows(function: _Rows, images: Tensor) -> bool:
    """Whether the first image's result depends on what the others show: not on their number, as its rounding may."""
    alike = images[:1].expand_as(images).clone()
    first, beside_itself = ([result[:1] for result in function(rows)] for rows in (images, alike))
    return not _same(first, beside_itself)


def _same(got: Sequence[Tensor], want: Sequence[Tensor]) -> bool:
    """Whether two results have the same bits; all NaNs count as equal."""
    return all(bool(((a == b) | (a.isnan() & b.isnan())).all()) for a, b in zip(got, want, strict=True))
