"""The CUDA part of bench_ops.py.

Times are the GPU's between events, with the host ahead (see timing.py), over several sets of inputs and results that
together exceed the L2. GB/s are compared with a large device-to-device copy, measured by the same timer in the same
run. For tiny tensors, where the host decides, there is also the time of a call by the host's clock and in a CUDA graph.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from op_cases import Case, candidates, check_agreement, eager, make_inputs, ours, raw_op
from timing import cuda_medians, host_medians, machine

LARGE, TINY = ((8, 512, 3072), (8, 64, 150528)), (4, 1, 64)
COPY_BYTES = 2**30
# A set of the tiny shape is a few kilobytes, and stays in the L2 as it does in use, where the network has just made it.
MOST_SETS = 32
GRAPH_CALLS = 20  # in a graph, so that its launch hardly counts
# At the large shapes, in percent or as times of the others over ours; and microseconds at the tiny one.
COPY_TARGET, COMPILED_TARGET, FRESH_TARGET, HOST_TARGET = 85, 1, 3, 6
EAGER_TARGETS = {
    "perturb": 1,
    "perturb_bank": 1,
    "residual": 4,
    "residual_backward": 2,
    "accumulate_ascend": 3,
    "accumulate_ascend_perturb": 2,
    "accumulate_descend": 3,
    "accumulate_descend_perturb": 2,
}


def set_count(moved_bytes: int, l2_bytes: int, free_bytes: int) -> int:
    """Sets of inputs and results to take turns: four times the L2, if there is the memory."""
    wanted = min(-(-4 * l2_bytes // moved_bytes), MOST_SETS)
    fitting = free_bytes // (4 * moved_bytes)  # a set, its results, and what plain PyTorch makes on the way
    return max(2, min(wanted, fitting))


def cuda_cases(ops: tuple[str, ...]) -> list[Case]:
    found = []
    for shape in LARGE:
        found += [Case(op, *shape) for op in ops]
        found += [Case(op, *shape, kind="score") for op in ops if op == "residual"]
        found += [Case(op, *shape, network=torch.float16) for op in ops]
    return found + [Case(op, *TINY) for op in ops]


def copy_bandwidth(generator: torch.Generator, rounds: int) -> tuple[float, int]:
    """Return the bytes read and written in a second, in units of 10^9, and how many were copied."""
    free, _ = torch.cuda.mem_get_info()
    count = min(COPY_BYTES, free // 8) // 4
    pairs = []
    for _ in range(2):
        source = torch.rand(count, generator=generator, device=generator.device)
        pairs.append((source, torch.empty_like(source)))
    calls = [lambda s=source, t=target: t.copy_(s) for source, target in pairs]
    return 1e-3 * 8 * count / cuda_medians({"copy": calls}, rounds=rounds)["copy"], 4 * count


def measure(case: Case, generator: torch.Generator, rounds: int, copy_gb_per_s: float) -> dict[str, Any]:
    torch.compiler.reset()
    torch.cuda.empty_cache()  # the memory of other shapes
    l2_bytes = torch.cuda.get_device_properties(generator.device).L2_cache_size
    sets = [
        make_inputs(case, generator) for _ in range(set_count(case.moved_bytes, l2_bytes, torch.cuda.mem_get_info()[0]))
    ]
    check_agreement(case, sets[0])
    not_run = {}
    if case.network == torch.float32 and case.kind == "denoised":
        calls, not_run = candidates(case, sets, generator)
    else:
        calls = {"pursamere": [ours(case, inputs) for inputs in sets]}
    times = cuda_medians(calls, rounds=rounds)
    gb_per_s = 1e-3 * case.moved_bytes / times["pursamere"]
    row = {
        "op": case.op,
        "kind": case.kind,
        "network": str(case.network).removeprefix("torch."),
        "draws": case.draws,
        "batch": case.batch,
        "d": case.d,
        "sets": len(sets),
        "gb_per_s": gb_per_s,
        "percent_of_copy": 100 * gb_per_s / copy_gb_per_s,
        "microseconds": times,
        "not_run": not_run,
    }
    row["targets"] = targets(row) if (case.draws, case.batch, case.d) in LARGE else {}
    return row


def targets(row: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """What a row of a large shape should reach, by the heading in the table."""
    times = row["microseconds"]
    wanted = {"% of copy": (row["percent_of_copy"], COPY_TARGET)}
    others = {"eager": EAGER_TARGETS[row["op"]], "compiled": COMPILED_TARGET, "fresh": FRESH_TARGET}
    for name, least in others.items():
        if name in times:
            wanted[f"{name}/ours"] = (times[name] / times["pursamere"], least)
    return {name: {"value": v, "at_least": least, "met": v >= least} for name, (v, least) in wanted.items()}


def cell(value: float | None, target: dict[str, Any] | None, width: int = 15) -> str:
    mark = "" if target is None else " met   " if target["met"] else " MISSED"
    return f"{'' if value is None else f'{value:.2f}{mark}':>{width}}"


def line(row: dict[str, Any]) -> str:
    times, goals = row["microseconds"], row["targets"]
    name = row["op"] + (" (score)" if row["kind"] == "score" else "")
    types = "float32" if row["network"] == "float32" else f"float32, {row['network']}"
    shape = f"{row['draws']}, {row['batch']}, {row['d']}"
    text = f"{name:<28}{types:<18}{shape:<17}{times['pursamere']:9.2f}{row['gb_per_s']:8.0f}"
    text += cell(row["percent_of_copy"], goals.get("% of copy"))
    for other in ("eager", "compiled", "fresh"):
        ratio = times[other] / times["pursamere"] if other in times else None
        text += cell(ratio, goals.get(f"{other}/ours"))
    return text.rstrip()


def replayed(call: Callable[[], object]) -> Callable[[], object]:
    """Return the replay of a graph of GRAPH_CALLS calls, which were made before."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(GRAPH_CALLS):
            call()
    return graph.replay


