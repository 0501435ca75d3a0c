"""CIFAR-10 with the networks that ship: a sweep of settings on validation images, and comparisons on test images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from comparison import SWEEP, Experiment, Row, told

from pursamere.attacks import APGD, PGD, Clean
from pursamere.evaluation import Protocol
from pursamere.pretrained import TUNED, folder

ADVERSARIAL, PURIFIED, UNDEFENDED = (folder("cifar10") / name for name in ("adversarial", "classifier", "undefended"))
# Like PURIFIED, from the weights of ADVERSARIAL and on the same share of adversarial images, but without a purifier.
CONTROL = Path(__file__).parent / "weights" / "cifar10-adversarial-control"

# Network passes for an image, of every baseline and of the center.
PASSES = 8

# The sweep changes one setting at a time from what the classifier was trained behind.
CENTER = TUNED["cifar10"]
ERE = {"direction": "ere", "steps": 2, "step_size": 0.8}
ASCENT = {"ascent_radius": 0.05, "draws": 1, "antithetic": False}
CHANGES: list[dict[str, Any]] = [
    {},
    *({"ascent_radius": value} for value in (0.05, 0.2)),
    *({"radius": value} for value in (0.03, 0.1)),
    *({"sigma": value} for value in (0.1, 0.3)),
    *({"step_size": value} for value in (0.3, 1.2)),
    {"steps": 8, "step_size": 0.3},
    {"draws": 4},
    {"draws": 1, "antithetic": False},  # as the ascent has at the same passes
    *({**ERE, "ascent_radius": value} for value in (0.0, 0.05)),
    ASCENT,
    {**ERE, **ASCENT},
]
# Before the adversarially trained classifier, which has seen no purified images.
BASELINES: list[tuple[str, dict[str, Any]]] = [
    *(("diffpure_fixed_noise", {"sigma_max": value}) for value in (0.1, 0.2)),
    *(("scoreopt_o", {"sigma": 0.2, "learning_rate": value}) for value in (0.005, 0.01)),
    *(("likelihood_maximization", {"radius": 0.06, "learning_rate": value}) for value in (0.005, 0.01)),
]
MILDER: list[dict[str, Any]] = [{}, {"sigma": 0.1}, {"radius": 0.03}, {"step_size": 0.3}, ERE]


def before_adversarial(name: str, defense: str, options: dict[str, Any], passes: int | None = None) -> Row:
    return Row(f"adversarially trained, {name}", defense, options, passes, ADVERSARIAL)


CIFAR10_SWEEP = Experiment(
    "cifar10-sweep",
    "cifar10",
    "validation",
    64,
    SWEEP,
    (
        Row("adversarially trained, no purifier", classifier=ADVERSARIAL),
        Row("trained behind the purifier, no purifier", classifier=PURIFIED),
        *(Row(told(change) or "center", "pursamere", {**CENTER, **change}) for change in CHANGES),
        *(before_adversarial(told(change) or "center", "pursamere", {**CENTER, **change}) for change in MILDER),
        *(before_adversarial(f"{name} {told(options)}", name, options, PASSES) for name, options in BASELINES),
    ),
)

# Every purifier takes 8 network passes for an image, so that those with an ascent have half the draws. The settings
# were chosen by the sweep.
CHOSEN: dict[str, dict[str, Any]] = {
    "diffpure_fixed_noise": {"sigma_max": 0.1},
    "scoreopt_o": {"sigma": 0.2, "learning_rate": 0.01},
    "likelihood_maximization": {"radius": 0.06, "learning_rate": 0.005},
}
PURIFIERS: dict[str, dict[str, Any]] = {
    "ERE without SAM": {**CENTER, **ERE},
    "PurSAMERE, ERE, rho 0.05": {**CENTER, **ERE, **ASCENT},
    "score without SAM": CENTER,
    "PurSAMERE, score, rho 0.05": {**CENTER, **ASCENT},
}
CIFAR10_TABLE = Experiment(
    "cifar10",
    "cifar10",
    "test",
    128,
    "quick",
    (
        Row("undefended"),
        Row("adversarially trained, no purifier", classifier=ADVERSARIAL),
        Row("adversarially trained further, no purifier", classifier=CONTROL),
        Row("trained behind the purifier, no purifier", classifier=PURIFIED),
        *(Row(f"trained behind the purifier, {name}", "pursamere", options) for name, options in PURIFIERS.items()),
        *(before_adversarial(name, "pursamere", options) for name, options in PURIFIERS.items()),
        before_adversarial("diffpure_fixed_noise", "diffpure_fixed_noise", CHOSEN["diffpure_fixed_noise"], PASSES),
        Row("undefended, score without SAM", "pursamere", CENTER, classifier=UNDEFENDED),
    ),
    f"""\
