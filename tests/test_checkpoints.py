"""Checkpoints come back as they were written; whatever is wrong with one is said, and nothing in it is executed."""

import hashlib
import json
import math
import pickle
import struct

import pytest
import torch
from safetensors.torch import load_file, save
from training_case import tiny_denoiser

import pursamere as ps
from pursamere.models.checkpoints import read_configuration


def classifier(seed=0, dtype=torch.float32):
    network = ps.ConvClassifier((1, 8, 8), 3, (8, 8), groups=4)
    generator = torch.Generator().manual_seed(seed)
    for parameter in network.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator).to(dtype).float()
    return network.eval().requires_grad_(False)


IMAGES = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def folder(tmp_path):
    return ps.save_checkpoint(tmp_path / "net", classifier(), information={"seed": 3})


def rewrite(folder, tensors=None, content=None, **changes):
    """Replace the weights by others that fit their hash, and entries of the configuration."""
    path = folder / "config.json"
    configuration = json.loads(path.read_text())
    if tensors is not None:
        content = save(tensors)
    if content is not None:
        (folder / "model.safetensors").write_bytes(content)
        configuration["weights"] |= {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
    for name, value in changes.items():
        part = (
            configuration["architecture"]["arguments"]
            if name in ("classes", "widths", "groups", "class_names")
            else configuration
        )
        part[name] = value
    path.write_text(json.dumps(configuration))


def test_a_classifier_comes_back(folder):
    before = torch.get_rng_state()
    loaded = ps.load_checkpoint(folder)
    assert torch.equal(torch.get_rng_state(), before)
    assert type(loaded) is ps.ConvClassifier
    assert not loaded.training
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    assert torch.equal(loaded(IMAGES), classifier()(IMAGES))
    configuration = read_configuration(folder)
    content = (folder / "model.safetensors").read_bytes()
    assert configuration["weights"]["sha256"] == hashlib.sha256(content).hexdigest()
    assert configuration["training"] == {"seed": 3}
    assert configuration["versions"]["torch"] == torch.__version__
    assert {file.name for file in folder.iterdir()} == {"config.json", "model.safetensors"}


def test_a_denoiser_comes_back_with_everything_that_it_was_built_with(tmp_path):
    network = tiny_denoiser(patch=2, sigma_data=0.7, sigma_range=(0.1, 0.5), attention=True)
    loaded = ps.load_checkpoint(ps.save_checkpoint(tmp_path / "net", network))
    assert type(loaded) is ps.models.EDMUNet
    assert loaded.arguments() == network.arguments()
    assert torch.equal(loaded(IMAGES, 0.2), network(IMAGES, 0.2))
    with pytest.warns(UserWarning, match=r"outside the range .*\[0.1, 0.5\]"):
        loaded(IMAGES, 1.0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_stored_exactly_and_loaded_as_float32(tmp_path, dtype):
    loaded = ps.load_checkpoint(ps.save_checkpoint(tmp_path / "net", classifier(dtype=dtype), dtype=dtype))
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float32}
    assert torch.equal(loaded(IMAGES), classifier(dtype=dtype)(IMAGES))
    whole = ps.save_checkpoint(tmp_path / "whole", classifier())
    sizes = [(path / "model.safetensors").stat().st_size for path in (tmp_path / "net", whole)]
    assert sizes[0] < 0.7 * sizes[1]


def test_a_checkpoint_is_replaced_only_if_asked_to(folder):
    with pytest.raises(FileExistsError, match=r"config.json exists; overwrite=True replaces the checkpoint"):
        ps.save_checkpoint(folder, classifier(1))
    assert torch.equal(ps.load_checkpoint(folder)(IMAGES), classifier()(IMAGES))
    ps.save_checkpoint(folder, classifier(1), overwrite=True)
    assert torch.equal(ps.load_checkpoint(folder)(IMAGES), classifier(1)(IMAGES))


def named(*names):
    return ps.ConvClassifier((1, 8, 8), 3, (8, 8), groups=4, class_names=names).eval()


def test_a_classifier_comes_back_with_the_names_of_its_classes(tmp_path):
    loaded = ps.load_checkpoint(ps.save_checkpoint(tmp_path / "net", named("owl", "cat", "dög")))
    assert loaded.class_names == ("owl", "cat", "dög")
    assert repr(loaded) == repr(classifier())  # what evaluations have recorded of a model stays the same
    purifier = ps.Purifier(tiny_denoiser(), sigma=0.2, radius=0.2)
    assert ps.PurifiedClassifier(purifier, loaded).class_names == ("owl", "cat", "dög")
    assert ps.PurifiedClassifier(purifier, lambda x: x.mean((2, 3))).class_names is None
    assert ps.load_checkpoint(ps.save_checkpoint(tmp_path / "nameless", classifier())).class_names is None


@pytest.mark.parametrize(
    ("training", "expected"),
    [
        ({"data": {"classes": ["x", "y", "z"]}}, ("x", "y", "z")),
        ({"data": {"classes": 3}}, None),
        ({"data": "mnist"}, None),
        ({}, None),
        ([], None),
    ],
)
def test_older_checkpoints_name_their_classes_in_the_record_of_the_training(folder, training, expected):
    configuration = json.loads((folder / "config.json").read_text())
    del configuration["architecture"]["arguments"]["class_names"]
    (folder / "config.json").write_text(json.dumps({**configuration, "training": training}))
    assert ps.load_checkpoint(folder).class_names == expected


def test_the_record_of_a_training_does_not_name_the_classes_of_a_newer_checkpoint(tmp_path):
    ps.save_checkpoint(tmp_path / "net", named("a", "b", "c"), information={"data": {"classes": ["c", "b", "a"]}})
    assert ps.load_checkpoint(tmp_path / "net").class_names == ("a", "b", "c")


def test_what_is_not_saved(tmp_path):
    with pytest.raises(TypeError, match="network must be one of edm_unet, conv_classifier, got Linear"):
        ps.save_checkpoint(tmp_path / "net", torch.nn.Linear(1, 1))
    with pytest.raises(ValueError, match=r"dtype must be torch.float32, torch.float16 or torch.bfloat16, got torch.fl"):
        ps.save_checkpoint(tmp_path / "net", classifier(), dtype=torch.float64)
    large = classifier()
    large.head.weight += 1e5  # beyond float16
    with pytest.raises(ValueError, match=r"weight 'head.weight' must be finite"):
        ps.save_checkpoint(tmp_path / "net", large, dtype=torch.float16)
    assert not (tmp_path / "net").exists()


# Damaged weights.


def test_truncated_weights(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(ValueError, match=r"model.safetensors is truncated: \d+ bytes, expected \d+"):
        ps.load_checkpoint(folder)


def test_changed_weights(folder):
    path = folder / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"model.safetensors has changed: its SHA-256 is"):
        ps.load_checkpoint(folder)


def test_weights_of_another_checkpoint(folder):
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes() + b"more")
    with pytest.raises(ValueError, match=r"is not the file that config.json describes"):
        ps.load_checkpoint(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"model.safetensors does not exist"):
        ps.load_checkpoint(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop("head.bias"), "weight 'head.bias' is missing$"),
        (lambda w: [w.pop(name) for name in list(w)[1:]], r"weight '.*' is missing \(and \d+ more\)"),
        (lambda w: w.update(extra=torch.zeros(1)), "weight 'extra' is unexpected"),
        (lambda w: w.update({"head.bias": torch.zeros(4)}), r"'head.bias' must have shape \[3\], got \[4\]"),
        (lambda w: w.update({"head.bias": torch.zeros(3).half()}), "'head.bias' must be float32, got torch.float16"),
        (lambda w: w["head.bias"].fill_(math.nan), "weight 'head.bias' must be finite, got NaN or infinity"),
    ],
)
def test_weights_that_do_not_fit(folder, change, message):
    weights = load_file(folder / "model.safetensors")
    change(weights)
    rewrite(folder, weights)
    with pytest.raises(ValueError, match=message):
        ps.load_checkpoint(folder)


