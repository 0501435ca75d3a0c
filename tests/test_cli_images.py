"""The images that ``pursamere purify`` reads, and those it refuses."""

import os

import numpy as np
import pytest
import torch
from PIL import Image
from purify_case import pixels, purify_folder, save  # noqa: F401

from pursamere.cli import images as files


def read(name: str, channels: int = 1) -> torch.Tensor:
    return files.read_image(files.Path(name), (channels, 6, 5))


def test_sixteen_bits_are_scaled_and_not_clipped():
    deep = (pixels(0, 6, 5).astype(np.uint16) << 8) + 37
    save("deep.png", deep)
    expected = torch.from_numpy(deep.astype(np.float32) / 65535)
    for channels in (1, 3):
        torch.testing.assert_close(read("deep.png", channels), expected.expand(channels, 6, 5), rtol=0, atol=1e-7)


def test_transparency():
    colors = pixels(0, 6, 5, 4)
    colors[..., 3] = 255
    save("opaque.png", colors)
    torch.testing.assert_close(read("opaque.png", 3), torch.from_numpy(colors[..., :3]).permute(2, 0, 1) / 255)
    colors[2, 3, 3] = 254
    save("clear.png", colors)
    with pytest.raises(files.ImageError, match="transparent"):
        read("clear.png", 3)


def test_palette_and_bilevel():
    image = Image.fromarray(pixels(0, 6, 5)).convert("P")
    image.save("palette.png")
    np.testing.assert_array_equal(read("palette.png").mul(255).round().byte()[0].numpy(), pixels(0, 6, 5))
    Image.fromarray(pixels(0, 6, 5)).convert("1").save("bits.png")
    assert set(read("bits.png").unique().tolist()) == {0.0, 1.0}


def test_orientation_is_followed():
    exif = Image.Exif()
    exif[0x0112] = 6  # stored on its side
    upright = np.zeros((16, 8), np.uint8)
    upright[:8] = 255  # what it looks like: white above black, in whole JPEG blocks
    Image.fromarray(np.rot90(upright).copy()).save("turned.jpg", exif=exif, quality=100)
    shown = files.read_image(files.Path("turned.jpg"), (1, 16, 8))
    torch.testing.assert_close(shown[0], torch.from_numpy(upright / 255).float(), rtol=0, atol=0.02)


def test_other_formats_are_refused_whatever_their_name():
    Image.fromarray(pixels(0, 6, 5)).save("icon.ico")
    os.rename("icon.ico", "icon.png")
    with pytest.raises(files.ImageError, match=r"cannot be read as PNG, .* or PPM$"):
        read("icon.png")


def test_a_huge_file_of_the_wrong_size_is_not_decoded():
    Image.new("L", (4000, 4000)).save("huge.png")
    with open("huge.png", "r+b") as file:
        file.truncate(60)  # there is nothing to decode, which would be the error if it were tried
    with pytest.raises(files.ImageError, match="is 4000x4000"):
        read("huge.png")


def test_a_turned_image_of_the_wrong_size_is_refused():
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels(0, 6, 5)).save("turned.png", exif=exif)  # upright it is 5 high and 6 wide
    with pytest.raises(files.ImageError, match="expected 5x6"):
        read("turned.png")
    save("wide.png", pixels(0, 5, 6))
    with pytest.raises(files.ImageError, match="is 6x5, expected 5x6"):
        read("wide.png")
