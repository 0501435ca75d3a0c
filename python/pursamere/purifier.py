"""PurSAMERE: sharpness-aware minimisation of the expected reconstruction error (equation M8)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from . import functional
from ._validation import (
    check_choice,
    check_images,
    check_integer,
    check_nonnegative,
    check_positive,
    check_supported_device,
)
from .denoisers.protocol import Denoiser, prediction_of
from .invariance import MODES, RowCheck
from .micro_batch import default_micro_batch, map_micro_batches
from .networks import check_evaluation_mode, check_same_device, no_random_numbers, repeatable_algorithms
from .noise import GaussianNoise
from .objective import GradientTerms, ere_gradient, score_gradient

DIRECTIONS = {"ere": ere_gradient, "score": score_gradient}
GRADIENTS = ("unrolled", "identity")
DEFAULT_GRADIENT_FACTOR = 0.25


@dataclass(frozen=True)
class PurificationTrace:
    """What a purification did, step by step; index 0 is the input, index ``steps`` the result.

    Attributes:
        images: x_t, [steps + 1, B, C, H, W].
        ere: R_K(x_t), [steps + 1, B], in squared pixel units.
        gradient_norm: L2 norm of the gradient at x_t, [steps + 1, B].
        displacement: L2 distance of x_t from the input, [steps + 1, B], in pixel units.
    """

    images: Tensor
    ere: Tensor
    gradient_norm: Tensor
    displacement: Tensor


class Purifier(nn.Module):
    """Moves images to a nearby point where the expected reconstruction error is small and flat.

    ``purifier(x)`` takes images, float [B, C, H, W] in [0, 1], and returns images of the same shape, dtype and device.
    It is deterministic: a sample's result has the same bits in every run and in every batch. The default parameters are
    our choice, not the paper's. Put networks in evaluation mode first, also those that a function wraps. A
    differentiable call also leaves gradients in the denoiser's parameters: freeze them if that is not wanted.

    Args:
        denoiser: any callable ``(y [N, C, H, W], sigma) -> [N, C, H, W]``, see :class:`pursamere.denoisers.Denoiser`.
        sigma: standard deviation of the noise, in pixel units, positive.
        steps: number of SAM steps, at least 0.
        step_size: eta of M8: the L2 length of a step for ``step="unit"`` (by default, twice the L2 length of the
            neighbourhood's farthest point divided by ``steps``), a factor for ``"gradient"`` (by default 0.25), a
            change per pixel for ``"sign"`` (by default 2 ``radius`` / ``steps``).
        ascent_radius: rho of M8, an L2 length per sample in pixel units; 0 for plain descent.
        radius: of the neighbourhood around the input, in pixel units; infinity for none but the pixel range.
        norm: shape of the neighbourhood, "linf" or "l2".
        step: what a step follows: the "unit" gradient, the "gradient", or its "sign".
        direction: "ere" for the gradient of the expected reconstruction error (the paper's), or "score" for the mean
            score (M10), which runs no backward pass.
        noise: the fixed draws; by default ``GaussianNoise()``, 8 antithetic draws.
        micro_batch: the denoiser always runs on ``micro_batch * noise.draws`` images, the last call padded, since
            results of networks may depend on the batch size. By default 1 on a CPU and 64 on an accelerator. The bits
            of a result depend on it, but never on the batch.
        invariance: what to do when the denoiser's rows turn out to influence one another in a micro-batch larger than
            1, which is checked once per shape, dtype and device: "warn", "strict" (an error), or "off" (no check).

    Raises:
        TypeError: an argument of the wrong type.
        ValueError: an argument out of its range.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        *,
        sigma: float = 0.2,
        steps: int = 10,
        step_size: float | None = None,
        ascent_radius: float = 0.05,
        radius: float = 0.1,
        norm: str = "linf",
        step: str = "unit",
        direction: str = "ere",
        noise: GaussianNoise | None = None,
        micro_batch: int | None = None,
        invariance: str = "warn",
    ) -> None:
        super().__init__()
        prediction_of(denoiser)
        if noise is not None and not isinstance(noise, GaussianNoise):
            raise TypeError(f"noise must be a pursamere.GaussianNoise, got {type(noise).__name__}")
        self.denoiser = denoiser
        self.sigma = check_positive("sigma", sigma)
        self.steps = check_integer("steps", steps, low=0)
        self.ascent_radius = check_nonnegative("ascent_radius", ascent_radius)
        self.radius = check_nonnegative("radius", radius, infinite=True)
        self.norm = check_choice("norm", norm, functional.NORMS)
        self.step = check_choice("step", step, functional.STEPS)
        self.step_size = None if step_size is None else check_nonnegative("step_size", step_size)
        if step_size is None and step != "gradient" and math.isinf(self.radius):
            raise ValueError(f"step_size must be given for step={step!r} when radius is infinite")
        self.direction = check_choice("direction", direction, DIRECTIONS)
        self.noise = noise or GaussianNoise()
        self.micro_batch = None if micro_batch is None else check_integer("micro_batch", micro_batch, low=1)
        self.invariance = check_choice("invariance", invariance, MODES)
        self._row_check = RowCheck("denoiser", invariance)

    def forward(self, x: Tensor, gradient: str = "unrolled") -> Tensor:
        """Return the purified images, [B, C, H, W] in [0, 1].

        When gradients are enabled and ``x`` requires them the result is differentiable, in the way that ``gradient``
        names: "unrolled" is automatic differentiation through every step (exact; memory grows with the steps),
        "identity" treats the purifier as the identity (BPDA).

        Raises:
            TypeError: ``x`` is not a floating tensor.
            ValueError: ``x`` is not [B, C, H, W], not in [0, 1] or not finite, its device is not supported, the
                denoiser is in training mode, or ``gradient`` is unknown.
            RuntimeError: the denoiser returned NaN or infinity, or its gradient overflowed; it drew random numbers; or,
                with ``invariance="strict"``, it fails the check.
        """
        check_choice("gradient", gradient, GRADIENTS)
        self._check_input(x)
        purified = self._purify(x)
        if not (torch.is_grad_enabled() and x.requires_grad):
            return purified
        # With create_graph PyTorch takes other kernels, whose last bits differ. The gradient comes from that pass, the
        # value from the plain one, so that it does not depend on whether x requires a gradient.
        source = x if gradient == "identity" else self._purify(x, create_graph=True)
        result: Tensor = _GradientOf.apply(source, purified)
        return result

    def trace(self, x: Tensor) -> PurificationTrace:
        """Purify ``x`` and return every step's image, ERE, gradient norm and displacement; raises what a call does."""
        self._check_input(x)
        with torch.inference_mode(False), torch.no_grad(), repeatable_algorithms(x.device):
            self._check_rows(x)
            figures = map_micro_batches(self._trace_rows, _ordinary(x.detach()), self.micro_batch_on(x.device))
        return PurificationTrace(*(figure.transpose(0, 1) for figure in figures))

    def micro_batch_on(self, device: torch.device) -> int:
        """Return the number of images per call of the denoiser on a device."""
        return self.micro_batch or default_micro_batch(device)

    def _iterates(self, x0: Tensor, create_graph: bool = False) -> Iterator[Tensor]:
        """Yield x_0, ..., x_T of M8 for one micro-batch."""
        x = x0
        yield x
        for _ in range(self.steps):
            terms = self._gradient(x, create_graph)
            if self.ascent_radius > 0:
                ascended, _ = functional.accumulate_ascend(x, terms.per_draw, terms.direct, self.ascent_radius)
                terms = self._gradient(ascended, create_graph)
            x = functional.accumulate_descend(
                x,
                x0,
                terms.per_draw,
                terms.direct,
                step=self.step,
                step_size=self._step_size(x0),
                norm=self.norm,
                radius=self.radius,
            )
            yield x

    def _gradient(self, x: Tensor, create_graph: bool = False) -> GradientTerms:
        return DIRECTIONS[self.direction](self.denoiser, x, self.sigma, self.noise, create_graph=create_graph)

    def _purify(self, x: Tensor, create_graph: bool = False) -> Tensor:
        def last(part: Tensor) -> tuple[Tensor]:
            *_, result = self._iterates(part, create_graph)
            return (result,)

        # Inference mode would forbid the denoiser's backward pass, which is part of the forward pass here.
        with (
            torch.inference_mode(False),
            torch.set_grad_enabled(create_graph),
            no_random_numbers(x.device),
            repeatable_algorithms(x.device),
        ):
            self._check_rows(x)
            (purified,) = map_micro_batches(last, _ordinary(x), self.micro_batch_on(x.device))
        if not bool(torch.isfinite(purified.detach()).all()):
            raise RuntimeError(
                "the denoiser returned NaN or infinity, or its gradient overflowed; no image was purified"
            )
        return purified

    def _trace_rows(self, x0: Tensor) -> tuple[Tensor, ...]:
        """Return the trace of one micro-batch, rows first: [m, steps + 1, ...] each."""
        steps = []
        for x in self._iterates(x0):
            terms = self._gradient(x)
            _, norm = functional.accumulate_ascend(x, terms.per_draw, terms.direct, 0.0)
            steps.append((x, terms.ere, norm, torch.linalg.vector_norm((x - x0).flatten(1), dim=1)))
        return tuple(torch.stack(figures, dim=1) for figures in zip(*steps, strict=True))

    def _step_size(self, x: Tensor) -> float:
        if self.step_size is not None:
            return self.step_size
        if self.step == "gradient":
            return DEFAULT_GRADIENT_FACTOR
        if self.step == "unit" and self.norm == "linf":
            return 2 * self.radius * math.sqrt(math.prod(x.shape[1:])) / self.steps
        return 2 * self.radius / self.steps

    def _check_input(self, x: Tensor) -> None:
        check_images("x", x)
        check_supported_device("x", x.device)
        check_evaluation_mode("denoiser", self.denoiser)
        check_same_device("denoiser", self.denoiser, x)

    def _check_rows(self, x: Tensor) -> None:
        def rows_of(images: Tensor) -> tuple[Tensor, ...]:
            terms = self._gradient(images)
            return terms.per_draw.transpose(0, 1), terms.ere

        self._row_check(self.denoiser, rows_of, (self.micro_batch_on(x.device), *x.shape[1:]), x)

    def extra_repr(self) -> str:
        """Return the parameters, for ``print``."""
        names = ("sigma", "steps", "step_size", "ascent_radius", "radius", "norm", "step", "direction", "noise")
        return ", ".join(f"{name}={getattr(self, name)!r}" for name in (*names, "micro_batch"))


class _GradientOf(torch.autograd.Function):
    """The value of the second argument, with the gradient of the first."""

    @staticmethod
    def forward(ctx: object, source: Tensor, value: Tensor) -> Tensor:
        return value.view_as(value)

    @staticmethod
    def backward(ctx: object, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0], None


def _ordinary(x: Tensor) -> Tensor:
    """``x``, or a copy that autograd accepts if it was made in inference mode."""
    return x.clone() if x.is_inference() else x
