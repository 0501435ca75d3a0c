"""What a training is asked to do: every setting has a name, a default, and a place in the JSON file."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from pursamere._validation import LARGEST_SIZE, check_choice, check_integer, check_nonnegative, check_positive
from pursamere.models.edm_unet import LARGEST_PATCH, MOST_LAYERS
from pursamere.noise import MAX_SEED
from pursamere.purifier import DIRECTIONS

_STEPS = (1, 2**31 - 1)
_SIZES = (1, LARGEST_SIZE)
PRECISIONS = ("auto", "float32", "bfloat16")
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
    """Settings that both kinds of training have.

    Raises:
        TypeError, ValueError: a setting is not as described, by its name.
    """

    dataset: str = _setting("digits", "digits, mnist, cifar10, a folder of images or an .npz file")
    steps: int = _setting(1000, "optimizer steps", _STEPS)
    batch_size: int = _setting(128, "images per step, over all processes together", (1, 2**16))
    learning_rate: float = _setting(1e-3, "of AdamW, at the end of the warm-up", check=check_positive)
    warmup_steps: int = _setting(
        100, "steps in which the learning rate rises; it falls along a cosine afterwards", (0, _STEPS[1])
    )
    weight_decay: float = _setting(1e-4, "of AdamW", check=check_nonnegative)
    clip_norm: float = _setting(1.0, "gradients with a larger norm are scaled down to it", check=check_positive)
    ema_decay: float = _setting(
        0.999, "of the moving average of the weights, which the checkpoint holds", check=_check_fraction
    )
    precision: str = _setting("auto", "auto (bfloat16 on CUDA, float32 on a CPU), float32, or bfloat16 (autocast)")
    channels_last: bool = _setting(False, "memory format of the network, faster on GPUs")
    flip: bool = _setting(False, "mirror half of the training images")
    seed: int = _setting(0, "of the initial weights, of the order of the images, and of all noise", (0, MAX_SEED))
    validate_every: int = _setting(500, "steps between validations", _STEPS)
    save_every: int = _setting(500, "steps between saved states, from which a training resumes", _STEPS)

    def __post_init__(self) -> None:
        for item in fields(self):
            bounds, value = item.metadata["bounds"], getattr(self, item.name)
            if bounds and isinstance(item.default, int):  # the network checks what is several
                check_integer(item.name, value, low=bounds[0], high=bounds[1])
            if item.metadata["check"]:
                item.metadata["check"](item.name, value)
        check_choice("precision", self.precision, PRECISIONS)
        for name, kind in get_type_hints(type(self)).items():
            value = getattr(self, name)
            if kind == tuple[int, ...] and isinstance(value, list):  # as JSON has it
                object.__setattr__(self, name, tuple(value))
            elif kind in (bool, str) and not isinstance(value, kind):
                raise TypeError(f"{name} must be a {kind.__name__}, got {type(value).__name__}")

    def to_json(self) -> dict[str, Any]:
        """The settings as values for JSON."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}


