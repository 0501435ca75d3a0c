"""Every op against eager PyTorch, torch.compile and a plain copy of K * B * d values, float32, in one process.

    python benchmarks/bench_ops.py [--device cuda] [--rounds N] [--op NAME] [--json FILE]

Times are medians in microseconds; GB/s counts the bytes that an op must move (inputs read once, outputs written once).
`perturb` has two eager competitors: the noise kept as a bank, and fresh torch.randn as other purifiers draw it. What an
op gains says little about a purifier, most of whose time is its network's. With glibc, freed memory is kept in the
process, as caching allocators do: otherwise fresh pages for the results cost more than any op, and all look alike.

On CUDA there are also images in float32 beside a network in float16, a score's residual, and targets: each figure that
has one is followed by "met" or "MISSED". See benchmarks/ops_on_cuda.py.
"""

from __future__ import annotations

import argparse
import ctypes
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from op_cases import OPS, Case, candidates, check_agreement, make_inputs
from ops_on_cuda import run_on_cuda
from timing import machine, medians

from pursamere._files import write_bytes

SHAPES = [(8, 64, 3072), (16, 8, 150528), (4, 1, 64)]


def keep_freed_memory() -> None:
    """Tell glibc's malloc not to hand memory back to the system; elsewhere do nothing."""
    trim_threshold, mmap_max = -1, -4  # malloc.h
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(mmap_max, 0)
        mallopt(trim_threshold, -1)


def measure(case: Case, rounds: int) -> tuple[dict[str, float], dict[str, str]]:
    """Return the times, and the reasons why candidates were not run."""
    generator = torch.Generator().manual_seed(0)
    inputs = make_inputs(case, generator)
    check_agreement(case, inputs)
    found, not_run = candidates(case, [inputs], generator)
    calls = {name: only for name, (only,) in found.items()}
    target = torch.empty_like(inputs.per_draw)
    calls["copy"] = lambda: target.copy_(inputs.per_draw)
    return medians(calls, rounds=rounds), not_run


def run_on_cpu(ops: tuple[str, ...], rounds: int, write: Callable[[dict[str, Any]], None]) -> None:
    keep_freed_memory()
    print(f"float32, {machine('cpu')}; times in microseconds")
    print(
        f"{'op':<28}{'K, B, d':<17}{'ours':>9}{'GB/s':>7}{'eager':>10}{'compiled':>10}{'fresh':>10}{'copy':>9}", end=""
    )
    print("  eager/ours compiled/ours fresh/ours")
    rows = []
    for draws, batch, d in SHAPES:
        for op in ops:
            torch.compiler.reset()
            case = Case(op, draws, batch, d)
            times, not_run = measure(case, rounds)
            ours = times["pursamere"]
            gb_per_s = 1e-3 * case.moved_bytes / ours
            row = {"op": op, "draws": draws, "batch": batch, "d": d, "gb_per_s": gb_per_s, "microseconds": times}
            rows.append(row | ({"not_run": not_run} if not_run else {}))
            ratios = [f"{times[name] / ours:.2f}" if name in times else "" for name in ("eager", "compiled", "fresh")]
            shown = {name: times.get(name, float("nan")) for name in ("eager", "compiled", "fresh", "copy")}
            print(
                f"{op:<28}{f'{draws}, {batch}, {d}':<17}{ours:9.1f}{gb_per_s:7.1f}{shown['eager']:10.1f}"
                f"{shown['compiled']:10.1f}{shown['fresh']:10.1f}{shown['copy']:9.1f}"
                f"{ratios[0]:>12}{ratios[1]:>14}{ratios[2]:>11}".replace("nan", "   "),
                flush=True,
            )
            for name, reason in not_run.items():
                print(f"    {name} was not run: {reason}", flush=True)
            write({"machine": machine("cpu"), "rows": rows})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where to run (default cpu)")
    parser.add_argument("--rounds", type=int, default=51, help="measurements of each candidate (default 51)")
    parser.add_argument("--op", choices=OPS, help="only this op")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too, after every row")
    arguments = parser.parse_args()
    if arguments.device == "cuda" and not torch.cuda.is_available():
        parser.error(f"torch {torch.__version__} finds no CUDA device")

    def write(report: dict[str, Any]) -> None:
        if arguments.json:
            write_bytes(arguments.json, (json.dumps(report, indent=1) + "\n").encode(), overwrite=True)

    run = run_on_cuda if arguments.device == "cuda" else run_on_cpu
    with torch.no_grad():
        run((arguments.op,) if arguments.op else OPS, arguments.rounds, write)


if __name__ == "__main__":
    main()
