"""Comparing two defenses on the same samples, where intervals of the single proportions would hide most differences."""

from __future__ import annotations

import csv
import io
import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pursamere._files import reading, require_form

from .result import Z95, Result

__all__ = ["PairedDifference", "compare", "paired_difference"]

_DAMAGED = "run the evaluation again in another folder"


@dataclass(frozen=True, repr=False)
class PairedDifference:
    """How the samples that withstand all attacks differ between a defense and a reference.

    Attributes:
        samples: the number of samples, which both defenses were given.
        gained: how many the defense withstood and the reference did not.
        lost: how many the reference withstood and the defense did not.
    """

    samples: int
    gained: int
    lost: int

    @property
    def value(self) -> float:
        """The defense's proportion minus the reference's."""
        return (self.gained - self.lost) / self.samples

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval of the difference: the adjusted Wald interval of Bonett and Price (2012)."""
        gained, lost = ((count + 1) / (self.samples + 2) for count in (self.gained, self.lost))
        center = gained - lost
        half = Z95 * math.sqrt((gained + lost - center**2) / (self.samples + 2))
        return max(-1.0, center - half), min(1.0, center + half)

    @property
    def p_value(self) -> float:
        """The two-sided p-value of McNemar's exact test: how often chance alone gives as uneven a split or more."""
        changed = self.gained + self.lost
        tail = sum(math.comb(changed, k) for k in range(min(self.gained, self.lost) + 1))
        return min(1.0, 2 * tail / 2**changed)

    def __str__(self) -> str:
        low, high = self.interval
        p = self.p_value
        return f"{self.value:+.3f} ({low:+.3f} to {high:+.3f}), p {f'= {p:.2g}' if p >= 1e-4 else '< 0.0001'}"

    def __repr__(self) -> str:
        return f"PairedDifference(+{self.gained} -{self.lost} of {self.samples}: {self})"


def compare(
    result: Result | str | os.PathLike[str], reference: Result | str | os.PathLike[str]
) -> dict[float, PairedDifference]:
    """Compare the worst cases of two evaluations of the same samples, at every radius that both have.

    Two accuracies whose 95 % intervals overlap may well differ by more than chance: most samples fall, or don't, under
    both defenses, and only the others count. Intervals and p-values account for the choice of samples alone: not for
    attacks that stronger ones would replace, nor for the number of comparisons that you make.

    Args:
        result: a :class:`Result`, or the folder of a finished run.
        reference: what it is compared with, likewise.

    Returns:
        The differences by radius.

    Raises:
        FileNotFoundError: a folder holds no finished run.
        TypeError: an argument is neither a :class:`Result` nor a path.
        ValueError: the evaluations had other samples, attacks or norms, or no radius in common; or a file is damaged.
    """
    mine, theirs = _Run.of("result", result), _Run.of("reference", reference)
    for what, key in (("samples", "data"), ("attacks", "protocol"), ("norm", "norm")):
        if mine.identity(key) != theirs.identity(key):
            raise ValueError(f"result and reference must have the same {what}, got {mine.name} and {theirs.name}")
    radii = [radius for radius in mine.withstood if radius in theirs.withstood]
    if not radii:
        got = f"{list(mine.withstood)} and {list(theirs.withstood)}"
        raise ValueError(f"result and reference must have a radius in common, got {got}")
    return {radius: paired_difference(mine.withstood[radius], theirs.withstood[radius]) for radius in radii}


def paired_difference(withstood: list[bool], reference: list[bool]) -> PairedDifference:
    """Compare what a defense and a reference did on each sample."""
    pairs = list(zip(withstood, reference, strict=True))
    return PairedDifference(len(pairs), pairs.count((True, False)), pairs.count((False, True)))


@dataclass(frozen=True)
class _Run:
    """What is compared of a run: its configuration, and by radius which samples withstood every attack."""

    name: str
    config: dict[str, Any]
    withstood: dict[float, list[bool]]

    @classmethod
    def of(cls, name: str, source: Any) -> _Run:
        if isinstance(source, Result):
            return cls(name, source.config, {radius: rows.tolist() for radius, rows in source.withstood.items()})
        if not isinstance(source, str | os.PathLike):
            raise TypeError(f"{name} must be a pursamere.evaluation.Result or a folder, got {type(source).__name__}")
        return cls(str(source), *_read(Path(source)))

    def identity(self, key: str) -> Any:
        """What must be equal in both runs."""
        return self.config["data"]["sha256"] if key == "data" else self.config[key]


def _read(folder: Path) -> tuple[dict[str, Any], dict[float, list[bool]]]:
    """Read the configuration of a finished run, and which samples withstood every attack."""
    summary = folder / "summary.json"
    if not summary.exists():
        raise FileNotFoundError(f"{folder} holds no finished run: there is no summary.json")
    with reading(folder / "config.json", _DAMAGED):
        config = json.loads((folder / "config.json").read_bytes())
        require_form(config, {"data": dict, "protocol": dict, "norm": str, "eps": list})
        sweeps = {attack["name"] for attack in config["protocol"]["attacks"] if attack["sweep"]}
        withstood = {float(radius): [True] * config["data"]["samples"] for radius in config["eps"]}
    with reading(folder / "outcomes.csv", _DAMAGED):
        for row in csv.DictReader(io.StringIO((folder / "outcomes.csv").read_text())):
            if row["attack"] not in sweeps and row["attacked"] == "1" and row["correct"] == "0":
                radius = float(row["eps"])
                for alive in withstood.values() if radius == 0 else [withstood[radius]]:  # 0: clean images
                    alive[int(row["sample"])] = False
    with reading(summary, _DAMAGED):
        told = {share["eps"]: share["correct"] for share in json.loads(summary.read_bytes())["worst_case"]}
        if told != {radius: sum(alive) for radius, alive in withstood.items()}:
            raise ValueError("its worst cases are not those of outcomes.csv")
    return config, withstood
