"""``pursamere demo``: two evaluations of the library's own networks, and what they say."""

import csv
import json
import os
import re

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from scipy import stats

import pursamere as ps
from pursamere.cli import main
from pursamere.pretrained import EPS, make_purifier
from pursamere.pretrained.digits import make_denoiser, train_classifier

ARGUMENTS = ["--samples", "16", "--attack-steps", "1", "--epochs", "3", "--seed", "5"]


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """The command with few samples: what it printed on stdout and on stderr, and the folder."""
    folder = tmp_path_factory.mktemp("demo") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RANK", raising=False)
        return run(folder, *ARGUMENTS)


def run(folder, *arguments):
    import contextlib
    import io

    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        assert main(["demo", "-o", str(folder), *arguments]) == 0, err.getvalue()
    return out.getvalue(), err.getvalue(), folder


def outcomes(folder):
    with open(folder / "outcomes.csv", newline="") as stream:
        return list(csv.DictReader(stream))


def worst_case(folder, eps):
    correct = {}
    for row in outcomes(folder):
        if float(row["eps"]) in (0, eps) and row["attacked"] == "1":
            correct.setdefault(row["sample"], []).append(row["correct"] == "1")
    return [all(sample) for sample in correct.values()]


@pytest.mark.slow
def test_each_classifier_has_the_folder_of_an_evaluation(demo):
    out, err, folder = demo
    assert err == ""  # no bars: stderr is no terminal
    assert sorted(name for name in os.listdir(folder) if name[0] != ".") == ["demo.png", "purified", "undefended"]
    for kind in ("purified", "undefended"):
        assert {"config.json", "outcomes.csv", "summary.json", "report.html"} <= set(os.listdir(folder / kind))
    with Image.open(folder / "demo.png") as image:
        assert min(image.size) > 300
        assert len(np.unique(np.asarray(image.convert("L")))) > 50
    assert f"wrote {folder}/demo.png and {folder}/purified/report.html" in out


@pytest.mark.slow
def test_the_attacks(demo):
    *_, folder = demo
    attacks = {kind: {row["attack"] for row in outcomes(folder / kind)} for kind in ("purified", "undefended")}
    assert attacks["undefended"] == {"clean", "pgd-margin"}
    assert attacks["purified"] == {"clean", "transfer-bare", "pgd-margin-bpda", "pgd-margin"}
    steps = {}
    for kind in attacks:
        config = json.loads((folder / kind / "config.json").read_text())
        assert config["seed"] == 5
        assert config["eps"] == list(EPS["digits"])
        steps[kind] = {attack["name"]: attack.get("steps") for attack in config["protocol"]["attacks"]}
    assert steps["undefended"]["pgd-margin"] == steps["purified"]["transfer-bare"] == 50
    assert steps["purified"]["pgd-margin"] == steps["purified"]["pgd-margin-bpda"] == 1


def test_what_is_printed_agrees_with_the_outcomes(demo):
    out, _, folder = demo
    assert out.startswith("16 held-out images of digits")
    assert "stronger ones (pursamere evaluate) can only lower the worst case" in out
    for eps in EPS["digits"]:
        shares = {kind: np.mean(worst_case(folder / kind, eps)) for kind in ("undefended", "purified")}
        assert (
            f"eps {eps:.3g}, worst case: {shares['undefended']:.3f} undefended, {shares['purified']:.3f} purified\n"
        ) in out
        for share in shares.values():
            low, high = stats.binomtest(round(16 * share), 16).proportion_ci(0.95, method="wilson")
            assert f"{share:.3f} ({low:.3f} - {high:.3f})" in out


def test_the_classifiers_are_those_of_the_library(demo):
    *_, folder = demo
    classifier = train_classifier(seed=5, epochs=3)
    model = ps.PurifiedClassifier(make_purifier("digits", make_denoiser(), micro_batch=32), classifier)
    images = ps.datasets.load("digits", "test").images[:16]
    for kind, judge in (("undefended", classifier), ("purified", model)):
        said = [int(row["prediction"]) for row in outcomes(folder / kind) if row["attack"] == "clean"]
        with torch.no_grad():
            assert said == judge(images).argmax(1).tolist()


