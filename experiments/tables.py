"""What the tables in docs/results consist of: accuracies in Markdown, and every sample's fate as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from pathlib import Path

from runs import Setting, Target, parser, run_all

from pursamere._files import write_bytes
from pursamere.evaluation import PRESETS, Result

_SHOWN = [
    ("transfer-bare", "transfer"), ("pgd-margin-bpda", "PGD, BPDA"), ("apgd-ce-bpda", "APGD, BPDA"),
    ("pgd-margin", "PGD, exact"), ("apgd-ce", "APGD, exact"),
]  # fmt: skip


def accuracies(results: list[tuple[Setting, Result]]) -> str:
    """A table in Markdown for each radius."""
    header = ["defense", "passes", "images/s", "clean", *(title for _, title in _SHOWN), "**worst case**", "warnings"]
    parts = []
    for eps in results[0][1].worst_case:
        rows = [header, ["---", *["---:"] * (len(header) - 2), "---"]]
        for setting, result in results:
            lines = {line.attack.name: line for line in result.lines if line.eps == eps}
            cost = result.cost
            passes = str(cost["forward_passes"] + cost["backward_passes"]) if "forward_passes" in cost else "0"
            shown = [f"{lines[name].share.value:.3f}" if name in lines else "" for name, _ in _SHOWN]
            low, high = result.worst_case[eps].interval
            worst = f"**{result.worst_case[eps].value:.3f}** ({low:.3f} - {high:.3f})"
            suffix = f"eps {eps:.4g}"
            warned = [c.name.removesuffix(f", {suffix}") for c in result.checks if not c.passed
                      and ("eps" not in c.name or c.name.endswith(suffix) or "with eps" in c.name)]  # fmt: skip
            rows.append([setting.name, passes, f"{cost['images_per_second']:,.0f}", f"{result.clean.value:.3f}",
                         *shown, worst, ", ".join(warned)])  # fmt: skip
        parts.append(f"## eps {eps:.2f} (Linf)\n\n" + "\n".join(f"| {' | '.join(row)} |" for row in rows))
    return "\n\n".join(parts)


def conditions(results: list[tuple[Setting, Result]], preset: str) -> str:
    """What was run, on what, and what was left out."""
    environment = results[0][1].environment
    return (
        f"preset `{preset}`, torch {environment['versions']['torch']} ({environment['machine']}), one CPU thread for "
        f"each of two processes. Left out of the full protocol: {PRESETS[preset].left_out}."
    )


def outcomes(results: list[tuple[Setting, Result]]) -> str:
    """A row per defense, radius and sample: the first attack that it fell to, or nothing."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["defense", "eps", "sample", "fell_to"])
    for setting, result in results:
        for eps in result.worst_case:
            fell = [""] * result.clean.samples
            for line in result.lines:
                if line.eps in (0.0, eps) and not line.attack.sweep:
                    for row, correct in zip(line.rows, line.correct.tolist(), strict=True):
                        fell[row] = fell[row] or ("" if correct else line.attack.name)
            writer.writerows([setting.name, eps, sample, attack] for sample, attack in enumerate(fell))
    return text.getvalue()


def make(
    name: str,
    settings: list[Setting],
    target: Target,
    preset: str,
    introduction: Callable[[list[tuple[Setting, Result]], int], str],
    *,
    description: str,
    samples: int,
) -> None:
    """The script: run everything, and with --write leave NAME.md and NAME-outcomes.csv."""
    arguments_parser = parser(description, samples)
    arguments_parser.add_argument("--write", type=Path, help=f"write {name}.md and {name}-outcomes.csv in this folder")
    arguments = arguments_parser.parse_args()
    results = run_all(settings, target, preset, arguments)
    if arguments.write:
        document = f"{introduction(results, arguments.samples)}\n\n{accuracies(results)}\n"
        write_bytes(arguments.write / f"{name}.md", document.encode(), overwrite=True)
        write_bytes(arguments.write / f"{name}-outcomes.csv", outcomes(results).encode(), overwrite=True)
