"""Differences between the defenses of the published tables, sample by sample: a few seconds, nothing is evaluated."""

from __future__ import annotations

import argparse
import csv
import sys
from pathlib import Path

from pursamere._files import write_bytes
from pursamere._text import radius
from pursamere.evaluation.paired import paired_difference

RESULTS = Path(__file__).parents[1] / "docs" / "results"
TRAINED = "trained behind the purifier"
ALONE = "adversarially trained, no purifier"
# Defenses and what each of them is compared with, by the name of the table.
PAIRS: dict[str, list[tuple[str, str]]] = {
    "digits": [
        *((f"PurSAMERE, ERE, {rho}", "ERE without SAM") for rho in ("rho 0.05", "rho 0.2", "rho 0.05, 160 passes")),
        *((f"PurSAMERE, score, {rho}", "score without SAM") for rho in ("rho 0.05", "rho 0.2")),
        *(
            ("score without SAM", reference)
            for reference in (
                "ERE without SAM", "scoreopt_o", "scoreopt_n", "likelihood_maximization", "diffpure_fixed_noise",
                "diffpure",
            )
        ),
        ("PurSAMERE, ERE, rho 0.05, radius 0.1", "PurSAMERE, ERE, rho 0.05"),
    ],
    "digits-classifiers": [
        (name, ALONE)
        for name in (
            "clean", "adversarially trained", "purified images, from clean", "purified BPDA images, from clean",
            "purified BPDA images, from adversarially trained",
            "purified exact and BPDA images, from adversarially trained",
        )
    ],
    "mnist": [
        ("PurSAMERE, ERE, rho 0.05", "ERE without SAM"),
        ("PurSAMERE, score, rho 0.05", "score without SAM"),
        ("score without SAM", "ERE without SAM"),
    ],
}  # fmt: skip
INTRODUCTION = """\
# Differences between defenses, sample by sample

```
$ python experiments/run.py paired --write docs/results
```

From `digits-outcomes.csv`, `digits-classifiers-outcomes.csv` and `mnist-outcomes.csv`, which say for every sample \
whether it withstood all attacks. "Only defense" and "only reference" count the samples that withstood them under one \
of the two alone; the others say nothing about the difference. 95 % intervals after Bonett and Price (2012), p-values \
of McNemar's exact test, neither adjusted for the number of comparisons: of twenty differences that are chance, about \
one has a p-value below 0.05. They account for the choice of samples, and not for the attacks: stronger ones may \
change the order. `pursamere compare` computes the same from the folders of two runs."""
HEADER = ("eps", "defense", "reference", "worst cases", "only defense", "only reference", "difference")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--write", type=Path, metavar="FOLDER", help="write paired.md into this folder, not to stdout")


def run(arguments: argparse.Namespace) -> None:
    text = "\n\n".join([INTRODUCTION, *(f"## {name}\n\n{table(name)}" for name in PAIRS)]) + "\n"
    if arguments.write:
        arguments.write.mkdir(parents=True, exist_ok=True)
        write_bytes(arguments.write / "paired.md", text.encode(), overwrite=True)
    else:
        sys.stdout.write(text)


def table(name: str) -> str:
    withstood = read(RESULTS / f"{name}-outcomes.csv")
    rows = [HEADER, ("---:", "---", "---", "---:", "---:", "---:", "---:")]
    for eps in dict.fromkeys(eps for eps, _ in withstood):
        for defense, reference in PAIRS[name]:
            mine, theirs = withstood[eps, defense], withstood[eps, reference]
            found = paired_difference(mine, theirs)
            worst = " / ".join(f"{sum(rows) / len(rows):.3f}" for rows in (mine, theirs))
            counts = (str(found.gained), str(found.lost))
            rows.append((radius(float(eps)), defense, reference, worst, *counts, str(found)))
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def read(path: Path) -> dict[tuple[str, str], list[bool]]:
    """By radius and defense, which samples withstood all attacks."""
    withstood: dict[tuple[str, str], list[bool]] = {}
    with open(path, newline="") as stream:
        for row in csv.DictReader(stream):
            withstood.setdefault((row["eps"], row["defense"]), []).append(not row["fell_to"])
    return withstood
