"""The purifier's gradients: time beside the purification, and peak memory by the number of steps.

    python benchmarks/bench_gradient.py [--device cuda] [--seconds S] [--json FILE]

Times are medians of a purification, of it with each gradient, and of the passes that the exact gradient makes through
the network, in a plain loop: those of the purification, then each again with a graph, and back through it. They take
turns: one 32x32 color image with a small convolutional network with fixed weights, and eight images with MNIST's
network. Memory is how much a process of its own takes at most beyond what is in use after a purification of one step,
without the images x_t that the exact gradient keeps.
"""

from __future__ import annotations

import argparse
import json
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from memory import grown_mib, in_fresh_process
from targets import Target
from timing import long_medians, machine
from torch import nn

import pursamere as ps
from pursamere.pretrained import make_purifier

CHANNELS, SIDE, WIDTH, DRAWS = 3, 32, 48, 8
STEPS = (5, 40)
GRADIENTS = ("none", "exact", "straight_through", "unrolled")
ALONE = "network alone"
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


class Case(NamedTuple):
    name: str
    purifier: ps.Purifier
    images: torch.Tensor

    def call(self, gradient: str, finish: Any = lambda: None) -> None:
        if gradient == "none":
            self.purifier(self.images)
        else:
            leaf = self.images.clone().requires_grad_()
            self.purifier(leaf, gradient=gradient).square().sum().backward()
        finish()

    def run_network_alone(self, finish: Any = lambda: None) -> None:
        denoiser, sigma, passes = self.purifier.denoiser, self.purifier.sigma, self.purifier.network_passes
        draws = self.purifier.noise.draws
        y = self.images.repeat(draws, 1, 1, 1).requires_grad_()
        for with_graph in (False, True):
            for _ in range(passes.forward // draws):
                with torch.set_grad_enabled(with_graph or passes.backward > 0):
                    result = denoiser(y, sigma)
                if passes.backward:
                    (result,) = torch.autograd.grad(result, y, result.detach(), create_graph=with_graph)
                if with_graph:
                    torch.autograd.grad(result, y, result.detach())
        finish()


def convolutional(steps: int, device: torch.device, **settings: Any) -> Case:
    """One image and the small network."""
    generator = torch.Generator().manual_seed(0)
    network = Network().eval().requires_grad_(False)
    for parameter in network.parameters():
        fan_in = max(1, parameter[0].numel())
        parameter.copy_(torch.randn(parameter.shape, generator=generator) / fan_in**0.5)
    purifier = ps.Purifier(network.to(device), steps=steps, **SETTINGS, **settings)
    images = torch.rand(1, CHANNELS, SIDE, SIDE, generator=generator).to(device)
    return Case(f"convolutional, {steps} steps", purifier, images)


def mnist(direction: str, device: torch.device) -> Case:
    """Eight images and the settings for MNIST."""
    loaded = ps.load_pretrained("mnist", device)
    purifier = make_purifier("mnist", loaded.denoiser, direction=direction)
    return Case(f"mnist, {direction}", purifier, loaded.test.images[:8].to(device))


def measure_time(case: Case, seconds: float, finish: Any) -> dict[str, Any]:
    """Return the seconds of a purification with each gradient, and of the network alone."""
    calls = {name: partial(case.call, name) for name in GRADIENTS} | {ALONE: case.run_network_alone}
    taken = long_medians(calls, seconds=seconds, finish=finish)
    costs = {name: time / taken["none"] for name, time in taken.items()}
    row = " ".join(f"{name} {time:.3f} ({costs[name]:.2f})" for name, time in taken.items())
    print(f"{case.name}: {row}", flush=True)
    return {"case": case.name, "images": len(case.images), "seconds": taken, "purifications": costs}


def measure_memory(gradient: str, steps: int, device: torch.device) -> float:
    """Return in MiB how much the peak grows."""
    # What a forward pass of one step needs is there before the measurement: libraries, their workspaces, threads.
    with torch.no_grad():
        convolutional(1, device).call("none")
    case = convolutional(steps, device, micro_batch=1, invariance="off")
    case.purifier.check_derivative(case.images)
    grown = grown_mib(lambda: case.call(gradient), device)
    kept = (steps + 1) * case.images.nbytes if gradient in ("exact", "straight_through") else 0
    return grown - kept / 2**20


def targets(times: list[dict[str, Any]], mib: dict[str, dict[str, float]]) -> list[Target]:
    found = []
    for row in times:
        exact, unrolled = row["seconds"]["exact"], row["seconds"]["unrolled"]
        found.append(Target(f"{row['case']}: exact gradient, in purifications", row["purifications"]["exact"], 4.2))
        found.append(Target(f"{row['case']}: exact gradient over unrolled", exact / unrolled, 1.0))
    few, many = (mib["exact"][str(steps)] for steps in STEPS)
    return [*found, Target(f"memory of the exact gradient, {STEPS[1]} steps over {STEPS[0]}", many / few, 1.15)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--seconds", type=float, default=30.0, help="time for a case after warming up (default 30)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    parser.add_argument("--memory-of", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    if arguments.memory_of:
        gradient, steps = arguments.memory_of
        print(measure_memory(gradient, int(steps), device))
        return
    report: dict[str, Any] = {"machine": machine(arguments.device)}
    print(f"{report['machine']}; seconds (and purifications)")
    finish = torch.cuda.synchronize if arguments.device == "cuda" else lambda: None
    cases = (convolutional(STEPS[0], device), mnist("ere", device), mnist("score", device))
    report["times"] = [measure_time(case, arguments.seconds, finish) for case in cases]
    report["mib"] = {}
    print(f"\npeak MiB, convolutional{'':<6}" + "".join(f"{steps:>7} steps" for steps in STEPS))
    for gradient in GRADIENTS:
        options = ("--device", arguments.device, "--memory-of", gradient)
        found = {str(steps): in_fresh_process(__file__, *options, str(steps)) for steps in STEPS}
        report["mib"][gradient] = found
        print(f"{gradient:<29}" + "".join(f"{figure:>13.1f}" for figure in found.values()), flush=True)
    print("", *targets(report["times"], report["mib"]), sep="\n")
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
