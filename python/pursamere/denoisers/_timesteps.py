"""Noise schedules of variance-preserving models with discrete timesteps, interpolated between timesteps."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pursamere.denoisers._network import Level


class DiscreteSchedule:
    """A variance-preserving schedule, ``alpha^2 = a``, ``sigma_t^2 = 1 - a`` with ``a`` in ``alphas_cumprod``.

    Between timesteps, time is interpolated linearly in the log signal-to-noise ratio ``log(a / (1 - a)) = -2 log s``,
    in which these schedules are smooth.

    Args:
        name: the object that has the attribute ``alphas_cumprod``, for error messages.
        alphas_cumprod: [T], decreasing, in (0, 1). A final zero (zero terminal SNR) is dropped.
        times: [T], the network's time input at each timestep. Default: 0, 1, ..., T - 1.
    """

    def __init__(self, name: str, alphas_cumprod: Any, times: Any = None) -> None:
        signal = torch.as_tensor(alphas_cumprod, device="cpu").detach().to("cpu", torch.float64).numpy()
        if signal.ndim != 1:
            raise ValueError(f"{name}.alphas_cumprod must have 1 dimension, got shape {signal.shape}")
        times = np.arange(len(signal), dtype=np.float64) if times is None else np.asarray(times, dtype=np.float64)
        if times.shape != signal.shape:
            raise ValueError(f"{name} must have one time per timestep, {len(signal)}, got shape {times.shape}")
        if len(signal) and signal[-1] == 0.0:
            signal, times = signal[:-1], times[:-1]
        decreasing = len(signal) >= 2 and np.all(np.diff(signal) < 0.0) and signal[0] < 1.0 and signal[-1] > 0.0
        if not decreasing:
            raise ValueError(
                f"{name}.alphas_cumprod must decrease within (0, 1), with at least two values (a final 0 is dropped)"
            )
        sigmas = np.sqrt((1.0 - signal) / signal)
        self.sigma_min, self.sigma_max = float(sigmas[0]), float(sigmas[-1])
        self._log_sigmas, self._times = np.log(sigmas), times

    def __call__(self, s: float) -> Level:
        """Return ``alpha = 1 / sqrt(1 + s^2)`` and the time at noise level ``s``."""
        return Level(1.0 / math.hypot(1.0, s), float(np.interp(math.log(s), self._log_sigmas, self._times)))


def without_variance(output: Tensor, channels: int) -> Tensor:
    """Drop the learned variance, the second half of the channels, if there is one."""
    return output[:, :channels] if output.dim() == 4 and output.shape[1] == 2 * channels else output
