"""What the compiled module tells of the machine that built it."""

import os
import re
import sys
from importlib.util import find_spec
from pathlib import Path

import pursamere_ext

ROOT = Path(__file__).parent.parent
SOURCE = rb"(?<![\w.])/[\w.+ /-]+\.(?:c|cc|cpp|cu|cuh|h|hpp)\b"


def test_no_absolute_path_of_a_source_file_is_in_the_module():
    binary = Path(pursamere_ext._C.__file__).read_bytes()
    assert b"./csrc/checks.h" in binary  # messages do name source files
    assert re.findall(SOURCE, binary) == []
    for folder in (ROOT, sys.prefix, *find_spec("torch").submodule_search_locations):
        assert os.fsencode(folder) not in binary, folder
