"""The code of README and docs runs, its commands and flags exist, and links lead somewhere."""

import argparse
import importlib
import re
import shlex
import sys

import pytest
import torch
from documents import PAGES, ROOT, Block, blocks_of, commands_of, text_of

import pursamere as ps
from pursamere.attacks import Clean
from pursamere.cli import build_parser
from pursamere.evaluation import Protocol

BLOCKS = [block for page in PAGES for block in blocks_of(page)]
PYTHON = [block for block in BLOCKS if block.language == "python"]
COMMANDS = [(block, line) for block in BLOCKS for line in commands_of(block)]


def run_page(page: str) -> dict:
    """Execute the blocks of a page one after the other, and return the names that they leave."""
    names: dict = {"__name__": "__main__"}
    for block in PYTHON:
        if block.page == page and block.skipped is None:
            exec(compile(block.setup, f"setup of {block}", "exec"), names)
            exec(compile("\n" * block.line + block.code, ROOT / page, "exec"), names)
    return names


@pytest.fixture
def short_evaluations(monkeypatch):
    """On clean images only, since a preset would take minutes."""
    evaluate, short = ps.evaluate, Protocol("clean", (Clean(),))
    monkeypatch.setattr(
        ps, "evaluate", lambda *images, preset=None, **options: evaluate(*images, preset=short, **options)
    )


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # those of attack libraries
@pytest.mark.usefixtures("short_evaluations")
@pytest.mark.parametrize("page", dict.fromkeys(block.page for block in PYTHON))
def test_python_blocks_run(page, tmp_path, monkeypatch, capsys):
    for needed in ("diffusers", "sklearn"):
        pytest.importorskip(needed, reason=f"{needed} is not installed")
    monkeypatch.chdir(tmp_path)
    with torch.random.fork_rng(devices=[]):
        names = run_page(page)
    if page == "README.md":
        assert torch.equal(names["logits"].argmax(1), names["mnist"].test.labels[:4])
        assert capsys.readouterr().out == f"{names['result'].verdict}\n"
        assert (tmp_path / "run" / "report.html").is_file()


@pytest.mark.parametrize("block", [block for block in BLOCKS if block.skipped], ids=str)
def test_blocks_that_are_not_executed(block):
    """So that the summary of a test run lists them with their reasons."""
    compile(block.code if block.language == "python" else "", str(block), "exec")
    pytest.skip(f"{block}: {block.skipped}")


def test_no_block_is_missed():
    for page in PAGES:
        fences = re.findall(r"^```", text_of(page), re.M)
        assert len(fences) == 2 * sum(block.page == page for block in BLOCKS), page
    languages = {block.language for block in BLOCKS if not block.language.startswith("{")}  # those are for Sphinx
    assert languages <= {"", "bibtex", "math", "python", "sh"}


@pytest.mark.parametrize("page", PAGES)
def test_relative_links_lead_to_files(page):
    links = re.findall(r"\]\(([^)#\s]+)[^)]*\)", re.sub(r"`[^`]*`", "", text_of(page)))
    assert [link for link in links if "://" not in link and not (ROOT / page).parent.joinpath(link).exists()] == []


@pytest.mark.parametrize(("block", "line"), COMMANDS, ids=lambda value: str(value) if isinstance(value, Block) else "")
def test_commands_parse(block, line, capsys):
    words = [word for word in shlex.split(line, comments=True) if not re.fullmatch(r"[A-Z_]+=.*", word)]
    check_command(words)


def check_command(words: list[str]) -> None:
    """Fail if the command is unknown here, or its own parser refuses its arguments."""
    match words:
        case [] | ["export", *_] | [".", _] | ["python", "-m", "venv", _]:
            pass
        case ["pursamere", *arguments] | ["python", "-m", "pursamere", *arguments]:
            build_parser().parse_args(arguments)
        case ["torchrun", "--nproc-per-node", _, "-m" | "--no-python", "pursamere", *arguments]:
            build_parser().parse_args(arguments)
        case ["python", "experiments/run.py", name, *arguments]:
            experiment_parser(name).parse_args(arguments)
        case ["python", script, *arguments]:
            source = (ROOT / script).read_text()
            assert [flag for flag in arguments if flag.startswith("--") and f'"{flag}"' not in source] == []
        case ["make", target, *_]:
            assert re.search(rf"^([\w -]* )?{target}( [\w -]*)?:", (ROOT / "Makefile").read_text(), re.M), target
        case ["pip", "install", *packages]:
            asked = {extra for names in re.findall(r"\[([\w,]+)\]", " ".join(packages)) for extra in names.split(",")}
            offered = re.findall(r"^(\w+) = \[", text_of("pyproject.toml"), re.M)
            assert asked <= set(offered)
        case _:
            pytest.fail(f"no test knows the command {words[0]}")


def experiment_parser(name: str) -> argparse.ArgumentParser:
    folder, before = str(ROOT / "experiments"), set(sys.modules)
    sys.path.insert(0, folder)
    try:
        parser = argparse.ArgumentParser()
        importlib.import_module("run").EXPERIMENTS[name].add_arguments(parser)
        return parser
    finally:
        sys.path.remove(folder)
        for module in set(sys.modules) - before:  # their names are as common as "run"
            if str(getattr(sys.modules[module], "__file__", "")).startswith(folder):
                del sys.modules[module]


def test_the_tables_of_parameters_are_those_of_the_sweeps():
    published = {
        line for path in ROOT.glob("docs/results/*-sweep.csv") for line in path.read_text().splitlines()
    }  # fmt: skip
    rows = re.findall(
        r"^\| (\S*(?: ?\w+=\S+)*) \| ([\d.]+) \| ([\d.]+)(?: \| ([\d.]+))? \|$", text_of("docs/parameters.md"), re.M
    )
    assert len(rows) > 28
    assert [row for row in rows if ",".join(filter(None, row)) not in published] == []


@pytest.mark.parametrize("page", [page for page in PAGES if "`pursamere " in text_of(page)])
def test_commands_within_the_text_exist(page):
    (commands,) = [action.choices for action in build_parser()._actions if isinstance(action.choices, dict)]
    for command, rest in re.findall(r"`pursamere (\w+)([^`]*)`", text_of(page)):
        parser = commands[command]
        for word in rest.split():  # a flag of the command itself or of one that it has, like `train denoiser`
            parser = next((each for each in subparsers(parser) if each.prog.endswith(f" {word}")), parser)
        flags = {flag for each in [parser, *subparsers(parser)] for flag in each._option_string_actions}
        assert [flag for flag in re.findall(r"--[\w-]+", rest) if flag not in flags] == []


def subparsers(parser: argparse.ArgumentParser) -> list[argparse.ArgumentParser]:
    return [each for action in parser._actions if isinstance(action.choices, dict) for each in action.choices.values()]
