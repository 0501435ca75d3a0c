"""MNIST and CIFAR-10 from the files that a folder may hold, and every way they can be damaged."""

import gzip
import io
import os
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from dataset_files import assert_images, labels_of, random_bytes, write_idx
from PIL import Image

from pursamere.datasets import Dataset, load

DATA = os.environ.get("PURSAMERE_DATA")  # before the fixture takes it away
RECORD = 3073


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """Work in an empty folder, which PURSAMERE_DATA names."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PURSAMERE_DATA", str(tmp_path))
    return tmp_path


# The standard files of MNIST.


@pytest.mark.parametrize("form", ["npz", "{}", "{}.gz", "MNIST/raw/{}", "MNIST/raw/{}.gz"])
def test_mnist(form):
    train, test = random_bytes(0, 5100, 4, 3), random_bytes(1, 30, 4, 3)
    if form == "npz":
        arrays = {"train_images": train, "train_labels": labels_of(5100), "test_images": test}
        np.savez("mnist.npz", **arrays, test_labels=labels_of(30))
    else:
        for prefix, images in (("train", train), ("t10k", test)):
            write_idx(form.format(f"{prefix}-images-idx3-ubyte"), images)
            write_idx(form.format(f"{prefix}-labels-idx1-ubyte"), labels_of(len(images)))
    loaded = load("mnist")
    assert (loaded.name, loaded.classes) == ("mnist", tuple("0123456789"))
    assert_images(loaded, test[:, None])
    assert loaded.labels.tolist() == labels_of(30).tolist()
    whole = load("mnist", "train+validation")
    assert_images(whole, train[:, None])
    assert whole.labels.tolist() == labels_of(5100).tolist()

    rows = {tuple(image): row for row, image in enumerate(train.reshape(5100, -1).tolist())}
    held_out = {}
    for split, count in (("train", 100), ("validation", 5000)):
        part = load("mnist", split)
        found = [rows[tuple(image)] for image in part.images.mul(255).round().int().flatten(1).tolist()]
        assert len(found) == count
        assert found == sorted(found)
        assert part.labels.tolist() == labels_of(5100)[found].tolist()
        held_out[split] = set(found)
    assert not held_out["train"] & held_out["validation"]
    # It must never move: what was chosen on the validation images would have been trained on.
    assert sorted(held_out["train"])[:8] == [7, 23, 52, 80, 161, 195, 227, 317]


def test_npz_comes_before_the_standard_files():
    write_idx("t10k-images-idx3-ubyte", random_bytes(0, 3, 4, 4))
    np.savez("mnist.npz", test_images=random_bytes(1, 3, 4, 4), test_labels=labels_of(3))
    assert_images(load("mnist"), random_bytes(1, 3, 4, 4)[:, None])
    with pytest.raises(ValueError, match="split must be one of 'test', got 'train'"):
        load("mnist", "train")


@pytest.mark.parametrize("end", ["", ".gz"])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\0\0\x08", "header of 16 bytes, got 3"),
        (struct.pack(">4I", 0x801, 3, 4, 4) + bytes(48), "magic number 0x00000803, got 0x00000801"),
        (struct.pack(">4I", 0x803, 3, 4, 4) + bytes(47), r"\[3, 4, 4\], 48 bytes"),
        (struct.pack(">4I", 0x803, 3, 4, 4) + bytes(49), r"\[3, 4, 4\], 48 bytes"),
        (struct.pack(">4I", 0x803, 2**32 - 1, 2**32 - 1, 2**32 - 1), "bytes, but its length implies"),
        (struct.pack(">4I", 0x803, 2**20, 2**10, 2**10), "bytes, but its length implies"),
        (struct.pack(">4I", 0x803, 0, 4, 4), "must hold images"),
    ],
)
def test_damaged_idx_files(end, content, message):
    with gzip.open("t10k-images-idx3-ubyte.gz", "wb") if end else open("t10k-images-idx3-ubyte", "wb") as stream:
        stream.write(content)
    write_idx("t10k-labels-idx1-ubyte", labels_of(3))
    with pytest.raises(ValueError, match=message):
        load("mnist")


@pytest.mark.parametrize(
    "damage", [lambda content: content[:-12], lambda content: content[:40] + b"\xff" * 9 + content[49:]]
)
def test_a_damaged_gzip_file_is_named(folder, damage):
    write_idx("t10k-images-idx3-ubyte.gz", random_bytes(0, 30, 4, 4))
    write_idx("t10k-labels-idx1-ubyte", labels_of(30))
    load("mnist")
    path = folder / "t10k-images-idx3-ubyte.gz"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=r"t10k-images-idx3-ubyte\.gz cannot be read as IDX"):
        load("mnist")


@pytest.mark.parametrize(
    ("labels", "message"), [(labels_of(4), "one entry per image, 3, got 4"), ([1, 10, 2], r"in \[0, 9\]")]
)
def test_labels_must_fit(labels, message):
    write_idx("t10k-images-idx3-ubyte", random_bytes(0, 3, 4, 4))
    write_idx("t10k-labels-idx1-ubyte", np.array(labels, np.uint8))
    with pytest.raises(ValueError, match=message):
        load("mnist")


@pytest.mark.parametrize(
    ("images", "labels", "message"), [(5000, 5000, "more than 5000"), (5100, 5099, "5100 images and 5099 labels")]
)
def test_the_training_set_must_have_more_than_the_validation_images(images, labels, message):
    write_idx("train-images-idx3-ubyte", random_bytes(0, images, 2, 2))
    write_idx("train-labels-idx1-ubyte", labels_of(labels))
    for split in ("train", "validation"):
        with pytest.raises(ValueError, match=message):
            load("mnist", split)


# CIFAR-10.


def write_batch(name: str, seed: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    pixels, labels = random_bytes(seed, count, 3, 32, 32), labels_of(count)
    os.makedirs(os.path.dirname(name) or ".", exist_ok=True)
    with open(name, "wb") as stream:
        for image, label in zip(pixels, labels, strict=True):
            stream.write(struct.pack("B", label) + b"".join(plane.tobytes() for plane in image))
    return pixels, labels


@pytest.mark.parametrize("where", ["", "cifar-10-batches-bin/"])
def test_cifar10_from_binary_files(where):
    batches = [write_batch(f"{where}data_batch_{number}.bin", number, 10 + number) for number in range(1, 6)]
    pixels, labels = write_batch(f"{where}test_batch.bin", 9, 20)
    test, train = load("cifar10"), load("cifar10", "train+validation")
    assert test.name == "cifar10"
    assert (test.classes[0], test.classes[3], test.classes[9]) == ("airplane", "cat", "truck")
    assert_images(test, pixels)
    assert test.labels.tolist() == labels.tolist()
    assert_images(train, np.concatenate([batch for batch, _ in batches]))
    assert train.labels.tolist() == np.concatenate([names for _, names in batches]).tolist()


@pytest.mark.parametrize("size", [0, RECORD - 1, RECORD + 1])
def test_damaged_binary_files(size):
    Path("test_batch.bin").write_bytes(bytes(size))
    with pytest.raises(ValueError, match=rf"test_batch\.bin must be records of 3073 bytes, got {size}"):
        load("cifar10")


def test_a_missing_batch_is_named():
    for number in (1, 2, 4, 5):
        write_batch(f"data_batch_{number}.bin", number, 3)
    with pytest.raises(ValueError, match=r"neither cifar10_jpeg\.npz nor data_batch_3\.bin nor cifar-10-batches-bin/"):
        load("cifar10", "train+validation")


def jpegs(pixels: np.ndarray) -> list[bytes]:
    files = []
    for image in pixels:
        stream = io.BytesIO()
        Image.fromarray(image).save(stream, format="JPEG", quality=75)
        files.append(stream.getvalue())
    return files


def save_jpegs(files: list[bytes], **changes) -> None:
    arrays = {
        "test_jpeg": np.frombuffer(b"".join(files), np.uint8),
        "test_offsets": np.cumsum([0, *map(len, files)]),
        "test_labels": labels_of(len(files)),
        "class_names": np.array([f"class {number}" for number in range(10)]),
    }
    np.savez("cifar10_jpeg.npz", **{**arrays, **changes})


def test_cifar10_from_jpeg_says_so():
    files = jpegs(random_bytes(0, 6, 8, 8, 3))
    save_jpegs(files)
    write_batch("test_batch.bin", 1, 3)
    expected = np.stack([np.asarray(Image.open(io.BytesIO(file))) for file in files]).transpose(0, 3, 1, 2)
    for source in ("cifar10", "cifar10_jpeg", "cifar10_jpeg.npz"):
        loaded = load(source)
        assert loaded.name == "cifar10_jpeg"
        assert loaded.classes[9] == "class 9"
        assert_images(loaded, expected)
        assert loaded.labels.tolist() == labels_of(6).tolist()


def test_cifar10_jpeg_is_not_taken_from_the_binary_files():
    write_batch("test_batch.bin", 1, 3)
    with pytest.raises(ValueError, match=r"cifar10_jpeg\.npz"):
        load("cifar10_jpeg")


FILES = jpegs(random_bytes(0, 3, 8, 8, 3))
OFFSETS = np.cumsum([0, *map(len, FILES)])


@pytest.mark.parametrize(
    ("files", "changes", "message"),
    [
        (FILES, {"test_offsets": OFFSETS + 1}, "test_offsets must be increasing integers in"),
        (FILES, {"test_offsets": OFFSETS - 1}, "test_offsets must be increasing integers in"),
        (FILES, {"test_offsets": OFFSETS[[0, 2, 1, 3]]}, "test_offsets must be increasing integers in"),
        (FILES, {"test_offsets": np.array([0, 2**63 - 1, -(2**63), 5])}, "test_offsets must be increasing integers in"),
        (FILES, {"test_offsets": np.array([0, 2**64 - 1], np.uint64)}, "test_offsets"),
        (FILES, {"test_offsets": np.array([0])}, "at least two"),
        (FILES, {"test_offsets": OFFSETS.astype(float)}, "test_offsets must be integers"),
        (FILES, {"test_jpeg": np.zeros((9, 9), np.uint8)}, "test_jpeg must be uint8"),
        (FILES, {"test_offsets": OFFSETS[:3]}, "one entry per image, 2, got 3"),
        ([FILES[0], FILES[1][:-200], FILES[2]], {}, "file 1 cannot be decoded"),
        ([FILES[0], b"no JPEG", FILES[2]], {}, "file 1 cannot be decoded"),
        ([FILES[0], *jpegs(random_bytes(0, 1, 8, 9, 3))], {}, r"file 1 must be \[8, 8, 3\] .* got \[8, 9, 3\]"),
        ([FILES[0], *jpegs(random_bytes(0, 1, 8, 8))], {}, r"file 1 must be \[8, 8, 3\] .* got \[8, 8\]"),
        (FILES, {"class_names": np.arange(10)}, "class_names must be text"),
        (FILES, {"class_names": np.array(["only"])}, r"labels must be in \[0, 0\]"),
    ],
)  # fmt: skip
def test_damaged_jpeg_archives(files, changes, message):
    save_jpegs(files, **changes)
    with pytest.raises(ValueError, match=message):
        load("cifar10")


def test_a_png_in_a_jpeg_archive_is_refused():
    stream = io.BytesIO()
    Image.fromarray(random_bytes(0, 8, 8, 3)).save(stream, format="PNG")
    save_jpegs([stream.getvalue()])
    with pytest.raises(ValueError, match="file 0 cannot be decoded"):
        load("cifar10")


def test_pillows_limit_on_pixels_is_left_on():
    stream = io.BytesIO()
    Image.new("L", (8, 8)).save(stream, format="JPEG")
    content = bytearray(stream.getvalue())
    place = content.index(b"\xff\xc0") + 5
    content[place : place + 4] = struct.pack(">2H", 60000, 60000)
    save_jpegs([bytes(content)])
    with pytest.raises(ValueError, match="decompression bomb"):
        load("cifar10")


# The real files.

MNIST_TEST_COUNTS = [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]  # of the published test set


@pytest.fixture
def real(monkeypatch):
    """Give PURSAMERE_DATA back, and skip a data set that it does not hold."""
    if not DATA:
        pytest.skip("PURSAMERE_DATA is not set")
    monkeypatch.setenv("PURSAMERE_DATA", DATA)

    def load_or_skip(source: str, split: str) -> Dataset:
        try:
            return load(source, split)
        except ValueError as error:
            if "found neither" not in str(error):
                raise
            pytest.skip(str(error))

    return load_or_skip


def test_real_mnist(real):
    test = real("mnist", "test")
    assert test.images.shape == (10000, 1, 28, 28)
    assert test.labels.bincount().tolist() == MNIST_TEST_COUNTS
    assert test.labels[:5].tolist() == [7, 2, 1, 0, 4]
    assert test.images.mean() == pytest.approx(0.1325, abs=1e-4)
    assert [len(real("mnist", split)) for split in ("train", "validation", "train+validation")] == [55000, 5000, 60000]


def test_real_cifar10(real):
    test = real("cifar10", "test")
    assert test.images.shape == (10000, 3, 32, 32)
    assert test.labels.bincount().tolist() == [1000] * 10
    assert test.classes == ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
    expected = torch.tensor([0.494, 0.485, 0.450])  # of the original test images
    torch.testing.assert_close(test.images.mean((0, 2, 3)), expected, rtol=0, atol=2e-3)
