"""PurSAMERE: sharpness-aware minimization of the expected reconstruction error (equation M8)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from . import functional
from ._eager import eager_only
from ._validation import check_ball_radius, check_choice, check_nonnegative, check_positive
from ._warn import warn_user
from .denoisers.protocol import Denoiser, NetworkCall, network_call_of, sigma_range_of
from .derivative_check import compare_in_float64
from .descent import DescentOptions, descend
from .determinism import is_compiled, sample_images, without_random_numbers
from .execution import Execution
from .noise import GaussianNoise
from .objective import GradientTerms, ere_gradient, expected_reconstruction_error, score_gradient
from .stepping import IterativePurifier, NetworkPasses, StepMode

__all__ = ["DIRECTIONS", "PurificationTrace", "Purifier"]

DIRECTIONS = {"ere": ere_gradient, "score": score_gradient}
_DEFAULT_GRADIENT_FACTOR = 0.25


@dataclass(frozen=True)
class PurificationTrace:
    """The steps of a purification; index 0 is the input and index ``steps`` the result.

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
    """Moves images to a nearby point where the expected reconstruction error R_K is small and flat.

    ``purifier(x)`` maps images, float [B, C, H, W] in [0, 1], to images of the same shape, dtype and device, by
    sharpness-aware minimization (M8): starting from x_0 = x, for t = 0, ..., ``steps`` - 1::

        g = grad R_K(x_t)
        g = grad R_K(x_t + ascent_radius g / ||g||)
        x_{t+1} = clip_[0,1](P(x_t - step_size u(g)))

    P projects onto the ball around x, and u scales the gradient as ``step_rule`` says. The result is deterministic: the
    same bits in every run and in every batch. Attributes are read-only. There is no training mode; the denoiser is
    switched to evaluation mode. ``sigma`` and ``radius`` depend on the data; defaults of the other settings are our
    choice, not the paper's.

    Args:
        denoiser: any callable ``(y [N, C, H, W], sigma) -> [N, C, H, W]``, see :class:`pursamere.denoisers.Denoiser`.
        sigma: standard deviation of the noise, in pixel units, positive.
        radius: radius of the ball around the input, in pixel units; infinity for no ball, only the pixel range.
        norm: norm of the ball, "linf" or "l2".
        steps: number of steps, from 0 to 100,000.
        step_rule: what a step follows: the "unit" gradient g / ||g||_2, the "gradient", or its "sign".
        step_size: the L2 length of a step for ``step_rule="unit"`` (default: twice the L2 distance from the center of
            the ball to its farthest point, divided by ``steps``); a factor for ``"gradient"`` (default: 0.25); a change
            per pixel for ``"sign"`` (default: ``2 * radius / steps``).
        ascent_radius: L2 length of the ascent per sample, in pixel units; 0 for plain descent.
        direction: "ere", the paper's, for the gradient of the expected reconstruction error, or "score" for the mean
            score (M10), which needs no backward pass.
        noise: the fixed draws; default ``GaussianNoise()``, 8 antithetic draws.
        micro_batch: images per call of the denoiser, see :class:`pursamere.IterativePurifier`.
        invariance: what to do if the denoiser mixes images, see :class:`pursamere.IterativePurifier`.
        execution: how the denoiser runs: precision, compilation, memory format; default ``Execution()``.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: an argument is out of range.
    """

    _parameters_shown = ("sigma", "steps", "step_size", "ascent_radius", "radius", "norm", "step_rule", "direction")

    def __init__(
        self,
        denoiser: Denoiser,
        *,
        sigma: float,
        radius: float,
        norm: str = "linf",
        steps: int = 5,
        step_rule: str = "unit",
        step_size: float | None = None,
        ascent_radius: float = 0.05,
        direction: str = "ere",
        noise: GaussianNoise | None = None,
        micro_batch: int | None = None,
        invariance: str = "warn",
        execution: Execution | None = None,
    ) -> None:
        super().__init__(
            denoiser,
            steps=steps,
            noise=GaussianNoise() if noise is None else noise,
            micro_batch=micro_batch,
            invariance=invariance,
            execution=execution,
        )
        self.sigma = check_positive("sigma", sigma)
        low, high = sigma_range_of(denoiser)
        if not low <= self.sigma <= high:
            warn_user(f"sigma={self.sigma:g} is outside denoiser.sigma_range, [{low:g}, {high:g}]", UserWarning)
        self.ascent_radius = check_nonnegative("ascent_radius", ascent_radius)
        self.norm = check_choice("norm", norm, functional.NORMS)
        self.radius = check_ball_radius(radius, norm)
        self.step_rule = check_choice("step_rule", step_rule, functional.STEP_RULES)
        self.step_size = None if step_size is None else check_nonnegative("step_size", step_size)
        if step_size is None and step_rule != "gradient" and math.isinf(self.radius):
            raise ValueError(f"step_size must be given for step_rule={step_rule!r} when radius is infinite")
        self.direction = check_choice("direction", direction, DIRECTIONS)
        self._checked_descents: set[tuple[object, ...]] = set()  # of shapes, dtypes and devices

    @property
    def network_passes(self) -> NetworkPasses:
        """The network passes for purifying one image, without those for its gradient."""
        passes = self.steps * self.noise.draws * (2 if self.ascent_radius > 0 else 1)
        return NetworkPasses(passes, passes if self.direction == "ere" else 0)

    def _step(self, t: int, x: Tensor, x0: Tensor, mode: StepMode) -> Tensor:
        """Return x_{t+1}, from x = x_t and the input, for one micro-batch."""
        return self._sam_step(x, None, x0, mode, last=True)[0]

    def _states(self, mode: StepMode, x0: Tensor) -> Iterator[Tensor]:
        if type(self)._step is not Purifier._step:  # a subclass has steps of its own
            yield from super()._states(mode, x0)
            return
        x, y = x0, None
        yield x
        for t in range(self.steps):
            x, y = self._sam_step(x, y, x0, mode, last=t + 1 == self.steps)
            yield x

    def _sam_step(
        self, x: Tensor, y: Tensor | None, x0: Tensor, mode: StepMode, *, last: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Return x_{t+1} and, unless it is the last, its noisy images: the kernel that makes it makes them too.

        ``y`` are those of x in the network's units, ``None`` if they are not known yet.
        """
        call = network_call_of(self.denoiser, self.sigma, x.dtype)
        g = self._gradient(x, mode, y, call)
        if self.ascent_radius > 0:
            ascended, _, y = functional.accumulate_ascend_perturb(
                x, g.per_draw, g.direct, self.ascent_radius, self.sigma, mode.noise, **call.input_options
            )
            g = self._gradient(ascended, mode, y, call)
        descent: DescentOptions = {
            "step_rule": self.step_rule,
            "step_size": self._step_size(x),
            "norm": self.norm,
            "radius": self.radius,
        }
        if last:  # steps without a projection too, which never run in a row
            return descend(x, x0, g.per_draw, g.direct, mode.projected, **descent), None
        return functional.accumulate_descend_perturb(
            x, x0, g.per_draw, g.direct, self.sigma, mode.noise, **descent, **call.input_options
        )

    def _gradient(
        self,
        x: Tensor,
        mode: StepMode,
        y: Tensor | None = None,
        call: NetworkCall | None = None,
        *,
        with_ere: bool = False,
    ) -> GradientTerms:
        return DIRECTIONS[self.direction](
            self.denoiser,
            x,
            self.sigma,
            mode.noise,
            mode.run,
            call=call,
            y=y,
            create_graph=mode.create_graph,
            with_ere=with_ere,
        )

    def _noise_of_call(self, x: Tensor) -> GaussianNoise:
        return self._banks.of(self.noise, x.shape[1:], x.device)

    @property
    def _has_derivative(self) -> bool:
        return self.step_rule != "sign"  # whose derivative is zero

    @property
    def _probed_steps(self) -> tuple[int, ...]:
        return (0,)  # all steps are alike

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Set the state of a copy, or of a purifier that an earlier version has saved."""
        super().__setstate__({"_checked_descents": set(), **state})

    def _check_descent(self, x: Tensor) -> None:
        key = (x.shape[1:], x.dtype, x.device)
        if key in self._checked_descents or self.direction != "ere" or self.steps == 0 or x.device.type == "meta":
            return
        if is_compiled(self.denoiser) or type(self)._gradient is not Purifier._gradient:
            return
        noise = replace(self.noise, draws=min(2, self.noise.draws))

        def ere(images: Tensor) -> Tensor:
            return expected_reconstruction_error(self.denoiser, images, self.sigma, noise, micro_batch=1)

        with self._in_network(x.device, grad=True):
            # First the check of its results, so that nothing that a denoiser caches in its first call is float64.
            self._sizes(x)
            images = sample_images((2, *x.shape[1:]), x.device, x.dtype).split(1)
            found = without_random_numbers("denoiser", lambda: compare_in_float64(ere, images))
        self._checked_descents.add(key)
        if found is not None and found.is_wrong:
            warn_user(
                "purification follows autograd's derivative of the denoiser, which differs from finite differences "
                f"({found}): a part of it is detached (by detach(), torch.no_grad(), or leaving PyTorch), rounds, or "
                "has a backward pass of its own"
            )

    def _probe(self, t: int, images: Tensor, mode: StepMode) -> tuple[Tensor, ...]:
        # The gradient instead of the step, so that the checks do not depend on the step size.
        g = self._gradient(images, mode)
        return (g.per_draw.transpose(0, 1), *(() if g.direct is None else (g.direct,)))

    @eager_only
    def trace(self, x: Tensor) -> PurificationTrace:
        """Purify ``x`` and return the image, ERE, gradient norm and displacement of every step.

        Raises what :meth:`forward` raises.
        """
        x, unchecked = self._checked_input(x)
        x = x.detach()
        self._check_descent(x)
        figures = self._purify(self._trace_rows, self._mode(self._noise_of_call(x)), x, unchecked)
        return PurificationTrace(*(figure.transpose(0, 1) for figure in figures))

    def _trace_rows(self, mode: StepMode, x0: Tensor) -> tuple[Tensor, ...]:
        """Return the trace of one micro-batch, rows first: [m, steps + 1, ...] each."""
        steps = []
        for x in self._states(mode, x0):
            g = self._gradient(x, mode, with_ere=True)
            _, norm = functional.accumulate_ascend(x, g.per_draw, g.direct, 0.0)
            steps.append((x, g.ere, norm, torch.linalg.vector_norm((x - x0).flatten(1), dim=1)))
        return tuple(torch.stack(figures, dim=1) for figures in zip(*steps, strict=True))

    def _step_size(self, x: Tensor) -> float:
        if self.step_size is not None:
            return self.step_size
        if self.step_rule == "gradient":
            return _DEFAULT_GRADIENT_FACTOR
        if self.step_rule == "unit" and self.norm == "linf":
            return 2 * self.radius * math.sqrt(math.prod(x.shape[1:])) / self.steps
        return 2 * self.radius / self.steps
