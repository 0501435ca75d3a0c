"""Argument checks shared by the public functions.

Messages name the argument, what was expected and what was received.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from numbers import Integral, Real
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pursamere_ext import build_info

BUILT_WITH_CUDA = build_info()["cuda"] != "off"
REBUILD_WITH_CUDA = (
    "reinstall with nvcc on the PATH: "
    "'pip install --force-reinstall --no-deps -Ccmake.define.PURSAMERE_CUDA=ON SOURCE_FOLDER'"
)
LARGEST_SIZE = 4096  # limit for sizes in architectures, so that an untrusted configuration can't exhaust memory
RANGE_TOLERANCE = 1e-4  # allows for rounding in attack libraries and normalizations
FLOATING_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


class NotFiniteError(RuntimeError):
    """Images, logits or gradients are NaN or infinite."""


def check_tensor(name: str, value: Any, *, rank: int | None = None, floating: bool = True) -> Tensor:
    """Return ``value`` if it is a tensor of the given rank and, unless ``floating`` is False, of a floating dtype."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(value).__name__}")
    if floating and value.dtype not in FLOATING_DTYPES:
        raise TypeError(f"{name} must have a floating dtype (float16, bfloat16, float32 or float64), got {value.dtype}")
    if rank is not None and value.dim() != rank:
        raise ValueError(f"{name} must have {rank} dimensions, got shape {tuple(value.shape)}")
    return value


def check_images(name: str, value: Any, *, hint: str = "") -> Tensor:
    """Return ``value`` if it is a floating-point tensor [B, C, H, W] with values in [0, 1].

    Values outside by at most ``RANGE_TOLERANCE`` are clipped with the derivative of the identity: clipping only undoes
    rounding, and such pixels must not have zero gradients.
    """
    images = check_finite_images(name, value)
    if images.numel() == 0:
        return images
    low, high = (float(v) for v in torch.aminmax(images.detach()))
    if low < -RANGE_TOLERANCE or high > 1.0 + RANGE_TOLERANCE:
        hint = _range_hint(name, low, high) or (hint if low >= -1.0 and high <= 2.0 else "")
        raise ValueError(f"{name} must have values in [0, 1], got a range of [{low:.6g}, {high:.6g}]{hint}")
    if low >= 0.0 and high <= 1.0:
        return images
    return images + (images.clamp(0.0, 1.0) - images).detach()  # exact: differences of close numbers are


def _range_hint(name: str, low: float, high: float) -> str:
    """How to convert images in another of the usual ranges, if the values look like these."""
    for white in (255, 65535):
        if low >= 0.0 and 16.0 < high <= white:
            return f"; if white is {white}, use {name} / {white}"
    if -1.0 - RANGE_TOLERANCE <= low < -0.9 and high <= 1.0 + RANGE_TOLERANCE:
        return f"; if black is -1, use ({name} + 1) / 2"
    if (low < -1.0 or (low < 0.0 and high > 2.0)) and high - low < 16.0:
        return "; normalization by a mean and a standard deviation belongs into the classifier"
    return ""


class UncheckedImages(NamedTuple):
    """Images on an accelerator, whose values are checked when something waits for it anyway.

    Attributes:
        name: their name in messages.
        given: the images as they were given.
        hint: ends the message.
        valid: whether they are in [0, 1] up to ``RANGE_TOLERANCE``, a bool tensor.
    """

    name: str
    given: Tensor
    hint: str
    valid: Tensor

    def require(self) -> None:
        """Raise what :func:`check_images` raises."""
        check_images(self.name, self.given, hint=self.hint)


def clip_images(name: str, value: Any, *, hint: str = "") -> tuple[Tensor, UncheckedImages | None]:
    """Return what :func:`check_images` returns; on an accelerator without waiting, so with the values to be checked."""
    if not isinstance(value, Tensor) or value.device.type in ("cpu", "meta") or value.numel() == 0:
        return check_images(name, value, hint=hint), None
    images = check_image_tensor(name, value)
    given = images.detach()
    clipped = given.clamp(0.0, 1.0)
    valid = (given - clipped).abs().amax() <= RANGE_TOLERANCE  # false for NaN
    return images + (clipped - given), UncheckedImages(name, given, hint, valid)


