"""What is checked once per network is checked again when the network, or a setting of PyTorch, becomes another one."""

import argparse
import copy
import pickle
import subprocess
import sys
import threading
import weakref

import pytest
import torch
from cases import tensor
from diffusion_families import EDMNetwork
from nets import ConvDenoiser, conv_classifier, conv_denoiser, fixed_weights
from torch import nn

import pursamere as ps
from pursamere.baselines import DiffPure

X = tensor(0, 3, 1, 6, 6, dtype=torch.float32)


class Mixing(nn.Module):
    """Mixes the images of a batch."""

    def forward(self, y):
        return y - y.mean(dim=0)


class FunctionalDropout(ConvDenoiser):
    def forward(self, y, sigma):
        return super().forward(nn.functional.dropout(y, 0.5, self.training), sigma)


def purifier(denoiser, **options):
    return ps.Purifier(denoiser, sigma=0.3, radius=0.2, steps=2, direction="score", **options)


def test_a_network_inside_a_function_that_is_switched_to_training_is_refused():
    net = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Conv2d(4, 1, 3, padding=1)).eval()
    model, leaf = purifier(lambda y, sigma: net(y)), X.clone().requires_grad_()
    result, want = model(leaf), model(X)
    net.train()
    with pytest.raises(ValueError, match="denoiser must be in evaluation mode, but its layer 'BatchNorm2d'"):
        model(X)
    with pytest.raises(RuntimeError, match="changed or replaced between the forward and backward pass"):
        result.sum().backward()
    assert int(net[1].num_batches_tracked) == 0
    net.eval()
    assert torch.equal(model(X), want)


def test_a_classifier_inside_a_function_that_is_switched_to_training_is_refused():
    net = nn.Sequential(conv_classifier(), nn.Dropout(0.5)).eval()
    model = ps.PurifiedClassifier(purifier(conv_denoiser()), lambda x: net(x))
    model(X)
    net.train()
    with pytest.raises(ValueError, match="classifier must be in evaluation mode, but its layer 'Dropout'"):
        model(X)


def test_a_network_that_becomes_random_in_training_mode_is_refused():
    """By a function: no layer tells it."""
    net = fixed_weights(FunctionalDropout())
    model, leaf = purifier(net), X.clone().requires_grad_()
    result = model(leaf)
    net.train()
    with pytest.raises(RuntimeError, match="drew random numbers"):
        model(X)
    with pytest.raises(RuntimeError, match="changed or replaced between the forward and backward pass"):
        result.sum().backward()


def test_a_replaced_module_is_checked():
    model = purifier(conv_denoiser(), invariance="strict")
    model(X)
    model.denoiser.net[1] = Mixing()
    with pytest.raises(RuntimeError, match="mixes the images of a batch"):
        model(X)


@pytest.mark.parametrize("change", [lambda net: net.to(memory_format=torch.channels_last), lambda net: net.bfloat16()])
def test_another_memory_format_or_dtype_is_checked(change):
    net = conv_denoiser()
    calls = []
    net.register_forward_pre_hook(lambda *_: calls.append(1))
    model = purifier(lambda y, sigma: net(y.to(net.net[0].weight.dtype), sigma).to(y.dtype))
    counts = []
    for _ in range(2):
        calls.clear()
        model(X)
        counts.append(len(calls))
    change(net)
    calls.clear()
    model(X)
    assert counts[1] < counts[0]
    assert len(calls) > counts[1]


class Remembering:
    """An object that keeps what its last call made."""

    def __init__(self, net):
        self.net, self.count, self.last = net, 0, None

    def __call__(self, y, sigma):
        self.count += 1
        self.last = argparse.Namespace(result=self.net(y, sigma))
        return self.last.result


def test_what_a_call_leaves_behind_is_no_other_network():
    net = conv_denoiser()
    calls = []
    net.register_forward_pre_hook(lambda *_: calls.append(1))
    model = purifier(Remembering(net))
    counts = []
    for _ in range(3):
        calls.clear()
        model(X)
        counts.append(len(calls))
    assert counts[0] > counts[1] == counts[2]


def test_weights_that_are_assigned_are_not_kept_and_their_dtype_is_checked():
    net = conv_denoiser()
    model = purifier(lambda y, sigma: net(y.to(net.net[0].weight.dtype), sigma).to(y.dtype))
    model(X)
    old = weakref.ref(net.net[0].weight)
    checked = model._network_check._results
    net.load_state_dict(copy.deepcopy(net).double().state_dict(), assign=True)
    model(X)
    assert old() is None
    assert model._network_check._results is not checked


