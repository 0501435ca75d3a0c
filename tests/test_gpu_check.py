"""The GPU check, without a GPU: how it runs its steps, reads what they leave, and reports."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import gpu_check
import gpu_check_report as reports
import pytest

SCRIPT = Path(__file__).with_name("gpu_check.py")
CLEAN = {
    "memcheck": "========= COMPUTE-SANITIZER\ndone\n========= ERROR SUMMARY: 0 errors\n",
    "racecheck": "========= RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)\n",
    "leaks too": "========= LEAK SUMMARY: 0 bytes leaked in 0 allocations\n========= ERROR SUMMARY: 0 errors\n",
}
FOUND = {
    "one": "========= Invalid __global__ read of size 4 bytes\n========= ERROR SUMMARY: 1 error\n",
    "race": "========= RACECHECK SUMMARY: 2 hazards displayed (0 errors, 2 warnings)\n",
    "leak": "========= LEAK SUMMARY: 512 bytes leaked in 1 allocations\n========= ERROR SUMMARY: 0 errors\n",
    "none": "========= COMPUTE-SANITIZER\nTraceback ...\n",
}
JUNIT = """<?xml version="1.0" encoding="utf-8"?>
<testsuites name="pytest tests"><testsuite name="pytest" errors="1" failures="1" skipped="3" tests="7">
<testcase classname="tests.a" name="test_good" time="0.1" />
<testcase classname="tests.a" name="test_also[1]"><properties><property name="a" value="b"/></properties></testcase>
<testcase classname="tests.a" name="test_bad"><failure message="assert 0">text</failure></testcase>
<testcase classname="tests.a" name="test_setup"><error message="failed on setup">text</error></testcase>
<testcase classname="tests.a" name="test_x"><skipped type="pytest.xfail" message="known"/></testcase>
<testcase classname="tests.b" name="test_1"><skipped type="pytest.skip" message="needs two GPUs">a</skipped></testcase>
<testcase classname="tests.b" name="test_2"><skipped type="pytest.skip" message="needs two GPUs">b</skipped></testcase>
</testsuite></testsuites>"""
FIGURES = {
    "machine": "a GPU",
    "copy_gb_per_s": 3000.0,
    "rows": [
        {
            "op": "residual",
            "kind": "denoised",
            "network": "float32",
            "draws": 8,
            "batch": 512,
            "d": 3072,
            "gb_per_s": 2700.0,
            "percent_of_copy": 90.0,
            "microseconds": {"pursamere": 40.0, "eager": 100.0},
            "not_run": {"compiled": "no triton"},
            "targets": {
                "% of copy": {"value": 90.0, "at_least": 85, "met": True},
                "eager/ours": {"value": 2.5, "at_least": 4, "met": False},
            },
        }
    ],
    "host": [
        {
            "op": "residual",
            "microseconds": {"public": 5.0, "raw": 4.0, "eager": 30.0, "graph": 2.0},
            "targets": {"public": {"value": 5.0, "below": 6, "met": True}},
        }
    ],
}


def python(name, code, limit=60.0, **options):
    return gpu_check.Step(name, [sys.executable, "-S", "-c", code], limit, **options)


def run(steps, tmp_path, budget=100.0, allow_missing=False):
    """Whether all was ok, and the report as it was left behind."""
    report = {"commit": "abc", "tests_left_out": {"test_x.py": "not installed: scipy"}}
    ok = gpu_check.run_steps(steps, tmp_path, budget, report, allow_missing)
    written = json.loads((tmp_path / "report.json").read_text())
    assert written == report
    assert (tmp_path / "summary.md").read_text() == reports.summary(report)
    assert not list(tmp_path.glob(".*"))
    return ok, {step["name"]: step for step in written["steps"]}


def running(process):
    try:
        return Path(f"/proc/{process}/stat").read_text().split()[2] != "Z"  # a zombie has ended
    except OSError:
        return False


def test_all_steps_are_run_and_reported(tmp_path):
    steps = [
        python("first", "import os; print('a line', os.environ['A'])", environment={"A": "of it"}, vital=True),
        python("second", "import sys; print('bad', file=sys.stderr); sys.exit(3)"),
        python("third", "print('x')", examine=lambda output: ({"printed": output}, None)),
        python("fourth", "", examine=lambda output: ({}, "nothing was printed")),
        python("fifth", "", examine=lambda output: json.loads(output)),
    ]
    ok, found = run(steps, tmp_path)
    assert not ok
    assert {name: (step["status"], step["reason"]) for name, step in found.items()} == {
        "first": ("ok", ""),
        "second": ("failed", "exit code 3"),
        "third": ("ok", ""),
        "fourth": ("failed", "nothing was printed"),
        "fifth": ("failed", found["fifth"]["reason"]),
    }
    assert found["fifth"]["reason"].startswith("no result that can be read: JSONDecodeError")
    assert found["third"]["details"] == {"printed": "x\n"}  # and nothing of the other steps
    log = (tmp_path / "log.txt").read_text()
    assert log.index("===== first") < log.index("a line of it") < log.index("===== second") < log.index("\nbad\n")
    summary = (tmp_path / "summary.md").read_text()
    assert "# GPU check: FAILED" in summary
    assert "| second | failed | 0 | exit code 3 |" in summary
    assert "- test_x.py: not installed: scipy" in summary


def test_ok_if_every_step_is(tmp_path):
    ok, _ = run([python("only", "")], tmp_path)
    assert ok
    assert "# GPU check: ok" in (tmp_path / "summary.md").read_text()


def test_a_step_that_takes_too_long_is_stopped_with_its_children(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_check, "LEAST_SECONDS", 0)
    code = "import subprocess, sys, time\n"
    code += "child = subprocess.Popen([sys.executable, '-S', '-c', 'import time; time.sleep(60)'])\n"
    code += "print(child.pid, flush=True)\ntime.sleep(60)"
    ok, found = run(
        [python("long", code, 1, examine=lambda output: ({"child": int(output.split()[0])}, None))], tmp_path
    )
    assert not ok
    assert (found["long"]["status"], found["long"]["reason"]) == ("failed", "stopped after 1 s")
    assert found["long"]["seconds"] < 10
    for _ in range(50):
        if not running(found["long"]["details"]["child"]):
            return
        time.sleep(0.1)
    pytest.fail("the child is still running")


def test_a_program_that_is_missing(tmp_path):
    steps = [gpu_check.Step("memcheck", ["no-such-sanitizer", "--tool"], 10), python("next", "")]
    ok, found = run(steps, tmp_path)
    assert not ok
    assert (found["memcheck"]["status"], found["memcheck"]["reason"]) == ("skipped", "no-such-sanitizer not found")
    assert found["next"]["status"] == "ok"
    assert run(steps, tmp_path, allow_missing=True)[0]
    assert not run([*steps, python("bad", "1 / 0")], tmp_path, allow_missing=True)[0]


def test_no_time_left(tmp_path):
    ok, found = run([python("late", "")], tmp_path, budget=gpu_check.LEAST_SECONDS - 0.1, allow_missing=True)
    assert not ok
    assert (found["late"]["status"], found["late"]["reason"]) == ("skipped", "no time left")


def test_nothing_is_run_after_a_vital_step_has_failed(tmp_path):
    steps = [python("build", "1 / 0", vital=True), python("check", "", vital=True), python("tests", "")]
    ok, found = run(steps, tmp_path)
    assert not ok
    assert found["build"]["status"] == "failed"
    assert [found[name]["reason"] for name in ("check", "tests")] == ["because of build"] * 2


def test_the_report_of_a_run_that_was_cut_short(tmp_path):
    reports.write({"ok": False, "finished": False, "commit": "abc", "tests_left_out": {}, "steps": []}, tmp_path)
    assert "# GPU check: not finished" in (tmp_path / "summary.md").read_text()


def test_ending_the_check_ends_the_step_that_is_running(tmp_path):
    """A subprocess, since the handler is the whole program's."""
    code = "import signal, sys\nfrom pathlib import Path\nimport gpu_check\n"
    code += "signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))\n"
    code += "step = gpu_check.Step('long', ['sh', '-c', 'echo $$; sleep 60'], 60)\n"
    code += "gpu_check.run_step(step, Path('log.txt'), 60)\n"
    environment = {**os.environ, "PYTHONPATH": str(SCRIPT.parent)}
    process = subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, env=environment)
    log = tmp_path / "log.txt"
    for _ in range(100):
        lines = log.read_text().splitlines() if log.exists() else []
        if lines and lines[-1].isdigit():
            break
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    assert process.wait(15) == 1
    assert not running(int(lines[-1]))


