"""The settings of a training, in a file and as flags, and what ``pursamere train`` refuses."""

import json
from dataclasses import fields
from typing import get_type_hints

import pytest
from training_case import settings_of, write_data

from pursamere.cli import main
from pursamere.cli import train as command
from pursamere.training import ClassifierConfiguration, DenoiserConfiguration, configuration
from pursamere.training import run as training_run


@pytest.fixture
def data(tmp_path):
    return write_data(tmp_path)


@pytest.fixture
def no_pictures(monkeypatch):
    monkeypatch.setattr(training_run, "_write_pictures", lambda *_: None)


@pytest.mark.parametrize(
    ("kind", "changes", "error", "message"),
    [
        ("denoiser", {"stepz": 3}, ValueError, "settings must be among dataset, steps, .*, got stepz"),
        ("classifier", {"channels": [8]}, ValueError, "settings must be among .*widths.*, got channels"),
        ("denoiser", {"steps": 1.5}, TypeError, "steps must be an int, got float"),
        ("denoiser", {"steps": 0}, ValueError, r"steps must be in \[1, 2147483647\], got 0"),
        ("denoiser", {"steps": 2**31}, ValueError, r"steps must be in \[1, 2147483647\], got 2147483648"),
        ("denoiser", {"batch_size": 10**9}, ValueError, r"batch_size must be in \[1, 65536\], got 1000000000"),
        ("denoiser", {"seed": 2**63}, ValueError, r"seed must be in \[0, 9223372036854775807\]"),
        ("denoiser", {"batch_size": True}, TypeError, "batch_size must be an int, got bool"),
        ("denoiser", {"learning_rate": "fast"}, TypeError, "learning_rate must be a real number, got str"),
        ("denoiser", {"learning_rate": 0}, ValueError, "learning_rate must be positive"),
        ("denoiser", {"ema_decay": 1.0}, ValueError, r"ema_decay must be in \[0, 1\), got 1.0"),
        ("denoiser", {"precision": "int8"}, ValueError, "precision must be one of 'auto', 'float32', 'bfloat16'"),
        ("denoiser", {"flip": 1}, TypeError, "flip must be a bool, got int"),
        ("denoiser", {"dataset": 3}, TypeError, "dataset must be a str, got int"),
        ("denoiser", {"sigma_min": 2.0}, ValueError, "sigma_min must be less than sigma_max, 1.5, got 2.0"),
        ("denoiser", {"sigma_distribution": "flat"}, ValueError, "sigma_distribution must be one of 'log-uniform'"),
        ("classifier", {"shift": -1}, ValueError, r"shift must be in \[0, 64\], got -1"),
        ("classifier", {"label_smoothing": 1}, ValueError, r"label_smoothing must be in \[0, 1\), got 1"),
        (
            "classifier",
            {"purifier_sigma": 0.3, "purifier_steps": 2},
            ValueError,
            "purifier_sigma, purifier_steps have no effect without purifier",
        ),
        ("classifier", {"adversarial_steps": 3}, ValueError, "adversarial_steps has no effect without adversarial_eps"),
        ("classifier", {"adversarial_fraction": 0.5}, ValueError, "adversarial_fraction has no effect without adv"),
    ],
)
def test_settings_that_are_refused(kind, changes, error, message):
    with pytest.raises(error, match=message):
        configuration(DenoiserConfiguration if kind == "denoiser" else ClassifierConfiguration, changes)


def test_all_settings_of_a_training_can_be_given_again():
    for settings in (ClassifierConfiguration(), ClassifierConfiguration(purifier="digits", purifier_steps=2)):
        assert configuration(ClassifierConfiguration, settings.to_json()) == settings


def test_a_data_set_has_settings_of_its_own_and_lists_become_tuples():
    settings = configuration(ClassifierConfiguration, {"dataset": "mnist", "widths": [8, 8]})
    assert (settings.widths, settings.shift, settings.batch_size) == ((8, 8), 2, 128)
    assert json.loads(json.dumps(settings.to_json()))["widths"] == [8, 8]


