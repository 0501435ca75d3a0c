"""Purifiers and purified classifiers stay as they were constructed, and are ordinary modules otherwise."""

import copy
import dataclasses
import inspect
import pickle

import pytest
import torch
from cases import tensor
from nets import conv_classifier, conv_denoiser

import pursamere as ps
from pursamere import baselines

NOISE = ps.GaussianNoise(seed=2, draws=2)
X = tensor(0, 2, 1, 6, 6, dtype=torch.float32)


def purifier():
    return ps.Purifier(conv_denoiser(), sigma=0.3, radius=0.1, steps=1, noise=NOISE)


def classifier():
    return ps.PurifiedClassifier(purifier(), conv_classifier())


MAKE = {
    "Purifier": purifier,
    "PurifiedClassifier": classifier,
    "DiffPure": lambda: baselines.DiffPure(conv_denoiser(), steps=2, fresh_noise=True),
    "PublishedDiffPure": lambda: baselines.PublishedDiffPure(conv_denoiser(), steps=2),
    "ScoreOptO": lambda: baselines.ScoreOptO(conv_denoiser()),
    "ScoreOptN": lambda: baselines.ScoreOptN(conv_denoiser()),
    "LikelihoodMaximization": lambda: baselines.LikelihoodMaximization(conv_denoiser()),
}


def public_attributes(model):
    names = {name for name in (*vars(model), *model._modules) if not name.startswith("_")}
    return sorted(names - {"training"})


@pytest.mark.parametrize("kind", MAKE)
def test_no_attribute_can_be_set_or_deleted(kind):
    model = MAKE[kind]()
    names = public_attributes(model)
    assert len(names) >= 4
    for name in (*names, "random") if kind != "PurifiedClassifier" else names:
        before = getattr(model, name)
        with pytest.raises(AttributeError, match=f"^{kind}.{name} is read-only: construct a new {kind} with another"):
            setattr(model, name, before)
        with pytest.raises(AttributeError, match=f"{name} is read-only"):
            delattr(model, name)
        assert getattr(model, name) is before
    for name in model._modules:
        with pytest.raises(AttributeError, match=f"{name} is read-only"):
            model.register_module(name, torch.nn.Identity())


@pytest.mark.parametrize("make", [ps.Purifier, baselines.EreDescent, ps.PurifiedClassifier, baselines.DiffPure])
def test_signatures_are_those_of_the_constructors(make):
    parameters = inspect.signature(make).parameters
    assert next(iter(parameters)) in ("denoiser", "purifier")
    assert not any(p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in parameters.values())


def test_noise_is_frozen():
    for field in dataclasses.fields(NOISE):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(NOISE, field.name, getattr(NOISE, field.name))


def test_a_subclass_sets_its_own_attributes_while_it_is_constructed_and_private_ones_later():
    class Counting(ps.Purifier):
        def __init__(self, denoiser, scale):
            super().__init__(denoiser, sigma=0.3, radius=0.1, steps=1, noise=NOISE)
            self.scale, self._calls = scale, 0

        def _step(self, *arguments):
            self._calls += 1
            return super()._step(*arguments)

    model = Counting(conv_denoiser(), 2)
    model(X)
    assert model._calls > 0
    with pytest.raises(AttributeError, match=r"Counting\.scale is read-only"):
        model.scale = 3
    model.note = "added"
    model.note = "and changed"


def test_attributes_of_a_users_classifier_may_change():
    class Recording(ps.PurifiedClassifier):
        temperature = 1.0

        def __init__(self, *arguments):
            super().__init__(*arguments)
            self.last = None

        def forward(self, x):
            self.last = super().forward(x) / self.temperature
            return self.last

    model = Recording(purifier(), conv_classifier())
    want = model(X)
    assert model.last is want
    model.temperature = 2.0
    torch.testing.assert_close(model(X), want / 2)
    with pytest.raises(AttributeError, match=r"Recording\.gradient is read-only"):
        model.gradient = "identity"


@pytest.mark.parametrize("make", [purifier, classifier])
@pytest.mark.parametrize(
    "copied",
    [copy.copy, copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))],
    ids=["shallow", "deep", "pickle"],
)
def test_copies_compute_the_same_and_are_fixed_too(make, copied):
    model = make()
    want = model(X)
    twin = copied(model)
    assert torch.equal(twin(X), want)
    with pytest.raises(AttributeError, match="is read-only"):
        setattr(twin, public_attributes(twin)[0], None)


@pytest.mark.parametrize("make", [purifier, classifier])
def test_what_modules_do_still_works(make):
    model = make()
    want = model(X)
    assert model.train() is model
    assert not any(part.training for part in model.modules())
    seen = []
    hook = model.register_forward_hook(lambda *_: seen.append(1))
    model(X)
    hook.remove()
    assert seen == [1]
    model.load_state_dict(copy.deepcopy(model.state_dict()), assign=True)
    assert torch.equal(model(X), want)
    torch.testing.assert_close(model.requires_grad_(False).to(memory_format=torch.channels_last).float()(X), want)
    assert model.double()(X.double()).dtype == torch.float64
    assert model.to("meta") is model


def test_a_method_can_be_wrapped_on_the_instance():
    model = purifier()
    want, forward = model(X), model.forward
    model.forward = lambda *arguments: forward(*arguments) + 1
    assert torch.equal(model(X), want + 1)
    del model.forward
    assert torch.equal(model(X), want)


def test_data_parallel_can_replicate_it():
    """As torch.nn.parallel.replicate does, which needs GPUs."""
    model = purifier()
    replica = model._replicate_for_data_parallel()
    for name, part in model._modules.items():
        setattr(replica, name, part)
    assert torch.equal(replica(X), model(X))
