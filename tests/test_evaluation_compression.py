"""How much a purifier shrinks random perturbations: against a purifier that is known to be a contraction."""

import json
import math

import evaluation_case
import pytest
import torch
from closed_forms import gaussian_prior
from nets import conv_classifier

import pursamere as ps
from pursamere.attacks import Clean, RandomSearch
from pursamere.evaluation import IncompleteRunError, Protocol
from pursamere.evaluation.compression import compression
from pursamere.evaluation.target import Target

TAU, SIGMA, STEPS, FACTOR = 0.3, 0.2, 3, 0.7
BRIEF = Protocol("brief", (Clean(), RandomSearch("random-search", queries=1)))
IMAGES = 0.3 + 0.4 * torch.rand(40, 1, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def contraction():
    """A purifier each of whose steps multiplies the distance from 0.5 by FACTOR (M3), whatever the draws."""
    purifier = ps.Purifier(
        gaussian_prior(0.5, TAU),
        sigma=SIGMA,
        radius=math.inf,
        steps=STEPS,
        step_rule="gradient",
        step_size=(1 - FACTOR) * (SIGMA**2 + TAU**2) ** 2 / (2 * SIGMA**4),
        ascent_radius=0.0,
        noise=ps.GaussianNoise(draws=2),
        micro_batch=8,
    )
    return ps.PurifiedClassifier(purifier, lambda x: x.flatten(1)[:, :2])


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_a_contraction(norm):
    found = compression(Target(contraction(), 32), IMAGES, (0.05, 0.2), norm, 0)
    assert list(found) == [0.05, 0.2]
    for ratio, samples in found.values():
        assert ratio == pytest.approx(FACTOR**STEPS, rel=1e-9)
        assert samples == 32


def test_the_median_of_two_lies_between_them():
    def squared(y, sigma):  # steps to y - y^2, whose ratios depend on the image
        return y - y.square()

    purifier = ps.Purifier(
        squared, sigma=1e-6, radius=1.0, steps=1, step_rule="gradient", step_size=0.5, direction="score",
        ascent_radius=0.0, micro_batch=2,
    )  # fmt: skip
    target = Target(ps.PurifiedClassifier(purifier, lambda x: x.flatten(1)[:, :2]), 32)
    images = torch.cat([torch.full_like(IMAGES[:1], 0.2), torch.full_like(IMAGES[:1], 0.4)])
    ratios = [compression(target, image, (1e-3,), "l2", 0)[1e-3][0] for image in images.split(1)]
    assert abs(ratios[0] - ratios[1]) > 0.1
    both, samples = compression(target, images, (1e-3,), "l2", 0)[1e-3]
    assert samples == 2
    assert both == pytest.approx(sum(ratios) / 2, rel=0.01)


def test_samples_that_are_not_finite_are_left_out():
    def denoiser(y, sigma):
        bright = y.flatten(1).mean(1)[:, None, None, None] > 0.9
        return torch.where(bright, torch.nan, gaussian_prior(0.5, TAU)(y, sigma))

    purifier = ps.Purifier(denoiser, sigma=0.01, radius=0.1, steps=1, step_size=0.0, micro_batch=2)
    images = IMAGES[:6].clone()
    images[2] = 1.0
    target = Target(ps.PurifiedClassifier(purifier, lambda x: x.flatten(1)[:, :2]), 32)
    assert compression(target, images, (0.01,), "linf", 0) == {0.01: (pytest.approx(1.0), 5)}
    assert compression(target, images[2:3], (0.01,), "linf", 0) == {}


@pytest.mark.slow
@pytest.mark.parametrize("model", [conv_classifier(), None])
def test_none_without_a_purifier_or_with_a_random_one(tmp_path, model):
    if model is None:
        purifier = ps.baselines.DiffPure(gaussian_prior(0.5, TAU), steps=2, fresh_noise=True)
        model = ps.PurifiedClassifier(purifier, conv_classifier())
    images, labels = torch.rand(3, 1, 6, 6), torch.tensor([0, 1, 2])
    result = ps.evaluate(model, images, labels, folder=tmp_path, eps=0.1, preset=BRIEF)
    assert result.compression == {}
    assert "Compression" not in (tmp_path / "report.md").read_text()
    assert json.loads((tmp_path / "summary.json").read_text())["compression"] == []


@pytest.mark.slow
def test_the_report_has_a_line(tmp_path):
    model, images, labels = evaluation_case.model_and_data()
    result = ps.evaluate(model, images, labels, folder=tmp_path, eps=(0.05, 0.1), preset=BRIEF, chunk=4)
    report = (tmp_path / "report.md").read_text()
    assert list(result.compression) == [0.05, 0.1]
    for eps, (ratio, samples) in result.compression.items():
        assert f"{ratio:.3f} at eps {eps:g} ({samples} samples)" in report
    assert json.loads((tmp_path / "summary.json").read_text())["compression"] == [
        {"eps": eps, "median_ratio": ratio, "samples": 13} for eps, (ratio, _) in result.compression.items()
    ]
    # A resumed run and a sharded one say the same, and the speed is that of the run.
    again = ps.evaluate(model, images, labels, folder=tmp_path, eps=(0.05, 0.1), preset=BRIEF, chunk=4)
    assert again.compression == result.compression
    assert again.cost == result.cost
    options = {"folder": tmp_path / "shards", "eps": (0.05, 0.1), "preset": BRIEF, "chunk": 4}
    with pytest.raises(IncompleteRunError):
        ps.evaluate(model, images, labels, shard=(0, 2), **options)
    assert ps.evaluate(model, images, labels, shard=(1, 2), **options).compression == result.compression
