"""Checkpoints: folders with ``model.safetensors`` and ``config.json``. Loading one executes no code."""

from __future__ import annotations

import hashlib
import inspect
import json
import os
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pursamere._extras import require
from pursamere._files import write_bytes
from pursamere._validation import check_choice, check_supported_device
from pursamere.models.conv_classifier import ConvClassifier
from pursamere.models.edm_unet import EDMUNet

WEIGHTS, CONFIGURATION = "model.safetensors", "config.json"
FORMAT = 1
ARCHITECTURES: dict[str, type[nn.Module]] = {kind.architecture: kind for kind in (EDMUNet, ConvClassifier)}
_STORED_AS = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}
_PICKLED = (".pkl", ".pickle", ".pt", ".pth", ".ckpt", ".bin")
_LARGEST_CONFIGURATION = 2**24  # bytes; there may be 100,000 class names


def save_checkpoint(
    folder: str | Path,
    network: EDMUNet | ConvClassifier,
    *,
    dtype: torch.dtype = torch.float32,
    information: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> Path:
    """Save a network of one of the library's own architectures.

    Each file is written atomically. ``config.json`` holds the SHA-256 of the weights, so mismatched files are detected.

    Args:
        folder: output folder, created if needed.
        network: an ``EDMUNet`` or a ``ConvClassifier``; the latter is saved with its ``class_names``.
        dtype: storage dtype of the weights: float32, float16 or bfloat16. They are loaded as float32.
        information: JSON-serializable values about the training, stored under ``"training"`` in ``config.json``.
        overwrite: whether to replace an existing checkpoint.

    Returns:
        The folder.

    Raises:
        TypeError: ``network`` is not one of the library's architectures.
        ValueError: ``dtype`` is not supported, or a weight is not finite in it.
        FileExistsError: ``folder`` holds a checkpoint, and ``overwrite`` is False.
    """
    folder = Path(folder)
    name = getattr(network, "architecture", None)
    if not isinstance(name, str) or ARCHITECTURES.get(name) is not type(network):
        raise TypeError(f"network must be one of {', '.join(ARCHITECTURES)}, got {type(network).__name__}")
    stored_as = storage_name(dtype)
    weights = {key: tensor.detach().to("cpu", dtype).contiguous() for key, tensor in network.state_dict().items()}
    _check_finite("network", weights)
    content = require("safetensors.torch", extra="train").save(weights)
    configuration = {
        "format": FORMAT,
        "architecture": {"name": name, "arguments": network.arguments()},
        "weights": {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content), "dtype": stored_as},
        "data_range": [0.0, 1.0],
        "versions": {package: _version(package) for package in ("pursamere", "torch", "diffusers", "safetensors")},
        "training": dict(information or {}),
    }
    if isinstance(network, EDMUNet):
        configuration["preconditioning"] = "EDM, equation 7 of arXiv 2206.00364, in the range [-1, 1]"
        configuration["sigma_range"] = list(network.sigma_range)
    folder.mkdir(parents=True, exist_ok=True)
    if not overwrite and os.path.lexists(folder / CONFIGURATION):
        raise FileExistsError(f"{folder / CONFIGURATION} exists; overwrite=True replaces the checkpoint")
    write_bytes(folder / WEIGHTS, content, overwrite=overwrite)
    text = json.dumps(configuration, indent=2) + "\n"
    write_bytes(folder / CONFIGURATION, text.encode(), overwrite=overwrite)
    return folder


def storage_name(dtype: torch.dtype) -> str:
    """Return the name of a storage dtype in ``config.json``.

    Raises:
        ValueError: ``dtype`` is not float32, float16 or bfloat16.
    """
    for name, kind in _STORED_AS.items():
        if dtype == kind:
            return name
    raise ValueError(f"dtype must be torch.float32, torch.float16 or torch.bfloat16, got {dtype}")


def read_configuration(folder: str | Path) -> dict[str, Any]:
    """Read and validate ``config.json`` of a checkpoint.

    Raises:
        FileNotFoundError: there is no checkpoint in ``folder``.
        ValueError: ``folder`` is a file, or ``config.json`` is damaged or has an unsupported format.
    """
    folder = Path(folder)
    if folder.suffix.lower() in _PICKLED and not folder.is_dir():
        raise ValueError(
            f"{folder} looks like a pickled checkpoint, which can execute code when loaded; if you trust it, load it "
            f"yourself and pass the module to an adapter such as pursamere.denoisers.from_edm"
        )
    if folder.is_file():
        raise ValueError(f"{folder} must be a folder with {WEIGHTS} and {CONFIGURATION}, got a file")
    path = folder / CONFIGURATION
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist: a checkpoint is a folder with {WEIGHTS} and {CONFIGURATION}")
    if path.stat().st_size > _LARGEST_CONFIGURATION:
        raise ValueError(f"{path} is too large to be a configuration")
    try:
        configuration = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged: {error}") from None
    _require_form(path, configuration)
    return configuration


