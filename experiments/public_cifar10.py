"""CIFAR-10's public networks as models for ``pursamere evaluate --model``; see docs/public-networks.md.

Environment variables say what to load:

- ``PUBLIC_CLASSIFIER``: ``robustbench:NAME`` (CIFAR-10, Linf), ``timm:NAME``, or a checkpoint of ``pursamere train``.
- ``PUBLIC_DENOISER``: a folder or the name on the hub of a diffusers pipeline, such as ``google/ddpm-cifar10-32``, or
  ``FILE.py:FUNCTION``, a function without arguments that returns an EDM network in evaluation mode.
- ``PUBLIC_DEFENSE``: "pursamere" (the default) or one of ``pursamere.baselines``.
- ``PUBLIC_OPTIONS``: its arguments, such as ``"sigma=0.2 radius=0.06 direction=score draws=2"``.
- ``PUBLIC_DEVICE``: the ``--device`` of the evaluation, by default "cuda"; under torchrun each process takes its own.

Weights are downloaded by diffusers, RobustBench and timm, each to where it keeps them.
"""

from __future__ import annotations

import os

import torch
from torch import Tensor, nn

import pursamere as ps
from pursamere._devices import own_device
from pursamere._extras import require
from pursamere._validation import check_choice
from pursamere.cli.defenses import build_defense
from pursamere.cli.model import from_file
from pursamere.cli.types import option
from pursamere.denoisers import Denoiser


def purified() -> ps.PurifiedClassifier:
    """The classifier behind the purifier."""
    options = dict(map(option, os.environ.get("PUBLIC_OPTIONS", "").split()))
    purifier = build_defense(os.environ.get("PUBLIC_DEFENSE", "pursamere"), denoiser(), options)
    return ps.PurifiedClassifier(purifier, undefended())


def undefended() -> nn.Module:
    """The classifier alone."""
    kind, colon, name = _variable("PUBLIC_CLASSIFIER").partition(":")
    if not colon:
        return ps.load_checkpoint(kind, _device())
    loaders = {"robustbench": _robustbench, "timm": _timm}
    classifier = loaders[check_choice("the kind of PUBLIC_CLASSIFIER", kind, loaders)](name)
    return classifier.to(_device()).eval().requires_grad_(False)


def denoiser() -> Denoiser:
    """The purifier's denoiser."""
    source = _variable("PUBLIC_DENOISER")
    if ".py:" in source:
        return ps.denoisers.from_edm(from_file(source).to(_device()))
    pipeline = require("diffusers", extra="train").DDPMPipeline.from_pretrained(
        source, use_safetensors=True, low_cpu_mem_usage=False
    )
    return ps.denoisers.from_diffusers(pipeline.unet.to(_device()).eval().requires_grad_(False), pipeline.scheduler)


def _robustbench(name: str) -> nn.Module:
    from robustbench.utils import load_model

    return load_model(name, dataset="cifar10", threat_model="Linf")


def _timm(name: str) -> nn.Module:
    import timm

    network = timm.create_model(name, pretrained=True)
    return _Normalized(network, network.pretrained_cfg["mean"], network.pretrained_cfg["std"])


class _Normalized(nn.Module):
    """A network for normalized images that takes images in [0, 1]."""

    def __init__(self, network: nn.Module, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        return self.network((images - self.mean) / self.std)


def _device() -> torch.device:
    return own_device(os.environ.get("PUBLIC_DEVICE") or "cuda")


def _variable(name: str) -> str:
    if not os.environ.get(name):
        raise ValueError(f"the environment variable {name} must be set, see {__file__}")
    return os.environ[name]
