"""Rooms import downwards only, and ``import pursamere`` loads neither the command line nor anything that draws."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import pursamere

ROOT = Path(pursamere.__file__).parent

# From top to bottom: a module may import its own room and those below it. The order is that of docs/architecture.md.
ROOMS = [
    {"pursamere.__main__"},
    {"pursamere.cli"},
    {"pursamere.training"},
    {"pursamere"},  # the public names
    {"pursamere._evaluate"},
    {"pursamere.report"},
    {"pursamere.evaluation"},
    {"pursamere.attacks"},
    {"pursamere.pretrained"},
    {"pursamere.baselines"},
    {"pursamere.tuning"},
    {"pursamere.purifier"},
    {"pursamere.classifier"},
    {"pursamere.stepping"},
    {"pursamere.objective"},
    {"pursamere.derivative_check"},
    {"pursamere.functional"},
    {"pursamere.denoisers"},
    {"pursamere.models"},
    {"pursamere.cuda_graphs", "pursamere.execution"},
    {"pursamere.determinism"},
    {"pursamere.noise", "pursamere.datasets"},
    {"pursamere._helpers"},  # all other modules whose names begin with an underscore
]
HEIGHT = {room: len(ROOMS) - number for number, rooms in enumerate(ROOMS) for room in rooms}


def modules():
    """All modules by name."""
    found = {}
    for path in ROOT.rglob("*.py"):
        name = ".".join(("pursamere", *path.relative_to(ROOT).with_suffix("").parts))
        found[name.removesuffix(".__init__")] = path
    return found


MODULES = modules()


def room_of(module):
    top = ".".join(module.split(".")[:2])
    if top not in HEIGHT and top.startswith("pursamere._"):
        return "pursamere._helpers"
    return top


def imports(module, *, only_first=False):
    """What a module imports of the package, wherever the statement stands.

    With ``only_first``, no imports in functions and for type checkers: those that run when the module is imported.
    """
    package = module if MODULES[module].name == "__init__.py" else module.rpartition(".")[0]

    def visit(node):
        if only_first and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            return
        if only_first and isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            return
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parent = package.rsplit(".", node.level - 1)[0] if node.level else ""
            base = ".".join(filter(None, (parent, node.module)))
            submodules = [f"{base}.{alias.name}" for alias in node.names if f"{base}.{alias.name}" in MODULES]
            yield from submodules
            if len(submodules) < len(node.names):
                yield base
        for child in ast.iter_child_nodes(node):
            yield from visit(child)

    return {name for name in visit(ast.parse(MODULES[module].read_text())) if name in MODULES} - {module}


def test_every_module_is_in_a_room():
    assert {room for module in MODULES if (room := room_of(module)) not in HEIGHT} == set()
    assert HEIGHT.keys() - {room_of(module) for module in MODULES} == set()


def test_no_room_imports_a_room_above_it():
    upward = {
        f"{module} imports {target}"
        for module in MODULES
        for target in imports(module)
        if HEIGHT[room_of(target)] > HEIGHT[room_of(module)]
    }
    assert upward == set()


def test_modules_do_not_import_each_other_in_a_circle():
    left = {module: imports(module, only_first=True) for module in MODULES}
    while free := [module for module, targets in left.items() if not targets & left.keys()]:
        for module in free:
            del left[module]
    assert left == {}


def loaded_by(statement):
    """The modules that a fresh process has after a statement."""
    code = f"{statement}\nimport sys\nprint(*sys.modules, sep='\\n')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    return set(done.stdout.split())


@pytest.mark.slow
def test_import_pursamere_loads_no_command_line_and_nothing_that_draws():
    loaded = loaded_by("import pursamere")
    assert "pursamere.attacks.pgd" in loaded
    assert {room_of(name) for name in loaded if name.partition(".")[0] == "pursamere"} <= {
        room for room, height in HEIGHT.items() if height <= HEIGHT["pursamere"]
    } - {"pursamere.report"}
    assert not {"matplotlib", "PIL", "tqdm", "diffusers", "sklearn", "argparse"} & loaded - loaded_by("import torch")


# Importing any of the others first imports pursamere, which loads them all.
@pytest.mark.slow
@pytest.mark.parametrize("package", ["pursamere.cli", "pursamere.training", "pursamere.report"])
def test_a_package_loads_no_room_above_it(package):
    above = {room_of(name) for name in loaded_by(f"import {package}") if name in MODULES}
    assert {room for room in above if HEIGHT[room] > max(HEIGHT[package], HEIGHT["pursamere"])} == set()
