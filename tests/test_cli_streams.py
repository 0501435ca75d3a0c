"""Standard streams that are closed, fail or have few characters, and paths that are no text: the work is done."""

import errno
import io
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from training_case import write_data

from pursamere.cli.progress import progress_bar, say
from pursamere.cli.streams import mend_streams

PROJECT = (Path(__file__).parents[1] / "pyproject.toml").read_text()
MODULE, FUNCTION = re.search(r'^pursamere = "([\w.]+):(\w+)"$', PROJECT, re.MULTILINE).groups()
STARTS = {
    "module": [sys.executable, "-m", "pursamere"],
    "script": [sys.executable, "-c", f"import sys; from {MODULE} import {FUNCTION}; sys.exit({FUNCTION}())"],
}
PURIFY = ["purify", "in", "-o", "out", "--reference", "reference.npz", "--steps", "1", "--draws", "2"]
TRAIN = ["train", "classifier", "--dataset", "sides.npz", "--steps", "2", "--batch-size", "8", "-q"]
DEMO = ["demo", "--samples", "4", "--epochs", "1", "--attack-steps", "1", "-o", "out"]
EVALUATE = ["evaluate", "--samples", "2", "--eps", "0.1", "--option", "direction=score", "--option", "steps=1",
            "--option", "draws=2", "--option", "ascent_radius=0", "-o", "out"]  # fmt: skip
WRITTEN = {
    "purify": (PURIFY, ["b.png", "é.png"]),
    "train": ([*TRAIN, "-o", "out"], ["model.safetensors"]),
    "demo": (DEMO, ["purified/report.html", "undefended/outcomes.csv"]),
    "evaluate": (EVALUATE, ["report.html", "outcomes.csv"]),
}
FULL = pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
ASCII = {"PYTHONIOENCODING": "ascii"}
NO_TEXT = os.fsdecode(b"out\xfe")


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """Work in a folder with a reference of 6x5 gray images, two such inputs and images to train on."""
    monkeypatch.chdir(tmp_path)
    random = np.random.default_rng(0)
    np.savez("reference.npz", images=random.integers(0, 256, (20, 6, 5), dtype=np.uint8))
    for name in ("é.png", "b.png"):
        (tmp_path / "in").mkdir(exist_ok=True)
        Image.fromarray(random.integers(0, 256, (6, 5), dtype=np.uint8)).save(tmp_path / "in" / name)
    write_data(tmp_path)
    return tmp_path


def run(arguments, closing="", start="module", **environment):
    """Run the command with streams closed by a shell, as ``closing`` tells it."""
    return subprocess.run(
        ["sh", "-c", f'exec "$@" {closing}', "sh", *STARTS[start], *arguments],
        capture_output=True, text=True, timeout=300, check=False, env={**os.environ, **environment},
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    ("start", "closing"), [("script", ">&-"), ("script", "2>&-"), ("script", "<&- >&- 2>&-"), ("module", ">&- 2>&-")]
)
def test_closed_streams_change_nothing_of_the_work(folder, closing, start):
    done = run(PURIFY, closing, start)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert done.stdout == ("" if " >&-" in f" {closing}" else "purified 2 of 2 images, 0 failed\n")
    assert sorted(os.listdir("out")) == ["b.png", "é.png"]


@pytest.mark.slow
@pytest.mark.parametrize("closing", [">&-", "2>&-"])
def test_the_exit_code_of_an_error_is_kept_and_the_error_goes_nowhere_else(closing):
    done = run(["purify", "nowhere", "-o", "out"], closing)
    assert done.returncode == 1
    assert (done.stdout, "nowhere does not exist" in done.stderr) == ("", closing == ">&-")
    assert run(["purify"], closing).returncode == 2


@pytest.mark.slow
@FULL
@pytest.mark.parametrize("unbuffered", ["1", ""])
@pytest.mark.parametrize("command", WRITTEN)
def test_a_stdout_that_cannot_be_written_is_named_after_the_work(command, unbuffered):
    arguments, files = WRITTEN[command]
    done = run(arguments, ">/dev/full", PYTHONUNBUFFERED=unbuffered)
    assert done.stderr.splitlines()[-1] == f"pursamere: error: stdout: {os.strerror(errno.ENOSPC)}"
    assert done.returncode == 1
    assert all(os.path.exists(f"out/{file}") for file in files)


