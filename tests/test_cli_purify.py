"""``pursamere purify``."""

import os
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import pursamere as ps
from pursamere import cli
from pursamere.cli import images as files
from pursamere.cli import purify
from pursamere.cli.errors import CommandError
from pursamere.cli.reference import load_reference

FAST = ["--reference", "reference.npz", "--steps", "2", "--draws", "2"]


def pixels(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """Work in a folder with a reference of 6x5 gray images (height x width) and three such inputs."""
    monkeypatch.chdir(tmp_path)
    np.savez("reference.npz", images=pixels(0, 40, 6, 5))
    for number, name in enumerate(["a.png", "b.png", "sub/a.png"]):
        save(f"in/{name}", pixels(number + 1, 6, 5))
    return tmp_path


def save(name: str, array: np.ndarray, **options) -> None:
    os.makedirs(os.path.dirname(name) or ".", exist_ok=True)
    Image.fromarray(array).save(name, **options)


def load(name: str) -> np.ndarray:
    with Image.open(name) as image:
        return np.array(image)


def written(root: str = "out") -> list[str]:
    return sorted(os.path.relpath(os.path.join(p, n), root) for p, _, names in os.walk(root) for n in names)


def tensor(array: np.ndarray) -> torch.Tensor:
    array = array[..., None] if array.ndim == 2 else array
    return torch.from_numpy(array).permute(2, 0, 1).float() / 255


def kernel_density(reference: np.ndarray) -> ps.denoisers.KernelDensity:
    return ps.denoisers.KernelDensity(torch.stack([tensor(image) for image in reference]), 0.2)


def purified(array: np.ndarray, reference, **options) -> np.ndarray:
    """What the library makes of 8-bit images [H, W] or [H, W, C]; ``reference`` may be a denoiser."""
    denoiser = kernel_density(reference) if isinstance(reference, np.ndarray) else reference
    noise = ps.GaussianNoise(seed=0, draws=2)
    settings = {"sigma": 0.2, "radius": 0.2, "steps": 2, "noise": noise, **options}
    result = ps.Purifier(denoiser, **settings)(tensor(array).unsqueeze(0))[0]
    return result.mul(255).round().byte().permute(1, 2, 0).squeeze(-1).numpy()


def test_a_corrupt_file_is_named_and_the_rest_done(folder):
    (folder / "in/broken.png").write_bytes((folder / "in/a.png").read_bytes()[:-30])
    (folder / "in/text.jpg").write_text("this is no image")
    done = subprocess.run(
        [sys.executable, "-m", "pursamere", "purify", "in", "-o", "out", *FAST],
        cwd=folder, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert written() == ["a.png", "b.png", "sub/a.png"]
    errors = done.stderr.splitlines()
    assert len(errors) == 2, done.stderr  # and no progress bar, as stderr is no terminal
    assert "in/broken.png" in errors[0]
    assert "in/text.jpg" in errors[1]
    assert done.stdout == "purified 3 of 5 images, 2 failed\n"


def test_outputs_are_the_librarys_results(capsys):
    assert cli.main(["purify", "in", "-o", "out", *FAST]) == 0
    assert capsys.readouterr().out == "purified 3 of 3 images, 0 failed\n"
    reference = np.load("reference.npz")["images"]
    for name in ("a.png", "b.png", "sub/a.png"):
        np.testing.assert_array_equal(load(f"out/{name}"), purified(load(f"in/{name}"), reference))
    assert (load("out/a.png") != load("in/a.png")).any()


@pytest.mark.parametrize(
    ("options", "settings"),
    [
        (["--sigma", "0.4"], {"sigma": 0.4}),
        (["--radius", "0.02"], {"radius": 0.02}),
        (["--norm", "l2", "--radius", "0.3"], {"norm": "l2", "radius": 0.3}),
        (["--direction", "score"], {"direction": "score"}),
        (["--ascent-radius", "0.5"], {"ascent_radius": 0.5}),
        (["--step-size", "0.03"], {"step_size": 0.03}),
        (["--steps", "3"], {"steps": 3}),
        (["--draws", "4"], {"noise": ps.GaussianNoise(seed=0, draws=4)}),
        (["--noise-seed", "7"], {"noise": ps.GaussianNoise(seed=7, draws=2)}),
    ],
)
def test_options_reach_the_purifier(options, settings):
    assert cli.main(["purify", "in/a.png", "-o", "out", *FAST, *options]) == 0
    reference = np.load("reference.npz")["images"]
    expected = purified(load("in/a.png"), reference, **settings)
    np.testing.assert_array_equal(load("out/a.png"), expected)
    assert (expected != purified(load("in/a.png"), reference)).any(), "the option changes nothing here"


def test_bandwidth_reaches_the_denoiser():
    for bandwidth in ("0.2", "0.6"):
        assert cli.main(["purify", "in/a.png", "-o", f"{bandwidth}.png", *FAST, "--bandwidth", bandwidth]) == 0
    assert (load("0.2.png") != load("0.6.png")).any()


def test_the_radius_is_kept():
    assert cli.main(["purify", "in", "-o", "out", *FAST, "--radius", "0.02", "--step-size", "5"]) == 0
    change = np.abs(load("out/a.png").astype(int) - load("in/a.png").astype(int))
    assert change.max() == 5  # 0.02 * 255 = 5.1


def test_batches_change_nothing():
    for size in ("1", "2", "64"):
        assert cli.main(["purify", "in", "-o", size, *FAST, "--batch-size", size]) == 0
    assert cli.main(["purify", "in/b.png", "-o", "alone", *FAST]) == 0
    for size in ("2", "64"):
        for name in ("a.png", "b.png", "sub/a.png"):
            np.testing.assert_array_equal(load(f"{size}/{name}"), load(f"1/{name}"))
    np.testing.assert_array_equal(load("alone/b.png"), load("1/b.png"))


def test_the_folder_is_streamed(monkeypatch):
    events = []
    real_read, real_write = purify.read_image, purify.write_image
    monkeypatch.setattr(purify, "read_image", lambda *a, **k: (events.append("r"), real_read(*a, **k))[1])
    monkeypatch.setattr(purify, "write_image", lambda *a, **k: (events.append("w"), real_write(*a, **k))[1])
    assert cli.main(["purify", "in", "-o", "out", *FAST, "--batch-size", "2"]) == 0
    assert "".join(events) == "rrwwrw"


def test_an_existing_output_is_kept_and_named(capsys):
    os.makedirs("out")
    with open("out/a.png", "w") as file:
        file.write("precious")
    assert cli.main(["purify", "in", "-o", "out", *FAST]) == 0
    out, err = capsys.readouterr()
    assert out == "purified 2 of 3 images, 0 failed, 1 skipped\n"
    assert err == "skipped, as the outputs exist (--overwrite replaces them): 'in/a.png'\n"
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
    [("out", "out/a.png"), ("new/other.png", "new/other.png"), ("other.jpeg", "other.jpeg"), ("d.png", "d.png/a.png")],
)
def test_single_file(output, expected):
    os.makedirs("d.png")
    assert cli.main(["purify", "in/a.png", "-o", output, *FAST]) == 0
    with Image.open(expected) as image:
        assert image.size == (5, 6)
        assert image.format == ("JPEG" if expected.endswith("jpeg") else "PNG")


def test_jpeg_in_and_out():
    save("jpegs/c.JPG", pixels(5, 6, 5), quality=100)
    assert cli.main(["purify", "jpegs", "-o", "out", *FAST]) == 0
    expected = purified(load("jpegs/c.JPG"), np.load("reference.npz")["images"]).astype(int)
    assert np.abs(load("out/c.JPG").astype(int) - expected).max() <= 3  # lossy, at its best quality


def test_wrong_size_is_named(capsys):
    save("in/wide.png", pixels(3, 5, 6))
    assert cli.main(["purify", "in", "-o", "out", *FAST]) == 1
    assert "in/wide.png: is 6x5, expected 5x6" in capsys.readouterr().err
    assert written() == ["a.png", "b.png", "sub/a.png"]


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


def test_color_reference_and_inputs():
    reference = pixels(4, 30, 6, 5, 3)
    np.savez("color.npz", images=reference)
    save("colors/c.png", pixels(6, 6, 5, 3))
    save("colors/gray.png", pixels(7, 6, 5))
    options = ["--reference", "color.npz", "--steps", "2", "--draws", "2"]
    assert cli.main(["purify", "colors", "-o", "out", *options]) == 0
    np.testing.assert_array_equal(load("out/c.png"), purified(load("colors/c.png"), reference))
    gray = np.repeat(load("colors/gray.png")[..., None], 3, axis=2)
    np.testing.assert_array_equal(load("out/gray.png"), purified(gray, reference))


def test_digits_are_the_default_reference():
    from sklearn.datasets import load_digits

    digits = load_digits().images
    reference = load_reference("digits")
    assert reference.shape == (1797, 1, 8, 8)
    np.testing.assert_allclose(reference[:, 0].numpy(), digits / 16, rtol=0, atol=1e-7)
    save("digit.png", (digits[0] * 255 / 16).astype(np.uint8))
    assert cli.main(["purify", "digit.png", "-o", "out", "--steps", "1"]) == 0
    assert load("out/digit.png").shape == (8, 8)


def test_a_trained_denoiser_in_place_of_a_reference():
    network = ps.models.EDMUNet((1, 8, 8), (8,), groups=4)
    ps.save_checkpoint("net", network)
    save("digit.png", pixels(3, 8, 8))
    assert cli.main(["purify", "digit.png", "-o", "out", "--denoiser", "net", *FAST[2:]]) == 0
    expected = purified(load("digit.png"), ps.load_checkpoint("net"))
    np.testing.assert_array_equal(load("out/digit.png"), expected)
    save("mnist.png", pixels(3, 28, 28))
    assert cli.main(["purify", "mnist.png", "-o", "out", "--denoiser", "mnist", *FAST[2:]]) == 0
    np.testing.assert_array_equal(
        load("out/mnist.png"), purified(load("mnist.png"), ps.load_pretrained("mnist").denoiser)
    )


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--denoiser", "nowhere"], 1, "--denoiser: expected mnist or the folder of a checkpoint: nowhere/config.json"),
        (["--denoiser", "classifier"], 1, "--denoiser: classifier must hold a EDMUNet, and is a ConvClassifier"),
        (["--denoiser", "mnist", "--bandwidth", "0.1"], 1, "--bandwidth is of the kernel density of a --reference"),
        (["--denoiser", "mnist", "--reference", "digits"], 2, "not allowed with argument"),
    ],
)
def test_denoisers_that_are_refused(capsys, arguments, code, message):
    ps.save_checkpoint("classifier", ps.ConvClassifier((1, 8, 8), 2, (8,)))
    save("digit.png", pixels(3, 8, 8))
    try:
        found = cli.main(["purify", "digit.png", "-o", "out", *arguments])
    except SystemExit as wrong_usage:
        found = wrong_usage.code
    assert found == code
    assert message in capsys.readouterr().err
    assert not os.path.exists("out")


