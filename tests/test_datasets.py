"""What ``load`` is asked for and what it returns, and the digits."""

import hashlib
import os
import struct
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from dataset_files import labels_of, random_bytes, save_pictures, write_idx

import pursamere as ps
from pursamere.datasets import Dataset, load
from pursamere.datasets.loading import representatives


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


# The digits.


def test_digits_are_scikit_learns_in_three_disjoint_parts():
    from sklearn.datasets import load_digits

    bunch = load_digits()
    parts = [load("digits", split) for split in ("train", "validation", "test")]
    assert [len(part) for part in parts] == [1029, 256, 512]
    found = [torch.cat([part.images.flatten(1), part.labels[:, None]], 1) for part in parts]
    expected = np.concatenate([bunch.data / 16, bunch.target[:, None]], 1)
    assert sorted(torch.cat(found).tolist()) == sorted(expected.tolist())
    for part in parts:
        assert (part.name, part.classes, part.labels.dtype) == ("digits", tuple("0123456789"), torch.int64)
        assert part.images.shape[1:] == (1, 8, 8)
    both = load("digits", "train+validation")
    assert torch.equal(both.images, torch.cat([parts[0].images, parts[1].images]))
    assert torch.equal(both.labels, torch.cat([parts[0].labels, parts[1].labels]))
    whole = load("digits", "all")
    assert torch.equal(whole.images[:, 0], torch.from_numpy(bunch.images / 16).float())
    assert whole.labels.tolist() == bunch.target.tolist()


def test_the_digits_split_does_not_move():
    """The defaults of the library were chosen on the validation part."""
    first = {split: load("digits", split).labels[:12].tolist() for split in ("train", "validation", "test")}
    assert first["train"] == [3, 7, 6, 0, 7, 0, 4, 7, 9, 7, 0, 2]
    assert first["validation"] == [5, 1, 6, 5, 5, 3, 9, 6, 2, 7, 4, 0]
    assert first["test"] == [6, 7, 0, 8, 6, 6, 9, 1, 0, 7, 4, 5]


# What is asked for.


def test_a_word_comes_before_a_path_of_that_name(pictures):
    os.rename("pictures", "digits")
    assert len(load("digits")) == 512
    for source in ("./digits", Path("digits")):
        assert load(source).classes == ("a", "b")


@pytest.mark.parametrize("source", ["mnist", "cifar10", "cifar10_jpeg"])
def test_the_data_folder_is_needed(source, monkeypatch):
    monkeypatch.delenv("PURSAMERE_DATA")
    with pytest.raises(ValueError, match=f"data set '{source}': PURSAMERE_DATA must name .*cifar10_jpeg.npz"):
        load(source)
    monkeypatch.setenv("PURSAMERE_DATA", "nowhere")
    with pytest.raises(ValueError, match="PURSAMERE_DATA must be a folder, got nowhere"):
        load(source)


def test_what_was_looked_for_is_listed():
    name = "t10k-images-idx3-ubyte"
    with pytest.raises(ValueError, match=rf"neither mnist\.npz nor {name} nor {name}\.gz nor MNIST/raw/{name}"):
        load("mnist")
    with pytest.raises(
        ValueError, match=r"neither cifar10_jpeg\.npz nor test_batch\.bin nor cifar-10-batches-bin/test"
    ):
        load("cifar10")


@pytest.mark.parametrize("split", ["", "valid", "Test", "all "])
def test_unknown_splits(split):
    with pytest.raises(ValueError, match=r"'digits': split must be one of .*'train', 'validation', .*, got"):
        load("digits", split)


def test_unknown_sources(folder):
    with pytest.raises(ValueError, match=r"expected 'digits', 'mnist', .* and nowhere does not exist"):
        load("nowhere")
    (folder / "notes.txt").write_text("text")
    with pytest.raises(ValueError, match=r"notes\.txt is neither"):
        load("notes.txt")
    with pytest.raises(TypeError, match="source must be a str or a Path, got int"):
        load(3)


# What is returned.


def dataset(count: int = 6, classes: int = 4) -> Dataset:
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(count, 1, 2, 3, generator=generator)
    return Dataset("some", images, torch.arange(count) % classes, tuple("abcdefgh"[:classes]))


def test_what_print_shows_is_short():
    assert repr(dataset(count=5)) == "Dataset('some', images=[5, 1, 2, 3], classes=['a', 'b', 'c', 'd'])"


