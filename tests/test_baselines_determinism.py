"""The baselines give the same bits in any batch, run and process; their noise."""

import math
import subprocess
import sys

import pytest
import torch
from baseline_cases import EVERY, MODELS, NOISE, B, gradient_of, mixture
from cases import tensor
from nets import conv_classifier, conv_denoiser

import pursamere as ps
from pursamere.baselines._randomness import derived, uniform
from pursamere.determinism import copy_with


@EVERY
@pytest.mark.parametrize("micro_batch", [None, 4])
def test_a_sample_has_the_same_bits_in_any_batch(name, micro_batch):
    x = tensor(0, 5, 1, 6, 6, dtype=torch.float32)
    model = MODELS[name](conv_denoiser(), micro_batch=micro_batch)
    classifier = ps.PurifiedClassifier(model, conv_classifier())
    whole, logits = model(x), classifier(x)
    for rows in ([4], [3, 1], [2, 2, 2, 2, 0], [3, 1, 0, 2, 4]):
        assert torch.equal(model(x[rows]), whole[rows])
        assert torch.equal(classifier(x[rows]), logits[rows])
    assert model(x[:0]).shape == (0, 1, 6, 6)


@EVERY
def test_a_gradient_has_the_same_bits_in_any_batch(name):
    x, model = tensor(0, 3, 1, 6, 6, dtype=torch.float32), MODELS[name](conv_denoiser())

    def gradient(images):
        leaf = images.clone().requires_grad_()
        return torch.autograd.grad(model(leaf).square().sum(), leaf)[0]

    assert torch.equal(gradient(x[[2, 0]]), gradient(x)[[2, 0]])


@EVERY
def test_the_same_bits_under_any_random_state_which_stays_as_it_is(name):
    x, denoiser = tensor(0, 2, 1, 6, 6, dtype=torch.float32), conv_denoiser()
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = MODELS[name](denoiser)(x)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert torch.equal(MODELS[name](denoiser)(x), first)
    assert not MODELS[name](denoiser).random


SCRIPT = """
import sys, torch
sys.path.insert(0, {folder!r})
from baseline_cases import MODELS, tensor
from nets import conv_denoiser
x = tensor(0, 2, 1, 6, 6, dtype=torch.float32)
for name, make in MODELS.items():
    print(name, make(conv_denoiser())(x).numpy().tobytes().hex())
"""


@pytest.mark.slow
def test_a_fresh_process_gives_the_same_bits(request):
    script = SCRIPT.format(folder=str(request.path.parent))
    lines = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    x = tensor(0, 2, 1, 6, 6, dtype=torch.float32)
    here = [f"{name} {make(conv_denoiser())(x).numpy().tobytes().hex()}" for name, make in MODELS.items()]
    assert lines.splitlines() == here


def test_purposes_have_noise_of_their_own():
    seeds = {derived(NOISE, *purpose).seed for purpose in [(0,), (1,), (0, 0), (0, 1), (1, 0), (2**40,)]}
    seeds |= {derived(ps.GaussianNoise(seed=4), 0).seed, NOISE.seed}
    assert len(seeds) == 8
    assert all(0 <= seed < 2**63 for seed in seeds)
    numbers = torch.tensor([uniform(NOISE, t, low=0.2, high=0.3) for t in range(2000)])
    assert 0.2 <= float(numbers.min()) < 0.201 < 0.299 < float(numbers.max()) <= 0.3
    assert float(numbers.mean()) == pytest.approx(0.25, abs=4 * 0.1 / math.sqrt(12 * 2000))


@EVERY
def test_the_seed_matters(name):
    x = tensor(0, 1, 1, 6, 6, dtype=torch.float32)
    first, other = (MODELS[name](conv_denoiser(), noise=ps.GaussianNoise(seed=seed, draws=4)) for seed in (1, 99))
    assert not torch.equal(first(x), other(x))


def test_fresh_noise_differs_from_call_to_call_and_can_be_repeated():
    x = tensor(0, 2, 1, 4, 4)
    model = B.DiffPure(mixture(), steps=3, fresh_noise=True, noise=NOISE)
    assert model.random
    calls = [model(x) for _ in range(3)]
    assert not torch.equal(calls[0], calls[1])
    assert not torch.equal(calls[1], calls[2])
    model.reset()
    assert all(torch.equal(model(x), call) for call in calls)
    model.reset(8)
    other = model(x)
    assert not any(torch.equal(other, call) for call in calls)
    assert torch.equal(B.DiffPure(mixture(), steps=3, fresh_noise=True, noise=ps.GaussianNoise(seed=8))(x), other)


@pytest.mark.parametrize("mode", ["exact", "straight_through", "unrolled"])
def test_with_fresh_noise_a_gradient_is_that_of_its_own_call(mode):
    """Also when other calls come between the forward and the backward pass."""
    x, weight = tensor(0, 2, 1, 4, 4, low=0.3, high=0.7), tensor(7, 2, 1, 4, 4, low=-1)
    model = B.DiffPure(mixture(), steps=3, fresh_noise=True, noise=NOISE)
    leaf = x.clone().requires_grad_()
    first = model(leaf, gradient=mode)
    model(x)
    (got,) = torch.autograd.grad((first * weight).sum(), leaf)
    fixed = copy_with(B.DiffPure(mixture(), steps=3), noise=derived(NOISE, 1))  # that of the first call
    assert torch.equal(fixed(x), first.detach())
    assert torch.equal(gradient_of(fixed, x, mode), got)
