"""Measuring the ways to run a network: all are tried, differences are those from float32, and failures are told."""

import math
import warnings

import pytest
import torch
from nets import conv_denoiser

import pursamere as ps
from pursamere import tuning
from pursamere.tuning import Trial, best, combinations, tune

SHAPE = (1, 6, 5)
SETTINGS = {"sigma": 0.2, "draws": 2, "batch": 4, "compiled": False}


class MixesRows(torch.nn.Module):
    """A denoiser whose rows influence one another."""

    def forward(self, y, sigma):
        return y - 0.1 * y.mean(0, keepdim=True)


class GoesByPosition(torch.nn.Module):
    """A denoiser whose rows don't, but which treats them by their position."""

    def forward(self, y, sigma):
        return y * torch.linspace(0.5, 0.6, len(y)).reshape(-1, 1, 1, 1)


@pytest.mark.parametrize(("device", "count"), [("cpu", 8), ("cuda", 16)])
def test_every_combination_is_tried_once_defaults_first(device, count):
    found = combinations(torch.device(device))
    assert found[0] == {}
    assert len({tuple(sorted(options.items())) for options in found}) == len(found) == count
    assert all(options[name] for options in found for name in options)
    assert not any("compile" in options for options in combinations(torch.device(device), compiled=False))


def test_both_directions_are_measured_with_every_combination_and_micro_batch():
    calls = []
    trials = tune(conv_denoiser(), SHAPE, **SETTINGS, micro_batches=(2, 3, 100), progress=calls.append)
    for direction in ("score", "ere"):
        found = [trial for trial in trials if trial.direction == direction]
        assert [trial.options for trial in found[:4]] == combinations(torch.device("cpu"), compiled=False)
        assert [trial.micro_batch for trial in found] == [None] * 4 + [2, 3]  # 100 is more than the batch
        assert found[4].options == found[5].options
        assert found[0].largest_difference == found[0].mean_difference == 0
        assert all(trial.images_per_second > 0 for trial in found if trial.failure is None)
    assert calls == [1] * len(trials)


def test_differences_are_those_of_the_mean_denoised_image(monkeypatch):
    class Shifts:
        """Stands for a way to run the network that changes its results."""

        def __init__(self, channels_last=False, precision="float32"):
            self.shift = 0.125 if channels_last else 0.0

    def purifier(denoiser, *, execution, **settings):
        def shifted(y, sigma):
            moved = denoiser(y, sigma).clone()
            moved[:, :, 0] += execution.shift
            return moved

        return ps.Purifier(shifted, **settings)

    monkeypatch.setattr(tuning, "Execution", Shifts)
    monkeypatch.setattr(tuning, "Purifier", purifier)
    trials = tune(lambda y, sigma: 0.5 * y, SHAPE, **SETTINGS, micro_batches=())
    last = next(t for t in trials if t.direction == "score" and t.options == {"channels_last": True})
    assert last.largest_difference == pytest.approx(0.125, rel=1e-5)
    assert last.mean_difference == pytest.approx(0.125 / 6, rel=1e-5)  # one of six rows of pixels


def test_failures_and_warnings_are_told_and_the_others_are_measured(monkeypatch):
    real = tuning.Execution

    def execution(**options):
        if "channels_last" in options:
            raise ValueError("no such format")
        if "precision" in options:
            warnings.warn("this CPU is slow", stacklevel=2)
        return real()

    monkeypatch.setattr(tuning, "Execution", execution)
    trials = tune(conv_denoiser(), SHAPE, **SETTINGS, micro_batches=())
    for trial in trials:
        failed = "channels_last" in trial.options
        assert trial.failure == ("ValueError: no such format" if failed else None)
        assert (trial.images_per_second is None) == (trial.largest_difference is None) == failed
        assert trial.warnings == (("this CPU is slow",) if "precision" in trial.options and not failed else ())


def test_a_micro_batch_that_mixes_rows_is_not_recommended():
    trials = tune(GoesByPosition(), SHAPE, **SETTINGS, micro_batches=(2,))
    failed = [trial for trial in trials if trial.micro_batch == 2]
    assert len(failed) == 2
    assert all("depend on the other images" in trial.failure for trial in failed)
    trials = tune(MixesRows(), SHAPE, **SETTINGS, micro_batches=(2,))
    assert all(trial.failure is None or trial.micro_batch == 2 for trial in trials)
    assert any("mixes the images of a batch" in text for trial in trials for text in trial.warnings)


def test_the_plainest_of_the_fast_ones_is_the_best():
    def trials(*speeds):
        return [Trial("ere", {}, number, speed) for number, speed in enumerate(speeds)]

    assert best(trials(96.0, 100.0)).micro_batch == 0
    assert best(trials(94.0, 100.0, 99.0)).micro_batch == 1
    assert best(trials(None, 1.0)).micro_batch == 1
    assert best(trials(None, None)) is None


def test_a_trial_without_hope_is_measured_once(monkeypatch):
    measured = []

    def seconds(trial, device):
        measured.append(trial)
        return 100.0 if "precision" in trial.options else 1.0

    monkeypatch.setattr(tuning, "_seconds", seconds)
    trials = tune(conv_denoiser(), SHAPE, **SETTINGS, micro_batches=())
    for trial in trials:
        if trial.failure is None:
            assert sum(each is trial for each in measured) == (1 if "precision" in trial.options else 5)
            assert trial.images_per_second == (0.04 if "precision" in trial.options else 4.0)


def test_nothing_global_changes():
    denoiser = conv_denoiser()
    before = torch.get_rng_state(), torch.get_default_dtype(), torch.is_grad_enabled(), list(warnings.filters)
    tune(denoiser, SHAPE, **SETTINGS, micro_batches=())
    after = torch.get_rng_state(), torch.get_default_dtype(), torch.is_grad_enabled(), list(warnings.filters)
    assert torch.equal(before[0], after[0])
    assert before[1:] == after[1:]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"sigma": 0.0}, "sigma"),
        ({"sigma": math.nan}, "sigma"),
        ({"draws": 3}, "draws"),
        ({"batch": 0}, "batch"),
        ({"micro_batches": (0,)}, "micro_batches"),
    ],
)
def test_bad_arguments(changed, message):
    with pytest.raises(ValueError, match=message):
        tune(conv_denoiser(), SHAPE, **{**SETTINGS, **changed})
    with pytest.raises(ValueError, match="shape"):
        tune(conv_denoiser(), (6, 5), **SETTINGS)
