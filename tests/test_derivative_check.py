"""Denoisers that autograd differentiates wrongly are found, and no others."""

import copy
import threading
import warnings

import pytest
import torch
from cases import tensor
from derivative_cases import (
    NOISE,
    RIGHT,
    WRONG_TWICE,
    Denoiser,
    Silu,
    SiluDetached,
    SiluIntermediate,
    SiluOnce,
    X,
    make_purifier,
    only_float32,
    weights,
)
from nets import AttentionDenoiser, fixed_weights
from torch import nn

import pursamere as ps
from pursamere.baselines import DiffPure, ScoreOptO
from pursamere.derivative_check import compare_derivatives


@pytest.mark.parametrize("direction", ["ere", "score"])
@pytest.mark.parametrize("name", RIGHT)
def test_a_right_derivative_passes_in_float64(name, direction):
    for wrap in (lambda net: net, lambda net: lambda y, sigma: net(y, sigma)):
        model = make_purifier(RIGHT[name], direction, wrap)
        agreement = model.check_derivative(X)
        assert agreement.dtype == torch.float64
        assert agreement.error < 1e-6
        assert agreement.uncertainty < 1e-5
        assert {parameter.dtype for parameter in weights(model)} == {torch.float32}


@pytest.mark.parametrize("mode", ["exact", "straight_through", "unrolled"])
@pytest.mark.parametrize("name", WRONG_TWICE)
def test_a_wrong_second_derivative_is_refused_where_one_is_taken(name, mode):
    leaf = X.clone().requires_grad_()
    with pytest.raises(RuntimeError, match=r"differs from finite differences.*direction='score'"):
        make_purifier(WRONG_TWICE[name])(leaf, gradient=mode)
    purified = make_purifier(WRONG_TWICE[name])(leaf, gradient="identity")
    assert torch.equal(purified.detach(), make_purifier(WRONG_TWICE[name])(X))
    score = make_purifier(WRONG_TWICE[name], "score")
    right = make_purifier(nn.functional.silu, "score")
    got, want = (torch.autograd.grad(model(leaf, gradient=mode).sum(), leaf)[0] for model in (score, right))
    torch.testing.assert_close(got, want)


@pytest.mark.parametrize("direction", ["ere", "score"])
def test_a_detached_part_of_the_network_is_refused(direction):
    model = make_purifier(lambda x: x * torch.sigmoid(x).detach(), direction)
    with pytest.raises(RuntimeError, match="differs from finite differences"):
        model(X.clone().requires_grad_())


@pytest.mark.slow
def test_operations_without_float64():
    assert make_purifier(only_float32(Silu).apply).check_derivative(X).dtype == torch.float32
    for function in (SiluDetached, SiluOnce, SiluIntermediate):
        with pytest.raises(RuntimeError, match="in float32"):
            make_purifier(only_float32(function).apply).check_derivative(X)


def test_what_cannot_be_told_is_a_warning():
    """Kinks drown finite differences in float32, and the custom function takes nothing else."""
    function = only_float32(Silu).apply
    model = make_purifier(lambda x: function(x) + 0.01 * torch.relu(torch.sin(1e4 * x)))
    with pytest.warns(RuntimeWarning, match="could not be verified"):
        agreement = model.check_derivative(X)
    assert not agreement.is_known
    assert not agreement.is_wrong


def test_half_precision_networks_are_checked_too():
    agreement = make_purifier(nn.functional.silu, wrap=lambda net: net.half()).check_derivative(X.half())
    assert agreement.dtype == torch.float64
    assert agreement.error < 1e-6
    with pytest.raises(RuntimeError, match="differs from finite differences"):
        make_purifier(SiluDetached.apply, wrap=lambda net: net.half()).check_derivative(X.half())


@pytest.mark.parametrize("scale", [1.0, 1e-6])
def test_the_error_is_the_missing_part(scale):
    """d/dx of x^2 where half of it is detached."""
    agreement = compare_derivatives(lambda x: scale * x * x.detach(), [tensor(0, 2, 1, 3, 3), tensor(1, 2, 1, 3, 3)])
    assert agreement.error == pytest.approx(0.5, rel=1e-6)
    assert agreement.is_wrong


BUFFER = torch.zeros(8)


def with_table(x):
    table = torch.zeros(2)
    table[0] = 0.5
    return torch.tanh(x) * table[0]


def with_sum(x):
    total = torch.zeros(x.shape, dtype=torch.float32)
    total += torch.tanh(x)
    return total


def with_out(x):
    torch.sin(torch.arange(8.0), out=BUFFER)
    return torch.tanh(x) * BUFFER[1]


def with_view(x):
    BUFFER.fill_(0.5)
    return torch.tanh(x) * BUFFER[1]


def of_float32_only(x):
    if x.dtype != torch.float32:
        raise TypeError("float32 only")
    return torch.tanh(x)


def broken_in_float64(x):
    if x.dtype == torch.float64:
        raise torch.OutOfMemoryError("too much")
    return torch.tanh(x)


