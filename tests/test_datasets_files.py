"""Data sets in ``.npz`` files and in folders, and every way they can be wrong."""

import os
import struct
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from dataset_files import assert_images, random_bytes, save, save_pictures

from pursamere.datasets import load
from pursamere.datasets.npz import read_unlabeled


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """Work in an empty folder, which PURSAMERE_DATA names."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PURSAMERE_DATA", str(tmp_path))
    return tmp_path


@pytest.fixture
def pictures():
    """A folder of that name; the pixels of its files."""
    return save_pictures()


# .npz files.


@pytest.mark.parametrize("channels", [1, 3])
def test_npz_forms_agree(channels):
    pixels, labels = random_bytes(0, 12, 5, 4, channels), np.arange(12) % 3
    first = pixels.transpose(0, 3, 1, 2)
    forms = {
        "last": pixels,
        "wide": first / 255,
        "single": (first / 255).astype(np.float32),
        "swapped": (first / 255).astype(">f4"),
    }
    if channels == 1:
        forms["flat"] = pixels[..., 0]
    for name, images in forms.items():
        np.savez(f"{name}.npz", images=images, labels=labels.astype(np.int32))
        loaded = load(f"{name}.npz")
        assert_images(loaded, first)
        assert (loaded.name, loaded.classes, loaded.labels.tolist()) == (name, ("0", "1", "2"), labels.tolist())
        assert load(Path(f"{name}.npz"), "all").sha256 == loaded.sha256


def test_npz_splits():
    images = {split: random_bytes(seed, 4, 3, 3) for seed, split in enumerate(("train", "validation", "test"))}
    labels = {"train": [0, 1, 2, 4], "validation": [0, 0, 0, 0], "test": [1, 1, 1, 1]}
    arrays = {f"{split}_images": value for split, value in images.items()}
    np.savez("mine.npz", **arrays, **{f"{split}_labels": value for split, value in labels.items()})
    for split, pixels in images.items():
        loaded = load("mine.npz", split)
        assert_images(loaded, pixels[:, None])
        assert loaded.labels.tolist() == labels[split]
        assert loaded.classes == ("0", "1", "2", "3", "4")  # of all splits
    with pytest.raises(ValueError, match="'train', 'validation', 'test', got 'all'"):
        load("mine.npz", "all")


IMAGES = np.zeros((3, 4, 4), np.uint8)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"pictures": IMAGES}, r"bad\.npz: expected arrays 'images' and 'labels', .* found \['pictures'\]"),
        ({"images": IMAGES}, r"expected an array 'labels', found \['images'\]"),
        ({"jpeg": IMAGES, "labels": [0]}, "expected an array 'offsets'"),
        ({"images": IMAGES.astype(np.int64), "labels": [0] * 3}, r"images must be .* got int64 \[3, 4, 4\]"),
        ({"images": IMAGES.astype(float), "labels": [0] * 3}, r"images must be .* got float64 \[3, 4, 4\]"),
        ({"images": IMAGES[:, :, :, None].repeat(2, 3), "labels": [0] * 3}, "1 or 3 channels"),
        ({"images": IMAGES[:0], "labels": np.zeros(0, int)}, r"got uint8 \[0, 4, 4\]"),
        ({"images": np.full((1, 1, 2, 2), 1.01), "labels": [0]}, r"\[0, 1\], got a range of \[1.01, 1.01\]"),
        ({"images": np.full((1, 1, 2, 2), -1e300), "labels": [0]}, r"\[0, 1\], got a range of \[-1e\+300"),
        ({"images": np.full((1, 1, 2, 2), np.nan), "labels": [0]}, r"\[0, 1\], got a range of \[nan, nan\]"),
        ({"images": np.full((1, 1, 2, 2), np.inf), "labels": [0]}, r"\[0, 1\], got a range of \[inf, inf\]"),
        ({"images": IMAGES, "labels": [0, 1]}, "one entry per image, 3, got 2"),
        ({"images": IMAGES, "labels": [0, -1, 1]}, r"labels must be in \[0, 1\], .* got a range of \[-1, 1\]"),
        ({"images": IMAGES, "labels": [0, 1, 2**40]}, "labels must be in .* without an array class_names"),
        ({"images": IMAGES, "labels": np.array([0, 1, 2**64 - 1], np.uint64)}, "labels must be class indices"),
        ({"images": IMAGES, "labels": [0.0, 1.0, 2.0]}, r"labels must be integers \[N\], got float64 \[3\]"),
        ({"images": IMAGES, "labels": [[0], [1], [2]]}, r"labels must be integers \[N\], got int64 \[3, 1\]"),
        ({"images": IMAGES, "labels": np.array([{}] * 3)}, "cannot be read as .npz"),
    ],
)  # fmt: skip
def test_bad_npz_arrays(arrays, message):
    np.savez("bad.npz", **arrays)
    with pytest.raises(ValueError, match=message):
        load("bad.npz")


def test_damaged_npz_files(folder):
    np.savez_compressed("good.npz", images=random_bytes(0, 50, 9, 9), labels=[0] * 50)
    content = (folder / "good.npz").read_bytes()
    np.save("array.npy", IMAGES)
    header = np.lib.format.magic(1, 0) + struct.pack("<H", 118)
    header += b"{'descr': '|u1', 'fortran_order': False, 'shape': (99999999, 99999, 99999)}".ljust(117) + b"\n"
    damaged = {
        "text": b"text", "empty": b"", "short": content[:-100], "middle": content[:1000] + bytes(200) + content[1200:],
        "array": (folder / "array.npy").read_bytes(),
    }  # fmt: skip
    for name, value in damaged.items():
        (folder / f"{name}.npz").write_bytes(value)
    with zipfile.ZipFile("huge.npz", "w") as archive:
        archive.writestr("images.npy", header)
        with archive.open("labels.npy", "w") as stream:
            np.save(stream, np.zeros(3, int))
    for name in [*damaged, "huge"]:
        with pytest.raises(ValueError, match=rf"data set '{name}.npz': .*{name}\.npz cannot be read as \.npz"):
            load(f"{name}.npz")


def test_loading_never_runs_code(folder):
    class Bomb:
        def __reduce__(self):
            return (open, (str(folder / "exploded"), "w"))

    np.savez("bomb.npz", images=IMAGES, labels=np.array([Bomb()], dtype=object))
    (folder / "exploded").unlink(missing_ok=True)
    with pytest.raises(ValueError, match="cannot be read"):
        load("bomb.npz")
    assert not (folder / "exploded").exists()


# Image folders.


def test_folder_of_classes(pictures, folder):
    (folder / "pictures/.hidden").mkdir()
    for loaded in (load("pictures"), load(folder / "pictures", "all"), load("pictures/../pictures/")):
        assert (loaded.name, loaded.classes, loaded.labels.tolist()) == ("pictures", ("a", "b"), [0, 0, 1])
        assert_images(loaded, np.stack(pictures)[:, None])
    with pytest.raises(ValueError, match="'test', 'all', got 'train'"):
        load("pictures", "train")


def test_folder_with_splits(pictures):
    for split, label in (("train", "a"), ("train", "c"), ("test", "b")):
        save(f"parted/{split}/{label}/x.png", pictures[0])
    save("parted/train/a/y.png", np.repeat(pictures[1][..., None], 3, 2))
    train, test = load("parted", "train"), load("parted")
    assert train.classes == test.classes == ("a", "b", "c")
    assert train.labels.tolist() == [0, 0, 2]
    assert test.labels.tolist() == [1]
    assert_images(test, np.repeat(pictures[0][None, None], 3, 1))  # in color as one of the others is
    with pytest.raises(ValueError, match="split must be one of 'test', 'train', got 'validation'"):
        load("parted", "validation")


def test_jpeg_and_sixteen_bits(folder):
    deep = (random_bytes(0, 6, 5).astype(np.uint16) << 8) + 37
    save("deep/a/1.png", deep)
    torch.testing.assert_close(load("deep").images[0, 0], torch.from_numpy(deep / 65535).float(), rtol=0, atol=1e-7)
    save("lossy/a/1.JPG", np.full((6, 5, 3), [10, 100, 200], np.uint8), quality=95)
    shown = load("lossy").images[0]
    torch.testing.assert_close(shown.amax((1, 2)) * 255, torch.tensor([10.0, 100.0, 200.0]), rtol=0, atol=3)


def test_one_of_another_size_is_named(pictures):
    save("pictures/b/wide.png", random_bytes(0, 5, 6))
    with pytest.raises(ValueError, match=r"pictures/b/wide\.png is 6x5, expected 5x6 like the first"):
        load("pictures")


@pytest.mark.parametrize("content", [b"", b"text", "cut"])
def test_a_damaged_image_is_named(pictures, folder, content):
    whole = (folder / "pictures/a/1.png").read_bytes()
    (folder / "pictures/b/broken.png").write_bytes(whole[:-30] if content == "cut" else content)
    with pytest.raises(ValueError, match=r"data set 'pictures': pictures/b/broken\.png cannot be"):
        load("pictures")


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], "odd: expected one folder of image files per class, found no folder"),
        (["a.png"], r"odd/a\.png: expected all images inside class folders"),
        (["a/1.png", "b.png"], r"odd/b\.png: expected all images inside class folders"),
        (["a/1.png", "b/"], r"odd/b: expected image files \(PNG, .*\), found none"),
        (["a/1.png", "a/b/1.png"], "odd/a: expected the images of one class, found the folder b"),
        (["train/a/1.png", "val/a/1.png"], "found train beside val"),
        (["train/1.png"], r"odd/train/1\.png: expected all images inside class folders"),
        (["train/a/1.png", "test/"], "odd/test: expected one folder of image files per class"),
    ],
)
def test_folders_that_would_be_misread(folder, names, message):
    (folder / "odd").mkdir()
    for name in names:
        if name.endswith("/"):
            (folder / "odd" / name).mkdir()
        else:
            save(f"odd/{name}", random_bytes(0, 6, 5))
    with pytest.raises(ValueError, match=message):
        load("odd")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_named_pipes_do_not_block(pictures):
    os.mkfifo("pictures/b/pipe.png")
    with pytest.raises(ValueError, match=r"pipe\.png is not a regular file"):
        load("pictures")
    for name in ("pipe.npz", "mnist.npz", "cifar10_jpeg.npz", "t10k-images-idx3-ubyte", "test_batch.bin"):
        os.mkfifo(name)
    for source in ("pipe.npz", "mnist", "cifar10", "cifar10_jpeg"):
        with pytest.raises(ValueError, match="data set"):
            load(source)


# What belongs to no split.


def test_arrays_that_are_not_used_are_named():
    arrays = {"train_images": IMAGES, "train_labels": [0, 1, 2], "val_images": IMAGES, "val_labels": [0, 1, 2]}
    np.savez("parted.npz", **arrays, classes=["x", "y", "z"])
    with pytest.warns(UserWarning, match=r"^data set 'parted.npz': not used: 'val_images', 'val_labels', 'classes'$"):
        assert len(load("parted.npz", "train")) == 3
    np.savez("both.npz", **arrays, images=IMAGES, labels=[0, 0, 0], jpeg=IMAGES)
    unused = "'train_images', 'train_labels', 'val_images', 'val_labels', 'jpeg'"
    with pytest.warns(UserWarning, match=f"^data set 'both.npz': not used: {unused}$") as caught:
        load("both.npz")
    assert [warning.filename for warning in caught] == [__file__]
    with pytest.warns(UserWarning, match=r"^data set 'parted.npz': not used: 'val_images', 'classes'$"):
        read_unlabeled(Path("parted.npz"))  # labels have no use there


def test_files_that_are_not_used_are_named(pictures, folder):
    for label in ("train/a", "test/b"):
        save(f"parted/{label}/x.png", pictures[0])
    save("parted/cover.png", pictures[0])
    for name in ("parted/train/labels.csv", "parted/train/a/x.xml", "parted/.git"):
        (folder / name).write_text("")
    message = "^data set 'parted': not used: 'cover.png', 'train/labels.csv', 'train/a/x.xml'$"
    with pytest.warns(UserWarning, match=message):
        assert len(load("parted", "train")) == 1


def test_nothing_is_said_where_everything_is_used(pictures):
    np.savez("whole.npz", images=IMAGES, labels=[0, 1, 1], class_names=["a", "b"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load("whole.npz")
        load("pictures")
