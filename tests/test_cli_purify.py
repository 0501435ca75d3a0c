"""``pursamere purify``: its outputs are what the library makes of its inputs."""

import contextlib
import os
import struct
import sys

import numpy as np
import pytest
from purify_case import FAST, load, pixels, purified, purify_folder, save, written  # noqa: F401

import pursamere as ps
from pursamere import cli
from pursamere.cli import purify
from pursamere.pretrained.digits import BANDWIDTH


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


def test_the_tuned_radius_is_not_that_of_another_norm(capsys, monkeypatch):
    monkeypatch.setattr(purify, "build_denoiser", None)  # no work before it is refused
    assert cli.main(["purify", "in", "-o", "out", "--norm", "l2"]) == 1
    assert "--radius must be given with --norm l2: the default radii are those of linf" in capsys.readouterr().err
    assert not os.path.exists("out")


def test_the_default_bandwidth_is_that_of_the_digits():
    assert purify.DEFAULT_BANDWIDTH == BANDWIDTH


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


@pytest.mark.slow
def test_a_corrupt_file_is_named_and_the_rest_done(folder, capsys):
    (folder / "in/broken.png").write_bytes((folder / "in/a.png").read_bytes()[:-30])
    (folder / "in/text.jpg").write_text("this is no image")
    assert cli.main(["purify", "in", "-o", "out", *FAST]) == 1
    assert written() == ["a.png", "b.png", "sub/a.png"]
    out, err = capsys.readouterr()
    errors = err.splitlines()
    assert len(errors) == 2, err  # and no progress bar, as stderr is no terminal
    assert "in/broken.png" in errors[0]
    assert "in/text.jpg" in errors[1]
    assert out == "purified 3 of 5 images, 2 failed\n"


def test_wrong_size_is_named(capsys):
    save("in/wide.png", pixels(3, 5, 6))
    assert cli.main(["purify", "in", "-o", "out", *FAST]) == 1
    assert "in/wide.png: is 6x5, expected 5x6" in capsys.readouterr().err
    assert written() == ["a.png", "b.png", "sub/a.png"]


def test_jpeg_in_and_out():
    save("jpegs/c.JPG", pixels(5, 6, 5), quality=100)
    assert cli.main(["purify", "jpegs", "-o", "out", *FAST]) == 0
    expected = purified(load("jpegs/c.JPG"), np.load("reference.npz")["images"]).astype(int)
    assert np.abs(load("out/c.JPG").astype(int) - expected).max() <= 3  # lossy, at its best quality


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


def test_a_trained_denoiser_in_place_of_a_reference():
    network = ps.models.EDMUNet((1, 8, 8), (8,), groups=4)
    ps.save_checkpoint("net", network)
    save("digit.png", pixels(3, 8, 8))
    assert cli.main(["purify", "digit.png", "-o", "out", "--denoiser", "net", *FAST[2:]]) == 0
    expected = purified(load("digit.png"), ps.load_checkpoint("net"))
    np.testing.assert_array_equal(load("out/digit.png"), expected)
    save("mnist.png", pixels(3, 28, 28))
    assert cli.main(["purify", "mnist.png", "-o", "out", "--denoiser", "mnist", *FAST[2:]]) == 0
    tuned = {"sigma": 0.5, "radius": 0.3, "step_size": 3.0, "direction": "score"}
    expected = purified(load("mnist.png"), ps.load_pretrained("mnist").denoiser, **tuned)
    np.testing.assert_array_equal(load("out/mnist.png"), expected)


def test_images_that_the_default_denoiser_does_not_take(capsys):
    save("mnist.png", pixels(3, 28, 28))
    assert cli.main(["purify", "mnist.png", "-o", "out"]) == 1
    err = capsys.readouterr().err
    assert "is 28x28, expected 8x8" in err
    assert "the denoiser's size, of the default digits; see --denoiser and --reference" in err
    with open("broken.png", "w") as file:
        file.write("no image")
    for arguments in (["mnist.png", "--denoiser", "digits"], ["broken.png"]):
        assert cli.main(["purify", "-o", "out", *arguments]) == 1
        assert "default" not in capsys.readouterr().err


def test_the_denoiser_digits_is_the_reference_of_that_name():
    save("digit.png", pixels(3, 8, 8))
    for name, option in (("a", "--denoiser"), ("b", "--reference")):
        assert cli.main(["purify", "digit.png", "-o", f"{name}.png", option, "digits", "--steps", "1"]) == 0
    np.testing.assert_array_equal(load("a.png"), load("b.png"))
    assert not np.array_equal(load("a.png"), load("digit.png"))


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (
            ["--denoiser", "nowhere"],
            1,
            "--denoiser: expected digits, mnist, cifar10 or the folder of a checkpoint: nowhere/config.json",
        ),
        (["--denoiser", "classifier"], 1, "--denoiser: classifier must hold a EDMUNet, and is a ConvClassifier"),
        (["--denoiser", "mnist", "--bandwidth", "0.1"], 1, "--bandwidth is for the kernel density of a --reference"),
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


@pytest.mark.slow
@pytest.mark.parametrize(("quiet", "size"), [(True, (24, 80)), (False, (24, 80)), (False, (0, 0)), (False, (0, 80))])
def test_the_progress_bar_is_for_terminals(monkeypatch, quiet, size):
    pty, fcntl, termios = (pytest.importorskip(name) for name in ("pty", "fcntl", "termios"))
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", *size, 0, 0))
    os.set_blocking(master, False)
    with os.fdopen(slave, "w") as terminal:
        monkeypatch.setattr(sys, "stderr", terminal)
        assert cli.main(["purify", "in", "-o", "out", *FAST, *["--quiet"] * quiet]) == 0
        terminal.flush()
        seen = b""
        with contextlib.suppress(BlockingIOError):
            while True:
                seen += os.read(master, 2**16)
    os.close(master)
    assert (b"3/3" in seen) != quiet, seen
