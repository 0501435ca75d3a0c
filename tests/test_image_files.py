"""Which image files are read, as INPUT, as --reference and in data sets, and what is said of the others."""

import os
import struct
import subprocess
import sys
import threading
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from dataset_files import random_bytes, save
from PIL import Image

from pursamere import cli
from pursamere._images import ImageError, as_current_file, current_file
from pursamere.cli import images as files
from pursamere.cli.reference import load_reference
from pursamere.datasets import load

FAST = ["--reference", "reference.npz", "--steps", "2", "--draws", "2"]
LOSSLESS = [
    ("png", {}), ("apng", {"format": "PNG"}), ("webp", {"lossless": True}), ("bmp", {}), ("tif", {}),
    ("TIFF", {"compression": "tiff_lzw"}), ("gif", {}), ("pgm", {}), ("pnm", {}),
]  # fmt: skip
JPEGS = [(end, {"format": "JPEG", "quality": 100}) for end in ("jpg", "jpeg", "jpe", "jfif")]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """Work in a folder with a reference of 16x8 gray images (height x width)."""
    monkeypatch.chdir(tmp_path)
    np.savez("reference.npz", images=random_bytes(0, 40, 16, 8))
    return tmp_path


def decode(name: str, channels: int = 1) -> torch.Tensor:
    return files.read_image(Path(name), (channels, 16, 8))


@pytest.mark.parametrize(("end", "options"), [*LOSSLESS, *JPEGS])
def test_one_picture_is_the_same_in_every_format_and_place(end, options, capsys):
    name = f"set/a/x.{end}"
    smooth = np.add.outer(np.arange(16), np.arange(8)).astype(np.uint8) * 10
    save(name, smooth, **options)
    exact = ("JPEG" not in options.values()) * 1.0
    tolerance = {"rtol": 0, "atol": 1e-7 if exact else 0.01}
    expected = torch.from_numpy(smooth).float().div(255)[None]
    torch.testing.assert_close(decode(name), expected, **tolerance)
    for images in (load("set").images, load_reference("set")):  # WebP is always in color
        torch.testing.assert_close(images[0], expected.expand(images.shape[1:]), **tolerance)
    assert cli.main(["purify", "set", "-o", "out", *FAST]) == 0
    assert cli.main(["purify", name, "-o", "out/alone.png", *FAST]) == 0
    assert capsys.readouterr().out == "purified 1 of 1 images, 0 failed\n" * 2
    torch.testing.assert_close(decode(f"out/a/x.{end}"), decode("out/alone.png"), **tolerance)


def test_colors_in_every_format_and_place(capsys):
    np.savez("reference.npz", images=random_bytes(0, 40, 16, 8, 3))
    colors = random_bytes(1, 16, 8, 3)
    for end, options in LOSSLESS:
        save(f"in/x.{end}", colors, **options)
    os.remove("in/x.gif")
    assert cli.main(["purify", "in", "-o", "out", *FAST]) == 0
    for end, _ in LOSSLESS:
        if end != "gif":
            np.testing.assert_array_equal(decode(f"in/x.{end}", 3) * 255, torch.from_numpy(colors).permute(2, 0, 1))
            assert torch.equal(decode(f"out/x.{end}", 3), decode("out/x.png", 3))
    capsys.readouterr()
    save("in/x.gif", colors)
    assert cli.main(["purify", "in/x.gif", "-o", "out", *FAST]) == 1
    assert "in/x.gif: not done: a GIF file cannot hold the colors" in capsys.readouterr().err
    assert cli.main(["purify", "in/x.gif", "-o", "out/gif.png", *FAST]) == 0


def test_other_files_are_named_and_hidden_ones_are_not(folder, capsys):
    names = ["in/b/x.avif", "in/b/notes.txt", "in/b/photo", "in/b/.hidden"]
    save("in/b/x.png", random_bytes(1, 16, 8))
    for name in names:
        (folder / name).write_text("?")
    assert cli.main(["purify", "in", "-o", "out", *FAST]) == 0
    line = "not used in in, since their names are not those of images: 'b/notes.txt', 'b/photo', 'b/x.avif'"
    assert capsys.readouterr().err.splitlines() == [line]
    load_reference("in")
    assert capsys.readouterr().err.splitlines() == [line]
    with pytest.warns(UserWarning, match="^data set 'in': not used: 'b/notes.txt', 'b/photo', 'b/x.avif'$"):
        assert len(load("in")) == 1


@pytest.mark.parametrize("end", ["png", "webp", "gif", "tif"])
def test_animations_and_pages_are_refused(end):
    first, second = (Image.fromarray(random_bytes(n, 16, 8)) for n in (0, 1))
    os.makedirs("set/a")
    first.save(f"set/a/moving.{end}", save_all=True, append_images=[second])
    with pytest.raises(ImageError, match="animated or has several pages"):
        decode(f"set/a/moving.{end}")
    with pytest.raises(ValueError, match=rf"set/a/moving\.{end} is animated or has several pages"):
        load("set")


