"""D4 across compilers: a module that clang has built gives the bits of the installed one.

Run as a program, this file loads a module and saves what every op gives: one process can register the ops only once.
"""

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from cases import DTYPE_PAIRS, OPS, SHAPES, assert_same_bits, draw_calls, op_calls, special_calls

ROOT = Path(__file__).parent.parent
CMAKE = Path(sys.executable).parent / "cmake"
CLANG = next(filter(shutil.which, ["clang++", *(f"clang++-{version}" for version in range(14, 31))]), None)


def every_call():
    for shape in SHAPES:
        for dtypes in DTYPE_PAIRS:
            yield from op_calls(shape, *dtypes)
    for draws in range(1, 10):
        yield from draw_calls(draws)
    for d in (5, 10_000):
        yield from special_calls(d)


def results(module):
    """What the ops give, and the parts of the noise one by one."""
    words = torch.arange(0, 2**32, 99_991)
    turns = torch.linspace(-0.125, 0.125, 99_991).numpy()
    yield torch.from_numpy(module.log_unit(((words + 1) / 2**32).float().numpy()))
    yield torch.from_numpy(module.sine_of_turns(turns))
    yield torch.from_numpy(module.cosine_of_turns(turns))
    for name, arguments in every_call():
        yield getattr(OPS, name)(*arguments)


def require(found, what):
    """Skip the test where something is missing, or fail it where PURSAMERE_REQUIRE_CLANG says that it is there."""
    if not found:
        (pytest.fail if os.environ.get("PURSAMERE_REQUIRE_CLANG") else pytest.skip)(f"needs {what}")


@pytest.mark.parametrize(("required", "outcome"), [("1", pytest.fail.Exception), ("", pytest.skip.Exception)])
def test_what_is_missing_fails_only_where_it_is_required(monkeypatch, required, outcome):
    monkeypatch.setenv("PURSAMERE_REQUIRE_CLANG", required)
    with pytest.raises(outcome, match="needs clang"):
        require(None, "clang")
    require("clang++", "clang")


@pytest.mark.slow
# With the machine's own instructions, fma among them, products and sums could be contracted.
@pytest.mark.parametrize("flags", ["", "-march=native"], ids=["portable", "native"])
def test_a_module_built_with_clang_gives_the_same_bits(tmp_path, flags):
    import pursamere_ext

    require(CLANG, "clang++, 14 or newer (on Debian: apt-get install clang)")
    require(CMAKE.exists(), "the package cmake")
    environment = {**os.environ, "CXX": CLANG, "CXXFLAGS": flags, "OMP_WAIT_POLICY": "PASSIVE"}
    options = ["-DPURSAMERE_CUDA=OFF", f"-DPython_EXECUTABLE={sys.executable}"]
    subprocess.run([CMAKE, "-S", ROOT, "-B", tmp_path, *options], check=True, env=environment)
    subprocess.run([CMAKE, "--build", tmp_path, "--parallel", "2"], check=True)
    (library,) = tmp_path.glob("_C.*.so")
    saved = tmp_path / "results.pt"
    subprocess.run([sys.executable, __file__, library, saved], check=True, env=environment)
    compiler, got = torch.load(saved)
    assert compiler.startswith("Clang"), compiler
    for number, (a, b) in enumerate(zip(got, results(pursamere_ext._C), strict=True)):
        assert_same_bits(a, b, number)


if __name__ == "__main__":
    spec = importlib.util.spec_from_file_location("_C", sys.argv[1])
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    torch.save((module.build_info()["compiler"], list(results(module))), sys.argv[2])
