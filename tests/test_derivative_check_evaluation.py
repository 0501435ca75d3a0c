"""An evaluation compares derivatives before it attacks with exact gradients."""

import pytest
import torch
from derivative_cases import NOISE, Denoiser, Silu, SiluDetached, X, only_float32
from nets import fixed_weights
from torch import nn

import pursamere as ps
from pursamere.attacks import PGD, Clean, RandomSearch, Transfer
from pursamere.evaluation import Protocol


def evaluation_of(denoiser, folder, *attacks, direction="ere"):
    purifier = ps.Purifier(denoiser, sigma=0.3, radius=0.2, steps=1, noise=NOISE, direction=direction)
    model = ps.PurifiedClassifier(purifier, lambda x: x.flatten(1)[:, :4])
    protocol = Protocol("tiny", (Clean(), *attacks))
    labels = torch.arange(len(X)) % 4
    return ps.evaluate(model, X, labels, folder=folder, eps=0.05, preset=protocol)


EXACT = PGD("pgd-exact", steps=2)
OTHER = Transfer("other-noise", sources=("other_noise",), steps=2)
HARMLESS = (
    PGD("pgd-bpda", steps=2, gradient="identity"),
    Transfer("bare", sources=("bare",), steps=2),
    RandomSearch("search", queries=2),
)


@pytest.mark.parametrize("attack", [EXACT, OTHER], ids=lambda attack: attack.name)
def test_an_evaluation_refuses_a_wrong_derivative_before_any_attack(tmp_path, attack):
    with pytest.raises(RuntimeError, match="differs from finite differences"):
        evaluation_of(fixed_weights(Denoiser(SiluDetached.apply)), tmp_path / "run", attack)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_an_evaluation_without_exact_gradients_needs_no_derivative(tmp_path):
    result = evaluation_of(fixed_weights(Denoiser(SiluDetached.apply)), tmp_path / "run", *HARMLESS)
    assert "derivative" not in [check.name for check in result.checks]


def test_an_evaluation_reports_the_figure(tmp_path):
    result = evaluation_of(fixed_weights(Denoiser(Silu.apply)), tmp_path / "run", EXACT, *HARMLESS)
    (check,) = [check for check in result.checks if check.name == "derivative"]
    assert check.passed
    assert "in float64" in check.detail
    assert check.detail in (tmp_path / "run" / "report.md").read_text()


@pytest.mark.slow
def test_an_evaluation_warns_where_it_cannot_tell(tmp_path):
    function = only_float32(Silu).apply
    denoiser = fixed_weights(Denoiser(lambda x: function(x) + 0.01 * torch.relu(torch.sin(1e4 * x))))
    with pytest.warns(RuntimeWarning, match="could not be verified"):
        result = evaluation_of(denoiser, tmp_path / "run", EXACT)
    assert [check.passed for check in result.checks if check.name == "derivative"] == [False]


@pytest.mark.slow
def test_a_wrapper_around_a_purified_classifier_is_compared_before_any_attack(tmp_path):
    purifier = ps.Purifier(fixed_weights(Denoiser(SiluDetached.apply)), sigma=0.3, radius=0.2, steps=1, noise=NOISE)
    model = nn.Sequential(ps.PurifiedClassifier(purifier, lambda x: x.flatten(1)[:, :4])).eval()
    protocol = Protocol("tiny", (Clean(), EXACT))
    with pytest.raises(RuntimeError, match="differs from finite differences"):
        ps.evaluate(model, X, torch.arange(len(X)) % 4, folder=tmp_path / "run", eps=0.05, preset=protocol)
    assert not (tmp_path / "run").exists()