@pytest.mark.parametrize("output", CLEAN.values(), ids=CLEAN)
def test_sanitizer_found_nothing(output):
    details, problem = reports.read_sanitizer(output)
    assert problem is None
    assert len(details["summaries"]) == output.count("SUMMARY")


@pytest.mark.parametrize("output", FOUND.values(), ids=FOUND)
def test_sanitizer_found_something_or_did_not_run(output):
    _, problem = reports.read_sanitizer(output)
    assert problem == "compute-sanitizer gave no summary" or problem.startswith("found: ")


def test_junit_files_are_read(tmp_path):
    path = tmp_path / "junit.xml"
    path.write_text(JUNIT)
    details, problem = reports.read_junit(path)
    assert problem is None
    assert details == {
        "passed": 2,
        "failed": 2,
        "skipped": 2,
        "xfailed": 1,
        "failures": ["tests.a::test_bad", "tests.a::test_setup"],
        "skip_reasons": {"needs two GPUs": 2},
    }
    path.write_text("<testsuites><testsuite/></testsuites>")
    assert reports.read_junit(path)[1] == "no test passed"


def test_missing_imports_also_of_modules_beside(tmp_path):
    (tmp_path / "helper.py").write_text("import no_such_a.b\nimport test_it\n")
    test = tmp_path / "test_it.py"
    test.write_text("import os.path, sys\nfrom no_such_b import x\nimport helper\nimport pytest\nimport pursamere\n")
    assert reports.missing_imports(test) == ["no_such_a", "no_such_b"]


