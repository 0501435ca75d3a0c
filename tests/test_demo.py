"""The demo end to end with tiny settings, and its parts."""

import contextlib
import json
import math
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats

from pursamere.datasets import load
from pursamere.demo import plot, report, results, run
from pursamere.demo.settings import SETTINGS, Settings
from pursamere.evaluation.result import wilson_interval
from pursamere.pretrained.digits import train_classifier

TINY = Settings(samples=24, attack_steps=2, bare_attack_steps=4, epochs=2, steps=2, draws=2, micro_batch=8)
EPS = TINY.eps


@contextlib.contextmanager
def no_bar(total, description, unit):
    done = []
    yield done.append
    assert sum(done) == total, description


@pytest.fixture(scope="module")
def demo():
    return run.run_demo(TINY, no_bar)


@pytest.fixture(scope="module")
def command(tmp_path_factory):
    """The command as a user runs it, with few samples: (what it printed, the folder)."""
    folder = tmp_path_factory.mktemp("demo")
    arguments = ["demo", "-o", "out", "--samples", "16", "--attack-steps", "1", "--epochs", "3", "--seed", "5"]
    done = subprocess.run(
        [sys.executable, "-m", "pursamere", *arguments],
        cwd=folder, capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""  # no bars: stderr is no terminal
    return done.stdout, folder / "out"


def test_command_writes_a_picture_and_json(command):
    printed, folder = command
    assert sorted(name for name in os.listdir(folder) if name[0] != ".") == ["demo.json", "demo.png"]
    with Image.open(folder / "demo.png") as image:
        assert image.format == "PNG"
        assert min(image.size) > 300
        assert len(np.unique(np.asarray(image.convert("L")))) > 50
    content = json.loads((folder / "demo.json").read_text())
    settings = content["settings"]
    assert (settings["samples"], settings["attack_steps"], settings["epochs"], settings["seed"]) == (16, 1, 3, 5)
    assert settings["sigma"] == Settings().sigma
    assert content["versions"]["torch"] == torch.__version__
    assert len(content["labels"]) == 16
    assert content["images_per_second"] > 0
    assert f"{content['images_per_second']:,.0f} images per second" in printed
    assert 0 < sum(v for k, v in content["seconds"].items() if k != "total") <= content["seconds"]["total"]
    assert str(folder / "demo.png").endswith("out/demo.png")
    assert "out/demo.png" in printed
    assert "out/demo.json" in printed


def test_mnist_is_attacked_with_the_networks_that_ship(tmp_path, capsys):
    from pursamere.cli import main

    arguments = ["--dataset", "mnist", "--samples", "4", "--attack-steps", "1", "-q"]
    assert main(["demo", "-o", str(tmp_path), *arguments]) == 0
    printed = capsys.readouterr().out
    assert "4 held-out 28x28 digits of MNIST" in printed
    content = json.loads((tmp_path / "demo.json").read_text())
    assert content["settings"]["eps"] == list(SETTINGS["mnist"].eps)
    assert "epochs" not in content["settings"]
    assert len(content["denoiser_sha256"]) == 64
    assert content["labels"] == [7, 2, 1, 0]  # the first of the test set
    assert content["results"][0]["accuracy"] == content["results"][1]["accuracy"] == 1
    assert (tmp_path / "demo.png").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dataset", "mnist", "--epochs", "3"], "--epochs: the networks for mnist are trained already"),
        (["--samples", "513"], "--samples: there are 512 images, got 513"),
    ],
)
def test_what_the_command_refuses(tmp_path, capsys, arguments, message):
    from pursamere.cli import main

    assert main(["demo", "-o", str(tmp_path / "out"), *arguments]) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_table_agrees_with_the_outcomes(command):
    printed, folder = command
    content = json.loads((folder / "demo.json").read_text())
    rows = [line for line in printed.splitlines() if line.startswith(("undefended  ", "purified  "))]
    assert len(rows) == len(content["results"]) == 2 + len(EPS) * 6
    for line, result in zip(rows, content["results"], strict=True):
        low, high = stats.binomtest(sum(result["correct"]), 16).proportion_ci(0.95, method="wilson")
        assert line.startswith(result["model"])
        eps = f"{result['eps']:.2f}" if result["eps"] else "-"
        assert line.split()[-5:] == [eps, f"{sum(result['correct']) / 16:.3f}", f"{low:.3f}", "-", f"{high:.3f}"]
        assert result["accuracy"] == sum(result["correct"]) / 16
        if result["predictions"] is not None:
            right = [int(p == label) for p, label in zip(result["predictions"], content["labels"], strict=True)]
            assert result["correct"] == right