@pytest.mark.parametrize("activation", [with_table, with_sum, with_out, with_view, of_float32_only, broken_in_float64])
def test_writes_and_exceptions_hide_nothing(activation):
    """What can't be run in float64 is compared in float32, and writes are not lost on the way."""
    in_float64 = activation in (with_table, with_sum)
    agreement = make_purifier(activation).check_derivative(X)
    assert agreement.dtype == (torch.float64 if in_float64 else torch.float32)
    with pytest.raises(RuntimeError, match="differs from finite differences"):
        make_purifier(lambda x: activation(x) + torch.sin(3 * x).detach()).check_derivative(X)


def traced(net):
    function = torch.jit.trace(lambda y: net(y, 0.3), torch.rand(4, 1, 8, 8), check_trace=False)
    return lambda y, sigma: function(y)


@pytest.mark.parametrize("how", [torch.jit.script, traced, lambda net: torch.compile(net, backend="eager")])
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_scripted_and_compiled_networks_are_compared_too(how):
    class Part(nn.Module):
        def __init__(self, detached: bool):
            super().__init__()
            self.detached = detached

        def forward(self, y: torch.Tensor, sigma: float) -> torch.Tensor:
            wave = torch.sin(3 * y)
            return 0.5 * torch.tanh(y) + (wave.detach() if self.detached else wave)

    right, wrong = (
        ps.Purifier(how(Part(d).eval()), sigma=0.3, radius=0.2, steps=1, noise=NOISE) for d in (False, True)
    )
    assert right.check_derivative(X).error < 1e-3
    with pytest.raises(RuntimeError, match="differs from finite differences"):
        wrong.check_derivative(X)


@pytest.mark.parametrize("shape", [(1, 32, 32), (3, 16, 16)])
def test_what_depends_on_the_whole_image_counts(shape):
    """Noise hardly moves a mean, so that along it alone the missing part would be rounded away."""
    convolution = nn.Conv2d(shape[0], shape[0], 3, padding=1)

    def denoiser(detach):
        def gated(y, sigma):
            mean = y.mean((1, 2, 3), keepdim=True)
            return net(y) + torch.tanh(3 * ((mean.detach() if detach else mean) - 0.4))

        net = fixed_weights(convolution)
        return ps.Purifier(gated, sigma=0.2, radius=0.2, steps=2, noise=NOISE)

    x = torch.zeros(1, *shape)
    assert denoiser(False).check_derivative(x).error < 1e-6
    with pytest.raises(RuntimeError, match="differs from finite differences"):
        denoiser(True).check_derivative(x)


@pytest.mark.parametrize("name", ["DiffPure", "ScoreOptO"])
def test_every_noise_level_counts(name):
    """A denoiser of experts by noise level, one of them detached."""

    def experts(y, sigma):
        seen.append(sigma)
        return 0.5 * torch.tanh(y) + (torch.sin(y).detach() if sigma < 0.1 else torch.sin(y))

    seen: list[float] = []
    baseline = (
        DiffPure(experts, steps=5) if name == "DiffPure" else ScoreOptO(experts, sigma=0.15, spread=0.12, steps=5)
    )
    with pytest.raises(RuntimeError, match="differs from finite differences"):
        baseline.check_derivative(X)
    assert min(seen) < 0.1 < max(seen)


@pytest.mark.slow
def test_many_small_steps_hide_nothing():
    with pytest.raises(RuntimeError, match="differs from finite differences"):
        ps.baselines.DiffPure(lambda y, sigma: torch.tanh(y) + torch.sin(y).detach(), steps=200).check_derivative(X)


def test_the_check_leaves_no_float64_behind():
    """A table that the denoiser makes in its first call is that of the network, not of the check."""

    class Lazy(nn.Module):
        def __init__(self):
            super().__init__()
            self._table = None

        def forward(self, y, sigma):
            if self._table is None:
                self._table = torch.sin(1000 * torch.exp(-torch.arange(8.0)))
            return torch.tanh(y) * self._table.to(y.dtype).sum()

    first, second = (ps.Purifier(Lazy().eval(), sigma=0.3, radius=0.2, steps=1, noise=NOISE) for _ in range(2))
    first(X.clone().requires_grad_())
    assert first.denoiser._table.dtype == torch.float32
    assert torch.equal(first(X), second(X))


def test_a_replaced_module_or_denoiser_is_compared_anew():
    model = make_purifier(nn.functional.silu)
    assert model.check_derivative(X).error < 1e-6
    model.denoiser.convolutions[1] = Detached(model.denoiser.convolutions[1])
    with pytest.raises(RuntimeError, match="differs from finite differences"):
        model.check_derivative(X)