def test_the_summary_of_a_whole_run():
    steps = [
        {"name": "CUDA tests", "status": "ok", "reason": "", "seconds": 1.0, "details": {}},
        {"name": "racecheck", "status": "ok", "reason": "", "seconds": 2.0},
        {"name": "benchmark", "status": "ok", "reason": "", "seconds": 3.0, "details": FIGURES},
    ]
    steps[0]["details"] = {"passed": 5, "failed": 0, "skipped": 2, "xfailed": 0, "skip_reasons": {"needs two GPUs": 2}}
    steps[1]["details"] = reports.read_sanitizer(CLEAN["racecheck"])[0]
    text = reports.summary({"ok": True, "finished": True, "commit": "abc", "tests_left_out": {}, "steps": steps})
    for line in (
        "| CUDA tests | ok | 1 | 5 passed, 0 failed, 2 skipped, 0 xfailed |",
        "| racecheck | ok | 2 | RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings) |",
        "| benchmark | ok | 3 | 2 of 3 targets met |",
        "| residual | float32 | 8, 512, 3072 | 40.00 | 2700 | 90 | **2.50** |  |  |",
        "- residual, 8, 512, 3072: compiled was not run: no triton",
        "| residual | 5.00 | 4.00 | 30.00 | 2.00 |",
        "- 2 of the CUDA tests: needs two GPUs",
    ):
        assert line in text.splitlines()


def test_the_steps_name_files_that_exist(tmp_path):
    test_files, left_out = gpu_check.choose_tests()
    assert "test_ops.py" in test_files
    assert not {"test_cuda.py", "test_gpu_check.py", "test_demo.py"} & {*test_files}
    assert {"test_demo*.py", "cuda_on_cpu/*"} <= {*left_out}
    for step in gpu_check.all_steps(tmp_path, tmp_path / "work", test_files):
        scripts = [Path(step.cwd, part) for part in map(str, step.command) if part.endswith(".py")]
        assert all(path.is_file() for path in scripts), step.name


def test_without_a_cuda_device_it_says_so_and_fails(tmp_path):
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, SCRIPT, "--output", tmp_path / "new" / "folder"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path, timeout=60)
    assert done.returncode == 1, done.stderr
    assert done.stdout.startswith("environment: failed: no CUDA device: torch "), done.stdout
    report = json.loads((tmp_path / "new" / "folder" / "report.json").read_text())
    assert (report["ok"], report["finished"]) == (False, True)
    assert {step["status"] for step in report["steps"][1:]} == {"skipped"}
    assert {path.name for path in (tmp_path / "new" / "folder").iterdir()} == {"report.json", "summary.md", "log.txt"}
