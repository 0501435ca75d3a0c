"""The tables in docs/results: accuracies in Markdown, worst cases, and every sample's fate."""

from __future__ import annotations

from typing import Any

from pursamere.evaluation import Result

Results = list[tuple[str, Result]]

_SHOWN = [
    ("transfer-bare", "transfer"), ("pgd-margin-bpda", "PGD, BPDA"), ("apgd-ce-bpda", "APGD, BPDA"),
    ("pgd-margin", "PGD, exact"), ("apgd-ce", "APGD, exact"),
]  # fmt: skip


def markdown_tables(results: Results) -> str:
    """A table for each radius, with a row for each defense."""
    titles = [title for _, title in _SHOWN]
    header = ["defense", "passes", "clean", *titles, "**worst case**", "warnings"]
    parts = []
    for eps in results[0][1].worst_case:
        rows = [header, ["---", *["---:"] * (len(header) - 2), "---"]]
        for name, result in results:
            lines = {line.attack.name: line for line in result.lines if line.eps == eps}
            cost = result.cost
            passes = str(cost["forward_passes"] + cost["backward_passes"]) if "forward_passes" in cost else "0"
            shown = [f"{lines[name].share.value:.3f}" if name in lines else "" for name, _ in _SHOWN]
            low, high = result.worst_case[eps].interval
            worst = f"**{result.worst_case[eps].value:.3f}** ({low:.3f} - {high:.3f})"
            suffix = f"eps {eps:.4g}"
            warned = [c.name.removesuffix(f", {suffix}") for c in result.checks if not c.passed
                      and ("eps" not in c.name or c.name.endswith(suffix) or "with eps" in c.name)]  # fmt: skip
            rows.append([name, passes, f"{result.clean.value:.3f}", *shown, worst, ", ".join(warned)])
        parts.append(f"## eps {radius(eps)} (Linf)\n\n" + "\n".join(f"| {' | '.join(row)} |" for row in rows))
    return "\n\n".join(parts)


def worst_case_rows(results: Results) -> list[list[Any]]:
    """A header, and for each defense its clean accuracy and the worst case at every radius."""
    rows: list[list[Any]] = [["setting", "clean", *(f"worst_{radius(eps)}" for eps in results[0][1].worst_case)]]
    for name, result in results:
        rows.append([name, *(f"{share.value:.3f}" for share in (result.clean, *result.worst_case.values()))])
    return rows


def outcome_rows(results: Results) -> list[list[Any]]:
    """A header, and for each defense, radius and sample the first attack that broke it, or nothing."""
    rows: list[list[Any]] = [["defense", "eps", "sample", "fell_to"]]
    for name, result in results:
        for eps in result.worst_case:
            fell = [""] * result.clean.samples
            for line in result.lines:
                if line.eps in (0.0, eps) and not line.attack.sweep:
                    for row, correct in zip(line.rows, line.correct.tolist(), strict=True):
                        fell[row] = fell[row] or ("" if correct else line.attack.name)
            rows += [[name, eps, sample, attack] for sample, attack in enumerate(fell)]
    return rows


def radius(eps: float) -> str:
    """A radius with two decimals, or the multiple of 1/255 that it equals."""
    parts = round(255 * eps)
    return f"{parts}/255" if abs(parts / 255 - eps) < 1e-6 and round(eps, 2) != eps else f"{eps:.2f}"
