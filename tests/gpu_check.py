"""Builds, tests, sanitizes and benchmarks the CUDA kernels on a machine with a GPU.

    python tests/gpu_check.py [--output DIR] [--budget SECONDS]

Uses the Python that runs it, which needs torch with CUDA, the build tools, pytest and pytest-xdist, and installs
nothing into it. Tests and sanitizers run at the same time; the benchmark has the GPU to itself. Leaves summary.md,
report.json, a log of each step, junit.xml and ops-cuda.json in DIR. The exit code is 0 if every step succeeds.
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
from contextlib import ExitStack, suppress
from pathlib import Path

TESTS = Path(__file__).resolve().parent
DEVICE = "import torch; torch.zeros(1, device='cuda'); print('torch', torch.__version__, torch.cuda.get_device_name())"
SANITIZER = ["compute-sanitizer", "--error-exitcode", "9", "--report-api-errors", "no", "--tool"]
CLEAN = r"^========= \w+ SUMMARY: 0 .*$"
FIRST, LAST = ("device", "build"), ("benchmark",)  # alone; the other steps run at the same time
REPORTS = ("summary.md", "report.json", "junit.xml", "ops-cuda.json")
RACE_PARTS = 4  # racecheck is by far the slowest
GRACE = 5  # seconds from asking a step to stop to killing it


def steps(output, work):
    """Yield a name, a command, its time limit in seconds, and a pattern of what it prints if it succeeds."""
    python = sys.executable
    # --isolated: the Makefile's constraints are for its .venv.
    install = ["-m", "pip", "--isolated", "install", "--verbose", "--no-index", "--no-deps", "--no-build-isolation"]
    install += ["--config-settings=cmake.define.PURSAMERE_CUDA=ON", f"--config-settings=build-dir={work}/build"]
    # A test that crashes ends one of the processes, not the others.
    pytest = ["-m", "pytest", "-rs", "-p", "xdist.plugin", "-n", "4", "-m", "cuda", "-p", "no:cacheprovider"]
    pytest += [f"--junitxml={output}/junit.xml", *sorted(TESTS.glob("test_cuda*.py"))]
    benchmark = [TESTS.parent / "benchmarks/bench_ops.py", "--device", "cuda", "--rounds", "21"]
    yield "device", [python, "-c", DEVICE], 90, r"^torch .*$"
    yield "build", [python, *install, f"--target={work}/site", TESTS.parent], 180, r"^Successfully installed.*$"
    yield "tests", [python, *pytest], 300, r"\d+ passed.*"
    sanitizers = [(tool, tool, []) for tool in ("memcheck", "synccheck", "initcheck")]
    sanitizers += [(f"racecheck-{i + 1}", "racecheck", ["--part", str(i), str(RACE_PARTS)]) for i in range(RACE_PARTS)]
    for name, tool, part in sanitizers:
        yield name, [*SANITIZER, tool, python, TESTS / "gpu_check_ops.py", *part], 300, CLEAN
    yield "benchmark", [python, *benchmark, f"--json={output}/ops-cuda.json"], 180, r"^targets: \d+ of [1-9]\d* met$"


class Step:
    """A running command, its output in a file; ``result`` says whether it succeeded, and a line on that."""

    def __init__(self, step, folder, end, environment):
        self.name, command, limit, self.wanted = step
        self.log, self.began, self.result = folder / f"{self.name}.log", time.monotonic(), None
        self.limit, self.asked = max(0, min(limit, end - self.began)), False
        streams = {"stdin": subprocess.DEVNULL, "stderr": subprocess.STDOUT}
        with self.log.open("wb") as stream:
            stream.write(f"$ {' '.join(map(str, command))}\n".encode())
            stream.flush()
            try:  # in a session of its own, so that whatever it starts can be stopped with it
                self.process = subprocess.Popen(
                    command, cwd=TESTS, env=environment, start_new_session=True, stdout=stream, **streams
                )
            except FileNotFoundError:
                self.process, self.result = None, (False, f"{command[0]} not found")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._end()

    def finished(self):
        """Return whether it has ended, and end it if its time is over."""
        if self.result is None:
            code, seconds = self.process.poll(), time.monotonic() - self.began
            if code is None and seconds < self.limit:
                return False
            if code is None and not self.asked:
                self._stop(signal.SIGINT)  # on which pytest still writes its results
                self.asked = True
            if code is None and seconds < self.limit + GRACE:
                return False
            self._end()
            stopped = f"stopped after {self.limit:.0f} s" if self.asked else None
            self.result = self._judge(stopped or (f"exit code {code}" if code else None))
        return True

    def _end(self):
        """Kill what is left of the step, at once, while its process group is still its own."""
        if self.process is not None:
            self._stop(signal.SIGKILL)
            self.process.wait()
            self.process = None

    def _judge(self, problem):
        output = self.log.read_text(errors="replace").partition("\n")[2]
        found = re.findall(self.wanted, output, re.MULTILINE)
        if found and not problem:
            return True, found[-1]
        return False, f"{problem or 'no success in its output'}: {''.join(output.splitlines()[-1:])}"

    def _stop(self, number):
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)


def run_together(chosen, output, end, environment):
    """Run steps at the same time and yield each when it has ended."""
    with ExitStack() as stack:
        running = [stack.enter_context(Step(step, output, end, environment)) for step in chosen]
        while running:
            ended = [step for step in running if step.finished()]
            running = [step for step in running if step not in ended]
            yield from ended
            time.sleep(0.05)


def run_steps(chosen, output, budget, environment, commit):
    """Run the steps, also after one has failed, and report after each. Return whether all succeeded."""
    end, report = time.monotonic() + budget, {"ok": False, "commit": commit, "steps": []}
    table = f"commit {commit}\n\n| step | result | seconds | |\n|---|---|---|---|\n"
    together = [step for step in chosen if step[0] not in FIRST + LAST]
    groups = [[step] for step in chosen if step[0] in FIRST] + [together]
    groups += [[step] for step in chosen if step[0] in LAST]
    for group in filter(None, groups):
        for step in run_together(group, output, end, environment):
            ok, detail = step.result
            done = {"name": step.name, "ok": ok, "seconds": round(time.monotonic() - step.began, 1), "detail": detail}
            report["steps"].append(done)
            report["ok"] = len(report["steps"]) == len(chosen) and all(step["ok"] for step in report["steps"])
            result = "ok" if ok else "FAILED"
            print(f"{step.name}: {result}: {detail}", flush=True)
            table += f"| {step.name} | {result} | {done['seconds']:.0f} | {detail.replace('|', ' ')} |\n"
            (output / "report.json").write_text(json.dumps(report, indent=1) + "\n")
            title = f"# GPU check: {'ok' if report['ok'] else 'FAILED or not finished'}"
            (output / "summary.md").write_text(f"{title}\n\n{table}")
        if not report["steps"][-1]["ok"] and report["steps"][-1]["name"] in FIRST:  # there is nothing to check
            break
    return report["ok"]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("gpu-check"), metavar="DIR", help="default: gpu-check")
    parser.add_argument("--budget", type=float, default=600, metavar="SECONDS", help="for all steps (default 600)")
    arguments = parser.parse_args()
    output = arguments.output.resolve()
    output.mkdir(parents=True, exist_ok=True)
    for old in [*(f"{step[0]}.log" for step in steps(output, output)), *REPORTS]:
        (output / old).unlink(missing_ok=True)  # an earlier run's
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that running steps are stopped too
    describe = ["git", "-C", TESTS, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    commit = subprocess.run(describe, capture_output=True, text=True).stdout.strip() if shutil.which("git") else ""
    with tempfile.TemporaryDirectory(prefix="pursamere-gpu-check-") as work:
        environment = os.environ | {
            "PATH": os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/local/cuda/bin"]),
            "PYTHONPATH": os.pathsep.join(filter(None, [f"{work}/site", os.environ.get("PYTHONPATH")])),
            "CUDAARCHS": "native",  # a third of the time to build
            "PURSAMERE_REQUIRE_CUDA": "1",  # without a device or CUDA kernels, the tests fail
            "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        }
        return 0 if run_steps([*steps(output, work)], output, arguments.budget, environment, commit or "unknown") else 1


if __name__ == "__main__":
    sys.exit(main())
