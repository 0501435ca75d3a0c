"""The purifier's gradients: time beside the forward pass, and peak memory by the number of steps.

    python benchmarks/bench_gradient.py [--device cuda] [--json FILE]

Every row is a process of its own: one 32x32 color image and a small convolutional network with fixed weights. Memory
is how much the process's peak grew beyond that of a purification of one step, without the images x_t that the exact
gradient keeps.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import torch
from timing import machine
from torch import nn

import pursamere as ps

BATCH, CHANNELS, SIDE, WIDTH, DRAWS = 1, 3, 32, 48, 8
STEPS = (5, 40)
GRADIENTS = ("none", "exact", "straight_through", "unrolled")
REPEATS = 2
SETTINGS = {"sigma": 0.2, "radius": 0.2, "noise": ps.GaussianNoise(draws=DRAWS)}


class Network(nn.Module):
    """Six residual blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = (
            nn.Conv2d(CHANNELS, WIDTH, 3, padding=1),
            nn.Conv2d(WIDTH, CHANNELS, 3, padding=1),
        )
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.GroupNorm(8, WIDTH), nn.SiLU(), nn.Conv2d(WIDTH, WIDTH, 3, padding=1)) for _ in range(6)
        )

    def forward(self, y: torch.Tensor, sigma: float) -> torch.Tensor:
        h = self.first(y)
        for block in self.blocks:
            h = h + block(h)
        return y - sigma * self.last(h)


def peak_bytes(device: torch.device) -> int:
    """The most memory that was in use so far."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def measure(gradient: str, steps: int, device: torch.device) -> dict[str, float]:
    generator = torch.Generator().manual_seed(0)
    network = Network().eval().requires_grad_(False)
    for parameter in network.parameters():
        fan_in = max(1, parameter[0].numel())
        parameter.copy_(torch.randn(parameter.shape, generator=generator) / fan_in**0.5)
    x = torch.rand(BATCH, CHANNELS, SIDE, SIDE, generator=generator).to(device)

    def call(steps: int) -> None:
        purifier = ps.Purifier(network.to(device), steps=steps, micro_batch=BATCH, invariance="off", **SETTINGS)
        if gradient == "none":
            purifier(x)
        else:
            leaf = x.clone().requires_grad_()
            purifier(leaf, gradient=gradient).square().sum().backward()
        if device.type == "cuda":
            torch.cuda.synchronize()

    # What a forward pass of one step needs is there before the measurement: libraries, their workspaces, threads.
    with torch.no_grad():
        ps.Purifier(network.to(device), steps=1, micro_batch=1, **SETTINGS)(x[:1])
    before = peak_bytes(device)
    seconds = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        call(steps)
        seconds.append(time.perf_counter() - start)
    kept = (steps + 1) * x.numel() * x.element_size() if gradient in ("exact", "straight_through") else 0
    return {"seconds": min(seconds), "mib": (peak_bytes(device) - before - kept) / 2**20}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    parser.add_argument("--row", nargs=2, metavar=("GRADIENT", "STEPS"), help="measure one row and print it as JSON")
    arguments = parser.parse_args()
    if arguments.row:
        gradient, steps = arguments.row
        print(json.dumps(measure(gradient, int(steps), torch.device(arguments.device))))
        return
    print(f"{machine(arguments.device)}; {BATCH} image {CHANNELS}x{SIDE}x{SIDE}, {DRAWS} draws")
    print(f"{'gradient':<18}{'steps':>6}{'seconds':>10}{'x forward':>11}{'peak MiB':>10}")
    rows = []
    # Freed memory goes back to the system at once, so that the peak is what was in use.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    for steps in STEPS:
        for gradient in GRADIENTS:
            command = [sys.executable, __file__, "--device", arguments.device, "--row", gradient, str(steps)]
            done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
            row = {"gradient": gradient, "steps": steps, **json.loads(done.stdout)}
            forward = row["seconds"] if gradient == "none" else rows[-GRADIENTS.index(gradient)]["seconds"]
            row["times_forward"] = row["seconds"] / forward
            rows.append(row)
            print(
                f"{gradient:<18}{steps:>6}{row['seconds']:>10.3f}{row['times_forward']:>11.2f}{row['mib']:>10.1f}",
                flush=True,
            )
    peaks = {steps: next(r["mib"] for r in rows if (r["gradient"], r["steps"]) == ("exact", steps)) for steps in STEPS}
    print(f"peak of the exact gradient, {STEPS[1]} steps over {STEPS[0]}: {peaks[STEPS[1]] / peaks[STEPS[0]]:.3f}")
    if arguments.json:
        arguments.json.write_text(json.dumps({"machine": machine(arguments.device), "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
