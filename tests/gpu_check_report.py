"""What the steps of gpu_check.py leave behind, read, and the report of them, written."""

from __future__ import annotations

import ast
import json
import os
import re
from collections import Counter
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

FILES = ("report.json", "summary.md", "log.txt", "ops-cuda.json", "junit-cuda.xml", "junit-other.xml")
INSTALLED_BY_THE_CHECK = {"pursamere", "pursamere_ext"}


def read_machine(path: Path) -> tuple[dict[str, Any], str | None]:
    """From gpu_check_environment.py."""
    machine = json.loads(path.read_text(encoding="utf-8"))
    return machine, machine.get("problem")


def read_junit(path: Path) -> tuple[dict[str, Any], str | None]:
    """Counts, failures, and every reason to skip with its number of tests."""
    counts = Counter(passed=0, failed=0, skipped=0, xfailed=0)
    reasons: Counter[str] = Counter()
    failures = []
    for case in ElementTree.parse(path).getroot().iter("testcase"):
        skipped = case.find("skipped")
        if case.find("failure") is not None or case.find("error") is not None:
            counts["failed"] += 1
            failures.append(f"{case.get('classname')}::{case.get('name')}")
        elif skipped is None:
            counts["passed"] += 1
        elif skipped.get("type") == "pytest.xfail":
            counts["xfailed"] += 1
        else:
            counts["skipped"] += 1
            reasons[skipped.get("message") or "no reason given"] += 1
    problem = None if counts["passed"] else "no test passed"
    return {**counts, "failures": failures, "skip_reasons": dict(reasons)}, problem


def read_sanitizer(output: str) -> tuple[dict[str, Any], str | None]:
    """The tool's summaries: "ERROR SUMMARY: 0 errors", "RACECHECK SUMMARY: 0 hazards displayed (...)"."""
    summaries = re.findall(r"^========= (\w+ SUMMARY: .*?)\s*$", output, re.MULTILINE)
    counts = [int(count) for summary in summaries for count in re.findall(r"\d+", summary)]
    if not counts:
        return {"summaries": summaries}, "compute-sanitizer gave no summary"
    return {"summaries": summaries}, f"found: {'; '.join(summaries)}" if any(counts) else None


def read_figures(path: Path) -> tuple[dict[str, Any], str | None]:
    """From bench_ops.py, which writes after every row."""
    figures = json.loads(path.read_text(encoding="utf-8"))
    return figures, None if figures["rows"] else "nothing was measured"


def missing_imports(path: Path) -> list[str]:
    """The modules that are not there of those that a test file imports at its top, or a module beside it does."""
    missing, seen, todo = set(), set(), [path]
    while todo:
        file = todo.pop()
        seen.add(file)
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module:
                modules = [node.module]
            else:
                continue
            for top in {module.partition(".")[0] for module in modules} - INSTALLED_BY_THE_CHECK:
                beside = path.parent / f"{top}.py"
                if beside.exists():
                    todo += [beside] if beside not in seen else []
                elif find_spec(top) is None:
                    missing.add(top)
    return sorted(missing)


def outcome(step: dict[str, Any]) -> str:
    """A step in a few words."""
    return step["status"] + (f": {step['reason']}" if step["reason"] else "")


def write(report: dict[str, Any], output: Path) -> None:
    """Replace report.json and summary.md, each at once."""
    for name, text in (("report.json", json.dumps(report, indent=1) + "\n"), ("summary.md", summary(report))):
        temporary = output / f".{name}.tmp"
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, output / name)