@pytest.mark.parametrize(
    ("kind", "arguments", "message"),
    [
        ("denoiser", ["--steps", "0"], "--steps: expected a whole number from 1 to 2147483647, got 0"),
        ("denoiser", ["--steps", "1.5"], "--steps: expected a whole number, got '1.5'"),
        ("denoiser", ["--seed", "-1"], "--seed: expected a whole number from 0 to 9223372036854775807, got -1"),
        ("denoiser", ["--batch-size", "99999999999"], "--batch-size: expected a whole number from 1 to 65536"),
        ("denoiser", ["--channels", "8", "0"], "--channels: expected a whole number from 1 to 4096, got 0"),
        ("denoiser", ["--layers", "17"], "--layers: expected a whole number from 1 to 16, got 17"),
        ("classifier", ["--widths", "0"], "--widths: expected a whole number from 1 to 4096, got 0"),
        ("classifier", ["--shift", "-1"], "--shift: expected a whole number from 0 to 64, got -1"),
        ("classifier", ["--learning-rate", "0"], "--learning-rate: the value must be positive and finite, got 0.0"),
        (
            "classifier",
            ["--weight-decay", "-0.5"],
            "--weight-decay: the value must be at least 0 and finite, got -0.5",
        ),
        ("classifier", ["--ema-decay", "1"], "--ema-decay: the value must be in [0, 1), got 1.0"),
        ("classifier", ["--clip-norm", "nan"], "--clip-norm: expected a finite number, got 'nan'"),
        ("denoiser", ["--sigma-max", "-1"], "--sigma-max: the value must be positive and finite, got -1.0"),
    ],
)
def test_numbers_out_of_range_are_usage_errors(capsys, kind, arguments, message):
    with pytest.raises(SystemExit) as left:
        main(["train", kind, "-o", "out", *arguments])
    assert left.value.code == 2
    assert message in capsys.readouterr().err


def test_every_number_has_a_range():
    for kind in (DenoiserConfiguration, ClassifierConfiguration):
        hints = get_type_hints(kind)
        for item in fields(kind):
            assert (item.metadata["bounds"] is not None) == (hints[item.name] in (int, tuple[int, ...])), item.name
            assert (item.metadata["check"] is not None) == (hints[item.name] is float), item.name


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config", "no.json"], "no.json"),
        (["--config", "bad.json"], "bad.json must be a JSON file"),
        (["--config", "list.json"], "list.json must hold a JSON object, got list"),
        (["--config", "unknown.json"], "got stepz"),
        (["--config", "type.json"], "steps must be an int, got str"),
        (["--config", "channels.json"], r"channels must be a sequence of ints, got str"),
        (["--channels", "9"], "channels must be multiples of groups"),
        (["--dataset", "nowhere"], "nowhere does not exist"),
    ],
)
def test_what_the_command_refuses(data, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(data.parent)
    wrong = {"unknown": {"stepz": 1}, "type": {"steps": "9"}, "channels": {"channels": "8"}, "list": [1]}
    for name, text in {"bad": "{", **{name: json.dumps(value) for name, value in wrong.items()}}.items():
        (data.parent / f"{name}.json").write_text(text)
    if "--dataset" not in arguments:
        arguments = [*arguments, "--dataset", "sides.npz"]
    assert main(["train", "denoiser", "-o", "out", "-q", *arguments]) == 1
    assert message in capsys.readouterr().err
    assert not (data.parent / "out").exists()


def test_a_flag_overrides_the_file(data, tmp_path, no_pictures):
    file = tmp_path / "settings.json"
    file.write_text(json.dumps(settings_of("classifier", data, steps=5, seed=7).to_json()))
    assert main(["train", "classifier", "--config", str(file), "--steps", "2", "-q", "-o", str(tmp_path / "out")]) == 0
    used = json.loads((tmp_path / "out" / "config.json").read_text())["training"]["settings"]
    assert (used["steps"], used["seed"], used["widths"]) == (2, 7, [8, 8])


def test_help_of_the_whole_command_needs_no_settings(monkeypatch, capsys):
    def unexpected(kind):
        raise AssertionError("the settings come with torch")

    with monkeypatch.context() as patch:
        patch.setattr(command, "_settings_class", unexpected)
        with pytest.raises(SystemExit) as done:
            main(["--help"])
    assert done.value.code == 0
    assert "train a denoiser or a classifier" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["train", "denoiser", "--help"])
    assert "--sigma-max" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("kind", "shown"),
    [
        ("denoiser", "optimizer steps (default: 1000; digits: 3000; mnist: 6000; cifar10: 9000)"),
        ("denoiser", "from the highest resolution down (default: 32 64; cifar10: 32 64 96)"),
        ("classifier", "optimizer steps (default: 1000; digits: 600; mnist: 3000; cifar10: 3650)"),
        ("classifier", "(default: 0.2; the tuned value if --purifier or --dataset is digits, mnist or cifar10)"),
    ],
)
def test_the_help_tells_the_defaults_of_data_sets(capsys, kind, shown):
    with pytest.raises(SystemExit):
        main(["train", kind, "--help"])
    assert shown in " ".join(capsys.readouterr().out.split())
