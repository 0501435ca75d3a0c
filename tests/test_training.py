"""Training: it learns, it goes on after a kill with the same bits, and processes share it."""

import dataclasses
import json
import math
import os
import shutil
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import numpy
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from training_case import COMMON, settings_of, tiny_denoiser, write_data

import pursamere as ps
from pursamere.cli import main
from pursamere.training import ClassifierConfiguration, Watcher, train
from pursamere.training import run as training_run
from pursamere.training.configuration import with_precision
from pursamere.training.data_parallel import Processes
from pursamere.training.loop import _check_same_settings, fit
from pursamere.training.state import read_record

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


@pytest.mark.slow
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
    assert type(network) is ps.models.EDMUNet
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


@pytest.mark.slow
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
        ps.PurifiedClassifier(ps.Purifier(d, sigma=0.2, radius=0.2, steps=2, noise=ps.GaussianNoise(draws=2)), c)(
            test.images
        ).argmax(1)
        for d, c in ((denoiser, result.network), (ps.load_checkpoint(tmp_path / "denoiser"), half))
    ]
    assert torch.equal(*decisions)


# Interrupted, resumed, divided.


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        *((kind, {"channels_last": channels_last}) for kind in KINDS for channels_last in (False, True)),
        ("classifier", {"normalization": "batch", "whitening": 2}),
    ],
)
def test_a_killed_training_goes_on_with_the_same_bits(data, tmp_path, no_pictures, kind, changes):
    settings = settings_of(kind, data, **changes)

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


@pytest.mark.slow
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


def test_batch_normalization_is_refused_in_several_processes(data, tmp_path, monkeypatch):
    monkeypatch.setattr(training_run, "processes", lambda _: nullcontext(Processes(1, 2)))
    with pytest.raises(ValueError, match="normalization must be 'group' in 2 processes, got 'batch'"):
        train(settings_of("classifier", data, normalization="batch"), tmp_path / "out")


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


# The data that a training goes on with.


def save_data(path, *, names=("left", "right"), **changes):
    """The images of ``write_data`` in another file, with names for their classes and other arrays in it."""
    with numpy.load(write_data(path.parent)) as arrays:
        numpy.savez(path, **{**arrays, "class_names": numpy.array(names), **changes})
    return path


def half_way(settings, folder):
    """Leave the state that a training had after 3 of its 8 steps."""

    class Killed(BaseException):
        pass

    def advance(count):
        done.append(count)
        if len(done) == 4:
            raise Killed

    done: list[int] = []
    with pytest.raises(Killed):
        train(settings, folder, watcher=Watcher(advance))


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_the_same_data_elsewhere_go_on_with_the_same_bits(tmp_path, no_pictures, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data = save_data(tmp_path / "data.npz")
    whole = train(settings_of("classifier", data), tmp_path / "whole")
    for name, spelling in (("relative", "data.npz"), ("renamed", tmp_path / "moved" / "other.npz")):
        half_way(settings_of("classifier", data), tmp_path / name)
        Path(spelling).parent.mkdir(exist_ok=True)
        if not Path(spelling).exists():
            shutil.copy(data, spelling)
        resumed = train(settings_of("classifier", spelling), tmp_path / name)
        assert resumed.history == whole.history
        assert contents(tmp_path / name)["model.safetensors"] == contents(tmp_path / "whole")["model.safetensors"]
        record = json.loads((tmp_path / name / "config.json").read_text())["training"]
        assert record["settings"]["dataset"] == str(spelling)  # the one that it ended with


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train_labels": numpy.arange(24) % 2 == 0}, "SHA-256 of its training images and labels begins with"),
        ({"train_images": numpy.zeros((24, 1, 8, 8))}, "SHA-256 of its training images and labels begins with"),
        ({"validation_labels": numpy.zeros(10)}, "SHA-256 of its validation images and labels begins with"),
        ({"names": ("right", "left")}, "its class number 0 is 'left', not 'right'"),
        ({"names": ("left", "right", "up")}, "its class number 2 is None, not 'up'"),
    ],
)
def test_other_data_at_the_same_place_are_refused(tmp_path, no_pictures, kind, changes, message):
    settings, out = settings_of(kind, save_data(tmp_path / "data.npz")), tmp_path / "out"
    half_way(settings, out)
    before = contents(out)
    arrays = {k: v.astype(numpy.int64) if k.endswith("labels") else v for k, v in changes.items()}
    save_data(tmp_path / "data.npz", **arrays)
    with pytest.raises(ValueError, match=rf"out holds a training on data different from 'data': .*{message}.*; choose"):
        train(settings, out)
    assert contents(out) == before


def test_a_state_that_does_not_say_what_data_it_had_is_refused(data, tmp_path, no_pictures):
    settings, state = settings_of("classifier", data), tmp_path / "out" / "training.safetensors"
    half_way(settings, tmp_path / "out")
    with safe_open(state, framework="pt") as content:
        progress = json.loads(content.metadata()["progress"])
    del progress["data"]  # as the first version wrote it
    save_file(load_file(state), state, {"progress": json.dumps(progress)})
    with pytest.raises(ValueError, match=r"by an earlier version .* did not record its data: resume it with that"):
        train(settings, tmp_path / "out")


def test_a_classifier_knows_the_names_of_its_classes(tmp_path, no_pictures):
    result = train(settings_of("classifier", save_data(tmp_path / "data.npz"), steps=1), tmp_path / "out")
    assert result.network.class_names == ps.load_checkpoint(tmp_path / "out").class_names == ("left", "right")


def test_a_loss_that_is_not_finite_ends_the_training(tmp_path):
    class Diverging:
        size = 4

        def losses(self, network, rows, mine, generator):
            return network(torch.full((len(rows[mine]), 1), math.inf)).sum(1)

        def validate(self, network):
            return {}

    settings = ClassifierConfiguration(**COMMON)
    with pytest.raises(RuntimeError, match=r"the training loss is (nan|inf|-inf) before step 4; a lower learning_rate"):
        fit(torch.nn.Linear(1, 1), Diverging(), settings, tmp_path, torch.device("cpu"), Processes(), Watcher(), {})


def test_dtypes_are_checked_before_any_work(data, tmp_path):
    with pytest.raises(ValueError, match=r"dtype must be torch.float32"):
        train(settings_of("classifier", data), tmp_path / "out", dtype=torch.float64)
    assert not (tmp_path / "out").exists()


def test_a_state_by_an_early_version_does_not_say_what_its_precision_meant(data, tmp_path, no_pictures):
    settings = settings_of("classifier", data)
    _check_same_settings(
        {**settings.to_json(), "precision": "auto"}, with_precision(settings, torch.device("cpu")), tmp_path
    )
    with pytest.raises(ValueError, match="holds a training with precision='bfloat16', not 'float32'"):
        _check_same_settings(
            {**settings.to_json(), "precision": "bfloat16"}, with_precision(settings, torch.device("cpu")), tmp_path
        )


def test_a_resumed_training_keeps_the_precision_that_it_began_with(data, tmp_path, no_pictures):
    """As if it had begun on a GPU, where "auto" is bfloat16."""
    settings = settings_of("classifier", data)
    train(dataclasses.replace(settings, precision="bfloat16"), tmp_path / "run")
    train(settings, tmp_path / "run")
    assert read_record(tmp_path / "run")["settings"]["precision"] == "bfloat16"
    with pytest.raises(ValueError, match="holds a training with precision='bfloat16', not 'float32'"):
        train(dataclasses.replace(settings, precision="float32"), tmp_path / "run")