# Pickles.


class Bomb:
    def __reduce__(self):
        return open, ("executed", "w")


@pytest.mark.parametrize("ending", ["pkl", "pt", "PTH", "ckpt"])
def test_pickled_checkpoints_are_refused(tmp_path, monkeypatch, ending):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / f"edm.{ending}"
    path.write_bytes(pickle.dumps(Bomb()))
    for name in (path, str(path), tmp_path / f"missing.{ending}"):
        with pytest.raises(ValueError, match=r"looks like a pickled checkpoint.* pursamere.denoisers.from_edm"):
            ps.load_checkpoint(name)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("content", [pickle.dumps(Bomb()), b"", struct.pack("<Q", 2**62) + b"{}"])
def test_what_only_pretends_to_be_safetensors_is_refused(folder, monkeypatch, content):
    monkeypatch.chdir(folder)
    rewrite(folder, content=content)
    with pytest.raises(ValueError, match=r"model.safetensors is not a safetensors file"):
        ps.load_checkpoint(folder)
    assert not (folder / "executed").exists()


# Damaged configurations.


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "config.json is damaged"),
        (b"\xff\xfe\xff", "config.json is damaged"),
        ("[" * 100_000, "config.json is damaged"),
        (" " * 2**25, "config.json is too large"),
        ("[]", "is not the configuration of a checkpoint"),
        ("{}", "is not the configuration of a checkpoint"),
        ('{"format": 2}', "has format 2, this version of pursamere reads 1"),
        ('{"format": 1}', "must have under 'architecture' an object of name, arguments"),
    ],
)
def test_configurations_that_cannot_be_read(folder, text, message):
    (folder / "config.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match=message):
        ps.load_checkpoint(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architecture": {"name": "os.system", "arguments": {}}}, "must be one of edm_unet, conv_classifier, got 'os"),
        ({"architecture": {"name": 3, "arguments": {}}}, "must have at architecture.name a str, got 3"),
        ({"architecture": {"name": "conv_classifier", "arguments": {"x": 1}}}, "arguments of conv_classifier must be"),
        ({"weights": {"sha256": "", "bytes": "9", "dtype": "float32"}}, "must have at weights.bytes a int, got '9'"),
        ({"weights": {"sha256": "", "bytes": 9, "dtype": "int8"}}, "weights.dtype must be one of 'float16'"),
        ({"classes": 4}, r"'head.bias' must have shape \[4\], got \[3\]"),
        ({"classes": 10**9}, r"config.json: classes must be in \[1, 100000\], got 1000000000"),
        ({"widths": [8, "8"]}, r"config.json: widths\[1\] must be an int, got str"),
        ({"groups": 3}, "config.json: widths must be multiples of groups, 3"),
        ({"class_names": ["a", "b"]}, "config.json: class_names must have 3 names, one per class, got 2"),
        ({"class_names": ["a", "b", "a"]}, "config.json: class_names must be distinct, got 'a' more than"),
        ({"class_names": [1, 2, 3]}, "config.json: class_names must be a sequence of str, got 1 in it"),
        ({"class_names": "abc"}, "config.json: class_names must be a sequence of str, got str"),
    ],
)
def test_configurations_that_are_wrong(folder, changes, message):
    rewrite(folder, **changes)
    with pytest.raises(ValueError, match=message):
        ps.load_checkpoint(folder)