def measure_host(op: str, generator: torch.Generator, rounds: int) -> dict[str, Any]:
    """Time calls on tiny tensors with the host's share, and in a graph."""
    case = Case(op, *TINY)
    inputs = make_inputs(case, generator)
    function, arguments = eager(case, inputs)
    calls = {"public": ours(case, inputs), "raw": raw_op(case, inputs), "eager": lambda: function(*arguments)}
    times = host_medians(calls, rounds=rounds, contexts={"raw": torch._C._AutoDispatchBelowAutograd})
    times["graph"] = cuda_medians({"graph": [replayed(calls["public"])]}, rounds=rounds)["graph"] / GRAPH_CALLS
    goals = {n: {"value": times[n], "below": HOST_TARGET, "met": times[n] < HOST_TARGET} for n in ("public", "raw")}
    return {"op": op, "microseconds": times, "targets": goals}


def run_on_cuda(ops: tuple[str, ...], rounds: int, write: Callable[[dict[str, Any]], None]) -> None:
    device = torch.device("cuda", torch.cuda.current_device())
    generator = torch.Generator(device).manual_seed(0)
    copy, copied = copy_bandwidth(generator, rounds)
    print(f"{machine('cuda')}; times in microseconds")
    print(f"copy on the device: {copy:.0f} GB/s read and written, {copied / 2**30:.2f} GiB copied")
    report: dict[str, Any] = {
        "machine": machine("cuda"),
        "copy_gb_per_s": copy,
        "copied_bytes": copied,
        "rows": [],
        "host": [],
    }
    headings = "".join(f"{h:>15}" for h in ("% of copy", "eager/ours", "compiled/ours", "fresh/ours"))
    print("one call on {}, {}, {}: by the host's clock, and in a CUDA graph".format(*TINY))
    print(f"{'op':<28}{'public':>15}{'raw op':>15}{'eager':>15}{'graph':>15}")
    for op in ops:
        row = measure_host(op, generator, rounds)
        report["host"].append(row)
        cells = (cell(row["microseconds"][n], row["targets"].get(n)) for n in ("public", "raw", "eager", "graph"))
        print(f"{op:<28}{''.join(cells)}", flush=True)
        write(report)
    print(f"\n{'op':<28}{'types':<18}{'K, B, d':<17}{'ours':>9}{'GB/s':>8}{headings}")
    for case in cuda_cases(ops):
        report["rows"].append(measure(case, generator, rounds, copy))
        print(line(report["rows"][-1]), flush=True)
        for other, reason in report["rows"][-1]["not_run"].items():
            print(f"    {other} was not run: {reason}", flush=True)
        write(report)
    print(f"\n{verdict(report)}")


def verdict(report: dict[str, Any]) -> str:
    goals = [target for row in report["rows"] + report["host"] for target in row["targets"].values()]
    return f"targets: {sum(t['met'] for t in goals)} of {len(goals)} met"
