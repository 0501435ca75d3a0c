"""Purifiers that work in steps: how the steps run, and gradients through them (equation M9)."""

from __future__ import annotations

import functools
from abc import abstractmethod
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad

from ._eager import eager_only
from ._settings_state import SettingsInState
from ._validation import (
    NotFiniteError,
    UncheckedImages,
    check_choice,
    check_integer,
    check_supported_device,
    clip_images,
)
from .cuda_graphs import CapturedCalls
from .denoisers.protocol import Denoiser, prediction_of
from .derivative_check import Agreement, DerivativeCheck
from .determinism import (
    INVARIANCE_MODES,
    FixedModule,
    LatestSnapshot,
    NetworkCheck,
    algorithm_settings,
    check_evaluation_mode,
    check_same_device,
    map_micro_batches,
    repeatable_algorithms,
)
from .execution import Execution, NetworkRunner, Run, run_plainly
from .noise import GaussianNoise, LatestBank, NoiseBank
from .path_gradient import ExactGradient, GradientOf

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = [
    "GRADIENTS",
    "IterativePurifier",
    "NetworkPasses",
    "StepMode",
]

GRADIENTS = ("exact", "straight_through", "identity", "unrolled")

_MAX_STEPS = 100_000  # far beyond any use; a mistyped number must not run forever
_CLIP_HINT = "; for an attack that leaves the range on purpose, PurifiedClassifier(..., clip=True) clips"


def check_gradient(value: Any, choices: Sequence[str] = GRADIENTS) -> str:
    """Return ``value`` if it names one of the gradients."""
    return check_choice("gradient", value, choices, hint="; BPDA is 'identity'" if value in ("bpda", "BPDA") else "")


class NetworkPasses(NamedTuple):
    """Passes through the denoiser's network for one image; every draw counts."""

    forward: int
    backward: int

    @property
    def total(self) -> int:
        """Forward and backward passes together."""
        return self.forward + self.backward


class StepMode(NamedTuple):
    """How steps run.

    Attributes:
        noise: the noise of this call.
        run: runs the denoiser, as the purifier's ``execution`` says.
        create_graph: whether the denoiser is differentiated, so that its results need a graph.
        projected: whether the projection and the pixel range apply. A step without them has the derivative that the
            "straight_through" gradient takes.
        image_ids: per-image seeds of the noise, int64 [B] on the CPU; ``None`` if all images share the noise.
    """

    noise: GaussianNoise
    run: Run = run_plainly
    create_graph: bool = False
    projected: bool = True
    image_ids: Tensor | None = None


_Rows = Callable[..., tuple[Tensor, ...]]  # of a mode and tensors with a row for each image
_Captured = Callable[..., tuple[Tensor, ...]]  # of the tensors alone