def check_finite_images(name: str, value: Any) -> Tensor:
    """Return ``value`` if it is a finite floating tensor [B, C, H, W]."""
    return check_finite(name, check_image_tensor(name, value))


def check_image_tensor(name: str, value: Any) -> Tensor:
    """Return ``value`` if it is a floating tensor [B, C, H, W]."""
    if isinstance(value, Tensor) and value.dtype == torch.uint8:
        raise TypeError(f"{name} must have a floating dtype, got torch.uint8; 8-bit images are {name}.float() / 255")
    images = check_tensor(name, value)
    if images.dim() != 4:
        raise ValueError(f"{name} must be a batch of images [B, C, H, W], got shape {tuple(images.shape)}")
    return images


def check_logits(name: str, value: Any, images: Tensor) -> Tensor:
    """Return ``value``, a classifier's output for ``images`` [N, C, H, W], if it is a float tensor [N, classes]."""
    if not isinstance(value, Tensor):
        part = None
        if isinstance(getattr(value, "logits", None), Tensor):
            part = ".logits"
        elif isinstance(value, Mapping) and value:
            part = f"[{'logits' if 'logits' in value else next(iter(value))!r}]"
        elif isinstance(value, (tuple, list)):
            part = "[0]"
        hint = f"; wrap it, for example as lambda x: {name}(x){part}" if part else ""
        raise TypeError(f"{name} must return the logits as a torch.Tensor, got {type(value).__name__}{hint}")
    check_tensor(f"what {name} returns", value)
    if value.dim() != 2 or len(value) != len(images):
        raise ValueError(f"{name} must return logits [{len(images)}, classes], got shape {tuple(value.shape)}")
    check_same_device(f"what {name} returns", value, "its images", images)
    return value


def check_finite(name: str, tensor: Tensor) -> Tensor:
    """Return ``tensor`` if it holds neither NaN nor infinity."""
    if not bool(torch.isfinite(tensor.detach()).all()):
        raise ValueError(f"{name} must be finite, got NaN or infinity")
    return tensor


def check_same_shape(name: str, tensor: Tensor, other_name: str, other: Tensor) -> None:
    """Raise unless two tensors have the same shape."""
    if tensor.shape != other.shape:
        raise ValueError(f"{name} must have the shape of {other_name}, {tuple(other.shape)}, got {tuple(tensor.shape)}")


def check_same_device(name: str, tensor: Tensor, other_name: str, other: Tensor) -> None:
    """Raise unless two tensors are on the same device."""
    if tensor.device != other.device:
        raise ValueError(f"{name} must be on the device of {other_name}, {other.device}, got {tensor.device}")


def check_supported_device(name: str, device: torch.device) -> None:
    """Raise unless this build has kernels for the device ("meta" needs none)."""
    if device.type in ("cpu", "meta") or (device.type == "cuda" and BUILT_WITH_CUDA):
        return
    if device.type == "cuda":
        raise ValueError(f"{name} is on {device}, but pursamere was built without CUDA; {REBUILD_WITH_CUDA}")
    raise ValueError(f"{name} must be on a CPU or a CUDA device, got {device}")


def check_real(name: str, value: Any) -> float:
    """Return ``value`` as a float if it is a real number (a bool is not)."""
    if type(value) is float:  # the usual case: asking for an abstract type takes longer than all else here
        return value
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} must be a real number, got {_told(value)}")
    return float(value)


def _told(value: Any) -> str:
    """The type, and the text of a string; how to get the number out of a tensor."""
    if isinstance(value, Tensor):
        return f"Tensor{'; use .item()' if value.numel() == 1 else ''}"
    return f"str {value!r}" if isinstance(value, str) else type(value).__name__


