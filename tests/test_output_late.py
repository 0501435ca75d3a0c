"""Outputs that can't be written: found before the work, named, and what is done by then is kept."""

import errno
import json
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from training_case import settings_of, write_data

from pursamere._files import write_bytes
from pursamere._output import claim, require_writable
from pursamere.cli import main, purify
from pursamere.training import Watcher, train
from pursamere.training import run as training_run

WORK = {
    "purify": ["purify", "in", "--reference", "reference.npz", "--steps", "1", "--draws", "2", "--batch-size", "1"],
    "train": ["train", "classifier", "-q", "--steps", "1"],
    "evaluate": ["evaluate", "-q", "--samples", "1", "--eps", "0.1", "--defense", "none"],
    "demo": ["demo", "-q", "--samples", "1", "--attack-steps", "1", "--epochs", "1"],
}


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """Work in a folder with a reference of 6x5 gray images and three inputs, one in a subfolder."""
    monkeypatch.chdir(tmp_path)
    random = np.random.default_rng(0)
    np.savez("reference.npz", images=random.integers(0, 256, (20, 6, 5), dtype=np.uint8))
    for name in ("a.png", "b.png", "sub/c.png"):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (6, 5), dtype=np.uint8)).save(f"in/{name}")
    (tmp_path / "notes.txt").write_text("precious")
    (tmp_path / "dangling").symlink_to("nowhere")
    return tmp_path


@pytest.fixture
def no_work(monkeypatch):
    """Reading the data is work already."""

    def unexpected(*_, **__):
        raise AssertionError("work before OUTPUT was checked")

    monkeypatch.setattr(training_run, "load_data", unexpected)
    monkeypatch.setattr("pursamere.datasets.load", unexpected)
    monkeypatch.setattr("pursamere.pretrained.digits.make_denoiser", unexpected)
    monkeypatch.setattr(purify, "build_denoiser", unexpected)


@pytest.mark.parametrize("command", WORK)
@pytest.mark.parametrize(
    ("output", "why"),
    [
        ("notes.txt", "notes.txt is "),
        ("notes.txt/sub/sub", "notes.txt is not a folder"),
        ("dangling", "dangling is a broken link"),
        ("dangling/sub", "dangling is a broken link"),
    ],
)
def test_an_output_that_is_no_folder_is_found_before_the_work(folder, no_work, capsys, command, output, why):
    assert main([*WORK[command], "-o", output]) == 1
    error = capsys.readouterr().err
    assert output in error
    assert why in error
    assert len(error.splitlines()) == 1
    assert (folder / "notes.txt").read_text() == "precious"
    assert not (folder / "nowhere").exists()


def test_a_folder_without_permission_is_refused(folder, monkeypatch):
    """Whoever runs the tests as root may write everywhere, so what the system says is replaced."""
    (folder / "closed").mkdir()
    asked = []

    def access(path, mode):
        asked.append((str(path), mode))
        return False

    monkeypatch.setattr(os, "access", access)
    with pytest.raises(PermissionError, match=r"cannot write into closed/new/sub: closed is not writable"):
        require_writable("closed/new/sub")
    assert asked == [("closed", os.W_OK | os.X_OK)]


