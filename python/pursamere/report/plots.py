"""Plots of a result, as PNG files that depend on what is drawn only."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from typing import Any

import torch

from pursamere._extras import require
from pursamere._text import printable
from pursamere.evaluation.protocol import CLEAN, Attack
from pursamere.evaluation.result import AttackResult, Proportion, Result, wilson_interval

WORST = "#cf222e"
_CLEAN = "#1a7f37"
# By how an attack sees the model; the legend of the bars.
_SIGHT = {"exact gradient": "#0969da", "surrogate gradient": "#8250df", "no gradient of the model": "#8c959f"}
_COLORS = (
    "#0969da",
    "#bf8700",
    "#8250df",
    "#1a7f37",
    "#d4477f",
    "#0b9a9a",
    "#8c4a13",
    "#57606a",
    "#e16f24",
    "#1f2328",
)
_DASHES = {"exact": "-", "identity": "--", "straight_through": ":"}
_SUFFIXES = ("-bpda", "-st")
NORMS = {"linf": "Linf", "l2": "L2"}
_WIDTH = 8.6
_COLUMNS = 3


def new_figure(width: float, height: float) -> Any:
    """A matplotlib figure of its own: pyplot would choose a backend for the process, and keep the figure."""
    return require("matplotlib.figure", extra="evaluation").Figure(figsize=(width, height), layout="constrained")


def to_png(figure: Any) -> bytes:
    """The figure as a PNG file without the metadata (a version), so that equal figures are equal bytes."""
    target = io.BytesIO()
    figure.savefig(target, format="png", dpi=130, metadata={"Software": None})
    return target.getvalue()


def plain(text: str) -> str:
    """``text`` on one line, and never taken for a formula."""
    return printable(text).replace("$", r"\$")


def accuracy_plot(result: Result) -> bytes:
    """Accuracy against eps: every attack that was run at many radii, and the worst cases, with their intervals."""
    figure = new_figure(_WIDTH, 4.2)
    axis = figure.subplots()
    clean = next(line for line in result.lines if line.attack.name == CLEAN)
    sweeps: dict[str, list[AttackResult]] = {}
    for line in result.lines:
        if line.attack.sweep:
            sweeps.setdefault(line.attack.name, []).append(line)
    for color, (name, lines) in zip(_COLORS * len(sweeps), sweeps.items(), strict=False):
        rows = lines[0].rows[: lines[0].attack.samples]
        points = [(0.0, int(clean.correct[torch.tensor(rows, device="cpu")].sum()), len(rows))]
        points += sorted((line.eps, line.share.count, line.share.samples) for line in lines)
        low, high = zip(*(wilson_interval(count, samples) for _, count, samples in points), strict=True)
        eps = [point[0] for point in points]
        label = f"{plain(name)}: {_method(lines[0].attack)}, {len(rows)} samples"
        axis.plot(eps, [count / samples for _, count, samples in points], marker="o", color=color, label=label)
        axis.fill_between(eps, low, high, color=color, alpha=0.15, linewidth=0)
    shares = [(0.0, result.clean), *result.worst_case.items()]
    for label, color, marker, part in (
        (f"no attack, {result.clean.samples} samples", _CLEAN, "s", shares[:1]),
        (f"worst case over all attacks, {result.clean.samples} samples", WORST, "D", shares[1:]),
    ):
        axis.errorbar(
            [eps for eps, _ in part],
            [share.value for _, share in part],
            yerr=_errors([share for _, share in part]),
            fmt=marker,
            color=color,
            capsize=4,
            label=label,
            zorder=3,
        )
    # Linear up to the first radius: the last one, at which nothing can be robust, may be far from those of interest.
    radii = sorted({line.eps for lines in sweeps.values() for line in lines} or result.eps)
    axis.set_xscale("symlog", linthresh=radii[0], linscale=0.6)
    axis.set_xticks([0, *radii], ["0", *(f"{radius:.3g}" for radius in radii)], fontsize=9, rotation=40)
    axis.set_xticks([], minor=True)
    axis.set_xlabel(f"eps ({NORMS[result.norm]}, pixel units; logarithmic beyond {radii[0]:.3g})")
    axis.set_ylabel("accuracy")
    axis.set_ylim(-0.02, 1.02)
    axis.grid(alpha=0.25)
    axis.legend(frameon=False)
    _tidy(axis)
    return to_png(figure)


def loss_plot(result: Result) -> bytes | None:
    """The mean smallest margin against evaluations, a line for every gradient attack; ``None`` if there is none."""
    curves = [line for line in result.lines if line.curve and not line.attack.sweep]
    if not curves:
        return None
    # The same color for an attack under every gradient, which the dashes tell apart.
    families = list(dict.fromkeys(_family(line.attack) for line in curves))
    figure, axes = _panels(result.eps, 3.6)
    handles: dict[str, Any] = {}
    for eps, axis in zip(result.eps, axes, strict=True):
        axis.axhline(0, color="#57606a", linewidth=0.8)
        for line in curves:
            if line.eps != eps:
                continue
            name = line.attack.name + (" (survivors)" if line.attack.survivors_only else "")
            (handles[name],) = axis.plot(
                range(1, len(line.curve) + 1),
                line.curve,
                color=_COLORS[families.index(_family(line.attack)) % len(_COLORS)],
                linestyle=_DASHES[line.attack.gradient],
                linewidth=1.5,
                marker="." if len(line.curve) == 1 else None,
            )
        axis.set_xlabel("evaluations")
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.grid(alpha=0.25)
    for axis in axes[::_COLUMNS]:
        axis.set_ylabel("mean smallest margin")
    columns = min(4, len(handles))
    figure.legend(
        handles.values(), map(plain, handles), loc="outside lower center", ncols=columns, frameon=False, fontsize=9
    )
    return to_png(figure)


def bar_plot(result: Result) -> bytes:
    """A bar with its interval for every attack, a panel for every radius."""
    lines = [line for line in result.lines if line.attack.name != CLEAN and not line.attack.sweep]
    labels = {line.attack.name: _label(line) for line in lines}
    names = list(labels)
    figure, axes = _panels(result.eps, 0.9 + 0.26 * (len(names) + 2))
    end = len(names) + 1
    for eps, axis in zip(result.eps, axes, strict=True):
        _bar(axis, 0, result.clean, _CLEAN)
        for line in lines:
            if line.eps == eps and line.attack.survivors_only:
                axis.text(0.01, 1 + names.index(line.attack.name), told(line), va="center", fontsize=8, style="italic")
            elif line.eps == eps:
                _bar(axis, 1 + names.index(line.attack.name), line.share, _SIGHT[_sight(line.attack)])
        _bar(axis, end, result.worst_case[eps], WORST)
        axis.set_xlim(0, 1.15)
        axis.set_xticks([0, 0.5, 1])
        axis.set_xlabel("accuracy")
    for axis in axes[::_COLUMNS]:
        axis.set_yticks(range(end + 1), ["no attack", *labels.values(), "worst case"], fontsize=9)
        axis.set_ylim(end + 0.6, -0.6)
    patch = require("matplotlib.patches", extra="evaluation").Patch
    seen = {_sight(line.attack) for line in lines}
    handles = [patch(color=color, label=label) for label, color in _SIGHT.items() if label in seen]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(_SIGHT), frameon=False, fontsize=9)
    return to_png(figure)


def _label(line: AttackResult) -> str:
    return plain(line.attack.name) + (f" ({line.attack.samples} samples)" if line.attack.samples is not None else "")


def told(line: AttackResult) -> str:
    """What an attack on survivors did, whose accuracy would say nothing."""
    attacked = int(line.attacked.sum())
    return f"broke {attacked - int((line.correct & line.attacked).sum())} of {attacked} survivors"


def _panels(eps: Sequence[float], height: float) -> tuple[Any, list[Any]]:
    """A figure and an axis for every radius, rows of three; ``height`` is one row's in inches."""
    columns = min(_COLUMNS, len(eps))
    rows = math.ceil(len(eps) / columns)
    figure = new_figure(_WIDTH, 0.6 + height * rows)
    axes = figure.subplots(rows, columns, squeeze=False, sharey=True).flatten().tolist()
    for axis, radius in zip(axes, eps, strict=False):
        axis.set_title(f"eps {radius:.4g}", fontsize=10)
        _tidy(axis)
    for spare in axes[len(eps) :]:
        spare.remove()
    return figure, axes[: len(eps)]


def _bar(axis: Any, position: int, share: Proportion, color: str) -> None:
    axis.barh(position, share.value, xerr=_errors([share]), color=color, height=0.68, ecolor="#1f2328", capsize=2)
    axis.text(1.02, position, f"{share.value:.3f}", va="center", fontsize=8)


def _errors(shares: Sequence[Proportion]) -> list[list[float]]:
    """The intervals as matplotlib wants them: distances below and above, never negative by rounding."""
    below = [max(0.0, share.value - share.interval[0]) for share in shares]
    return [below, [max(0.0, share.interval[1] - share.value) for share in shares]]


def _tidy(axis: Any) -> None:
    axis.spines[["top", "right"]].set_visible(False)


def _sight(attack: Attack) -> str:
    exact, surrogate, none = _SIGHT
    if attack.is_black_box:
        return none
    return exact if attack.gradient == "exact" else surrogate


def _family(attack: Attack) -> str:
    for suffix in _SUFFIXES:
        if attack.gradient != "exact" and attack.name.endswith(suffix):
            return attack.name.removesuffix(suffix)
    return attack.name


def _method(attack: Attack) -> str:
    return f"{attack.kind.upper()}, {attack.steps} steps"