@pytest.mark.parametrize("rows", [[4, 0, 4], torch.tensor([4, 0, 4]), np.array([4, 0, 4]), (4, 0, 4), []])
def test_subset(rows):
    whole = dataset()
    part = whole.subset(rows)
    assert len(part) == len(rows)
    assert (part.name, part.classes) == ("some", tuple("abcd"))
    for place, row in enumerate(rows):
        assert torch.equal(part.images[place], whole.images[row])
        assert part.labels[place] == whole.labels[row]


@pytest.mark.parametrize("rows", [[-1], [6], [[0]], [0.0], [True, False, True, True, False, True], 3])
def test_bad_rows(rows):
    with pytest.raises(ValueError, match="rows must be"):
        dataset().subset(rows)


def test_head():
    assert torch.equal(dataset().head(2).images, dataset().images[:2])
    assert dataset().head(6).labels.tolist() == [0, 1, 2, 3, 0, 1]
    for count in (0, 7, -1):
        with pytest.raises(ValueError, match=r"count must be in \[1, 6\]"):
            dataset().head(count)


# Which images stand for all.


def sorted_by_class(*sizes: int) -> Dataset:
    """As folders are: so many images of class "a", then of "b" and so on."""
    labels = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    return Dataset("some", torch.rand(len(labels), 1, 2, 2), labels, tuple("abcdefgh"[: len(sizes)]))


@pytest.mark.parametrize("sizes", [(5, 5, 5), (40, 1, 7, 0, 12), (3,)])
def test_every_beginning_of_a_balanced_choice_is_balanced(sizes):
    whole = sorted_by_class(*sizes)
    rows = whole.balanced_rows(len(whole))
    assert sorted(rows) == list(range(len(whole)))
    for count in range(1, len(whole) + 1):
        assert whole.balanced_rows(count) == rows[:count]
        found = Counter(whole.labels[rows[:count]].tolist())
        most = max(found.values())
        for label, size in enumerate(sizes):  # no class is more than one behind, unless all of it is there
            assert found[label] >= min(size, most - 1)
    part = whole.balanced(2 if len(whole) > 2 else 1)
    assert torch.equal(part.images, whole.images[rows[: len(part)]])
    assert part.classes == whole.classes


BALANCED = [8, 4, 9, 2, 6, 5, 7, 0, 11, 3, 10, 1]


def test_a_balanced_choice_is_random_within_classes_and_the_same_everywhere():
    whole = sorted_by_class(6, 6)
    # Pinned: samples are published by their number.
    assert whole.balanced_rows(12) == BALANCED
    assert sorted(BALANCED[:6]) != [0, 1, 2, 6, 7, 8]
    # Whatever the classes are called and numbered.
    assert whole.relabel(("c", "b", "a")).balanced_rows(12) == BALANCED
    for count in (0, 13):
        with pytest.raises(ValueError, match=r"count must be in \[1, 12\]"):
            whole.balanced_rows(count)


def test_built_in_sets_keep_their_first_images(pictures):
    digits = load("digits")
    assert torch.equal(representatives(digits, "digits", 5).images, digits.images[:5])
    # A folder of that name is none of them.
    folder = sorted_by_class(9, 9)
    assert Counter(representatives(folder, Path("digits"), 6).labels.tolist()) == {0: 3, 1: 3}
    assert Counter(representatives(folder, "./digits", 6).labels.tolist()) == {0: 3, 1: 3}


# Labels by the names of their classes.


@pytest.mark.parametrize("classes", [("d", "c", "b", "a"), ("x", "a", "c", "y", "b", "d"), ["a", "b", "c", "d"]])
def test_relabeled_images_keep_the_names_of_their_classes(classes):
    whole = dataset()
    other = whole.relabel(classes)
    assert other.classes == tuple(classes)
    names = [[data.classes[label] for label in data.labels.tolist()] for data in (whole, other)]
    assert names[0] == names[1] == list("abcdab")
    assert torch.equal(other.images, whole.images)
    assert other.labels.dtype == torch.int64