def load_checkpoint(folder: str | Path, device: torch.device | str = "cpu") -> nn.Module:
    """Load a network saved by ``save_checkpoint`` or ``pursamere train``.

    Executes no code from the files: the architecture must be one of the library's own, and its arguments are checked
    before the network is built.

    Args:
        folder: folder with ``model.safetensors`` and ``config.json``.
        device: device of the network.

    Returns:
        An :class:`EDMUNet` or :class:`ConvClassifier` in evaluation mode, with frozen float32 parameters.

    Raises:
        MissingExtraError: diffusers or safetensors is not installed (the extra ``train``).
        FileNotFoundError: one of the files is missing.
        ValueError: ``device`` is not supported by this build; ``folder`` is a pickled checkpoint; a file is damaged,
            truncated, or does not match the other; the architecture is unknown or its arguments are wrong; a weight is
            missing, unexpected, of the wrong shape or dtype, or not finite.
    """
    folder, device = Path(folder), torch.device(device)
    check_supported_device("device", device)
    configuration = read_configuration(folder)
    weights = _read_weights(folder / WEIGHTS, configuration["weights"])
    network = _build(folder / CONFIGURATION, configuration)
    _check_weights(folder / WEIGHTS, network.state_dict(), weights, configuration["weights"]["dtype"])
    network.load_state_dict({key: tensor.float() for key, tensor in weights.items()}, assign=True)
    return network.eval().requires_grad_(False).to(device)


def _require_form(path: Path, configuration: Any) -> None:
    """Validate the parts of a configuration that loading relies on."""
    if not isinstance(configuration, dict) or "format" not in configuration:
        raise ValueError(f"{path} is not the configuration of a checkpoint")
    if configuration["format"] != FORMAT:
        raise ValueError(f"{path} has format {configuration['format']!r}, this version of pursamere reads {FORMAT}")
    form: dict[str, dict[str, type]] = {
        "architecture": {"name": str, "arguments": dict},
        "weights": {"sha256": str, "bytes": int, "dtype": str},
    }
    for part, entries in form.items():
        found = configuration.get(part)
        if not isinstance(found, dict) or set(found) != set(entries):
            raise ValueError(f"{path} must have under {part!r} an object of {', '.join(entries)}")
        for name, kind in entries.items():
            if type(found[name]) is not kind:
                raise ValueError(f"{path} must have at {part}.{name} a {kind.__name__}, got {found[name]!r}")
    check_choice(f"{path}: weights.dtype", configuration["weights"]["dtype"], _STORED_AS)


def _read_weights(path: Path, expected: Mapping[str, Any]) -> dict[str, Tensor]:
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist")
    size = path.stat().st_size
    if size != expected["bytes"]:
        what = "is truncated" if size < expected["bytes"] else "is not the file that config.json describes"
        raise ValueError(f"{path} {what}: {size} bytes, expected {expected['bytes']}")
    content = path.read_bytes()  # read once, so that the bytes hashed are the bytes loaded
    found = hashlib.sha256(content).hexdigest()
    if found != expected["sha256"]:
        raise ValueError(f"{path} has changed: its SHA-256 is {found}, expected {expected['sha256']}")
    load = require("safetensors.torch", extra="train").load
    try:
        weights = load(content)
    except (MemoryError, RuntimeError):  # not about the file: out of memory, for example
        raise
    except Exception as error:  # safetensors raises its own error type
        raise ValueError(f"{path} is not a safetensors file: {error}") from error
    return dict(sorted(weights.items()))  # safetensors has no fixed order, and errors name the first wrong weight


def _build(path: Path, configuration: Mapping[str, Any]) -> nn.Module:
    """Build the network on the meta device."""
    name, arguments = configuration["architecture"]["name"], dict(configuration["architecture"]["arguments"])
    if name not in ARCHITECTURES:
        raise ValueError(f"{path}: architecture must be one of {', '.join(ARCHITECTURES)}, got {name!r}")
    known = inspect.signature(ARCHITECTURES[name]).parameters
    if "class_names" in known:
        arguments.setdefault("class_names", _recorded_class_names(configuration))
    # Earlier versions did not know all arguments: what is not recorded has its default.
    arguments = {name: p.default for name, p in known.items() if p.default is not p.empty} | arguments
    if set(arguments) != set(known):
        raise ValueError(f"{path}: arguments of {name} must be {', '.join(known)}, got {', '.join(arguments)}")
    try:
        with torch.device("meta"):  # neither memory nor random numbers
            return ARCHITECTURES[name](**arguments)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error


def _recorded_class_names(configuration: Mapping[str, Any]) -> Any:
    """Class names in the training record, where checkpoints before 0.2 have them; ``None`` if absent."""
    found: Any = configuration
    for key in ("training", "data", "classes"):
        found = found.get(key) if isinstance(found, dict) else None
    return found if isinstance(found, list) else None


def _check_weights(path: Path, expected: Mapping[str, Tensor], found: Mapping[str, Tensor], dtype: str) -> None:
    for what, names in (("is missing", set(expected) - set(found)), ("is unexpected", set(found) - set(expected))):
        if names:
            more = f" (and {len(names) - 1} more)" if len(names) > 1 else ""
            raise ValueError(f"{path}: weight {min(names)!r} {what}{more}")
    for name, tensor in found.items():
        if tensor.shape != expected[name].shape:
            raise ValueError(
                f"{path}: weight {name!r} must have shape {list(expected[name].shape)}, got {list(tensor.shape)}"
            )
        if tensor.dtype != _STORED_AS[dtype]:
            raise ValueError(f"{path}: weight {name!r} must be {dtype}, got {tensor.dtype}")
    _check_finite(str(path), found)


def _check_finite(where: str, weights: Mapping[str, Tensor]) -> None:
    for name, tensor in weights.items():
        if not bool(torch.isfinite(tensor).all()):
            raise ValueError(f"{where}: weight {name!r} must be finite, got NaN or infinity")


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
