"""The report of a run in Markdown. Names given by users (data, model, attacks) are escaped."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Sequence
from typing import Any

from pursamere._text import printable, radius
from pursamere.evaluation import PRESETS
from pursamere.evaluation.classes import classes_told
from pursamere.evaluation.determinism import CHECKED
from pursamere.evaluation.result import AttackResult, Result
from pursamere.evaluation.target import EOT_SAMPLES

from .words import NORMS, accuracy_of, gradient_of

__all__ = ["ACCURACY", "BARS", "GRID", "LOSS", "escape", "markdown_report", "title"]

ACCURACY, BARS, LOSS, GRID = "accuracy.png", "attacks.png", "loss.png", "pictures.png"
_HEADLINE = 1024  # samples needed for a headline figure
_DESCRIBED_LINES = 40
_SPECIAL = {ord(character): f"&#{ord(character)};" for character in "&<>|\\`*_[]{}~$"}


def escape(text: object) -> str:
    """``text`` on one line, with everything special to Markdown, its tables or HTML escaped."""
    return printable(text).translate(_SPECIAL)


def title(result: Result) -> str:
    """The report's title: what was evaluated, as plain text on one line."""
    model = result.config["model"]["description"].partition("\n")[0].partition("(")[0].strip()
    return printable(f"Robustness of {model or 'a model'} on {result.config['data']['name'] or 'unnamed data'}")


def markdown_report(result: Result, pictures: Collection[str], first_tensors: str | None) -> str:
    """Return the report.

    Args:
        result: the result of a complete run.
        pictures: which of the files ``ACCURACY``, ``BARS``, ``LOSS`` and ``GRID`` exist beside the report.
        first_tensors: name of a unit whose adversarial images were kept, or ``None`` if none were.

    Returns:
        Markdown with tables, ending with a newline.
    """
    sections = [
        f"# {escape(title(result))}",
        f"**Verdict: {escape(result.verdict)}**",
        "## How the figures were made",
        *_made(result),
        "## Threat model",
        _threat(result),
        "## Accuracy under each attack",
        "In brackets: 95 % Wilson intervals. An attack on survivors ran only on samples that had withstood all attacks "
        "before it, so it has no accuracy of its own. The worst case counts a sample as robust only if it is "
        "classified correctly without an attack and after every attack in the table.",
    ]
    for eps in result.eps:
        sections += [f"### eps {eps:.4g}", _attacks(result, eps)]
    sections += _picture(BARS, "Accuracy under each attack, with 95 % Wilson intervals", pictures)
    sections += ["## Accuracy against eps", *_sweep(result)]
    sections += _picture(ACCURACY, "Accuracy against eps, with 95 % Wilson intervals", pictures)
    sections += _compression(result)
    sections += ["## Signs of masked gradients", *_checks(result), *_losses(pictures)]
    sections += ["## Pictures", *_grid(result, pictures)]
    sections += ["## Cost", _cost(result)]
    sections += ["## Reproduction", *_reproduction(result, first_tensors)]
    return "\n\n".join(sections) + "\n"


def _made(result: Result) -> list[str]:
    protocol, samples = result.config["protocol"], result.clean.samples
    points = [
        "A sample counts as robust if nothing tried here broke it; a stronger attack can only lower the worst case. "
        "The intervals account for the choice of samples, not for the weakness of the attacks."
    ]
    few = samples < _HEADLINE
    points.append(
        f"{samples} samples" + (f": fewer than the {_HEADLINE:,} that a headline figure needs." if few else ".")
    )
    points.append(escape(classes_told(result.config)))
    name, lacks = escape(protocol["name"]), escape(protocol["left_out"])
    if _is_full(protocol["attacks"]):
        points.append("The full protocol" + (", except for what was not run." if result.skipped else "."))
    elif lacks:
        points.append(f"Protocol {name}, a reduced version of the full one: {lacks}.")
    else:
        points.append(f"Protocol {name}, which differs from the full one; what it leaves out is not stated.")
    if result.skipped:
        skipped = "; ".join(f"{name} ({reason})" for name, reason in result.skipped.items())
        points.append(f"Not run: {escape(skipped)}.")
    if result.config["model"]["random"]:
        points.append(
            f"The defense is random. Attacks differentiate logits averaged over {EOT_SAMPLES} draws of its noise, and "
            "each adversarial image is judged with one more draw. Other draws give other figures, and an attacker who "
            "can retry does better."
        )
    else:
        points.append(
            f"Before any attack, the logits of {min(samples, CHECKED)} samples were bitwise equal over repeated calls, "
            "batch sizes and orders."
        )
    return ["\n".join(f"- {point}" for point in points)]


