"""Options that several commands have behave alike, and ``--model FILE.py:FUNCTION`` is an ordinary import."""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from training_case import settings_of, write_data

from pursamere.cli import build_parser, main, networks
from pursamere.cli.networks import find_device
from pursamere.cli.types import option as parse_option
from pursamere.pretrained import EPS, TUNED
from pursamere.training import run as training_run
from pursamere.training import train

COMMANDS = {
    "purify": ["purify", "in.png", "--reference", "reference.npz", "--steps", "1", "--draws", "2"],
    "train": ["train", "classifier", "--dataset", "sides.npz", "--steps", "1", "--batch-size", "8", "-q"],
    "evaluate": ["evaluate", "--data", "sides.npz", "--samples", "2", "--model", "model.py:make", "-q"],
}
MODEL = """
import torch

class Network(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.last = torch.nn.Linear(64, 2)

    def forward(self, x):
        return self.last(x.flatten(1))
"""
MAKE = "\ndef make():\n    return Network().eval()\n"
IMPORTS = {
    "with_dataclass": "from __future__ import annotations\nfrom dataclasses import dataclass\n"
    "@dataclass\nclass Settings:\n    width: int = 1\n" + MODEL + MAKE,
    "with_pickle": MODEL + "\ndef make():\n    import io\n    stream = io.BytesIO()\n"
    "    torch.save(Network(), stream)\n    stream.seek(0)\n"
    "    return torch.load(stream, weights_only=False).eval()\n",
    "with_sibling": "from a_sibling_module import Network\n" + MAKE,
    "pickle": MODEL + MAKE,  # like a module of Python's that is in use
    "a.b": MODEL + MAKE,
}


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """Work in a folder with an image, a reference for it, and labeled images."""
    monkeypatch.chdir(tmp_path)
    random = np.random.default_rng(0)
    np.savez("reference.npz", images=random.integers(0, 256, (20, 6, 5), dtype=np.uint8))
    Image.fromarray(random.integers(0, 256, (6, 5), dtype=np.uint8)).save("in.png")
    write_data(tmp_path)
    (tmp_path / "model.py").write_text(MODEL + MAKE)
    return tmp_path


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("device", ["gpu", "meta", "mps", "cuda:x", "cuda:", "cpu:-1", "\x1b[2J"])
def test_no_device_is_told_alike_and_nothing_is_made(capsys, command, device):
    assert main([*COMMANDS[command], "-o", "out", "--device", device]) == 1
    shown = device.replace("\x1b", r"\x1b")
    assert capsys.readouterr().err == f"pursamere: error: --device: expected cpu, cuda or cuda:N, got {shown}\n"
    assert not Path("out").exists()


@pytest.mark.parametrize("command", COMMANDS)
def test_a_gpu_that_is_not_there_is_told_alike(capsys, monkeypatch, command):
    monkeypatch.setattr(networks, "check_supported_device", lambda *_: None)  # as if built with CUDA
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main([*COMMANDS[command], "-o", "out", "--device", "cuda"]) == 1
    assert capsys.readouterr().err == "pursamere: error: --device: PyTorch finds no CUDA device\n"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert main([*COMMANDS[command], "-o", "out", "--device", "cuda:2"]) == 1
    assert "--device: PyTorch finds 2 CUDA devices, counted from 0, got cuda:2" in capsys.readouterr().err
    assert not Path("out").exists()


def test_devices(monkeypatch):
    monkeypatch.setattr(networks, "check_supported_device", lambda *_: None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert find_device("cpu") == find_device("cpu:0") == torch.device("cpu")
    assert find_device("cuda") == torch.device("cuda:0")
    assert find_device("cuda:1") == torch.device("cuda:1")
    monkeypatch.setenv("LOCAL_RANK", "3")  # the fourth process of a machine with two GPUs
    assert find_device("cuda") == torch.device("cuda:1")
    assert find_device("cuda:0") == torch.device("cuda:0")


def test_the_library_trains_on_no_meta_device(folder):
    with pytest.raises(ValueError, match="device must be cpu or cuda, got meta"):
        train(settings_of("classifier", folder / "sides.npz"), folder / "out", device="meta")


def test_fractions_are_numbers(monkeypatch, capsys):
    monkeypatch.setattr(training_run, "_write_pictures", lambda *_: None)
    assert main([*COMMANDS["evaluate"], "-o", "run", "--eps", "4/255", "8/255"]) == 0, capsys.readouterr().err
    assert json.loads(Path("run/config.json").read_text())["eps"] == [4 / 255, 8 / 255]
    assert main([*COMMANDS["train"], "-o", "out", "--learning-rate", "1/512"]) == 0
    used = json.loads(Path("out/config.json").read_text())["training"]["settings"]
    assert used["learning_rate"] == 1 / 512
    texts = ["radius=8/255", "direction=score", "norm=1/x", "steps=3"]
    assert [parse_option(text)[1] for text in texts] == [8 / 255, "score", "1/x", 3]


@pytest.mark.slow
@pytest.mark.parametrize("name", IMPORTS)
def test_a_model_in_a_file_is_an_ordinary_import(folder, name):
    """In a process and a folder of its own: imports change ``sys``."""
    (folder / "models").mkdir()
    (folder / "models" / f"{name}.py").write_text(IMPORTS[name])
    (folder / "models" / "a_sibling_module.py").write_text(MODEL)
    arguments = [*COMMANDS["evaluate"][:-3], "--model", f"models/{name}.py:make", "-q", "--eps", "0.01", "-o", "run"]
    done = subprocess.run(
        [sys.executable, "-m", "pursamere", *arguments], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    assert Path("run/report.html").exists()


def default_in_help(command, option):
    """The end of the option's help: the default, and those of data sets where they differ."""
    (commands,) = [action for action in build_parser()._actions if action.dest == argparse.SUPPRESS and action.choices]
    return commands.choices[command]._option_string_actions[option].help.rpartition("(default: ")[2].rstrip(")")


def test_the_tuned_settings_are_those_in_the_help():
    for name, digits in {**TUNED["digits"], "step_size": "depends on --radius", "direction": "ere"}.items():
        names: dict = {}  # of the data sets by their value
        for data in ("mnist", "cifar10"):
            names.setdefault(TUNED[data][name], []).append(data)
        others = [f"{' and '.join(data)}: {_short(value)}" for value, data in names.items() if value != digits]
        assert default_in_help("purify", f"--{name.replace('_', '-')}") == "; ".join([_short(digits), *others])
    digits, mnist = (" and ".join(map(str, EPS[name])) for name in ("digits", "mnist"))
    assert default_in_help("evaluate", "--eps") == f"{digits}; mnist: {mnist}; cifar10: 8/255"
    assert EPS["cifar10"] == (8 / 255,)


def _short(value):
    return value if isinstance(value, str) else f"{value:g}"
