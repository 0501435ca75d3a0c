"""The command line as a whole: help, version, info, errors and exit codes."""

import json
import os
import re
import subprocess
import sys
from importlib.metadata import requires, version
from pathlib import Path

import pytest
import torch

import pursamere as ps
from pursamere import cli
from pursamere._text import printable
from pursamere.cli import info, types  # noqa: F401  (cli.info)
from pursamere.cli.errors import CommandError

BLOCK = """
import sys
for name in {names!r}:
    sys.modules[name] = None  # what an import of a module that is not installed sees, but for the message
from pursamere.cli import main
sys.exit(main({arguments!r}))
"""


def run_module(*arguments: str, cwd: Path, module: str = "pursamere") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", module, *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300, check=False)


def run_without(names: list[str], arguments: list[str], cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run the command line in a process where some packages cannot be imported."""
    command = [sys.executable, "-c", BLOCK.format(names=names, arguments=arguments)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300, check=False)


EXTRAS = ["PIL", "tqdm", "matplotlib", "sklearn", "scipy"]


def failing_command(error: BaseException):
    def command(arguments):
        raise error

    return command


def test_no_command_prints_help(capsys):
    assert cli.main([]) == 0
    out = capsys.readouterr().out
    for command in ("demo", "purify", "info"):
        assert command in out


@pytest.mark.parametrize("command", ["compare", "demo", "evaluate", "info", "purify", "train", "tune"])
def test_help_is_plain_text(capsys, command):
    with pytest.raises(SystemExit):
        cli.main([command, "--help"])
    assert "`" not in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("module", ["pursamere", "pursamere.cli"])
def test_version_of_the_installed_distribution(tmp_path, module):
    done = run_module("--version", cwd=tmp_path, module=module)
    assert (done.returncode, done.stdout) == (0, f"pursamere {version('pursamere')}\n")


@pytest.mark.slow
def test_info_needs_no_extra(tmp_path):
    done = run_without(EXTRAS, ["info", "--json"], tmp_path)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["versions"]["torch"] == torch.__version__
    assert report["versions"]["pursamere"] == version("pursamere")
    assert report["versions"]["python"] == ".".join(map(str, sys.version_info[:3]))
    assert report["cpu"]["torch_threads"] >= 1
    assert len(report["cuda"]) == torch.cuda.device_count()
    from pursamere_ext import build_info

    assert report["extension"] == dict(build_info())
    assert report["extension"]


def test_info_lists_the_packages_of_the_extras(capsys):
    assert cli.main(["info", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)["optional"]
    extras = r"^([\w-]+).*; extra == ['\"](?:cli|plots|train|demo|evaluation)['\"]$"
    assert set(listed) == set(re.findall(extras, "\n".join(requires("pursamere")), re.M)) - {"pursamere"}


def test_info_text_has_what_the_json_has(capsys):
    assert cli.main(["info", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert cli.main(["info"]) == 0
    text = capsys.readouterr().out
    for group in ("versions", "extension", "optional"):
        for name, value in report[group].items():
            assert any(name in line and line.endswith(f"  {value}") for line in text.splitlines()), (name, value)


def test_info_tells_the_micro_batches_of_a_denoiser(capsys):
    assert cli.main(["info", "--json", "--denoiser", "mnist"]) == 0
    sizes = json.loads(capsys.readouterr().out)["micro_batches"]
    purifier = ps.load_pretrained("mnist").purifier
    images = torch.rand(2, 1, 28, 28)
    assert tuple(sizes["purifier"]) == purifier.micro_batch_sizes(images)
    assert tuple(sizes["exact gradient"]) == purifier.micro_batch_sizes(images, differentiated=True)
    assert cli.main(["info", "--denoiser", "mnist"]) == 0
    lines = [line.split("  ") for line in capsys.readouterr().out.splitlines()]
    told = {words[0]: words[-1] for words in lines}
    assert told["purifier micro-batches"] == ", ".join(map(str, sizes["purifier"]))
    assert cli.main(["info", "--denoiser", "nowhere"]) == 1


@pytest.mark.parametrize(("devices", "built", "note"), [(1, "off", True), (1, "13.0", False), (0, "off", False)])
def test_info_says_how_to_rebuild_when_a_gpu_cannot_be_used(capsys, monkeypatch, devices, built, note):
    device = {"name": "GPU", "compute_capability": "9.0", "memory_gib": 80.0}
    report = {**cli.info.collect(), "cuda": devices * [device], "extension": {"cuda": built}}
    monkeypatch.setattr(cli.info, "collect", lambda: report)
    assert cli.main(["info"]) == 0
    text = capsys.readouterr().out
    assert ("built without CUDA; reinstall with nvcc" in text) == note
    assert ("-Ccmake.define.PURSAMERE_CUDA=ON" in text) == note


def test_info_tells_of_an_extension_that_does_not_load(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "pursamere_ext", None)
    assert cli.main(["info", "--json"]) == 1
    assert "pursamere_ext" in json.loads(capsys.readouterr().out)["extension"]["error"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("sklearn.datasets", []),
        ("matplotlib.figure", []),
        ("markdown", []),
        ("diffusers", ["--dataset", "mnist"]),
        ("safetensors", ["--dataset", "mnist"]),
    ],
)
def test_demo_without_its_extra_says_how_to_install_it_before_working(tmp_path, monkeypatch, capsys, name, arguments):
    monkeypatch.setitem(sys.modules, name, None)
    assert cli.main(["demo", "--output", str(tmp_path / "out"), *arguments]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert len(err.splitlines()) == 1
    assert name in err
    assert 'pip install "pursamere[demo]"' in err
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_purify_without_pillow_says_how_to_install_it(tmp_path, monkeypatch, capsys):
    (tmp_path / "a.png").write_bytes(b"")
    loaded = [name for name in sys.modules if name.partition(".")[0] == "PIL"]
    for name in {"PIL", *loaded}:  # whether or not an earlier test has imported it
        monkeypatch.setitem(sys.modules, name, None)
    assert cli.main(["purify", str(tmp_path / "a.png"), "-o", str(tmp_path / "out")]) == 1
    err = capsys.readouterr().err
    assert len(err.splitlines()) == 1
    assert "PIL" in err
    assert 'pip install "pursamere[cli]"' in err


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (CommandError("no such thing"), "pursamere: error: no such thing\n"),
        (ValueError("two\nlines"), "pursamere: error: two lines\n"),
        (RuntimeError("odd"), "pursamere: error: RuntimeError: odd (--debug shows the traceback)\n"),
    ],
)
def test_errors_are_one_line(monkeypatch, capsys, error, expected):
    monkeypatch.setattr(cli.info, "run", failing_command(error))
    assert cli.main(["info"]) == 1
    captured = capsys.readouterr()
    assert captured.err == expected
    assert captured.out == ""


@pytest.mark.parametrize("arguments", [["--debug", "info"], ["info", "--debug"]])
def test_debug_shows_the_traceback(monkeypatch, capsys, arguments):
    monkeypatch.setattr(cli.info, "run", failing_command(CommandError("no such thing")))
    assert cli.main(arguments) == 1
    err = capsys.readouterr().err
    assert "Traceback" in err
    assert "no such thing" in err


def test_interrupt_exits_130(monkeypatch, capsys):
    monkeypatch.setattr(cli.info, "run", failing_command(KeyboardInterrupt()))
    assert cli.main(["info"]) == 130
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.slow
def test_a_closed_pipe_is_no_error(tmp_path):
    # Unbuffered output would fail in print itself and leave nothing for the flush at exit to fail on.
    env = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    read_end, write_end = os.pipe()
    os.close(read_end)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "pursamere", "info"],
            cwd=tmp_path, env=env, stdout=write_end, stderr=subprocess.PIPE, text=True, timeout=300, check=False,
        )  # fmt: skip
    finally:
        os.close(write_end)
    assert done.stderr == ""
    assert done.returncode == 1


@pytest.mark.parametrize(
    "arguments",
    [
        ["no-such-command"],
        ["purify"],
        ["purify", "in"],
        ["purify", "in", "-o", "out", "--sigma", "0"],
        ["purify", "in", "-o", "out", "--sigma", "nan"],
        ["purify", "in", "-o", "out", "--radius", "-0.1"],
        ["purify", "in", "-o", "out", "--steps", "1.5"],
        ["purify", "in", "-o", "out", "--draws", "3"],
        ["purify", "in", "-o", "out", "--norm", "l1"],
        ["purify", "in", "-o", "out", "--batch-size", "99999999999999999999"],
        ["purify", "in", "-o", "out", "--micro-batch", "99999999999"],
        ["purify", "in", "-o", "out", "--draws", "2147483646"],
        ["purify", "in", "-o", "out", "--noise-seed", str(2**63)],
        ["purify", "in", "-o", "out", "--sigma", "1e300"],
        ["purify", "in", "-o", "out", "--ascent-radius", "1e300"],
        ["purify", "in", "-o", "out", "--radius", "8/0"],
        ["purify", "in", "-o", "out", "--radius", "8/255/2"],
        ["purify", "in", "-o", "out", "--radius", "/255"],
        ["evaluate", "-o", "out", "--micro-batch", "99999999999"],
        ["evaluate", "-o", "out", "--threads", "99999999999"],
        ["evaluate", "-o", "out", "--chunk", "99999999999"],
        ["evaluate", "-o", "out", "--seed", str(2**63)],
        ["evaluate", "-o", "out", "--eps", "0.1", "1e300"],
        ["demo", "--seed", str(2**63)],
        ["demo", "--attack-steps", "99999999999"],
        ["demo", "--samples", "0"],
    ],
)
def test_usage_errors_exit_2(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(arguments)
    assert stop.value.code == 2
    assert "usage:" in capsys.readouterr().err


def test_option_types():
    assert types.positive("0.5") == 0.5
    assert types.nonnegative("0") == 0.0
    assert types.count("1") == 1
    assert types.seed("0") == 0
    assert types.seed(str(2**63 - 1)) == 2**63 - 1
    assert types.batch("65536") == 65536
    assert types.even_batch("8") == 8
    assert types.positive("8/255") == 8 / 255
    assert types.nonnegative("0/3") == 0.0


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain name.png", "plain name.png"),
        ("é 数.png", "é 数.png"),
        ("two\nlines", "two lines"),
        ("\x1b[2Jgone", "\\x1b[2Jgone"),
        (os.fsdecode(b"\xff.png"), "\\udcff.png"),
    ],
)
def test_printable(text, expected):
    assert printable(text) == expected
    printable(text).encode()  # whatever the terminal's encoding error handling
