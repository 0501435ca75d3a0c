"""Every op against eager PyTorch, torch.compile and a plain copy of K * B * d values, float32, in one process.

    python benchmarks/bench_ops.py [--rounds N] [--op NAME] [--json FILE]

Times are medians in microseconds; GB/s counts the bytes that an op must move (inputs read once, outputs written once).
`perturb` has two eager competitors: the noise kept as a bank, and fresh torch.randn as other purifiers draw it. What an
op gains says little about a purifier, most of whose time is its network's. With glibc, freed memory is kept in the
process, as caching allocators do: otherwise fresh pages for the results cost more than any op, and all look alike.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import platform
from collections.abc import Callable
from pathlib import Path

import torch
from timing import medians
from torch import Tensor

import pursamere as ps
from pursamere import functional

SHAPES = [(8, 64, 3072), (16, 8, 150528), (4, 1, 64)]
SIGMA, ASCENT_RADIUS, STEP_SIZE, RADIUS = 0.2, 0.05, 0.16, 0.1
OPS = ("perturb", "residual", "accumulate_ascend", "accumulate_descend")


def add_bank(x: Tensor, bank: Tensor) -> Tensor:
    return torch.add(x, bank, alpha=SIGMA)


def add_fresh(x: Tensor, bank: Tensor) -> Tensor:
    return x + SIGMA * torch.randn(bank.shape[0], *x.shape)


def residual(x: Tensor, prediction: Tensor) -> tuple[Tensor, ...]:
    draws = prediction.shape[0]
    r = x - prediction
    return r * (-2 / draws), r.sum(0) * (2 / draws), r.square().sum(dim=(0, 2)) / draws


def ascend(x: Tensor, per_draw: Tensor, direct: Tensor) -> tuple[Tensor, ...]:
    gradient = direct + per_draw.sum(0)
    norm = torch.linalg.vector_norm(gradient, dim=1)
    return x + ASCENT_RADIUS * gradient / norm[:, None], norm


def descend(x: Tensor, start: Tensor, per_draw: Tensor, direct: Tensor) -> Tensor:
    gradient = direct + per_draw.sum(0)
    moved = x - STEP_SIZE * gradient / torch.linalg.vector_norm(gradient, dim=1, keepdim=True)
    return torch.minimum(torch.maximum(moved, start - RADIUS), start + RADIUS).clamp(0, 1)


def cases(op: str, draws: int, batch: int, d: int) -> tuple[int, dict[str, Callable[[], object]]]:
    """The values that ``op`` must move, and the candidates."""
    generator = torch.Generator().manual_seed(0)
    x, start, direct = torch.rand(3, batch, d, generator=generator)
    per_draw = torch.rand(draws, batch, d, generator=generator)
    noise = ps.GaussianNoise(draws=draws)
    bank = noise.sample((1, d))
    n = batch * d
    options = {"step": "unit", "step_size": STEP_SIZE, "norm": "linf", "radius": RADIUS}
    ours: Callable[[], object]
    if op == "perturb":
        values, ours, plain, inputs = n + draws * n, lambda: functional.perturb(x, SIGMA, noise), add_bank, (x, bank)
    elif op == "residual":
        values, plain, inputs = n + draws * n + draws * n + n + batch, residual, (x, per_draw)

        def ours():
            return functional.residual(x, per_draw, SIGMA, noise)
    elif op == "accumulate_ascend":
        values, plain, inputs = draws * n + 3 * n + batch, ascend, (x, per_draw, direct)

        def ours():
            return functional.accumulate_ascend(x, per_draw, direct, ASCENT_RADIUS)
    else:
        values, plain, inputs = draws * n + 4 * n, descend, (x, start, per_draw, direct)

        def ours():
            return functional.accumulate_descend(x, start, per_draw, direct, **options)

    compiled = torch.compile(plain, fullgraph=True)
    target = torch.empty_like(per_draw)
    candidates = {
        "pursamere": ours,
        "eager": lambda: plain(*inputs),
        "compiled": lambda: compiled(*inputs),
        "copy": lambda: target.copy_(per_draw),
    }
    if op == "perturb":
        candidates["fresh"] = lambda: add_fresh(*inputs)
    return values, candidates


def keep_freed_memory() -> None:
    """Tell glibc's malloc not to hand memory back to the system; elsewhere do nothing."""
    trim_threshold, mmap_max = -1, -4  # malloc.h
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(mmap_max, 0)
        mallopt(trim_threshold, -1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=51, help="measurements of each candidate (default 51)")
    parser.add_argument("--op", choices=OPS, help="only this op")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    arguments = parser.parse_args()
    keep_freed_memory()
    machine = f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    print(f"float32, {machine}; times in microseconds")
    print(
        f"{'op':<19}{'K, B, d':<17}{'ours':>9}{'GB/s':>7}{'eager':>10}{'compiled':>10}{'fresh':>10}{'copy':>9}", end=""
    )
    print("  eager/ours compiled/ours fresh/ours")
    rows = []
    for draws, batch, d in SHAPES:
        for op in (arguments.op,) if arguments.op else OPS:
            torch.compiler.reset()
            values, candidates = cases(op, draws, batch, d)
            with torch.no_grad():
                times = medians(candidates, rounds=arguments.rounds)
            ours = times["pursamere"]
            rows.append(
                {
                    "op": op,
                    "draws": draws,
                    "batch": batch,
                    "d": d,
                    "gb_per_s": 4e-3 * values / ours,
                    "microseconds": times,
                }
            )
            ratios = [f"{times[name] / ours:.2f}" if name in times else "" for name in ("eager", "compiled", "fresh")]
            print(
                f"{op:<19}{f'{draws}, {batch}, {d}':<17}{ours:9.1f}{4e-3 * values / ours:7.1f}{times['eager']:10.1f}"
                f"{times['compiled']:10.1f}{times.get('fresh', float('nan')):10.1f}{times['copy']:9.1f}"
                f"{ratios[0]:>12}{ratios[1]:>14}{ratios[2]:>11}".replace("nan", "   "),
                flush=True,
            )
    if arguments.json:
        arguments.json.write_text(json.dumps({"machine": machine, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
