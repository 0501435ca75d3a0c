"""The report of a run in Markdown. What users named (data, model, attacks) is escaped, so that it stays text."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Sequence
from typing import Any

from pursamere._text import printable
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
    """``text`` on one line, without a meaning for Markdown, its tables or HTML."""
    return printable(text).translate(_SPECIAL)


def title(result: Result) -> str:
    """What was evaluated, as plain text on one line."""
    model = result.config["model"]["description"].partition("\n")[0].partition("(")[0].strip()
    return printable(f"Robustness of {model or 'a model'} on {result.config['data']['name'] or 'unnamed data'}")


def markdown_report(result: Result, pictures: Collection[str], first_tensors: str | None) -> str:
    """The report.

    Args:
        result: of a run that is complete.
        pictures: which of the files ``ACCURACY``, ``BARS``, ``LOSS`` and ``GRID`` lie beside it.
        first_tensors: name of a unit whose adversarial images were kept, or ``None`` if none were.

    Returns:
        Markdown with tables; it ends with a line break, and is the same for the same result.
    """
    sections = [
        f"# {escape(title(result))}",
        f"**Verdict: {escape(result.verdict)}**",
        "## How the figures were made",
        *_made(result),
        "## Threat model",
        _threat(result),
        "## Accuracy under each attack",
        "In brackets: 95 % Wilson intervals. An attack on survivors ran only on samples that had withstood those "
        "before it, so it has no accuracy of its own. The worst case counts a sample as right only if it is right as "
        "it is and after every attack in the table.",
    ]
    for eps in result.eps:
        sections += [f"### eps {eps:.4g}", _attacks(result, eps)]
    sections += _picture(BARS, "Accuracy under each attack, with 95 % Wilson intervals", pictures)
    sections += ["## Accuracy against eps", *_sweep(result)]
    sections += _picture(ACCURACY, "Accuracy against eps, with 95 % Wilson intervals", pictures)
    sections += ["## Signs of masked gradients", *_checks(result), *_losses(pictures)]
    sections += ["## Pictures", *_grid(result, pictures)]
    sections += ["## Cost", _cost(result)]
    sections += ["## Reproduction", *_reproduction(result, first_tensors)]
    return "\n\n".join(sections) + "\n"


def _made(result: Result) -> list[str]:
    protocol, samples = result.config["protocol"], result.clean.samples
    points = [
        "A sample counts as robust if nothing tried here broke it: a stronger attack can only lower the worst case. "
        "The intervals cover the choice of the samples, not the weakness of the attacks."
    ]
    few = samples < _HEADLINE
    points.append(
        f"{samples} samples" + (f": fewer than the {_HEADLINE:,} that a headline figure needs." if few else ".")
    )
    points.append(escape(classes_told(result.config)))
    name, lacks = escape(protocol["name"]), escape(protocol["left_out"])
    if _is_full(protocol["attacks"]):
        points.append("The full protocol" + (", but for what was not run." if result.skipped else "."))
    elif lacks:
        points.append(f"Protocol {name}, less than the full one: {lacks}.")
    else:
        points.append(f"Protocol {name}: other attacks than those of the full one; what it lacks is not stated.")
    if result.skipped:
        skipped = "; ".join(f"{name} ({reason})" for name, reason in result.skipped.items())
        points.append(f"Not run: {escape(skipped)}.")
    if result.config["model"]["random"]:
        points.append(
            f"The defense is random. Gradients are of logits averaged over {EOT_SAMPLES} draws of its noise, and what "
            "an attack found is judged with one further draw: another draw gives other figures, and an attacker who "
            "may try again does better."
        )
    else:
        points.append(
            f"Before any attack the logits of {min(samples, CHECKED)} samples were the same bits in other calls, batch "
            "sizes and orders."
        )
    return ["\n".join(f"- {point}" for point in points)]


def _is_full(attacks: Sequence[dict[str, Any]]) -> bool:
    return list(attacks) == json.loads(json.dumps(PRESETS["full"].settings()["attacks"]))


def _threat(result: Result) -> str:
    radii = ", ".join(_radius(eps) for eps in result.eps)
    return (
        "The attacker knows everything: the model, its parameters and, for a purifier, its denoiser, its noise and "
        f"every setting. Images may change by at most eps in the {NORMS[result.norm]} norm and stay in [0, 1]; "
        f"eps, in pixel units of that range, is {radii}. Any wrong class is a success."
    )


def _radius(eps: float) -> str:
    """With the fraction of 255 that it stands for, where it does."""
    short, parts = f"{eps:.4g}", round(eps * 255)
    return f"{short} ({parts}/255)" if float(short) != eps and abs(parts / 255 - eps) < 1e-6 else short


def _table(header: Sequence[str], rows: Iterable[Sequence[str]], right: Sequence[int] = ()) -> str:
    """A Markdown table; its cells are escaped already, and the columns ``right`` are flush right."""
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
        "Weaker than the worst case, and only to see whether accuracy falls to zero as it must.",
        _table(("attack", "eps", "attacked", "accuracy"), rows, right=(1, 2, 3)),
    ]


def _checks(result: Result) -> list[str]:
    rows = [
        (escape(check.name), "**pass**" if check.passed else "**warn**", escape(check.detail))
        for check in result.checks
    ]
    return [
        "A warning means that attacks may have been misled, and that the figures are then too good. That a check "
        "passes proves nothing. Checks whose attacks were not run are not listed.",
        _table(("check", "result", "details"), rows),
    ]


def _losses(pictures: Collection[str]) -> list[str]:
    if LOSS not in pictures:
        return ["No attack by gradients was run, so there are no loss curves."]
    return [
        "The mean over the attacked samples of the smallest margin so far (below zero: wrong class), by evaluations of "
        "the model. An attack that stops at a success keeps the margin it has. Curves of attacks on survivors begin "
        "with harder samples.",
        *_picture(LOSS, "Mean smallest margin against evaluations", pictures),
    ]


def _grid(result: Result, pictures: Collection[str]) -> list[str]:
    if GRID not in pictures:
        return ["None: the adversarial images were not kept, or are neither gray nor RGB."]
    again = " The purifier drew fresh noise for this picture." if result.config["model"]["random"] else ""
    return [
        f"The first samples that some attack broke at eps {max(result.eps):.4g}, then others if these are too few; no "
        "other choice was made. Above each picture is the class that the classifier sees in it (red: wrong); a "
        f"purifier's decision is that of the purified rows.{again} Below: the first attack that broke the sample, "
        "or came nearest.",
        *_picture(GRID, "Inputs, adversarial images and what the purifier makes of them", pictures),
    ]


def _picture(name: str, caption: str, pictures: Collection[str]) -> list[str]:
    return [f"![{caption}]({name})"] if name in pictures else []


def _cost(result: Result) -> str:
    cost, seconds = result.cost, sum(line.seconds for line in result.lines)
    rows = [("images per second, without gradients", f"{cost['images_per_second']:,}")]
    for key, name in (("forward_passes", "forward"), ("backward_passes", "backward")):
        if key in cost:
            rows.append((f"{name} passes of the denoiser for an image", f"{cost[key]:,}"))
    rows.append(("peak memory of the process", f"{cost['peak_memory_mib']:,} MiB"))
    rows.append(("computation of all attacks", f"{seconds:,.0f} s"))
    return _table(("what", "how much"), rows, right=(1,))


def _reproduction(result: Result, first_tensors: str | None) -> list[str]:
    config, environment = result.config, result.environment
    facts = {
        "data": config["data"]["name"] or "unnamed",
        "data SHA-256": config["data"]["sha256"],
        "model SHA-256": config["model"]["sha256"],
        "seed": config["seed"],
        "chunk, micro-batch": f"{config['chunk']}, {config['micro_batch']}",
        "versions": ", ".join(f"{name} {version}" for name, version in environment["versions"].items()),
        "machine": f"{environment['platform']} ({environment['machine']}), device {environment['device']}, "
        f"CPU threads {environment['threads']}",
    }
    lines = [printable(line) for line in config["model"]["description"].splitlines()]
    if len(lines) > _DESCRIBED_LINES:
        lines[_DESCRIBED_LINES:] = [f"... {len(lines) - _DESCRIBED_LINES} more lines in config.json"]
    return [
        "The same call with what `config.json` says, on the same machine, versions and number of threads, gives the "
        "same bytes of `outcomes.csv`.",
        "The first SHA-256 is of images and labels, the second of weights, buffers and what is printed below.",
        _table(("what", "value"), ((name, escape(value)) for name, value in facts.items())),
        "The model:",
        _code(lines),
        "Each sample's outcome under each attack is in `outcomes.csv`; the worst case is recomputed from it by:",
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
        "Adversarial images, in the order of the samples, a file for each attack, radius and chunk:",
        _code(
            [
                "from safetensors.torch import load_file",
                f"images = load_file({f'adversarial/{first}.safetensors'!r})['images']",
            ]
        ),
    ]


def _code(lines: Iterable[str]) -> str:
    return "\n".join(f"    {line}" for line in lines)
