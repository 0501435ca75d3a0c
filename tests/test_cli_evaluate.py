"""``pursamere evaluate`` as a user runs it, and what it refuses."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy
import pytest
import torch
from training_case import settings_of, tiny_denoiser, write_data

import pursamere as ps
from pursamere.cli import build_parser, main
from pursamere.cli.defenses import build_defense
from pursamere.cli.model import build_model
from pursamere.cli.provenance import trained_behind
from pursamere.datasets import Dataset
from pursamere.pretrained import make_purifier
from pursamere.training import train

CHEAP = ["--option", "direction=score", "--option", "steps=1", "--option", "draws=2", "--option", "ascent_radius=0"]


def evaluate(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "pursamere", "evaluate", "-o", "run", *arguments],
        cwd=folder, capture_output=True, text=True, timeout=600, check=False, env={**os.environ, **environment},
    )  # fmt: skip


MODEL = """
import torch

class Linear(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.linspace(-1, 1, 64).repeat(10, 1) * torch.arange(10)[:, None]

    def forward(self, x):
        return x.flatten(1) @ self.weight.T

def model():
    return Linear().eval()

not_a_function = 3
instance = model()
"""


@pytest.fixture
def data(tmp_path):
    """An npz file and a model in a file that gets it right."""
    (tmp_path / "model.py").write_text(MODEL)
    images = torch.rand(12, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    namespace: dict = {}
    exec(MODEL, namespace)
    labels = namespace["model"]()(images).argmax(1)
    numpy.savez(tmp_path / "data.npz", images=images.numpy(), labels=labels.numpy())
    return tmp_path


@pytest.mark.slow
def test_digits_from_beginning_to_end(tmp_path):
    done = evaluate(tmp_path, "--samples", "8", "--eps", "0.1", *CHEAP, "--threads", "1")
    assert done.returncode == 0, done.stderr
    files = {file.name for file in (tmp_path / "run").iterdir()}
    assert {"config.json", "environment.json", "outcomes.csv", "summary.json", "report.md", "report.html"} <= files
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["verdict"] in done.stdout
    assert "report.html" in done.stdout
    assert "pgd-margin-bpda" in done.stdout
    with open(tmp_path / "run" / "outcomes.csv", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert {int(row["sample"]) for row in rows} == set(range(8))
    again = evaluate(tmp_path, "--samples", "8", "--eps", "0.1", *CHEAP, "--threads", "1")
    assert again.returncode == 0, again.stderr
    assert again.stdout == done.stdout
    other = evaluate(tmp_path, "--samples", "8", "--eps", "0.2", *CHEAP, "--threads", "1")
    assert other.returncode == 1
    assert "holds a run of another configuration: eps[0] is 0.1 there, and 0.2 was asked for" in other.stderr


@pytest.mark.slow
def test_a_model_from_a_file_and_shards(data):
    common = ["--data", "data.npz", "--model", "model.py:model", "--samples", "12", "--eps", "0.02", "--chunk", "6"]
    first = evaluate(data, *common, "--shard", "1/2", "--threads", "1")
    assert first.returncode == 0, first.stderr
    assert "shard 1/2 is done; " in first.stdout
    assert "units are missing in run" in first.stdout
    second = evaluate(data, *common, "--shard", "0/2", "--threads", "1")
    assert second.returncode == 0, second.stderr
    assert "worst case per sample over all attacks (linf)" in second.stdout
    config = json.loads((data / "run" / "config.json").read_text())
    assert config["data"]["samples"] == 12
    assert config["data"]["name"] == (
        "data, test split, all its 12 images (in a random order by a fixed seed, balanced over the classes)"
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "nowhere"], "nowhere"),
        (
            ["--data", "data.npz"],
            "--classifier must be given for --data data.npz: only digits, mnist and cifar10 come with one. Name mnist, "
            "cifar10 or the folder of a checkpoint, or use --model",
        ),
        (["--data", "data.npz", "--model", "model.py"], "--model: expected FILE.py:FUNCTION, got model.py"),
        (["--data", "data.npz", "--model", "other.py:model"], "--model: other.py does not exist"),
        (["--data", "data.npz", "--model", "model.py:nothing"], "--model: model.py has no function nothing"),
        (["--data", "data.npz", "--model", "model.py:not_a_function"], "--model: model.py has no function"),
        (["--data", "data.npz", "--samples", "13", "--model", "model.py:model"], "--samples: data has 12 in its split"),
        (["--data", "data.npz", "--model", "model.py:instance"], "--model: instance is a Linear; give a function"),
        (["--model", "model.py:model", "--option", "steps=3"], "--model makes its own defense"),
        (["--defense", "magic"], "--defense must be one of 'none', 'pursamere', 'diffpure'"),
        (["--option", "stepz=3"], "an option of pursamere must be one of 'sigma'"),
        (["--option", "sigma=-1"], "sigma must be positive"),
        (["--option", "steps=99999999999999999999"], "steps must be in [0, 100000]"),
        (["--defense", "diffpure", "--option", "steps=99999999999999999999"], "steps must be in [0, 100000]"),
        (["--option", "sigma=much"], "sigma must be a real number, got str"),
        (["--passes", "1"], "passes must be at least"),
        (["--split", "final"], "split must be one of"),
        (
            ["--defense", "none", "--option", "steps=3", "--passes", "9"],
            "--defense none doesn't purify, so --option, --passes cannot be given with it",
        ),
        (["--option", "norm=l2"], "--option radius=... must be given with --option norm=l2"),
        (["--option", "norm=l2", "--defense", "ere_descent"], "--option radius=... must be given with"),
        (["--option", "norm=l1"], "norm must be one of 'linf', 'l2', got 'l1'"),
        (["--norm", "l2"], "--eps must be given with --norm l2: the default radii are those of linf"),
    ],
)
def test_what_is_refused(data, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(data)
    if "--samples" not in arguments:
        arguments = [*arguments, "--samples", "4"]
    assert main(["evaluate", "-o", "run", "-q", *arguments]) == 1
    assert message in capsys.readouterr().err
    assert not (data / "run").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("raise SystemExit(0)", "--model: leaving.py:f called sys.exit(0)"),
        ("import sys\ndef f():\n    sys.exit()", "--model: leaving.py:f called sys.exit(None)"),
        ("def f():\n    return (", "--model: leaving.py: '(' was never closed (leaving.py, line 2)"),
        ("def f():\n    pass\n\xe9\xff".encode("latin1"), "--model: leaving.py: "),
    ],
)
def test_files_of_models_that_leave_or_cannot_be_parsed(tmp_path, monkeypatch, capsys, content, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path[:])
    monkeypatch.delitem(sys.modules, "leaving", raising=False)
    Path("leaving.py").write_bytes(content if isinstance(content, bytes) else content.encode())
    assert main(["evaluate", "-o", "run", "--samples", "2", "--model", "leaving.py:f"]) == 1
    assert f"pursamere: error: {message}" in capsys.readouterr().err
    assert not os.path.exists("run")


@pytest.mark.parametrize("arguments", [["--shard", "2/2"], ["--shard", "x"], ["--option", "sigma"], ["--eps", "0"]])
def test_usage_errors(tmp_path, arguments):
    with pytest.raises(SystemExit) as error:
        main(["evaluate", "-o", str(tmp_path / "run"), *arguments])
    assert error.value.code == 2


@pytest.fixture
def checkpoints(data, monkeypatch):
    """In the working directory, beside the data: networks for it, and one for other images."""
    monkeypatch.chdir(data)
    for name, network in {
        "denoiser": tiny_denoiser(),
        "classifier": ps.ConvClassifier((1, 8, 8), 10, (8,), groups=4),
        "larger": ps.ConvClassifier((1, 9, 9), 10, (8,), groups=4),
    }.items():
        ps.save_checkpoint(name, network)
    numpy.savez("larger.npz", images=numpy.zeros((12, 1, 9, 9), numpy.float32), labels=numpy.arange(12) % 10)


@pytest.mark.slow
def test_checkpoints_of_a_denoiser_and_a_classifier(checkpoints, capsys):
    arguments = ["--data", "data.npz", "--samples", "4", "--eps", "0.05", "--micro-batch", "4", *CHEAP]
    networks = ["--denoiser", "denoiser", "--classifier", "classifier"]
    assert main(["evaluate", "-q", "-o", "run", *arguments, *networks]) == 0, capsys.readouterr().err
    # What the model says of the images as they are is what the two networks say, put together by hand.
    purifier = ps.Purifier(
        ps.load_checkpoint("denoiser"), sigma=0.2, radius=0.2, direction="score", steps=1, ascent_radius=0.0,
        micro_batch=4, noise=ps.GaussianNoise(draws=2),
    )  # fmt: skip
    model = ps.PurifiedClassifier(purifier, ps.load_checkpoint("classifier"))
    with torch.no_grad():
        expected = model(ps.datasets.load("data.npz").balanced(4).images).argmax(1)
    with open("run/outcomes.csv", newline="") as stream:
        clean = [row for row in csv.DictReader(stream) if row["attack"] == "clean"]
    assert [int(row["prediction"]) for row in clean] == expected.tolist()


def test_the_digits_denoiser_by_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    images = ps.datasets.load("digits", "test").head(2)
    ps.save_checkpoint("classifier", ps.ConvClassifier((1, 8, 8), 10, (8,)))

    def said(*arguments):
        command = ["evaluate", "-o", "run", "--data", "digits", "--classifier", "classifier", "--micro-batch", "1"]
        with torch.no_grad():
            return build_model(build_parser().parse_args([*command, *arguments]), images)(images.images)

    assert torch.equal(said("--denoiser", "digits"), said())
    assert not torch.equal(said("--denoiser", "digits", "--option", "bandwidth=0.4"), said())


@pytest.mark.slow
@pytest.mark.parametrize(("data", "name"), [("mnist", "mnist"), ("cifar10", "cifar10"), ("cifar10_jpeg", "cifar10")])
def test_data_sets_have_the_networks_that_ship(data, name):
    """What is evaluated is what the shipped networks say, with the tuned settings where no others are given."""
    shipped = ps.load_pretrained(name)
    images = shipped.test.images[:4]

    def said(*arguments):
        parsed = build_parser().parse_args(["evaluate", "-o", "run", *arguments, "--micro-batch", "4"])
        with torch.no_grad():
            return build_model(parsed, shipped.test)(images)

    def expected(**changes):
        purifier = make_purifier(name, shipped.denoiser, micro_batch=4, **changes)
        with torch.no_grad():
            return ps.PurifiedClassifier(purifier, shipped.classifier)(images)

    assert torch.equal(said("--data", data, "--defense", "none"), shipped.undefended(images))
    assert torch.equal(said("--data", data), expected())
    by_name = ("--data", "other.npz", "--denoiser", name, "--classifier", name)
    changed = ("--option", "steps=1", "--option", "sigma=0.3", "--option", "ascent_radius=0")
    assert torch.equal(said(*by_name, *changed), expected(steps=1, sigma=0.3, ascent_radius=0.0))


@pytest.mark.parametrize(
    ("name", "arguments", "warns"),
    [
        ("cifar10", ["--split", "validation"], True),
        ("cifar10", ["--split", "validation", "--classifier", "classifier"], True),
        ("cifar10", ["--split", "validation", "--classifier", "classifier", "--defense", "none"], False),
        ("cifar10", ["--split", "test"], False),
        ("cifar10_jpeg", ["--split", "validation"], False),
    ],
)
def test_images_that_the_networks_were_trained_on(tmp_path, monkeypatch, capsys, name, arguments, warns):
    """Other files of CIFAR-10 have another order, and so other validation images."""
    monkeypatch.chdir(tmp_path)
    ps.save_checkpoint("classifier", ps.ConvClassifier((3, 32, 32), 10, [8]))
    monkeypatch.setattr(
        "pursamere.cli.model.load_network",
        lambda option, source, device, names: ps.ConvClassifier((3, 32, 32), 10, [8]).eval(),
    )
    parsed = build_parser().parse_args(["evaluate", "-o", "run", "--data", "cifar10", *arguments])
    parsed.device = torch.device("cpu")
    build_model(
        parsed, Dataset(name, torch.zeros(1, 3, 32, 32), torch.zeros(1, dtype=torch.int64), tuple("0123456789"))
    )
    assert ("were trained on most of the validation images" in capsys.readouterr().err) is warns


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], None),
        (["--option", "micro_batch=4"], None),
        *(
            (["--option", option], "evaluated behind pursamere with another denoiser or other settings")
            for option in ("sigma=0.1", "step_rule=gradient", "noise_seed=5", "antithetic=false")
        ),
        (["--denoiser", "denoiser"], "evaluated behind pursamere with another denoiser or other settings"),
        (["--defense", "diffpure_fixed_noise"], "evaluated behind diffpure_fixed_noise, so"),
        (["--defense", "none", "--classifier", "cifar10"], "evaluated without a defense, so"),
        (["--defense", "none"], None),  # takes the classifier that was trained without one
        (["--defense", "diffpure_fixed_noise", "--classifier", "classifier"], None),
    ],
)
def test_a_classifier_that_was_trained_behind_another_purifier(tmp_path, monkeypatch, capsys, arguments, said):
    monkeypatch.chdir(tmp_path)
    ps.save_checkpoint("classifier", ps.ConvClassifier((3, 32, 32), 10, [8]))
    ps.save_checkpoint("denoiser", tiny_denoiser((3, 32, 32)))
    parsed = build_parser().parse_args(["evaluate", "-o", "run", "--data", "cifar10", *arguments])
    parsed.device = torch.device("cpu")
    images = Dataset("images", torch.zeros(1, 3, 32, 32), torch.zeros(1, dtype=torch.int64), tuple("0123456789"))
    build_model(parsed, images)
    warning = capsys.readouterr().err
    assert ("was trained behind pursamere (sigma=0.2, radius=0.06, " in warning) is (said is not None)
    assert said is None or said in warning


@pytest.mark.parametrize(("options", "warns"), [([], False), (["--option", "bandwidth=5"], True)])
def test_another_bandwidth_of_the_digits_is_another_purifier(tmp_path, monkeypatch, capsys, options, warns):
    monkeypatch.chdir(tmp_path)
    settings = settings_of("classifier", tmp_path, purifier="digits").to_json()
    network = ps.ConvClassifier((1, 8, 8), 10, [8])
    ps.save_checkpoint("classifier", network, information={"settings": settings, "data": {}})
    parsed = build_parser().parse_args(["evaluate", "-o", "run", "--classifier", "classifier", *options])
    build_model(parsed, ps.datasets.load("digits", "test"))
    assert ("with another denoiser or other settings" in capsys.readouterr().err) is warns


@pytest.mark.parametrize("record", [{}, {"settings": None}, {"settings": {"purifier": "a"}}])
def test_records_of_trainings_that_say_nothing_of_a_purifier(tmp_path, record):
    ps.save_checkpoint(tmp_path / "classifier", ps.ConvClassifier((1, 8, 8), 10, [8]), information=record)
    assert trained_behind(str(tmp_path / "classifier")) is None


def test_a_classifier_is_evaluated_behind_the_purifier_of_its_training(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    data = write_data(tmp_path)
    ps.save_checkpoint("denoiser", tiny_denoiser())
    settings = settings_of(
        "classifier", data, purifier="denoiser", purifier_draws=3, purifier_sigma=0.3, purifier_steps=1, steps=1
    )
    train(settings, "classifier")
    capsys.readouterr()
    networks = ["--denoiser", "denoiser", "--classifier", "classifier"]
    parsed = build_parser().parse_args(["evaluate", "-o", "run", "--data", str(data), *networks])
    purifier = build_model(parsed, ps.datasets.load(data)).purifier
    assert (purifier.sigma, purifier.steps, purifier.step_size) == (0.3, 1, 0.6)
    assert purifier.noise == ps.GaussianNoise(draws=3, antithetic=False)
    assert "was trained behind" not in capsys.readouterr().err


def test_a_denoiser_of_ones_own_has_the_settings_of_the_data(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ps.save_checkpoint("classifier", ps.ConvClassifier((1, 28, 28), 10, [8]))
    ps.save_checkpoint("denoiser", tiny_denoiser((1, 28, 28)))
    networks = ["--denoiser", "denoiser", "--classifier", "classifier"]
    images = Dataset("mnist", torch.zeros(1, 1, 28, 28), torch.zeros(1, dtype=torch.int64), tuple("0123456789"))
    for data, settings in (("mnist", "mnist"), ("other.npz", "digits")):
        purifier = build_model(
            build_parser().parse_args(["evaluate", "-o", "run", "--data", data, *networks]), images
        ).purifier
        expected = make_purifier(settings, purifier.denoiser, micro_batch=purifier.micro_batch)
        assert purifier.extra_repr() == expected.extra_repr()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--classifier", "classifier"], "Name digits, mnist, cifar10 or the folder"),
        (["--denoiser", "denoiser"], "--classifier must be given for --data data.npz"),
        (["--denoiser", "denoiser", "--defense", "none"], "--defense none doesn't purify, so --denoiser cannot be"),
        (
            ["--classifier", "larger", "--denoiser", "digits", "--data", "larger.npz"],
            "--denoiser: digits must be for the images of larger, (1, 9, 9), and is for (1, 8, 8)",
        ),
        (["--classifier", "denoiser", "--defense", "none"], "denoiser must hold a ConvClassifier, and is a EDMUNet"),
        (
            ["--classifier", "larger", "--defense", "none"],
            "larger must be for the images of data, (1, 8, 8), and is for",
        ),
        (["--classifier", "data.npz", "--defense", "none"], "data.npz must be a folder with model.safetensors and"),
        (["--classifier", "classifier", "--model", "model.py:model"], "--model makes its own defense"),
        (
            ["--classifier", "classifier", "--denoiser", "denoiser", "--option", "bandwidth=1"],
            "--option bandwidth is for the kernel density of the digits",
        ),
        (
            ["--denoiser", "nowhere", "--classifier", "classifier"],
            "--denoiser: expected digits, mnist, cifar10 or the folder of a check",
        ),
    ],
)
def test_checkpoints_that_are_refused(checkpoints, capsys, arguments, message):
    assert main(["evaluate", "-q", "-o", "run", "--samples", "4", "--data", "data.npz", *arguments]) == 1
    assert message in capsys.readouterr().err
    assert not Path("run").exists()


def test_a_missing_extra_is_named_before_any_work(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "pyautoattack", None)
    assert main(["evaluate", "-o", str(tmp_path / "run")]) == 1
    assert 'pip install "pursamere[evaluation]"' in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_defenses_are_built_from_plain_values():
    def denoiser(y, sigma):
        return y / (1 + sigma**2)

    ball = {"sigma": 0.2, "radius": 0.2}
    purifier = build_defense(
        "pursamere", denoiser, {**ball, "direction": "score", "draws": 4, "noise_seed": 7, "steps": 3}
    )
    assert (purifier.direction, purifier.noise.draws, purifier.noise.seed, purifier.steps) == ("score", 4, 7, 3)
    purifier = build_defense("pursamere", denoiser, {**ball, "draws": 4, "ascent_radius": 0.0}, passes=50)
    assert purifier.network_passes.total == 48
    assert build_defense("diffpure", denoiser, {}, passes=20).network_passes.total <= 20
    assert build_defense("diffpure", denoiser, {}).random
    assert not build_defense("diffpure_fixed_noise", denoiser, {}).random
