"""Which class a label stands for, and which classes the samples are of: by name, and said in the report."""

import csv
import json
from collections import Counter
from pathlib import Path

import numpy
import pytest
import torch

import pursamere as ps
from pursamere.attacks import Clean
from pursamere.cli import main
from pursamere.evaluation import Protocol
from pursamere.evaluation.classes import classes_told
from pursamere.training.initial import seeded

KNOWN = ("cat", "dog", "owl", "yak")
CLEAN = Protocol("clean", (Clean(),))


def network(class_names=KNOWN):
    """A classifier that has never learned anything, but sees all four classes in random images."""
    with seeded(0):
        found = ps.ConvClassifier((1, 8, 8), 4, (8,), groups=4, class_names=class_names)
    with torch.no_grad():
        found.head.bias -= found(noise()).mean(0)
    return found.eval().requires_grad_(False)


def noise():
    return torch.rand(100, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def write_data(*, of=KNOWN, names=None, calls=KNOWN, per_class=4):
    """Images that the network puts into the classes ``of``, sorted by class, in a file that numbers them anew."""
    decided, names = network()(noise()).argmax(1), names or of
    rows = [(decided == KNOWN.index(name)).nonzero()[:per_class, 0] for name in of]
    labels = [
        torch.full((len(part),), names.index(calls[KNOWN.index(name)])) for part, name in zip(rows, of, strict=True)
    ]
    arrays = {"images": noise()[torch.cat(rows)].numpy(), "labels": torch.cat(labels).numpy()}
    if names != numbers(len(names)):
        arrays["class_names"] = numpy.array(names)
    numpy.savez("data.npz", **arrays)


def numbers(count):
    return tuple(map(str, range(count)))


def run(*arguments, samples=8, eps="0.0001"):
    common = ["--data", "data.npz", "--defense", "none", "--samples", str(samples), "--eps", eps, "-q", "-o", "run"]
    return main(["evaluate", *common, *arguments])


def outcomes():
    with open("run/outcomes.csv", newline="") as stream:
        return [row for row in csv.DictReader(stream) if row["attack"] == "clean"]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


# Labels go by name.


@pytest.mark.slow
@pytest.mark.parametrize("names", [KNOWN, ("owl", "dog", "yak", "cat")])
def test_labels_are_those_that_the_classifier_has_for_the_names(capsys, names):
    write_data(names=names)
    ps.save_checkpoint("net", network())
    assert run("--classifier", "net", samples=16) == 0, capsys.readouterr().err
    assert Counter(row["label"] for row in outcomes()) == {"0": 4, "1": 4, "2": 4, "3": 4}
    assert all(row["correct"] == "1" for row in outcomes())
    told = "The samples are of 4 classes (0 cat: 4, 1 dog: 4, 2 owl: 4, 3 yak: 4)."
    assert told in capsys.readouterr().out
    assert told in Path("run/report.md").read_text()


@pytest.mark.slow
def test_fewer_classes_than_the_classifier_knows(capsys):
    write_data(of=("dog", "owl"))
    ps.save_checkpoint("net", network())
    assert run("--classifier", "net") == 0, capsys.readouterr().err
    assert all(row["correct"] == "1" for row in outcomes())
    assert Counter(row["label"] for row in outcomes()) == {"1": 4, "2": 4}
    assert "of 2 of 4 classes (1 dog: 4, 2 owl: 4); none is of 0 cat, 3 yak." in Path("run/report.md").read_text()


@pytest.mark.slow
def test_a_model_from_a_file_has_names_too(capsys):
    write_data(names=("yak", "owl", "dog", "cat"))
    ps.save_checkpoint("net", network())
    Path("model.py").write_text("import pursamere\ndef model():\n    return pursamere.load_checkpoint('net')\n")
    common = ["--data", "data.npz", "--samples", "8", "--eps", "0.0001", "-q", "-o", "run"]
    assert main(["evaluate", *common, "--model", "model.py:model"]) == 0, capsys.readouterr().err
    assert all(row["correct"] == "1" for row in outcomes())


@pytest.mark.parametrize(
    ("data", "known", "message"),
    [
        ({"calls": ("cat", "fox", "owl", "yak"), "names": ("cat", "fox", "owl", "yak")}, KNOWN,
         "--data: classes must include those of 'data': 'fox' is not among 'cat', 'dog', 'owl', 'yak'"),
        ({"calls": numbers(4), "names": numbers(4)}, KNOWN, "'0', '1', '2', '3' are not among 'cat', 'dog', 'owl', 'y"),
        ({}, numbers(4), "'cat', 'dog', 'owl', 'yak' are not among '0', '1', '2', '3'"),
        ({"of": ("dog", "owl")}, None, "class_names must have 4 names, one per class, got 2"),
    ],
)  # fmt: skip
def test_classes_that_cannot_be_matched_are_refused(capsys, data, known, message):
    write_data(**data)
    ps.save_checkpoint("net", network(known))
    assert run("--classifier", "net") == 1
    assert message in capsys.readouterr().err
    assert not Path("run").exists()


@pytest.mark.slow
def test_without_names_the_order_is_taken_for_granted_and_said(capsys):
    write_data()
    ps.save_checkpoint("net", network(None))
    assert run("--classifier", "net") == 0
    assert (
        "does not name its classes; its logits are assumed to be in the order 'cat', 'dog'," in capsys.readouterr().err
    )
    assert "(0 cat: 2, 1 dog: 2, 2 owl: 2, 3 yak: 2). The model does not name its classes: that its" in (
        Path("run/report.md").read_text()
    )
    # Labels that are mere numbers are those of the logits, and nothing is to be said.
    write_data(calls=numbers(4), names=numbers(4))
    assert run("--classifier", "net", "-o", "other") == 0
    assert "name its classes" not in capsys.readouterr().err
    assert "(0: 2, 1: 2, 2: 2, 3: 2)." in Path("other/report.md").read_text()


def test_names_in_python(tmp_path):
    images, labels = noise()[:8], network()(noise()[:8]).argmax(1)

    def config(model, **options):
        ps.evaluate(model, images, labels, folder="run", eps=0.1, preset=CLEAN, **options)
        return json.loads(Path("run/config.json").read_text())

    for names, message in [
        (KNOWN[::-1], r"those of the model in its order, whose number 0 is 'cat', got 'yak'; Dataset.relabel gives"),
        (KNOWN[:3], "class_names must have 4 names, one per class, got 3"),
        (("cat", "dog", "owl", "cat"), "class_names must be distinct, got 'cat' more than once"),
    ]:
        with pytest.raises(ValueError, match=message):
            config(network(), class_names=names)
        assert not Path("run").exists()
    with pytest.raises(TypeError, match="class_names must be a sequence of str, got 1 in it"):
        config(network(), class_names=(1, 2, 3, 4))
    wrong = network(None)
    wrong.class_names = {0: "cat"}
    with pytest.raises(TypeError, match=r"model.class_names must be a sequence of str, got dict"):
        config(wrong)
    found = config(network())["data"]
    assert found["classes"] == list(KNOWN)
    assert found["per_class"] == labels.bincount(minlength=4).tolist()
    with pytest.raises(ValueError, match=r"holds a run of another configuration: data.classes"):
        config(network(None))


# The samples represent the data.


@pytest.mark.slow
def test_the_samples_are_of_all_classes_of_a_set_that_is_sorted_by_class(capsys):
    write_data(per_class=9)
    ps.save_checkpoint("net", network())
    assert run("--classifier", "net", samples=10) == 0, capsys.readouterr().err
    whole = ps.datasets.load("data.npz")
    assert [int(row["label"]) for row in outcomes()] == whole.labels[whole.balanced_rows(10)].tolist()
    assert sorted(Counter(row["label"] for row in outcomes()).values()) == [2, 2, 3, 3]
    # Attacks on the first samples only have all classes too.
    assert len({row["label"] for row in outcomes()[:4]}) == 4
    report = Path("run/report.md").read_text()
    assert "10 of its 36 images (a random choice by a fixed seed, balanced over the classes)" in report
    assert " of 4 classes (0 cat: " in report


@pytest.mark.slow
def test_classes_without_a_sample_are_named(capsys):
    write_data()
    ps.save_checkpoint("net", network())
    assert run("--classifier", "net", samples=2) == 0
    present = [KNOWN[int(row["label"])] for row in outcomes()]
    missing = ", ".join(f"{i} {name}" for i, name in enumerate(KNOWN) if name not in present)
    assert f" of 2 of 4 classes ({KNOWN.index(min(present))} {min(present)}: 1, " in capsys.readouterr().out
    assert f"; none is of {missing}." in Path("run/report.md").read_text()


def test_many_classes_are_summed_up():
    def told(names, counts):
        return classes_told({"data": {"classes": names, "per_class": counts}, "model": {"names_classes": True}})

    assert told(None, [3, 0, 1]) == "The samples are of 2 of 3 classes (0: 3, 2: 1); none is of 1."
    assert told(["b", "a"], [1, 1]) == "The samples are of 2 classes (0 b: 1, 1 a: 1)."
    assert told(None, [1] * 20 + [2] * 10) == "The samples are of 30 classes, 1 to 2 of each."
    assert told(None, [1] * 25 + [0] * 22) == (
        "The samples are of 25 of 47 classes, 1 of each; none is of "
        + ", ".join(map(str, range(25, 45)))
        + " and 2 more."
    )