def test_other_weights_are_not_checked_again():
    net = conv_denoiser()
    calls = []
    net.register_forward_pre_hook(lambda *_: calls.append(1))
    model = purifier(lambda y, sigma: net(y, sigma))
    model(X)
    calls.clear()
    model(X)
    want = len(calls)
    with torch.no_grad():
        net.net[0].weight.mul_(1.1)
    calls.clear()
    model(X)
    assert len(calls) == want


def test_rows_are_independent_after_a_change_of_pytorchs_settings():
    """Without oneDNN, convolutions of several images have other bits than those of one."""
    model = purifier(fixed_weights(ConvDenoiser(3)))
    x = tensor(0, 8, 3, 8, 8, dtype=torch.float32)
    model(x)
    with torch.backends.mkldnn.flags(enabled=False):
        assert torch.equal(model(x), torch.cat([model(part) for part in x.split(1)]))
        assert torch.equal(model(x), purifier(model.denoiser)(x))


@pytest.mark.parametrize("name", ["cuda.matmul", "cudnn", "mkldnn.matmul", ""])
def test_pytorchs_new_names_of_precisions_can_be_used(name):
    """In a process of its own, since PyTorch then refuses the old names."""
    code = f"""
import operator, torch, pursamere as ps
backend = operator.attrgetter({name!r})(torch.backends) if {name!r} else torch.backends
backend.fp32_precision = "ieee"
model = ps.Purifier(lambda y, sigma: 0.5 * y, sigma=0.3, radius=0.2, steps=1)
print(tuple(model(torch.full((1, 1, 4, 4), 0.5)).shape))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "(1, 1, 4, 4)", done.stderr


class Locked(ConvDenoiser):
    """Holds what can't be pickled, and leaves it out itself."""

    def __init__(self):
        super().__init__()
        self.lock = threading.Lock()

    def __getstate__(self):
        return {name: value for name, value in vars(self).items() if name != "lock"}


def test_a_purifier_that_was_used_is_pickled_as_a_new_one():
    model, leaf = purifier(fixed_weights(Locked())), X.clone().requires_grad_()
    new = pickle.dumps(model)
    model(leaf).sum().backward()
    assert abs(len(pickle.dumps(model)) - len(new)) < 100
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        calls = []
        copied.denoiser.register_forward_pre_hook(lambda *_, calls=calls: calls.append(1))
        assert torch.equal(copied(X), model(X))
        first = len(calls)
        copied(X)
        assert len(calls) - first < first  # sizes were found anew: this may be another machine


def replica_of(module):
    """As torch.nn.parallel.replicate makes it, which needs GPUs."""
    modules = list(module.modules())
    replicas = {part: part._replicate_for_data_parallel() for part in modules}
    for part, replica in replicas.items():
        replica._former_parameters = {}
        for name, child in part._modules.items():
            setattr(replica, name, replicas[child])
        for name, parameter in part._parameters.items():
            copied = None if parameter is None else parameter.clone()
            setattr(replica, name, copied)
            replica._former_parameters[name] = copied
    return replicas[module]


def test_replicas_of_data_parallel_are_not_checked_again():
    model = ps.PurifiedClassifier(purifier(conv_denoiser()), conv_classifier())
    calls = []
    model.purifier.denoiser.net[0].register_forward_pre_hook(lambda *_: calls.append(1))

    def results(model):
        calls.clear()
        leaf = X.clone().requires_grad_()
        value = model(leaf)
        return value, *torch.autograd.grad(value.sum(), leaf), len(calls)

    results(model)
    value, gradient, passes = results(model)
    for _ in range(2):
        got = results(replica_of(model))
        assert torch.equal(got[0], value)
        assert torch.equal(got[1], gradient)
        assert got[2] == passes


def test_replicas_of_data_parallel_know_the_dtype_of_their_parameters():
    edm = ps.denoisers.from_edm(fixed_weights(EDMNetwork()).bfloat16())
    model = ps.PurifiedClassifier(purifier(edm), conv_classifier())
    for dtype in (torch.float32, torch.float64):
        assert torch.equal(replica_of(model)(X.to(dtype)), model(X.to(dtype)))


def test_replicas_of_data_parallel_draw_fresh_noise_in_every_call():
    def model():
        return DiffPure(conv_denoiser(), sigma_max=0.3, steps=1, fresh_noise=True, noise=ps.GaussianNoise(seed=1))

    parallel, plain = model(), model()
    want = [plain(X) for _ in range(4)]
    got = [replica(X) for _ in range(2) for replica in [replica_of(parallel), replica_of(parallel)]]
    for each, wanted in zip(got, want, strict=True):
        assert torch.equal(each, wanted)
