"""Score models of stochastic differential equations (Song et al., 2021, arXiv 2011.13456) as denoisers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from pursamere._validation import check_positive
from pursamere.denoisers._network import (
    Level,
    NetworkDenoiser,
    check_network,
    check_schedule,
    refuse_path,
    require_attributes,
)

ScoreFunction = Callable[[Tensor, Tensor], Tensor]

EARLIEST_TIME = 1e-5
"""Start of training: at time 0 a variance-preserving SDE has no noise and an unbounded score."""

_POINTS, _ROUNDS = 1025, 5  # 1024^5 = 2^50 intervals


class _SDESchedule:
    """Finds the time at which an SDE's noise is ``s`` times the signal, using only ``marginal_prob``."""

    def __init__(self, sde: Any) -> None:
        self.sde = sde
        self.latest_time = check_positive("sde.T", sde.T)
        _, sigmas = self._at(_times([EARLIEST_TIME, self.latest_time]))
        self.sigma_min, self.sigma_max = sigmas.tolist()

    def __call__(self, s: float) -> Level:
        low, high = EARLIEST_TIME, self.latest_time
        for _ in range(_ROUNDS):
            times = torch.linspace(low, high, _POINTS, device="cpu", dtype=torch.float64)
            above = int(torch.searchsorted(self._at(times)[1], s).clamp(1, _POINTS - 1))
            low, high = times[above - 1 : above + 1].tolist()
        alpha, _ = self._at(_times([high]))
        return Level(float(alpha), high)

    def _at(self, times: Tensor) -> tuple[Tensor, Tensor]:
        """Return signal coefficients [T] and noise-to-signal ratios [T] at ``times`` [T]."""
        mean, std = self.sde.marginal_prob(times.new_ones(len(times), 1, 1, 1), times)
        return mean.flatten(), std / mean.flatten()


def _times(values: list[float]) -> Tensor:
    return torch.tensor(values, device="cpu", dtype=torch.float64)


class _FromScoreSDE(NetworkDenoiser):
    def __init__(
        self, score_fn: ScoreFunction, schedule: _SDESchedule, centered: bool, inner: nn.Module | None
    ) -> None:
        super().__init__(score_fn, schedule, "score", centered=centered)
        self.inner = inner

    def call_network(self, x: Tensor, times: Tensor) -> Tensor:
        return self.network(x, times)


def from_score_sde(
    score_fn: ScoreFunction, sde: Any, *, centered: bool, network: nn.Module | None = None
) -> NetworkDenoiser:
    """Return a denoiser for a score model that was trained with the noise of a stochastic differential equation.

    With ``z = 2 y - 1`` and ``s = 2 sigma`` if ``centered``, else ``z = y`` and ``s = sigma``, the score is evaluated
    at ``alpha z`` and the time t at which the SDE scales the image by ``alpha`` and the noise by ``sigma_t = alpha s``.
    By Tweedie's formula the denoised image is ``(alpha z + sigma_t^2 score) / alpha``.

    Args:
        score_fn: ``(x [N, C, H, W], t [N]) -> [N, C, H, W]``, the gradient of the log density at time t, as returned by
            ``get_score_fn(sde, model, train=False, continuous=True)`` of the public code.
        sde: a ``VPSDE``, ``subVPSDE`` or ``VESDE``: ``marginal_prob(x [M, 1, 1, 1], t [M])``, in float64, returns the
            mean and the standard deviation [M] at times t, and ``T`` is the final time. Times before 1e-5, where
            training starts in the public code, are not used.
        centered: the data range, ``config.data.centered`` of the public code: True for images in [-1, 1] (usual for
            variance-preserving models), False for [0, 1] (usual for variance-exploding ones).
        network: the module inside ``score_fn``, if ``score_fn`` is a function. It is registered, so that its
            parameters, mode, device and dtype are visible, and must be in evaluation mode. Copies of the denoiser
            share ``score_fn`` and therefore the network.

    Returns:
        An ``nn.Module`` with the attribute ``sigma_range``. Its output has the dtype of ``y``.

    Raises:
        TypeError: ``score_fn`` is not callable, ``sde`` lacks ``marginal_prob`` or ``T``, ``centered`` is not a bool,
            or ``network`` is not an ``nn.Module``.
        ValueError: the SDE's noise does not increase. Calling the denoiser raises it if ``sigma`` is outside
            ``sigma_range``, or ``y`` or the output has the wrong shape.
    """
    refuse_path("score_fn", score_fn)
    if not callable(score_fn):
        raise TypeError(f"score_fn must be callable as score_fn(x, t), got {type(score_fn).__name__}")
    require_attributes("sde", sde, "marginal_prob", "T")
    if not isinstance(centered, bool):
        raise TypeError(f"centered must be a bool, got {type(centered).__name__}")
    schedule = _SDESchedule(sde)
    check_schedule("sde", schedule)
    return _FromScoreSDE(score_fn, schedule, centered, None if network is None else check_network("network", network))
