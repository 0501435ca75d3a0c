"""``pursamere demo``: attack a classifier with and without purification."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pursamere._extras import require
from pursamere._files import write_bytes
from pursamere._output import claim, require_own
from pursamere._text import printable
from pursamere.cli import types
from pursamere.cli.errors import CommandError
from pursamere.cli.progress import evaluation_bars, progress_bar, tell

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from pursamere.evaluation import Protocol

__all__ = ["add_parser", "run"]

_DESCRIPTION = """\
Evaluate a classifier on held-out images, undefended and behind a purifier, with a few short attacks. OUTPUT gets a
picture (demo.png), and a folder for each of the two, like that of pursamere evaluate, with a report and the outcome of
every attack on every image. For cifar10, the classifier behind the purifier was trained there, and the undefended one
on clean images. Nothing is downloaded. Takes a minute on two cores, or two for mnist and cifar10. The accuracies
are the same every time; a demo that was killed resumes when the same command is given again.
"""
_SAMPLES = {"digits": 256, "mnist": 32, "cifar10": 32}
_ATTACK_STEPS = {"digits": 20, "mnist": 10, "cifar10": 10}
_BARE_STEPS = 50  # against the classifier alone, where they are cheap
_SHOWN = 8
_MODULES = ("safetensors", "matplotlib.figure", "markdown")  # for the reports


def add_parser(commands: Any, common: argparse.ArgumentParser) -> None:
    """Add the subcommand to the parser."""
    parser = commands.add_parser(
        "demo",
        parents=[common],
        help="attack a classifier with and without purification",
        description=_DESCRIPTION,
        formatter_class=types.HelpFormatter,
    )
    add = parser.add_argument
    add("--dataset", choices=tuple(_SAMPLES), default="digits", help="8x8 digits of scikit-learn, MNIST, or CIFAR-10")
    output = "output folder (default: pursamere-demo; mnist and cifar10: pursamere-demo-NAME)"
    add("-o", "--output", type=types.path, default=argparse.SUPPRESS, help=output)
    add("--seed", type=types.seed, default=0, help="seed of the digits' classifier and of the attacks")
    # Absent unless given, since the defaults depend on the data.
    add(
        "--samples",
        type=types.count,
        default=argparse.SUPPRESS,
        help="images to attack, at most 512 (default: 256; mnist and cifar10: 32)",
    )
    add(
        "--attack-steps",
        type=types.count,
        default=argparse.SUPPRESS,
        help="gradient steps against the purifier (default: 20; mnist and cifar10: 10)",
    )
    epochs = "epochs to train the digits' classifier (default: 20)"
    add("--epochs", type=types.count, default=argparse.SUPPRESS, help=epochs)
    types.add_device(parser)
    add("-q", "--quiet", action="store_true", help="no progress bars")
    parser.set_defaults(command=run)


def run(arguments: argparse.Namespace) -> int:
    """Evaluate both classifiers, and print their tables and worst cases."""
    name = arguments.dataset
    output = getattr(arguments, "output", Path("pursamere-demo" if name == "digits" else f"pursamere-demo-{name}"))
    require_own(output, "demo")
    shipped = name != "digits"
    if shipped and "epochs" in arguments:
        raise CommandError(f"--epochs: the networks for {name} are trained already")
    # Before the work, so that a missing extra isn't found out after a minute.
    for module in (*(("diffusers",) if shipped else ("sklearn.datasets",)), *_MODULES):
        require(module, extra="demo")
    from pursamere import PurifiedClassifier, datasets, evaluate, load_pretrained
    from pursamere.cli.networks import find_device
    from pursamere.pretrained import EPS, make_purifier
    from pursamere.pretrained.digits import EPOCHS, make_denoiser, train_classifier
    from pursamere.report.terminal import attack_table

    device = find_device(arguments.device)
    if shipped:
        networks = load_pretrained(name, device)
        denoiser, classifier, test, undefended = (
            networks.denoiser, networks.classifier, networks.test, networks.undefended,
        )  # fmt: skip
    else:
        denoiser, test = make_denoiser(device=device), datasets.load("digits", "test")
    samples = getattr(arguments, "samples", _SAMPLES[name])
    if samples > len(test):
        raise CommandError(f"--samples: there are {len(test)} images, got {samples}")
    if not shipped:
        epochs = getattr(arguments, "epochs", EPOCHS)
        with progress_bar(epochs, "train the classifier", unit="epoch", quiet=arguments.quiet) as advance:
            classifier = undefended = train_classifier(seed=arguments.seed, epochs=epochs, progress=advance).to(device)
    purifier = make_purifier(name, denoiser)
    data = test.head(samples)
    models = {
        "undefended": (undefended, _BARE_STEPS),
        "purified": (PurifiedClassifier(purifier, classifier), getattr(arguments, "attack_steps", _ATTACK_STEPS[name])),
    }
    results = {}
    with claim(output, "demo"):
        for kind, (model, steps) in models.items():
            results[kind] = evaluate(
                model,
                data.images.to(device),
                data.labels.to(device),
                folder=output / kind,
                eps=EPS[name],
                preset=_protocol(steps),
                seed=arguments.seed,
                chunk=512,  # one chunk, whatever the number of samples
                data=f"{test.name}, the first {samples} of the test split",
                bar=evaluation_bars(f"{kind}: ", quiet=arguments.quiet),
            )
        eps = EPS[name][-1]
        file = output / "undefended" / "adversarial" / f"pgd-margin-eps{eps}-00000.safetensors"
        adversarial = require("safetensors.torch", extra="demo").load(file.read_bytes())["images"].to(device)
        labels = data.labels.to(device)
        picture = _draw(models, data.images.to(device), adversarial, labels, data.classes)
        write_bytes(output / "demo.png", picture, overwrite=True)
    tell(f"{samples} held-out images of {name}; purifier: {purifier.extra_repr()}\n")
    for kind, result in results.items():
        tell(f"{kind}\n{attack_table(result)}\n")
    tell("The attacks are few and short: stronger ones (pursamere evaluate) can only lower the worst case.")
    for eps in EPS[name]:
        worst = ", ".join(f"{result.worst_case[eps].value:.3f} {kind}" for kind, result in results.items())
        tell(f"eps {eps:.3g}, worst case: {worst}")
    if classifier is not undefended:  # so not all of the difference is the purifier's
        alone, behind = (_accuracy(model, adversarial, labels) for model in (classifier, models["purified"][0]))
        tell(
            f"Of the adversarial images made for the undefended classifier (eps {EPS[name][-1]:.3g}), the classifier "
            f"behind the purifier gets {alone:.3f} right without the purifier, and {behind:.3f} with it."
        )
    written = [printable(output / file) for file in ("demo.png", "purified/report.html")]
    tell(f"wrote {' and '.join(written)}")
    return 0


def _accuracy(model: Any, images: Tensor, labels: Tensor) -> float:
    import torch

    with torch.no_grad():
        return float((model(images).argmax(1) == labels).float().mean())


def _draw(models: dict[str, Any], images: Tensor, adversarial: Tensor, labels: Tensor, classes: Sequence[str]) -> bytes:
    """Draw the first images on which the attack fooled the undefended classifier, then others if these are too few.

    Above each image is what the undefended classifier predicts, and for purified ones the purified classifier.
    """
    import torch

    from pursamere.report.drawing import GridRow, draw_grid, new_figure, to_png

    classifier, defended = models["undefended"][0], models["purified"][0]
    with torch.no_grad():
        shown = torch.argsort((classifier(adversarial).argmax(1) == labels).int(), stable=True)[:_SHOWN]
        rows = {"input": images[shown], "adversarial": adversarial[shown]}
        grid = [GridRow(title, batch, classifier(batch).argmax(1).tolist()) for title, batch in rows.items()]
        purified = defended.purifier(adversarial[shown])
        grid.append(GridRow("purified", purified, defended.classifier(purified).argmax(1).tolist()))
    figure = new_figure(0.5 + 1.05 * len(shown), 0.2 + 1.27 * len(grid))
    draw_grid(figure, grid, labels[shown].tolist(), classes=classes if max(map(len, classes)) > 1 else ())
    return to_png(figure)


def _protocol(steps: int) -> Protocol:
    """The demo's attacks, under the names that the masking checks know."""
    from pursamere.attacks import PGD, Clean, Transfer
    from pursamere.evaluation import Protocol

    return Protocol(
        "demo",
        (
            Clean(),
            Transfer("transfer-bare", steps=_BARE_STEPS, sources=("bare",)),
            PGD("pgd-margin-bpda", gradient="identity", steps=steps),
            PGD("pgd-margin", steps=steps),
        ),
        "nearly everything: a demonstration, not a claim of robustness",
    )