def test_classes_that_are_not_known_are_named():
    with pytest.raises(ValueError, match=r"of 'some': 'b', 'd' are not among 'c', 'a' \(unnamed labels are called"):
        dataset().relabel(("c", "a"))
    with pytest.raises(ValueError, match="'d' is not among 'a', 'b', 'c' "):
        dataset().relabel(tuple("abc"))
    with pytest.raises(ValueError, match=r"are not among 'n0', .*'n9' and 90 more"):
        dataset().relabel([f"n{i}" for i in range(100)])
    with pytest.raises(ValueError, match="classes must be distinct, got 'a'"):
        dataset().relabel(tuple("abcda"))
    with pytest.raises(TypeError, match="classes must be a sequence of str, got int"):
        dataset().relabel(4)
    for names in ({"c": 0, "b": 1, "a": 2}, {"a", "b", "c"}):  # whose order is not that of the numbers
        with pytest.raises(TypeError, match=r"must be a sequence of str, got (dict.*sorted|set)"):
            dataset().relabel(names)
    assert dataset(3).relabel(tuple("cba")).labels.tolist() == [2, 1, 0]  # there is no image of "d"
    assert dataset().subset([]).relabel(("x",)).labels.tolist() == []


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"images": torch.zeros(6, 2, 3)}, ValueError, "images must be a batch"),
        ({"images": torch.zeros(6, 1, 2, 3, dtype=torch.float64)}, TypeError, "images must be torch.float32"),
        ({"images": torch.full((6, 1, 2, 3), 1.5)}, ValueError, "images must have values in"),
        ({"images": torch.full((6, 1, 2, 3), float("nan"))}, ValueError, "images must be finite"),
        ({"labels": torch.zeros(6, dtype=torch.int32)}, TypeError, "labels must be torch.int64"),
        ({"labels": torch.zeros(5, dtype=torch.int64)}, ValueError, "one entry per image, 6, got 5"),
        ({"labels": torch.zeros(6, 1, dtype=torch.int64)}, ValueError, "labels must have 1 dimensions"),
        ({"classes": ("a", "b")}, ValueError, r"labels must be in \[0, 1\], .* \[0, 3\]"),
        ({"labels": -torch.ones(6, dtype=torch.int64)}, ValueError, "labels must be in"),
        ({"classes": ("a", "b", "a", "c")}, ValueError, "classes must be distinct, got 'a' more than once"),
        ({"classes": (0, 1, 2, 3)}, TypeError, "classes must be a sequence of str, got 0 in it"),
        ({"classes": "abcd"}, TypeError, "classes must be a sequence of str, got str"),
    ],
)
def test_a_data_set_is_checked(changes, error, message):
    values = {name: getattr(dataset(), name) for name in ("name", "images", "labels", "classes")}
    with pytest.raises(error, match=message):
        Dataset(**{**values, **changes})


def test_fingerprint_is_of_the_little_endian_bytes():
    data = dataset(3)
    content = struct.pack("<18f", *data.images.flatten().tolist()) + struct.pack("<3q", 0, 1, 2)
    assert data.sha256 == hashlib.sha256(b"images [3, 1, 2, 3] labels [3]\n" + content).hexdigest()
    transposed = Dataset("other", data.images.transpose(2, 3).contiguous().transpose(2, 3), data.labels, data.classes)
    assert transposed.sha256 == data.sha256  # of the values, however they lie in memory


def test_fingerprint_tells_apart():
    data = dataset()
    moved = data.images.clone()
    moved[5, 0, 1, 2] = torch.nextafter(moved[5, 0, 1, 2], torch.tensor(0.0))
    others = [
        data.head(5), data.subset([]), data.subset([1, 0, 2, 3, 4, 5]),
        Dataset("some", data.images.reshape(6, 1, 3, 2), data.labels, data.classes),
        Dataset("some", data.images, data.labels.flip(0), data.classes),
        Dataset("some", moved, data.labels, data.classes),
    ]  # fmt: skip
    assert len({data.sha256, *(other.sha256 for other in others)}) == 7


def test_global_state_is_left_alone(pictures):
    """D5."""
    write_idx("train-images-idx3-ubyte", random_bytes(0, 5100, 2, 2))
    write_idx("train-labels-idx1-ubyte", labels_of(5100))

    def state():
        return torch.get_rng_state().tolist(), str(np.random.get_state()), torch.get_default_dtype()  # noqa: NPY002

    before = state()
    sources = [("digits", "train"), ("mnist", "validation"), ("pictures", "test")]
    first = [load(*source).sha256 for source in sources]
    assert state() == before
    with torch.random.fork_rng():
        torch.manual_seed(99)
        assert [load(*source).sha256 for source in sources] == first


@pytest.mark.slow
def test_importing_needs_no_extra():
    program = "import sys, pursamere.datasets; print(sorted({'sklearn', 'PIL'} & set(sys.modules)))"
    # In this folder, as PYTHONPATH may be relative to it.
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=Path(__file__).parent, capture_output=True, text=True, timeout=300, check=True,
    )  # fmt: skip
    assert done.stdout == "[]\n"
    assert ps.datasets.load is load
