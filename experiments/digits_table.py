"""The table of docs/results/digits.md: PurSAMERE and the baselines on 256 digits of the test split.

    python experiments/digits_table.py -o FOLDER --write docs/results

With two cores, run it twice at the same time with --part 0/2 and --part 1/2, and then once more to write the table.
"""

from __future__ import annotations

import csv
import io
from functools import partial
from pathlib import Path
from typing import Any

from digits import EPS, MICRO_BATCH, Setting, denoiser, parser, run_all

import pursamere as ps
from pursamere._files import write_bytes
from pursamere.evaluation import Result
from pursamere.evaluation.protocol import PRESETS

PRESET = "standard"
# Network passes for an image, of every line that does not say otherwise.
EVALUATIONS = 80
# Chosen by digits_sweep.py on the validation split, as are the purifiers' other parameters.
BANDWIDTH = 0.25
BASELINES: dict[str, dict[str, Any]] = {
    "diffpure": {"sigma_max": 0.2},
    "diffpure_fixed_noise": {"sigma_max": 0.2},
    "scoreopt_o": {"sigma": 0.2, "learning_rate": 0.02},
    "scoreopt_n": {"sigma": 0.3, "learning_rate": 0.02},
    "likelihood_maximisation": {"radius": 0.2, "learning_rate": 0.02},
}
PURIFIERS: dict[str, dict[str, Any]] = {
    "ERE without SAM": {"ascent_radius": 0.0, "draws": 8},
    "PurSAMERE, ERE, rho 0.05": {"ascent_radius": 0.05, "draws": 4},
    "PurSAMERE, ERE, rho 0.2": {"ascent_radius": 0.2, "draws": 4},
    "PurSAMERE, ERE, rho 0.05, radius 0.1": {"ascent_radius": 0.05, "draws": 4, "radius": 0.1},
    "PurSAMERE, ERE, rho 0.05, 160 passes": {"ascent_radius": 0.05, "draws": 8},
    "score without SAM": {"direction": "score", "ascent_radius": 0.0, "draws": 16},
    "PurSAMERE, score, rho 0.05": {"direction": "score", "ascent_radius": 0.05, "draws": 8},
    "PurSAMERE, score, rho 0.2": {"direction": "score", "ascent_radius": 0.2, "draws": 8},
    "PurSAMERE, score, rho 0.05, radius 0.3": {
        "direction": "score", "ascent_radius": 0.05, "draws": 8, "radius": 0.3,
    },
}  # fmt: skip


def baseline(name: str, options: dict[str, Any]) -> ps.IterativePurifier:
    return ps.baselines.with_evaluations(name, denoiser(BANDWIDTH), EVALUATIONS, micro_batch=2 * MICRO_BATCH, **options)


def purifier(draws: int, radius: float = 0.2, **options: Any) -> ps.Purifier:
    noise = ps.GaussianNoise(draws=draws)
    common = {"sigma": 0.2, "steps": 5, "step_size": 0.8}
    micro_batch = MICRO_BATCH * 8 // draws
    return ps.Purifier(denoiser(BANDWIDTH), noise=noise, radius=radius, micro_batch=micro_batch, **common, **options)


def settings() -> list[Setting]:
    found = [Setting("no purifier", lambda: None)]
    found += [Setting(name, partial(baseline, name, options)) for name, options in BASELINES.items()]
    found += [Setting(name, partial(purifier, **options)) for name, options in PURIFIERS.items()]
    return found


def table(results: list[tuple[Setting, Result]], samples: int) -> str:
    """The table in Markdown, with the command that made it."""
    shown = [
        ("transfer-bare", "transfer"), ("pgd-margin-bpda", "PGD, BPDA"), ("apgd-ce-bpda", "APGD, BPDA"),
        ("pgd-margin", "PGD, exact"), ("apgd-ce", "APGD, exact"),
    ]  # fmt: skip
    header = ["defence", "passes", "images/s", "clean", *(title for _, title in shown), "**worst case**", "warnings"]
    parts = []
    for eps in EPS:
        rows = [header, ["---", *["---:"] * (len(header) - 2), "---"]]
        for setting, result in results:
            lines = {line.attack.name: line for line in result.lines if line.eps == eps}
            cost = result.cost
            passes = str(cost["forward_passes"] + cost["backward_passes"]) if "forward_passes" in cost else "0"
            accuracies = [f"{lines[name].share.value:.3f}" if name in lines else "" for name, _ in shown]
            low, high = result.worst_case[eps].interval
            worst = f"**{result.worst_case[eps].value:.3f}** ({low:.3f} - {high:.3f})"
            suffix = f"eps {eps:.4g}"
            warned = [c.name.removesuffix(f", {suffix}") for c in result.checks if not c.passed
                      and ("eps" not in c.name or c.name.endswith(suffix) or "with eps" in c.name)]  # fmt: skip
            rows.append([setting.name, passes, f"{cost['images_per_second']:,.0f}", f"{result.clean.value:.3f}",
                         *accuracies, worst, ", ".join(warned)])  # fmt: skip
        parts.append(f"## eps {eps:.2f} (Linf)\n\n" + "\n".join(f"| {' | '.join(row)} |" for row in rows))
    environment = results[0][1].environment
    head = f"""\
# Digits: PurSAMERE and the baselines

```
$ python experiments/digits_table.py -o FOLDER --write docs/results
```

{samples} digits of the test split, preset `{PRESET}`, torch {environment["versions"]["torch"]} \
({environment["machine"]}), one CPU thread for each of two processes. Left out of the full protocol: \
{PRESETS[PRESET].left_out}.

A purifier takes at most {EVALUATIONS} passes through the denoiser for an image ("passes", forward and backward), \
unless its line says otherwise. The denoiser is a kernel density of the training images (bandwidth {BANDWIDTH}). \
Worst case: per sample over all attacks of the preset, also those on survivors, which have no column; in brackets 95 % \
Wilson intervals. `digits-outcomes.csv` has every sample with the first attack that it fell to. diffpure draws fresh \
noise in every call; a sample counts as fallen when any of the attacks' dozen judgements goes wrong, be it by luck."""
    return "\n\n".join([head, *parts]) + "\n"


def outcomes(results: list[tuple[Setting, Result]]) -> str:
    """A row per defence, radius and sample: the first attack that it fell to, or nothing."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["defence", "eps", "sample", "fell_to"])
    for setting, result in results:
        for eps in EPS:
            fell = [""] * result.clean.samples
            for line in result.lines:
                if line.eps in (0.0, eps) and not line.attack.sweep:
                    for row, correct in zip(line.rows, line.correct.tolist(), strict=True):
                        fell[row] = fell[row] or ("" if correct else line.attack.name)
            writer.writerows([setting.name, eps, sample, attack] for sample, attack in enumerate(fell))
    return text.getvalue()


def main() -> None:
    arguments_parser = parser(__doc__ or "", samples=256)
    arguments_parser.add_argument("--write", type=Path, help="write digits.md and digits-outcomes.csv in this folder")
    arguments = arguments_parser.parse_args()
    results = run_all(settings(), "test", PRESET, arguments)
    if arguments.write:
        write_bytes(arguments.write / "digits.md", table(results, arguments.samples).encode(), overwrite=True)
        write_bytes(arguments.write / "digits-outcomes.csv", outcomes(results).encode(), overwrite=True)


if __name__ == "__main__":
    main()
