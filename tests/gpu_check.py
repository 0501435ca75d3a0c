"""Builds, tests, sanitizes and benchmarks the CUDA kernels on a machine with a GPU.

    python tests/gpu_check.py [--output DIR] [--budget SECONDS]

Uses the Python that runs it, which needs torch with CUDA, the build tools and pytest, and installs nothing into it.
Leaves summary.md, report.json, log.txt, junit.xml and ops-cuda.json in DIR. The exit code is 0 if every step succeeds.
"""

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

TESTS = Path(__file__).resolve().parent
DEVICE = "import torch; torch.zeros(1, device='cuda'); print('torch', torch.__version__, torch.cuda.get_device_name())"
SANITIZER = ["compute-sanitizer", "--error-exitcode", "9", "--report-api-errors", "no", "--tool"]
CLEAN = r"^========= \w+ SUMMARY: 0 .*$"


def steps(output, work):
    """Yield a name, a command, its time limit in seconds, and a pattern of what it prints if it succeeds."""
    python = sys.executable
    # --isolated: the Makefile's constraints are for its .venv.
    install = ["-m", "pip", "--isolated", "install", "--verbose", "--no-index", "--no-deps", "--no-build-isolation"]
    install += ["--config-settings=cmake.define.PURSAMERE_CUDA=ON", f"--config-settings=build-dir={work}/build"]
    pytest = ["-m", "pytest", "-m", "cuda", "-p", "no:cacheprovider", f"--junitxml={output}/junit.xml"]
    benchmark = [TESTS.parent / "benchmarks/bench_ops.py", "--device", "cuda", "--rounds", "21"]
    yield "device", [python, "-c", DEVICE], 90, r"^torch .*$"
    yield "build", [python, *install, f"--target={work}/site", TESTS.parent], 180, r"^Successfully installed.*$"
    yield "tests", [python, *pytest, *sorted(TESTS.glob("test_cuda*.py"))], 240, r"\d+ passed.*"
    yield "benchmark", [python, *benchmark, f"--json={output}/ops-cuda.json"], 120, r"^float32, .*$"
    for tool, limit in (("memcheck", 60), ("synccheck", 60), ("initcheck", 60), ("racecheck", 300)):
        yield tool, [*SANITIZER, tool, python, TESTS / "gpu_check_ops.py"], limit, CLEAN


def stop(process, number):
    with suppress(ProcessLookupError):
        os.killpg(process.pid, number)


def run_step(command, limit, wanted, stream, environment):
    """Run a command, its output appended to a stream. Return whether it succeeded, and a line on that."""
    begin = stream.tell()
    problem, streams = None, {"stdin": subprocess.DEVNULL, "stdout": stream, "stderr": subprocess.STDOUT}
    try:  # in a session of its own, so that whatever it starts can be stopped with it
        process = subprocess.Popen(command, cwd=TESTS, env=environment, start_new_session=True, **streams)
    except FileNotFoundError:
        return False, f"{command[0]} not found"
    try:
        if process.wait(limit) != 0:
            problem = f"exit code {process.returncode}"
    except subprocess.TimeoutExpired:
        problem = f"stopped after {limit:.0f} s"
        stop(process, signal.SIGINT)  # on which pytest still writes its results
        with suppress(subprocess.TimeoutExpired):
            process.wait(5)
    finally:
        stop(process, signal.SIGKILL)
        process.wait()
    stream.seek(begin)
    output = stream.read().decode(errors="replace")
    found = re.findall(wanted, output, re.MULTILINE)
    if found and not problem:
        return True, found[-1]
    return False, f"{problem or 'no success in its output'}: {''.join(output.splitlines()[-1:])}"


def run_steps(chosen, output, budget, environment, commit):
    """Run the steps, also after one has failed, and report after each. Return whether all succeeded."""
    end, report = time.monotonic() + budget, {"ok": False, "commit": commit, "steps": []}
    table = f"commit {commit}\n\n| step | result | seconds | |\n|---|---|---|---|\n"
    for name, command, limit, wanted in chosen:
        begin = time.monotonic()
        with (output / "log.txt").open("a+b", buffering=0) as stream:
            stream.write(f"\n===== {name}: {' '.join(map(str, command))}\n".encode())
            ok, detail = run_step(command, max(0, min(limit, end - begin)), wanted, stream, environment)
        step = {"name": name, "ok": ok, "seconds": round(time.monotonic() - begin, 1), "detail": detail}
        report["steps"].append(step)
        report["ok"] = len(report["steps"]) == len(chosen) and all(step["ok"] for step in report["steps"])
        result = "ok" if ok else "FAILED"
        print(f"{name}: {result}: {detail}", flush=True)
        table += f"| {name} | {result} | {step['seconds']:.0f} | {detail.replace('|', ' ')} |\n"
        (output / "report.json").write_text(json.dumps(report, indent=1) + "\n")
        title = f"# GPU check: {'ok' if report['ok'] else 'FAILED or not finished'}"
        (output / "summary.md").write_text(f"{title}\n\n{table}")
        if not ok and name in ("device", "build"):  # there is nothing to check
            break
    return report["ok"]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("gpu-check"), metavar="DIR", help="default: gpu-check")
    parser.add_argument("--budget", type=float, default=600, metavar="SECONDS", help="for all steps (default 600)")
    arguments = parser.parse_args()
    output = arguments.output.resolve()
    output.mkdir(parents=True, exist_ok=True)
    for name in ("summary.md", "report.json", "log.txt", "junit.xml", "ops-cuda.json"):
        (output / name).unlink(missing_ok=True)  # an earlier run's
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the running step is stopped too
    describe = ["git", "-C", TESTS, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    commit = subprocess.run(describe, capture_output=True, text=True).stdout.strip() if shutil.which("git") else ""
    with tempfile.TemporaryDirectory(prefix="pursamere-gpu-check-") as work:
        environment = os.environ | {
            "PATH": os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/local/cuda/bin"]),
            "PYTHONPATH": os.pathsep.join(filter(None, [f"{work}/site", os.environ.get("PYTHONPATH")])),
            "CUDAARCHS": "native",  # a third of the time to build
            "PURSAMERE_REQUIRE_CUDA": "1",  # a CUDA test that would be skipped fails
            "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        }
        return 0 if run_steps([*steps(output, work)], output, arguments.budget, environment, commit or "unknown") else 1


if __name__ == "__main__":
    sys.exit(main())