def test_reference_forms_agree():
    images = np.load("reference.npz")["images"]
    np.savez("last.npz", images=images[..., None])
    np.savez("float.npz", train_images=(images[:, None] / 255).astype(np.float64))
    os.makedirs("folder/deeper")
    for number, image in enumerate(images):
        save(f"folder/{'deeper/' if number > 30 else ''}{number:03}.png", image)
    expected = torch.from_numpy(images).unsqueeze(1) / 255
    for name in ("reference.npz", "last.npz", "float.npz"):
        torch.testing.assert_close(load_reference(name), expected, rtol=0, atol=1e-7)
    # os.walk: files first, then the subfolders'
    torch.testing.assert_close(load_reference("folder"), expected, rtol=0, atol=1e-7)


def test_mnist_comes_from_the_data_folder(monkeypatch, capsys):
    monkeypatch.delenv("PURSAMERE_DATA", raising=False)
    assert cli.main(["purify", "in", "-o", "out", "--reference", "mnist"]) == 1
    assert "PURSAMERE_DATA" in capsys.readouterr().err
    monkeypatch.setenv("PURSAMERE_DATA", "data")
    assert cli.main(["purify", "in", "-o", "out", "--reference", "mnist"]) == 1
    assert "PURSAMERE_DATA must be a folder, got data" in capsys.readouterr().err
    os.makedirs("data")
    assert cli.main(["purify", "in", "-o", "out", "--reference", "mnist"]) == 1
    assert "found neither mnist.npz nor train-images-idx3-ubyte" in capsys.readouterr().err
    labels = np.zeros(40, np.uint8)
    np.savez("data/mnist.npz", train_images=pixels(0, 40, 6, 5), train_labels=labels, test_images=pixels(1, 3, 6, 5))
    assert load_reference("mnist").shape == (40, 1, 6, 5)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((3, 4), np.uint8), "got uint8"),
        (np.zeros((3, 4, 4), np.float32), "got float32"),
        (np.zeros((3, 4, 4), np.int64), "got int64"),
        (np.zeros((0, 4, 4), np.uint8), r"got uint8 \[0, 4, 4\]"),
        (np.zeros((3, 4, 4, 2), np.uint8), "1 or 3 channels"),
        (np.full((3, 1, 4, 4), 1.5), r"values in \[0, 1\]"),
        (np.eye(4)[None, None] * 1.01, r"values in \[0, 1\]"),
        (np.eye(4)[None, None] * -0.01, r"values in \[0, 1\]"),
        (np.where(np.eye(4)[None, None] == 1, np.nan, 0.5), r"values in \[0, 1\]"),
        (np.array([{}] * 3), "cannot be read"),
    ],
)
def test_bad_reference_arrays(array, message):
    np.savez("bad.npz", images=array)
    with pytest.raises(CommandError, match=message):
        load_reference("bad.npz")


