"""Purifying images: the purifier beside the bare network and beside peers' loops, at equally many network passes.

    python benchmarks/bench_purify.py [--network NAME] [--mode MODE] [--direction NAME] [--batch N] [--device cuda]
        [--seconds S] [--no-memory] [--json FILE]

Without options, about ten minutes on two cores. Options that can be repeated choose a part; a MODE is a precision with
"+compile" and "+channels_last", such as bfloat16+compile. The candidates of a case take turns, and times are medians.

- floor: the network's forward passes (and backward passes, for the direction "ere") in a plain loop, in the same mode,
  at the fastest of a short list of batch sizes, and nothing else. Steps follow one another, so a batch has at most one
  row for each image and draw. "floor, full batches" is without that bound.
- peers: ScoreOpt-O and likelihood maximization (forward and backward passes) and DiffPure (forward passes) as their
  authors write them, see benchmarks/peers.py. Always in eager float32.

Memory is what a call with 32 images takes at most beyond what is in use before, in a process of its own.
``purify_report.py`` makes the plot and the section of docs/speed.md from the JSON.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Sequence
from dataclasses import astuple, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch._dynamo
from memory import grown_mib, in_fresh_process
from purify_cases import (
    DIRECTIONS,
    EAGER_FLOAT32,
    FULL,
    SETTINGS,
    Case,
    cases,
    floor_sizes,
    load_network,
    make_candidates,
    make_purifier,
)
from purify_report import row_lines, target_lines
from timing import long_medians, machine

from pursamere._files import write_bytes

BATCHES = (1, 16, 32, 128)
MEMORY_BATCH = 32
COMPILED = ("bfloat16+compile", "bfloat16+compile+channels_last")


def default_cases(device: str) -> list[Case]:
    """Return all networks, directions and batches in eager float32, and one batch in faster modes."""
    eager = cases(list(SETTINGS), [EAGER_FLOAT32], list(DIRECTIONS), list(BATCHES), device)
    return eager + cases(list(SETTINGS), list(COMPILED), list(DIRECTIONS), [32], device)


def measure(case: Case, network: Any, seconds: float, *, memory: bool) -> dict[str, Any]:
    """Return a row of the report."""
    finish = _finish_on(case.device)
    sizes = floor_sizes(case, network, finish)
    purifier = make_purifier(case, network)
    calls = make_candidates(case, network, purifier, sizes)
    taken = long_medians(calls, seconds=seconds, finish=finish)
    if FULL in taken:
        taken[FULL] *= case.batch * purifier.network_passes.forward / sizes[1]
    row = {
        "network": case.network,
        "mode": case.mode,
        "direction": case.direction,
        "batch": case.batch,
        "passes": purifier.network_passes,
        "purifier": purifier.extra_repr(),  # with the micro-batch that it chose
        "floor_rows": sizes,
        "seconds": taken,
        "images_per_second": {name: case.batch / time for name, time in taken.items()},
    }
    if memory:
        part = [__file__, *map(str, astuple(case)), *map(str, sizes)]
        row["mib"] = {name: in_fresh_process(part[0], "--memory-of", *part[1:], name) for name in calls}
    return row


def measure_memory(case: Case, network: Any, sizes: tuple[int, int], candidate: str) -> float:
    """Return in MiB what a call with the batch takes, after a call with one image."""
    purifier = make_purifier(case, network)
    make_candidates(replace(case, batch=1), network, purifier, (1, 2))[candidate]()
    return grown_mib(make_candidates(case, network, purifier, sizes)[candidate], torch.device(case.device))


def run(todo: Sequence[Case], seconds: float, *, memory: bool, target: Path | None) -> None:
    """Measure the cases, print and write the report after every one."""
    report: dict[str, Any] = {
        "device": todo[0].device,
        "machine": machine(todo[0].device),
        "command": shlex.join(["python", "benchmarks/bench_purify.py", *sys.argv[1:]]),
        "rows": [],
    }
    print(report["machine"])
    networks: dict[str, Any] = {}
    for case in todo:
        if case.network not in networks:
            networks[case.network] = load_network(case.network, case.device)
        with_memory = memory and case.batch == MEMORY_BATCH and "compile" not in case.mode
        report["rows"].append(measure(case, networks[case.network], seconds, memory=with_memory))
        print("\n".join(row_lines(report["rows"][-1])), flush=True)
        if target:
            write_bytes(target, (json.dumps(report, indent=1) + "\n").encode(), overwrite=True)
    print("\n".join(target_lines(report["rows"])))


def _finish_on(device: str) -> Any:
    return torch.cuda.synchronize if device == "cuda" else lambda: None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = partial(parser.add_argument, action="append")
    parts("--network", choices=SETTINGS)
    parts("--mode", help=f"default {EAGER_FLOAT32}, and for 32 images {' and '.join(COMPILED)}")
    parts("--direction", choices=DIRECTIONS)
    parts("--batch", type=int, help=f"default {BATCHES}")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--seconds", type=float, default=8.0, help="time for a case after warming up (default 8)")
    parser.add_argument("--no-memory", action="store_true", help="only times")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the report there too, after every case")
    parser.add_argument("--memory-of", nargs=8, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.memory_of:
        network, mode, direction, batch, device, floor, full, candidate = arguments.memory_of
        case = Case(network, mode, direction, int(batch), device)
        print(measure_memory(case, load_network(network, device), (int(floor), int(full)), candidate))
        return
    torch._dynamo.config.recompile_limit = 256  # for the sizes of a network; from the ninth on it would run uncompiled
    if arguments.device == "cuda" and not torch.cuda.is_available():
        parser.error(f"torch {torch.__version__} finds no CUDA device")
    if arguments.network or arguments.mode or arguments.direction or arguments.batch:
        todo = cases(
            arguments.network or list(SETTINGS),
            arguments.mode or [EAGER_FLOAT32],
            arguments.direction or list(DIRECTIONS),
            arguments.batch or list(BATCHES),
            arguments.device,
        )
    else:
        todo = default_cases(arguments.device)
    run(todo, arguments.seconds, memory=not arguments.no_memory, target=arguments.json)


if __name__ == "__main__":
    main()