@pytest.mark.slow
def test_a_killed_demo_resumes_and_another_needs_another_folder(demo, tmp_path, capsys):
    out, _, folder = demo
    before = (folder / "purified" / "outcomes.csv").read_bytes()
    for unit in list((folder / "purified" / "units").iterdir())[:1]:
        unit.unlink()
    (folder / "purified" / "outcomes.csv").unlink()
    again, *_ = run(folder, *ARGUMENTS)
    assert (folder / "purified" / "outcomes.csv").read_bytes() == before
    assert again == out
    assert main(["demo", "-o", str(folder), *ARGUMENTS[:-1], "6"]) == 1
    assert "holds a run of another configuration" in capsys.readouterr().err


@pytest.mark.slow
def test_mnist_is_attacked_with_the_networks_that_ship(tmp_path):
    out, _, folder = run(tmp_path / "out", "--dataset", "mnist", "--samples", "2", "--attack-steps", "1", "-q")
    assert out.startswith("2 held-out images of mnist")
    for kind in ("undefended", "purified"):
        clean = [row for row in outcomes(folder / kind) if row["attack"] == "clean"]
        assert [(row["label"], row["prediction"]) for row in clean] == [("7", "7"), ("2", "2")]  # first of the test set
        assert json.loads((folder / kind / "config.json").read_text())["eps"] == list(EPS["mnist"])
    assert (folder / "demo.png").stat().st_size > 10_000


@pytest.mark.slow
def test_cifar10_has_a_classifier_of_its_own_behind_the_purifier(tmp_path):
    out, _, folder = run(tmp_path / "out", "--dataset", "cifar10", "--samples", "3", "--attack-steps", "1", "-q")
    assert out.startswith("3 held-out images of cifar10")
    cifar10 = ps.load_pretrained("cifar10")
    images = cifar10.test.images[:3]
    purified = ps.PurifiedClassifier(cifar10.purifier, cifar10.classifier)
    alone, behind = re.search(r"gets (\S+) right without the purifier, and (\S+) with it\.", out).groups()
    file = folder / "undefended" / "adversarial" / f"pgd-margin-eps{8 / 255}-00000.safetensors"
    adversarial = load_file(file)["images"]
    for model, share in ((cifar10.classifier, alone), (purified, behind)):
        right = model(adversarial).argmax(1) == cifar10.test.labels[: len(adversarial)]
        assert f"{float(right.float().mean()):.3f}" == share
    for kind, judge in (("undefended", cifar10.undefended), ("purified", purified)):
        clean = [row for row in outcomes(folder / kind) if row["attack"] == "clean"]
        with torch.no_grad():
            assert [int(row["prediction"]) for row in clean] == judge(images).argmax(1).tolist()
    assert (folder / "demo.png").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dataset", "mnist", "--epochs", "3"], "--epochs: the networks for mnist are trained already"),
        (["--samples", "513"], "--samples: there are 512 images, got 513"),
        (["--device", "tpu"], "--device: expected cpu, cuda or cuda:N, got tpu"),
    ],
)
def test_what_the_command_refuses(tmp_path, capsys, arguments, message):
    assert main(["demo", "-o", str(tmp_path / "out"), *arguments]) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_global_state_is_left_alone(tmp_path):
    before = torch.get_rng_state(), torch.get_default_dtype(), torch.get_num_threads()
    run(tmp_path / "out", "--samples", "2", "--attack-steps", "1", "--epochs", "1")
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (torch.get_default_dtype(), torch.get_num_threads()) == before[1:]
    assert torch.is_grad_enabled()


@pytest.mark.slow
def test_every_data_set_has_a_default_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    quick = ["demo", "-q", "--samples", "2", "--attack-steps", "1"]
    assert main([*quick, "--epochs", "1"]) == 0
    assert main([*quick, "--dataset", "mnist"]) == 0
    assert {path.name for path in tmp_path.iterdir()} == {"pursamere-demo", "pursamere-demo-mnist"}
