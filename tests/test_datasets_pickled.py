"""CIFAR-10 as torchvision leaves it: pickles that Python 2 wrote, in which nothing may be run."""

import os
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
from dataset_files import assert_images, labels_of, random_bytes

from pursamere.datasets import load
from pursamere.datasets.pickled import read_pickle


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """Work in an empty folder, which PURSAMERE_DATA names."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PURSAMERE_DATA", str(tmp_path))
    monkeypatch.setattr("pursamere.datasets.standard.VALIDATION_SIZE", 30)
    return tmp_path


def text(value: bytes) -> bytes:
    """A string of Python 2."""
    return b"U" + bytes([len(value)]) + value if len(value) < 256 else b"T" + struct.pack("<i", len(value)) + value


def array(pixels: np.ndarray, kind: bytes = b"u1") -> bytes:
    """An array as NumPy's ``__reduce__`` of that time describes it."""
    count, width = (b"J" + struct.pack("<i", size) for size in pixels.shape)
    dtype = b"cnumpy\ndtype\n" + text(kind) + b"K\x00K\x01\x87R(K\x03" + text(b"|") + b"NNN"
    dtype += (b"J" + struct.pack("<i", -1)) * 2 + b"K\x00tb"
    made = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85" + text(b"b") + b"\x87R"
    return made + b"(K\x01" + count + width + b"\x86" + dtype + b"\x89" + text(pixels.tobytes()) + b"tb"


def batch_of(data: bytes, labels: list[int]) -> bytes:
    numbers = b"](" + b"".join(b"K" + bytes([label]) for label in labels) + b"e"
    names = text(b"batch_label") + text(b"training batch 1 of 5") + text(b"filenames") + b"](" + text(b"a.png") + b"e"
    return b"\x80\x02}q\x01(" + names + text(b"labels") + numbers + text(b"data") + data + b"u."


