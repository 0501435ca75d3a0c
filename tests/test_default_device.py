"""Under ``torch.set_default_device`` all that the library makes is where the images are."""

import pytest
import torch
from nets import conv_classifier, conv_denoiser
from training_case import tiny_denoiser

import pursamere as ps
from pursamere.training.order import DataOrder

X = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([0, 1, 2, 3])
MODEL = ps.PurifiedClassifier(
    ps.Purifier(conv_denoiser(), steps=1, radius=0.1, noise=ps.GaussianNoise(draws=2)), conv_classifier()
)
A = ps.attacks


CASES = {
    "pgd": lambda folder: A.pgd(MODEL, X, LABELS, eps=0.1, steps=2, seed=0),
    "pgd l2": lambda folder: A.pgd(MODEL, X, LABELS, eps=0.1, norm="l2", steps=2, seed=0),
    "apgd": lambda folder: A.apgd(MODEL, X, LABELS, eps=0.1, steps=2, seed=0),
    "square": lambda folder: A.square(MODEL, X, LABELS, eps=0.1, queries=3, seed=0),
    "random search": lambda folder: A.random_search(MODEL, X, LABELS, eps=0.1, queries=3, seed=0),
    "trace": lambda folder: MODEL.purifier.trace(X).ere,
    "exact gradient": lambda folder: torch.autograd.grad(MODEL(leaf := X.clone().requires_grad_()).sum(), leaf)[0],
    "digits": lambda folder: ps.datasets.load("digits", "test").images,
    "order": lambda folder: DataOrder(5, 3, 0).batch(2),
    "initial weights": lambda folder: torch.cat([p.flatten() for p in tiny_denoiser().parameters()]),
}


@pytest.mark.parametrize("name", CASES)
def test_default_device(name, tmp_path):
    check(CASES[name], tmp_path)


def check(of, tmp_path):
    """On "meta", which stands in for a device that may not be there, nothing can be computed."""
    for each in ("before", "under"):
        (tmp_path / each).mkdir()
    want = of(tmp_path / "before")
    torch.set_default_device("meta")
    try:
        got = of(tmp_path / "under")
        assert torch.get_default_device() == torch.device("meta")
    finally:
        torch.set_default_device(None)
    assert got.device.type == "cpu"
    assert torch.equal(got, want)
