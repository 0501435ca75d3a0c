"""Training settings: every setting is a command-line flag and a key of the JSON file."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

import torch

from pursamere._validation import LARGEST_SIZE, check_choice, check_integer, check_nonnegative, check_positive
from pursamere.models.conv_classifier import LARGEST_WHITENING, NORMALIZATIONS
from pursamere.models.edm_unet import LARGEST_PATCH, MOST_LAYERS
from pursamere.noise import MAX_SEED
from pursamere.pretrained import TUNED, known_name
from pursamere.purifier import DIRECTIONS

_STEPS = (1, 2**31 - 1)
_SIZES = (1, LARGEST_SIZE)
PRECISIONS = ("auto", "float32", "bfloat16")
CHECKPOINTS = ("initial", "purifier")  # settings that name one
SIGMA_DISTRIBUTIONS = ("log-uniform", "log-normal")
_T = TypeVar("_T", bound="TrainingConfiguration")


def _check_fraction(name: str, value: Any) -> float:
    if not check_nonnegative(name, value) < 1:
        raise ValueError(f"{name} must be in [0, 1), got {value}")
    return float(value)


def _check_share(name: str, value: Any) -> float:
    if check_nonnegative(name, value) > 1:
        raise ValueError(f"{name} must be in [0, 1], got {value}")
    return float(value)


def _setting(
    default: Any,
    text: str,
    bounds: tuple[int, int] | None = None,
    check: Callable[[str, Any], float] | None = None,
) -> Any:
    """A setting.

    Args:
        default: its default value.
        text: help text.
        bounds: the least and the largest value of an integer, or of each of several integers.
        check: ``check(name, value)`` raises unless a float is in its range.
    """
    return field(default=default, metadata={"help": text, "bounds": bounds, "check": check})


@dataclass(frozen=True, kw_only=True)
class TrainingConfiguration:
    """Settings of both kinds of training.

    Raises:
        TypeError: a setting has the wrong type.
        ValueError: a setting is out of range.
    """

    dataset: str = _setting("digits", "digits, mnist, cifar10, cifar10_jpeg, a folder of images or an .npz file")
    steps: int = _setting(1000, "optimizer steps", _STEPS)
    batch_size: int = _setting(128, "images per step, over all processes together", (1, 2**16))
    learning_rate: float = _setting(
        1e-3, "peak learning rate of AdamW, at the end of the warm-up", check=check_positive
    )
    warmup_steps: int = _setting(100, "steps of linear warm-up; cosine decay follows", (0, _STEPS[1]))
    weight_decay: float = _setting(1e-4, "weight decay of AdamW", check=check_nonnegative)
    clip_norm: float = _setting(1.0, "maximum gradient norm; larger gradients are scaled down", check=check_positive)
    ema_decay: float = _setting(
        0.999, "decay of the moving average of the weights, which is what the checkpoint stores", check=_check_fraction
    )
    precision: str = _setting("auto", "auto (bfloat16 on CUDA, float32 on a CPU), float32, or bfloat16 (autocast)")
    channels_last: bool = _setting(False, "use the channels-last memory format, faster on GPUs")
    flip: bool = _setting(False, "flip half of the training images horizontally")
    seed: int = _setting(0, "seed of the initial weights, the order of the images, and the noise", (0, MAX_SEED))
    validate_every: int = _setting(500, "steps between validations", _STEPS)
    save_every: int = _setting(500, "steps between saved states, from which training can resume", _STEPS)

    def __post_init__(self) -> None:
        for item in fields(self):
            bounds, value = item.metadata["bounds"], getattr(self, item.name)
            if bounds and isinstance(item.default, int):  # the network checks sequences
                check_integer(item.name, value, low=bounds[0], high=bounds[1])
            if item.metadata["check"]:
                item.metadata["check"](item.name, value)
        check_choice("precision", self.precision, PRECISIONS)
        for name, kind in get_type_hints(type(self)).items():
            value = getattr(self, name)
            if kind == tuple[int, ...] and isinstance(value, list):  # from JSON
                object.__setattr__(self, name, tuple(value))
            elif kind in (bool, str) and not isinstance(value, kind):
                raise TypeError(f"{name} must be a {kind.__name__}, got {type(value).__name__}")

    def to_json(self) -> dict[str, Any]:
        """Return the settings as JSON-serializable values."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}