def _is_full(attacks: Sequence[dict[str, Any]]) -> bool:
    return list(attacks) == json.loads(json.dumps(PRESETS["full"].settings()["attacks"]))


def _threat(result: Result) -> str:
    radii = ", ".join(radius(eps) for eps in result.eps)
    return (
        "The attacker knows everything: the model, its parameters and, for a purifier, its denoiser, noise and all "
        f"settings. Images may change by at most eps in the {NORMS[result.norm]} norm and stay in [0, 1]; "
        f"eps, in pixel units of that range, is {radii}. Any wrong class counts as success."
    )


def _table(header: Sequence[str], rows: Iterable[Sequence[str]], right: Sequence[int] = ()) -> str:
    """A Markdown table of escaped cells; columns listed in ``right`` are right-aligned."""
    rule = ["---:" if number in right else "---" for number in range(len(header))]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (header, rule, *rows))


def _attacks(result: Result, eps: float) -> str:
    rows = [("no attack", "", "", f"{result.clean.samples}", str(result.clean))]
    rows += [_attack(line) for line in result.attacks_at(eps)]
    worst = result.worst_case[eps]
    rows.append(("**worst case**", "", "", f"**{worst.samples}**", f"**{worst}**"))
    return _table(("attack", "method", "gradient", "attacked", "accuracy"), rows, right=(3, 4))


def _attack(line: AttackResult) -> tuple[str, str, str, str, str]:
    attack = line.attack
    cells = (attack.name, attack.describe(), gradient_of(attack), str(int(line.attacked.sum())), accuracy_of(line))
    name, method, gradient, attacked, accuracy = map(escape, cells)
    return name, method, gradient, attacked, accuracy


def _sweep(result: Result) -> list[str]:
    if not result.sweeps:
        return ["No attack was run at other radii."]
    rows = [
        (escape(name), f"{line.eps:.4g}", f"{line.share.samples}", str(line.share))
        for name, lines in result.sweeps.items()
        for line in lines
    ]
    return [
        "Weaker than the worst case; shows whether accuracy falls to zero, as it must.",
        _table(("attack", "eps", "attacked", "accuracy"), rows, right=(1, 2, 3)),
    ]


def _compression(result: Result) -> list[str]:
    if not result.compression:
        return []
    values = "; ".join(
        f"{ratio:.3f} at eps {eps:.4g} ({samples} samples)" for eps, (ratio, samples) in result.compression.items()
    )
    return [
        "## Compression",
        "L2 distance between an image and a random perturbation of it by eps, after purification divided by before, "
        f"median: {values}. Below 1 the purifier shrinks such perturbations. It may enlarge those of an attacker.",
    ]


def _checks(result: Result) -> list[str]:
    rows = [
        (escape(check.name), "**pass**" if check.passed else "**warn**", escape(check.detail))
        for check in result.checks
    ]
    return [
        "A warning means that attacks may have been misled, so that the figures are too good. A passed check proves "
        "nothing. Checks whose attacks were not run are not listed.",
        _table(("check", "result", "details"), rows),
    ]


def _losses(pictures: Collection[str]) -> list[str]:
    if LOSS not in pictures:
        return ["No gradient attack was run, so there are no loss curves."]
    return [
        "The smallest margin so far (negative: misclassified), averaged over the attacked samples, against forward "
        "passes of the model. Samples on which an attack stops early keep their last margin. Attacks on survivors "
        "start with harder samples.",
        *_picture(LOSS, "Mean smallest margin against forward passes", pictures),
    ]


