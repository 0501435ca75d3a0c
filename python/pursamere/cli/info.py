"""``pursamere info``: what is installed, on what machine, and how the extension was built."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from typing import Any

from pursamere._environment import package_version, versions
from pursamere._text import printable
from pursamere.cli import types
from pursamere.cli.progress import tell

__all__ = ["add_parser", "collect", "run"]

_DESCRIPTION = "Print the installed versions, the devices of this machine, and how the extension was built."

# The packages of the extras, the smallest extra first: cli, plots, train, demo, evaluation.
_OPTIONAL = (
    "pillow", "tqdm", "matplotlib", "diffusers", "safetensors", "markdown", "scikit-learn", "pyautoattack",
)  # fmt: skip


def add_parser(commands: Any, common: argparse.ArgumentParser) -> None:
    """Add the subcommand to the parser."""
    parser = commands.add_parser(
        "info", parents=[common], help="versions, devices, and how the extension was built", description=_DESCRIPTION
    )
    parser.add_argument(
        "--denoiser",
        type=types.text,
        metavar="NETWORK",
        help="also print in which batch sizes its purifier runs on a CPU: mnist, cifar10, or a checkpoint of "
        "pursamere train",
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of text")
    parser.set_defaults(command=run)


def run(arguments: argparse.Namespace) -> int:
    """Print the report; the exit code is 1 if the extension can't be loaded."""
    report = collect()
    if "denoiser" in arguments and arguments.denoiser is not None:
        report["micro_batches"] = _micro_batches(arguments.denoiser)
    if arguments.json:
        tell(json.dumps(report, indent=2))
    else:
        tell("\n".join(_lines(report)))
    return 1 if "error" in report["extension"] else 0


def collect() -> dict[str, Any]:
    """Return everything that ``pursamere info`` tells, as values for JSON."""
    import torch

    return {
        "versions": versions(),
        "optional": {name: package_version(name) for name in _OPTIONAL},
        "platform": platform.platform(),
        "cpu": {
            "machine": platform.machine(),
            "logical_cores": os.cpu_count(),
            "torch_threads": torch.get_num_threads(),
        },
        "cuda": _cuda_devices(),
        "extension": _extension(),
    }


def _cuda_devices() -> list[dict[str, Any]]:
    import torch

    devices = []
    for number in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(number)
        devices.append(
            {
                "name": properties.name,
                "compute_capability": f"{properties.major}.{properties.minor}",
                "memory_gib": round(properties.total_memory / 2**30, 1),
            }
        )
    return devices


def _micro_batches(source: str) -> dict[str, list[int]]:
    """The sizes in which the purifier with the tuned settings runs the denoiser."""
    import torch

    from pursamere.cli.networks import load_network
    from pursamere.pretrained import TUNED, make_purifier

    denoiser = load_network("denoiser", source, torch.device("cpu"))
    purifier = make_purifier(source if source in TUNED else "digits", denoiser)
    images = torch.full((1, *denoiser.image_shape), 0.5)
    return {
        "purifier": list(purifier.micro_batch_sizes(images)),
        "exact gradient": list(purifier.micro_batch_sizes(images, differentiated=True)),
    }


def _extension() -> dict[str, str]:
    try:
        from pursamere_ext import build_info
    except ImportError as error:
        # Reporting this is what the command is for.
        return {"error": printable(error)}
    return dict(build_info())


def _lines(report: dict[str, Any]) -> list[str]:
    rows: list[tuple[str, object]] = [*report["versions"].items(), ("platform", report["platform"])]
    cpu = report["cpu"]
    rows.append(("cpu", f"{cpu['machine']}, {cpu['logical_cores']} logical cores, torch uses {cpu['torch_threads']}"))
    for number, device in enumerate(report["cuda"]):
        text = f"{device['name']}, compute capability {device['compute_capability']}, {device['memory_gib']} GiB"
        rows.append((f"cuda:{number}", text))
    if not report["cuda"]:
        rows.append(("cuda", "no device"))
    if report["cuda"] and report["extension"].get("cuda") == "off":
        from pursamere._validation import REBUILD_WITH_CUDA

        rows.append(("note", f"this machine has a GPU, but pursamere was built without CUDA; {REBUILD_WITH_CUDA}"))
    for name, sizes in report.get("micro_batches", {}).items():
        rows.append((f"{name} micro-batches", ", ".join(map(str, sizes))))
    rows.extend((f"extension {key}", value) for key, value in report["extension"].items())
    rows.extend((f"optional {key}", value) for key, value in report["optional"].items())
    rows.append(("executable", sys.executable))
    width = max(len(name) for name, _ in rows)
    return [f"{name:<{width}}  {value}" for name, value in rows]
