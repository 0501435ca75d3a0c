"""A purification waits for the device once, at its end, so that it can be captured in a CUDA graph."""

import warnings

import pytest
import torch
from cases import tensor
from nets import conv_denoiser
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import pursamere as ps
from pursamere import cuda_graphs
from pursamere.cuda_graphs import CapturedCalls, _Graph
from pursamere.determinism import copy_with
from pursamere.stepping import IterativePurifier

WAITING = {"_local_scalar_dense", "nonzero", "equal", "is_nonzero", "item", "masked_select", "unique"}


class Ops(TorchDispatchMode):
    """Lists all ops that this thread runs."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func._opname if hasattr(func, "_opname") else str(func))
        return func(*args, **(kwargs or {}))


class EDM(nn.Module):
    """With the interface of a preconditioned network."""

    def __init__(self):
        super().__init__()
        self.inner = conv_denoiser()

    def forward(self, x, sigma, class_labels=None):
        return self.inner(x, sigma.reshape(-1, 1, 1, 1))


DENOISERS = {
    "conv": conv_denoiser,
    "edm": lambda: ps.denoisers.from_edm(EDM()),
    "score": lambda: ps.denoisers.from_score(lambda y, sigma: -y),
    "kernel_density": lambda: ps.denoisers.KernelDensity(tensor(2, 30, 1, 6, 6, dtype=torch.float32), 0.2),
    "unet": lambda: (
        ps.models.EDMUNet((1, 6, 6), channels=(8, 8), groups=4, attention=True).eval().requires_grad_(False)
    ),
}


@pytest.mark.parametrize("rows", ["_last", "_path"])
@pytest.mark.parametrize("direction", ["ere", "score"])
@pytest.mark.parametrize("name", DENOISERS)
def test_the_body_never_waits(name, direction, rows):
    model = ps.Purifier(DENOISERS[name](), sigma=0.3, radius=0.2, steps=2, direction=direction)
    x = tensor(0, 3, 1, 6, 6, dtype=torch.float32)
    model(x)  # checks the denoiser
    mode = model._mode(model._noise_of_call(x))
    with model._in_network(x.device, grad=False), Ops() as ops:
        model._map(getattr(model, rows), mode, x)
    assert "residual" in ops.names
    assert WAITING.isdisjoint(ops.names)


@pytest.mark.parametrize("direction", ["ere", "score"])
def test_the_body_of_the_exact_gradient_never_waits(direction):
    model = ps.Purifier(conv_denoiser(), sigma=0.3, radius=0.2, steps=2, direction=direction)
    x = tensor(0, 3, 1, 6, 6, dtype=torch.float32)
    leaf = x.clone().requires_grad_()
    result = model(leaf)
    result.sum().backward()
    mode = model._mode(model._noise_of_call(x), create_graph=True)
    with model._in_network(x.device, grad=False):
        _, path = model._map(model._path, model._mode(model._noise_of_call(x)), x)
    with model._in_network(x.device, grad=True), Ops() as ops:
        model._map(model._path_vjp, mode, x, path, torch.ones_like(x))
    assert "residual" in ops.names
    assert WAITING.isdisjoint(ops.names)


def test_a_purification_without_a_gradient_waits_for_its_checks_only():
    """On a CPU three times for the input, whose values are checked before any work, and once for the result."""
    model = ps.Purifier(conv_denoiser(), sigma=0.3, radius=0.2, steps=2)
    x = tensor(0, 3, 1, 6, 6, dtype=torch.float32)
    model(x)
    with Ops() as ops:
        model(x)
    assert sum(name in WAITING for name in ops.names) == 4


class Tape:
    """Stands for CUDA graphs: a replay runs the function again on the captured arguments."""

    def __init__(self, monkeypatch):
        self.captures = 0
        monkeypatch.setattr(cuda_graphs, "_capture", self.capture)
        monkeypatch.setattr(cuda_graphs, "_stream", lambda device: 0)

    def capture(self, function, arguments):
        self.captures += 1
        static = [argument.clone() for argument in arguments]
        results = tuple(result.clone() for result in function(*static))

        def replay():
            for result, value in zip(results, function(*static), strict=True):
                result.copy_(value)

        return _Graph(static, results, replay)


def test_captured_calls_give_the_function_s_results_and_capture_once_a_shape(monkeypatch):
    tape, network = Tape(monkeypatch), nn.Linear(3, 3)
    captured = CapturedCalls()

    def function(x, y):
        return network(x).detach() + y, x * y

    held = []
    for seed, rows in enumerate((2, 2, 4, 2, 4)):
        x, y = tensor(seed, rows, 3, dtype=torch.float32), tensor(seed + 9, rows, 3, dtype=torch.float32)
        held.append((captured(network, function, "key", x, y), function(x, y)))
    for got, want in held:  # results of earlier calls are not overwritten
        assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))
    assert tape.captures == 2
    captured(network, function, "another key", x, y)
    assert tape.captures == 3


def test_a_changed_network_is_captured_again(monkeypatch):
    tape, network = Tape(monkeypatch), nn.Linear(3, 3)
    captured = CapturedCalls()
    x = tensor(0, 2, 3, dtype=torch.float32)
    for change in (
        lambda: None,
        lambda: network.weight.data.mul_(1),  # unseen, but the graph reads the same memory
        lambda: network.weight.detach().mul_(2),
        lambda: setattr(network, "weight", nn.Parameter(network.weight.detach() * 3)),
        lambda: setattr(network, "_private", 1),
    ):
        change()
        (got,) = captured(network, lambda x: (network(x).detach(),), "key", x)
        assert torch.equal(got, network(x))
    assert tape.captures == 4


@pytest.mark.parametrize("change", ["steps", "noise", "autocast"])
def test_a_copy_with_other_settings_and_another_autocast_state_have_graphs_of_their_own(monkeypatch, change):
    tape = Tape(monkeypatch)
    monkeypatch.setattr(ps.Purifier, "_capturing", capturing_on_a_cpu)
    x = tensor(0, 2, 1, 6, 6, dtype=torch.float32)
    model = ps.Purifier(conv_denoiser(), sigma=0.3, radius=0.2, steps=2, execution=ps.Execution(cuda_graphs=True))
    model(x)
    captures = tape.captures
    changes = {"steps": {"steps": 1}, "noise": {"noise": ps.GaussianNoise(seed=9)}, "autocast": {}}[change]
    other = copy_with(model, **changes)
    plain = ps.Purifier(model.denoiser, **{"sigma": 0.3, "radius": 0.2, "steps": 2, **changes})
    with torch.autocast("cpu", torch.bfloat16, enabled=change == "autocast"):
        assert torch.equal(other(x), plain(x))
        assert torch.equal(model(x), ps.Purifier(model.denoiser, sigma=0.3, radius=0.2, steps=2)(x))
    assert tape.captures > captures


def capturing_on_a_cpu(self, rows, mode, device):
    return IterativePurifier._capturing(self, rows, mode, torch.device("cuda"))


def test_a_failed_capture_is_told_once_and_the_function_is_called(monkeypatch):
    def fail(function, arguments):
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(cuda_graphs, "_capture", fail)
    monkeypatch.setattr(cuda_graphs, "_stream", lambda device: 0)
    captured, x = CapturedCalls(), tensor(0, 2)
    with pytest.warns(RuntimeWarning, match=r"no effect, since the capture failed \(operation not permitted"):
        assert torch.equal(captured(None, lambda x: (x + 1,), "key", x)[0], x + 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(captured(None, lambda x: (x + 1,), "key", x)[0], x + 1)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda **options: ps.Purifier(conv_denoiser(), sigma=0.3, radius=0.2, **options), "the images are on cpu"),
        (lambda **options: ps.baselines.LikelihoodMaximization(conv_denoiser(), **options), "the images are on cpu"),
    ],
)
def test_without_a_gpu_there_is_one_warning_that_says_so(make, reason):
    x = tensor(0, 2, 1, 6, 6, dtype=torch.float32)
    model = make(execution=ps.Execution(cuda_graphs=True), steps=1)
    with pytest.warns(RuntimeWarning, match=f"cuda_graphs=True has no effect, since {reason}"):
        result = model(x)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model(x)
    assert torch.equal(result, make(steps=1)(x))
