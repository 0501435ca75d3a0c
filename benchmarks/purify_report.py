"""What ``bench_purify.py`` found: lines of text, targets, the plot and the section of docs/speed.md.

python benchmarks/purify_report.py benchmarks/results/purify-cpu.json
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from purify_cases import EAGER_FLOAT32, FLOOR, FULL
from targets import Target

from pursamere._files import write_bytes
from pursamere.report.drawing import COLORS, new_figure, to_png

DOCS = Path(__file__).parents[1] / "docs"
NOT_PEERS = ("purifier", FLOOR, FULL)

Row = Mapping[str, Any]


def of_floor(row: Row, floor: str = FLOOR) -> float:
    """Return the purifier's time over a floor's; the floor is also the full one where that has no time of its own."""
    return row["seconds"]["purifier"] / row["seconds"].get(floor, row["seconds"][FLOOR])


def over_peers(row: Row) -> float:
    """Return the purifier's speed over the fastest peer's."""
    return min(time for name, time in row["seconds"].items() if name not in NOT_PEERS) / row["seconds"]["purifier"]


def targets(rows: Sequence[Row]) -> Iterator[Target]:
    """Yield the targets for two cores that the rows have a figure for."""
    for row in rows:
        name = f"{row['network']}, {row['direction']}, batch {row['batch']}, {row['mode']}"
        eager = row["mode"] == EAGER_FLOAT32
        if eager and row["batch"] in (1, 32):
            yield Target(f"{name}, over the floor", of_floor(row), 1.05 if row["batch"] == 32 else 1.3)
        if row["batch"] == 32:
            yield Target(f"{name}, times the fastest peer", over_peers(row), 1.5 if eager else 3.0, at_most=False)


def target_lines(rows: Sequence[Row]) -> list[str]:
    return [str(target) for target in targets(rows)]


def row_lines(row: Row) -> list[str]:
    """Return a row for the terminal."""
    passes = " + ".join(map(str, row["passes"]))
    lines = [
        f"{row['network']}, {row['direction']}, batch {row['batch']}, {row['mode']}: {passes} passes, "
        f"{of_floor(row):.2f} of the floor, {over_peers(row):.2f} times the fastest peer"
    ]
    for name, speed in row["images_per_second"].items():
        memory = f"{row['mib'][name]:10.1f} MiB" if "mib" in row else ""
        lines.append(f"    {name:<26}{speed:10.2f} images/s{memory}")
    return lines


def picture(report: Mapping[str, Any]) -> str:
    """Return the plot's path in docs/."""
    return f"images/speed-{report['device']}.png"


def section(report: Mapping[str, Any]) -> str:
    """Return the section of docs/speed.md."""
    lines = [
        f"`{report['command']}`, {report['machine']}; medians, images per second.",
        "",
        f"![Images per second: the purifier, the bare network and peers' loops]({picture(report)})",
        "",
        "| network, direction | mode | batch | purifier | floor | time / floor | / full batches | fastest peer "
        "| speed / peer |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row in report["rows"]:
        speeds = row["images_per_second"]
        peer = max((name for name in speeds if name not in NOT_PEERS), key=speeds.__getitem__)
        lines.append(
            f"| {row['network']}, {row['direction']} | {row['mode']} | {row['batch']} | {speeds['purifier']:.1f} "
            f"| {speeds[FLOOR]:.1f} | {of_floor(row):.2f} | {of_floor(row, FULL):.2f} "
            f"| {peer}, {speeds[peer]:.1f} | {over_peers(row):.2f} |"
        )
    found = list(targets(report["rows"]))
    met = sum(target.verdict == "met" for target in found)
    lines += ["", f"{met} of {len(found)} targets are met:", "", *(f"- {target}" for target in found)]
    with_memory = [row for row in report["rows"] if "mib" in row]
    if with_memory:
        lines += ["", "Peak memory of a call beyond what is in use before, in MiB:", ""]
        for row in with_memory:
            figures = "; ".join(f"{name} {figure:.0f}" for name, figure in row["mib"].items())
            lines.append(f"- {row['network']}, {row['direction']}, {row['mode']}, {row['batch']} images: {figures}")
    return "\n".join(lines)


def plot(report: Mapping[str, Any]) -> bytes:
    """Return a PNG: images per second by batch, a panel for each network and direction, in eager float32."""
    rows = [row for row in report["rows"] if row["mode"] == EAGER_FLOAT32]
    panels = list(dict.fromkeys((row["network"], row["direction"]) for row in rows))
    figure = new_figure(8.6, 3.2 * ((len(panels) + 1) // 2))
    axes = figure.subplots((len(panels) + 1) // 2, 2, squeeze=False).flat
    names = list(dict.fromkeys(name for row in rows for name in row["seconds"] if name != FULL))
    for axis, panel in zip(axes, panels, strict=False):
        shown = [row for row in rows if (row["network"], row["direction"]) == panel]
        for name, color in zip(names, COLORS, strict=False):
            part = [row for row in shown if name in row["seconds"]]
            speeds = [row["images_per_second"][name] for row in part]
            style = {"linestyle": "--", "marker": ""} if name == FLOOR else {"marker": "o"}
            if part:
                axis.plot([row["batch"] for row in part], speeds, color=color, label=name, **style)
        axis.set_xscale("log", base=2)
        ticks = [row["batch"] for row in shown]
        axis.set_xticks(ticks, list(map(str, ticks)))
        axis.set_ylim(bottom=0)
        axis.set_title(f"{panel[0]}, {panel[1]} direction", fontsize=10)
        axis.set_xlabel("batch")
        axis.set_ylabel("images per second")
        axis.legend(fontsize=8)
    return to_png(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("report", type=Path, help="the JSON of bench_purify.py")
    parser.add_argument("--docs", type=Path, default=DOCS, help="folder of speed.md (default docs/)")
    arguments = parser.parse_args()
    report = json.loads(arguments.report.read_text())
    page = arguments.docs / "speed.md"
    marks = [f"<!-- bench_purify.py, {report['device']}: {which} -->" for which in ("start", "end")]
    before, start, rest = page.read_text().partition(marks[0])
    _, end, after = rest.partition(marks[1])
    if not start or not end:
        parser.error(f"{page} must have the lines {' and '.join(marks)}")
    write_bytes(arguments.docs / picture(report), plot(report), overwrite=True)
    write_bytes(page, f"{before}{start}\n\n{section(report)}\n\n{end}{after}".encode(), overwrite=True)


if __name__ == "__main__":
    main()