# CIFAR-10 at Linf 8/255: PurSAMERE, DiffPure and adversarial training

```
$ python experiments/run.py cifar10-table -o FOLDER --write docs/results
```

The first {{samples}} images of the test set, stored as JPEG with quality 75 like the training images, {{conditions}}

Every purifier takes {PASSES} passes through the denoiser for an image ("passes", forward and backward). The \
networks are those that ship (`python/pursamere/pretrained/cifar10/README.md`): small ones, trained for a short \
time. Of the classifiers, one was trained on images as they are, and one adversarially. From the weights of the \
second, one was trained behind the purifier of the row "trained behind the purifier, score without SAM", on 90 % \
adversarial images, found with the exact gradient in 60 % of the steps and with BPDA in the others; and a control, \
"adversarially trained further", on the same share of adversarial images without a purifier \
(`experiments/weights/cifar10-adversarial-control`). The purifiers' settings were chosen on 64 validation images with \
classifiers of an earlier training (`cifar10-sweep.csv`). Worst case: per \
sample over all attacks of the preset, also those on survivors, which have no column; in brackets 95 % Wilson \
intervals. `cifar10-outcomes.csv` has every sample with the first attack that it fell to.""",
    timed=False,
)

# The other baselines, apart because they take as long as the whole table: attacks on fresh noise average four calls and
# go on after a success.
CIFAR10_BASELINES = Experiment(
    "cifar10-baselines",
    "cifar10",
    "test",
    128,
    "quick",
    (
        *(before_adversarial(name, name, CHOSEN[name], PASSES) for name in ("scoreopt_o", "likelihood_maximization")),
        Row(
            "undefended, diffpure_fixed_noise",
            "diffpure_fixed_noise",
            CHOSEN["diffpure_fixed_noise"],
            PASSES,
            UNDEFENDED,
        ),
        before_adversarial("diffpure", "diffpure", CHOSEN["diffpure_fixed_noise"], PASSES),
    ),
)

BEST = (
    Row("undefended"),
    Row("adversarially trained", classifier=ADVERSARIAL),
    Row("trained behind the purifier, score without SAM", "pursamere", CENTER),
)
CIFAR10_RADII = Experiment("cifar10-radii", "cifar10", "test", 64, "quick", BEST, eps=(2 / 255, 4 / 255))


def longer(steps: int) -> Protocol:
    """The strongest attacks on the best purifier, with that many steps."""
    return Protocol(
        f"{steps}-steps",
        (
            Clean(),
            PGD("pgd-margin-bpda", gradient="identity", steps=steps),
            PGD("pgd-margin", steps=steps),
            APGD("apgd-ce", steps=steps),
            APGD("apgd-t", loss="targeted_dlr", steps=steps, survivors_only=True),
        ),
        "nearly everything: to see how many steps attacks need",
    )


CIFAR10_BUDGET = Experiment(
    "cifar10-budget",
    "cifar10",
    "test",
    64,
    SWEEP,
    tuple(Row(f"{steps} steps", "pursamere", CENTER, protocol=longer(steps)) for steps in (10, 20, 50, 100)),
)
