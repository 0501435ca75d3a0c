"""The README's code runs, and its links lead somewhere."""

import re
from pathlib import Path

import pytest
import torch

from pursamere.cli import main

ROOT = Path(__file__).parents[1]
DOCUMENTS = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", *(f"docs/{path.name}" for path in ROOT.glob("docs/*.md"))]


def test_python_blocks_run():
    pytest.importorskip("diffusers", reason="diffusers is not installed")
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    names: dict = {}
    for block in blocks:
        exec(block, names)
    assert names["purified"].shape == (8, 1, 28, 28)
    assert torch.equal(names["accuracy"], torch.tensor(1.0))


@pytest.mark.parametrize("document", DOCUMENTS)
def test_relative_links_lead_to_files(document):
    path = ROOT / document
    links = re.findall(r"\]\(([^)#\s]+)[^)]*\)", re.sub(r"`[^`]*`", "", path.read_text()))
    assert [link for link in links if "://" not in link and not (path.parent / link).exists()] == []


def test_commands_of_the_readme_exist(capsys):
    commands = re.findall(r"^pursamere (\w+)", (ROOT / "README.md").read_text(), re.M)
    assert commands
    for command in commands:
        with pytest.raises(SystemExit) as stopped:
            main([command, "--help"])
        assert stopped.value.code == 0
