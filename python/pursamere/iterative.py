"""What purifiers that go step by step have in common: checks, micro-batches, and gradients through the steps."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad

from ._eager import eager_only
from ._validation import NotFiniteError, check_choice, check_images, check_integer, check_supported_device
from .denoisers.protocol import Denoiser, prediction_of
from .derivative_check import Agreement, compare_derivatives, compare_in_float64, require_agreement, worst
from .invariance import MODES, NetworkCheck, made_up_images
from .micro_batch import default_micro_batch, map_micro_batches
from .networks import (
    EvaluationOnly,
    Snapshot,
    check_evaluation_mode,
    check_same_device,
    is_compiled,
    repeatable_algorithms,
    without_random_numbers,
)
from .noise import GaussianNoise
from .path_gradient import GradientOf, PathGradient, pull_back_path

MOST_STEPS = 100_000  # far beyond any use; a mistaken number must not run for ever
GRADIENTS = ("exact", "straight_through", "identity", "unrolled")

_CLIP = "; for an attack that leaves the range on purpose, PurifiedClassifier(..., clip=True) clips"


class NetworkPasses(NamedTuple):
    """Passes through the denoiser's network for one image, draws counted one by one."""

    forward: int
    backward: int

    @property
    def total(self) -> int:
        """Both together."""
        return self.forward + self.backward


class StepMode(NamedTuple):
    """How steps are run.

    Attributes:
        noise: the noise of this call.
        create_graph: whether the steps are to be differentiated; autograd is then on, and else off.
        projected: whether projections and the pixel range apply; without them a step has the derivative that the
            "straight_through" gradient takes.
        image_ids: what tells the noise of an image from that of others, int64 [m] on the CPU; ``None`` where all images
            share it.
    """

    noise: GaussianNoise
    create_graph: bool = False
    projected: bool = True
    image_ids: Tensor | None = None

    @property
    def per_image(self) -> tuple[Tensor, ...]:
        """What is divided into micro-batches with the images."""
        return () if self.image_ids is None else (self.image_ids,)

    def of_rows(self, *per_image: Tensor) -> StepMode:
        """The same for a micro-batch."""
        return self._replace(image_ids=per_image[0]) if per_image else self


