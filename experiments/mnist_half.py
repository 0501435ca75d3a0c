"""Whether the weights in half precision that ship decide like the float32 ones that they were rounded from.

FOLDER has the trainings of `make train-mnist` (build/weights), whose saved states hold the float32 weights.
--write tests/data/mnist_float32_logits.npz writes what the tests compare with.
"""

from __future__ import annotations

import argparse
import copy
import io
from pathlib import Path
from typing import Any

import numpy
import torch
from safetensors.torch import load_file

import pursamere as ps
from pursamere._files import write_bytes
from pursamere.pretrained import make_purifier

PREFIX = "average/module."


def in_float32(shipped: torch.nn.Module, state: Path) -> Any:
    """The network with the weights that it was trained to, if these are what was rounded."""
    weights = {k.removeprefix(PREFIX): v for k, v in load_file(state).items() if k.startswith(PREFIX)}
    wrong = [name for name, rounded in shipped.state_dict().items() if not torch.equal(rounded, weights[name].half())]
    if wrong:
        raise SystemExit(f"{state} is not the training that the shipped weights come from: {wrong[0]} differs")
    original = copy.deepcopy(shipped)
    original.load_state_dict(weights)
    return original


@torch.no_grad()
def logits(denoiser: Any, classifier: Any, images: torch.Tensor) -> dict[str, torch.Tensor]:
    purified = ps.PurifiedClassifier(make_purifier("mnist", denoiser, micro_batch=8), classifier)
    return {"undefended": classifier(images), "purified": purified(images)}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, metavar="FOLDER")
    parser.add_argument("--write", type=Path, metavar="FILE", help="write the float32 logits there")


def run(arguments: argparse.Namespace) -> None:
    mnist = ps.load_pretrained("mnist")
    kinds = ("denoiser", "classifier")
    states = {kind: arguments.folder / f"mnist-{kind}" / "training.safetensors" for kind in kinds}
    originals = [in_float32(getattr(mnist, kind), states[kind]) for kind in kinds]
    shipped = logits(mnist.denoiser, mnist.classifier, mnist.test.images)
    expected = logits(*originals, mnist.test.images)
    for name, said in shipped.items():
        same = int((said.argmax(1) == expected[name].argmax(1)).sum())
        largest = float((said - expected[name]).abs().max())
        print(f"{name}: {same} of {len(said)} decisions alike, logits differ by at most {largest:.4f}")
    if arguments.write:
        content = io.BytesIO()
        numpy.savez_compressed(content, **{name: tensor.numpy() for name, tensor in expected.items()})
        write_bytes(arguments.write, content.getvalue(), overwrite=True)
