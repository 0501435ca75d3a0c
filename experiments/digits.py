"""What the experiments on the 8x8 digits share: data, classifier, denoiser, and runs of many defences."""

from __future__ import annotations

import argparse
import csv
import io
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import pursamere as ps
from pursamere import datasets
from pursamere._files import write_bytes
from pursamere.cli.progress import progress_bar
from pursamere.demo.classifier import train_classifier
from pursamere.evaluation import Protocol, Result, evaluate

EPS = (0.10, 0.15)
MICRO_BATCH = 32


@dataclass(frozen=True)
class Setting:
    """A line of a table: a name and how to make the purifier, ``None`` for the classifier alone."""

    name: str
    make: Callable[[], ps.IterativePurifier | None]


def parser(description: str, samples: int) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=description)
    add = parser.add_argument
    add("-o", "--output", type=Path, required=True, help="folder of the runs; a killed experiment goes on from there")
    add("--samples", type=int, default=samples)
    add("--threads", type=int, default=1, help="CPU threads; figures may depend on them in the last resort")
    add("--part", default="0/1", metavar="I/N", help="of the lines, those from I on in steps of N: to use more cores")
    return parser


def denoiser(bandwidth: float) -> ps.denoisers.KernelDensity:
    return ps.denoisers.KernelDensity(datasets.load("digits", "train").images, bandwidth)


def run_all(
    settings: Iterable[Setting], split: str, protocol: str | Protocol, arguments: argparse.Namespace
) -> list[tuple[Setting, Result]]:
    """Evaluate every setting in a folder of its own, and print a line for each."""
    torch.set_num_threads(arguments.threads)
    data = datasets.load("digits", split).head(arguments.samples)
    classifier = train_classifier(datasets.load("digits", "train"), seed=0)
    first, every = map(int, arguments.part.split("/"))
    results = []
    for setting in list(settings)[first::every]:
        purifier = setting.make()
        model = classifier if purifier is None else ps.PurifiedClassifier(purifier, classifier)
        result = evaluate(
            model,
            data.images,
            data.labels,
            folder=arguments.output / setting.name,
            eps=EPS,
            preset=protocol,
            micro_batch=MICRO_BATCH,
            chunk=arguments.samples,
            data=f"digits, {split} split",
            bar=lambda total, what, name=setting.name: progress_bar(total, f"{name}: {what}", unit="", quiet=False),
            keep_adversarial=False,
        )
        assert result is not None
        print(f"{setting.name:40} {result.verdict}", flush=True)
        results.append((setting, result))
    return results


def write_table(path: Path, rows: list[dict[str, Any]]) -> None:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_bytes(path, text.getvalue().encode(), overwrite=True)
    print(f"wrote {path}", file=sys.stderr)
