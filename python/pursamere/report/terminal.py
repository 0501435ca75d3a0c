"""The result as a table for the terminal."""

from __future__ import annotations

from pursamere._text import aligned
from pursamere.evaluation.result import Result

from .words import accuracy_of, gradient_of

__all__ = ["attack_table", "text_table"]


def text_table(result: Result) -> str:
    """Every attack and every masking check, without final newline."""
    checks = [("masking check", "", ""), *((c.name, "pass" if c.passed else "WARN", c.detail) for c in result.checks)]
    return f"{attack_table(result)}\n\n{aligned(checks)}"


def attack_table(result: Result) -> str:
    """A row for every attack at every radius with the worst case last, without final newline."""
    rows = [("attack", "gradient", f"eps ({result.norm})", "accuracy, 95 % interval")]
    rows.append(("none", "", "", str(result.clean)))
    for eps, worst in result.worst_case.items():
        for line in result.attacks_at(eps):
            figure = accuracy_of(line)
            if line.attack.samples is not None and not line.attack.survivors_only:
                figure += f", {line.share.samples} samples"
            rows.append((line.attack.name, gradient_of(line.attack), f"{eps:.4g}", figure))
        rows.append(("WORST CASE", "", f"{eps:.4g}", str(worst)))
    return aligned(rows)
