"""A damaged file in the folder of a run is named, with what to do about it."""

import errno
import json
from dataclasses import asdict

import pytest
import torch
from safetensors.torch import load, save
from training_case import settings_of, write_data

from pursamere._evaluate import evaluate
from pursamere._extras import MissingExtraError
from pursamere.attacks import Clean, RandomSearch
from pursamere.evaluation import Protocol
from pursamere.evaluation.course import Course
from pursamere.models.checkpoints import load_checkpoint
from pursamere.training import run as training_run
from pursamere.training import train

PROTOCOL = Protocol("brief", (Clean(), RandomSearch("random-search", queries=2)))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished")
    run(folder / "run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training_run, "_write_pictures", lambda *_: None)
        train(settings_of("classifier", write_data(folder), steps=1), folder / "out")
    return folder


def run(folder):
    images = torch.rand(3, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    weight = torch.linspace(-1, 1, 32).view(16, 2)
    labels = torch.zeros(3, dtype=torch.int64)
    return evaluate(lambda x: x.flatten(1) @ weight, images, labels, folder=folder, eps=0.1, preset=PROTOCOL, threads=1)


def without(key):
    return lambda text: json.dumps({name: value for name, value in json.loads(text).items() if name != key}).encode()


def with_value(key, value):
    return lambda text: json.dumps({**json.loads(text), key: value}).encode()


def truncated(content):
    return content[: len(content) // 2]


COURSE = asdict(Course(3, curve=[0.5], zero=1, norms=[(-3, 2)], largest=1.0))
DAMAGED_COURSES = [
    {"samples": "3"},
    {"zero": -1},
    {"largest": None},
    {"curve": ["0.5"]},
    {"curve": 0.5},
    {"norms": [3]},
    {"norms": [[1, "2"]]},
    {"norms": [["1", 2]]},
    {"norms": [[1.5, 2]]},
]
UNIT, TENSORS = "units/clean-eps0.0-00000.json", "adversarial/random-search-eps0.1-00000.safetensors"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("config.json", truncated),
        ("environment.json", truncated),
        ("environment.json", without("threads")),
        ("environment.json", with_value("threads", 0)),
        ("environment.json", with_value("threads", True)),
        ("environment.json", lambda _: b"[]"),
        ("environment.json", lambda _: b'{"threads": 2}'),
        *(("environment.json", without(key)) for key in ("versions", "platform", "machine", "device")),
        ("environment.json", with_value("versions", ["2.0"])),
        ("environment.json", with_value("device", 3)),
        (UNIT, truncated),
        (UNIT, lambda _: b""),
        (UNIT, lambda _: b"\xff"),
        (UNIT, lambda _: b"null"),
        (UNIT, without("course")),
        (UNIT, without("margin")),
        (UNIT, with_value("margin", [0.5])),
        (UNIT, with_value("correct", ["yes", "no", "no"])),
        (UNIT, with_value("course", 3)),
        *((UNIT, with_value("course", {**COURSE, **change})) for change in DAMAGED_COURSES),
        (UNIT, with_value("seconds", "1")),
        (UNIT, with_value("flags", 3)),
        (UNIT, with_value("flags", [3])),
        (UNIT, with_value("blind_reason", 3)),
        (TENSORS, truncated),
        (TENSORS, lambda _: b""),
    ],
)
def test_a_damaged_file_of_an_evaluation_is_named(finished, name, damage):
    path = finished / "run" / name
    whole = path.read_bytes()
    path.write_bytes(damage(whole))
    try:
        with pytest.raises(ValueError, match=f"{name} is damaged: .*; (remove it|restore it|choose another)") as error:
            run(finished / "run")
        assert str(path) in str(error.value)
    finally:
        path.write_bytes(whole)
    run(finished / "run")


@pytest.mark.parametrize("name", [UNIT, TENSORS])
def test_the_advice_is_right(finished, name):
    outcomes = (finished / "run" / "outcomes.csv").read_bytes()
    (finished / "run" / name).unlink()
    if name == TENSORS:
        (finished / "run" / name.replace("adversarial", "units").replace("safetensors", "json")).unlink()
    run(finished / "run")
    assert (finished / "run" / name).exists()
    assert (finished / "run" / "outcomes.csv").read_bytes() == outcomes


@pytest.mark.slow
def test_a_course_that_is_whole_is_read(finished):
    path = finished / "run" / UNIT
    whole = path.read_bytes()
    path.write_bytes(with_value("course", COURSE)(whole))
    run(finished / "run")
    path.write_bytes(whole)
    run(finished / "run")


def with_progress(change):
    """The state with another record in its header."""

    def damage(content):
        size = int.from_bytes(content[:8], "little")
        header = json.loads(content[8 : 8 + size])
        header["__metadata__"]["progress"] = json.dumps(change(json.loads(header["__metadata__"]["progress"])))
        text = json.dumps(header).encode()
        return len(text).to_bytes(8, "little") + text + content[8 + size :]

    return damage


def without_weights(content):
    size = int.from_bytes(content[:8], "little")
    text = json.dumps({"__metadata__": json.loads(content[8 : 8 + size])["__metadata__"]}).encode()
    return len(text).to_bytes(8, "little") + text


def with_tensors(change):
    """The state with other tensors."""

    def damage(content):
        size = int.from_bytes(content[:8], "little")
        metadata = json.loads(content[8 : 8 + size])["__metadata__"]
        return save({key: value.clone() for key, value in change(load(content)).items()}, metadata)

    return damage


def without_tensor(key):
    return with_tensors(lambda tensors: {name: value for name, value in tensors.items() if name != key})


def with_tensor(key, change):
    return with_tensors(lambda tensors: {**tensors, key: change(tensors.get(key))})


def nested(_):
    """JSON so deep that Python's parser gives up."""
    return (100_000).to_bytes(8, "little") + b"[" * 100_000


@pytest.mark.parametrize(
    "damage",
    [
        truncated,
        lambda content: content[:-1],
        lambda _: b"",
        lambda _: b"\xff" * 100,
        lambda _: (2**50).to_bytes(8, "little") + b"{}",
        nested,
        without_weights,
        without_tensor("network/head.weight"),
        without_tensor("average/n_averaged"),
        without_tensor("optimizer/0/exp_avg"),
        with_tensor("network/surplus", lambda _: torch.zeros(1)),
        with_tensor("network/head.weight", lambda value: value[:-1]),
        with_tensor("network/head.weight", torch.Tensor.double),
        with_tensor("optimizer/0/exp_avg_sq", lambda value: value[:-1]),
        with_tensor("optimizer/0/step", lambda _: torch.zeros(2)),
        with_tensor("optimizer/99/step", lambda _: torch.tensor(0.0)),
        with_tensor("optimizer/x/step", lambda _: torch.tensor(0.0)),
        with_progress(lambda progress: None),
        with_progress(lambda progress: {**progress, "settings": []}),
        with_progress(lambda progress: {**progress, "data": {"name": "x"}}),
        with_progress(lambda progress: {**progress, "history": 3}),
        with_progress(lambda progress: {**progress, "step": "1"}),
        with_progress(lambda progress: {**progress, "step": True}),
        with_progress(lambda progress: {**progress, "step": -1}),
        with_progress(lambda progress: {**progress, "step": 2}),
        with_progress(lambda progress: {**progress, "settings": {}}),
        with_progress(lambda progress: {**progress, "losses": ["1"]}),
        with_progress(lambda progress: {**progress, "losses": [None]}),
        with_progress(lambda progress: {**progress, "history": [3]}),
        with_progress(lambda progress: {**progress, "history": [{"step": 1}]}),
        with_progress(lambda progress: {**progress, "history": [{**progress["history"][0], "loss": "1"}]}),
        with_progress(lambda progress: {**progress, "history": [*progress["history"], {"step": 1, "loss": 1.0}]}),
        with_progress(lambda progress: {**progress, "history": [{**progress["history"][0], "other": "1"}]}),
    ],
)
def test_a_damaged_state_of_a_training_is_named(finished, monkeypatch, damage):
    monkeypatch.setattr(training_run, "_write_pictures", lambda *_: None)
    path = finished / "out" / "training.safetensors"
    whole = path.read_bytes()
    path.write_bytes(damage(whole))
    settings = settings_of("classifier", finished / "sides.npz", steps=1)
    with pytest.raises(ValueError, match=r"training.safetensors is damaged: .*; remove it to train from the beginning"):
        train(settings, finished / "out")
    path.write_bytes(whole)
    train(settings, finished / "out")


ELSEWHERE = [
    MemoryError("too little"),
    torch.OutOfMemoryError("CUDA out of memory"),
    RuntimeError("CUDA error: an illegal memory access was encountered"),
    MissingExtraError("safetensors is needed here"),
    OSError(errno.EIO, "Input/output error"),
]


def failing(error):
    def fail(*_, **__):
        raise error

    return fail


@pytest.mark.parametrize("error", ELSEWHERE, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize(
    "where", ["torch.nn.Module.load_state_dict", "torch.optim.AdamW.load_state_dict", "safetensors.torch.load"]
)
def test_an_error_that_is_not_the_file_s_does_not_advise_to_remove_it(finished, monkeypatch, where, error):
    monkeypatch.setattr(training_run, "_write_pictures", lambda *_: None)
    settings = settings_of("classifier", finished / "sides.npz", steps=1)
    with monkeypatch.context() as patch:
        patch.setattr(where, failing(error))
        with pytest.raises(type(error)) as told:
            train(settings, finished / "out")
    assert told.value is error
    train(settings, finished / "out")


@pytest.mark.parametrize("error", ELSEWHERE[:3], ids=lambda error: type(error).__name__)
def test_nor_does_it_call_a_checkpoint_damaged(finished, monkeypatch, error):
    monkeypatch.setattr("safetensors.torch.load", failing(error))
    with pytest.raises(type(error)) as told:
        load_checkpoint(finished / "out")
    assert told.value is error


@pytest.mark.parametrize("damage", [truncated, lambda _: b"", with_value("training", {"settings": 3})])
def test_a_damaged_checkpoint_of_a_training_is_named(finished, monkeypatch, damage):
    """Which is read where there is no state."""
    monkeypatch.setattr(training_run, "_write_pictures", lambda *_: None)
    path, state = finished / "out" / "config.json", finished / "out" / "training.safetensors"
    whole = path.read_bytes(), state.read_bytes()
    state.unlink()
    path.write_bytes(damage(whole[0]))
    with pytest.raises(ValueError, match=r"config.json is damaged: "):
        train(settings_of("classifier", finished / "sides.npz", steps=1), finished / "out")
    path.write_bytes(whole[0])
    state.write_bytes(whole[1])
