"""Paired comparison of two defenses that were evaluated on the same samples."""

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
from pursamere._text import listed
from pursamere._validation import check_integer
from pursamere._warn import warn_user

from .result import Z95, Result

__all__ = ["PairedDifference", "compare", "format_p", "paired_difference"]

_RUN_AGAIN = "run the same evaluation again, which finds its attacks done"
# What must be equal, and what it is called. Seeds and chunks decide the attacks' random starts.
_EQUAL = {
    "format": "format of the run",
    "data.sha256": "samples",
    "norm": "norm",
    "seed": "seed of the attacks",
    "chunk": "chunk",
    "protocol.attacks": "attacks",
}


@dataclass(frozen=True, repr=False)
class PairedDifference:
    """The difference between a defense and a reference in the proportion of samples that withstand all attacks.

    Attributes:
        samples: the number of samples.
        won: how many of them only the defense withstood.
        lost: how many of them only the reference withstood.

    Raises:
        TypeError: a count is not an integer.
        ValueError: the counts are negative, or more than the samples.
    """

    samples: int
    won: int
    lost: int

    def __post_init__(self) -> None:
        check_integer("samples", self.samples, low=1)
        check_integer("won", self.won, low=0)
        check_integer("lost", self.lost, low=0, high=self.samples - self.won)

    @property
    def value(self) -> float:
        """The defense's proportion minus the reference's."""
        return (self.won - self.lost) / self.samples

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % confidence interval of the difference: the adjusted Wald interval of Bonett and Price (2012)."""
        won, lost = ((count + 1) / (self.samples + 2) for count in (self.won, self.lost))
        center = won - lost
        half = Z95 * math.sqrt((won + lost - center**2) / (self.samples + 2))
        return max(-1.0, center - half), min(1.0, center + half)

    @property
    def p_value(self) -> float:
        """The two-sided p-value of McNemar's exact test.

        It is the probability of a split at least as uneven, if a discordant sample, which only one of the two
        withstood, is equally likely to favor either. The test is conservative: where p is a little above 0.05, the
        interval may exclude 0.
        """
        discordant, term, tail = self.won + self.lost, 1, 1
        for k in range(min(self.won, self.lost)):
            term = term * (discordant - k) // (k + 1)
            tail += term
        return min(1.0, 2 * tail / 2**discordant)

    def __str__(self) -> str:
        low, high = self.interval
        return f"{self.value:+.3f} ({low:+.3f} to {high:+.3f}), p {format_p(self.p_value)}"

    def __repr__(self) -> str:
        return f"PairedDifference(+{self.won} -{self.lost} of {self.samples}: {self})"


def format_p(p: float) -> str:
    """A p-value with its relation, like "= 0.03"."""
    return f"= {p:.2g}" if p >= 1e-4 else "< 0.0001"


def compare(
    result: Result | str | os.PathLike[str], reference: Result | str | os.PathLike[str]
) -> dict[float, PairedDifference]:
    """Compare two evaluations of the same samples: clean accuracies, and worst cases at every radius that both have.

    Only discordant samples, which exactly one of the two withstood, decide. Two accuracies may differ significantly
    although their intervals overlap. Interval and p-value treat the samples as independent draws and everything else
    as fixed: the attacks, the purifier's noise, the training of the networks. They are not adjusted for multiple
    comparisons, nor for choosing a defense on these samples.

    Args:
        result: a :class:`Result`, or the folder of a finished run.
        reference: what it is compared with, likewise.

    Returns:
        The differences by radius, and with the key 0.0 that on clean images.

    Warns:
        UserWarning: one was attacked in more ways, since a purified classifier has more than one gradient; or one is
            random, and had to withstand several draws of its noise.

    Raises:
        FileNotFoundError: a folder holds no finished run.
        TypeError: an argument is neither a :class:`Result` nor a path.
        ValueError: the evaluations had other samples, attacks, seeds, chunks or norms, or no radius in common; or a
            file is damaged.
    """
    mine, theirs = _Run.of("result", result), _Run.of("reference", reference)
    for key, what in _EQUAL.items():
        got = [_at(run.config, key) for run in (mine, theirs)]
        if got[0] != got[1]:
            shown = f": {got[0]} and {got[1]}" if isinstance(got[0], int) or key == "norm" else ""
            raise ValueError(f"{mine.name} and {theirs.name} must have the same {what}{shown}")
    radii = [radius for radius in mine.withstood if radius in theirs.withstood]
    if radii == [0.0]:
        got = [sorted(run.withstood)[1:] for run in (mine, theirs)]
        raise ValueError(f"{mine.name} and {theirs.name} must have a radius in common, got {got[0]} and {got[1]}")
    _warn_of_differences(mine, theirs)
    return {radius: paired_difference(mine.withstood[radius], theirs.withstood[radius]) for radius in radii}


def paired_difference(withstood: list[bool], reference: list[bool]) -> PairedDifference:
    """Compare what a defense and a reference did on each sample."""
    pairs = list(zip(withstood, reference, strict=True))
    return PairedDifference(len(pairs), pairs.count((True, False)), pairs.count((False, True)))


@dataclass(frozen=True)
class _Run:
    """What is compared of a run.

    Attributes:
        name: what messages call it.
        config: its configuration.
        withstood: by radius, which samples withstood every attack; with the key 0.0, which are correct without any.
        skipped: the attacks that were not run.
    """

    name: str
    config: dict[str, Any]
    withstood: dict[float, list[bool]]
    skipped: set[str]

    @classmethod
    def of(cls, name: str, source: Any) -> _Run:
        if isinstance(source, Result):
            withstood = {0.0: source.clean_line.correct, **source.withstood}
            return cls(name, source.config, {r: rows.tolist() for r, rows in withstood.items()}, set(source.skipped))
        if not isinstance(source, str | os.PathLike):
            raise TypeError(f"{name} must be a pursamere.evaluation.Result or a folder, got {type(source).__name__}")
        return cls(str(source), *_read(Path(source)))


def _at(config: dict[str, Any], key: str) -> Any:
    value: Any = config
    for name in key.split("."):
        value = value[name]
    return value


def _warn_of_differences(mine: _Run, theirs: _Run) -> None:
    for run, other in ((mine, theirs), (theirs, mine)):
        if missing := sorted(run.skipped - other.skipped):
            warn_user(
                f"only {other.name} was attacked by {listed(missing)}; {run.name} may look better for it", UserWarning
            )
        if run.config["model"]["random"] and not other.config["model"]["random"]:
            warn_user(
                f"{run.name} is random, and a sample fell if any draw of its noise failed; {other.name} may look "
                "better for it",
                UserWarning,
            )


def _read(folder: Path) -> tuple[dict[str, Any], dict[float, list[bool]], set[str]]:
    """Read a finished run: its configuration, which samples withstood every attack, and which attacks were skipped."""
    if not (folder / "summary.json").exists():
        raise FileNotFoundError(f"{folder} holds no finished run of pursamere evaluate: there is no summary.json")
    with reading(folder / "config.json", "run the evaluation again in another folder"):
        config = json.loads((folder / "config.json").read_bytes())
        require_form(config, {"data": dict, "model": dict, "protocol": dict, "eps": list})
        for key in (*_EQUAL, "model.random"):
            _at(config, key)
        sweeps = {attack["name"] for attack in config["protocol"]["attacks"] if attack["sweep"]}
        radii = [0.0, *map(float, config["eps"])]
        withstood = {radius: [True] * config["data"]["samples"] for radius in radii}
    with reading(folder / "outcomes.csv", _RUN_AGAIN):
        seen = set()
        for row in csv.DictReader(io.StringIO((folder / "outcomes.csv").read_text())):
            line = (row["attack"], row["eps"], row["sample"])
            if line in seen:
                raise ValueError(f"it has sample {row['sample']} twice for {row['attack']}")
            seen.add(line)
            if row["attack"] not in sweeps and row["attacked"] == "1" and row["correct"] == "0":
                radius = float(row["eps"])
                for alive in withstood.values() if radius == 0 else [withstood[radius]]:
                    alive[int(row["sample"])] = False
    with reading(folder / "summary.json", _RUN_AGAIN):
        summary = json.loads((folder / "summary.json").read_bytes())
        told = {share["eps"]: share["correct"] for share in summary["worst_case"]}
        if {0.0: summary["clean"]["correct"], **told} != {radius: sum(alive) for radius, alive in withstood.items()}:
            raise ValueError("its accuracies are not those of outcomes.csv")
        return config, withstood, set(summary["skipped"])
