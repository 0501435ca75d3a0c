"""The build finds the caller's torch from an environment of its own, in which uv and build run it."""

import os
import shutil
import subprocess
import sys
import venv
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import pytest

FIND = Path(__file__).parent.parent / "build_backend" / "find_torch.py"
TORCH = Path(find_spec("torch").submodule_search_locations[0])
CALLER = Path(sys.executable).parent


@pytest.fixture
def script(tmp_path):
    """The finder in a source folder without .venv."""
    folder = tmp_path / "source" / "build_backend"
    folder.mkdir(parents=True)
    return shutil.copy(FIND, folder)


@pytest.fixture(scope="module")
def isolated(tmp_path_factory):
    """The Python of an environment without any package."""
    folder = tmp_path_factory.mktemp("isolated")
    venv.create(folder, symlinks=True)
    return folder / "bin" / "python3"


def find(python, script, path=(), **environment):
    environment["PATH"] = os.pathsep.join(map(str, path))
    return subprocess.run([python, script], capture_output=True, text=True, env=environment)


def assert_finds_this_torch(done):
    assert (done.returncode, done.stdout) == (0, f"{TORCH};{version('torch')}\n"), done.stderr


def fake_torch(folder, version):
    """A folder for PYTHONPATH with a torch of that version, as far as the finder looks."""
    (folder / "torch").mkdir(parents=True)
    (folder / "torch" / "__init__.py").touch()
    metadata = folder / f"torch-{version}.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: torch\nVersion: {version}\n")
    return str(folder)


def test_in_the_environment_itself(script):
    assert_finds_this_torch(find(Path(sys.executable), script))


def test_through_the_python_that_comes_next_on_path(isolated, script):
    assert_finds_this_torch(find(isolated, script, [isolated.parent, CALLER]))


def test_through_the_environment_of_the_source_folder(isolated, script):
    link = Path(script).parent.parent / ".venv" / "bin"
    link.mkdir(parents=True)
    # A script rather than a link, by which a Python would not find its packages.
    (link / "python3").write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    (link / "python3").chmod(0o755)
    assert_finds_this_torch(find(isolated, script))


@pytest.mark.parametrize(
    "content",
    [b"#!/bin/sh\n", b"#!/bin/sh\necho torch\n", b"#!/bin/sh\necho 'a;b;9.9'\n", b"#!/bin/sh\nprintf '\\377;9.9\\n'\n",
     b"#!/bin/sh\nexit 1\n", b"#!/nowhere\n", b"\x7fELF", b""],
    ids=["silent", "no version", "two semicolons", "no text", "fails", "no interpreter", "no program", "empty"],
)  # fmt: skip
def test_a_broken_python_on_path_is_passed_over(isolated, script, tmp_path, content):
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "python3").write_bytes(content)
    (tmp_path / "broken" / "python3").chmod(0o755)
    assert_finds_this_torch(find(isolated, script, [tmp_path / "broken", CALLER]))
    done = find(isolated, script, [tmp_path / "broken"])
    assert done.stderr == f"{isolated} has no torch, nor has any python3 on PATH: install torch 2.11 or newer\n"


def test_a_python_that_does_not_answer_is_passed_over(isolated, script, tmp_path):
    (tmp_path / "slow").mkdir()
    (tmp_path / "slow" / "python3").write_text("#!/bin/sh\nexec sleep 1000\n")
    (tmp_path / "slow" / "python3").chmod(0o755)
    shortened = Path(script).read_text().replace("LONGEST = 120", "LONGEST = 5")
    Path(script).write_text(shortened)
    assert_finds_this_torch(find(isolated, script, [tmp_path / "slow", CALLER, "/bin", "/usr/bin"]))


def test_a_relative_folder_on_path(isolated, script, tmp_path, monkeypatch):
    """The Pythons are started from another folder."""
    monkeypatch.chdir(tmp_path)
    assert_finds_this_torch(find(isolated, script, [os.path.relpath(CALLER)]))


def test_on_pythonpath(isolated, script):
    assert_finds_this_torch(find(isolated, script, PYTHONPATH=str(TORCH.parent)))


def test_behind_pips_pythonpath(script, tmp_path):
    """pip's isolation puts a sitecustomize on PYTHONPATH that hides what the environment has."""
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.path[:] = [p for p in sys.path if 'site-' not in p]\n")
    assert_finds_this_torch(find(Path(sys.executable), script, PYTHONPATH=str(tmp_path)))


def test_none(isolated, script):
    done = find(isolated, script)
    assert done.returncode != 0
    assert done.stderr == f"{isolated} has no torch, nor has any python3 on PATH: install torch 2.11 or newer\n"


@pytest.mark.parametrize("version", ["2.9.1", "2.10.0+cu128", "1.13"])
def test_one_that_is_too_old_is_passed_over_or_named(isolated, script, tmp_path, version):
    old = fake_torch(tmp_path / "old", version)
    done = find(isolated, script, PYTHONPATH=old)
    assert done.returncode != 0
    assert done.stderr == f"torch {version} in {old}/torch is too old: install torch 2.11 or newer\n"
    assert_finds_this_torch(find(isolated, script, [isolated.parent, CALLER], PYTHONPATH=old))


@pytest.mark.parametrize("version", ["2.11.0", "2.12.0a0+git123", "2.100", "3.0"])
def test_newer_ones_suffice(isolated, script, tmp_path, version):
    done = find(isolated, script, PYTHONPATH=fake_torch(tmp_path / "new", version))
    assert done.stdout == f"{tmp_path}/new/torch;{version}\n", done.stderr