def write_batch(name: str, seed: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    pixels, labels = random_bytes(seed, count, 3, 32, 32), labels_of(count)
    os.makedirs(os.path.dirname(name) or ".", exist_ok=True)
    Path(name).write_bytes(batch_of(array(pixels.reshape(count, -1)), labels.tolist()))
    return pixels, labels


def write_all(where: str = "cifar-10-batches-py/"):
    train = [write_batch(f"{where}data_batch_{number}", number, 10 + number) for number in range(1, 6)]
    return train, write_batch(f"{where}test_batch", 9, 20)


@pytest.mark.parametrize("where", ["", "cifar-10-batches-py/"])
def test_cifar10_from_pickles(where):
    train, (pixels, labels) = write_all(where)
    with open(f"{where}test_batch", "rb") as stream:  # as torchvision reads it, to see that these are such files
        known = pickle.load(stream, encoding="latin1")
    assert known["labels"] == labels.tolist()
    np.testing.assert_array_equal(known["data"].reshape(-1, 3, 32, 32), pixels)
    test, both = load("cifar10"), load("cifar10", "train+validation")
    assert (test.name, test.classes[3], test.labels.tolist()) == ("cifar10", "cat", labels.tolist())
    assert_images(test, pixels)
    assert_images(both, np.concatenate([images for images, _ in train]))
    assert both.labels.tolist() == np.concatenate([numbers for _, numbers in train]).tolist()


def test_the_binary_version_is_the_same_data_set_and_comes_first():
    _, (pixels, labels) = write_all()
    expected = load("cifar10").sha256
    records = [bytes([label]) + image.tobytes() for image, label in zip(pixels, labels, strict=True)]
    Path("test_batch.bin").write_bytes(b"".join(records))
    Path("cifar-10-batches-py/test_batch").write_bytes(b"")
    assert load("cifar10").sha256 == expected


@pytest.mark.parametrize("protocol", [3, 4])
def test_pickles_of_python_3(protocol):
    data = {"data": random_bytes(0, 3, 4), b"labels": [1, True, None, "x" * 300]}
    Path("new").write_bytes(pickle.dumps(data, protocol=protocol))
    found = read_pickle(Path("new"))
    np.testing.assert_array_equal(found["data"], data["data"])
    assert found["labels"] == data[b"labels"]


class Bomb:
    """Writes a file when it is unpickled."""

    def __reduce__(self):
        return (open, ("exploded", "w"))


SMALL = np.zeros((2, 3072), np.uint8)
ODD_SHAPE = array(SMALL).replace(b"J\x00\x0c\x00\x00\x86", text(b"ab") + b"\x86")  # a shape [2, "ab"]
EVIL = {
    "reduce": pickle.dumps({"data": Bomb(), "labels": [0]}, protocol=2),
    "newer": pickle.dumps({"data": Bomb(), "labels": [0]}, protocol=4),
    "textual": pickle.dumps(Bomb(), protocol=0),
    "name": b"\x80\x02cposix\nsystem\n" + text(b"touch exploded") + b"\x85R.",
    "stack": b"\x80\x04\x8c\x08builtins\x8c\x04open\x93\x8c\x08exploded\x8c\x01w\x86R.",
    "numpy": b"\x80\x02cnumpy\nload\n" + text(b"test_batch") + b"\x85R.",
    "old instance": b"(S'exploded'\nS'w'\niio\nopen\n.",
    "object": b"(cio\nopen\nS'exploded'\nS'w'\no.",
    "attribute": b"\x80\x04\x8c\x05numpy\x8c\x10ndarray.__init__\x93.",
    "of the stand-in": b"\x80\x02cnumpy\nndarray\n}" + text(b"x") + b"K\x01sb.",
    "extension": b"\x80\x02\x82\x01.",
    "persistent": b"Pexploded\n.",
    "memory": b"\x80\x02]r\xff\xff\xff\xff.",
    "bytearray": b"\x80\x05\x96" + struct.pack("<Q", 2**40) + b".",
    "long": b"\x80\x02T" + struct.pack("<i", 2**31 - 1) + b".",
    "deep key": b"\x80\x02})" + b"\x85" * 100_000 + b"K\x01s.",  # its hash takes more stack than there is
    "doubled key": b"\x80\x02})q\x00" + b"h\x00h\x00\x86q\x00" * 60 + b"K\x01s.",  # or 2^60 steps
    "doubled keys": b"\x80\x02}()q\x00" + b"h\x00h\x00\x86q\x00" * 60 + b"K\x01u.",
    "wide key": b"\x80\x02}()q\x00" + (b"(" + b"h\x00" * 1000 + b"tq\x00") * 7 + b"K\x01u.",
    "long name": b"\x80\x04)q\x00" + b"h\x00h\x00\x86q\x00" * 60 + b"\x8c\x04open\x93.",
    # The product of a shape with text in it is text, as long as the other numbers say.
    "shape": b"\x80\x02}" + text(b"data") + ODD_SHAPE + b"s.",
    "state of a class": b"\x80\x02}" + text(b"data") + b"cnumpy\nndarray\n}bs.",
    "deep list": b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b".",
    "many instructions": b"\x80\x02" + b"N" * 1_000_001 + b".",
}


REASONS = {  # why they are refused, before anything else could go wrong
    "reduce": "found the name io.open",
    "numpy": "found the name numpy.load",
    "extension": "found the instruction EXT1",
    "object": "found the instruction STRING",
    "memory": "its memo has the index 4294967295",
    "bytearray": "expected 1099511627776 bytes",
    "deep key": "dictionaries with text keys",
    "doubled key": "dictionaries with text keys",
    "doubled keys": "dictionaries with text keys",
    "wide key": "dictionaries with text keys",
    "shape": "array shapes of at most 8 integers",
    "many instructions": "more than 1000000 instructions",
}


@pytest.mark.parametrize("kind", EVIL)
def test_nothing_in_a_pickle_is_run(kind):
    Path("test_batch").write_bytes(EVIL[kind])
    expected = "data set 'cifar10': .*/test_batch cannot be read as a pickle of arrays: "
    with pytest.raises(ValueError, match=f"{expected}.*({REASONS.get(kind, '')})"):
        load("cifar10")
    assert os.listdir() == ["test_batch"]


def test_such_pickles_would_run():
    for kind in ("textual", "stack", "old instance", "object"):
        pickle.loads(EVIL[kind], encoding="latin1").close()
        os.remove("exploded")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "cannot be read as a pickle"),
        (b"text", "cannot be read as a pickle"),
        (batch_of(array(SMALL), [0, 1])[:-50], "cannot be read as a pickle"),
        (b"\x80\x02].", "expected a dictionary"),
        (batch_of(array(SMALL, b"O8"), [0, 1]), "expected row-major arrays of unsigned bytes"),
        (batch_of(array(SMALL).replace(b"J\x00\x0c\x00\x00", b"J\x00\x0d\x00\x00"), [0, 1]), "has the wrong shape"),
        (batch_of(array(SMALL.reshape(-1, 1024)), [0, 1]), r"must have an array 'data', uint8 \[N, 3072\]"),
        (batch_of(b"N", [0, 1]), r"must have an array 'data', uint8 \[N, 3072\]"),
        (batch_of(array(SMALL), [0]), "as many labels as images, 2, got 1"),
        (batch_of(array(SMALL), [0, 10]), r"a list 'labels' of integers in \[0, 9\]"),
        (batch_of(array(SMALL), [0, 1]).replace(b"labels", b"labelx"), r"a list 'labels' of integers in \[0, 9\]"),
    ],
)
def test_damaged_pickles(content, message):
    Path("test_batch").write_bytes(content)
    with pytest.raises(ValueError, match=f"data set 'cifar10': .*/test_batch .*{message}"):
        load("cifar10")
