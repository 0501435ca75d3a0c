"""The result in a terminal."""

from __future__ import annotations

from pursamere._text import aligned
from pursamere.evaluation.result import Result
from pursamere.report.markdown import gradient_of
from pursamere.report.plots import told


def text_table(result: Result) -> str:
    """A table with a line for every attack at every radius, the worst case last, without trailing line break."""
    rows = [("attack", "gradient", f"eps ({result.norm})", "accuracy, 95 % interval")]
    rows.append(("none", "", "", str(result.clean)))
    for eps, worst in result.worst_case.items():
        for line in result.lines:
            if line.eps == eps and not line.attack.sweep:
                figure = told(line) if line.attack.survivors_only else str(line.share)
                if line.attack.samples is not None and not line.attack.survivors_only:
                    figure += f", {line.share.samples} samples"
                rows.append((line.attack.name, gradient_of(line.attack), f"{eps:.4g}", figure))
        rows.append(("WORST CASE", "", f"{eps:.4g}", str(worst)))
    checks = [("masking check", "", ""), *((c.name, "pass" if c.passed else "WARN", c.detail) for c in result.checks)]
    return aligned(rows) + "\n\n" + aligned(checks)
