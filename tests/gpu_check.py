"""All that needs a GPU, in one command: build, tests, compute-sanitizer and benchmark, with a report.

    python tests/gpu_check.py [--output DIR] [--budget SECONDS] [--allow-missing]

Uses the Python that runs it, which needs torch with CUDA, the build tools and pytest, and installs nothing into it.
Leaves report.json, summary.md, log.txt, ops-cuda.json and the tests' junit files in DIR. Exit code 0: every step is ok.
"""

from __future__ import annotations

import argparse
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import gpu_check_report as reports

TESTS = Path(__file__).resolve().parent
ROOT = TESTS.parent
LEAST_SECONDS = 5  # a step that has less is not started
LEFT_OUT = {
    "test_gpu_check.py": "tests of this check, for a machine without a GPU",
    "test_cli*.py": "the command line: long, nothing of it is a GPU's",
    "test_demo*.py": "the demo: long, nothing of it is a GPU's",
    "cuda_on_cpu/*": "the kernels on a CPU: long, nothing of it is a GPU's",
    "tests marked slow": "long; those of test_cuda.py are run",
}
SANITIZER = ("compute-sanitizer", "--error-exitcode", "9", "--print-limit", "20", "--report-api-errors", "no")


@dataclass(frozen=True)
class Step:
    """A program, and what its end means."""

    name: str
    command: Sequence[str | Path]
    limit: float  # in seconds
    # From what the program printed: details for the report, and what was wrong, if anything.
    examine: Callable[[str], tuple[dict[str, Any], str | None]] = lambda output: ({}, None)
    vital: bool = False  # without it the later steps make no sense
    cwd: Path = ROOT
    environment: Mapping[str, str] = field(default_factory=dict)


def result_of(
    step: Step, status: str, reason: str, seconds: float = 0.0, details: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """What the report has of a step."""
    command = shlex.join(map(str, step.command))
    return {
        "name": step.name,
        "command": command,
        "status": status,
        "reason": reason,
        "seconds": round(seconds, 1),
        "details": details or {},
    }


def run_step(step: Step, log: Path, left: float) -> dict[str, Any]:
    """Run a step within its limit and the seconds left; what it prints goes to the end of the log."""
    limit = min(step.limit, left)
    if limit < LEAST_SECONDS:
        return result_of(step, "skipped", "no time left")
    started = time.monotonic()
    with log.open("ab") as stream:
        stream.write(f"\n===== {step.name}: {shlex.join(map(str, step.command))}\n".encode())
        stream.flush()
        begin = stream.tell()
        try:
            process = subprocess.Popen(
                list(map(str, step.command)),
                cwd=step.cwd,
                env={**os.environ, **step.environment},
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # so that its own processes can be stopped with it
            )
        except FileNotFoundError:
            return result_of(step, "skipped", f"{step.command[0]} not found")
        code = _wait(process, limit)
    seconds = time.monotonic() - started
    with log.open("rb") as stream:
        stream.seek(begin)
        output = stream.read().decode(errors="replace")
    details: dict[str, Any] = {}
    try:
        details, problem = step.examine(output)
    except Exception as error:  # of what a program that was stopped or crashed has left
        problem = f"no result that can be read: {type(error).__name__}: {error}"
    reasons = [problem] if problem else []
    if code != 0:
        reasons.append(f"stopped after {limit:.0f} s" if code is None else f"exit code {code}")
    return result_of(step, "failed" if reasons else "ok", "; ".join(reasons), seconds, details)


def _wait(process: subprocess.Popen[bytes], limit: float) -> int | None:
    """Return the exit code, or None if the process had to be stopped."""
    try:
        return process.wait(limit)
    except subprocess.TimeoutExpired:
        return None
    finally:
        if process.returncode is None:  # out of time, or this program is being ended
            for number in (signal.SIGINT, signal.SIGKILL):  # at an interrupt pytest still writes its results
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, number)
                with suppress(subprocess.TimeoutExpired):
                    process.wait(5)


def run_steps(steps: Sequence[Step], output: Path, budget: float, report: dict[str, Any], allow_missing: bool) -> bool:
    """Run all steps, writing the report after each. Return whether they are all ok."""
    end = time.monotonic() + budget
    report |= {"ok": False, "finished": False, "steps": []}
    blocked = None
    for step in steps:
        if blocked:
            result = result_of(step, "skipped", f"because of {blocked}")
        else:
            result = run_step(step, output / "log.txt", end - time.monotonic())
        if step.vital and result["status"] != "ok":
            blocked = blocked or step.name
        report["steps"].append(result)
        reports.write(report, output)
        print(f"{step.name}: {reports.outcome(result)} ({result['seconds']:.0f} s)", flush=True)
    report["ok"] = all(
        step["status"] == "ok" or (allow_missing and step["reason"].endswith(" not found")) for step in report["steps"]
    )
    report["finished"] = True
    reports.write(report, output)
    return report["ok"]