def summary(report: dict[str, Any]) -> str:
    """The report as Markdown."""
    result = "ok" if report["ok"] else "FAILED" if report["finished"] else "not finished"
    steps = {step["name"]: step for step in report["steps"]}
    lines = [f"# GPU check: {result}", ""]
    machine = steps.get("environment", {}).get("details", {})
    if machine.get("problem"):
        lines += [f"{machine['problem']}.", ""]
    for label, key in (("device", "nvidia_smi"), ("nvcc", "nvcc"), ("torch", "torch"), ("Python", "python")):
        lines.append(f"- {label}: {machine.get(key, 'unknown')}")
    lines += [f"- commit: {report['commit']}", "", "| step | status | seconds | |", "|---|---|---|---|"]
    for step in report["steps"]:
        lines.append(_row(step["name"], step["status"], f"{step['seconds']:.0f}", _detail(step)))
    figures = steps.get("benchmark", {}).get("details")
    if figures:
        lines += ["", "## Benchmark", "", *_figures(figures)]
    lines += ["", "## Tests left out or skipped", ""]
    lines += [f"- {what}: {why}" for what, why in report["tests_left_out"].items()]
    for name in ("CUDA tests", "other tests"):
        details = steps.get(name, {}).get("details", {})
        lines += [f"- {count} of the {name}: {why}" for why, count in details.get("skip_reasons", {}).items()]
    failures = [name for step in report["steps"] for name in step.get("details", {}).get("failures", ())]
    if failures:
        lines += ["", "## Failed tests", "", *(f"- {name}" for name in failures)]
    return "\n".join(lines) + "\n"


def _row(*cells: object) -> str:
    return "| " + " | ".join(str(cell).replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"


def _detail(step: dict[str, Any]) -> str:
    details = step.get("details", {})
    parts = [step["reason"]] if step["reason"] else []
    if "passed" in details:
        parts.append(", ".join(f"{details[key]} {key}" for key in ("passed", "failed", "skipped", "xfailed")))
    parts += details.get("summaries", []) if step["status"] == "ok" else []
    if "rows" in details:
        goals = [goal["met"] for row in details["rows"] + details["host"] for goal in row["targets"].values()]
        parts.append(f"{sum(goals)} of {len(goals)} targets met")
    return "; ".join(parts)


def _figures(figures: dict[str, Any]) -> list[str]:
    """The benchmark's rows; a figure that misses its target in bold."""
    others = ("eager", "compiled", "fresh")
    lines = [
        f"{figures['machine']}; copy {figures['copy_gb_per_s']:.0f} GB/s; microseconds. Targets missed in bold.",
        "",
    ]
    lines.append(_row("op", "network", "K, B, d", "ours", "GB/s", "% of copy", *(f"{name}/ours" for name in others)))
    lines.append("|---" * 9 + "|")
    not_run = []
    for row in figures["rows"]:
        times, goals = row["microseconds"], row["targets"]
        name = row["op"] + (" (score)" if row["kind"] == "score" else "")
        ratios = {f"{other}/ours": times[other] / times["pursamere"] for other in others if other in times}
        cells = [_marked(row["percent_of_copy"], goals.get("% of copy"), 0)]
        cells += [_marked(ratios.get(f"{other}/ours"), goals.get(f"{other}/ours"), 2) for other in others]
        shape = f"{row['draws']}, {row['batch']}, {row['d']}"
        lines.append(_row(name, row["network"], shape, f"{times['pursamere']:.2f}", f"{row['gb_per_s']:.0f}", *cells))
        not_run += [f"- {name}, {shape}: {other} was not run: {reason}" for other, reason in row["not_run"].items()]
    columns = ("public", "raw", "eager", "graph")
    lines += ["", *not_run]
    lines += ["", "One call on tiny tensors by the host's clock, and in a CUDA graph, in microseconds:", ""]
    lines += [_row("op", *columns), "|---" * 5 + "|"]
    for row in figures["host"]:
        cells = [_marked(row["microseconds"][name], row["targets"].get(name), 2) for name in columns]
        lines.append(_row(row["op"], *cells))
    return lines


def _marked(value: float | None, goal: dict[str, Any] | None, digits: int) -> str:
    if value is None:
        return ""
    return f"**{value:.{digits}f}**" if goal and not goal["met"] else f"{value:.{digits}f}"
