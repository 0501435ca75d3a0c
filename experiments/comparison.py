"""Comparisons of defenses: what they consist of, how they run, and the files they leave."""

from __future__ import annotations

import argparse
import csv
import io
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from locks import lock
from networks import Training
from tables import Results, markdown_tables, outcome_rows, worst_case_rows

import pursamere as ps
from pursamere._devices import own_device
from pursamere._files import write_bytes
from pursamere.attacks import APGD, PGD, Clean, Transfer
from pursamere.cli.defenses import build_defense
from pursamere.cli.progress import evaluation_bars
from pursamere.datasets import Dataset
from pursamere.evaluation import Protocol
from pursamere.pretrained import EPS, Pretrained
from pursamere.pretrained.digits import make_denoiser

MICRO_BATCH, GPU_MICRO_BATCH = 32, 512
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
class Row:
    """A defense: its name in the table, and the arguments of ``build_defense``; no defense for the bare classifier.

    The classifier is a checkpoint's, or one that the experiment trains, or else the data set's; the protocol is the
    experiment's, unless the row has its own.
    """

    name: str
    defense: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    passes: int | None = None
    classifier: Path | Training | None = None
    protocol: Protocol | None = None

    def load_classifier(self, folder: Path, device: torch.device, threads: int) -> Any:
        """Return the row's own classifier, or None; it is trained in ``folder``."""
        source = self.classifier
        if isinstance(source, Training):
            source = source.checkpoint(folder, device, threads)
        return ps.load_checkpoint(source, device) if source else None

    def model(self, networks: Pretrained, classifier: Any = None, device: torch.device | str = "cpu") -> Any:
        """Return the model, with the classifier of the data set if none is given."""
        if self.defense is None:
            return networks.undefended if classifier is None else classifier
        options, denoiser = dict(self.options), networks.denoiser
        if "bandwidth" in options:  # of the digits' kernel density
            denoiser = make_denoiser(options.pop("bandwidth"), device)
        purifier = build_defense(self.defense, denoiser, options, self.passes)
        return ps.PurifiedClassifier(purifier, networks.classifier if classifier is None else classifier)


@dataclass(frozen=True)
class Experiment:
    """Rows evaluated on the first ``samples`` images of a split.

    The radii of the attacks are those that the purifiers were tuned for, unless ``eps`` has others. With an
    introduction, which has {samples} and {conditions}, it makes NAME.md, otherwise NAME.csv, and on test images
    NAME-outcomes.csv too.
    """

    name: str
    data: str
    split: str
    samples: int
    rows: tuple[Row, ...]
    introduction: str = ""
    protocol: str | Protocol = "quick"
    eps: tuple[float, ...] = ()

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        add = parser.add_argument
        add("-o", "--output", type=Path, required=True, help="folder of the runs; a killed experiment resumes from it")
        add("--samples", type=int, default=self.samples, help="default: %(default)s")
        add("--device", default="cpu", help="cpu or cuda; default: %(default)s")
        add("--threads", type=int, default=1, help="CPU threads; the last bits may depend on them")
        add("--write", type=Path, metavar="FOLDER", help="write the results into this folder")

    def run(self, arguments: argparse.Namespace) -> None:
        if arguments.write:
            arguments.write.mkdir(parents=True, exist_ok=True)
        device = own_device(arguments.device)
        networks = ps.load_pretrained(self.data, device)
        images = networks.test
        if self.split != "test":  # from the same files, since others hold out images that the networks were trained on
            images = ps.datasets.load(images.name, self.split)
        images = images.head(arguments.samples)
        results: dict[str, ps.evaluation.Result] = {}
        # What another process is at comes last, and only if its results are needed.
        for wait in (False, True) if arguments.write else (False,):
            for row in (row for row in self.rows if row.name not in results):
                with lock(arguments.output / ".locks" / row.name, wait=wait) as held:
                    if held:
                        results[row.name] = self._evaluate(row, networks, images, arguments, device)
                        print(f"{row.name:40} {results[row.name].verdict}", flush=True)
        if arguments.write:
            ordered = [(row.name, results[row.name]) for row in self.rows]
            for name, content in self.files(ordered, arguments.samples).items():
                write_bytes(arguments.write / name, content.encode(), overwrite=True)
                print(f"wrote {arguments.write / name}", file=sys.stderr)

    def _evaluate(
        self, row: Row, networks: Pretrained, images: Dataset, arguments: argparse.Namespace, device: torch.device
    ) -> ps.evaluation.Result:
        classifier = row.load_classifier(arguments.output / "networks", device, arguments.threads)
        return ps.evaluate(
            row.model(networks, classifier, device),
            images.images.to(device),
            images.labels.to(device),
            folder=arguments.output / row.name,
            eps=self.eps or EPS[self.data],
            preset=row.protocol or self.protocol,
            micro_batch=MICRO_BATCH if device.type == "cpu" else GPU_MICRO_BATCH,
            chunk=arguments.samples,
            threads=arguments.threads,
            data=f"{images.name}, {self.split} split",
            bar=evaluation_bars(f"{row.name}: ", quiet=False),
            keep_adversarial=False,
        )

    def files(self, results: Results, samples: int) -> dict[str, str]:
        files = {f"{self.name}-outcomes.csv": _csv(outcome_rows(results))} if self.split == "test" else {}
        if not self.introduction:
            return {f"{self.name}.csv": _csv(worst_case_rows(results)), **files}
        introduction = self.introduction.format(samples=samples, conditions=_conditions(results))
        return {f"{self.name}.md": f"{introduction}\n\n{markdown_tables(results)}\n", **files}


def _conditions(results: Results) -> str:
    """The preset and where the rows were evaluated, which may be several places."""
    protocol = results[0][1].config["protocol"]
    places = dict.fromkeys(_place(result.environment) for _, result in results)
    return (
        f"preset `{protocol['name']}`, {' and '.join(places)}. Left out of the full protocol: {protocol['left_out']}."
    )


def _place(environment: Mapping[str, Any]) -> str:
    where = environment["device"]
    if where == "cpu":
        where = f"{environment['machine']}, CPU threads of a process: {environment['threads']}"
    return f"torch {environment['versions']['torch']} ({where})"


def describe(options: Mapping[str, Any]) -> str:
    return " ".join(f"{name}={value}" for name, value in options.items())


def _csv(rows: list[list[Any]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()
