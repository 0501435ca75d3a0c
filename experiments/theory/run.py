"""Compute and draw what docs/mathematics.md shows: NAME.png, NAME.svg and NAME.json for every name.

python experiments/theory/run.py [NAME ...] -o FOLDER
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import contraction
import draws
import expansion
import figure1
import mode_recovery
import sharpness
from output import rounded, write

from pursamere._threads import cpu_threads

# Each has compute(...), whose arguments say at which size and whose result goes into the JSON file, and draw(numbers).
FIGURES = {
    "figure1": figure1,
    "expansion": expansion,
    "mode_recovery": mode_recovery,
    "sharpness": sharpness,
    "compression": contraction,
    "draws": draws,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"one or more of {', '.join(FIGURES)}; default: all")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FOLDER", help="created if missing")
    arguments = parser.parse_args()
    unknown = [name for name in arguments.names if name not in FIGURES]
    if unknown:
        parser.error(f"unknown name {unknown[0]!r}, expected one of {', '.join(FIGURES)}")
    for name in arguments.names or FIGURES:
        start = time.perf_counter()
        with cpu_threads(1):  # the last bits of sums in PyTorch's operations may depend on the number of threads
            numbers = rounded(FIGURES[name].compute())
        write(arguments.output, name, numbers, FIGURES[name].draw(numbers))
        print(f"{name}: {time.perf_counter() - start:.0f} s", flush=True)


if __name__ == "__main__":
    main()
