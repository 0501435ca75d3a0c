"""The GPU check, without a GPU: how it runs its steps and reports them."""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import gpu_check
import gpu_check_ops
import pytest
import torch


def step(name, code, limit=60.0, wanted=".*"):
    return name, [sys.executable, "-S", "-c", code], limit, wanted


def run(steps, folder, budget=100.0):
    """Return whether all was ok, and the reported result of each step."""
    ok = gpu_check.run_steps(steps, folder, budget, os.environ, "abc")
    report = json.loads((folder / "report.json").read_text())
    assert report["ok"] == ok
    assert (folder / "summary.md").read_text().startswith(f"# GPU check: {'ok' if ok else 'FAILED'}")
    return ok, {step["name"]: (step["ok"], step["detail"]) for step in report["steps"]}


def running(process):
    try:
        return Path(f"/proc/{process}/stat").read_text().split()[2] != "Z"  # a zombie has ended
    except OSError:
        return False


def test_steps_run_after_one_that_fails_and_each_is_judged_by_its_own_output(tmp_path):
    good = step("good", "print('3 passed in 1 s')", wanted=r"\d+ passed.*")
    assert run([good], tmp_path) == (True, {"good": (True, "3 passed in 1 s")})
    steps = [step("bad", "print('5 passed'); 1 / 0", wanted=r"\d+ passed"), step("silent", "", wanted=r"\d+ passed")]
    steps += [("missing", ["no-such-sanitizer"], 9, ".*"), good]
    ok, found = run(steps, tmp_path)
    assert not ok
    assert found == {
        "bad": (False, "exit code 1: ZeroDivisionError: division by zero"),
        "silent": (False, "no success in its output: "),
        "missing": (False, "no-such-sanitizer not found"),
        "good": (True, "3 passed in 1 s"),
    }
    assert "ZeroDivisionError" in (tmp_path / "bad.log").read_text()


@pytest.mark.parametrize("name", ["device", "build"])
def test_nothing_runs_without_a_device_or_a_build(tmp_path, name):
    ok, found = run([step(name, "1 / 0"), step("tests", "")], tmp_path)
    assert not ok
    assert [*found] == [name]


@pytest.mark.parametrize(("limit", "budget"), [(1.0, 100.0), (100.0, 1.0)])
def test_a_step_that_takes_too_long_is_stopped_with_what_it_started(tmp_path, limit, budget):
    code = "import subprocess; child = subprocess.Popen(['sleep', '60']); print(child.pid, flush=True); child.wait()"
    ok, found = run([step("long", code, limit)], tmp_path, budget)
    assert not ok
    assert found["long"][1].startswith("stopped after 1 s")
    child = next(int(line) for line in (tmp_path / "long.log").read_text().splitlines() if line.isdigit())
    for _ in range(50):
        if not running(child):
            return
        time.sleep(0.1)
    pytest.fail("the child is still running")


def test_a_step_that_does_not_stop_when_asked_is_killed_while_others_run(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_check, "GRACE", 0.2)
    deaf = "import os, signal, time; signal.signal(signal.SIGINT, signal.SIG_IGN); print(os.getpid(), flush=True)\n"
    steps = [step("deaf", f"{deaf}time.sleep(60)", 1.0), step("longer", "import time; time.sleep(4); print('done')")]
    alive = []
    for ended in gpu_check.run_together(steps, tmp_path, time.monotonic() + 60, os.environ):
        process = int((tmp_path / "deaf.log").read_text().splitlines()[-1])
        alive.append((ended.name, running(process)))
        assert ended.result[0] == (ended.name == "longer")
    assert alive == [("deaf", False), ("longer", False)]


@pytest.mark.parametrize(
    ("summary", "clean"),
    [
        ("ERROR SUMMARY: 0 errors", True),
        ("RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)", True),
        ("ERROR SUMMARY: 1 error", False),
        ("RACECHECK SUMMARY: 2 hazards displayed (0 errors, 2 warnings)", False),
        ("COMPUTE-SANITIZER", False),
    ],
)
def test_a_sanitizer_must_report_that_it_found_nothing(tmp_path, summary, clean):
    assert run([step("memcheck", f"print('========= {summary}')", wanted=gpu_check.CLEAN)], tmp_path)[0] == clean


