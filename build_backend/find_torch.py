"""Finds a torch to build against: its folder and version, separated by a semicolon.

Any torch 2.11 or newer will do, whatever Python it belongs to, since only its stable ABI is used. So the Pythons of
PATH are asked too: uv and build run a build in an environment of their own and put that first on PATH.
"""

import os
import re
import shutil
import subprocess
import sys

OLDEST = "2.11"
LONGEST = 120  # seconds for a Python to answer
ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

_FIND = """
from importlib.metadata import version
from importlib.util import find_spec
print(find_spec('torch').submodule_search_locations[0], version('torch'), sep=';')
"""


def find_torch():
    """Return the first of ``candidates`` that is recent enough. LookupError: there is none."""
    too_old = []
    for found in candidates():
        folder, version = found.rsplit(";", 1)
        if [int(number) for number in re.findall(r"\d+", version)[:2]] >= [int(part) for part in OLDEST.split(".")]:
            return found
        too_old.append(f"torch {version} in {folder} is too old")
    found = "; ".join(too_old) or f"{sys.executable} has no torch, nor has any python3 on PATH"
    raise LookupError(f"{found}: install torch {OLDEST} or newer")


def candidates():
    """Yield folder and version of every torch that there is, the most fitting first."""
    # pip hides the caller's site-packages from an isolated build through PYTHONPATH, which -E ignores.
    commands = [[sys.executable], [sys.executable, "-E"]]
    # The last is that of uv, which need not be activated.
    for folder in [*os.get_exec_path(), os.path.join(ROOT, ".venv", "bin")]:
        python = shutil.which("python3", path=folder)
        if python:
            commands.append([os.path.abspath(python), "-E"])  # as it is started from another folder
    for command in commands:
        found = ask(command)
        if found:
            yield found


def ask(command):
    """Return folder and version of the torch of a Python. None: it has none, or is broken."""
    try:
        # From the root, because -c puts the working directory on sys.path.
        done = subprocess.run(
            [*command, "-c", _FIND], cwd=os.path.abspath(os.sep), capture_output=True, text=True, timeout=LONGEST
        )
    except (OSError, ValueError, subprocess.TimeoutExpired):  # ValueError: what it prints is no text
        return None
    lines = done.stdout.splitlines()
    return lines[-1] if done.returncode == 0 and lines and lines[-1].count(";") == 1 else None


if __name__ == "__main__":
    try:
        print(find_torch())
    except LookupError as error:
        sys.exit(str(error))
