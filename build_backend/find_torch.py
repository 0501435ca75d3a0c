"""Finds a torch to build against, and prints its folder and version, separated by a semicolon.

Only torch's stable ABI is used, so any torch 2.11 or newer will do, of any Python. uv and build run builds in an
isolated environment at the front of PATH, so the other Pythons on PATH are searched too.
"""

import os
import re
import shutil
import subprocess
import sys

OLDEST = "2.11"
LONGEST = 120  # timeout per Python, in seconds
ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

_FIND = """
from importlib.metadata import version
from importlib.util import find_spec
print(find_spec('torch').submodule_search_locations[0], version('torch'), sep=';')
"""


def find_torch():
    """Return the first of ``candidates`` that is recent enough, or raise LookupError."""
    too_old = []
    for found in candidates():
        folder, version = found.rsplit(";", 1)
        if [int(number) for number in re.findall(r"\d+", version)[:2]] >= [int(part) for part in OLDEST.split(".")]:
            return found
        too_old.append(f"torch {version} in {folder} is too old")
    found = "; ".join(too_old) or f"{sys.executable} has no torch, nor has any python3 on PATH"
    raise LookupError(f"{found}: install torch {OLDEST} or newer")


def candidates():
    """Yield folder and version of every torch found, in order of preference."""
    # pip hides the caller's site-packages from an isolated build through PYTHONPATH, which -E ignores.
    commands = [[sys.executable], [sys.executable, "-E"]]
    # .venv is used by uv without activation.
    for folder in [*os.get_exec_path(), os.path.join(ROOT, ".venv", "bin")]:
        python = shutil.which("python3", path=folder)
        if python:
            commands.append([os.path.abspath(python), "-E"])  # absolute, since the working directory changes
    for command in commands:
        found = ask(command)
        if found:
            yield found


def ask(command):
    """Return folder and version of a Python's torch, or None if it has none or fails."""
    try:
        # Run from the root, because -c puts the working directory on sys.path.
        done = subprocess.run(
            [*command, "-c", _FIND], cwd=os.path.abspath(os.sep), capture_output=True, text=True, timeout=LONGEST
        )
    except (OSError, ValueError, subprocess.TimeoutExpired):  # ValueError: its output is not text
        return None
    lines = done.stdout.splitlines()
    return lines[-1] if done.returncode == 0 and lines and lines[-1].count(";") == 1 else None


if __name__ == "__main__":
    try:
        print(find_torch())
    except LookupError as error:
        sys.exit(str(error))
