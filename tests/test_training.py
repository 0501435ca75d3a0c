"""Training: it learns, it goes on after a kill with the same bits, and processes share it."""

import json
import math
import os
import subprocess
import sys

import pytest
import torch
from training_case import COMMON, settings_of, tiny_denoiser, write_data

import pursamere as ps
from pursamere.cli import main
from pursamere.training import ClassifierConfiguration, Watcher, train
from pursamere.training import run as training_run
from pursamere.training.data_parallel import Processes
from pursamere.training.loop import fit

KINDS = ["denoiser", "classifier"]


@pytest.fixture
def data(tmp_path):
    return write_data(tmp_path)


@pytest.fixture
def no_pictures(monkeypatch):
    monkeypatch.setattr(training_run, "_write_pictures", lambda *_: None)


def global_state():
    return (
        torch.get_rng_state().tolist(), torch.get_default_dtype(), torch.get_num_threads(), torch.is_grad_enabled(),
        torch.are_deterministic_algorithms_enabled(), torch.is_autocast_enabled("cpu"),
    )  # fmt: skip


# What a training makes.


def test_denoiser_from_the_command_line(data, tmp_path, capsys):
    before, out = global_state(), tmp_path / "out"
    flags = (
        "--steps 60 --batch-size 12 --learning-rate 0.01 --warmup-steps 5 --validate-every 20 --channels 8 --groups 4"
    )
    assert main(["train", "denoiser", "--dataset", str(data), "-o", str(out), *flags.split()]) == 0
    assert global_state() == before
    printed = capsys.readouterr()
    assert printed.err.count("min left") == 3
    assert printed.out.split()[:6] == ["sigma", "network", "identity", "kernel", "density", "bandwidth"]
    history = json.loads((out / "history.json").read_text())
    assert [entry["step"] for entry in history] == [20, 40, 60]
    assert history[-1]["loss"] < 0.7 * history[0]["loss"]
    assert history[-1]["error at 0.4"] < history[0]["error at 0.4"]
    network = ps.load_checkpoint(out)
    assert type(network) is ps.denoisers.EDMUNet
    # The table's errors, with noise of our own: doing nothing costs sigma^2 per pixel, and the network far less.
    record = json.loads((out / "config.json").read_text())["training"]
    row = next(row for row in record["validation"] if row["sigma"] == 0.4)
    assert row["identity"] == pytest.approx(0.16, rel=0.1)
    x = ps.datasets.load(data, "validation").images
    noisy = x + 0.4 * torch.randn(20, *x.shape, generator=torch.Generator().manual_seed(5))
    error = float((network(noisy.flatten(0, 1), 0.4) - x.repeat(20, 1, 1, 1)).square().mean())
    assert error == pytest.approx(row["network"], rel=0.2)
    assert error < 0.08
    assert record["data"]["sha256"] == ps.datasets.load(data, "train").sha256
    assert record["settings"]["steps"] == 60
    for name in ("curves.png", "purified.png"):
        assert (out / name).read_bytes().startswith(b"\x89PNG")


def test_classifier_learns_and_half_precision_decides_alike(data, tmp_path, no_pictures):
    before = global_state()
    settings = settings_of("classifier", data, steps=30, validate_every=10)
    result = train(settings, tmp_path / "out", dtype=torch.float16)
    assert global_state() == before
    assert result.history[-1]["loss"] < 0.5 * result.history[0]["loss"]
    assert result.table[0]["accuracy"] == 1.0
    test = ps.datasets.load(data, "test")
    half = ps.load_checkpoint(tmp_path / "out")
    logits, rounded = result.network(test.images), half(test.images)
    assert not torch.equal(logits, rounded)
    assert torch.equal(logits.argmax(1), test.labels)
    assert torch.equal(rounded.argmax(1), test.labels)
    denoiser = tiny_denoiser()
    ps.save_checkpoint(tmp_path / "denoiser", denoiser, dtype=torch.float16)
    decisions = [
        ps.PurifiedClassifier(ps.Purifier(d, steps=2, noise=ps.GaussianNoise(draws=2)), c)(test.images).argmax(1)
        for d, c in ((denoiser, result.network), (ps.load_checkpoint(tmp_path / "denoiser"), half))
    ]
    assert torch.equal(*decisions)