@pytest.mark.parametrize("name", ["photo.JPG", "photo.mpo"])
def test_a_photograph_with_a_preview_is_one_image(name):
    picture = Image.fromarray(random_bytes(0, 16, 8))
    os.makedirs("set/a")
    picture.save(f"set/a/{name}", "MPO", save_all=True, append_images=[picture.resize((4, 8))], quality=100)
    with Image.open(f"set/a/{name}") as image:
        assert (image.format, image.n_frames) == ("MPO", 2)
    expected = torch.from_numpy(np.array(picture)).float()[None] / 255
    for found in (decode(f"set/a/{name}"), load("set").images[0], load_reference("set")[0]):
        torch.testing.assert_close(found, expected, rtol=0, atol=0.02)
    assert cli.main(["purify", "set", "-o", "out", *FAST]) == 0


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def deep_png(color: int, channels: int) -> bytes:
    rows = b"".join(b"\0" + bytes(2 * 8 * channels) for _ in range(16))
    header = struct.pack(">IIBBBBB", 8, 16, 16, color, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def deep_tiff(bits: int, channels: int, sample: int = 1, *, white_is_zero: bool = False) -> bytes:
    """Little-endian, uncompressed, of zeros. An entry: tag, type (3: 16 bits, 4: 32 bits), count, value."""
    size = 16 * 8 * channels * bits // 8
    where = 8 + 2 + 12 * 10 + 4  # behind the entries
    meaning = 0 if white_is_zero else 1 if channels == 1 else 2
    entries = [
        (256, 3, 1, 8), (257, 3, 1, 16), (258, 3, channels, bits if channels == 1 else where), (259, 3, 1, 1),
        (262, 3, 1, meaning), (273, 4, 1, where + 6), (277, 3, 1, channels), (278, 3, 1, 16),
        (279, 4, 1, size), (339, 3, 1, sample),
    ]  # fmt: skip
    directory = b"".join(struct.pack("<HHII", *entry) for entry in entries)
    return (
        struct.pack("<2sHIH", b"II", 42, 8, len(entries)) + directory + bytes(4) + struct.pack("<3H", *[bits] * 3)
        + bytes(size)
    )  # fmt: skip


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("rgb.png", deep_png(2, 3)),
        ("gray-alpha.png", deep_png(4, 2)),
        ("rgba.png", deep_png(6, 4)),
        ("rgb.tif", deep_tiff(16, 3)),
        ("int.tif", deep_tiff(32, 1)),
        ("signed.tif", deep_tiff(16, 1, sample=2)),
        ("white.tif", deep_tiff(16, 1, white_is_zero=True)),
        ("float.tif", deep_tiff(32, 1, sample=3)),
        ("rgb.ppm", b"P6 8 16 65535\n" + bytes(16 * 8 * 6)),
        ("twelve.ppm", b"P6 8 16 4095\n" + bytes(16 * 8 * 6)),
        ("plain.ppm", b"P3 8 16 65535\n" + b"0 " * 16 * 8 * 3),
    ],
)
def test_pixels_that_would_be_changed_are_refused(name, content):
    os.makedirs("set/a")
    Path("set/a", name).write_bytes(content)
    with pytest.raises(ImageError, match="expected 8 bits per channel, or 16-bit gray"):
        decode(f"set/a/{name}")
    with pytest.raises(ValueError, match=rf"{name} has pixels of the form .*, expected 8 bits"):
        load("set")


@pytest.mark.parametrize("end", ["png", "tif", "pgm"])
def test_sixteen_bits_of_gray_are_kept(end):
    deep = np.random.default_rng(0).integers(0, 65536, (16, 8), dtype=np.uint16)
    save(f"deep.{end}", deep)
    expected = torch.from_numpy(deep.astype(np.float64) / 65535).float()[None]
    torch.testing.assert_close(decode(f"deep.{end}"), expected, rtol=0, atol=1e-7)


def test_eight_bits_in_a_tiff_file_made_by_hand_are_read():
    Path("plain.tif").write_bytes(deep_tiff(8, 3))  # so that it is the depth that is refused above
    assert torch.equal(decode("plain.tif", 3), torch.zeros(3, 16, 8))
    Path("white.tif").write_bytes(deep_tiff(8, 1, white_is_zero=True))
    assert torch.equal(decode("white.tif"), torch.ones(1, 16, 8))
    Path("coarse.ppm").write_bytes(b"P6 8 16 15\n" + bytes([15]) * 16 * 8 * 3)
    assert torch.equal(decode("coarse.ppm", 3), torch.ones(3, 16, 8))