@pytest.mark.slow
@FULL
def test_a_stderr_that_cannot_be_written_changes_nothing_of_the_work():
    """Inputs that failed or are skipped are told on stderr."""
    Path("in/a.png").write_bytes(b"no image")
    done = run(PURIFY, "2>/dev/full")
    assert (done.returncode, done.stdout) == (1, "purified 2 of 3 images, 1 failed\n")
    assert sorted(os.listdir("out")) == ["b.png", "é.png"]
    os.remove("out/é.png")
    os.remove("in/a.png")
    done = run(PURIFY, "2>/dev/full")
    assert (done.returncode, done.stdout) == (0, "purified 1 of 2 images, 0 failed, 1 skipped\n")
    assert run(["purify", "nowhere", "-o", "out"], "2>/dev/full").returncode == 1


class FailingTerminal(io.StringIO):
    """A terminal that takes so many writes, over a file that takes the place of its descriptor."""

    def __init__(self, file, writes):
        super().__init__()
        self.file, self.writes = file, writes

    def isatty(self):
        return True

    def fileno(self):
        return self.file.fileno()

    def write(self, text):
        self.writes -= 1
        if self.writes < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return len(text)


@pytest.mark.parametrize("writes", [0, 3])
def test_a_progress_bar_on_a_terminal_that_fails_does_not_stop_the_work(folder, monkeypatch, writes):
    with open(folder / "terminal", "w") as file:
        monkeypatch.setattr(sys, "stderr", FailingTerminal(file, writes))
        done = 0
        with progress_bar(1000, "test", unit="image", quiet=False) as advance:
            for _ in range(1000):
                advance(1)
                say("a line")
                done += 1
        assert sys.stderr.writes < 0
    assert done == 1000


@pytest.mark.parametrize(("rank", "shown"), [(None, True), ("0", True), ("1", False)])
def test_one_of_several_processes_shows_its_progress_bar(folder, monkeypatch, rank, shown):
    monkeypatch.delenv("RANK", raising=False)
    if rank is not None:
        monkeypatch.setenv("RANK", rank)
    with open(folder / "terminal", "w") as file:
        monkeypatch.setattr(sys, "stderr", FailingTerminal(file, 1000))
        with progress_bar(1, "test", unit="image", quiet=False) as advance:
            advance(1)
        assert (sys.stderr.writes < 1000) == shown


@pytest.mark.slow
@pytest.mark.parametrize("start", STARTS)
def test_what_a_terminal_cannot_show_is_escaped(start):
    done = run([*TRAIN, "-o", "é"], start=start, **ASCII)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == r"checkpoint in \xe9"
    assert os.path.exists("é/model.safetensors")


@pytest.mark.slow
def test_a_training_in_a_folder_whose_name_is_no_text_goes_on():
    for _ in range(2):
        done = run([*TRAIN, "-o", NO_TEXT])
        assert done.returncode == 0, done.stderr
        assert done.stdout.splitlines()[-1] == r"checkpoint in out\udcfe"


@pytest.mark.slow
def test_an_evaluation_in_a_folder_whose_name_is_no_text():
    assert run([*TRAIN, "-o", "network"]).returncode == 0
    done = run(
        ["evaluate", "--data", "sides.npz", "--classifier", "network", "--defense", "none", "--samples", "2", "--eps",
         "0.1", "-q", "-o", NO_TEXT],
        **ASCII,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == r"wrote out\udcfe/report.html"
    assert os.path.exists(f"{NO_TEXT}/pictures.png")


@pytest.mark.slow
def test_files_opened_later_do_not_take_the_place_of_a_closed_stream(folder):
    """Otherwise what a library in C prints would end up in the file."""
    program = (
        "import os; from pursamere.cli.streams import mend_streams; mend_streams(); "
        "file = open('result', 'w'); os.write(1, b'from C'); os.write(2, b'from C')"
    )
    subprocess.run(["sh", "-c", 'exec "$@" >&- 2>&-', "sh", sys.executable, "-c", program], timeout=300, check=True)
    assert (folder / "result").read_text() == ""


def test_open_streams_stay_the_same_objects(monkeypatch):
    streams = sys.stdin, sys.stdout, sys.stderr
    mend_streams()
    assert (sys.stdin, sys.stdout, sys.stderr) == streams
