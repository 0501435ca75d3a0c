"""The baselines, with settings for the tests that run on each of them."""

from functools import partial

import pytest
import torch
from cases import tensor

import pursamere as ps

B = ps.baselines
NOISE = ps.GaussianNoise(seed=3)
MODELS = {
    "diffpure": partial(B.DiffPure, steps=4, noise=NOISE),
    "diffpure half, corrected": partial(B.DiffPure, steps=3, stochasticity=0.5, sigma_max=0.3, noise=NOISE),
    "diffpure euler": partial(B.DiffPure, steps=3, solver="euler", noise=NOISE),
    "diffpure heun": partial(B.DiffPure, steps=3, solver="heun", sigma_max=0.3, noise=NOISE),
    "diffpure ode": partial(B.DiffPure, steps=2, solver="heun", stochasticity=0, noise=NOISE),
    "diffpure half": partial(B.DiffPure, steps=2, solver="euler", stochasticity=0.5, noise=NOISE),
    "published diffpure": partial(B.PublishedDiffPure, steps=4, noise=NOISE),
    "scoreopt_o": partial(B.ScoreOptO, steps=3, noise=NOISE),
    "scoreopt_o regularized": partial(B.ScoreOptO, steps=3, regularization=0.7, noise=NOISE),
    "scoreopt_n": partial(B.ScoreOptN, steps=3, noise=NOISE),
    "scoreopt_n, no step": partial(B.ScoreOptN, steps=0, noise=NOISE),
    "likelihood": partial(B.LikelihoodMaximization, steps=3, noise=NOISE),
    "likelihood linf": partial(B.LikelihoodMaximization, steps=3, radius=0.07, noise=NOISE),
    "likelihood l2": partial(B.LikelihoodMaximization, steps=3, radius=0.1, norm="l2", noise=NOISE),
    "ere_descent": partial(B.EreDescent, sigma=0.2, radius=0.2, steps=3, noise=NOISE),
}
EVERY = pytest.mark.parametrize("name", MODELS)
ADAM = pytest.mark.parametrize("name", [name for name in MODELS if "score" in name or "likelihood" in name])


def mixture(dtype=torch.float64):
    return ps.denoisers.GaussianMixture(tensor(5, 3, 1, 4, 4, low=0.2, high=0.8, dtype=dtype), 0.15)


def gradient_of(model, x, mode):
    """Of a fixed linear function of the purified images."""
    leaf = x.detach().clone().requires_grad_()
    weight = tensor(7, *x.shape, low=-1, dtype=x.dtype)
    return torch.autograd.grad((model(leaf, gradient=mode) * weight).sum(), leaf)[0]
