"""The README's code runs, and its links lead somewhere."""

import re
from pathlib import Path

import pytest
import torch

import pursamere as ps
from pursamere.attacks import Clean
from pursamere.cli import main
from pursamere.evaluation import Protocol

ROOT = Path(__file__).parents[1]
DOCUMENTS = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", *(f"docs/{path.name}" for path in ROOT.glob("docs/*.md"))]


@pytest.mark.slow
def test_python_blocks_run(tmp_path, monkeypatch, capsys):
    pytest.importorskip("diffusers", reason="diffusers is not installed")
    monkeypatch.chdir(tmp_path)
    evaluate, clean = ps.evaluate, Protocol("clean", (Clean(),))  # the preset itself would take minutes
    monkeypatch.setattr(ps, "evaluate", lambda *images, preset, **options: evaluate(*images, preset=clean, **options))
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    names: dict = {}
    for block in blocks:
        exec(block, names)
    assert names["logits"].shape == (4, 10)
    assert torch.equal(names["logits"].argmax(1), names["mnist"].test.labels[:4])
    assert capsys.readouterr().out == f"{names['result'].verdict}\n"
    assert (tmp_path / "run" / "report.html").is_file()


@pytest.mark.parametrize("document", DOCUMENTS)
def test_relative_links_lead_to_files(document):
    path = ROOT / document
    links = re.findall(r"\]\(([^)#\s]+)[^)]*\)", re.sub(r"`[^`]*`", "", path.read_text()))
    assert [link for link in links if "://" not in link and not (path.parent / link).exists()] == []


def test_commands_of_the_readme_exist(capsys):
    text = (ROOT / "README.md").read_text()
    commands = {*re.findall(r"^pursamere (\w+)", text, re.M), *re.findall(r"`pursamere (\w+)", text)}
    assert len(commands) > 2
    for command in commands:
        with pytest.raises(SystemExit) as stopped:
            main([command, "--help"])
        assert stopped.value.code == 0
