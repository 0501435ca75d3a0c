"""The fixed noise draws xi_1, ..., xi_K of the estimator."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ._run_op import run_op
from ._validation import FLOATING_DTYPES, check_integer, check_shape, check_supported_device

__all__ = ["MAX_SEED", "GaussianNoise", "LatestBank", "NoiseBank"]

MAX_SEED = 2**63 - 1


@dataclass(frozen=True, kw_only=True)
class GaussianNoise:
    """Fixed standard normal noise: a pure function of (seed, draw, element).

    Random words come from the counter-based generator Philox4x32-10 (Salmon et al., SC 2011) and become normals by
    Box-Muller. They do not depend on the batch, the device or PyTorch's random state, and there is no state. The first
    draws of a longer bank equal the shorter bank. Instances are immutable.

    Args:
        seed: key of the generator, in [0, 2^63).
        draws: number K of draws, at least 1; even if ``antithetic``.
        antithetic: draw in adjacent pairs (xi, -xi).

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: ``seed`` or ``draws`` is out of range, or ``draws`` is odd with ``antithetic``.
    """

    seed: int = 0
    draws: int = 8
    antithetic: bool = True

    def __post_init__(self) -> None:
        check_integer("seed", self.seed, low=0, high=MAX_SEED)
        check_integer("draws", self.draws, low=1, high=2**32 - 1)
        if not isinstance(self.antithetic, bool):
            raise TypeError(f"antithetic must be a bool, got {type(self.antithetic).__name__}")
        if self.antithetic and self.draws % 2:
            raise ValueError(f"draws must be even with antithetic noise, got {self.draws}")

    def sample(
        self,
        shape: Sequence[int],
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> Tensor:
        """Return the bank [draws, *shape] for samples of the given shape.

        The normals are float32 values: float64 holds the same values, float16 and bfloat16 the nearest ones.

        Args:
            shape: shape of one sample, [C, H, W] for an image; the bank must take less than 2^63 bytes.
            device: device of the bank; default: the CPU.
            dtype: float32, float64, float16 or bfloat16.

        Raises:
            TypeError: ``shape`` is not a sequence of ints, or ``dtype`` is not floating.
            ValueError: ``shape`` is out of range, or ``device`` is not supported.
        """
        sizes = check_shape("shape", shape)
        if dtype not in FLOATING_DTYPES:
            raise TypeError(f"dtype must be float16, bfloat16, float32 or float64, got {dtype}")
        if self.draws * math.prod([size or 1 for size in sizes]) * dtype.itemsize >= 2**63:
            raise ValueError(
                f"shape must give a bank of less than 2^63 bytes, got {list(sizes)} for {self.draws} draws"
            )
        like = torch.empty((), device="cpu" if device is None else device, dtype=dtype).expand(sizes)
        check_supported_device("device", like.device)
        bank: Tensor = run_op(torch.ops.pursamere.noise.default, like, self.draws, self.seed, self.antithetic)
        return bank

    def bank(self, shape: Sequence[int], device: torch.device | str | None = None) -> NoiseBank:
        """Return the same noise with its values for samples of one shape on one device, see :class:`NoiseBank`."""
        where = torch.device("cpu" if device is None else device)
        return NoiseBank(
            seed=self.seed,
            draws=self.draws,
            antithetic=self.antithetic,
            shape=check_shape("shape", shape),
            device=where,
        )


@dataclass(frozen=True, kw_only=True)
class NoiseBank(GaussianNoise):
    """Noise whose values are kept, so that ops read them instead of generating them: faster, with the same bits.

    Usable wherever :class:`GaussianNoise` is, for samples of one shape on one device and of any dtype. Made by
    :meth:`GaussianNoise.bank`.

    Args:
        shape: shape of one sample.
        device: device of the values.

    Attributes:
        values: the independent draws, float32 [K, *shape], or [K/2, *shape] if antithetic.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: an argument is out of range, or ``device`` is not supported.
    """

    shape: tuple[int, ...]
    device: torch.device
    values: Tensor = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "shape", check_shape("shape", self.shape))
        object.__setattr__(self, "device", torch.device(self.device))
        draws = self.draws // 2 if self.antithetic else self.draws
        independent = GaussianNoise(seed=self.seed, draws=draws, antithetic=False)
        with torch.inference_mode(False):  # whose tensors autograd refuses to use later
            object.__setattr__(self, "values", independent.sample(self.shape, self.device))

    def without_values(self) -> GaussianNoise:
        """Return the noise for samples of any shape on any device."""
        return GaussianNoise(seed=self.seed, draws=self.draws, antithetic=self.antithetic)


class LatestBank:
    """The bank of the last call; another noise, shape, device or CUDA stream makes a new one.

    A bank that another stream makes may not be finished yet, and its memory may be reused too early.
    """

    def __init__(self) -> None:
        self._latest: tuple[NoiseBank | None, int] = None, 0

    def of(self, noise: GaussianNoise, shape: Sequence[int], device: torch.device) -> NoiseBank:
        """Return ``noise.bank(shape, device)``."""
        bank, made_on = self._latest  # read once: another thread may replace it
        stream = torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else 0
        wanted = (noise.seed, noise.draws, noise.antithetic, tuple(shape), device, stream)
        if bank is None or wanted != (bank.seed, bank.draws, bank.antithetic, bank.shape, bank.device, made_on):
            bank = noise.bank(shape, device)
            self._latest = bank, stream
        return bank
