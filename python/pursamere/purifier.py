"""PurSAMERE: sharpness-aware minimisation of the expected reconstruction error (equation M8)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

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
from .networks import (
    check_evaluation_mode,
    check_same_device,
    no_random_numbers,
    repeatable_algorithms,
    versions,
)
from .noise import GaussianNoise
from .objective import GradientTerms, ere_gradient, score_gradient
from .path_gradient import GradientOf, PathGradient, pull_back_path, unprojected_step

DIRECTIONS = {"ere": ere_gradient, "score": score_gradient}
GRADIENTS = ("exact", "straight_through", "identity", "unrolled")
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
    our choice, not the paper's. Put networks in evaluation mode first, also those that a function wraps.

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

    def forward(self, x: Tensor, gradient: str = "exact") -> Tensor:
        """Return the purified images, [B, C, H, W] in [0, 1].

        When gradients are enabled and ``x`` requires them the result is differentiable with respect to ``x``, in the
        way that ``gradient`` names:

        - "exact": vector-Jacobian products step by step (M9). Only the images x_t are kept, so memory hardly grows with
          the steps. For ``step="sign"`` the exact derivative of a sign is zero.
        - "straight_through": the same with the neighbourhood's projection and the pixel range treated as the identity.
        - "identity": the whole purifier treated as the identity (BPDA).
        - "unrolled": PyTorch's automatic differentiation through every step. Equal to "exact", but memory grows with
          the steps; it can be differentiated again, and leaves gradients in the denoiser's parameters too.

        "exact" and "straight_through" run the steps again in the backward pass, so between the passes leave the
        purifier's attributes and the denoiser as they are.

        Raises:
            TypeError: ``x`` is not a floating tensor.
            ValueError: ``x`` is not [B, C, H, W], not in [0, 1] or not finite, its device is not supported, the
                denoiser is in training mode, or ``gradient`` is unknown.
            RuntimeError: the denoiser returned NaN or infinity, or its gradient overflowed; it drew random numbers; or,
                with ``invariance="strict"``, it fails the check.
        """
        check_choice("gradient", gradient, GRADIENTS)
        self._check_input(x)
        if not (torch.is_grad_enabled() and x.requires_grad):
            return self._purify(x)
        # With create_graph PyTorch takes other kernels, whose last bits differ. Gradients come from such passes, the
        # value from a plain one, so that it does not depend on whether x requires a gradient.
        result: Tensor
        if gradient in ("exact", "straight_through"):
            path = self._purify(x, self._path)
            pull_back = partial(self._pull_back, versions(self.denoiser), projected=gradient == "exact")
            result = PathGradient.apply(x, path, pull_back)
        else:
            source = x if gradient == "identity" else self._purify(x, self._last, create_graph=True)
            result = GradientOf.apply(source, self._purify(x))
        return result

    def trace(self, x: Tensor) -> PurificationTrace:
        """Purify ``x`` and return every step's image, ERE, gradient norm and displacement; raises what a call does."""
        self._check_input(x)
        with self._in_network(x.device, grad=False):
            self._check_rows(x)
            figures = map_micro_batches(self._trace_rows, self.micro_batch_on(x.device), _ordinary(x.detach()))
        return PurificationTrace(*(figure.transpose(0, 1) for figure in figures))

    def micro_batch_on(self, device: torch.device) -> int:
        """Return the number of images per call of the denoiser on a device."""
        return self.micro_batch or default_micro_batch(device)

    def _step(self, x: Tensor, start: Tensor, create_graph: bool = False, projected: bool = True) -> Tensor:
        """Return x_{t+1} of M8 from x_t and the input, for one micro-batch."""
        with torch.set_grad_enabled(create_graph):
            terms = self._gradient(x, create_graph)
            if self.ascent_radius > 0:
                ascended, _ = functional.accumulate_ascend(x, terms.per_draw, terms.direct, self.ascent_radius)
                terms = self._gradient(ascended, create_graph)
        if not projected:
            return unprojected_step(x, terms, self.step, self._step_size(x))
        return functional.accumulate_descend(
            x,
            start,
            terms.per_draw,
            terms.direct,
            step=self.step,
            step_size=self._step_size(x),
            norm=self.norm,
            radius=self.radius,
        )

    def _iterates(self, start: Tensor, create_graph: bool = False) -> Iterator[Tensor]:
        """Yield x_0, ..., x_T for one micro-batch."""
        x = start
        yield x
        for _ in range(self.steps):
            x = self._step(x, start, create_graph)
            yield x

    def _last(self, start: Tensor, create_graph: bool = False) -> tuple[Tensor]:
        *_, result = self._iterates(start, create_graph)
        return (result,)

    def _path(self, start: Tensor, create_graph: bool = False) -> tuple[Tensor]:
        return (torch.stack(list(self._iterates(start, create_graph)), dim=1),)

    def _gradient(self, x: Tensor, create_graph: bool = False) -> GradientTerms:
        return DIRECTIONS[self.direction](self.denoiser, x, self.sigma, self.noise, create_graph=create_graph)

    def _purify(self, x: Tensor, of: Callable[..., tuple[Tensor]] | None = None, create_graph: bool = False) -> Tensor:
        """Return the last point of every sample, or what ``of`` makes of a micro-batch."""
        with self._in_network(x.device, grad=create_graph):
            self._check_rows(x)
            function = partial(of or self._last, create_graph=create_graph)
            (purified,) = map_micro_batches(function, self.micro_batch_on(x.device), _ordinary(x))
        if not bool(torch.isfinite(purified.detach()).all()):
            raise RuntimeError(
                "the denoiser returned NaN or infinity, or its gradient overflowed; no image was purified"
            )
        return purified

    def _pull_back(self, versions_before: list[int], path: Tensor, v: Tensor, projected: bool) -> Tensor:
        """Return ``v``, the gradient with respect to x_T, as that with respect to the input; path [B, T + 1, *]."""
        check_evaluation_mode("denoiser", self.denoiser)
        if versions(self.denoiser) != versions_before:
            raise RuntimeError(
                "the denoiser's parameters or buffers were changed between the forward and backward pass"
            )

        def rows(path: Tensor, v: Tensor) -> tuple[Tensor]:
            # A sign has no derivative, so the network needs none either.
            step = partial(self._step, create_graph=self.step != "sign", projected=projected)
            return (pull_back_path(step, path, v),)

        with self._in_network(v.device, grad=True):
            (gradient,) = map_micro_batches(rows, self.micro_batch_on(v.device), path, v)
        if bool(torch.isfinite(v).all()) and not bool(torch.isfinite(gradient).all()):
            raise RuntimeError(
                "the gradient through the purifier is NaN or infinite: the denoiser's derivatives overflow"
            )
        return gradient

    @contextmanager
    def _in_network(self, device: torch.device, grad: bool) -> Iterator[None]:
        # Inference mode would forbid the denoiser's backward pass, which is part of the forward pass here.
        with (
            torch.inference_mode(False),
            torch.set_grad_enabled(grad),
            no_random_numbers(device),
            repeatable_algorithms(device),
        ):
            yield

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


def _ordinary(x: Tensor) -> Tensor:
    """``x``, or a copy that autograd accepts if it was made in inference mode."""
    return x.clone() if x.is_inference() else x
