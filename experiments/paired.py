"""Differences between the defenses of the published tables, sample by sample: a few seconds, nothing is evaluated."""

from __future__ import annotations

import argparse
import csv
import sys
from pathlib import Path

from cifar10 import CHOSEN, PURIFIERS
from mnist import CHOSEN_BASELINES
from tables import radius

from pursamere._files import write_bytes
from pursamere.evaluation.paired import format_p, paired_difference

RESULTS = Path(__file__).parents[1] / "docs" / "results"
TRAINED = "trained behind the purifier"
ADVERSARIAL = "adversarially trained"
FURTHER = "adversarially trained further"
BEHIND = (
    "clean", ADVERSARIAL, "purified images, from clean", "purified BPDA images, from clean",
    "purified BPDA images, from adversarially trained", "purified exact and BPDA images, from adversarially trained",
)  # fmt: skip
# Defenses and what each of them is compared with, by the name of the table.
PAIRS: dict[str, list[tuple[str, str]]] = {
    "digits": [
        *((f"PurSAMERE, ERE, {rho}", "ERE without SAM") for rho in ("rho 0.05", "rho 0.2", "rho 0.05, 160 passes")),
        *((f"PurSAMERE, score, {rho}", "score without SAM") for rho in ("rho 0.05", "rho 0.2")),
        ("score without SAM", "ERE without SAM"),
        *(
            (defense, reference)
            for defense in ("score without SAM", "PurSAMERE, score, rho 0.05", "PurSAMERE, ERE, rho 0.05")
            for reference in ("scoreopt_o", "scoreopt_n", "likelihood_maximization", "diffpure_fixed_noise", "diffpure")
        ),
        ("PurSAMERE, ERE, rho 0.05, radius 0.1", "PurSAMERE, ERE, rho 0.05"),
    ],
    "digits-classifiers": [
        *((name, f"{ADVERSARIAL}, no purifier") for name in BEHIND),
        *((name, reference) for reference in BEHIND[:2] for name in BEHIND[2:]),
        (f"{BEHIND[4]}, no purifier", "clean, no purifier"),
    ],
    "mnist": [
        *((f"{direction} without SAM", f"{ADVERSARIAL}, no purifier") for direction in ("ERE", "score")),
        ("PurSAMERE, ERE, rho 0.05", "ERE without SAM"),
        ("PurSAMERE, score, rho 0.05", "score without SAM"),
        ("score without SAM", "ERE without SAM"),
        *(("score without SAM", baseline) for baseline in CHOSEN_BASELINES),
        (f"{ADVERSARIAL}, score without SAM", f"{ADVERSARIAL}, no purifier"),
        (f"{ADVERSARIAL}, score without SAM", "score without SAM"),
    ],
    "cifar10": [
        *(
            (f"{classifier}, PurSAMERE, {direction}, rho 0.05", f"{classifier}, {direction} without SAM")
            for classifier in (TRAINED, ADVERSARIAL)
            for direction in ("ERE", "score")
        ),
        *((f"{ADVERSARIAL}, score without SAM", f"{ADVERSARIAL}, {baseline}") for baseline in CHOSEN),
        *(
            (f"{classifier}, {purifier}", f"{classifier}, no purifier")
            for classifier, purifiers in (
                (TRAINED, PURIFIERS), (ADVERSARIAL, (*PURIFIERS, *CHOSEN)), (FURTHER, ("score without SAM",)),
            )
            for purifier in purifiers
        ),
        *((f"{TRAINED}, {purifier}", f"{ADVERSARIAL}, no purifier") for purifier in ("no purifier", *PURIFIERS)),
        *((f"{TRAINED}, {purifier}", f"{FURTHER}, no purifier") for purifier in ("no purifier", *PURIFIERS)),
        (f"{TRAINED}, score without SAM", f"{FURTHER}, score without SAM"),
        (f"{TRAINED}, score without SAM", f"{ADVERSARIAL}, score without SAM"),
        (f"{FURTHER}, no purifier", f"{ADVERSARIAL}, no purifier"),
    ],
}  # fmt: skip
INTRODUCTION = """\
# Differences between defenses, sample by sample

```
$ python experiments/run.py paired --write docs/results
```

From the files `*-outcomes.csv` beside this page, which say for every sample whether it withstood all attacks. \
"Defense only" and "reference only" count the discordant samples, which withstood them under one of the two alone. \
95 % confidence intervals after Bonett and Price (2012), and p-values of McNemar's exact test, which is \
conservative: where p is a little above 0.05, the interval may exclude 0. Neither is adjusted for the number of \
comparisons, as "p, Holm" is (Holm's method, over a table). "Clean" has the difference on images without attack. \
Intervals and p-values treat the samples as random and all else as fixed: attacks, noise, the training of networks. \
Attacks on purifiers are further from the strongest possible than those on a bare classifier, and diffpure, whose \
noise is fresh in every call, had to withstand many draws of it. `pursamere compare` computes the same from the \
folders of runs."""
HEADER = (
    "eps",
    "defense",
    "reference",
    "worst cases",
    "defense only",
    "reference only",
    "difference",
    "p, Holm",
    "clean",
)


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
    fell_to = read(RESULTS / f"{name}-outcomes.csv")
    withstood = {key: [not attack for attack in attacks] for key, attacks in fell_to.items()}
    clean = {key: [attack != "clean" for attack in attacks] for key, attacks in fell_to.items()}
    radii = dict.fromkeys(eps for eps, _ in withstood)
    pairs = [(eps, *pair) for eps in radii for pair in PAIRS[name]]
    found = [paired_difference(withstood[eps, mine], withstood[eps, theirs]) for eps, mine, theirs in pairs]
    rows = [HEADER, ("---:", "---", "---", *["---:"] * 6)]
    for (eps, *names), difference, adjusted in zip(pairs, found, holm([each.p_value for each in found]), strict=True):
        worst = " / ".join(f"{sum(alive) / len(alive):.3f}" for alive in (withstood[eps, each] for each in names))
        counts = (str(difference.won), str(difference.lost))
        p_adjusted = format_p(adjusted).removeprefix("= ")
        on_clean = paired_difference(*(clean[eps, each] for each in names))
        rows.append((radius(float(eps)), *names, worst, *counts, str(difference), p_adjusted, str(on_clean)))
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def holm(values: list[float]) -> list[float]:
    """P-values adjusted for their number (Holm, 1979)."""
    adjusted, highest = [0.0] * len(values), 0.0
    for done, i in enumerate(sorted(range(len(values)), key=values.__getitem__)):
        highest = max(highest, min(1.0, (len(values) - done) * values[i]))
        adjusted[i] = highest
    return adjusted


def read(path: Path) -> dict[tuple[str, str], list[str]]:
    """By radius and defense, the first attack that each sample fell to, or "", in the order of the samples."""
    fell_to: dict[tuple[str, str], dict[int, str]] = {}
    with open(path, newline="") as stream:
        for row in csv.DictReader(stream):
            fell_to.setdefault((row["eps"], row["defense"]), {})[int(row["sample"])] = row["fell_to"]
    return {key: [attacks[sample] for sample in range(len(attacks))] for key, attacks in fell_to.items()}
