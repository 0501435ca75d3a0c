"""Grids of images, and the PNG files that they end up in."""

import io

import numpy
import pytest
import torch
from nets import conv_denoiser
from PIL import Image

from pursamere.report.drawing import RIGHT, WRONG, GridRow, draw_grid, new_figure, plain, to_png
from pursamere.training.pictures import draw_curves, draw_purifications


@pytest.mark.parametrize("channels", [1, 3])
def test_a_grid_shows_the_images_and_what_was_predicted(channels):
    images = torch.rand(2, channels, 3, 4, generator=torch.Generator().manual_seed(0))
    images[1, :, 0, 0] = torch.nan
    figure = new_figure(3, 3)
    rows = [GridRow("first", images, [7, -1]), GridRow("second", images.flip(0))]
    draw_grid(figure, rows, labels=[7, 2], notes=["a", "b"])
    axes = figure.axes
    assert len(axes) == 4
    assert [axis.get_title() for axis in axes] == ["7", "NaN", "", ""]
    assert [axis.title.get_color() for axis in axes[:2]] == [RIGHT, WRONG]
    assert [axis.get_ylabel() for axis in axes] == ["first", "", "second", ""]
    assert [axis.get_xlabel() for axis in axes] == ["", "", "a", "b"]
    for axis, image in zip(axes, torch.cat([images, images.flip(0)]).nan_to_num(1.0), strict=True):
        (shown,) = axis.images
        expected = image.permute(1, 2, 0).numpy()
        numpy.testing.assert_array_equal(shown.get_array().reshape(expected.shape), expected)
        assert shown.get_clim() == (0, 1)
    assert to_png(figure) == to_png(figure)


def test_text_is_no_formula_and_one_line():
    assert plain("a$b$\nc") == r"a\$b\$ c"


@pytest.mark.parametrize("channels", [1, 3])
def test_pictures_of_a_training(channels):
    images = torch.rand(3, channels, 8, 8, generator=torch.Generator().manual_seed(0))
    curves = draw_curves([{"step": 1, "loss": 1.0, "accuracy": 0.5}, {"step": 2, "loss": 0.5, "accuracy": 0.7}], [])
    for content in (draw_purifications(conv_denoiser(channels), images), curves):
        picture = numpy.asarray(Image.open(io.BytesIO(content)).convert("RGB"))
        assert 0.02 < (picture < 250).any(axis=2).mean() < 0.95