@pytest.mark.parametrize("end", ["jpg", "png", "webp", "tif"])
@pytest.mark.parametrize("size", [(12, 20), (8, 16)])
def test_sizes_are_told_as_they_are_seen(end, size):
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees when it is shown
    width, height = size
    Image.fromarray(random_bytes(0, height, width)).save(f"turned.{end}", exif=exif)
    with pytest.raises(ImageError, match=f"is {height}x{width}, expected 8x16"):
        decode(f"turned.{end}")


def test_damaged_exif_data_are_no_error_where_the_size_is_wrong():
    save("odd.webp", random_bytes(0, 12, 20), exif=b"Exif\0\0MM\0\0\0\0\0\x08")
    with pytest.raises(ImageError, match="is 20x12, expected 8x16"):
        decode("odd.webp")
    save("textual.jpg", random_bytes(0, 12, 20), exif=b"Exif\0\0MM\0*\0\0\0\x08\0\1\1\x12\0\2\0\0\0\2\x366\0\0\0\0\0\0")
    with pytest.raises(ImageError, match="is 20x12, expected 8x16"):
        decode("textual.jpg")


@pytest.mark.parametrize("end", ["png", "webp", "tif"])
def test_turned_images_are_shown_upright(end):
    exif = Image.Exif()
    exif[0x0112] = 6
    upright = random_bytes(0, 16, 8)
    Image.fromarray(np.rot90(upright).copy()).save(f"turned.{end}", exif=exif, lossless=True)
    np.testing.assert_array_equal(decode(f"turned.{end}")[0] * 255, upright)


def test_a_palette_with_opaque_entries_is_read_without_a_warning():
    Image.fromarray(random_bytes(0, 16, 8)).convert("P").save("opaque.png", transparency=bytes([255, 255]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(decode("opaque.png") * 255, torch.from_numpy(random_bytes(0, 16, 8)).float()[None])


def huge_png() -> bytes:
    """The header of 12000x10000 pixels, of which Pillow warns."""
    header = struct.pack(">IIBBBBB", 12000, 10000, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


@pytest.mark.slow
def test_pillows_warnings_are_one_line_with_the_name_of_the_file(folder):
    os.makedirs("in")
    for name in ("big 1.png", "big\n2.png"):
        Path("in", name).write_bytes(huge_png())
    done = subprocess.run(
        [sys.executable, "-m", "pursamere", "purify", "in", "-o", "out", *FAST],
        cwd=folder, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    warned = sorted(line for line in done.stderr.splitlines() if "warning" in line.lower())
    assert len(warned) == 2, done.stderr
    assert warned[0].startswith("pursamere: warning: in/big 1.png: Image size (120000000 pixels) exceeds limit")
    assert warned[1].startswith("pursamere: warning: in/big 2.png: Image size")
    assert len(done.stderr.splitlines()) == 4  # and one failure each


@pytest.mark.filterwarnings("always")
def test_a_file_that_is_read_twice_is_warned_of_once(capsys):
    os.makedirs("big")
    Path("big/x.png").write_bytes(huge_png())
    save("a.png", random_bytes(1, 16, 8))
    assert cli.main(["purify", "a.png", "-o", "out", "--reference", "big"]) == 1
    warning, error = capsys.readouterr().err.splitlines()
    assert warning.startswith("pursamere: warning: big/x.png: Image size")
    assert error.startswith("pursamere: error: --reference: big/x.png cannot be decoded")


@pytest.mark.filterwarnings("default")
def test_what_a_data_set_leaves_out_is_one_line(capsys):
    np.savez("reference.npz", images=random_bytes(0, 4, 16, 8), val_images=random_bytes(0, 4, 16, 8), labels=[0] * 4)
    save("a.png", random_bytes(1, 16, 8))
    shown = warnings.filters[:], warnings.showwarning
    assert cli.main(["purify", "a.png", "-o", "out", *FAST]) == 0
    assert capsys.readouterr().err == "pursamere: warning: data set 'reference.npz': not used: 'val_images'\n"
    assert shown == (warnings.filters, warnings.showwarning)


def test_reading_in_threads_names_each_file_and_leaves_the_filters_alone():
    Path("big.png").write_bytes(huge_png())
    found, together = {}, threading.Barrier(2)
    before = warnings.filters[:], warnings.showwarning

    def read(name):
        with as_current_file(Path(name)):
            together.wait(60)
            assert warnings.filters == before[0]
            found[name] = current_file()
            together.wait(60)

    threads = [threading.Thread(target=read, args=(name,)) for name in ("a", "b")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert found == {"a": Path("a"), "b": Path("b")}
    assert current_file() is None
    with pytest.warns(Image.DecompressionBombWarning), pytest.raises(ImageError, match="is 12000x10000"):
        decode("big.png")
    assert current_file() is None
    assert before == (warnings.filters, warnings.showwarning)
