"""Compares autograd's derivatives of a network with finite differences.

Autograd silently takes derivatives for zero where a part of a network is detached, or has a backward pass that can't be
differentiated again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import get_gradient_edge

from ._float64 import InFloat64
from ._warn import warn_user
from .determinism import NetworkResults, RandomNumbersError, is_compiled, sample_images, without_random_numbers
from .noise import GaussianNoise

__all__ = [
    "Agreement",
    "DerivativeCheck",
    "compare_derivatives",
    "compare_in_float64",
    "depends_on",
    "explained_derivative",
    "require_agreement",
    "worst",
]

Function = Callable[[Tensor], Tensor]


_REMEDY = (
    "A network has no second derivative, which the exact gradient of direction='ere' needs, if torch.compile compiled "
    "it (pass the uncompiled one); if it checkpoints activations with an autograd function of its own, as "
    "guided-diffusion's attention does, or with use_reentrant=True (use torch.utils.checkpoint with "
    "use_reentrant=False); or if a part of it, such as attention, has a backward pass for one derivative only (use "
    "another implementation). direction='score' and the baselines need a first derivative, gradient='identity' none"
)


class Agreement(NamedTuple):
    """How well autograd and finite differences agree.

    Attributes:
        error: their difference, relative to the finite difference.
        uncertainty: relative change of the finite difference when its step is doubled; infinite if there is none.
        dtype: dtype of the computation.
    """

    error: float
    uncertainty: float
    dtype: torch.dtype

    @property
    def is_known(self) -> bool:
        """Whether the finite difference is accurate enough to judge by."""
        return self.uncertainty < _RELIABLE

    @property
    def is_wrong(self) -> bool:
        """Whether autograd's derivative is wrong by more than rounding."""
        return self.is_known and self.error > max(_TOLERANCE[self.dtype], 3 * self.uncertainty)

    def __str__(self) -> str:
        dtype = str(self.dtype).removeprefix("torch.")
        return f"relative difference {self.error:.2g}, uncertainty {self.uncertainty:.2g}, in {dtype}"


_RELIABLE = 0.03
_TOLERANCE = {torch.float64: 1e-4, torch.float32: 0.01}
# In pixel units. The first one in float64 is so small that a ReLU's kink is unlikely to lie between the points; the
# larger ones are for networks of which a part computes in float32, whose rounding would dominate.
_STEPS = {torch.float64: (1e-7, 1e-5, 1e-3), torch.float32: (1e-3, 1e-2)}


def require_agreement(name: str, agreement: Agreement) -> None:
    """Raise if the derivative of the network ``name`` is wrong; warn if it could not be verified."""
    if agreement.is_wrong:
        raise RuntimeError(
            f"autograd's derivative of the {name} differs from finite differences ({agreement}): a part of it is "
            f"detached, or has a backward pass that can't be differentiated again. {_REMEDY}"
        )
    if not agreement.is_known:
        message = (
            f"autograd's derivative of the {name} could not be verified by finite differences ({agreement}), and is "
            "used as it is; this is usual where a step hardly depends on the image"
        )
        warn_user(message)


class DerivativeCheck(NetworkResults["Agreement"]):
    """Compares a network's derivative with finite differences, once per network, settings, shape, dtype and device.

    Args:
        name: the network's name in messages.
    """

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def __call__(
        self,
        network: object,
        functions: Callable[[GaussianNoise], Sequence[Function]],
        noise: GaussianNoise,
        micro_batch: int,
        like: Tensor,
        settings: object,
    ) -> Agreement:
        """Return how well autograd and finite differences agree; called with gradients enabled.

        Args:
            network: what the functions run; other modules or functions, or modes, start the check anew.
            functions: returns the functions of images to differentiate, for a noise; those for fewer draws are compared
                in float64, if the network supports it.
            noise: the noise that the network is used with.
            micro_batch: the number of images that it is used with.
            like: [B, C, H, W], whose image shape, dtype and device count.
            settings: what else the functions depend on, hashable.

        Raises:
            RuntimeError: they differ, or a function can't be differentiated.
        """
        agreements = self._results_of(network)
        key = (settings, tuple(like.shape[1:]), like.dtype, like.device)
        if key not in agreements:
            few = replace(noise, draws=min(2, noise.draws))
            pairs = list(zip(functions(few), functions(noise), strict=True))

            def compare(cheap: Function, whole: Function) -> Agreement:
                agreement = None if is_compiled(network) else compare_in_float64(cheap, _images(1, like))
                if agreement is not None and agreement.is_known:
                    return agreement
                return compare_derivatives(whole, _images(micro_batch, like))

            agreement = without_random_numbers(self.name, lambda: worst([compare(*pair) for pair in pairs]))
            require_agreement(self.name, agreement)
            agreements[key] = agreement
        return agreements[key]


def _images(size: int, like: Tensor) -> tuple[Tensor, ...]:
    return sample_images((3 * size, *like.shape[1:]), like.device, like.dtype).split(size)