def test_what_is_no_folder_with_a_checkpoint(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"config.json does not exist: a checkpoint is a folder with"):
        ps.load_checkpoint(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"file must be a folder with model.safetensors and config.json"):
        ps.load_checkpoint(tmp_path / "file")


# The classifier itself.


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"widths": (8, 6)}, ValueError, "widths must be multiples of groups, 4"),
        ({"widths": (8,) * 5}, ValueError, "widths has too many stages for images of shape"),
        ({"residual": 1}, TypeError, "residual must be a bool, got int"),
        ({"classes": 0}, ValueError, r"classes must be in \[1, 100000\], got 0"),
        ({"normalization": "layer"}, ValueError, "normalization must be one of 'group', 'batch', got 'layer'"),
        ({"whitening": 9}, ValueError, r"whitening must be in \[0, 8\], got 9"),
        ({"whitening": 6}, ValueError, "widths has too many stages for images of shape"),
    ],
)
def test_arguments_of_the_classifier_that_are_refused(change, error, message):
    with pytest.raises(error, match=message):
        ps.ConvClassifier(**{"image_shape": (1, 8, 8), "classes": 3, "widths": (8, 8), "groups": 4, **change})


def test_residual_classifiers_and_wrong_images():
    network = ps.ConvClassifier((1, 8, 8), 3, (4, 8, 8, 8), residual=True, groups=4).eval()
    # Blocks of two convolutions at the second and the fourth stage, as in ResNet-9: 8 convolutions and a linear layer.
    assert sum(isinstance(module, torch.nn.Conv2d) for module in network.modules()) == 8
    assert network(IMAGES).shape == (4, 3)
    with pytest.raises(ValueError, match=r"x must have the shape \[N, 1, 8, 8\], got \[4, 1, 8, 7\]"):
        network(IMAGES[..., :7])


