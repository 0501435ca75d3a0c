"""A U-Net with the preconditioning of Karras et al. (2022): the denoiser that ``pursamere train`` trains."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from pursamere._extras import require
from pursamere._validation import LARGEST_SIZE, check_integer, check_positive, check_sizes

MOST_LAYERS = 16
LARGEST_PATCH = 16


class EDMUNet(nn.Module):
    """Denoiser: diffusers' ``UNet2DModel`` with the preconditioning of EDM.

    With ``z = 2 y - 1`` and ``s = 2 sigma``, the image and noise level in the network's range [-1, 1], and the network
    ``F``, equation 7 of Karras et al. (2022, arXiv 2206.00364) is

        D = c_skip(s) z + c_out(s) F(c_in(s) z, c_noise(s)),     c_skip = sigma_data^2 / (s^2 + sigma_data^2),
        c_out = s sigma_data / sqrt(s^2 + sigma_data^2),  c_in = 1 / sqrt(s^2 + sigma_data^2),  c_noise = ln(s) / 4,

    and the result is ``(D + 1) / 2``. Twice differentiable.

    Args:
        image_shape: (C, H, W) of the images. H and W are padded as needed.
        channels: channels of the U-Net's levels, from the highest resolution to the lowest, multiples of ``groups``.
        layers: residual blocks per level, in [1, 16].
        patch: side of the patches that the network works on, in [1, 16]. A patch of ``patch`` x ``patch`` pixels is
            one pixel with ``C * patch^2`` channels, which saves a factor of about ``patch^2``.
        attention: whether the lowest level has attention.
        groups: number of groups of the group normalization.
        sigma_data: standard deviation of the data in the network's range [-1, 1].
        sigma_range: (lowest, highest) noise level in training, in pixel units. The first call with a ``sigma`` outside
            it warns.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: an argument is out of range.
    """

    architecture = "edm_unet"

    def __init__(
        self,
        image_shape: Sequence[int],
        channels: Sequence[int],
        *,
        layers: int = 1,
        patch: int = 1,
        attention: bool = False,
        groups: int = 8,
        sigma_data: float = 0.5,
        sigma_range: Sequence[float] = (0.02, 2.0),
    ) -> None:
        super().__init__()
        self.image_shape = check_sizes("image_shape", image_shape, length=3)
        self.channels = check_sizes("channels", channels)
        self.layers = check_integer("layers", layers, low=1, high=MOST_LAYERS)
        self.patch = check_integer("patch", patch, low=1, high=LARGEST_PATCH)
        self.groups = check_integer("groups", groups, low=1, high=LARGEST_SIZE)
        if not isinstance(attention, bool):
            raise TypeError(f"attention must be a bool, got {type(attention).__name__}")
        if any(width % self.groups for width in self.channels):
            raise ValueError(f"channels must be multiples of groups, {self.groups}, got {self.channels}")
        self.attention = attention
        self.sigma_data = check_positive("sigma_data", sigma_data)
        self.sigma_range = _check_range(sigma_range)
        self.padded_to = self.patch * 2 ** (len(self.channels) - 1)
        self._warned = False
        planes = self.image_shape[0] * self.patch**2
        kinds = ["Block2D"] * len(self.channels)
        if attention:
            kinds[-1] = "AttnBlock2D"
        self.network = require("diffusers", extra="train").UNet2DModel(
            in_channels=planes,
            out_channels=planes,
            block_out_channels=self.channels,
            layers_per_block=self.layers,
            down_block_types=tuple(kind.replace("Block", "DownBlock") for kind in kinds),
            up_block_types=tuple(kind.replace("Block", "UpBlock") for kind in reversed(kinds)),
            norm_num_groups=self.groups,
            attn_norm_num_groups=self.groups,
            attention_head_dim=self.groups,
            add_attention=attention,
        )

    def arguments(self) -> dict[str, object]:
        """The constructor's arguments as JSON-serializable values."""
        return {
            "image_shape": list(self.image_shape),
            "channels": list(self.channels),
            "layers": self.layers,
            "patch": self.patch,
            "attention": self.attention,
            "groups": self.groups,
            "sigma_data": self.sigma_data,
            "sigma_range": list(self.sigma_range),
        }

    def forward(self, y: Tensor, sigma: float | Tensor) -> Tensor:
        """Return the denoised images.

        Args:
            y: noisy images [N, *image_shape] in pixel space.
            sigma: noise level in pixel units, a positive float; in training, a tensor [N].

        Returns:
            Tensor [N, *image_shape] in the dtype of ``y``.

        Raises:
            ValueError: ``y`` has the wrong shape, or ``sigma`` is not positive.
        """
        if tuple(y.shape[1:]) != self.image_shape:
            raise ValueError(f"y must have the shape [N, {', '.join(map(str, self.image_shape))}], got {list(y.shape)}")
        dtype = next(self.parameters()).dtype
        if isinstance(sigma, Tensor):
            s = 2 * sigma.to(dtype)
        else:
            self._check_sigma(sigma)
            s = torch.full((len(y),), 2 * sigma, dtype=dtype, device=y.device)
        z = 2 * y.to(dtype) - 1
        variance = s.square() + self.sigma_data**2
        c_skip, c_out, c_in = self.sigma_data**2 / variance, s * self.sigma_data * variance.rsqrt(), variance.rsqrt()
        raw = self._patched(_per_image(c_in) * z, s.log() / 4).to(dtype)  # autocast may have made it bfloat16
        denoised = _per_image(c_skip) * z + _per_image(c_out) * raw
        return ((denoised + 1) / 2).to(y.dtype)

    def loss_weight(self, sigma: Tensor) -> Tensor:
        """EDM's loss weight lambda for squared errors in pixel units, per noise level.

        In the network's units, ``lambda = (s^2 + sigma_data^2) / (s sigma_data)^2 = 1 / c_out^2``, which weighs the
        errors of ``F`` equally.
        """
        s = 2 * sigma
        return 4 * (s.square() + self.sigma_data**2) / (s * self.sigma_data).square()

    def _patched(self, images: Tensor, c_noise: Tensor) -> Tensor:
        """Apply the U-Net to patches of the padded images."""
        height, width = images.shape[-2:]
        images = functional.pad(images, (0, -width % self.padded_to, 0, -height % self.padded_to))
        patches = functional.pixel_unshuffle(images, self.patch)
        output = functional.pixel_shuffle(self.network(patches, c_noise, return_dict=False)[0], self.patch)
        return output[..., :height, :width]

    def _check_sigma(self, sigma: float) -> None:
        check_positive("sigma", sigma)
        low, high = self.sigma_range
        if not low <= sigma <= high and not self._warned:
            self._warned = True
            warnings.warn(
                f"sigma={sigma:g} is outside the range that this denoiser was trained for, [{low:g}, {high:g}]",
                stacklevel=3,
            )


def _check_range(values: Sequence[float]) -> tuple[float, float]:
    if not isinstance(values, Sequence) or len(values) != 2:
        raise ValueError(f"sigma_range must be two numbers, (lowest, highest), got {values!r}")
    low, high = (check_positive(f"sigma_range[{i}]", value) for i, value in enumerate(values))
    if low > high or not math.isfinite(high / low):
        raise ValueError(f"sigma_range must be (lowest, highest), got {values!r}")
    return low, high


def _per_image(values: Tensor) -> Tensor:
    return values.reshape(-1, 1, 1, 1)
