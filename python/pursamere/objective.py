"""The expected reconstruction error and its gradient: equations M6, M7 and M10."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import NamedTuple, cast

import torch
from torch import Tensor

from . import functional
from ._attention import DifferentiableAttention
from ._eager import eager_only
from ._validation import check_finite, check_integer, check_positive, check_tensor
from .denoisers.protocol import Denoiser, NetworkCall, network_call_of
from .derivative_check import depends_on, explained_derivative
from .determinism import check_evaluation_mode, default_micro_batch, map_micro_batches
from .execution import Run, run_plainly
from .noise import GaussianNoise

__all__ = [
    "NOT_DIFFERENTIABLE",
    "GradientTerms",
    "denoise",
    "ere_gradient",
    "expected_reconstruction_error",
    "score_gradient",
]

NOT_DIFFERENTIABLE = (
    "denoiser must be differentiable in its input, but its result does not depend on it (is it decorated with "
    "torch.no_grad, or detached?); only direction='score' and DiffPure can do without, where no gradient is asked for"
)

_WRITES_INTO_ITS_INPUT = "denoiser must not write into its input, which is used again; let it work on a copy"


class GradientTerms(NamedTuple):
    """The terms of a gradient g = direct + sum_k per_draw_k, and on request the ERE at the same point."""

    per_draw: Tensor  # [K, B, C, H, W]
    direct: Tensor | None  # [B, C, H, W]
    ere: Tensor | None  # [B]


@eager_only
def expected_reconstruction_error(
    denoiser: Denoiser, x: Tensor, sigma: float, noise: GaussianNoise, *, micro_batch: int | None = None
) -> Tensor:
    """Return R_K(x) = (1/K) sum_k ||x - D(x + sigma * xi_k, sigma)||^2 (M6) of every image.

    Differentiable in ``x``, twice if the denoiser is.

    Args:
        denoiser: see :class:`pursamere.denoisers.Denoiser`.
        x: images, float [B, C, H, W], with any finite values.
        sigma: standard deviation of the noise, in pixel units, positive.
        noise: the fixed draws.
        micro_batch: images per call of the denoiser, the last call padded. Default: 1 on a CPU, 64 on an accelerator.

    Returns:
        [B], in squared pixel units, float32 (float64 if ``x`` is).

    Raises:
        TypeError: an argument has the wrong type or dtype.
        ValueError: ``x`` is not [B, C, H, W] or not finite; ``sigma`` is not positive; or the denoiser has a layer in
            training mode that is random, mixes samples or updates itself, returns another shape, dtype or device than
            it was given, writes into its input, or has no derivative although ``x`` requires a gradient. One that is
            only partly detached is not detected here; purifiers check that.
    """
    check_finite("x", check_tensor("x", x, rank=4))
    check_positive("sigma", sigma)
    check_evaluation_mode("denoiser", denoiser)
    size = default_micro_batch(x.device) if micro_batch is None else check_integer("micro_batch", micro_batch, low=1)

    def ere(part: Tensor) -> tuple[Tensor]:
        call = network_call_of(denoiser, sigma, part.dtype)
        y = functional.perturb(part, sigma, noise, **call.input_options).flatten(0, 1)
        prediction = _predict(call, y, part.dtype, run_plainly, twice=y.requires_grad)
        if y.requires_grad:
            _check_depends_on(prediction, y)
        terms = _residual(call, part, prediction, sigma, noise, with_cotangent=False, with_drift=False)
        return (cast(Tensor, terms.ere),)

    (values,) = map_micro_batches(ere, (size,), x)
    return values


def ere_gradient(
    denoiser: Denoiser,
    x: Tensor,
    sigma: float,
    noise: GaussianNoise,
    run: Run = run_plainly,
    *,
    call: NetworkCall | None = None,
    y: Tensor | None = None,
    create_graph: bool = False,
    with_ere: bool = False,
) -> GradientTerms:
    """Return grad R_K (M7): one forward and one backward pass of the network on K * B images.

    Args:
        denoiser: see :class:`pursamere.denoisers.Denoiser`.
        x: images [B, C, H, W].
        sigma: standard deviation of the noise, in pixel units, positive.
        noise: the fixed draws.
        run: runs the denoiser, see :class:`pursamere.execution.NetworkRunner`.
        call: what ``network_call_of(denoiser, sigma, x.dtype)`` returns, if that is known already.
        y: the noisy images of ``x`` in the network's units, [K, B, C, H, W], if they are known already.
        create_graph: whether the result is differentiated in turn.
        with_ere: whether to compute the ERE too.
    """
    call = call or network_call_of(denoiser, sigma, x.dtype)
    direct = None
    with torch.set_grad_enabled(create_graph):
        y = (functional.perturb(x, sigma, noise, **call.input_options) if y is None else y).flatten(0, 1)
        if not create_graph:
            y = y.detach().requires_grad_()
        with torch.enable_grad():
            prediction = _predict(call, y, x.dtype, run, twice=create_graph)
        output = prediction if create_graph else prediction.detach()
        # The residual of a score or noise prediction depends on x through the network alone.
        slope = call.image_slope
        terms = _residual(call, x, output, sigma, noise, with_drift=slope != 0.0, with_ere=with_ere)
        if terms.drift is not None:
            direct = terms.drift if slope == 1.0 else slope * terms.drift
        cotangent = cast(Tensor, terms.cotangent).flatten(0, 1)
        pulled_back = _pull_back(prediction, y, cotangent, create_graph=create_graph)
    return GradientTerms(pulled_back.unflatten(0, (noise.draws, -1)), direct, terms.ere)


def score_gradient(
    denoiser: Denoiser,
    x: Tensor,
    sigma: float,
    noise: GaussianNoise,
    run: Run = run_plainly,
    *,
    call: NetworkCall | None = None,
    y: Tensor | None = None,
    create_graph: bool = False,
    with_ere: bool = False,
) -> GradientTerms:
    """Return the direction of M10, (2/K) sum_k r_k: one forward pass of the network, no backward pass.

    The arguments are those of :func:`ere_gradient`.
    """
    call = call or network_call_of(denoiser, sigma, x.dtype)
    with torch.set_grad_enabled(create_graph):
        y = (functional.perturb(x, sigma, noise, **call.input_options) if y is None else y).flatten(0, 1)
        prediction = _predict(call, y, x.dtype, run)
        if create_graph:
            _check_depends_on(prediction, y)
        terms = _residual(call, x, prediction, sigma, noise, with_cotangent=False, with_ere=with_ere)
    return GradientTerms(cast(Tensor, terms.drift).unsqueeze(0), None, terms.ere)


def denoise(
    denoiser: Denoiser,
    y: Tensor,
    sigma: float,
    run: Run = run_plainly,
    *,
    twice: bool = False,
    differentiable: bool = False,
) -> Tensor:
    """Return D(y, sigma) [N, C, H, W], with the checks that apply to every result of a denoiser.

    Args:
        denoiser: see :class:`pursamere.denoisers.Denoiser`.
        y: noisy images [N, C, H, W].
        sigma: standard deviation of their noise, in pixel units, positive.
        run: runs the denoiser.
        twice: whether the result will be differentiated twice.
        differentiable: raise if autograd sees no dependence of the result on ``y``.
    """
    # As a denoised image, whatever the denoiser predicts.
    denoised = _predict(NetworkCall("denoised", denoiser, sigma, y.dtype), y, y.dtype, run, twice=twice)
    if differentiable:
        _check_depends_on(denoised, y)
    return denoised


def _check_depends_on(prediction: Tensor, y: Tensor) -> None:
    """Refuse a denoiser without a graph, whose derivative autograd would take for zero."""
    if not depends_on(prediction, y):
        raise ValueError(NOT_DIFFERENTIABLE)


def _pull_back(prediction: Tensor, y: Tensor, cotangent: Tensor, *, create_graph: bool = False) -> Tensor:
    """Return the vector-Jacobian product of the denoiser."""
    pulled_back = None
    if prediction.requires_grad:
        with explained_derivative():
            (pulled_back,) = torch.autograd.grad(prediction, y, cotangent, create_graph=create_graph, allow_unused=True)
    if pulled_back is None:
        raise ValueError(NOT_DIFFERENTIABLE)
    return pulled_back


@contextmanager
def _explained(y: Tensor) -> Iterator[None]:
    """Context manager that runs the denoiser on ``y`` and explains two of PyTorch's errors."""
    try:
        yield
    except RuntimeError as error:
        if "in-place operation" in str(error):
            raise ValueError(f"{_WRITES_INTO_ITS_INPUT} ({error})") from error
        if y.dtype != torch.float32 and re.search(r"dtype|[Tt]ype \(|scalar type", str(error)):
            raise TypeError(
                f"the denoiser can't take {y.dtype} images: convert them, for example with x.float(), or the denoiser "
                f"({error})"
            ) from error
        raise