def check_positive(name: str, value: Any) -> float:
    """Return ``value`` as a float if it is a finite number greater than 0."""
    number = check_real(name, value)
    if not 0.0 < number < math.inf:  # math.isfinite can't be compiled for a float that changes between calls
        raise ValueError(f"{name} must be positive and finite, got {value}")
    return number


def check_nonnegative(name: str, value: Any, *, infinite: bool = False) -> float:
    """Return ``value`` as a float if it is a number of at least 0, finite unless ``infinite`` is True."""
    number = check_real(name, value)
    if not (number >= 0.0 and (infinite or number < math.inf)):
        raise ValueError(f"{name} must be at least 0{'' if infinite else ' and finite'}, got {value}")
    return number


def check_ball_radius(radius: Any, norm: str) -> float:
    """Return the radius of a purifier's ball as a float; for "linf" a finite one above 1 must be in other units."""
    number = check_nonnegative("radius", radius, infinite=True)
    if norm == "linf" and 1.0 < number < math.inf:
        raise ValueError(f"radius must be at most 1, the range of the images, or infinite, got {radius}")
    return number


def check_integer(name: str, value: Any, *, low: int, high: int | None = None) -> int:
    """Return ``value`` if it is an int (a bool is not) in [low, high]."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an int, got {_told(value)}")
    if value < low or (high is not None and value > high):
        expected = f"at least {low}" if high is None else f"in [{low}, {high}]"
        raise ValueError(f"{name} must be {expected}, got {value}")
    return value


def check_sizes(name: str, values: Any, *, length: int | None = None) -> tuple[int, ...]:
    """Return ``values`` as a tuple if they are ints in [1, LARGEST_SIZE], ``length`` of them or 1 to 16."""
    if not isinstance(values, Sequence) or isinstance(values, str):
        raise TypeError(f"{name} must be a sequence of ints, got {type(values).__name__}")
    if not 1 <= len(values) <= 16 or (length is not None and len(values) != length):
        raise ValueError(f"{name} must have {length or '1 to 16'} numbers, got {len(values)}")
    return tuple(check_integer(f"{name}[{i}]", value, low=1, high=LARGEST_SIZE) for i, value in enumerate(values))


def check_shape(name: str, values: Any) -> tuple[int, ...]:
    """Return ``values`` as a tuple if they are the sizes of a tensor, possibly symbolic under torch.compile."""
    if not isinstance(values, Sequence) or isinstance(values, str):
        raise TypeError(f"{name} must be a sequence of ints, got {type(values).__name__}")
    for i, value in enumerate(values):
        if not isinstance(value, Integral | torch.SymInt):
            raise TypeError(f"{name}[{i}] must be an int, got {type(value).__name__}")
        if value < 0:
            raise ValueError(f"{name}[{i}] must be at least 0, got {value}")
    return tuple(values)


def check_names(name: str, values: Any, *, length: int | None = None) -> tuple[str, ...]:
    """Return ``values`` as a tuple if they are distinct strings, ``length`` of them if given."""
    if not isinstance(values, Sequence) or isinstance(values, str):
        hint = (
            " (for a dictionary d from names to numbers, use sorted(d, key=d.get))"
            if isinstance(values, Mapping)
            else ""
        )
        raise TypeError(f"{name} must be a sequence of str, got {type(values).__name__}{hint}")
    names = tuple(values)
    wrong = next((value for value in names if not isinstance(value, str)), None)
    if wrong is not None:
        raise TypeError(f"{name} must be a sequence of str, got {wrong!r} in it")
    if length is not None and len(names) != length:
        raise ValueError(f"{name} must have {length} names, one per class, got {len(names)}")
    repeated = [value for value, count in Counter(names).items() if count > 1]
    if repeated:
        raise ValueError(f"{name} must be distinct, got {repeated[0]!r} more than once")
    return names


def check_choice(name: str, value: Any, choices: Collection[str], *, hint: str = "") -> str:
    """Return ``value`` if it is one of ``choices``; ``hint`` ends the message."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}{hint}")
    return str(value)
