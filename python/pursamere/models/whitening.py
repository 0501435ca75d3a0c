"""A fixed first layer that whitens image patches."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

_FLOOR = 5e-4  # added to the variances, so that directions without content are not amplified
_MOST_IMAGES = 5000


class Whitening(nn.Module):
    """Project overlapping patches onto their principal components, scaled to unit variance, of both signs.

    The filters are a buffer: they are not trained. The bias is.

    Args:
        channels: channels of the images.
        side: side of the square patches, in pixels.
    """

    filters: Tensor

    def __init__(self, channels: int, side: int) -> None:
        super().__init__()
        self.outputs = 2 * channels * side**2
        self.register_buffer("filters", torch.zeros(self.outputs, channels, side, side))
        self.bias = nn.Parameter(torch.zeros(self.outputs))

    @torch.no_grad()
    def fit(self, x: Tensor) -> None:
        """Set the filters from images [N, C, H, W] in the range of the layer's input; 5000 of them, evenly spaced."""
        x = x[:: -(-len(x) // _MOST_IMAGES)].double()
        side = self.filters.shape[-1]
        patches = x.unfold(2, side, 1).unfold(3, side, 1).permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(0, 2)
        variances, components = torch.linalg.eigh(patches.T @ patches / len(patches))
        filters = (components / (variances.clamp(min=0) + _FLOOR).sqrt()).T.reshape(-1, *self.filters.shape[1:])
        self.filters.copy_(torch.cat([filters, -filters]))

    def forward(self, x: Tensor) -> Tensor:
        """Return [N, 2 * C * side**2, H - side + 1, W - side + 1]."""
        return functional.conv2d(x, self.filters, self.bias)