class IterativePurifier(FixedModule, SettingsInState):
    """Base class of purifiers: images [B, C, H, W] in [0, 1] to purified images of the same shape, dtype and device.

    A sample's result has the same bits in every run and in every batch. There is no training mode: the constructor
    switches the denoiser to evaluation mode and ``train()`` leaves it there. Call ``.eval()`` yourself on a network
    that a function wraps. Attributes are read-only after construction.

    Subclasses define a step, :meth:`_step`, from one state to the next and, if the state is more than the image,
    :meth:`_initial` and :meth:`_result`. These three work on one micro-batch, must be differentiable in their tensors,
    and take all randomness from ``mode.noise``.

    Args:
        denoiser: any callable ``(y [N, C, H, W], sigma) -> [N, C, H, W]``, see :class:`pursamere.denoisers.Denoiser`.
        steps: number of steps, from 0 to 100,000.
        noise: the fixed draws.
        micro_batch: the denoiser always runs on ``micro_batch * noise.draws`` images, padding the last call, because
            a network's results may depend on the batch size. The bits of a result depend on it, but never on the batch.
            ``None`` chooses, once per shape, dtype and device: the largest of a few sizes that fills the device and in
            which rows are independent, together with those smaller sizes that give the same bits, which the rest of a
            batch runs in; 1 if there are none.
        invariance: what to do if the denoiser's rows influence one another, in a micro-batch of the given size or,
            where sizes are found, so that only 1 is left; checked once per shape, dtype and device: "warn", "strict"
            (raise), or "off" (no check; ``None`` is then 1 on a CPU and 64 on an accelerator).
        execution: how the denoiser runs: precision, compilation, memory format; default ``Execution()``.

    Attributes:
        random: whether calls differ from one another.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: an argument is out of range.
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
        execution: Execution | None = None,
    ) -> None:
        super().__init__()
        prediction_of(denoiser)
        if not isinstance(noise, GaussianNoise):
            raise TypeError(f"noise must be a pursamere.GaussianNoise, got {type(noise).__name__}")
        self.denoiser = denoiser
        self.steps = check_integer("steps", steps, low=0, high=_MAX_STEPS)
        # Without values, whose shape is that of some images.
        self.noise = noise.without_values() if isinstance(noise, NoiseBank) else noise
        self.micro_batch = None if micro_batch is None else check_integer("micro_batch", micro_batch, low=1)
        self.invariance = check_choice("invariance", invariance, INVARIANCE_MODES)
        if not isinstance(execution, Execution | None):
            raise TypeError(f"execution must be a pursamere.Execution, got {type(execution).__name__}")
        self.execution = execution or Execution()
        self._forget()
        self._network_check = NetworkCheck("denoiser", self.micro_batch, self.invariance)
        self._derivative_check = DerivativeCheck("denoiser")
        self.eval()

    def _forget(self) -> None:
        """Drop what only saves time: compiled passes, graphs, and the last snapshot and bank of noise."""
        self._snapshot, self._banks = LatestSnapshot(), LatestBank()
        self._network, self._captured = NetworkRunner(self.execution), CapturedCalls()

    def __getstate__(self) -> dict[str, Any]:
        """Return what to copy or pickle."""
        dropped = ("_snapshot", "_banks", "_network", "_captured")
        return {name: value for name, value in vars(self).items() if name not in dropped}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Set the state of a copy."""
        super().__setstate__(state)
        self._forget()

    def _replicate_for_data_parallel(self) -> Self:
        replica = super()._replicate_for_data_parallel()
        replica._forget()
        replica._captured.give_up()  # it has other weights in every call
        replica._network_check = self._network_check.of_replica(self.denoiser)
        replica._derivative_check = self._derivative_check.of_replica(self.denoiser)
        return replica

    @property
    @abstractmethod
    def network_passes(self) -> NetworkPasses:
        """The network passes for purifying one image, without those for its gradient."""

    @property
    def _has_derivative(self) -> bool:
        """Whether the exact gradient differentiates the denoiser."""
        return True

    @abstractmethod
    def _step(self, t: int, state: Tensor, x0: Tensor, mode: StepMode) -> Tensor:
        """Return the state [m, *] after step ``t``, from the state before it and the input [m, C, H, W]."""

    def _initial(self, x0: Tensor, mode: StepMode) -> Tensor:
        """Return the state before the first step."""
        return x0

    def _result(self, state: Tensor, x0: Tensor, mode: StepMode) -> Tensor:
        """Return the purified images, from the state after the last step."""
        return state

    @eager_only
    def forward(self, x: Tensor, gradient: str = "exact") -> Tensor:
        """Return the purified images, [B, C, H, W] in [0, 1].

        Values of ``x`` outside [0, 1] by at most 1e-4 are treated as rounding errors: they are clipped, and keep their
        derivative. If gradients are enabled and ``x`` requires one, the result is differentiable with respect to
        ``x``, using the gradient selected by ``gradient``:

        - "exact": vector-Jacobian products step by step (M9). Only the states between the steps are stored, so memory
          hardly grows with the steps. The exact derivative of a sign is zero.
        - "straight_through": the same, with the projection and the pixel range treated as the identity.
        - "identity": the whole purifier treated as the identity (BPDA).
        - "unrolled": autograd through every step. Equal to "exact", but memory grows with the steps. It can be
          differentiated again, and also accumulates gradients in the denoiser's parameters.

        "exact" and "straight_through" run the steps again in the backward pass, so the denoiser (its modules, tensors
        and public attributes) must not change between the forward and the backward pass.

        Raises:
            TypeError: ``x`` is not a floating-point tensor.
            ValueError: ``x`` is not [B, C, H, W], not in [0, 1] or not finite; its device is not supported; the
                denoiser has a layer in training mode that is random, mixes samples or updates itself, or its result
                does not depend on its input; or ``gradient`` is unknown.
            RuntimeError: the denoiser returned NaN or infinity, or its gradient overflowed; its results do not repeat,
                or depend on other rows with ``invariance="strict"``; its derivative differs from finite differences;
                or, in the backward pass, it has changed since the forward pass.
        """
        return self._forward(x, gradient)

    def _forward(self, x: Tensor, gradient: str, image_ids: Tensor | None = None) -> Tensor:
        check_gradient(gradient)
        x, unchecked = self._checked_input(x)
        if forward_ad.unpack_dual(x).tangent is not None:
            raise NotImplementedError(
                "purifiers have no forward-mode derivative: use reverse mode (torch.autograd.grad)"
            )
        differentiated = torch.is_grad_enabled() and x.requires_grad
        if differentiated and gradient != "identity":
            self.check_derivative(x)
        else:
            self._check_descent(x)
        mode = self._mode(self._noise_of_call(x), image_ids=image_ids)
        if not differentiated:
            return self._purify(self._last, mode, x, unchecked)[0]
        # With create_graph PyTorch selects other kernels, whose last bits differ. Only gradients come from such passes;
        # the value always comes from a plain one, so that it does not depend on whether x requires a gradient.
        tracked = self._mode(
            mode.noise,
            create_graph=self._has_derivative,
            projected=gradient != "straight_through",
            image_ids=image_ids,
        )
        result: Tensor
        if gradient in ("exact", "straight_through"):
            value, path = self._purify(self._path, mode, x, unchecked)
            result = ExactGradient.apply(x, path, value, self, tracked, self._snapshot.of(self))
        else:
            (value,) = self._purify(self._last, mode, x, unchecked)
            source = x if gradient == "identity" else self._purify(self._last, tracked, x, unchecked, grad=True)[0]
            result = GradientOf.apply(source, value)
        return result

    def micro_batch_sizes(self, x: Tensor, *, differentiated: bool = False) -> tuple[int, ...]:
        """Return the numbers of images per call of the denoiser that such images run in, the largest first.

        Runs the denoiser if these are not known yet for the shape, dtype and device of ``x``.

        Args:
            x: [B, C, H, W]; its values do not matter.
            differentiated: return those of the exact gradient, which may differ from those of purification.

        Raises:
            RuntimeError: the denoiser's results do not repeat, or depend on other rows with ``invariance="strict"``.
        """
        with self._in_network(x.device, grad=False):
            return self._sizes(x, differentiated=differentiated)

    def _mode(self, noise: GaussianNoise, *, create_graph: bool = False, **options: Any) -> StepMode:
        run = self._network.differentiable if create_graph else self._network
        return StepMode(noise, run, create_graph, **options)

    def _noise_of_call(self, x: Tensor) -> GaussianNoise:
        return self.noise

    def _states(self, mode: StepMode, x0: Tensor) -> Iterator[Tensor]:
        """Yield the steps + 1 states of one micro-batch."""
        state = self._initial(x0, mode)
        yield state
        for t in range(self.steps):
            state = self._step(t, state, x0, mode)
            yield state

    def _last(self, mode: StepMode, x0: Tensor) -> tuple[Tensor]:
        (state,) = deque(self._states(mode, x0), maxlen=1)
        return (self._result(state, x0, mode),)

    def _path(self, mode: StepMode, x0: Tensor) -> tuple[Tensor, Tensor]:
        states = list(self._states(mode, x0))
        return self._result(states[-1], x0, mode), torch.stack(states, dim=1)

    def _path_vjp(self, mode: StepMode, x0: Tensor, path: Tensor, v: Tensor) -> tuple[Tensor]:
        """Return the gradient of <v, result> with respect to x0, given the path s_0, ..., s_T, [m, T + 1, *].

        Every step runs again from its stored state and is differentiated on its own, so there is never more than one
        step's graph. For a step of M8, its two backward passes through the network are the Hessian-vector products of
        M9.
        """
        x0 = x0.clone().requires_grad_()
        v_x0 = torch.zeros_like(x0)
        for t in reversed(range(self.steps + 1)):
            state = path[:, t].clone().requires_grad_()
            after = self._result(state, x0, mode) if t == self.steps else self._step(t, state, x0, mode)
            v, direct = torch.autograd.grad(after, (state, x0), v, materialize_grads=True)
            v_x0 = v_x0 + direct
        (through_initial,) = torch.autograd.grad(self._initial(x0, mode), x0, v)
        return (through_initial + v_x0,)

    def _purify(
        self, rows: _Rows, mode: StepMode, x: Tensor, unchecked: UncheckedImages | None, *, grad: bool = False
    ) -> tuple[Tensor, ...]:
        """Return ``rows`` of all images. Nothing waits for an accelerator before the check at the end."""
        try:
            with self._in_network(x.device, grad=grad):
                results = self._map(rows, mode, x)
        except Exception:
            if unchecked is not None:  # the network may have failed for them
                unchecked.require()
            raise
        flags = [torch.isfinite(result.detach()).all() for result in results]
        if not bool(torch.stack(flags if unchecked is None else [*flags, unchecked.valid]).all()):
            if unchecked is not None:
                unchecked.require()
            raise NotFiniteError(
                "the denoiser returned NaN or infinity, or its gradient overflowed; no image was purified"
            )
        return results

    def _pull_back(self, mode: StepMode, x: Tensor, path: Tensor, v: Tensor) -> Tensor:
        with self._in_network(v.device, grad=True):
            (gradient,) = self._map(self._path_vjp, mode, x, path, v)
        if bool(torch.isfinite(v).all() & ~torch.isfinite(gradient).all()):
            raise NotFiniteError(
                "the gradient through the purifier is NaN or infinite: the denoiser's derivatives overflow"
            )
        return gradient

    def _map(self, rows: _Rows, mode: StepMode, *batches: Tensor) -> tuple[Tensor, ...]:
        """Return ``rows(mode, *batches)``, computed in micro-batches."""
        sizes = self._sizes(batches[0], differentiated=mode.create_graph)
        if mode.image_ids is None:
            run = self._capturing(rows, mode, batches[0].device) or (lambda *parts: rows(mode, *parts))
            return map_micro_batches(run, sizes, *batches)
        return map_micro_batches(
            lambda ids, *parts: rows(mode._replace(image_ids=ids), *parts), sizes, mode.image_ids, *batches
        )

    def _capturing(self, rows: _Rows, mode: StepMode, device: torch.device) -> _Captured | None:
        """Return ``rows`` in this mode with its CUDA graphs; ``None`` if it is not to be captured."""
        if not self.execution.cuda_graphs or mode.create_graph or torch.is_grad_enabled():
            return None
        if device.type != "cuda":
            self._captured.tell(f"the images are on {device}")
        elif self.random:
            self._captured.tell("the noise differs from call to call")
        elif self.execution.compile:
            self._captured.tell("compiled networks are not captured")
        else:
            # The key also keeps the bank of noise, whose memory the graph reads.
            key = (rows.__name__, mode.noise, mode.projected, *self._shown.items(), *algorithm_settings(device))
            return lambda *parts: self._captured(self.denoiser, lambda *static: rows(mode, *static), key, *parts)
        return None

    @contextmanager
    def _in_network(self, device: torch.device, grad: bool) -> Iterator[None]:
        # Inference mode would forbid the denoiser's backward pass, which is part of the forward pass here.
        self._network.tell_if_slow(device)
        with (
            torch.inference_mode(False),
            torch.set_grad_enabled(grad),
            repeatable_algorithms(device),
            self.execution.in_precision(device),
        ):
            yield

    def _checked_input(self, x: Tensor) -> tuple[Tensor, UncheckedImages | None]:
        x, unchecked = clip_images("x", x, hint=_CLIP_HINT)
        if self.execution.precision == "bfloat16" and x.dtype == torch.float64:
            raise TypeError("x must be float32, float16 or bfloat16 with precision='bfloat16', got torch.float64")
        check_supported_device("x", x.device)
        check_evaluation_mode("denoiser", self.denoiser)
        check_same_device("denoiser", self.denoiser, x)
        return x, unchecked

    def check_derivative(self, x: Tensor) -> Agreement | None:
        """Compare autograd's derivative of a step with finite differences, once per denoiser, shape, dtype and device.

        In float64, on one image and two draws, if all of the denoiser's operations support it; else in that of ``x``.

        Args:
            x: [B, C, H, W]; its values do not matter.

        Returns:
            How well they agree; ``None`` if the exact gradient takes no derivative.

        Raises:
            RuntimeError: they differ, or the denoiser can't be differentiated as often as the exact gradient needs.
        """
        if self.steps == 0 or x.device.type == "meta" or not self._has_derivative:
            return None
        with self._in_network(x.device, grad=True):
            # First the check of its results, so that nothing that a denoiser caches in its first call is float64.
            size = self._sizes(x)[0]
            settings = tuple(self._shown.items())
            return self._derivative_check(self.denoiser, self._probes, self.noise, size, x, settings)

    def _check_descent(self, x: Tensor) -> None:
        """Compare the derivatives that purification itself follows with finite differences, and warn if they differ."""

    def _probes(self, noise: GaussianNoise) -> list[Callable[[Tensor], Tensor]]:
        """Return functions of images, whose derivatives are compared with finite differences."""
        mode = self._mode(noise, create_graph=True, projected=False)
        return [
            lambda images, t=t: torch.cat([each.flatten() for each in self._probe(t, images, mode)])  # type: ignore[misc]
            for t in self._probed_steps
        ]

    def _sizes(self, x: Tensor, *, differentiated: bool = False) -> tuple[int, ...]:
        """Return the sizes of micro-batches in which rows are independent, also in the derivative if asked for."""
        if self.network_passes.total == 0:
            return (self.micro_batch or 1,)  # the denoiser does not run
        differentiated = differentiated and self._has_derivative
        mode = self._mode(self.noise, create_graph=differentiated, projected=False)

        def rows(mode: StepMode, images: Tensor) -> tuple[Tensor, ...]:
            with torch.set_grad_enabled(differentiated):
                leaf = images.clone().requires_grad_(differentiated)
                results = self._probe(0, leaf, mode)
                if not differentiated:
                    return results
                stepped = self._step(0, self._initial(leaf, mode), leaf, mode._replace(projected=True))
                return torch.autograd.grad(
                    (stepped, *results), leaf, [stepped.detach(), *(r.detach() for r in results)]
                )

        eager = mode._replace(run=self._network.differentiable)
        try:
            return self._network_check(
                functools.partial(rows, mode),
                x,
                self.noise.draws,
                "derivative" if differentiated else "value",
                eager=functools.partial(rows, eager),
                network=self.denoiser,
                constants=len(self._probed_steps) == 1,
                few=self.execution.compile and not differentiated,
            )
        except ValueError as error:  # the denoiser's own message is about its input, not about x
            shape = getattr(self.denoiser, "image_shape", None)
            if isinstance(shape, Sequence) and len(shape) == 3 and tuple(shape) != tuple(x.shape[1:]):
                expected = ", ".join(map(str, shape))
                raise ValueError(f"x must have the shape [B, {expected}], got {list(x.shape)}") from error
            raise

    @property
    def _probed_steps(self) -> tuple[int, ...]:
        """The steps whose derivatives are checked: a denoiser may behave differently at another noise level."""
        return tuple(sorted({round(i * (self.steps - 1) / 7) for i in range(8)}))

    def _probe(self, t: int, images: Tensor, mode: StepMode) -> tuple[Tensor, ...]:
        """Return what step ``t`` computes from images, rows first; the denoiser is checked by these results."""
        return (self._step(t, self._initial(images, mode), images, mode),)

    @property
    def _shown(self) -> dict[str, str]:
        names = (*self._parameters_shown, "noise", "execution", "micro_batch")
        return {name: repr(getattr(self, name)) for name in names}

    def extra_repr(self) -> str:
        """Return the settings and the number of network passes, for ``print``."""
        shown = [f"{name}={value}" for name, value in self._shown.items()]
        shown[-1] += self._network_check.told()
        return ", ".join([*shown, f"network_passes={self.network_passes.total}"])