@pytest.mark.slow
def test_a_read_only_output_of_purify(folder):
    drop = shutil.which("setpriv")
    if os.getuid() == 0 and drop is None:
        pytest.skip("root may write everywhere, and there is no setpriv to change that")
    (folder / "closed").mkdir()
    (folder / "closed").chmod(stat.S_IRUSR | stat.S_IXUSR)
    unprivileged = [drop, "--bounding-set=-dac_override", "--inh-caps=-dac_override"] if os.getuid() == 0 else []
    done = subprocess.run(
        [*unprivileged, sys.executable, "-m", "pursamere", *WORK["purify"], "-o", "closed/out"],
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    told = "pursamere: error: OUTPUT: cannot write into closed/out: closed is not writable\n"
    assert (done.returncode, done.stdout, done.stderr) == (1, "", told)


@pytest.mark.parametrize(
    ("obstacle", "reason"),
    [
        ("out/sub", "not done: cannot write into out/sub: out/sub is not a folder"),
        ("out/sub/c.png/file", "not done: out/sub/c.png is a folder"),
    ],
)
def test_a_single_output_that_is_in_the_way_is_named_and_its_image_not_purified(
    folder, monkeypatch, capsys, obstacle, reason
):
    (folder / obstacle).parent.mkdir(parents=True)
    (folder / obstacle).write_text("precious")
    read = []
    real = purify.read_image
    monkeypatch.setattr(purify, "read_image", lambda path, size: (read.append(str(path)), real(path, size))[1])
    assert main([*WORK["purify"], "-o", "out", "--overwrite"]) == 1
    captured = capsys.readouterr()
    assert captured.err == f"pursamere: failed: in/sub/c.png: {reason}\n"
    assert captured.out == "purified 2 of 3 images, 1 failed\n"
    assert read == ["in/a.png", "in/b.png"]
    assert (folder / obstacle).read_text() == "precious"


def fill_disk(monkeypatch, after):
    """Let the disk be full once so many files have been written."""
    written = []
    real = os.fsync

    def fsync(descriptor):
        if len(written) == after:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written.append(descriptor)
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)


def test_purify_stops_on_a_full_disk(folder, monkeypatch, capsys):
    calls = []
    real = purify.read_image
    monkeypatch.setattr(purify, "read_image", lambda path, size: (calls.append(str(path)), real(path, size))[1])
    fill_disk(monkeypatch, after=1)
    assert main([*WORK["purify"], "-o", "out"]) == 1
    assert capsys.readouterr().err == "pursamere: error: cannot write out/b.png: No space left on device\n"
    assert calls == ["in/a.png", "in/b.png"]
    assert [path.name for path in (folder / "out").iterdir()] == ["a.png"]


def test_a_training_on_a_full_disk_goes_on_from_what_was_saved(folder, monkeypatch, capsys):
    monkeypatch.setattr(training_run, "_write_pictures", lambda *_: None)
    settings = settings_of("classifier", write_data(folder))  # eight steps, the state is saved after three and six
    (folder / "settings.json").write_text(json.dumps(settings.to_json()))
    with monkeypatch.context() as patch:
        fill_disk(patch, after=1)
        assert main(["train", "classifier", "--config", "settings.json", "-q", "-o", "out"]) == 1
    assert capsys.readouterr().err == "pursamere: error: out/training.safetensors: No space left on device\n"
    done = []
    train(settings, folder / "out", watcher=Watcher(done.append))
    assert done == [3, 1, 1, 1, 1, 1]


@pytest.mark.parametrize("command", ["train", "evaluate", "demo"])
@pytest.mark.parametrize(
    ("call", "named"), [("mkdir", "out"), ("open", "out/.pursamere"), ("ftruncate", "out/.pursamere"),
                        ("pwrite", "out/.pursamere"), ("pread", "out/.pursamere")]
)  # fmt: skip
def test_a_disk_that_is_full_from_the_start_is_told_of_by_name(folder, monkeypatch, call, named, command):
    """Each call fails as the system's does, without a name."""
    if call == "ftruncate":  # of the marker of another command
        (folder / "out").mkdir()
        (folder / "out" / ".pursamere").write_text({"train": "demo\n"}.get(command, "train\n"))

    def fail(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, call, fail)
        with pytest.raises(OSError, match="No space left on device") as error, claim(Path("out"), command):
            pass
    assert (error.value.errno, error.value.filename) == (errno.ENOSPC, named)
    with claim(Path("out"), command):  # once there is space
        pass


def test_a_failed_write_names_the_file(folder, monkeypatch):
    fill_disk(monkeypatch, after=0)
    with pytest.raises(OSError, match=r"No space left on device: 'result'"):
        write_bytes(Path("result"), b"1", overwrite=True)
    with pytest.raises(FileNotFoundError, match=r"No such file or directory: 'none/result'"):
        write_bytes(Path("none/result"), b"1", overwrite=True)
