"""Comparing two evaluations sample by sample."""

import dataclasses
import math
import shutil

import evaluation_case
import pytest
import torch
from scipy import stats

import pursamere as ps
from pursamere.attacks import APGD, PGD, Clean
from pursamere.cli import main
from pursamere.evaluation import PairedDifference, Protocol, compare

EPS = (0.05, 0.1)
PROTOCOL = Protocol(
    "tiny",
    (
        Clean(),
        PGD("pgd", steps=3),
        APGD("survivors", steps=2, survivors_only=True),
        PGD("sweep", steps=2, samples=4, sweep=True),
    ),
)


@pytest.mark.parametrize(("won", "lost"), [(0, 0), (1, 0), (0, 7), (5, 20), (11, 11), (130, 90), (3000, 3100)])
def test_p_value_against_scipy(won, lost):
    found = PairedDifference(10_000, won, lost).p_value
    expected = stats.binomtest(won, won + lost).pvalue if won + lost else 1.0
    assert found == pytest.approx(expected, rel=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("win", "loss", "coverage"),
    [(0.1, 0.1, 0.9639), (0.2, 0.05, 0.9608), (0.02, 0.3, 0.9563), (0.0, 0.1, 0.9449), (0.4, 0.4, 0.9482)],
)
def test_how_often_the_interval_covers_the_true_difference(win, loss, coverage):
    """Over all outcomes of 60 samples, with their exact probabilities. Other intervals have other coverages."""
    samples = 60
    covered = 0.0
    for won in range(samples + 1):
        for lost in range(samples + 1 - won):
            low, high = PairedDifference(samples, won, lost).interval
            if low <= win - loss <= high:
                counts = [won, lost, samples - won - lost]
                covered += stats.multinomial.pmf(counts, samples, [win, loss, 1 - win - loss])
    assert covered == pytest.approx(coverage, abs=1e-4)


@pytest.mark.parametrize("counts", [(0, 0, 0), (5, -1, 0), (5, 0, -1), (5, 3, 3), (5, 2.0, 1)])
def test_counts_that_are_none(counts):
    with pytest.raises((TypeError, ValueError), match=r"samples|won|lost"):
        PairedDifference(*counts)


def test_a_difference_known_by_hand():
    """20 samples, 4 won, 1 lost: (5 - 2) / 22 and the root of (7 - 9/22) / 22 / 22."""
    found = PairedDifference(20, 4, 1)
    half = 1.959963984540054 * math.sqrt((7 - 9 / 22) / 22 / 22)
    assert found.value == pytest.approx(0.15)
    assert found.interval == pytest.approx((3 / 22 - half, 3 / 22 + half))
    assert found.p_value == pytest.approx(12 / 32)
    assert str(found) == "+0.150 (-0.092 to +0.365), p = 0.38"
    assert repr(found) == "PairedDifference(+4 -1 of 20: +0.150 (-0.092 to +0.365), p = 0.38)"
    assert str(PairedDifference(20, 20, 0)).endswith("p < 0.0001")
    assert PairedDifference(2, 2, 0).interval[1] <= 1


