"""What may change between the forward and the backward pass of an exact gradient: nothing that it is computed from."""

import argparse
import copy
import functools
import types
import warnings

import pytest
import torch
from cases import tensor
from nets import ConvDenoiser, conv_denoiser, fixed_weights

import pursamere as ps

NOISE = ps.GaussianNoise(seed=2, draws=4)


def make_purifier(denoiser, **options):
    return ps.Purifier(denoiser, sigma=0.3, radius=0.2, step_size=0.3, noise=NOISE, **options)


def gradient_of(model, x, mode):
    leaf = x.clone().requires_grad_()
    return torch.autograd.grad(model(leaf, gradient=mode).sum(), leaf)[0]


def _write(model):
    with torch.no_grad():
        next(model.denoiser.parameters()).mul_(1.1)


def _replace_memory(model):
    parameter = next(model.denoiser.parameters())
    parameter.data = 1.1 * parameter.data


def _assign(model):
    model.denoiser.load_state_dict(copy.deepcopy(model.denoiser).state_dict(), assign=True)


def _replace_module(model):
    model.denoiser.net[1] = torch.nn.ReLU()  # which has no parameters


def _set_attribute(model):
    model.denoiser.scale = 3.0


def _add_hook(model):
    model.denoiser.register_forward_hook(lambda module, arguments, result: 2 * result)


def _add_backward_hook(model):
    model.denoiser.net[0].register_full_backward_hook(lambda module, grads, _: grads)


def _train_one_layer(model):
    model.denoiser.net[0].train()  # which no check of the mode refuses: its own code decides what it does in training


CHANGES = [
    _write,
    _replace_memory,
    _assign,
    _replace_module,
    _set_attribute,
    _add_hook,
    _add_backward_hook,
    _train_one_layer,
]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__.strip("_"))
@pytest.mark.parametrize("mode", ["exact", "straight_through"])
def test_a_denoiser_that_changes_between_the_passes_is_refused(mode, change):
    model = make_purifier(conv_denoiser(), steps=1)
    x = tensor(0, 1, 1, 4, 4, dtype=torch.float32).requires_grad_()
    purified = model(x, gradient=mode)
    change(model)
    with pytest.raises(RuntimeError, match="changed or replaced between the forward and backward pass"):
        purified.sum().backward()


@pytest.mark.parametrize("mode", ["exact", "straight_through", "unrolled"])
def test_functional_call_gives_the_gradient_of_the_weights_that_it_used_or_none(mode):
    model, other = make_purifier(conv_denoiser(), steps=2), make_purifier(fixed_weights(ConvDenoiser(), 5), steps=2)
    x = tensor(0, 2, 1, 4, 4, dtype=torch.float32)
    leaf = x.clone().requires_grad_()
    result = torch.func.functional_call(model, dict(other.named_parameters()), (leaf, mode))
    assert torch.equal(result.detach(), other(x))
    if mode == "unrolled":
        (got,) = torch.autograd.grad(result.sum(), leaf)
        want = gradient_of(other, x, mode)
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)
    else:
        with pytest.raises(RuntimeError, match="changed or replaced between the forward and backward pass"):
            result.sum().backward()


class Sampler:
    """An object that is not callable."""

    def __init__(self, net):
        self.inner = argparse.Namespace(net=net)

    def denoise(self, y, sigma):
        return self.inner.net(y, sigma)


def _global_denoiser(net):
    """A function of a module or notebook of its own, whose network is a global variable."""
    scope = {"__name__": "notebook", "net": net}
    exec("def helper(y, sigma): return net(y, sigma)\ndef denoiser(y, sigma): return helper(y, sigma)", scope)
    return scope["denoiser"]


