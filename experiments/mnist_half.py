"""Whether the weights in half precision that ship decide like the float32 ones that they were rounded from.

    python experiments/mnist_half.py FOLDER

FOLDER has the trainings of `make train-mnist` (build/weights), whose saved states hold the float32 weights.
"""

from __future__ import annotations

import argparse
import copy
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

import pursamere as ps
from pursamere.demo.run import build_purifier
from pursamere.demo.settings import SETTINGS

PREFIX = "average/module."


def in_float32(network: torch.nn.Module, state: Path) -> Any:
    tensors = load_file(state)
    original = copy.deepcopy(network)
    original.load_state_dict({k.removeprefix(PREFIX): v for k, v in tensors.items() if k.startswith(PREFIX)})
    pairs = list(zip(network.state_dict().items(), original.state_dict().values(), strict=True))
    wrong = [name for (name, shipped), tensor in pairs if not torch.equal(shipped, tensor.half().float())]
    if wrong:
        raise SystemExit(f"{state} is not the training that the shipped weights come from: {wrong[0]} differs")
    return original


def main() -> None:
    arguments_parser = argparse.ArgumentParser(description=__doc__)
    arguments_parser.add_argument("folder", type=Path)
    folder = arguments_parser.parse_args().folder
    shipped = ps.load_pretrained("mnist")
    classifier = in_float32(shipped.classifier, folder / "mnist-classifier" / "training.safetensors")
    denoiser = in_float32(shipped.denoiser, folder / "mnist-denoiser" / "training.safetensors")
    images = shipped.images.images
    for eps in (0.0, 0.3):
        signs = torch.randn(images.shape, generator=torch.Generator().manual_seed(0)).sign()
        x = (images + eps * signs).clamp(0, 1)
        for what, pair in (("bare", (None, None)), ("purified", (shipped.denoiser, denoiser))):
            logits = []
            for purified, network in zip(pair, (shipped.classifier, classifier), strict=True):
                if purified is not None:
                    network = ps.PurifiedClassifier(build_purifier(purified, SETTINGS["mnist"]), network)
                with torch.no_grad():
                    logits.append(torch.cat([network(part) for part in x.split(64)]))
            same = int((logits[0].argmax(1) == logits[1].argmax(1)).sum())
            largest = float((logits[0] - logits[1]).abs().max())
            about = f"{what:9} eps {eps:.1f} (random signs)"
            print(f"{about}: {same} of {len(x)} decide alike, logits differ by at most {largest:.4f}")


if __name__ == "__main__":
    main()