def compare_in_float64(function: Function, images: Sequence[Tensor]) -> Agreement | None:
    """Return how well autograd and finite differences agree in float64, whatever the network's dtype.

    Args:
        function: differentiable, from images [B, C, H, W] to a tensor; called with gradients enabled.
        images: where to compare, different tensors [B, C, H, W].

    Returns:
        The agreement, or ``None`` if an operation does not support float64.
    """
    try:
        with InFloat64():
            return compare_derivatives(function, [each.double() for each in images])
    except RandomNumbersError:
        raise
    except Exception:  # any type: the network's code sees dtypes that it does not expect
        return None


def compare_derivatives(function: Function, images: Sequence[Tensor]) -> Agreement:
    """Return how well autograd and finite differences agree in the dtype of the images.

    A wrong derivative may show along some directions only (white noise hardly changes a mean), so several are tried and
    the worst counts. A finite difference may be bad at one point, for example at a ReLU's kink, but a wrong derivative
    is wrong everywhere, so agreement for one image and step is enough for a direction.

    Raises:
        Whatever ``function`` and its derivative raise.
    """
    dtype = images[0].dtype
    if dtype not in _STEPS:
        return Agreement(math.nan, math.inf, dtype)
    return worst([_along(direction, function, images) for direction in _directions(images)])


def worst(agreements: Sequence[Agreement]) -> Agreement:
    """Return one that is wrong, else one that is unknown, else the one with the largest error."""
    return max(agreements, key=lambda each: (each.is_wrong, not each.is_known, each.error))


def _directions(images: Sequence[Tensor]) -> list[Tensor]:
    """Return noise, a constant and a slow wave, all of about the size of the pixel range."""
    height, width = images[0].shape[2:]
    rows, columns = (
        torch.cos(math.pi * (torch.arange(n, dtype=torch.float64, device=images[0].device) + 0.5) / n)
        for n in (height, width)
    )
    wave = (rows[:, None] + columns).to(images[0].dtype)
    noise = 2 * images[-1] - 1
    return [noise, torch.ones_like(noise), wave.expand_as(noise)]


def _along(direction: Tensor, function: Function, images: Sequence[Tensor]) -> Agreement:
    """Return the first agreement that is known and not wrong, else the one with the least uncertainty."""
    found: list[Agreement] = []
    for x in images:
        for step in _STEPS[x.dtype]:
            near, far = (_difference(function, x, direction, factor * step) for factor in (1, 2))
            size = float(torch.linalg.vector_norm(near))
            along = (
                near / size if size > 0 else torch.ones_like(near)
            )  # v along the difference itself, where it is largest
            leaf = x.clone().requires_grad_()
            result = function(leaf)  # again: a graph with checkpoints, or a compiled one, may run only once
            with explained_derivative():
                (pulled,) = torch.autograd.grad(result, leaf, along)
            difference = abs(float((pulled * direction).sum()) - size)
            rounding = 8 * torch.finfo(x.dtype).eps * float(torch.linalg.vector_norm(result.detach())) / step
            if max(size, difference) <= rounding:  # hardly any dependence on x here
                continue
            scale = max(size, torch.finfo(x.dtype).tiny)
            error = difference / scale
            uncertainty = float(torch.linalg.vector_norm(near - far)) / scale
            found.append(Agreement(error, uncertainty if math.isfinite(uncertainty) else math.inf, x.dtype))
            if found[-1].is_known and not found[-1].is_wrong:
                return found[-1]
    # Without any dependence on x there is nothing that could be wrong.
    return min(found, key=lambda agreement: agreement.uncertainty, default=Agreement(0.0, 0.0, images[0].dtype))


def _difference(function: Function, x: Tensor, direction: Tensor, step: float) -> Tensor:
    above, below = (function((x + sign * step * direction).requires_grad_()).detach() for sign in (1, -1))
    return (above - below) / (2 * step)


@contextmanager
def explained_derivative() -> Iterator[None]:
    """Context manager that differentiates a denoiser and explains autograd's errors."""
    try:
        yield
    except (torch.OutOfMemoryError, RandomNumbersError):
        raise
    except Exception as error:  # guided-diffusion's second backward pass ends in an AttributeError
        raise RuntimeError(
            f"the denoiser can't be differentiated as often as this gradient needs. {_REMEDY}. The error was: "
            f"{type(error).__name__}: {error}"
        ) from error


def depends_on(result: Tensor, x: Tensor) -> bool:
    """Whether ``result`` depends on ``x``, which requires a gradient, according to autograd.

    Walks the graph without running it: a graph with checkpoints, or a compiled one, may run only once.
    """
    if not result.requires_grad:
        return False
    goal, pending, seen = get_gradient_edge(x).node, [get_gradient_edge(result).node], set()
    while pending:
        node: Any = pending.pop()
        if node == goal:
            return True
        if node is not None and node not in seen:
            seen.add(node)
            pending += [function for function, _ in node.next_functions]
    return False