def _grid(result: Result, pictures: Collection[str]) -> list[str]:
    if GRID not in pictures:
        return ["None: the adversarial images were not kept, or are neither gray nor RGB."]
    again = " The purifier drew fresh noise for this picture." if result.config["model"]["random"] else ""
    return [
        f"The first samples that an attack broke at eps {max(result.eps):.4g}, then others if there are too few; not "
        "selected otherwise. Above each image is the class that the classifier predicts for it (red: wrong); the "
        f"predictions of the purified classifier are those above the purified rows.{again} Below is the first attack "
        "that broke the sample, or the one that came closest.",
        *_picture(GRID, "Inputs, adversarial images, and both after purification", pictures),
    ]


def _picture(name: str, caption: str, pictures: Collection[str]) -> list[str]:
    return [f"![{caption}]({name})"] if name in pictures else []


def _cost(result: Result) -> str:
    cost, seconds = result.cost, sum(line.seconds for line in result.lines)
    rows = [("images per second, without gradients", f"{cost['images_per_second']:,}")]
    for key, name in (("forward_passes", "forward"), ("backward_passes", "backward")):
        if key in cost:
            rows.append((f"{name} passes of the denoiser per image", f"{cost[key]:,}"))
    rows.append(("peak memory of the process", f"{cost['peak_memory_mib']:,} MiB"))
    rows.append(("computing time of all attacks", f"{seconds:,.0f} s"))
    return _table(("what", "value"), rows, right=(1,))


def _micro_batches(config: dict[str, Any]) -> str:
    found = config["model"]["micro_batches"]
    if not found:
        return str(config["micro_batch"])
    return "; ".join(f"{name} {', '.join(map(str, sizes))}" for name, sizes in found.items())


def _reproduction(result: Result, first_tensors: str | None) -> list[str]:
    config, environment = result.config, result.environment
    facts = {
        "data": config["data"]["name"] or "unnamed",
        "data SHA-256": config["data"]["sha256"],
        "model SHA-256": config["model"]["sha256"],
        "seed": config["seed"],
        "chunk": config["chunk"],
        "micro-batch": _micro_batches(config),
        "versions": ", ".join(f"{name} {version}" for name, version in environment["versions"].items()),
        "machine": f"{environment['platform']} ({environment['machine']}), device {environment['device']}, "
        f"CPU threads {environment['threads']}",
    }
    lines = [printable(line) for line in config["model"]["description"].splitlines()]
    if len(lines) > _DESCRIBED_LINES:
        lines[_DESCRIBED_LINES:] = [f"... {len(lines) - _DESCRIBED_LINES} more lines in config.json"]
    return [
        "The same call with the settings in `config.json` gives the same bytes of `outcomes.csv` on the same machine "
        "with the same versions and number of threads.",
        "The first SHA-256 covers images and labels, the second the weights, the buffers and the text below.",
        _table(("what", "value"), ((name, escape(value)) for name, value in facts.items())),
        "The model:",
        _code(lines),
        "Each sample's outcome under each attack is in `outcomes.csv`. To recompute the worst case from it:",
        _code(_recompute(result)),
        *_tensors(first_tensors),
    ]


def _recompute(result: Result) -> list[str]:
    sweeps = sorted(result.sweeps)
    return [
        "import pandas",
        'outcomes = pandas.read_csv("outcomes.csv")',
        f"counted = outcomes.eps.isin([0, {result.eps[0]!r}]) & ~outcomes.attack.isin({sweeps!r})",
        "attacked = outcomes[counted & (outcomes.attacked == 1)]",
        'print(attacked.groupby("sample").correct.min().mean())',
    ]


def _tensors(first: str | None) -> list[str]:
    if first is None:
        return ["Adversarial images were not kept."]
    return [
        "Adversarial images in the order of the samples, one file per attack, radius and chunk:",
        _code(
            [
                "from safetensors.torch import load_file",
                f"images = load_file({f'adversarial/{first}.safetensors'!r})['images']",
            ]
        ),
    ]


def _code(lines: Iterable[str]) -> str:
    return "\n".join(f"    {line}" for line in lines)
