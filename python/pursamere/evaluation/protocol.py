"""A protocol: the attacks that an evaluation consists of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pursamere.attacks import Attack

__all__ = ["Protocol", "sweep_radii"]


@dataclass(frozen=True)
class Protocol:
    """Attacks in the order in which they are run, each at every radius.

    Attributes:
        name: name of the preset.
        attacks: :class:`pursamere.attacks.Clean` first, then cheap attacks before attacks on survivors.
        left_out: what the full protocol has and this one lacks, in words; empty for nothing.
        ladder: names of one attack run with few steps, with the usual number, and (optionally) with many more; the
            masking checks compare them to see whether the attack has converged.
    """

    name: str
    attacks: tuple[Attack, ...]
    left_out: str = ""
    ladder: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not isinstance(self.attacks, tuple | list):
            raise TypeError(f"attacks must be a tuple of attacks, got {type(self.attacks).__name__}")
        for attack in self.attacks:
            if not isinstance(attack, Attack):
                raise TypeError(f"attacks must be pursamere.attacks.Attack objects, got {type(attack).__name__}")
        names = [attack.name for attack in self.attacks]
        if len(set(names)) < len(names):
            raise ValueError(f"attack names must differ, got {names}")
        clean = [attack for attack in self.attacks if not attack.perturbs]
        if len(clean) != 1 or self.attacks[0] is not clean[0] or clean[0].samples is not None:
            raise ValueError("the first attack, and no other, must be Clean, on all samples")
        unknown = [name for name in self.ladder if name not in names]
        if unknown or len(self.ladder) not in (0, 2, 3):
            raise ValueError(f"ladder must be two or three names of attacks, or none, got {self.ladder}")

    def settings(self) -> dict[str, Any]:
        """All of it as values for JSON."""
        attacks = [attack.settings() for attack in self.attacks]
        return {"name": self.name, "attacks": attacks, "left_out": self.left_out, "ladder": list(self.ladder)}


def sweep_radii(norm: str, eps: tuple[float, ...]) -> tuple[float, ...]:
    """Radii of attacks with ``sweep=True``: from half the smallest of ``eps`` to one where nothing can be robust."""
    if norm == "linf":  # at 0.5 any image can be made gray
        end = min(1.0, max(0.5, 2 * max(eps)))  # above 1, the range of the images, a radius is refused
        beyond = [radius for radius in (1.5 * max(eps), 2.0 * max(eps)) if radius < end] + [end]
    else:
        beyond = [factor * max(eps) for factor in (2.0, 4.0, 8.0, 16.0)]
    return tuple(sorted({*eps, *(float(f"{radius:.6g}") for radius in (0.5 * min(eps), *beyond))}))
