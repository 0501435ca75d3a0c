"""The reference images of ``pursamere purify``."""

import os

import numpy as np
import pytest
import torch
from purify_case import load, pixels, purify_folder, save  # noqa: F401

from pursamere import cli
from pursamere.cli.errors import CommandError
from pursamere.cli.reference import load_reference


def test_digits_are_the_default_reference():
    from sklearn.datasets import load_digits

    digits = load_digits().images
    reference = load_reference("digits")
    assert reference.shape == (1797, 1, 8, 8)
    np.testing.assert_allclose(reference[:, 0].numpy(), digits / 16, rtol=0, atol=1e-7)
    save("digit.png", (digits[0] * 255 / 16).astype(np.uint8))
    assert cli.main(["purify", "digit.png", "-o", "out", "--steps", "1"]) == 0
    assert load("out/digit.png").shape == (8, 8)


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
    assert "PURSAMERE_DATA must name a folder with the data set's files: mnist.npz or" in capsys.readouterr().err
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
