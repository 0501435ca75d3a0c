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
"""Where training starts: at time 0 a variance-preserving equation has no noise, and the score no bound."""

_POINTS, _ROUNDS = 1025, 5  # 1024^5 = 2^50 intervals


class _SDESchedule:
    """Finds the time at which an equation's noise is ``s`` times the signal, by its ``marginal_prob`` alone."""

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
        """Return the signal coefficients [T] and the noise levels relative to them [T] at ``times`` [T]."""
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
    """Return the denoiser of a score model that was trained with the noise of a stochastic differential equation.

    With ``z = 2 y - 1`` and ``s = 2 sigma`` if ``centered``, else ``z = y`` and ``s = sigma``, the score is asked for
    at ``alpha z`` and the time t at which the equation multiplies the image by ``alpha`` and the noise by
    ``sigma_t = alpha s``; by Tweedie's formula the denoised image is ``(alpha z + sigma_t^2 score) / alpha``.

    Args:
        score_fn: ``(x [N, C, H, W], t [N]) -> [N, C, H, W]``, the gradient of the log density at time t, as the public
            code's ``get_score_fn(sde, model, train=False, continuous=True)`` returns it.
        sde: a ``VPSDE``, ``subVPSDE`` or ``VESDE``: ``marginal_prob(x [M, 1, 1, 1], t [M])``, in float64, returns the
            mean and the standard deviation [M] at the times t, and ``T`` is the last time. Times before 1e-5, where
            the public code's training starts, are not used.
        centered: the range of the data, ``config.data.centered`` of the public code: True for images in [-1, 1], usual
            for variance-preserving models, False for [0, 1], usual for variance-exploding ones.
        network: the module inside ``score_fn``, if ``score_fn`` is none itself, so that its parameters are those of the
            denoiser, and its mode, device and dtype are seen. Put it in evaluation mode. A copy of the denoiser calls
            the same function, and with it the same network.

    Returns:
        An ``nn.Module``; its output has the dtype of ``y``, ``sigma_range`` is what it accepts.

    Raises:
        TypeError: ``score_fn`` is a path or not callable, ``sde`` has no ``marginal_prob`` or no ``T``, ``centered`` is
            no bool, or ``network`` is no ``nn.Module``.
        ValueError: the equation's noise does not grow; in a call, ``sigma`` is outside its range, or ``y`` or the
            output has a wrong shape.
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
