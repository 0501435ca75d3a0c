"""What the experiments share: runs of many defenses on the same images, and the files that come of them."""

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
from pursamere._evaluate import evaluate
from pursamere._files import write_bytes
from pursamere.attacks import APGD, PGD, Clean, Transfer
from pursamere.cli.progress import progress_bar
from pursamere.datasets import Dataset
from pursamere.evaluation import Protocol, Result

MICRO_BATCH = 32
SWEEP = Protocol(
    "sweep",
    (
        Clean(),
        Transfer("transfer-bare", steps=50, sources=("bare",)),
        PGD("pgd-margin-bpda", gradient="identity", steps=20),
        APGD("apgd-ce", steps=20, survivors_only=True),
        APGD("apgd-t", loss="targeted_dlr", steps=20, survivors_only=True),
    ),
    "nearly everything: to compare settings with one another, not to claim robustness",
)


@dataclass(frozen=True)
class Target:
    """What is attacked, whatever the purifier: some images, a classifier, and the radii of the attacks."""

    images: Dataset
    classifier: torch.nn.Module
    eps: tuple[float, ...]
    split: str


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


def run_all(
    settings: Iterable[Setting], target: Target, protocol: str | Protocol, arguments: argparse.Namespace
) -> list[tuple[Setting, Result]]:
    """Evaluate every setting in a folder of its own, and print a line for each."""
    torch.set_num_threads(arguments.threads)
    data = target.images.head(arguments.samples)
    first, every = map(int, arguments.part.split("/"))
    results = []
    for setting in list(settings)[first::every]:
        purifier = setting.make()
        model = target.classifier if purifier is None else ps.PurifiedClassifier(purifier, target.classifier)
        result = evaluate(
            model,
            data.images,
            data.labels,
            folder=arguments.output / setting.name,
            eps=target.eps,
            preset=protocol,
            micro_batch=MICRO_BATCH,
            chunk=arguments.samples,
            data=f"{data.name}, {target.split} split",
            bar=lambda total, what, name=setting.name: progress_bar(total, f"{name}: {what}", unit="", quiet=False),
            keep_adversarial=False,
        )
        print(f"{setting.name:40} {result.verdict}", flush=True)
        results.append((setting, result))
    return results


def told(options: dict[str, Any]) -> str:
    return " ".join(f"{name}={value}" for name, value in options.items())


def worst_cases(results: Iterable[tuple[Setting, Result]]) -> list[dict[str, Any]]:
    """A row for each setting: clean accuracy and the worst case at every radius."""
    rows = []
    for setting, result in results:
        worst = {f"worst_{eps:.2f}": f"{share.value:.3f}" for eps, share in result.worst_case.items()}
        rows.append({"setting": setting.name, "clean": f"{result.clean.value:.3f}", **worst})
    return rows


def write_table(path: Path, rows: list[dict[str, Any]]) -> None:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_bytes(path, text.getvalue().encode(), overwrite=True)
    print(f"wrote {path}", file=sys.stderr)
