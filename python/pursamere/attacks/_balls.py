"""The images an attacker may choose from, steps within them, and checks of an attack's arguments."""

from __future__ import annotations

import torch
from torch import Tensor

from pursamere._validation import NotFiniteError, check_choice, check_images, check_logits, check_positive

__all__ = ["NORMS", "Ball", "check_labels", "check_problem", "check_radius", "logits_of"]

NORMS = ("linf", "l2")


def check_radius(name: str, value: float, norm: str) -> float:
    """Return a radius in pixel units as a float; above 1 for "linf" it must be in other units."""
    radius = check_positive(name, value)
    if norm == "linf" and radius > 1:
        raise ValueError(f"{name} must be at most 1, the range of the images, and is often 8/255, got {value}")
    return radius


class Ball:
    """The images within ``eps`` of ``center`` [B, C, H, W] in a norm, and within [0, 1]."""

    def __init__(self, norm: str, eps: float, center: Tensor) -> None:
        self.norm = check_choice("norm", norm, NORMS)
        self.eps = check_radius("eps", eps, norm)
        self.center = center

    def rows(self, rows: Tensor) -> Ball:
        """The balls around some of the samples."""
        return Ball(self.norm, self.eps, self.center[rows])

    def random(self, generator: torch.Generator) -> Tensor:
        """Uniform in the ball, then clipped to [0, 1]. Drawn on the CPU, so the same on every device."""
        x = self.center
        if self.norm == "linf":
            offset = 2 * torch.rand(x.shape, generator=generator, dtype=x.dtype, device="cpu").to(x.device) - 1
            return self.project(x + self.eps * offset)
        offset = torch.randn(x.shape, generator=generator, dtype=x.dtype, device="cpu").to(x.device)
        d = max(1, offset[0].numel()) if len(offset) else 1
        radius = torch.rand(len(x), generator=generator, dtype=x.dtype, device="cpu").to(x.device) ** (1 / d)
        return self.project(x + self.eps * _columns(radius, x) * _unit(offset))

    def step(self, x: Tensor, gradient: Tensor, length: float) -> Tensor:
        """Step from ``x`` up the gradient: by ``length`` in every pixel for "linf", by that L2 length for "l2"."""
        direction = gradient.sign() if self.norm == "linf" else _unit(gradient)
        return self.project(x + length * direction)

    def project(self, x: Tensor) -> Tensor:
        """Project onto the ball, then clip to [0, 1]; the clip never leaves the ball, whose center is in [0, 1]."""
        if self.norm == "linf":
            low, high = (self.center - self.eps).clamp(0, 1), (self.center + self.eps).clamp(0, 1)
            return torch.minimum(torch.maximum(x, low), high)
        offset = x - self.center
        shrink = (self.eps / _length(offset).clamp(min=self.eps)).to(x.dtype)
        return (self.center + _columns(shrink, x) * offset).clamp(0, 1)


def check_problem(images: Tensor, labels: Tensor) -> Tensor:
    """Return ``images`` as :func:`check_images` does, and require an int64 label for each on the same device."""
    images = check_images("images", images)
    if not isinstance(labels, Tensor) or labels.dtype != torch.int64:
        got = labels.dtype if isinstance(labels, Tensor) else type(labels).__name__
        whole = isinstance(labels, Tensor) and not labels.is_floating_point()
        hint = "; use labels.long()" if whole else ""
        raise TypeError(f"labels must be an int64 tensor, got {got}{hint}")
    if labels.shape != (len(images),):
        raise ValueError(f"labels must have shape ({len(images)},), got {tuple(labels.shape)}")
    if labels.device != images.device:
        raise ValueError(f"labels must be on the device of images, {images.device}, got {labels.device}")
    return images


def logits_of(model: object, images: Tensor, labels: Tensor) -> Tensor:
    """Run the model and check its logits; half types are returned as float32."""
    logits = check_logits("model", model(images), images)  # type: ignore[operator]
    check_labels(labels, logits.shape[1])
    if not bool(torch.isfinite(logits.detach()).all()):
        # A NaN margin is neither a success nor a failure; the sample would count as robust.
        raise NotFiniteError("model returned NaN or infinity")
    return logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits


def check_labels(labels: Tensor, classes: int) -> None:
    """Require at least 2 classes, and labels among them."""
    if classes < 2:
        raise ValueError(f"model must have at least 2 classes, got {classes}")
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < classes:
        raise ValueError(f"labels must be in [0, {classes}), got [{int(labels.min())}, {int(labels.max())}]")


def _length(offset: Tensor) -> Tensor:
    return torch.linalg.vector_norm(offset.flatten(1), dim=1)


def _columns(per_sample: Tensor, x: Tensor) -> Tensor:
    return per_sample.reshape(-1, *[1] * (x.dim() - 1))


def _unit(offset: Tensor) -> Tensor:
    """Every sample divided by its L2 norm; 0 where it is 0. Scaled first, so that no square underflows."""
    largest = _columns(offset.flatten(1).abs().amax(dim=1), offset) if offset.numel() else offset
    scaled = torch.where(largest > 0, offset / largest, 0.0)
    return torch.where(largest > 0, scaled / _columns(_length(scaled), scaled), 0.0)
