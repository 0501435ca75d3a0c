"""Comparing two evaluations sample by sample."""

import math
import shutil

import evaluation_case
import pytest
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


@pytest.mark.parametrize(("gained", "lost"), [(0, 0), (1, 0), (0, 7), (5, 20), (11, 11), (130, 90), (3000, 3100)])
def test_p_value_against_scipy(gained, lost):
    found = PairedDifference(10_000, gained, lost).p_value
    expected = stats.binomtest(gained, gained + lost).pvalue if gained + lost else 1.0
    assert found == pytest.approx(expected, rel=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize(("gain", "loss"), [(0.1, 0.1), (0.2, 0.05), (0.02, 0.3), (0.0, 0.1), (0.4, 0.4)])
def test_the_interval_covers_the_true_difference_as_often_as_it_says(gain, loss):
    """Over all outcomes of 60 samples, with their exact probabilities."""
    samples = 60
    covered = 0.0
    for gained in range(samples + 1):
        for lost in range(samples + 1 - gained):
            low, high = PairedDifference(samples, gained, lost).interval
            if low <= gain - loss <= high:
                same = samples - gained - lost
                covered += stats.multinomial.pmf([gained, lost, same], samples, [gain, loss, 1 - gain - loss])
    assert 0.935 < covered < 0.995


def test_a_difference_known_by_hand():
    """20 samples, 4 gained, 1 lost: (5 - 2) / 22 and the root of (7 - 9/22) / 22 / 22."""
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
    assert list(found) == list(EPS)
    for eps, difference in found.items():
        mine, theirs = result.withstood[eps], reference.withstood[eps]
        counts = (13, int((mine & ~theirs).sum()), int((theirs & ~mine).sum()))
        assert (difference.samples, difference.gained, difference.lost) == counts
        assert difference.value == pytest.approx(result.worst_case[eps].value - reference.worst_case[eps].value)
    assert any(difference.gained for difference in found.values())
    assert any(difference.lost for difference in found.values())
    assert compare(folder, str(other)) == compare(result, other) == found
    assert {eps: (each.lost, each.gained) for eps, each in compare(other, folder).items()} == {
        eps: (each.gained, each.lost) for eps, each in found.items()
    }


def test_only_common_radii_are_compared(runs, tmp_path):
    (folder, _), _ = runs
    assert list(compare(folder, evaluated(tmp_path / "one", eps=0.1))) == [0.1]
    with pytest.raises(ValueError, match=r"must have a radius in common, got \[0.05, 0.1\] and \[0.2\]"):
        compare(folder, evaluated(tmp_path / "none", eps=0.2))


def test_runs_that_differ_in_more_than_the_defense_are_refused(runs, tmp_path):
    (folder, _), _ = runs
    evaluated(tmp_path / "samples", samples=9)
    evaluated(tmp_path / "attacks", preset=Protocol("tiny", (Clean(), PGD("pgd", steps=2))))
    evaluated(tmp_path / "norm", norm="l2")
    for what in ("samples", "attacks", "norm"):
        with pytest.raises(ValueError, match=f"must have the same {what}, got .*{what} and .*mine"):
            compare(tmp_path / what, folder)


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
    with pytest.raises(ValueError, match=r"summary.json is damaged: its worst cases are not those of outcomes.csv"):
        compare(folder, tmp_path / "short")
    file.write_text(file.read_text().replace("sample,label", "label,label"))
    with pytest.raises(ValueError, match=r"outcomes.csv is damaged: KeyError: 'sample'"):
        compare(folder, tmp_path / "short")


def test_the_command_prints_a_line_for_each_run_and_radius(runs, capsys):
    (folder, other), (result, reference) = runs
    assert main(["compare", str(other), str(folder), str(other)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 + 2 * len(EPS)
    found = compare(result, reference)[0.1]
    assert lines[3].split()[:5] == [str(folder), "0.1", "13", str(found.gained), str(found.lost)]
    assert lines[3].endswith(str(found))
    assert lines[5].endswith("p = 1")
    assert main(["compare", str(other), str(folder / "no")]) == 1
    assert "holds no finished run" in capsys.readouterr().err
