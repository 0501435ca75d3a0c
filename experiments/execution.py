"""What each way to run the denoiser does to decisions, to the ERE and to the worst case under attack.

How fast they are, ``pursamere tune`` and ``benchmarks/bench_purify.py`` measure.
Every setting is evaluated with the preset "quick", in a folder of its own in FOLDER; an interrupted experiment resumes.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

import pursamere as ps
from pursamere.pretrained import TUNED, make_purifier

SETTINGS = {
    "float32": ps.Execution(),
    "channels-last": ps.Execution(channels_last=True),
    "compile": ps.Execution(compile=True),
    "bfloat16": ps.Execution(precision="bfloat16"),
    "bfloat16, compile": ps.Execution(precision="bfloat16", compile=True),
}
EPS = {"digits": 0.1, "mnist": 0.2}
HEADER = ("setting", "decisions changed", "largest change of a pixel", "mean ERE", "worst case at eps")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", choices=sorted(EPS))
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--samples", type=int, default=256, help="images to purify (256)")
    parser.add_argument("--attacked", type=int, default=32, help="images to attack (32)")
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=list(SETTINGS))


def run(arguments: argparse.Namespace) -> None:
    data = ps.load_pretrained(arguments.name)
    images, labels = data.test.images[: arguments.samples], data.test.labels[: arguments.samples]
    sigma, noise = TUNED[arguments.name]["sigma"], data.purifier.noise
    plain = purified(data.purifier, images)
    print("| " + " | ".join(HEADER) + " |\n|" + "---|" * len(HEADER))
    for name in arguments.settings:
        purifier = make_purifier(arguments.name, data.denoiser, execution=SETTINGS[name])
        model = ps.PurifiedClassifier(purifier, data.classifier)
        result = purified(purifier, images)
        with torch.no_grad():
            changed = int((data.classifier(result).argmax(1) != data.classifier(plain).argmax(1)).sum())
            ere = ps.expected_reconstruction_error(data.denoiser, result, sigma, noise, micro_batch=8)
        attacked = ps.evaluate(
            model,
            images[: arguments.attacked],
            labels[: arguments.attacked],
            folder=arguments.output / name.replace(", ", "-"),
            eps=EPS[arguments.name],
            preset="quick",
            data=arguments.name,
        )
        cells = (
            name,
            f"{changed} of {len(images)}",
            f"{float((result - plain).abs().max()):.2g}",
            f"{float(ere.mean()):.5f}",
            f"{EPS[arguments.name]:g}: {attacked.worst_case[EPS[arguments.name]]}",
        )
        print("| " + " | ".join(cells) + " |", flush=True)


@torch.no_grad()
def purified(purifier: ps.IterativePurifier, images: torch.Tensor) -> torch.Tensor:
    result: torch.Tensor = purifier(images)
    return result