WRAPPERS = {
    "object in a closure": lambda net: (lambda sampler: lambda y, sigma: sampler.denoise(y, sigma))(Sampler(net)),
    "method of an object": lambda net: Sampler(net).denoise,
    "global variable": _global_denoiser,
    "closure": lambda net: lambda y, sigma: net(y, sigma),
    "default": lambda net: lambda y, sigma, net=net: net(y, sigma),
    "keyword default": lambda net: lambda y, sigma, *, net=net: net(y, sigma),
    "list": lambda net: (lambda nets: lambda y, sigma: nets[0](y, sigma))([net]),
    "partial": lambda net: functools.partial(lambda inner, y, sigma: inner(y, sigma), net),
    "method": lambda net: net.forward,
    "adapter": lambda net: ps.denoisers.from_score(lambda y, sigma: (net(y, sigma) - y) / sigma**2),
}


@pytest.mark.parametrize("name", WRAPPERS)
def test_networks_inside_functions_are_watched_too(name):
    net = conv_denoiser()
    model = make_purifier(WRAPPERS[name](net), steps=1)
    x = tensor(0, 1, 1, 4, 4, dtype=torch.float32).requires_grad_()
    purified = model(x)
    net.load_state_dict(fixed_weights(ConvDenoiser(), 5).state_dict())
    with pytest.raises(RuntimeError, match="changed or replaced between the forward and backward pass"):
        purified.sum().backward()


class Holder:
    """A callable object."""

    def __init__(self, net):
        self.net, self.options, self.table, self._cached = net, {"scale": 1.0}, torch.ones(()), None

    def __call__(self, y, sigma):
        self._cached = sigma
        return self.net(y, sigma) * self.options["scale"] * self.table


def _in_module(net):
    module = fixed_weights(ConvDenoiser())
    module.holder = Holder(net)
    module.forward = module.holder.__call__
    return module


def _holder_of(denoiser):
    return denoiser if isinstance(denoiser, Holder) else denoiser.holder


HELD_CHANGES = {
    "module": lambda holder: next(holder.net.parameters()).detach().mul_(1.1),
    "another module": lambda holder: setattr(holder, "net", copy.deepcopy(holder.net)),
    "number in a dictionary": lambda holder: holder.options.update(scale=3.0),
    "tensor": lambda holder: holder.table.mul_(3.0),
    "another tensor": lambda holder: setattr(holder, "table", torch.tensor(3.0)),
}


@pytest.mark.parametrize("make", [Holder, _in_module])
@pytest.mark.parametrize("change", HELD_CHANGES)
def test_what_callable_objects_hold_is_watched(make, change):
    denoiser = make(conv_denoiser())
    model = make_purifier(denoiser, steps=1)
    x = tensor(0, 1, 1, 4, 4, dtype=torch.float32).requires_grad_()
    purified = model(x)
    HELD_CHANGES[change](_holder_of(denoiser))
    with pytest.raises(RuntimeError, match="changed or replaced between the forward and backward pass"):
        purified.sum().backward()


def test_a_replaced_network_in_an_object_has_its_derivative_checked():
    holder = Holder(conv_denoiser())
    model = make_purifier(holder, steps=1)
    x = tensor(0, 1, 1, 4, 4, dtype=torch.float32)
    gradient_of(model, x, "exact")
    net = holder.net
    holder.net = lambda y, sigma: y + (net(y, sigma) - y).detach()
    with pytest.raises(RuntimeError, match="differs from finite differences"):
        gradient_of(model, x, "exact")


class Counting(ConvDenoiser):
    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))
        self.register_buffer("table", torch.eye(4).to_sparse())

    def forward(self, y, sigma):
        self.calls += 1
        return super().forward(y, sigma)


class LazyPackage(types.ModuleType):
    """As transformers and diffusers are: a package whose names are loaded when they are used."""

    def __call__(self, y):
        self.loaded = len(vars(self))
        return y


def test_packages_are_no_part_of_a_network():
    package, net = LazyPackage("package"), conv_denoiser()
    package.first = Sampler(net)
    model = make_purifier(lambda y, sigma: package(net(y, sigma)), steps=1)
    x = tensor(0, 1, 1, 4, 4, dtype=torch.float32)
    leaf = x.clone().requires_grad_()
    results = [model(leaf), model(leaf)]
    package.second = Sampler(net)
    want = gradient_of(make_purifier(net, steps=1), x, "exact")
    assert torch.equal(torch.autograd.grad(sum(results).sum(), leaf)[0], 2 * want)


