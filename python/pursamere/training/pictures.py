"""Pictures of a training: loss curves, and sample images denoised and purified."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from pursamere.report.drawing import GridRow, draw_grid, new_figure, to_png

__all__ = ["draw_curves", "draw_purifications"]

_SHOWN = 8
_NOISE = 0.2  # standard deviation in pixel units, of the images that are purified


def draw_curves(history: list[dict[str, Any]], table: list[dict[str, float]]) -> bytes:
    """The training loss and every validation figure against the steps, as a PNG file.

    Figures in ``table`` that belong to a noise level are drawn as lines for comparison.
    """
    figure = new_figure(10.0, 3.8)
    left, right = figure.subplots(1, 2)
    steps = [entry["step"] for entry in history]
    left.plot(steps, [entry["loss"] for entry in history], marker=".", color="#0969da")
    left.set_title("training loss", fontsize=10)
    names = [name for name in history[-1] if name not in ("step", "loss")]
    baselines = {f"error at {row['sigma']:g}": row["kernel density"] for row in table if "sigma" in row}
    for name in names:
        (line,) = right.plot(steps, [entry[name] for entry in history], marker=".", label=name)
        if name in baselines:
            right.axhline(baselines[name], color=line.get_color(), linestyle=":", linewidth=1)
    title = "validation: mean squared error per pixel" if baselines else "validation"
    right.set_title(f"{title} (dotted: kernel density)" if baselines else title, fontsize=10)
    right.legend(frameon=False)
    for axis in (left, right) if baselines else (left,):
        axis.set_yscale("log")
    for axis in (left, right):
        axis.set_xlabel("step")
        axis.spines[["top", "right"]].set_visible(False)
    return to_png(figure)


def draw_purifications(denoiser: nn.Module, images: Tensor) -> bytes:
    """Some images, the same with noise, denoised, and purified, as a PNG file."""
    import pursamere as ps

    clean = images[:_SHOWN]
    noise = torch.randn(clean.shape, generator=torch.Generator("cpu").manual_seed(0), device="cpu").to(clean.device)
    noisy = (clean + _NOISE * noise).clamp(0, 1)
    purifier = ps.Purifier(denoiser, sigma=_NOISE, steps=5, radius=2 * _NOISE, noise=ps.GaussianNoise(draws=4))
    rows = {
        "image": clean,
        f"with noise {_NOISE:g}": noisy,
        "denoised": denoiser(noisy, _NOISE).clamp(0, 1),
        "purified": purifier(noisy),
    }
    figure = new_figure(1.1 * len(clean) + 0.6, 4.6)
    draw_grid(figure, [GridRow(title, batch) for title, batch in rows.items()])
    return to_png(figure)
