"""``pursamere purify``: which files it reads and writes, and which it refuses to."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from purify_case import FAST, load, pixels, purified, purify_folder, save, written  # noqa: F401

from pursamere import cli
from pursamere.cli import purify


def test_an_existing_output_is_kept_and_named(capsys):
    os.makedirs("out")
    with open("out/a.png", "w") as file:
        file.write("precious")
    assert cli.main(["purify", "in", "-o", "out", *FAST]) == 0
    out, err = capsys.readouterr()
    assert out == "purified 2 of 3 images, 0 failed, 1 skipped\n"
    assert (
        err
        == "skipped, because outputs exist, possibly made with other settings (--overwrite replaces them): 'in/a.png'\n"
    )
    with open("out/a.png") as file:
        assert file.read() == "precious"
    assert written() == ["a.png", "b.png", "sub/a.png"]

    assert cli.main(["purify", "in", "-o", "out", *FAST, "--overwrite"]) == 0
    expected = purified(load("in/a.png"), np.load("reference.npz")["images"])
    np.testing.assert_array_equal(load("out/a.png"), expected)
    assert written() == ["a.png", "b.png", "sub/a.png"]


def test_an_existing_output_that_was_named_is_kept_too(capsys):
    Path("mine.png").write_text("precious")
    assert cli.main(["purify", "in/a.png", "-o", "mine.png", *FAST]) == 0
    assert capsys.readouterr().out == "purified 0 of 1 images, 0 failed, 1 skipped\n"
    assert Path("mine.png").read_text() == "precious"


def test_a_repeated_command_goes_on_where_it_stopped(monkeypatch, capsys):
    save("in/wide.png", pixels(3, 5, 6))
    command = ["purify", "in", "-o", "out", *FAST]
    assert cli.main(command) == 1
    assert capsys.readouterr().out == "purified 3 of 4 images, 1 failed\n"
    assert cli.main(command) == 1  # what failed fails again
    assert capsys.readouterr().out == "purified 0 of 4 images, 1 failed, 3 skipped\n"
    os.remove("in/wide.png")
    monkeypatch.setattr(purify, "build_denoiser", None)  # not needed where nothing is left to do
    assert cli.main(command) == 0
    assert capsys.readouterr().out == "purified 0 of 3 images, 0 failed, 3 skipped\n"
    assert cli.main([*command, "--quiet"]) == 0
    out, err = capsys.readouterr()
    assert out == ""
    assert "'in/a.png', 'in/b.png', 'in/sub/a.png'" in err


def test_what_is_no_file_is_no_output(capsys):
    os.makedirs("out/a.png")
    os.symlink("nowhere", "out/b.png")
    assert cli.main(["purify", "in", "-o", "out", *FAST]) == 1
    assert [line.split(": ")[2] for line in capsys.readouterr().err.splitlines()] == ["in/a.png", "in/b.png"]


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        ("out", "out/a.png"),
        ("v1.final", "v1.final/a.png"),
        ("new/other.png", "new/other.png"),
        ("other.jpeg", "other.jpeg"),
        ("d.png", "d.png/a.png"),
    ],
)
def test_single_file(output, expected):
    os.makedirs("d.png")
    assert cli.main(["purify", "in/a.png", "-o", output, *FAST]) == 0
    with Image.open(expected) as image:
        assert image.size == (5, 6)
        assert image.format == ("JPEG" if expected.endswith("jpeg") else "PNG")


@pytest.mark.parametrize("names", [[], ["notes.txt"]])
def test_a_folder_without_images_is_an_error(names, capsys):
    os.makedirs("empty")
    for name in names:
        open(f"empty/{name}", "w").close()
    assert cli.main(["purify", "empty", "-o", "out", *FAST]) == 1
    assert "no image files (PNG, JPEG, WebP, BMP, TIFF, GIF or PPM) in empty" in capsys.readouterr().err
    assert not os.path.exists("out")


@pytest.mark.parametrize(
    ("source", "output", "message"),
    [
        ("nowhere", "out", "nowhere does not exist"),
        ("in", "in", "folder INPUT itself"),
        ("in", "in/../in", "folder INPUT itself"),
        ("in/a.png", "in", "file INPUT itself"),
        ("in/a.png", "in/a.png", "file INPUT itself"),
        ("in", "reference.npz", "must be a folder"),
        ("in", "out.png", "OUTPUT must be a folder when INPUT is one, and out.png names an image"),
        ("in/a.png", "out.tga", "OUTPUT must be a folder or a name in .png, "),
        ("reference.npz", "out", "not an image file by its name"),
    ],
)
def test_impossible_paths(source, output, message, capsys):
    before = load("in/a.png")
    assert cli.main(["purify", source, "-o", output, *FAST, "--overwrite"]) == 1
    assert message in capsys.readouterr().err
    np.testing.assert_array_equal(load("in/a.png"), before)


def test_output_inside_input_is_no_input():
    for _ in range(2):
        assert cli.main(["purify", "in", "-o", "in/out", *FAST, "--overwrite"]) == 0
    assert written("in/out") == ["a.png", "b.png", "sub/a.png"]


def test_output_inside_the_reference_is_no_reference(folder, capsys):
    options = ["--steps", "2", "--draws", "2", "--overwrite"]
    for seed in range(6):
        save(f"data/{seed}.png", pixels(seed, 6, 5))
    first = {}
    for output in ("data/out", "data/sub/deep", "data/alone.png", "data/link"):
        source = "data/0.png" if output.endswith("png") else "data"
        if output.endswith("link"):
            os.makedirs("elsewhere")
            os.symlink(folder / "elsewhere", output)
            os.symlink(folder / "elsewhere/5.png", "data/made.png")  # leads into OUTPUT too
        for _ in range(2):
            assert cli.main(["purify", source, "-o", output, "--reference", "data", *options]) == 0
            name = output if output.endswith("png") else f"{output}/0.png"
            np.testing.assert_array_equal(load(name), first.setdefault("pixels", load(name)))
        if output.endswith("png"):
            os.remove(output)
        elif not output.endswith("link"):
            shutil.rmtree(output)


@pytest.mark.parametrize(
    ("source", "output", "reference", "what"),
    [
        ("in", "ref", "ref", "--reference"),
        ("in/a.png", "ref", "ref", "--reference"),
        ("in", ".", "sub", "--reference"),  # in/sub/a.png
        ("in", "link", "ref", "--reference"),
        ("sub", ".", "ref", "INPUT"),  # sub/sub/a.png
    ],
)
def test_outputs_among_what_is_read_are_refused(source, output, reference, what, capsys):
    for name in ("ref/x.png", "sub/a.png", "sub/sub/a.png"):
        save(name, pixels(0, 6, 5))
    os.symlink("ref", "link")
    before = written(".")
    assert cli.main(["purify", source, "-o", output, "--reference", reference, "--overwrite"]) == 1
    assert f"OUTPUT would be written into the folder {'of ' * (what != 'INPUT')}{what}" in capsys.readouterr().err
    assert written(".") == before


def test_output_around_what_is_read_is_fine():
    save("flat/x.png", pixels(0, 6, 5))
    save("ref/y.png", pixels(1, 6, 5))
    assert cli.main(["purify", "flat", "-o", ".", "--reference", "ref"]) == 0
    assert os.path.exists("x.png")


def test_links_to_folders_are_not_followed(folder, capsys):
    os.symlink(folder / "in", "in/sub/loop")
    assert cli.main(["purify", "in", "-o", "out", *FAST]) == 0
    assert "in/sub/loop" in capsys.readouterr().err
    assert written() == ["a.png", "b.png", "sub/a.png"]


def test_nothing_is_written_through_a_link_out_of_output(capsys):
    os.makedirs("elsewhere")
    os.makedirs("out")
    os.symlink("../elsewhere", "out/sub")
    save("in/sub/deeper/c.png", pixels(9, 6, 5))
    assert cli.main(["purify", "in", "-o", "out", *FAST, "--overwrite"]) == 1
    err = capsys.readouterr().err
    assert "in/sub/a.png" in err
    assert "in/sub/deeper/c.png" in err
    assert os.listdir("elsewhere") == []


def test_an_output_link_is_replaced_and_not_followed():
    os.makedirs("out")
    with open("precious", "w") as file:
        file.write("precious")
    os.symlink("../precious", "out/a.png")
    assert cli.main(["purify", "in", "-o", "out", *FAST, "--overwrite"]) == 0
    assert not os.path.islink("out/a.png")
    with open("precious") as file:
        assert file.read() == "precious"


@pytest.mark.parametrize(
    "name", ["-o.png", "two\nlines.png", os.fsdecode(b"\xff.png"), "é 数.png", " .png", "\x1b[2J.png"]
)
def test_odd_names(name, capsys):
    os.rename("in/b.png", f"in/{name}")
    with open(f"in/broken{name}", "w"):
        pass
    assert cli.main(["purify", "in", "-o", "out", *FAST]) == 1
    assert written() == sorted(["a.png", name, "sub/a.png"])
    (line,) = capsys.readouterr().err.splitlines()
    assert line.isprintable()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_a_named_pipe_does_not_block(capsys):
    os.mkfifo("in/pipe.png")
    assert cli.main(["purify", "in", "-o", "out", *FAST]) == 1
    assert "in/pipe.png: is not a regular file" in capsys.readouterr().err


def test_a_failed_write_is_named_and_leaves_nothing_behind(monkeypatch, capsys):
    real = Image.Image.save

    def full(image, target, **options):
        real(image, target, **options)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    assert cli.main(["purify", "in/a.png", "-o", "out", *FAST]) == 1
    assert capsys.readouterr().err == "pursamere: error: cannot write out/a.png: No space left on device\n"
    assert written() == []