def test_a_network_may_count_its_calls_and_hold_sparse_tensors():
    model, plain = make_purifier(fixed_weights(Counting()), steps=2), make_purifier(conv_denoiser(), steps=2)
    x = tensor(0, 2, 1, 4, 4, dtype=torch.float32)
    assert torch.equal(gradient_of(model, x, "exact"), gradient_of(plain, x, "exact"))


def test_a_setting_of_a_users_purifier_that_changes_between_the_passes_is_refused():
    class Scaled(ps.Purifier):
        def _step(self, t, x, x0, mode):
            return super()._step(t, x, x0, mode) * self.scale

    model = Scaled(conv_denoiser(), sigma=0.3, radius=0.1, steps=2)
    model.scale = 0.5  # after construction, so it is not read-only
    model.register_buffer("shift", torch.zeros(1))
    x = tensor(0, 1, 1, 6, 6, dtype=torch.float32).requires_grad_()
    for change in (lambda: setattr(model, "scale", 0.75), lambda: model.shift.add_(1)):
        y = model(x)
        change()
        with pytest.raises(RuntimeError, match="attribute of it or of the purifier, was changed"):
            y.sum().backward()


def _plain(net):
    return net


def _weight_norm(net):
    with warnings.catch_warnings():  # deprecated, and still in many networks
        warnings.simplefilter("ignore", FutureWarning)
        torch.nn.utils.weight_norm(net.net[0])
    return net.requires_grad_(False)


def _spectral_norm(net):
    torch.nn.utils.spectral_norm(net.net[0])
    return net.eval().requires_grad_(False)


@pytest.mark.parametrize("prepare", [_plain, _weight_norm, _spectral_norm])
def test_passes_may_overlap(prepare):
    """Neither what the first backward pass finds out about the denoiser nor what it computes anew is a change of it."""
    model = ps.Purifier(prepare(conv_denoiser()), sigma=0.3, radius=0.2, steps=1)
    leaves = [tensor(seed, 2, 1, 6, 6, dtype=torch.float32).requires_grad_() for seed in range(2)]
    results = [model(leaf) for leaf in leaves]
    together = [torch.autograd.grad(result.sum(), leaf)[0] for leaf, result in zip(leaves, results, strict=True)]
    for leaf, got in zip(leaves, together, strict=True):
        assert torch.equal(got, torch.autograd.grad(model(leaf).sum(), leaf)[0])


def test_a_changed_keyword_of_a_partial_is_a_change():
    denoiser = functools.partial(lambda y, sigma, scale: scale * y.tanh(), scale=1.0)
    model = ps.Purifier(denoiser, sigma=0.3, radius=0.2, steps=1)
    x = tensor(0, 2, 1, 6, 6, dtype=torch.float32).requires_grad_()
    result = model(x)
    denoiser.keywords["scale"] = 0.5
    with pytest.raises(RuntimeError, match="was changed or replaced between the forward and backward pass"):
        result.sum().backward()


def test_the_steps_of_a_subclass_are_what_runs():
    class Halving(ps.Purifier):
        def _step(self, t, x, x0, mode):
            return 0.5 * super()._step(t, x, x0, mode)

    options = {"sigma": 0.3, "radius": 0.2, "steps": 2}
    x = tensor(0, 2, 1, 6, 6, dtype=torch.float32)
    plain, halving = ps.Purifier(conv_denoiser(), **options), Halving(conv_denoiser(), **options)
    assert not torch.equal(halving(x), plain(x))
    leaves = [x.clone().requires_grad_() for _ in range(2)]
    exact, unrolled = (
        torch.autograd.grad(halving(leaf, gradient=gradient).square().sum(), leaf)[0]
        for leaf, gradient in zip(leaves, ("exact", "unrolled"), strict=True)
    )
    torch.testing.assert_close(exact, unrolled)