class IterativePurifier(EvaluationOnly, ABC):
    """Images, float [B, C, H, W] in [0, 1], to purified images of the same shape, dtype and device, in steps.

    A sample's result has the same bits in every run and in every batch. There is no training mode: the constructor
    switches the denoiser to evaluation mode, and ``train()`` leaves it there. Call ``.eval()`` yourself on a network
    that a function wraps.

    A subclass says what a step is: :meth:`_step`, from a state to the next, and where the state is more than the image,
    :meth:`_initial` and :meth:`_result`. These three work on one micro-batch, must be differentiable functions of their
    tensors, and take what is random from ``mode.noise``.

    Args:
        denoiser: any callable ``(y [N, C, H, W], sigma) -> [N, C, H, W]``, see :class:`pursamere.denoisers.Denoiser`.
        steps: number of steps, from 0 to 100,000.
        noise: the fixed draws.
        micro_batch: the denoiser always runs on ``micro_batch * noise.draws`` images, the last call padded, since
            results of networks may depend on the batch size. By default 1 on a CPU and 64 on an accelerator. The bits
            of a result depend on it, but never on the batch.
        invariance: what to do when the denoiser's rows turn out to influence one another in a micro-batch larger than
            1, which is checked once per shape, dtype and device: "warn", "strict" (an error), or "off" (no check).

    Attributes:
        random: whether calls differ from one another; False for all that are deterministic.

    Raises:
        TypeError: an argument of the wrong type.
        ValueError: an argument out of its range.
    """

    random: bool = False
    _parameters_shown: ClassVar[tuple[str, ...]]

    def __init__(
        self,
        denoiser: Denoiser,
        *,
        steps: int,
        noise: GaussianNoise,
        micro_batch: int | None,
        invariance: str,
    ) -> None:
        super().__init__()
        prediction_of(denoiser)
        if not isinstance(noise, GaussianNoise):
            raise TypeError(f"noise must be a pursamere.GaussianNoise, got {type(noise).__name__}")
        self.denoiser = denoiser
        self.steps = check_integer("steps", steps, low=0, high=MOST_STEPS)
        self.noise = noise
        self.micro_batch = None if micro_batch is None else check_integer("micro_batch", micro_batch, low=1)
        self.invariance = check_choice("invariance", invariance, MODES)
        self._network_check = NetworkCheck("denoiser", invariance)
        self._compared: Snapshot | None = None  # the denoiser that the agreements are of
        self._agreements: dict[tuple[object, ...], Agreement] = {}
        self.eval()

    @property
    def _has_derivative(self) -> bool:
        """Whether the exact gradient differentiates the denoiser."""
        return True

    @property
    @abstractmethod
    def network_passes(self) -> NetworkPasses:
        """The network passes that purifying one image takes, without those for its gradient."""

    @abstractmethod
    def _step(self, t: int, state: Tensor, x0: Tensor, mode: StepMode) -> Tensor:
        """Return the state after step ``t`` from the one before, [m, *], and the input [m, C, H, W]."""

    def _initial(self, x0: Tensor, mode: StepMode) -> Tensor:
        """Return the state before the first step."""
        return x0

    def _result(self, state: Tensor, x0: Tensor, mode: StepMode) -> Tensor:
        """Return the purified images of the state after the last step."""
        return state

    @eager_only
    def forward(self, x: Tensor, gradient: str = "exact") -> Tensor:
        """Return the purified images, [B, C, H, W] in [0, 1].

        Values of ``x`` that rounding left outside [0, 1], by at most 1e-4, are clipped; their derivative is kept.
        When gradients are enabled and ``x`` requires them the result is differentiable with respect to ``x``, in the
        way that ``gradient`` names:

        - "exact": vector-Jacobian products step by step (M9). Only the states between the steps are kept, so memory
          hardly grows with the steps. The exact derivative of a sign is zero.
        - "straight_through": the same with projections and the pixel range treated as the identity.
        - "identity": the whole purifier treated as the identity (BPDA).
        - "unrolled": PyTorch's automatic differentiation through every step. Equal to "exact", but memory grows with
          the steps; it can be differentiated again, and leaves gradients in the denoiser's parameters too.

        "exact" and "straight_through" run the steps again in the backward pass. There the purifier's attributes and the
        denoiser (its modules, tensors and public attributes) must still be those of the forward pass.

        Raises:
            TypeError: ``x`` is not a floating tensor.
            ValueError: ``x`` is not [B, C, H, W], not in [0, 1] or not finite, its device is not supported, the
                denoiser is in training mode or for autograd does not depend on its input, or ``gradient`` is unknown.
            RuntimeError: the denoiser returned NaN or infinity, or its gradient overflowed; its results do not repeat,
                or, with ``invariance="strict"``, depend on other rows; autograd does not know its derivative; or, in
                the backward pass, something was changed since the forward pass.
        """
        return self._forward(x, gradient)

    def _forward(self, x: Tensor, gradient: str, image_ids: Tensor | None = None) -> Tensor:
        check_choice("gradient", gradient, GRADIENTS)
        x = self._checked_input(x)
        if forward_ad.unpack_dual(x).tangent is not None:
            raise NotImplementedError(
                "purifiers have no forward-mode derivative: use reverse mode (torch.autograd.grad)"
            )
        mode = StepMode(self._noise_of_call(), image_ids=image_ids)
        if not (torch.is_grad_enabled() and x.requires_grad):
            return self._purify(self._last, x, mode)[0]
        # With create_graph PyTorch takes other kernels, whose last bits differ. Gradients come from such passes, the
        # value from a plain one, so that it does not depend on whether x requires a gradient.
        tracked = mode._replace(create_graph=True, projected=gradient != "straight_through")
        result: Tensor
        if gradient != "identity":
            self.check_derivative(x)
        if gradient in ("exact", "straight_through"):
            value, path = self._purify(self._path, x, mode)
            before = Snapshot(self.denoiser), self._settings()  # now: a module may count its calls
            result = PathGradient.apply(x, path, value, partial(self._pull_back, before, tracked))
        else:
            source = x if gradient == "identity" else self._purify(self._last, x, tracked)[0]
            result = GradientOf.apply(source, self._purify(self._last, x, mode)[0])
        return result

    def micro_batch_on(self, device: torch.device) -> int:
        """Return the number of images per call of the denoiser on a device."""
        return self.micro_batch or default_micro_batch(device)

    def _noise_of_call(self) -> GaussianNoise:
        return self.noise

    def _states(self, x0: Tensor, mode: StepMode) -> Iterator[Tensor]:
        """Yield the steps + 1 states for one micro-batch."""
        state = self._initial(x0, mode)
        yield state
        for t in range(self.steps):
            state = self._step(t, state, x0, mode)
            yield state

    def _last(self, x0: Tensor, mode: StepMode) -> tuple[Tensor]:
        *_, state = self._states(x0, mode)
        return (self._result(state, x0, mode),)

    def _path(self, x0: Tensor, mode: StepMode) -> tuple[Tensor, Tensor]:
        states = list(self._states(x0, mode))
        return self._result(states[-1], x0, mode), torch.stack(states, dim=1)

    def _purify(self, of: Callable[..., tuple[Tensor, ...]], x: Tensor, mode: StepMode) -> tuple[Tensor, ...]:
        """Return what ``of`` makes of the micro-batches."""

        def rows(images: Tensor, *per_image: Tensor) -> tuple[Tensor, ...]:
            return of(images, mode=mode.of_rows(*per_image))

        with self._in_network(x.device, grad=mode.create_graph):
            self._check_network(x)
            results = map_micro_batches(rows, self.micro_batch_on(x.device), ordinary(x), *mode.per_image)
        if not all(bool(torch.isfinite(result.detach()).all()) for result in results):
            raise NotFiniteError(
                "the denoiser returned NaN or infinity, or its gradient overflowed; no image was purified"
            )
        return results

    def _pull_back(
        self, before: tuple[Snapshot, dict[str, Any]], mode: StepMode, x: Tensor, path: Tensor, v: Tensor
    ) -> Tensor:
        """Return ``v``, the gradient with respect to the result, as that with respect to x; path [B, steps + 1, *]."""
        self._check_unchanged(*before)

        def rows(x0: Tensor, path: Tensor, v: Tensor, *per_image: Tensor) -> tuple[Tensor]:
            own = mode.of_rows(*per_image)
            initial, step, result = (partial(part, mode=own) for part in (self._initial, self._step, self._result))
            return (pull_back_path(initial, step, result, x0, path, v),)

        with self._in_network(v.device, grad=True):
            (gradient,) = map_micro_batches(rows, self.micro_batch_on(v.device), x, path, v, *mode.per_image)
        if bool(torch.isfinite(v).all()) and not bool(torch.isfinite(gradient).all()):
            raise NotFiniteError(
                "the gradient through the purifier is NaN or infinite: the denoiser's derivatives overflow"
            )
        return gradient

    @contextmanager
    def _in_network(self, device: torch.device, grad: bool) -> Iterator[None]:
        # Inference mode would forbid the denoiser's backward pass, which is part of the forward pass here.
        with (
            torch.inference_mode(False),
            torch.set_grad_enabled(grad),
            repeatable_algorithms(device),
        ):
            yield

    def _settings(self) -> dict[str, Any]:
        """Everything that defines the steps but the denoiser, and the noise, which belongs to a call.

        A subclass keeps what changes from call to call in attributes whose names begin with ``_``.
        """
        others = ("denoiser", "noise", "training")
        return {name: value for name, value in vars(self).items() if not name.startswith("_") and name not in others}

    def _check_unchanged(self, denoiser: Snapshot, settings: dict[str, Any]) -> None:
        """Require that a backward pass through the steps runs what the forward pass ran."""
        check_evaluation_mode("denoiser", self.denoiser)
        if not denoiser.still_holds(self.denoiser):
            raise RuntimeError(
                "the denoiser, or a module, tensor or public attribute of it, was changed or replaced between the "
                "forward and backward pass, so the gradient would be another network's; gradient='unrolled' allows it"
            )
        for name, value in self._settings().items():
            before = settings.get(name)
            if value is not before and value != before:
                raise RuntimeError(
                    f"{name} was changed from {before!r} to {value!r} between the forward and backward pass, so the "
                    "gradient would be another purifier's"
                )

    def _checked_input(self, x: Tensor) -> Tensor:
        x = check_images("x", x, hint=_CLIP)
        check_supported_device("x", x.device)
        check_evaluation_mode("denoiser", self.denoiser)
        check_same_device("denoiser", self.denoiser, x)
        return x

    def check_derivative(self, x: Tensor) -> Agreement | None:
        """Compare autograd's derivative of a step with finite differences, once per denoiser, shape, dtype and device.

        In float64, on one image and two draws, where all of the denoiser's operations allow; else as purifications run.

        Args:
            x: [B, C, H, W]; its values do not matter.

        Returns:
            Their agreement; ``None`` where no derivative is taken.

        Raises:
            RuntimeError: they differ, or the denoiser can't be differentiated as often as the exact gradient needs.
        """
        if self.steps == 0 or x.device.type == "meta" or not self._has_derivative:
            return None
        network = Snapshot(self.denoiser)
        if self._compared is None or not self._compared.has_parts_of(network):
            self._compared, self._agreements = network, {}
        key = (self.extra_repr(), tuple(x.shape[1:]), x.dtype, x.device)
        if key not in self._agreements:
            with self._in_network(x.device, grad=False):
                self._check_network(x)  # first, so that nothing a denoiser keeps from its first call is float64
            with self._in_network(x.device, grad=True):
                agreement = without_random_numbers(
                    "denoiser", lambda: worst([self._compare_derivatives(t, x) for t in self._probed_steps])
                )
            require_agreement("denoiser", agreement)
            self._agreements[key] = agreement
        return self._agreements[key]

    def _compare_derivatives(self, t: int, x: Tensor) -> Agreement:
        def function_of(noise: GaussianNoise) -> Callable[[Tensor], Tensor]:
            mode = StepMode(noise, create_graph=True, projected=False)
            return lambda images: torch.cat([each.flatten() for each in self._probe(t, images, mode)])

        def images(size: int) -> tuple[Tensor, ...]:
            return made_up_images((3 * size, *x.shape[1:]), x.device, x.dtype).split(size)

        if not is_compiled(self.denoiser):
            few = replace(self.noise, draws=min(2, self.noise.draws))
            agreement = compare_in_float64(function_of(few), images(1))
            if agreement is not None and agreement.is_known:
                return agreement
        return compare_derivatives(function_of(self.noise), images(self.micro_batch_on(x.device)))

    def _check_network(self, x: Tensor) -> None:
        mode = StepMode(self.noise, projected=False)

        def rows(images: Tensor) -> tuple[Tensor, ...]:
            with torch.no_grad():
                return self._probe(0, images, mode)

        self._network_check(self.denoiser, rows, (self.micro_batch_on(x.device), *x.shape[1:]), x)

    @property
    def _probed_steps(self) -> tuple[int, ...]:
        """The steps whose derivatives are compared: a denoiser may work in another way at another noise level."""
        return tuple(sorted({round(i * (self.steps - 1) / 7) for i in range(8)}))

    def _probe(self, t: int, images: Tensor, mode: StepMode) -> tuple[Tensor, ...]:
        """Return what step ``t`` makes of images, rows first: by it the denoiser's rows and derivative are checked."""
        return (self._step(t, self._initial(images, mode), images, mode),)

    @property
    def _shown(self) -> dict[str, str]:
        return {name: repr(getattr(self, name)) for name in (*self._parameters_shown, "noise", "micro_batch")}

    def extra_repr(self) -> str:
        """Return the parameters and the network passes, for ``print``."""
        shown = [f"{name}={value}" for name, value in self._shown.items()]
        return ", ".join([*shown, f"network_passes={self.network_passes.total}"])

    def get_extra_state(self) -> Tensor:
        """Return the settings for ``state_dict()``, as JSON in a uint8 tensor, which every format can hold."""
        state = {"purifier": type(self).__name__, **self._shown}
        return torch.tensor(list(json.dumps(state).encode()), dtype=torch.uint8, device="cpu")

    def set_extra_state(self, state: Tensor) -> None:
        """Refuse a state that was saved with other settings: ``load_state_dict()`` loads weights, not settings."""
        try:
            saved = dict(json.loads(bytes(state.tolist())))
        except (AttributeError, TypeError, ValueError) as error:
            raise ValueError(f"the state of a {type(self).__name__} must hold its settings as JSON: {error}") from error
        own = {"purifier": type(self).__name__, **self._shown}
        different = [
            f"{name}={saved.get(name, 'nothing')} (here {own.get(name, 'nothing')})"
            for name in own | saved
            if own.get(name) != saved.get(name)
        ]
        if different:
            raise ValueError(
                f"the state was saved from a purifier with {', '.join(different)}: make the purifier with these "
                "settings, or load the denoiser's weights alone, with purifier.denoiser.load_state_dict()"
            )


def ordinary(x: Tensor) -> Tensor:
    """``x``, or a copy that autograd accepts if it was made in inference mode."""
    return x.clone() if x.is_inference() else x


def in_pixel_range(x: Tensor, mode: StepMode) -> Tensor:
    """Return ``x`` clipped to [0, 1], unless the run ignores projections."""
    if not mode.projected:
        return x
    return torch.where(x.isfinite(), x.clamp(0.0, 1.0), torch.nan)  # not to make an infinity pass for an image