def test_the_steps_name_files_that_exist(tmp_path):
    for name, command, _, _ in gpu_check.steps(tmp_path, tmp_path / "work"):
        assert all(Path(part).is_file() for part in map(str, command) if part.endswith(".py")), name


def test_steps_run_at_the_same_time_but_the_build_and_the_benchmark(tmp_path):
    """Two that wait for each other's files, after the build and before the benchmark."""
    waiting = "import pathlib, time; here = pathlib.Path({0!r}); (here / '{1}').touch()\n"
    waiting += "while not (here / '{2}').exists(): time.sleep(0.01)\ntime.sleep(0.3); (here / '{1} ended').touch()"
    one, two = (step(a, waiting.format(str(tmp_path), a, b), 20) for a, b in (("one", "two"), ("two", "one")))
    alone = "import pathlib; print(sorted(path.name for path in pathlib.Path({0!r}).glob('* ended')))"
    build, benchmark = (step(name, alone.format(str(tmp_path)), wanted=r"\[.*\]") for name in ("build", "benchmark"))
    ok, found = run([benchmark, one, two, build], tmp_path)
    assert ok
    assert next(iter(found)) == "build"
    assert found["build"][1] == "[]"
    assert [*found][-1] == "benchmark"
    assert found["benchmark"][1] == "['one ended', 'two ended']"
    assert run([benchmark], tmp_path)[0]


def test_the_benchmark_is_judged_by_its_last_line_and_has_targets_for_every_op(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(Path(gpu_check.__file__).parents[1] / "benchmarks")
    import ops_on_cuda
    from op_cases import OPS

    wanted = {name: pattern for name, _, _, pattern in gpu_check.steps(tmp_path, tmp_path)}["benchmark"]
    nothing = {"rows": [], "host": []}
    one = {"rows": [{"targets": {"% of copy": {"met": False}}}], "host": []}
    assert not re.findall(wanted, ops_on_cuda.verdict(nothing), re.MULTILINE)
    assert re.findall(wanted, f"float32\n{ops_on_cuda.verdict(one)}\n", re.MULTILINE)
    assert set(ops_on_cuda.EAGER_TARGETS) == set(OPS)


def test_the_ops_for_the_sanitizers_run(monkeypatch):
    monkeypatch.setattr(gpu_check_ops, "SHAPES", [(3, 5)])
    gpu_check_ops.main(torch.device("cpu"))


def test_processes_divide_the_ops_for_the_sanitizers(monkeypatch):
    calls = [("op", (number,), 0) for number in range(10)]
    found = []
    monkeypatch.setattr(gpu_check_ops, "every_call", lambda device: iter(calls))
    monkeypatch.setattr(gpu_check_ops, "OPS", type("Ops", (), {"op": staticmethod(found.append)}))
    for part in range(3):
        gpu_check_ops.main(torch.device("cpu"), part, 3)
    assert sorted(found) == [*range(10)]
    assert found[:4] == [0, 3, 6, 9]


def test_the_steps_for_races_are_all_parts(tmp_path):
    races = [command for name, command, _, _ in gpu_check.steps(tmp_path, tmp_path) if name.startswith("racecheck")]
    assert [command[-3:] for command in races] == [["--part", str(i), str(len(races))] for i in range(len(races))]


@pytest.mark.slow
def test_without_a_cuda_device_it_says_so_and_fails(tmp_path):
    command = [sys.executable, gpu_check.__file__, "--output", tmp_path / "new" / "folder"]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path, timeout=120)
    assert done.returncode == 1
    assert done.stdout.startswith("device: FAILED: exit code 1: "), done.stdout
    assert "CUDA" in done.stdout
    report = json.loads((tmp_path / "new" / "folder" / "report.json").read_text())
    assert [step["name"] for step in report["steps"]] == ["device"]