@dataclass(frozen=True, kw_only=True)
class DenoiserConfiguration(TrainingConfiguration):
    """Settings of ``pursamere train denoiser``; the network's are those of :class:`pursamere.models.EDMUNet`."""

    channels: tuple[int, ...] = _setting((32, 64), "of the U-Net's levels, from the largest resolution down", _SIZES)
    layers: int = _setting(1, "residual blocks per level", (1, MOST_LAYERS))
    patch: int = _setting(1, "side of the patches in which images enter the network, in pixels", (1, LARGEST_PATCH))
    attention: bool = _setting(False, "attention at the lowest level")
    groups: int = _setting(8, "of the group normalization", _SIZES)
    sigma_data: float = _setting(
        0.6, "standard deviation of the data in the network's range [-1, 1]", check=check_positive
    )
    sigma_distribution: str = _setting("log-uniform", "log-uniform or log-normal, of the noise levels in training")
    sigma_min: float = _setting(0.03, "lowest noise level in training, in pixel units", check=check_positive)
    sigma_max: float = _setting(1.5, "highest noise level in training, in pixel units", check=check_positive)
    sigma_median: float = _setting(
        0.3, "of the log-normal distribution (truncated to the range), in pixel units", check=check_positive
    )
    sigma_spread: float = _setting(
        1.0, "standard deviation of the logarithm, for the log-normal distribution", check=check_positive
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
        (32, 64), "channels of the stages; every stage but the first halves the resolution", _SIZES
    )
    residual: bool = _setting(False, "a residual block in every other stage (with four stages ResNet-9)")
    groups: int = _setting(8, "of the group normalization", _SIZES)
    shift: int = _setting(1, "training images are moved by up to so many pixels in both directions", (0, 64))
    label_smoothing: float = _setting(0.0, "of the cross-entropy", check=_check_fraction)
    initial: str = _setting("", "checkpoint of a classifier whose weights the training starts from")
    adversarial_eps: float = _setting(
        0.0, "Linf radius of the adversarial images to train on, in pixel units; 0: none", check=check_nonnegative
    )
    adversarial_steps: int = _setting(1, "gradient steps for an adversarial image; 1 is the fast variant", (1, 1000))
    adversarial_fraction: float = _setting(1.0, "share of the training images that are adversarial", check=_check_share)
    purifier: str = _setting("", "checkpoint of a denoiser: train on images purified with it")
    purifier_sigma: float = _setting(0.2, "noise level of the purifier, in pixel units", check=check_positive)
    purifier_radius: float = _setting(
        0.06, "Linf radius of the purifier's neighborhood, in pixel units", check=check_positive
    )
    purifier_steps: int = _setting(4, "steps of the purifier", (1, 100_000))
    purifier_step_size: float = _setting(0.6, "L2 length of a step of the purifier", check=check_positive)
    purifier_draws: int = _setting(2, "noise draws of the purifier", (1, 2**16))
    purifier_ascent_radius: float = _setting(
        0.05, "of the purifier's ascent, an L2 length in pixel units", check=check_nonnegative
    )
    purifier_direction: str = _setting("score", "direction of the purifier: ere or score")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("purifier_direction", self.purifier_direction, DIRECTIONS)


# Chosen on validation splits, but for CIFAR-10, whose networks have not been trained yet; these have the size that both
# together can be kept in 20 MB. What is not named here has the default above.
DENOISERS: dict[str, dict[str, Any]] = {
    "digits": {"steps": 3000, "ema_decay": 0.995},
    "mnist": {"channels": (32, 64), "patch": 2, "steps": 6000, "precision": "bfloat16"},
    "cifar10": {
        "channels": (64, 128, 128),
        "layers": 2,
        "attention": True,
        "groups": 32,
        "sigma_data": 0.5,
        "sigma_min": 0.01,
        "sigma_max": 1.0,
        "steps": 10000,
        "batch_size": 256,
        "learning_rate": 6e-4,
        "warmup_steps": 500,
        "channels_last": True,
        "flip": True,
        "validate_every": 2000,
        "save_every": 2000,
    },
}
CLASSIFIERS: dict[str, dict[str, Any]] = {
    "digits": {"steps": 600, "ema_decay": 0.99},
    "mnist": {"widths": (16, 32, 64), "steps": 3000, "shift": 2, "precision": "bfloat16"},
    "cifar10": {
        "widths": (64, 128, 256, 256),
        "residual": True,
        "groups": 32,
        "steps": 8000,
        "batch_size": 512,
        "learning_rate": 2e-3,
        "warmup_steps": 500,
        "weight_decay": 0.05,
        "channels_last": True,
        "flip": True,
        "shift": 4,
        "label_smoothing": 0.1,
        "validate_every": 1000,
        "save_every": 1000,
    },
}


def configuration(kind: type[_T], settings: Mapping[str, Any]) -> _T:
    """The settings given, those of the data set's own configuration if there is one, and defaults for the rest.

    Raises:
        TypeError, ValueError: a setting is unknown or not as described, by its name.
    """
    known = [item.name for item in fields(kind)]
    unknown = sorted(set(settings) - set(known))
    if unknown:
        raise ValueError(f"settings must be of {', '.join(known)}, got {', '.join(unknown)}")
    named = DENOISERS if issubclass(kind, DenoiserConfiguration) else CLASSIFIERS
    dataset = str(settings.get("dataset", "digits"))
    return kind(**{**named.get("cifar10" if dataset == "cifar10_jpeg" else dataset, {}), **settings})


def read_settings(path: Path) -> dict[str, Any]:
    """The settings in a JSON file, an object; they are checked by ``configuration``.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is not JSON, or no object.
    """
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} must be a JSON file: {error}") from None
    if not isinstance(settings, dict):
        raise ValueError(f"{path} must hold a JSON object, got {type(settings).__name__}")
    return settings
