"""Output folders: nothing that a command did not write is replaced, and one process writes at a time."""

import json
import os
import signal
import socket
import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file
from training_case import settings_of, write_data

from pursamere._output import claim, require_own, require_writable
from pursamere.cli import main
from pursamere.evaluation.folder import RunFolder
from pursamere.training import run as training_run
from pursamere.training import train

COMMANDS = {
    "train": ["train", "classifier", "-q", "--steps", "1"],
    "evaluate": ["evaluate", "-q", "--samples", "1", "--eps", "0.1", "--defense", "none"],
    "demo": ["demo", "-q", "--samples", "1", "--attack-steps", "1", "--epochs", "1"],
}
HOLD = """
import sys, time
from pathlib import Path
from pursamere._output import claim
with claim(Path(sys.argv[1]), "train"):
    print("claimed", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def data(tmp_path, monkeypatch):
    monkeypatch.setattr(training_run, "_write_pictures", lambda *_: None)
    return write_data(tmp_path)


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(
    "name", ["config.json", "model.safetensors", "history.json", "demo.json", "demo.png", "units/a"]
)
def test_a_folder_of_somebody_else_is_refused_and_left_as_it_is(tmp_path, capsys, command, name):
    file = tmp_path / "out" / name
    file.parent.mkdir(parents=True)
    file.write_text("{}")
    assert main([*COMMANDS[command], "-o", str(tmp_path / "out")]) == 1
    first = name.partition("/")[0]
    told = f"out was not created by pursamere {command} and holds {first}"
    assert told in capsys.readouterr().err
    assert contents(tmp_path / "out") == {name: b"{}"}


@pytest.mark.parametrize("owner", COMMANDS)
@pytest.mark.parametrize("command", COMMANDS)
def test_a_folder_belongs_to_the_command_that_claimed_it(tmp_path, owner, command):
    with claim(tmp_path / "a" / "out", owner):
        (tmp_path / "a" / "out" / "result").write_text("")
    if owner == command:
        with claim(tmp_path / "a" / "out", command):
            return
    with pytest.raises(ValueError, match=f"was not created by pursamere {command}"):
        require_own(tmp_path / "a" / "out", command)
    (tmp_path / "a" / "out" / "result").unlink()
    with claim(tmp_path / "a" / "out", command):  # an empty one is anybody's
        (tmp_path / "a" / "out" / "other").write_text("")
    require_own(tmp_path / "a" / "out", command)


MARKERS = {
    "link": lambda path: path.symlink_to("notes.txt"),
    "dangling link": lambda path: path.symlink_to("nowhere"),
    "fifo": os.mkfifo,
    "folder": lambda path: path.mkdir(),
    "socket": lambda path: socket.socket(socket.AF_UNIX).bind(os.path.relpath(path)),
    "a user's file": lambda path: path.write_text("precious\n"),
    "a user's long file": lambda path: path.write_text("train\n" + 1000 * " " + "precious\n"),
    "a binary file": lambda path: path.write_bytes(b"\xff\0"),
}


@pytest.mark.parametrize("kind", MARKERS)
@pytest.mark.parametrize("command", COMMANDS)
def test_a_marker_that_no_command_wrote_is_refused_and_left_as_it_is(tmp_path, monkeypatch, command, kind):
    monkeypatch.chdir(tmp_path)  # the name of a socket must be short
    out, notes = tmp_path / "out", tmp_path / "out" / "notes.txt"
    out.mkdir()
    MARKERS[kind](out / ".pursamere")
    if kind == "link":
        notes.write_text("train\n")  # a link is refused whatever it leads to
    before = contents(out), (out / ".pursamere").lstat()
    for refuse in (require_own, lambda *arguments: claim(*arguments).__enter__()):
        with pytest.raises(ValueError, match=r"out/\.pursamere is not a marker written by pursamere"):
            refuse(out, command)
        with monkeypatch.context() as patch:  # as if the marker had come after the first look
            patch.setattr("pursamere._output.require_own", lambda *_: None)
            with pytest.raises(ValueError, match=r"out/\.pursamere is not a marker"), claim(out, command):
                pass
    after = (out / ".pursamere").lstat()
    assert contents(out) == before[0]
    assert (after.st_mode, after.st_size, after.st_ino) == (before[1].st_mode, before[1].st_size, before[1].st_ino)


def test_an_empty_marker_is_nobodys(tmp_path):
    (tmp_path / ".pursamere").touch()
    with claim(tmp_path, "train"):
        assert (tmp_path / ".pursamere").read_bytes() == b"train\n"
    (tmp_path / ".pursamere").write_bytes(b"")
    (tmp_path / "notes.txt").write_text("precious")
    with pytest.raises(ValueError, match=r"notes\.txt"):
        require_own(tmp_path, "train")


@pytest.mark.parametrize(
    ("first", "second", "allowed"),
    [(False, False, False), (False, True, False), (True, False, False), (True, True, True)],
)
def test_one_process_writes_at_a_time_unless_all_share(tmp_path, first, second, allowed):
    with claim(tmp_path, "evaluate", shared=first):
        if allowed:
            with claim(tmp_path, "evaluate", shared=second):
                return
        with (
            pytest.raises(ValueError, match="another process is writing to"),
            claim(tmp_path, "evaluate", shared=second),
        ):
            pass
    with claim(tmp_path, "evaluate", shared=second):
        pass


@pytest.mark.slow
def test_the_claim_ends_with_a_process_that_is_killed(data, tmp_path):
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path / "out")], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline() == "claimed\n"
        with pytest.raises(ValueError, match="another process is writing to"):
            train(settings_of("classifier", data, steps=1), tmp_path / "out")
        assert set(contents(tmp_path / "out")) == {".pursamere"}
    finally:
        holder.send_signal(signal.SIGKILL)
        holder.wait(60)
        holder.stdout.close()
    train(settings_of("classifier", data, steps=1), tmp_path / "out")


def test_a_finished_training_is_replaced_by_the_same_one_only(data, tmp_path):
    """Also when the state has been deleted, as the documentation allows."""
    settings, out = settings_of("denoiser", data, steps=2), tmp_path / "out"
    train(settings, out)
    before = contents(out)
    (out / "training.safetensors").unlink()
    others = {
        "different kind of training": settings_of("classifier", data, steps=2),
        "holds a training with seed=0, not 1": settings_of("denoiser", data, steps=2, seed=1),
        "on data different from": settings_of("denoiser", write_data(data.parent, validation=False), steps=2),
    }
    for message, other in others.items():
        with pytest.raises(ValueError, match=message):
            train(other, out)
    write_data(data.parent)
    train(settings, out)
    assert {name: text for name, text in contents(out).items() if name != "config.json"} == {
        name: text for name, text in before.items() if name != "config.json"
    }


def test_a_training_by_a_version_without_markers_goes_on(data, tmp_path):
    settings, out = settings_of("classifier", data, steps=1), tmp_path / "out"
    train(settings, out)
    (out / ".pursamere").unlink()
    train(settings, out)
    assert (out / ".pursamere").read_text() == "train\n"


DEMO = {"format": 1, "settings": {}, "classifier_sha256": "0", "results": []}  # what every version's demo.json has
ENVIRONMENT = {"versions": {}, "platform": "", "machine": "", "device": "cpu", "threads": 1}
RUN = {"format": 1, "protocol": {}}


def test_an_evaluation_and_a_demo_by_versions_without_markers_go_on(tmp_path):
    RunFolder(tmp_path, RUN, ENVIRONMENT)
    assert not (tmp_path / ".pursamere").exists()
    with claim(tmp_path, "evaluate"):
        RunFolder(tmp_path, RUN, ENVIRONMENT)
    demo = tmp_path / "pursamere-demo"
    demo.mkdir()
    (demo / "demo.json").write_text(json.dumps(DEMO))
    (demo / "demo.png").write_text("")
    with claim(demo, "demo"):
        assert (demo / ".pursamere").read_text() == "demo\n"


FOREIGN = {
    "evaluate": [
        {"environment.json": "{}"},
        {"environment.json": '{"threads": 1}', "config.json": "{}", "units/a.json": "{}"},
        {"config.json": json.dumps(RUN)},
        {"config.json": json.dumps(RUN)[:-1], "units/a.json": "{}"},
        {"config.json": json.dumps([*RUN]), "units/a.json": "{}"},
        {"config.json": json.dumps(RUN), "units": "a file"},
        {"config.json": 100_000 * "[", "units/a.json": "{}"},
    ],
    "train": [
        {"training.safetensors": ""},
        {"training.safetensors": "my own weights, whose first bytes are no size"},
        {"training.safetensors": "\2\0\0\0\0\0\0\0{}"},
        {"training.safetensors/a": ""},
    ],
    "demo": [
        {"demo.json": "{}"},
        {"demo.json": "["},
        {"demo.json": json.dumps([DEMO])},
        {"demo.png": ""},
        {"demo.json/a": ""},
        *({"demo.json": json.dumps({name: DEMO[name] for name in DEMO if name != key})} for key in DEMO),
    ],
}


@pytest.mark.parametrize(
    ("command", "files"), [(command, files) for command, cases in FOREIGN.items() for files in cases]
)
def test_files_of_the_same_names_are_not_taken_for_a_command_s(tmp_path, command, files):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    before = contents(tmp_path)
    told = f"was not created by pursamere {command} and holds {min(before).partition('/')[0]}"
    with pytest.raises(ValueError, match=told), claim(tmp_path, command):
        pass
    assert contents(tmp_path) == before


def test_weights_in_a_file_of_that_name_are_no_training(tmp_path):
    save_file({"weight": torch.zeros(1)}, tmp_path / "training.safetensors", {"progress": "{}"})
    with pytest.raises(ValueError, match=r"holds training\.safetensors"):
        require_own(tmp_path, "train")


def test_a_pipe_of_that_name_does_not_block(tmp_path):
    (tmp_path / "units").mkdir()
    for name, command in {"config.json": "evaluate", "demo.json": "demo", "training.safetensors": "train"}.items():
        os.mkfifo(tmp_path / name)
        with pytest.raises(ValueError, match="was not created by"):
            require_own(tmp_path, command)


def test_what_a_marker_says_goes_before_the_files(tmp_path):
    RunFolder(tmp_path, RUN, ENVIRONMENT)
    (tmp_path / ".pursamere").write_text("train\n")
    with pytest.raises(ValueError, match="was not created by pursamere evaluate"):
        require_own(tmp_path, "evaluate")


def test_units_without_the_configuration_are_not_gone_on_with(tmp_path):
    with claim(tmp_path, "evaluate"):
        RunFolder(tmp_path, {"a": 1}, ENVIRONMENT)
    (tmp_path / "config.json").unlink()
    with pytest.raises(ValueError, match=r"holds a run without its config.json"):
        RunFolder(tmp_path, {"a": 2}, ENVIRONMENT)


@pytest.mark.parametrize(
    "arguments",
    [
        ["purify", "", "-o", "out"],
        ["purify", ".", "-o", ""],
        ["purify", ".", "-o", "out", "--reference", ""],
        ["purify", ".", "-o", "out", "--denoiser", ""],
        *([*arguments, "-o", ""] for arguments in COMMANDS.values()),
        ["train", "denoiser", "-o", "out", "--config", ""],
        ["train", "denoiser", "-o", "out", "--dataset", ""],
        *(["evaluate", "-o", "out", option, ""] for option in ("--data", "--model", "--classifier", "--denoiser")),
    ],
)
def test_an_empty_name_is_a_usage_error_and_not_the_current_folder(tmp_path, monkeypatch, capsys, arguments):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    assert "expected a value, got an empty one" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_an_empty_name_is_refused_by_the_library_too():
    with pytest.raises(ValueError, match="the output folder must have a name"):
        require_writable("")