# Interrupted, resumed, divided.


@pytest.mark.parametrize("kind", KINDS)
def test_a_killed_training_goes_on_with_the_same_bits(data, tmp_path, no_pictures, kind):
    settings = settings_of(kind, data)

    class Killed(BaseException):
        pass

    def kill_at(limit):
        done = []

        def advance(count):
            done.extend([None] * count)
            if len(done) == limit:
                raise Killed

        return Watcher(advance)

    whole = train(settings, tmp_path / "whole")
    for limit in (2, 5, 7):  # before the first saved state (after 3 steps), and after the first and the second
        with pytest.raises(Killed):
            train(settings, tmp_path / "killed", watcher=kill_at(limit))
    counted = []
    resumed = train(settings, tmp_path / "killed", watcher=Watcher(counted.append))
    assert counted == [6, 1, 1]
    assert resumed.history == whole.history
    for name in ("model.safetensors", "history.json"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    again = train(settings, tmp_path / "killed", watcher=Watcher(counted.append))  # nothing is left to do
    assert counted == [6, 1, 1, 8]
    assert (again.history, again.table) == (whole.history, whole.table)


def test_two_processes_train_as_one(data, tmp_path, no_pictures):
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in (COMMON | {"batch_size": 7, "groups": 4}).items()]
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "pursamere", "train"]
    arguments = ["classifier", "--dataset", str(data), "--widths", "8", "8", "-o", str(tmp_path / "two"), *flags]
    done = subprocess.run(
        [sys.executable, *launch, *arguments],
        capture_output=True, text=True, timeout=600, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    two = json.loads((tmp_path / "two" / "history.json").read_text())
    one = train(settings_of("classifier", data, batch_size=7), tmp_path / "one").history
    assert [entry["step"] for entry in two] == [4, 8]
    for got, want in zip(two, one, strict=True):
        assert got == pytest.approx(want, rel=1e-5)
    assert done.stdout.count("checkpoint in") == 1  # from the first process alone


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 1}, r"out holds a training with seed=0, not 1: choose another folder, or remove it"),
        ({"widths": (8, 16)}, r"out holds a training with widths=\[8, 8\], not \[8, 16\]"),
    ],
)
def test_a_folder_of_other_settings_is_refused_by_name(data, tmp_path, no_pictures, changes, message):
    train(settings_of("classifier", data, steps=1), tmp_path / "out")
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    with pytest.raises(ValueError, match=message):
        train(settings_of("classifier", data, steps=1, **changes), tmp_path / "out")
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before
    state = tmp_path / "out" / "training.safetensors"
    state.write_bytes(state.read_bytes()[:40])
    with pytest.raises(ValueError, match=r"training.safetensors is damaged: .*; remove it"):
        train(settings_of("classifier", data, steps=1), tmp_path / "out")


def test_a_loss_that_is_not_finite_ends_the_training(tmp_path):
    class Diverging:
        size = 4

        def losses(self, network, rows, mine, generator):
            return network(torch.full((len(rows[mine]), 1), math.inf)).sum(1)

        def validate(self, network):
            return {}

    settings = ClassifierConfiguration(**COMMON)
    with pytest.raises(RuntimeError, match=r"the training loss is (nan|inf|-inf) before step 4; a lower learning_rate"):
        fit(torch.nn.Linear(1, 1), Diverging(), settings, tmp_path, torch.device("cpu"), Processes(), Watcher())


def test_dtypes_are_checked_before_any_work(data, tmp_path):
    with pytest.raises(ValueError, match=r"dtype must be torch.float32"):
        train(settings_of("classifier", data), tmp_path / "out", dtype=torch.float64)
    assert not (tmp_path / "out").exists()
