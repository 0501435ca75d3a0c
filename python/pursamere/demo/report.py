"""What the demo leaves behind: text for the terminal and a JSON file with everything that went into it."""

from __future__ import annotations

import hashlib
import json
import platform
from dataclasses import asdict
from typing import Any

import torch
from torch import nn

from pursamere._environment import package_version, versions
from pursamere.demo import results as names
from pursamere.demo.results import find, format_table
from pursamere.demo.run import Demo

_FORMAT = 1  # of the JSON file; raised when a reader of the old one would misread the new one


def text_report(demo: Demo) -> str:
    """The table with what one must know to read it."""
    s = demo.settings
    described = {
        names.CLEAN: "none (clean images)",
        names.PGD: f"PGD, {s.bare_attack_steps} steps",
        names.TRANSFER: "the undefended one's adversarial images",
        names.BPDA: f"PGD, {s.attack_steps} steps, purifier as identity (BPDA)",
        names.EXACT: f"PGD, {s.attack_steps} steps, exact gradient",
        names.WORST: "worst case per sample of the above",
    }
    return "\n".join(
        [
            f"{len(demo.attacked)} held-out {demo.subject.images}; {demo.subject.origin}",
            f"purifier: direction {s.direction}, sigma {s.sigma:g}, {s.draws} draws, {s.steps} steps of L2 length "
            f"{s.step_size:g}, ascent radius {s.ascent_radius:g}, Linf radius {s.radius:g}",
            "(chosen on validation images that are not attacked here)",
            "",
            format_table(demo.results, described),
            "",
            f"purification: {demo.images_per_second:,.0f} images per second on {torch.get_num_threads()} CPU threads",
            "This is a demonstration with short attacks on small images, not a full evaluation protocol: stronger",
            "attacks (more steps, restarts, other methods) can only lower the worst case.",
        ]
    )


def json_report(demo: Demo) -> str:
    """Settings, versions, timings and per-sample outcomes."""
    settings = asdict(demo.settings)
    if demo.settings.dataset == "mnist":  # whose networks were not made by the demo
        del settings["epochs"], settings["bandwidth"]
    report: dict[str, Any] = {
        "format": _FORMAT,
        "settings": settings,
        "versions": {**versions(), **{name: package_version(name) for name in ("scikit-learn", "diffusers")}},
        "platform": platform.platform(),
        "cpu_threads": torch.get_num_threads(),
        "data": demo.subject.record,
        "classifier_sha256": _sha256(demo.subject.classifier),
        "denoiser_sha256": _sha256(demo.subject.denoiser),  # null for a kernel density, which has no weights
        "images_per_second": demo.images_per_second,
        "seconds": demo.seconds,
        "labels": demo.attacked.labels.tolist(),
        "results": [result.to_json() for result in demo.results],
    }
    return json.dumps(report, indent=1) + "\n"


def _sha256(network: nn.Module) -> str | None:
    weights = b"".join(parameter.numpy().tobytes() for parameter in network.parameters())
    return hashlib.sha256(weights).hexdigest() if weights else None


def headline(demo: Demo) -> str:
    """One line for the end."""
    eps = demo.settings.eps[0]
    bare = find(demo.results, names.UNDEFENDED, names.WORST, eps).accuracy
    purified = find(demo.results, names.PURIFIED, names.WORST, eps).accuracy
    return f"eps {eps:.2f}, worst case: {bare:.3f} undefended, {purified:.3f} purified"