def test_a_reference_never_runs_code(folder):
    class Bomb:
        def __reduce__(self):
            return (open, (str(folder / "exploded"), "w"))

    np.savez("bomb.npz", images=np.array([Bomb()], dtype=object))
    (folder / "exploded").unlink(missing_ok=True)
    with pytest.raises(CommandError, match="cannot be read"):
        load_reference("bomb.npz")
    assert not (folder / "exploded").exists()


@pytest.mark.parametrize("name", ["nowhere", "in/a.png", "empty"])
def test_bad_references(name):
    os.makedirs("empty")
    with pytest.raises(CommandError, match="--reference"):
        load_reference(name)


def test_other_bad_reference_files():
    np.savez("names.npz", pictures=pixels(0, 2, 6, 5))
    with pytest.raises(CommandError, match=r"found \['pictures'\]"):
        load_reference("names.npz")
    with open("text.npz", "w") as file:
        file.write("text")
    with pytest.raises(CommandError, match="cannot be read"):
        load_reference("text.npz")
    save("mixed/a.png", pixels(0, 6, 5))
    save("mixed/b.png", pixels(0, 5, 6))
    with pytest.raises(CommandError, match=r"mixed/b\.png is 6x5, expected 5x6"):
        load_reference("mixed")


def test_folder_reference_is_color_if_one_file_is():
    save("some/a.png", pixels(0, 6, 5))
    assert load_reference("some").shape == (1, 1, 6, 5)
    save("some/b.png", pixels(0, 6, 5, 3))
    assert load_reference("some").shape == (2, 3, 6, 5)


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


@pytest.mark.parametrize(("quiet", "size"), [(True, (24, 80)), (False, (24, 80)), (False, (0, 0)), (False, (0, 80))])
def test_the_progress_bar_is_for_terminals(quiet, size):
    pty, fcntl, termios = (pytest.importorskip(name) for name in ("pty", "fcntl", "termios"))
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", *size, 0, 0))
    command = [sys.executable, "-m", "pursamere", "purify", "in", "-o", "out", *FAST, *["--quiet"] * quiet]
    with subprocess.Popen(command, stderr=slave, stdout=subprocess.DEVNULL) as process:
        os.close(slave)
        seen = b""
        while chunk := _read(master):
            seen += chunk
    os.close(master)
    assert process.returncode == 0
    assert (b"3/3" in seen) != quiet, seen


def _read(master: int) -> bytes:
    try:
        return os.read(master, 4096)
    except OSError:  # the other end is closed
        return b""
