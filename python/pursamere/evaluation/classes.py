"""Names of the classes, and how many samples each has."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pursamere._validation import check_names

__all__ = ["classes_told", "find_class_names"]

_LISTED = 20


def find_class_names(model: object, given: Sequence[str] | None, classes: int) -> tuple[str, ...] | None:
    """The names of ``classes`` logits that the caller or the model gives; ``None`` if neither gives any.

    Raises:
        TypeError: the names are not strings.
        ValueError: the names are not one per logit, not unique, or not the model's in its order.
    """
    found = getattr(model, "class_names", None)
    own = None if found is None else check_names("model.class_names", found, length=classes)
    if given is None:
        return own
    names = check_names("class_names", given, length=classes)
    if own is not None and names != own:
        number = next(i for i in range(classes) if names[i] != own[i])
        raise ValueError(
            f"class_names must be those of the model in its order, whose number {number} is {own[number]!r}, got "
            f"{names[number]!r}; Dataset.relabel gives a data set the labels of a model"
        )
    return names


def classes_told(config: dict[str, Any]) -> str:
    """The classes of the samples with their counts, and which classes have none, in sentences for the report."""
    names, counts = config["data"]["classes"], config["data"]["per_class"]
    labels = [str(i) if names is None or names[i] == str(i) else f"{i} {names[i]}" for i in range(len(counts))]
    present = [i for i, count in enumerate(counts) if count]
    missing = [label for label, count in zip(labels, counts, strict=True) if not count]
    told = f"The samples are of {f'{len(present):,} of ' if missing else ''}{len(counts):,} classes"
    if len(present) <= _LISTED:
        told += f" ({', '.join(f'{labels[i]}: {counts[i]:,}' for i in present)})"
    else:
        least, most = min(counts[i] for i in present), max(counts)
        told += f", {least:,} of each" if least == most else f", {least:,} to {most:,} of each"
    if missing:
        more = f" and {len(missing) - _LISTED:,} more" if len(missing) > _LISTED else ""
        told += f"; none is of {', '.join(missing[:_LISTED])}{more}"
    told += "."
    if names is not None and not config["model"]["names_classes"]:
        told += " The model does not name its classes: that its logits are in this order is an assumption."
    return told