def _residual(
    call: NetworkCall, x: Tensor, prediction: Tensor, sigma: float, noise: GaussianNoise, **wanted: bool
) -> functional.ResidualTerms:
    """Return the terms that are ``wanted``; pulled back through the network, the cotangent is the gradient in y."""
    return functional.residual(
        x,
        prediction.unflatten(0, (noise.draws, -1)),
        sigma,
        noise,
        kind=call.kind,
        scale=call.scale,
        gain=call.gain,
        shift=call.shift,
        input_scale=call.input_scale,
        **wanted,
    )


def _predict(call: NetworkCall, y: Tensor, image_dtype: torch.dtype, run: Run, *, twice: bool = False) -> Tensor:
    """Return the network's output at its input ``y``, which may be differentiated ``twice``."""
    version = None if y.is_inference() else y._version
    with DifferentiableAttention() if twice else nullcontext(), _explained(y):
        prediction = run(call.predict, y, call.level)
    if version is not None and y._version != version:
        raise ValueError(_WRITES_INTO_ITS_INPUT)
    if not isinstance(prediction, Tensor):
        raise TypeError(f"denoiser must return a torch.Tensor, got {type(prediction).__name__}")
    for what in ("shape", "dtype", "device"):
        expected, got = getattr(y, what), getattr(prediction, what)
        if got != expected and got != image_dtype:
            hint = " (is torch.autocast on?)" if what == "dtype" and torch.is_autocast_enabled(y.device.type) else ""
            raise ValueError(f"denoiser must return the {what} that it was given, {expected}, got {got}{hint}")
    return prediction