class Detached(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner(x) + torch.sin(x).detach()


@pytest.mark.parametrize("name", ["DiffPure", "EreDescent", "ScoreOptN"])
def test_baselines_are_checked_too(name):
    options = {"sigma": 0.3, "radius": 0.2} if name == "EreDescent" else {}

    def baseline(denoiser):
        return getattr(ps.baselines, name)(denoiser, steps=2, **options)

    assert baseline(fixed_weights(Denoiser(torch.relu))).check_derivative(X).error < 1e-6
    wrong = baseline(fixed_weights(Denoiser(lambda x: x * torch.sigmoid(x).detach())))
    with pytest.raises(RuntimeError, match="differs from finite differences"):
        wrong(X.clone().requires_grad_())


def test_attention_and_closed_forms_pass():
    for denoiser in (fixed_weights(AttentionDenoiser()), ps.denoisers.KernelDensity(tensor(3, 20, 1, 8, 8), 0.2)):
        agreement = ps.Purifier(denoiser, sigma=0.3, radius=0.2, steps=2, noise=NOISE).check_derivative(X)
        assert agreement.error < 1e-5


@pytest.mark.parametrize("call", [lambda model: model(X), lambda model: model.trace(X)])
def test_a_purification_that_follows_a_wrong_derivative_says_so(call):
    def partly_detached(y, sigma):
        return 0.5 * y + 0.4 * torch.sin(y.detach())

    model = ps.Purifier(partly_detached, sigma=0.3, radius=0.2, steps=1, noise=NOISE)
    message = "purification follows autograd's derivative of the denoiser, which differs from finite differences"
    with pytest.warns(RuntimeWarning, match=message):
        call(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        call(model)  # once
        call(ps.Purifier(partly_detached, sigma=0.3, radius=0.2, steps=1, direction="score", noise=NOISE))
        call(ps.Purifier(lambda y, sigma: 0.5 * y + 0.4 * torch.sin(y), sigma=0.3, radius=0.2, steps=1, noise=NOISE))


@pytest.mark.parametrize(
    "denoiser",
    [
        lambda y, sigma: y,
        lambda y, sigma: (y - 0.4914) / 0.2023 * 0.2023 + 0.4914,
        lambda y, sigma: torch.fft.irfft2(torch.fft.rfft2(y), s=y.shape[-2:]),
        lambda y, sigma: y / 3 * 3,
        lambda y, sigma: torch.zeros_like(y) + 0 * y,
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_an_error_that_hardly_depends_on_the_image_is_no_wrong_derivative(denoiser, dtype):
    model = ps.Purifier(denoiser, sigma=0.3, radius=0.2, steps=1, noise=NOISE)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="purification follows")
        model(X.to(dtype))


def test_a_compiled_network_is_compiled_as_often_as_it_runs():
    graphs = []
    network = fixed_weights(Denoiser(torch.tanh))

    def backend(graph, example_inputs):
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(network, backend=backend, dynamic=False)
    ps.Purifier(compiled, sigma=0.3, radius=0.2, steps=1, noise=NOISE, micro_batch=1)(X)
    assert len(graphs) == 1


def test_a_purifier_is_copied_after_a_call_as_before():
    class Locked(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.lock = threading.Lock()

        def __getstate__(self):
            return {name: value for name, value in self.__dict__.items() if name != "lock"}

        def __setstate__(self, state):
            super().__setstate__(state)
            self.lock = threading.Lock()

        def forward(self, y, sigma):
            return 0.9 * y

    model = ps.Purifier(Locked(), sigma=0.3, radius=0.2, steps=1, noise=NOISE)
    expected = model(X)
    assert torch.equal(copy.deepcopy(model)(X), expected)
    state = {name: value for name, value in model.__getstate__().items() if name != "_checked_descents"}
    older = ps.Purifier.__new__(ps.Purifier)
    older.__setstate__(state)  # saved before there was this attribute
    assert torch.equal(older(X), expected)


def test_the_check_is_made_once_and_where_a_derivative_is_taken():
    seen = []

    def denoiser(y, sigma):
        seen.append(y.dtype)
        return 0.9 * y

    model = ps.Purifier(denoiser, sigma=0.3, radius=0.2, steps=1, noise=NOISE)
    for first in (X, X.clone().requires_grad_()):  # the gradient that the steps follow, and the exact gradient
        seen.clear()
        model(first)
        assert torch.float64 in seen
        seen.clear()
        model(first)
        assert torch.float64 not in seen
    model.trace(X)
    assert torch.float64 not in seen
    score = ps.Purifier(denoiser, sigma=0.3, radius=0.2, steps=1, direction="score", noise=NOISE)
    score(X)
    assert torch.float64 not in seen
    score(X.clone().requires_grad_())
    assert torch.float64 in seen
    seen.clear()
    model(X.clone().requires_grad_())
    assert torch.float64 not in seen
    assert (
        ps.Purifier(denoiser, sigma=0.3, radius=0.2, steps=1, step_rule="sign", step_size=0.1).check_derivative(X)
        is None
    )
    assert ps.Purifier(denoiser, sigma=0.3, radius=0.2, steps=0).check_derivative(X) is None
