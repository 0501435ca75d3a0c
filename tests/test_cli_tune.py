"""``pursamere tune``: what it prints can be written down, and wrong usage is told before anything is measured."""

import re
import shlex

import pytest
import torch
from nets import conv_denoiser

import pursamere as ps
from pursamere.cli import build_parser, main, purify, tune
from pursamere.cli.defenses import build_defense
from pursamere.tuning import Trial

MODEL = """
import torch

class Denoiser(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = torch.nn.Conv2d(1, 1, 3, padding=1)

    def forward(self, y, sigma):
        return y - 0.1 * self.layer(y)

def make():
    return Denoiser().eval().requires_grad_(False)

def shaped():
    denoiser = make()
    denoiser.image_shape = (1, 6, 5)
    return denoiser

def listed():
    denoiser = make()
    denoiser.image_shape = [1, 6, 5]
    return denoiser

def fails():
    def denoiser(y, sigma):
        raise OverflowError("no such image")
    return denoiser
"""
QUICK = ["--batch-size", "2", "--draws", "2", "--no-compile", "--micro-batch", "2", "-q"]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model.py").write_text(MODEL)


@pytest.mark.parametrize("source", [["make", "--shape", "1,6,5"], ["shaped"], ["listed", "--shape", "1,6,5"]])
def test_a_denoiser_of_ones_own(capsys, source):
    function, *shape = source
    assert main(["tune", "--model", f"model.py:{function}", *shape, *QUICK]) == 0
    out = capsys.readouterr().out
    assert "images 1x6x5, 2 draws, sigma 0.2, cpu" in out
    score, ere = out.split("forward and backward passes (direction ere):")
    for part in (score, ere):
        assert re.search(r"^defaults +[\d.]+ +0 +0$", part, re.MULTILINE)
        found = re.findall(
            r"^write down: (ps\.Purifier\(|pursamere purify \.\.\.|pursamere evaluate)", part, re.MULTILINE
        )
        assert len(found) == (0 if "nothing to write down" in part else 3)
        assert part.count("micro_batch=2") >= 1


def test_the_settings_can_be_written_down_as_printed():
    trial = Trial("ere", {"compile": True, "precision": "bfloat16", "channels_last": True}, 8, 1.0)
    execution = 'ps.Execution(compile=True, precision="bfloat16", channels_last=True)'
    assert tune._python(trial) == f"ps.Purifier(..., execution={execution}, micro_batch=8)"
    purified, evaluated = (shlex.split(line.replace("...", "")) for line in tune._command_lines(trial))
    arguments = build_parser().parse_args(["purify", "in.png", "-o", "out", *purified[2:]])
    purifier = purify.build_purifier(conv_denoiser(), arguments)
    assert (purifier.execution, purifier.micro_batch) == (ps.Execution("bfloat16", True, True), 8)
    arguments = build_parser().parse_args(["evaluate", "-o", "out", *evaluated[2:]])
    purifier = build_defense("pursamere", conv_denoiser(), {"sigma": 0.2, "radius": 0.1, **dict(arguments.option)})
    assert (purifier.execution, arguments.micro_batch) == (ps.Execution("bfloat16", True, True), 8)


def test_nothing_is_written_down_if_the_defaults_do():
    plain, fast = Trial("ere", {}, None, 1.0), Trial("ere", {}, 8, 2.0)
    assert [line for line in tune._report("passes", [plain, fast]) if "write down" in line] == [
        "write down: ps.Purifier(..., micro_batch=8)",
        "write down: pursamere purify ... --micro-batch 8",
        "write down: pursamere evaluate ... --micro-batch 8",
    ]
    (line,) = [line for line in tune._report("passes", [plain]) if "write down" in line]
    assert line.startswith("nothing to write down")


def test_a_denoiser_that_always_fails(capsys):
    assert main(["tune", "--model", "model.py:fails", "--shape", "1,6,5", *QUICK]) == 1
    out = capsys.readouterr().out
    assert "failed: defaults: OverflowError: no such image" in out
    assert "write down" not in out


def test_the_networks_that_ship(capsys, monkeypatch):
    seen = []

    def found(denoiser, shape, **settings):
        seen.append((type(denoiser).__name__, tuple(shape), settings["sigma"], settings["draws"]))
        return [Trial("score", {}, None, 1.0), Trial("ere", {}, None, 1.0)]

    monkeypatch.setattr("pursamere.tuning.tune", found)
    assert main(["tune", "--denoiser", "mnist", "-q"]) == 0
    assert main(["tune", "--denoiser", "digits", "--sigma", "0.4", "-q"]) == 0
    assert seen == [("EDMUNet", (1, 28, 28), 0.5, 2), ("KernelDensity", (1, 8, 8), 0.4, 8)]
    assert "not known" in capsys.readouterr().out  # no differences


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "model.py:make"], "--shape must be given with --model"),
        (["--model", "model.py:shaped", "--shape", "1,8,8"], r"--shape: the denoiser is for images \(1, 6, 5\)"),
        (["--denoiser", "mnist", "--shape", "1,6,5"], r"--shape: the denoiser is for images \(1, 28, 28\)"),
        (["--denoiser", "nowhere"], "--denoiser: expected digits, mnist, cifar10 or"),
        (["--model", "model.py:nothing", "--shape", "1,6,5"], "has no function nothing"),
        (["--denoiser", "mnist", "--device", "gpu"], "--device: expected cpu"),
    ],
)
def test_wrong_arguments(capsys, arguments, message):
    assert main(["tune", *arguments]) == 1
    assert re.search(message, capsys.readouterr().err)


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--denoiser", "mnist", "--model", "model.py:make"],
        ["--denoiser", "mnist", "--shape", "28,28"],
        ["--denoiser", "mnist", "--shape", "1,0,28"],
        ["--denoiser", "mnist", "--draws", "3"],
    ],
)
def test_wrong_usage(arguments):
    with pytest.raises(SystemExit) as stopped:
        main(["tune", *arguments])
    assert stopped.value.code == 2
    assert torch.is_grad_enabled()
