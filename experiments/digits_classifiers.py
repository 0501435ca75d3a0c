"""Classifiers of the digits that know attacks, their purifier, or both, compared on test images."""

from __future__ import annotations

from typing import Any

from comparison import MICRO_BATCH, Experiment, Row
from networks import Training

from pursamere.pretrained import EPS, TUNED

# The best purifier of the sweep at 80 network passes, in the names of Purifier.
PURIFIER: dict[str, Any] = {
    **TUNED["digits"], "direction": "score", "step_size": 0.8, "ascent_radius": 0.0, "draws": 16,
}  # fmt: skip

_LARGEST = max(EPS["digits"])
_BEHIND = {"purifier": "digits", **{f"purifier_{name}": value for name, value in PURIFIER.items()}}


def _training(name: str, initial: Training | None = None, steps: int = 1000, **settings: Any) -> Training:
    return Training(name, {"dataset": "digits", "steps": steps, "ema_decay": 0.99, **settings}, initial)


CLEAN = _training("clean", steps=600)
ADVERSARIAL = _training("adversarial", steps=2000, adversarial_eps=_LARGEST, adversarial_steps=3)
_FOUND = {"adversarial_eps": _LARGEST, "adversarial_fraction": 0.8}
PURIFIED = _training("purified", CLEAN, **_BEHIND)
PURIFIED_BPDA = _training("purified-bpda", CLEAN, **_BEHIND, **_FOUND)
ADVERSARIAL_PURIFIED_BPDA = _training("adversarial-purified-bpda", ADVERSARIAL, **_BEHIND, **_FOUND)
ADVERSARIAL_PURIFIED_EXACT = _training(
    "adversarial-purified-exact", ADVERSARIAL, **_BEHIND, **_FOUND, adversarial_exact_fraction=0.5
)


def behind(name: str, classifier: Training) -> Row:
    """The purifier in front of that classifier."""
    options = {**PURIFIER, "micro_batch": MICRO_BATCH * 8 // PURIFIER["draws"]}
    return Row(name, "pursamere", options, classifier=classifier)


DIGITS_CLASSIFIERS = Experiment(
    "digits-classifiers",
    "digits",
    "test",
    256,
    (
        Row("clean, no purifier", classifier=CLEAN),
        behind("clean", CLEAN),
        Row("adversarially trained, no purifier", classifier=ADVERSARIAL),
        behind("adversarially trained", ADVERSARIAL),
        behind("purified images, from clean", PURIFIED),
        behind("purified BPDA images, from clean", PURIFIED_BPDA),
        behind("purified BPDA images, from adversarially trained", ADVERSARIAL_PURIFIED_BPDA),
        behind("purified exact and BPDA images, from adversarially trained", ADVERSARIAL_PURIFIED_EXACT),
        Row("purified BPDA images, from adversarially trained, no purifier", classifier=ADVERSARIAL_PURIFIED_BPDA),
    ),
    f"""\
# Digits: adversarial training, and classifiers that know their purifier

```
$ python experiments/run.py digits-classifiers -o FOLDER --write docs/results
```

{{samples}} digits of the test split, {{conditions}}

The purifier is one and the same, the score direction without SAM at 80 network passes for an image, as in \
`digits.md`. In front of it stand classifiers of one architecture. "Clean" was trained on clean images, \
"adversarially trained" on those that 3 steps of PGD found at eps {_LARGEST}, the others for another 1,000 steps \
on purified images: of clean images alone, or of 4 adversarial images to 1 clean one, found by one step of BPDA, \
or in half of the training steps with the exact gradient. The experiment trains them itself, in ten minutes \
(`experiments/digits_classifiers.py`). Worst case: per sample over all attacks of the preset, also those on \
survivors, which have no column; in brackets 95 % Wilson intervals.""",
    protocol="standard",
)
