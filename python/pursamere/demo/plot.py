"""The demo's picture: some images before and after, and the expected reconstruction error along the steps."""

from __future__ import annotations

import io
from typing import Any

import torch
from torch import Tensor

from pursamere._extras import require
from pursamere.demo import results as names
from pursamere.demo.results import find, predict
from pursamere.demo.run import Demo

SHOWN = 8
_RIGHT, _WRONG = "#1a7f37", "#cf222e"
_COLORS = ("#0969da", "#bf8700", "#cf222e", "#8250df")


def draw(demo: Demo) -> bytes:
    """The picture as a PNG file."""
    # A Figure of its own rather than pyplot, which would choose a backend for the whole process and keep the figure.
    figure = require("matplotlib.figure", extra="plots").Figure(figsize=(13.0, 4.4), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=(1.7, 1.0))
    _draw_images(demo, left)
    _draw_errors(demo, right)
    target = io.BytesIO()
    # Without the metadata (a version) the file depends on what is drawn only.
    figure.savefig(target, format="png", dpi=110, metadata={"Software": None})
    return target.getvalue()


def choose_shown(demo: Demo, eps: float) -> Tensor:
    """The first samples that the attack on the undefended classifier fooled, then others if there are too few."""
    attack = find(demo.results, names.UNDEFENDED, names.PGD, eps)
    return torch.argsort(attack.correct.int(), stable=True)[:SHOWN]


def _draw_images(demo: Demo, panel: Any) -> None:
    eps = demo.settings.eps[-1]
    shown = choose_shown(demo, eps)
    images, labels = demo.attacked.images[shown], demo.attacked.labels[shown]
    adversarial = demo.adversarial[eps][shown]
    rows = (("input", images), ("adversarial", adversarial), ("purified", demo.purifier(adversarial)))
    axes = panel.subplots(len(rows), len(shown), squeeze=False)
    for line, (title, batch) in zip(axes, rows, strict=True):
        predictions = predict(demo.subject.classifier, batch)
        for axis, image, predicted, label in zip(line, batch, predictions.tolist(), labels.tolist(), strict=True):
            axis.imshow(image[0].numpy(), cmap="gray", vmin=0, vmax=1)
            axis.set_title(str(predicted), fontsize=11, color=_RIGHT if predicted == label else _WRONG, pad=3)
            axis.set_xticks([])
            axis.set_yticks([])
        line[0].set_ylabel(title)
    panel.suptitle(
        f"first digits that PGD fools at eps {eps:.2f}; above each what the undefended classifier says (red: wrong)",
        fontsize=10,
    )


def _draw_errors(demo: Demo, panel: Any) -> None:
    axis = panel.subplots()
    inputs: list[tuple[str, Tensor]] = [("clean", demo.attacked.images)]
    inputs += [(f"adversarial, eps {eps:.2f}", batch) for eps, batch in demo.adversarial.items()]
    for number, (label, batch) in enumerate(inputs):
        error = demo.purifier.trace(batch).ere.detach()  # [steps + 1, B]
        low, middle, high = torch.quantile(error, error.new_tensor([0.25, 0.5, 0.75]), dim=1)
        color = _COLORS[number % len(_COLORS)]
        axis.plot(range(len(error)), middle.numpy(), color=color, label=label)
        axis.fill_between(range(len(error)), low.numpy(), high.numpy(), color=color, alpha=0.15, linewidth=0)
    axis.set_xlabel("purification step")
    axis.set_ylabel("expected reconstruction error (squared pixel units)")
    axis.set_title("median and middle half of the images", fontsize=10)
    axis.legend(frameon=False)
    axis.spines[["top", "right"]].set_visible(False)