def test_worst_case_is_per_sample(command, demo):
    _, folder = command
    for found in (json.loads((folder / "demo.json").read_text())["results"], [r.to_json() for r in demo.results]):
        for model, attacks in ((results.UNDEFENDED, {"pgd"}), (results.PURIFIED, {"transfer", "bpda", "exact"})):
            for eps in EPS:
                mine = {r["attack"]: r["correct"] for r in found if r["model"] == model and r["eps"] in (0, eps)}
                assert set(mine) == {"none", "worst case"} | attacks
                worst = mine.pop("worst case")
                assert worst == [int(all(sample)) for sample in zip(*mine.values(), strict=True)]
                assert all(sum(worst) <= sum(outcomes) for outcomes in mine.values())


def test_worst_case_of_disjoint_failures():
    def result(model, attack, eps, *correct):
        return results.Result(model, attack, eps, torch.tensor(correct))

    found = [
        result("purified", "none", 0.0, True, True, True, False),
        result("purified", "bpda", 0.1, False, True, True, True),
        result("purified", "exact", 0.1, True, False, True, True),
        result("purified", "bpda", 0.2, False, False, False, False),
        result("undefended", "pgd", 0.1, False, False, False, False),
    ]
    worst = results.worst_case(found, "purified", 0.1)
    assert worst.correct.tolist() == [False, False, True, False]
    assert worst.accuracy == 0.25


def test_results_are_what_the_classifiers_say(demo):
    images, labels = demo.attacked.images, demo.attacked.labels
    clean = results.find(demo.results, results.UNDEFENDED, results.CLEAN, 0.0)
    assert torch.equal(clean.predictions, demo.subject.classifier(images).argmax(1))
    purified = results.find(demo.results, results.PURIFIED, results.CLEAN, 0.0)
    assert torch.equal(purified.predictions, demo.subject.classifier(demo.purifier(images)).argmax(1))
    for eps, adversarial in demo.adversarial.items():
        assert ((adversarial - images).abs() <= eps + 1e-6).all()
        bare = results.find(demo.results, results.UNDEFENDED, results.PGD, eps)
        assert torch.equal(bare.correct, demo.subject.classifier(adversarial).argmax(1) == labels)
        transfer = results.find(demo.results, results.PURIFIED, results.TRANSFER, eps)
        assert torch.equal(transfer.predictions, demo.subject.classifier(demo.purifier(adversarial)).argmax(1))


def test_attacks_use_the_gradients_they_are_named_after(monkeypatch):
    attacked = []
    real = run.pgd

    def spy(model, *arguments, **keywords):
        attacked.append(getattr(model, "gradient", None))
        return real(model, *arguments, **keywords)

    monkeypatch.setattr(run, "pgd", spy)
    run.run_demo(TINY, no_bar)
    assert attacked == [None, "identity", "exact"] * len(EPS)


def test_the_same_every_time_and_another_with_another_seed(demo):
    def outcome(one):
        content = json.loads(report.json_report(one))
        for timing in ("images_per_second", "seconds"):
            del content[timing]
        return content

    again = run.run_demo(TINY, no_bar)
    assert outcome(again) == outcome(demo)
    for eps in EPS:
        assert torch.equal(again.adversarial[eps], demo.adversarial[eps])
    other = run.run_demo(Settings(**{**TINY.__dict__, "seed": 1}), no_bar)
    assert outcome(other)["classifier_sha256"] != outcome(demo)["classifier_sha256"]