def test_arguments_that_an_earlier_version_did_not_know_have_their_defaults(folder):
    configuration = json.loads((folder / "config.json").read_text())
    for name in ("normalization", "whitening"):
        del configuration["architecture"]["arguments"][name]
    (folder / "config.json").write_text(json.dumps(configuration))
    assert torch.equal(ps.load_checkpoint(folder)(IMAGES), classifier()(IMAGES))
    del configuration["architecture"]["arguments"]["widths"]
    (folder / "config.json").write_text(json.dumps(configuration))
    with pytest.raises(ValueError, match="arguments of conv_classifier must be image_shape, classes, widths"):
        ps.load_checkpoint(folder)


def batch_normalized(**changes):
    return ps.ConvClassifier((1, 8, 8), 3, (6, 8), normalization="batch", **changes)  # groups would not divide 6


def test_running_statistics_come_back(tmp_path):
    network = batch_normalized(whitening=2)
    network.whiten(IMAGES)
    for _ in range(3):
        network.train()(IMAGES)
    network.eval()
    loaded = ps.load_checkpoint(ps.save_checkpoint(tmp_path / "net", network))
    assert torch.equal(loaded(IMAGES), network(IMAGES))
    network.load_state_dict(dict(loaded.state_dict()))  # also a state without PyTorch's version numbers
    rows = torch.cat([loaded(x) for x in IMAGES.split(1)])
    torch.testing.assert_close(rows, loaded(IMAGES))  # rows are independent
    assert not torch.allclose(batch_normalized(whitening=2).eval()(IMAGES), loaded(IMAGES))


def test_a_batch_normalized_convolution_starts_as_the_identity():
    convolution = batch_normalized().stages[0].second[0][0]
    x = torch.rand(2, 6, 5, 5)
    torch.testing.assert_close(convolution(x), x)


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 9, 7)])
def test_whitened_patches_are_uncorrelated_and_have_unit_variance(shape):
    x = torch.rand(600, *shape, generator=torch.Generator().manual_seed(0))
    x[:, :, 1:] = 0.3 * x[:, :, 1:] + 0.7 * x[:, :, :-1]  # neighbors correlate
    network = ps.ConvClassifier(shape, 3, (4, 4), groups=4, whitening=2)
    network.whiten(x)
    found = network.stem(2 * x - 1).permute(1, 0, 2, 3).flatten(1).detach()
    half = len(found) // 2
    assert half == 4 * shape[0]
    torch.testing.assert_close(found[half:], -found[:half])
    moments = found[:half] @ found[:half].T / found.shape[1]  # about zero, not about the mean
    torch.testing.assert_close(moments, torch.eye(half), atol=0.03, rtol=0)
    assert not network.stem.filters.requires_grad
    assert network(x[:2]).shape == (2, 3)
    with pytest.raises(ValueError, match="whitening must be positive for a network with a whitening layer, got 0"):
        ps.ConvClassifier(shape, 3, (4, 4), groups=4).whiten(x)
