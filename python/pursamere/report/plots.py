"""Plots of a result, as PNG files."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from pursamere._extras import require
from pursamere.attacks import Attack
from pursamere.evaluation.result import AttackResult, Proportion, Result, wilson_interval

from .drawing import COLORS, RIGHT, WRONG, new_figure, plain, to_png
from .words import NORMS, accuracy_of

__all__ = ["accuracy_plot", "bar_plot", "loss_plot"]

_SIGHT = {"exact gradient": "#0969da", "surrogate gradient": "#8250df", "no gradient of the model": "#8c959f"}
_DASHES = {"exact": "-", "identity": "--", "straight_through": ":", None: "-."}
_WIDTH = 8.6
_COLUMNS = 3


def accuracy_plot(result: Result) -> bytes | None:
    """Accuracy against eps under each attack that was run at many radii, and the worst cases, with 95 % intervals.

    ``None`` if all attacks were run at a single radius.
    """
    if not result.sweeps and len(result.eps) == 1:
        return None
    figure = new_figure(_WIDTH, 4.2)
    axis = figure.subplots()
    clean, sweeps = result.clean_line, result.sweeps
    for color, (name, lines) in zip(COLORS * len(sweeps), sweeps.items(), strict=False):
        rows = lines[0].rows[: lines[0].attack.samples]
        points = [(0.0, int(clean.correct[torch.tensor(rows, device="cpu")].sum()), len(rows))]
        points += [(line.eps, line.share.count, line.share.samples) for line in lines]
        low, high = zip(*(wilson_interval(count, samples) for _, count, samples in points), strict=True)
        eps = [point[0] for point in points]
        label = f"{plain(name)} ({plain(lines[0].attack.describe())}), {len(rows)} samples"
        axis.plot(eps, [count / samples for _, count, samples in points], marker="o", color=color, label=label)
        axis.fill_between(eps, low, high, color=color, alpha=0.15, linewidth=0)
    shares = [(0.0, result.clean), *result.worst_case.items()]
    for label, color, marker, part in (
        (f"no attack, {result.clean.samples} samples", RIGHT, "s", shares[:1]),
        (f"worst case over all attacks, {result.clean.samples} samples", WRONG, "D", shares[1:]),
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
    # Linear up to the first radius, then logarithmic: the last radius, where nothing can be robust, is far out.
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
    """The mean smallest margin against forward passes for each gradient attack; ``None`` if there is none."""
    curves = [line for line in result.lines if line.curve and not line.attack.sweep]
    if not curves:
        return None
    # An attack has the same color under every gradient; the dashes differ.
    families = list(dict.fromkeys(line.attack.describe() for line in curves))
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
                color=COLORS[families.index(line.attack.describe()) % len(COLORS)],
                linestyle=_DASHES[line.attack.gradient],
                linewidth=1.5,
                marker="." if len(line.curve) == 1 else None,
            )
        axis.set_xlabel("forward passes")
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
    """Accuracy under each attack as bars with 95 % intervals, a panel for every radius."""
    lines = [line for eps in result.eps for line in result.attacks_at(eps)]
    labels = {line.attack.name: _label(line) for line in lines}
    names = list(labels)
    figure, axes = _panels(result.eps, 0.9 + 0.26 * (len(names) + 2))
    end = len(names) + 1
    for eps, axis in zip(result.eps, axes, strict=True):
        _bar(axis, 0, result.clean, RIGHT)
        for line in result.attacks_at(eps):
            position = 1 + names.index(line.attack.name)
            if line.attack.survivors_only:
                axis.text(0.01, position, accuracy_of(line), va="center", fontsize=8, style="italic")
            else:
                _bar(axis, position, line.share, _SIGHT[_sight(line.attack)])
        _bar(axis, end, result.worst_case[eps], WRONG)
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


def _panels(eps: Sequence[float], height: float) -> tuple[Any, list[Any]]:
    """A figure with an axis for every radius, three to a row; ``height`` is that of a row in inches."""
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
    """The intervals as distances below and above the values, not negative even by rounding."""
    below = [max(0.0, share.value - share.interval[0]) for share in shares]
    return [below, [max(0.0, share.interval[1] - share.value) for share in shares]]


def _tidy(axis: Any) -> None:
    axis.spines[["top", "right"]].set_visible(False)


def _sight(attack: Attack) -> str:
    exact, surrogate, none = _SIGHT
    if attack.gradient is None:
        return none
    return exact if attack.gradient == "exact" else surrogate