def evaluated(folder, radius=0.05, *, samples=13, **options):
    model, images, labels = evaluation_case.model_and_data(samples)
    labels[3] = (labels[3] + 1) % 4  # which it gets wrong
    purifier = ps.Purifier(
        model.purifier.denoiser, sigma=0.2, steps=2, radius=radius, direction="score",
        noise=ps.GaussianNoise(draws=2), micro_batch=1,
    )  # fmt: skip
    model = ps.PurifiedClassifier(purifier, model.classifier)
    options = {"eps": EPS, "preset": PROTOCOL, "keep_adversarial": False, **options}
    return ps.evaluate(model, images, labels, folder=folder, **options)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Folders and results of two defenses, of which each withstands what the other does not."""
    folder = tmp_path_factory.mktemp("runs")
    folders = folder / "mine", folder / "reference"
    return folders, tuple(evaluated(path, radius) for path, radius in zip(folders, (0.1, 0.05), strict=True))


def test_results_and_folders_give_the_same_counts(runs):
    (folder, other), (result, reference) = runs
    found = compare(result, reference)
    assert list(found) == [0.0, *EPS]
    assert found[0.0].value == pytest.approx(result.clean.value - reference.clean.value)
    for eps in EPS:
        difference, mine, theirs = found[eps], result.withstood[eps], reference.withstood[eps]
        counts = (13, int((mine & ~theirs).sum()), int((theirs & ~mine).sum()))
        assert (difference.samples, difference.won, difference.lost) == counts
        assert difference.value == pytest.approx(result.worst_case[eps].value - reference.worst_case[eps].value)
    assert any(difference.won for difference in found.values())
    assert any(difference.lost for difference in found.values())
    assert compare(folder, str(other)) == compare(result, other) == found
    assert {eps: (each.lost, each.won) for eps, each in compare(other, folder).items()} == {
        eps: (each.won, each.lost) for eps, each in found.items()
    }


def test_only_common_radii_are_compared(runs, tmp_path):
    (folder, _), _ = runs
    assert list(compare(folder, evaluated(tmp_path / "one", eps=0.1))) == [0.0, 0.1]
    with pytest.raises(ValueError, match=r"must have a radius in common, got \[0.05, 0.1\] and \[0.2\]"):
        compare(folder, evaluated(tmp_path / "none", eps=0.2))


@pytest.mark.slow
def test_runs_that_differ_in_more_than_the_defense_are_refused(runs, tmp_path):
    (folder, _), (result, _) = runs
    cases = {
        "samples": ({"samples": 9}, "samples"),
        "attacks": ({"preset": Protocol("tiny", (Clean(), PGD("pgd", steps=2)))}, "attacks"),
        "norm": ({"norm": "l2"}, "norm: linf and l2"),
        "seed": ({"seed": 1}, "seed of the attacks: 0 and 1"),
        "chunk": ({"chunk": 6}, "chunk: 128 and 6"),
    }
    for name, (options, message) in cases.items():
        evaluated(tmp_path / name, **options)
        with pytest.raises(ValueError, match=rf"^result and .*{name} must have the same {message}$"):
            compare(result, tmp_path / name)
    renamed = Protocol("other name", PROTOCOL.attacks, "other words")
    assert compare(folder, evaluated(tmp_path / "renamed", preset=renamed))[0.1].lost == 0


@pytest.mark.slow
def test_attacks_that_only_one_was_given_are_told(runs, tmp_path):
    """The same function, once as a plain module, whose approximate gradients nobody knows."""
    model, images, labels = evaluation_case.model_and_data(13)
    protocol = Protocol("tiny", (Clean(), PGD("pgd", steps=3), PGD("bpda", gradient="identity", steps=3)))
    found = [
        ps.evaluate(each, images, labels, folder=tmp_path / name, eps=EPS, preset=protocol, micro_batch=1)
        for name, each in (("purified", model), ("wrapped", torch.nn.Sequential(model)))
    ]
    with pytest.warns(UserWarning, match=r"^only reference was attacked by 'bpda'; result may look better for it$"):
        compare(found[1], found[0])
    with pytest.warns(UserWarning, match=rf"only {tmp_path / 'purified'} was attacked by 'bpda'"):
        compare(tmp_path / "wrapped", tmp_path / "purified")
    random = dataclasses.replace(found[0], config={**found[0].config, "model": {"random": True}})
    with pytest.warns(UserWarning, match=r"^reference is random, and a sample fell if any draw of its noise failed"):
        compare(found[0], random)


def test_folders_without_a_finished_run(runs, tmp_path):
    (folder, _), (result, _) = runs
    with pytest.raises(FileNotFoundError, match="nothing holds no finished run"):
        compare(result, tmp_path / "nothing")
    with pytest.raises(TypeError, match=r"reference must be a pursamere.evaluation.Result or a folder, got int"):
        compare(folder, 3)
    damaged = tmp_path / "damaged"
    shutil.copytree(folder, damaged)
    (damaged / "config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"config.json is damaged: it has no valid data; run the evaluation again"):
        compare(damaged, folder)


def test_outcomes_that_lack_lines_are_told(runs, tmp_path):
    (folder, _), _ = runs
    shutil.copytree(folder, tmp_path / "short")
    file = tmp_path / "short" / "outcomes.csv"
    kept = [line for line in file.read_text().splitlines(keepends=True) if ",0.1,pgd," not in line]
    file.write_text("".join(kept))
    with pytest.raises(ValueError, match=r"its accuracies are not those of outcomes.csv; run the same"):
        compare(folder, tmp_path / "short")
    file.write_text("".join([*kept, kept[-1]]))
    with pytest.raises(ValueError, match=r"outcomes.csv is damaged: it has sample \d+ twice for sweep"):
        compare(folder, tmp_path / "short")
    file.write_text(file.read_text().replace("sample,label", "label,label"))
    with pytest.raises(ValueError, match=r"outcomes.csv is damaged: KeyError: 'sample'"):
        compare(folder, tmp_path / "short")


def test_the_command_prints_a_line_for_each_run_and_radius(runs, capsys):
    (folder, other), (result, reference) = runs
    assert main(["compare", str(folder), str(other), "--reference", str(other)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 + 2 * (1 + len(EPS))
    found = compare(result, reference)[0.1]
    assert lines[4].split()[:5] == [str(folder), "0.1", "13", str(found.won), str(found.lost)]
    assert lines[4].endswith(str(found))
    assert lines[2].split()[1] == "clean"
    assert lines[7].endswith("p = 1")
    assert main(["compare", str(folder / "no"), "--reference", str(other)]) == 1
    assert "holds no finished run" in capsys.readouterr().err