def test_global_state_is_left_alone():
    before = torch.get_rng_state(), torch.get_default_dtype(), torch.get_num_threads()
    run.run_demo(TINY, no_bar)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (torch.get_default_dtype(), torch.get_num_threads()) == before[1:]
    assert torch.is_grad_enabled()


def test_the_global_seed_does_not_matter(demo):
    with torch.random.fork_rng():
        torch.manual_seed(12345)
        again = run.run_demo(TINY, no_bar)
    for one, other in zip(demo.subject.classifier.parameters(), again.subject.classifier.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("samples", [0, 513])
def test_number_of_samples_is_checked(samples):
    with pytest.raises(ValueError, match=r"samples must be in \[1, 512\]"):
        run.run_demo(Settings(samples=samples), no_bar)


def test_the_purifier_knows_training_images_only(demo):
    assert torch.equal(demo.purifier.denoiser.images, load("digits", "train").images)


def test_classifier_learns():
    train, validation = (load("digits", split) for split in ("train", "validation"))
    network = train_classifier(train, seed=0, epochs=6)
    assert not network.training
    assert not any(p.requires_grad for p in network.parameters())
    accuracy = (network(validation.images).argmax(1) == validation.labels).float().mean()
    assert accuracy > 0.9


@pytest.mark.parametrize(("correct", "count"), [(0, 10), (1, 10), (5, 10), (10, 10), (218, 256), (1, 1), (0, 1)])
def test_wilson_interval_against_scipy(correct, count):
    expected = stats.binomtest(correct, count).proportion_ci(0.95, method="wilson")
    assert wilson_interval(correct, count) == pytest.approx((expected.low, expected.high), abs=1e-12)
    low, high = wilson_interval(correct, count)
    assert 0 <= low <= correct / count <= high <= 1


def test_wilson_interval_known_value():
    """Agresti and Coull (1998) style example by hand: 8 of 10 at z = 2 is (0.8 + 0.2 +- 2 sqrt(0.016 + 0.01)) / 1.4."""
    half = 2 * math.sqrt(0.8 * 0.2 / 10 + 4 / 400)
    assert wilson_interval(8, 10, z=2.0) == pytest.approx(((1.0 - half) / 1.4, (1.0 + half) / 1.4))


@pytest.mark.parametrize(("correct", "count"), [(-1, 10), (11, 10), (0, 0)])
def test_wilson_interval_of_nonsense(correct, count):
    with pytest.raises(ValueError, match="correct"):
        wilson_interval(correct, count)


def test_picture_shows_fooled_digits(demo):
    eps = EPS[-1]
    fooled = ~results.find(demo.results, results.UNDEFENDED, results.PGD, eps).correct
    shown = plot.choose_shown(demo, eps)
    count = min(int(fooled.sum()), plot.SHOWN)
    assert count > 0
    assert fooled[shown[:count]].all()
    assert len(set(shown.tolist())) == len(shown) == plot.SHOWN


def test_picture_leaves_matplotlib_alone(demo):
    import matplotlib

    backend = (
        matplotlib.rcParams._get_backend_or_none() if hasattr(matplotlib.rcParams, "_get_backend_or_none") else None
    )
    assert plot.draw(demo) == plot.draw(demo)
    if hasattr(matplotlib.rcParams, "_get_backend_or_none"):
        assert matplotlib.rcParams._get_backend_or_none() == backend


def test_report_names_its_settings_and_limits(demo):
    text = report.text_report(demo)
    for part in ("direction ere", f"sigma {TINY.sigma:g}", "2 draws", "2 steps", f"radius {TINY.radius:g}", "seed 0"):
        assert part in text
    assert "not a full evaluation protocol" in text