def choose_tests() -> tuple[list[str], dict[str, str]]:
    """Return the test files of the second test step, and why others are left out."""
    chosen, left_out = [], dict(LEFT_OUT)
    for path in sorted(TESTS.glob("test_*.py")):
        missing = reports.missing_imports(path)
        if missing:
            left_out[path.name] = f"not installed: {', '.join(missing)}"
        elif path.name != "test_cuda.py" and not any(fnmatch(path.name, pattern) for pattern in LEFT_OUT):
            chosen.append(path.name)
    return chosen, left_out


def all_steps(output: Path, work: Path, test_files: Sequence[str]) -> list[Step]:
    """Return the steps; ``work`` is for what is not to be kept."""
    site, machine = work / "site", work / "machine.json"
    paths = [str(site), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {
        # Behind what is there, in case the tool kit is installed but not on the path.
        "PATH": os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/local/cuda/bin"]),
        "PYTHONPATH": os.pathsep.join(paths),
        "PYTHONUNBUFFERED": "1",
        "PURSAMERE_REQUIRE_CUDA": "1",
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",  # of those that happen to be installed none is needed
        "CMAKE_BUILD_PARALLEL_LEVEL": str(os.cpu_count()),
    }
    # pip isolated: the Makefile's constraints are those of its .venv.
    install = ["-m", "pip", "--isolated", "--disable-pip-version-check", "install", "--verbose", "--no-index"]
    install += ["--no-deps", "--no-build-isolation", "--target", site, f"--config-settings=build-dir={work / 'build'}"]
    install += ["--config-settings=cmake.define.PURSAMERE_CUDA=ON", ROOT]
    pytest = ["-m", "pytest", "-p", "no:cacheprovider"]
    uncached = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}  # an allocation for every tensor, with errors at its end
    figures = output / "ops-cuda.json"

    def step(name: str, command: Sequence[str | Path], limit: float, **options: Any) -> Step:
        extra = options.pop("environment", {})
        return Step(name, command, limit, environment=environment | extra, **options)

    def python(name: str, command: Sequence[str | Path], limit: float, **options: Any) -> Step:
        return step(name, [sys.executable, *command], limit, **options)

    def tests(name: str, junit: str, arguments: Sequence[str], limit: float) -> Step:
        command = [*pytest, f"--junitxml={output / junit}", *arguments]
        return python(name, command, limit, cwd=TESTS, examine=lambda _: reports.read_junit(output / junit))

    def sanitizer(tool: str, *options: str, **more: Any) -> Step:
        command = [*SANITIZER, "--tool", tool, *options, sys.executable, TESTS / "gpu_check_ops.py"]
        return step(tool, command, 60, examine=reports.read_sanitizer, **more)

    return [
        python(
            "environment",
            [TESTS / "gpu_check_environment.py", machine],
            90,
            vital=True,
            examine=lambda _: reports.read_machine(machine),
        ),
        python("build", install, 180, vital=True),
        tests("CUDA tests", "junit-cuda.xml", ["test_cuda.py"], 180),
        tests("other tests", "junit-other.xml", ["-m", "not slow", *test_files], 100),
        sanitizer("memcheck", "--leak-check", "no", environment=uncached),
        sanitizer("racecheck"),
        sanitizer("synccheck"),
        sanitizer("initcheck", environment=uncached),
        python(
            "benchmark",
            [ROOT / "benchmarks" / "bench_ops.py", "--device", "cuda", "--rounds", "21", "--json", figures],
            120,
            examine=lambda _: reports.read_figures(figures),
        ),
    ]


def commit() -> str:
    """Return the commit of the sources, marked if they differ from it."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    return done.stdout.strip() or "unknown"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("gpu-check"), metavar="DIR", help="default: gpu-check")
    parser.add_argument("--budget", type=float, default=480, metavar="SECONDS", help="for all steps (default 480)")
    parser.add_argument("--allow-missing", action="store_true", help="a program that is not there is no failure")
    chosen = parser.parse_args(arguments)
    output = chosen.output.resolve()
    output.mkdir(parents=True, exist_ok=True)
    for name in reports.FILES:
        (output / name).unlink(missing_ok=True)  # an earlier run's
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the step that is running is stopped too
    test_files, left_out = choose_tests()
    report: dict[str, Any] = {"commit": commit(), "tests_left_out": left_out}
    with tempfile.TemporaryDirectory(prefix="pursamere-gpu-check-") as work:
        steps = all_steps(output, Path(work), test_files)
        ok = run_steps(steps, output, chosen.budget, report, chosen.allow_missing)
    print("\n" + reports.summary(report))
    return 0 if ok else 1


if __name__ == "__main__":
    sys.exit(main())
