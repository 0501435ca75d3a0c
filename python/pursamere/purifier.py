"""PurSAMERE: sharpness-aware minimization of the expected reconstruction error (equation M8)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from . import functional
from ._eager import eager_only
from ._validation import check_choice, check_nonnegative, check_positive
from .denoisers.protocol import Denoiser
from .noise import GaussianNoise
from .objective import GradientTerms, ere_gradient, score_gradient
from .stepping import IterativePurifier, NetworkPasses, StepMode, descend

DIRECTIONS = {"ere": ere_gradient, "score": score_gradient}
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


class Purifier(IterativePurifier):
    """Moves images to a nearby point where the expected reconstruction error is small and flat.

    ``purifier(x)`` takes images, float [B, C, H, W] in [0, 1], and returns images of the same shape, dtype and device.
    It is deterministic: a sample's result has the same bits in every run and in every batch. The default parameters are
    our choice, not the paper's. It has no training mode, and switches the denoiser to evaluation mode.

    Args:
        denoiser: any callable ``(y [N, C, H, W], sigma) -> [N, C, H, W]``, see :class:`pursamere.denoisers.Denoiser`.
        sigma: standard deviation of the noise, in pixel units, positive.
        steps: number of SAM steps, from 0 to 100,000.
        step_size: eta of M8: the L2 length of a step for ``step_rule="unit"`` (by default, twice the L2 length of the
            neighborhood's farthest point divided by ``steps``), a factor for ``"gradient"`` (by default 0.25), a
            change per pixel for ``"sign"`` (by default 2 ``radius`` / ``steps``).
        ascent_radius: rho of M8, an L2 length per sample in pixel units; 0 for plain descent.
        radius: of the neighborhood around the input, in pixel units; infinity for none but the pixel range.
        norm: shape of the neighborhood, "linf" or "l2".
        step_rule: what a step follows: the "unit" gradient, the "gradient", or its "sign".
        direction: "ere" for the gradient of the expected reconstruction error (the paper's), or "score" for the mean
            score (M10), which runs no backward pass.
        noise: the fixed draws; by default ``GaussianNoise()``, 8 antithetic draws.
        micro_batch: images per call of the denoiser, see :class:`pursamere.IterativePurifier`.
        invariance: what to do when the denoiser mixes images, see there.

    Raises:
        TypeError: an argument of the wrong type.
        ValueError: an argument out of its range.
    """

    _parameters_shown = ("sigma", "steps", "step_size", "ascent_radius", "radius", "norm", "step_rule", "direction")

    def __init__(
        self,
        denoiser: Denoiser,
        *,
        sigma: float,
        radius: float,
        steps: int = 5,
        step_size: float | None = None,
        ascent_radius: float = 0.05,
        norm: str = "linf",
        step_rule: str = "unit",
        direction: str = "ere",
        noise: GaussianNoise | None = None,
        micro_batch: int | None = None,
        invariance: str = "warn",
    ) -> None:
        super().__init__(
            denoiser,
            steps=steps,
            noise=GaussianNoise() if noise is None else noise,
            micro_batch=micro_batch,
            invariance=invariance,
        )
        self.sigma = check_positive("sigma", sigma)
        self.ascent_radius = check_nonnegative("ascent_radius", ascent_radius)
        self.radius = check_nonnegative("radius", radius, infinite=True)
        self.norm = check_choice("norm", norm, functional.NORMS)
        self.step_rule = check_choice("step_rule", step_rule, functional.STEP_RULES)
        self.step_size = None if step_size is None else check_nonnegative("step_size", step_size)
        if step_size is None and step_rule != "gradient" and math.isinf(self.radius):
            raise ValueError(f"step_size must be given for step_rule={step_rule!r} when radius is infinite")
        self.direction = check_choice("direction", direction, DIRECTIONS)

    @property
    def network_passes(self) -> NetworkPasses:
        """The network passes that purifying one image takes, without those for its gradient."""
        passes = self.steps * self.noise.draws * (2 if self.ascent_radius > 0 else 1)
        return NetworkPasses(passes, passes if self.direction == "ere" else 0)

    def _step(self, t: int, x: Tensor, x0: Tensor, mode: StepMode) -> Tensor:
        """Return x_{t+1} of M8, from x_t and the input, for one micro-batch."""
        g = self._gradient(x, mode)
        if self.ascent_radius > 0:
            ascended, _ = functional.accumulate_ascend(x, g.per_draw, g.direct, self.ascent_radius)
            g = self._gradient(ascended, mode)
        return descend(
            x,
            x0,
            g.per_draw,
            g.direct,
            mode,
            step_rule=self.step_rule,
            step_size=self._step_size(x),
            norm=self.norm,
            radius=self.radius,
        )

    def _gradient(self, x: Tensor, mode: StepMode) -> GradientTerms:
        gradient = DIRECTIONS[self.direction]
        return gradient(self.denoiser, x, self.sigma, mode.noise, create_graph=mode.create_graph)

    @property
    def _has_derivative(self) -> bool:
        return self.step_rule != "sign"  # whose derivative is zero

    @property
    def _probed_steps(self) -> tuple[int, ...]:
        return (0,)  # all steps are alike

    def _probe(self, t: int, images: Tensor, mode: StepMode) -> tuple[Tensor, ...]:
        # The gradient, rather than the step: whether the denoiser is right must not depend on the step size.
        g = self._gradient(images, mode)
        return (g.per_draw.transpose(0, 1), *(() if g.direct is None else (g.direct,)))

    @eager_only
    def trace(self, x: Tensor) -> PurificationTrace:
        """Purify ``x`` and return every step's image, ERE, gradient norm and displacement; raises what a call does."""
        x = self._checked_input(x).detach()
        with self._in_network(x.device, grad=False):
            self._check_network(x)
            figures = self._map(self._trace_rows, StepMode(self.noise), x)
        return PurificationTrace(*(figure.transpose(0, 1) for figure in figures))

    def _trace_rows(self, mode: StepMode, x0: Tensor) -> tuple[Tensor, ...]:
        """Return the trace of one micro-batch, rows first: [m, steps + 1, ...] each."""
        steps = []
        for x in self._states(mode, x0):
            g = self._gradient(x, mode)
            _, norm = functional.accumulate_ascend(x, g.per_draw, g.direct, 0.0)
            steps.append((x, g.ere, norm, torch.linalg.vector_norm((x - x0).flatten(1), dim=1)))
        return tuple(torch.stack(figures, dim=1) for figures in zip(*steps, strict=True))

    def _step_size(self, x: Tensor) -> float:
        if self.step_size is not None:
            return self.step_size
        if self.step_rule == "gradient":
            return DEFAULT_GRADIENT_FACTOR
        if self.step_rule == "unit" and self.norm == "linf":
            return 2 * self.radius * math.sqrt(math.prod(x.shape[1:])) / self.steps
        return 2 * self.radius / self.steps
