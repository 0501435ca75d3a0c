"""Under ``torch.set_default_device`` all that the library makes is where the images are."""

import pytest
import torch
from evaluation_case import PROTOCOL
from nets import conv_classifier, conv_denoiser
from training_case import settings_of, tiny_denoiser, write_data

import pursamere as ps
from pursamere.training import train
from pursamere.training.order import DataOrder

X = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([0, 1, 2, 3])
MODEL = ps.PurifiedClassifier(
    ps.Purifier(conv_denoiser(), sigma=0.2, steps=1, radius=0.1, noise=ps.GaussianNoise(draws=2)), conv_classifier()
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


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["classifier", "denoiser"])
def test_training(kind, tmp_path):
    """Weights, moments, order and pictures."""
    settings = settings_of(kind, write_data(tmp_path))

    def trained(folder):
        train(settings, folder / "run", device="cpu")
        network = ps.load_checkpoint(folder / "run")
        return torch.cat([p.flatten() for p in network.parameters()])

    check(trained, tmp_path)


@pytest.mark.slow
def test_evaluation(tmp_path):
    def outcomes(folder):
        result = ps.evaluate(MODEL, X, LABELS, folder=folder / "run", eps=0.05, preset=PROTOCOL)
        assert (folder / "run" / "report.html").exists()
        return torch.tensor([result.clean.value, *(share.value for share in result.worst_case.values())], device="cpu")

    check(outcomes, tmp_path)