@dataclass(frozen=True, kw_only=True)
class DenoiserConfiguration(TrainingConfiguration):
    """Settings of ``pursamere train denoiser``; the network's are those of :class:`pursamere.models.EDMUNet`."""

    channels: tuple[int, ...] = _setting(
        (32, 64), "channels of the U-Net's levels, from the highest resolution down", _SIZES
    )
    layers: int = _setting(1, "residual blocks per level", (1, MOST_LAYERS))
    patch: int = _setting(1, "side of the network's input patches, in pixels", (1, LARGEST_PATCH))
    attention: bool = _setting(False, "attention at the lowest level")
    groups: int = _setting(8, "of the group normalization", _SIZES)
    sigma_data: float = _setting(
        0.6, "standard deviation of the data in the network's range [-1, 1]", check=check_positive
    )
    sigma_distribution: str = _setting(
        "log-uniform", "distribution of noise levels in training: log-uniform or log-normal"
    )
    sigma_min: float = _setting(0.03, "lowest noise level in training, in pixel units", check=check_positive)
    sigma_max: float = _setting(1.5, "highest noise level in training, in pixel units", check=check_positive)
    sigma_median: float = _setting(
        0.3, "median of the log-normal distribution (truncated to the range), in pixel units", check=check_positive
    )
    sigma_spread: float = _setting(
        1.0, "standard deviation of the logarithm for log-normal noise levels", check=check_positive
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("sigma_distribution", self.sigma_distribution, SIGMA_DISTRIBUTIONS)
        if self.sigma_min >= self.sigma_max:
            raise ValueError(f"sigma_min must be less than sigma_max, {self.sigma_max}, got {self.sigma_min}")


@dataclass(frozen=True, kw_only=True)
class ClassifierConfiguration(TrainingConfiguration):
    """Settings of ``pursamere train classifier``; the network's are those of :class:`pursamere.ConvClassifier`."""

    widths: tuple[int, ...] = _setting(
        (32, 64), "channels of the stages; every stage after the first halves the resolution", _SIZES
    )
    residual: bool = _setting(False, "add a residual block to every second stage (with four stages: ResNet-9)")
    normalization: str = _setting("group", "group, or batch, which trains faster but only in one process")
    groups: int = _setting(8, "of the group normalization", _SIZES)
    whitening: int = _setting(
        0, "side of the patches that a fixed first layer whitens, in pixels; 0 for none", (0, LARGEST_WHITENING)
    )
    shift: int = _setting(1, "shift training images by up to this many pixels in each direction", (0, 64))
    cutout: int = _setting(0, "side of a square that is cut out of each training image, in pixels; 0 for none", (0, 64))
    label_smoothing: float = _setting(0.0, "label smoothing of the cross-entropy", check=_check_fraction)
    initial: str = _setting("", "checkpoint of a classifier to start from")
    adversarial_eps: float = _setting(
        0.0, "Linf radius of adversarial training images, in pixel units; 0 disables them", check=_check_share
    )
    adversarial_steps: int = _setting(
        1, "gradient steps per adversarial image; 1 is fast adversarial training", (1, 1000)
    )
    adversarial_fraction: float = _setting(
        1.0, "fraction of the training images that are adversarial", check=_check_share
    )
    adversarial_exact_fraction: float = _setting(
        0.0, "fraction of the steps that attack with the purifier's exact gradient, not BPDA", check=_check_share
    )
    purifier: str = _setting("", "train on images purified with a denoiser: digits, mnist, cifar10, or a checkpoint")
    purifier_sigma: float = _setting(0.2, "noise level of the purifier, in pixel units", check=check_positive)
    purifier_radius: float = _setting(
        0.06, "Linf radius of the purifier's neighborhood, in pixel units", check=check_positive
    )
    purifier_steps: int = _setting(4, "steps of the purifier", (1, 100_000))
    purifier_step_size: float = _setting(
        0.6, "L2 length of a step of the purifier; 0 for the default of pursamere.Purifier", check=check_nonnegative
    )
    purifier_draws: int = _setting(2, "noise draws of the purifier, antithetic if even", (1, 2**16))
    purifier_ascent_radius: float = _setting(
        0.05, "ascent radius of the purifier, an L2 length in pixel units", check=check_nonnegative
    )
    purifier_direction: str = _setting("score", "direction of the purifier: ere or score")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("normalization", self.normalization, NORMALIZATIONS)
        check_choice("purifier_direction", self.purifier_direction, DIRECTIONS)
        if self.adversarial_eps > 0 and self.adversarial_fraction == 0:
            raise ValueError(f"adversarial_fraction must be above 0 for adversarial_eps={self.adversarial_eps}, got 0")
        if self.adversarial_exact_fraction > 0 and not (self.purifier and self.adversarial_eps > 0):
            raise ValueError(
                "adversarial_exact_fraction must be 0 without a purifier and adversarial_eps, got "
                f"{self.adversarial_exact_fraction}"
            )


# Tuned on validation splits; CIFAR-10's are those of the denoiser and the adversarially trained classifier that ship.
# Other settings have the defaults above.
DENOISERS: dict[str, dict[str, Any]] = {
    "digits": {"steps": 3000, "ema_decay": 0.995},
    "mnist": {"channels": (32, 64), "patch": 2, "steps": 6000, "precision": "bfloat16"},
    "cifar10": {
        "channels": (32, 64, 96),
        "patch": 2,
        "sigma_data": 0.5,
        "sigma_min": 0.02,
        "sigma_max": 1.0,
        "steps": 9000,
        "batch_size": 256,
        "warmup_steps": 300,
        "flip": True,
        "validate_every": 1500,
        "save_every": 1500,
    },
}
CLASSIFIERS: dict[str, dict[str, Any]] = {
    "digits": {"steps": 600, "ema_decay": 0.99},
    "mnist": {"widths": (16, 32, 64), "steps": 3000, "shift": 2, "precision": "bfloat16"},
    "cifar10": {
        "widths": (64, 128, 256, 256),
        "residual": True,
        "groups": 32,
        "steps": 3650,
        "batch_size": 512,
        "learning_rate": 3e-3,
        "warmup_steps": 304,
        "weight_decay": 0.05,
        "ema_decay": 0.998,
        "flip": True,
        "shift": 4,
        "label_smoothing": 0.1,
        "validate_every": 730,
        "save_every": 730,
    },
}


# What turns on the settings whose names begin so.
_SWITCHES = {"purifier_": "purifier", "adversarial_": "adversarial_eps"}


def configuration(kind: type[_T], settings: Mapping[str, Any]) -> _T:
    """Combine the given settings with those of the data set and of its purifier, if it has any, and the defaults.

    Args:
        kind: :class:`DenoiserConfiguration` or :class:`ClassifierConfiguration`.
        settings: values by name, which take precedence.

    Raises:
        TypeError: a setting has the wrong type.
        ValueError: a setting is unknown, out of range, or without effect, as the one that turns it on is not given.
    """
    known = [item.name for item in fields(kind)]
    unknown = sorted(set(settings) - set(known))
    if unknown:
        raise ValueError(f"settings must be among {', '.join(known)}, got {', '.join(unknown)}")
    for prefix, switch in _SWITCHES.items():
        idle = [name for name in settings if name.startswith(prefix) and name != switch]
        if idle and switch not in settings:  # given as "" or 0, as in a record of all settings, it is meant to be off
            verb = "has" if len(idle) == 1 else "have"
            raise ValueError(f"{', '.join(idle)} {verb} no effect without {switch}")
    named = DENOISERS if issubclass(kind, DenoiserConfiguration) else CLASSIFIERS
    dataset = known_name(str(settings.get("dataset", "digits")))
    return kind(**{**named.get(dataset, {}), **_purifier_settings(settings, dataset), **settings})


def _purifier_settings(settings: Mapping[str, Any], dataset: str) -> dict[str, Any]:
    """The tuned settings for a named denoiser, or else for the data set."""
    name = known_name(str(settings.get("purifier", "")))
    tuned = TUNED.get(name, TUNED.get(dataset)) if name else None
    if tuned is None:
        return {}
    return {f"purifier_{key}": value for key, value in {"step_size": 0.0, "direction": "ere", **tuned}.items()}


def with_precision(settings: _T, device: torch.device, before: str = "auto") -> _T:
    """Return the settings with the precision that "auto" means on a device, or what the training had ``before``."""
    if settings.precision != "auto":
        return settings
    if before == "auto":
        before = "bfloat16" if device.type == "cuda" else "float32"
    return replace(settings, precision=before)


def read_settings(path: Path) -> dict[str, Any]:
    """Read settings from a JSON object in a file; :func:`configuration` validates them.

    Raises:
        OSError: the file cannot be read.
        ValueError: the file is not a JSON object.
    """
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} must be a JSON file: {error}") from None
    if not isinstance(settings, dict):
        raise ValueError(f"{path} must hold a JSON object, got {type(settings).__name__}")
    return settings
