"""Run an experiment by its name.

    python experiments/run.py digits-table -o FOLDER --write docs/results

A comparison of defenses may run in several processes at the same time: they divide its rows.
"""

from __future__ import annotations

import argparse

import denoiser_error
import diffpure_accuracy
import execution
import mnist_half
import paired
import purifier_variants
from cifar10 import CIFAR10_BUDGET, CIFAR10_RADII, CIFAR10_SWEEP, CIFAR10_TABLE
from digits import DIGITS_SWEEP, DIGITS_TABLE
from digits_classifiers import DIGITS_CLASSIFIERS
from mnist import MNIST_SWEEP, MNIST_TABLE

# Each has add_arguments(parser) and run(arguments).
EXPERIMENTS = {
    "digits-sweep": DIGITS_SWEEP,
    "digits-table": DIGITS_TABLE,
    "digits-classifiers": DIGITS_CLASSIFIERS,
    "mnist-sweep": MNIST_SWEEP,
    "mnist-table": MNIST_TABLE,
    "cifar10-sweep": CIFAR10_SWEEP,
    "cifar10-table": CIFAR10_TABLE,
    "cifar10-radii": CIFAR10_RADII,
    "cifar10-budget": CIFAR10_BUDGET,
    "cifar10-denoiser-error": denoiser_error,
    "cifar10-variants": purifier_variants,
    "mnist-half": mnist_half,
    "paired": paired,
    "diffpure-accuracy": diffpure_accuracy,
    "execution": execution,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = parser.add_subparsers(title="experiments", metavar="NAME", required=True)
    for name, experiment in EXPERIMENTS.items():
        chosen = names.add_parser(name, description=experiment.__doc__)
        experiment.add_arguments(chosen)
        chosen.set_defaults(run=experiment.run)
    arguments = parser.parse_args()
    arguments.run(arguments)


if __name__ == "__main__":
    main()
