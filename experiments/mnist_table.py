"""The table of docs/results/mnist.md: the networks that ship, undefended, purified without SAM, and by PurSAMERE.

    python experiments/mnist_table.py -o FOLDER --write docs/results

With two cores, run it twice at the same time with --part 0/2 and --part 1/2, and then once more to write the table.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from mnist import purifier, target
from runs import Setting
from tables import conditions, make

from pursamere.evaluation import Result

PRESET = "quick"
# Chosen by mnist_sweep.py on the validation split. All take 16 network passes for an image.
ERE = {"direction": "ere", "sigma": 0.5, "steps": 2, "step_size": 4.0, "radius": 0.3}
SCORE = {"direction": "score", "sigma": 0.5, "steps": 4, "step_size": 3.0, "radius": 0.3}
PURIFIERS: dict[str, dict[str, Any]] = {
    "ERE without SAM": {**ERE, "ascent_radius": 0.0, "draws": 4},
    "PurSAMERE, ERE, rho 0.05": {**ERE, "ascent_radius": 0.05, "draws": 2},
    "score without SAM": {**SCORE, "ascent_radius": 0.0, "draws": 4},
    "PurSAMERE, score, rho 0.05": {**SCORE, "ascent_radius": 0.05, "draws": 2},
}


def settings() -> list[Setting]:
    found = [Setting(name, partial(purifier, **options)) for name, options in PURIFIERS.items()]
    return [Setting("no purifier", lambda: None), *found]


def introduction(results: list[tuple[Setting, Result]], samples: int) -> str:
    return f"""\
# MNIST: PurSAMERE with the networks that ship

```
$ python experiments/mnist_table.py -o FOLDER --write docs/results
```

The first {samples} images of the test set, {conditions(results, PRESET)}

Denoiser and classifier are those of `ps.load_pretrained("mnist")`; the purifiers' settings are in \
`experiments/mnist_table.py` and were chosen on 32 validation images (`mnist-sweep.csv`). "Passes" are the network \
passes for an image, forward and backward. Worst case: per sample over all attacks of the preset, also those on \
survivors, which have no column; in brackets 95 % Wilson intervals. `mnist-outcomes.csv` has every sample with the \
first attack that it fell to."""


if __name__ == "__main__":
    make("mnist", settings(), target("test"), PRESET, introduction, description=__doc__ or "", samples=64)
