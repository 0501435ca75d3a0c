"""The commands in the model cards train what is in the folders beside them."""

import dataclasses
import shlex
from pathlib import Path

import pytest
import torch

from pursamere.cli import build_parser
from pursamere.models.checkpoints import read_configuration
from pursamere.training import ClassifierConfiguration, DenoiserConfiguration, configuration
from pursamere.training.configuration import with_precision

ROOT = Path(__file__).parents[1]
CARDS = (
    ROOT / "python" / "pursamere" / "pretrained" / "cifar10" / "README.md",
    ROOT / "experiments" / "weights" / "README.md",
)


@pytest.mark.parametrize("card", CARDS, ids=["ship", "experiments"])
def test_the_commands_in_a_model_card_have_the_settings_of_the_checkpoints(card):
    lines = card.read_text().replace("\\\n", " ").splitlines()
    trained = set()
    for command in (line for line in lines if line.startswith("pursamere train")):
        arguments = build_parser().parse_args(shlex.split(command)[1:])
        kind = DenoiserConfiguration if arguments.kind == "denoiser" else ClassifierConfiguration
        given = {
            item.name: getattr(arguments, item.name) for item in dataclasses.fields(kind) if item.name in arguments
        }
        settings = with_precision(configuration(kind, given), torch.device(arguments.device)).to_json()
        recorded = read_configuration(card.parent / arguments.output)["training"]["settings"]
        recorded["precision"] = "bfloat16" if recorded["precision"] == "auto" else recorded["precision"]
        # These don't change the weights.
        for name in recorded.keys() - {"validate_every", "save_every", "initial", "purifier"}:
            if recorded.get("purifier") or not name.startswith("purifier_"):
                assert settings[name] == recorded[name], (command, name)
        trained.add(arguments.output.name)
    assert trained == {path.parent.name for path in card.parent.glob("*/config.json")}
