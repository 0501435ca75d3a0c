"""Denoisers that autograd differentiates wrongly are found, and no others."""

import pytest
import torch
from cases import tensor
from nets import AttentionDenoiser, fixed_weights
from torch import nn

import pursamere as ps
from pursamere.derivative_check import compare_derivatives
from pursamere.evaluation import Attack, Protocol

NOISE = ps.GaussianNoise(seed=2, draws=4)


def derivative_of_silu(x):
    s = torch.sigmoid(x)
    return s * (1 + x * (1 - s))


class Silu(torch.autograd.Function):
    """Right twice."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return nn.functional.silu(x)

    @staticmethod
    def backward(ctx, v):
        return v * derivative_of_silu(*ctx.saved_tensors)


class SiluDetached(Silu):
    @staticmethod
    def backward(ctx, v):
        return (v * derivative_of_silu(*ctx.saved_tensors)).detach()


class SiluOnce(Silu):
    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, v):
        return v * derivative_of_silu(*ctx.saved_tensors)


class SiluIntermediate(Silu):
    """Saves what it computed where gradients are off, as many fused kernels do."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(derivative_of_silu(x))
        return nn.functional.silu(x)

    @staticmethod
    def backward(ctx, v):
        return v * ctx.saved_tensors[0]


def only_float32(function):
    """The function, which takes no other dtype, as hand-written kernels often do."""

    class OnlyFloat32(function):
        @staticmethod
        def forward(ctx, x):
            if x.dtype != torch.float32:
                raise TypeError("float32 only")
            return function.forward(ctx, x)

    return OnlyFloat32


class Denoiser(nn.Module):
    def __init__(self, activation):
        super().__init__()
        sizes = ((1, 8), (8, 8), (8, 1))
        self.convolutions = nn.ModuleList([nn.Conv2d(*size, 3, padding=1) for size in sizes])
        self.activation = activation

    def forward(self, y, sigma):
        first, second, third = self.convolutions
        return y + sigma * third(self.activation(second(nn.functional.silu(first(y - 0.5)))))


def make_purifier(activation, direction="ere", wrap=lambda net: net, **options):
    denoiser = wrap(fixed_weights(Denoiser(activation)))
    return ps.Purifier(denoiser, sigma=0.3, steps=2, noise=NOISE, direction=direction, **options)


RIGHT = {
    "silu": nn.functional.silu,
    "relu": torch.relu,
    "custom": Silu.apply,
    "in float32 inside": lambda x: nn.functional.silu(x.float()).to(x.dtype),
    "in its weights' dtype": lambda x: x * torch.ones(()).to(x.dtype),
}
WRONG_TWICE = {"detached": SiluDetached.apply, "once": SiluOnce.apply, "intermediate": SiluIntermediate.apply}
X = tensor(0, 2, 1, 8, 8, dtype=torch.float32)


@pytest.mark.parametrize("direction", ["ere", "score"])
@pytest.mark.parametrize("name", RIGHT)
def test_a_right_derivative_passes_in_float64(name, direction):
    for wrap in (lambda net: net, lambda net: lambda y, sigma: net(y, sigma)):
        model = make_purifier(RIGHT[name], direction, wrap)
        agreement = model.check_derivative(X)
        assert agreement.dtype == torch.float64
        assert agreement.error < 1e-6
        assert agreement.uncertainty < 1e-5
        assert next(fixed_weights(Denoiser(torch.relu)).parameters()).dtype == torch.float32


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


def test_operations_without_float64():
    assert make_purifier(only_float32(Silu).apply).check_derivative(X).dtype == torch.float32
    for function in (SiluDetached, SiluOnce, SiluIntermediate):
        with pytest.raises(RuntimeError, match="in float32"):
            make_purifier(only_float32(function).apply).check_derivative(X)

    def stubborn(x):  # of PyTorch's own operations only, which are trusted
        assert x.dtype == torch.float32
        return torch.relu(x)

    assert make_purifier(stubborn).check_derivative(X) is None


def test_what_cannot_be_told_is_a_warning():
    """Kinks drown finite differences in float32, and the custom function takes nothing else."""
    function = only_float32(Silu).apply
    model = make_purifier(lambda x: function(x) + 0.01 * torch.relu(torch.sin(1e4 * x)))
    with pytest.warns(RuntimeWarning, match="could not be verified"):
        agreement = model.check_derivative(X)
    assert not agreement.is_known
    assert not agreement.is_wrong


def test_half_precision_images_are_checked_too():
    double = make_purifier(nn.functional.silu).check_derivative(X.half())
    assert double.dtype == torch.float64
    with pytest.raises(RuntimeError, match="differs from finite differences"):
        make_purifier(SiluDetached.apply).check_derivative(X.half())


@pytest.mark.parametrize("scale", [1.0, 1e-6])
def test_the_error_is_the_missing_part(scale):
    """d/dx of x^2 where half of it is detached."""
    points = [(tensor(0, 2, 1, 3, 3), tensor(1, 2, 1, 3, 3, low=-1))]
    agreement = compare_derivatives(lambda x: scale * x * x.detach(), points)
    assert agreement.error == pytest.approx(0.5, rel=1e-6)
    assert agreement.is_wrong


def test_in_place_writes_are_not_lost_in_float64():
    """Writing to a float32 tensor can't be done in float64, so such a network is compared as it is."""

    def accumulate(x):
        total = torch.zeros(x.shape, dtype=torch.float32)
        total += torch.tanh(x)
        return total

    assert make_purifier(accumulate).check_derivative(X) is None  # PyTorch's own, trusted


@pytest.mark.parametrize("name", ["DiffPure", "EreDescent", "ScoreOptN"])
def test_baselines_are_checked_too(name):
    baseline = getattr(ps.baselines, name)
    assert baseline(fixed_weights(Denoiser(torch.relu)), steps=2).check_derivative(X).error < 1e-6
    wrong = baseline(fixed_weights(Denoiser(lambda x: x * torch.sigmoid(x).detach())), steps=2)
    with pytest.raises(RuntimeError, match="differs from finite differences"):
        wrong(X.clone().requires_grad_())


def test_attention_and_closed_forms_pass():
    for denoiser in (fixed_weights(AttentionDenoiser()), ps.denoisers.KernelDensity(tensor(3, 20, 1, 8, 8), 0.2)):
        agreement = ps.Purifier(denoiser, sigma=0.3, steps=2, noise=NOISE).check_derivative(X)
        assert agreement.error < 1e-5


def test_the_check_is_made_once_and_where_a_derivative_is_taken():
    seen = []

    def denoiser(y, sigma):
        seen.append(y.dtype)
        return 0.9 * y

    model = ps.Purifier(denoiser, sigma=0.3, steps=1, noise=NOISE)
    model(X)
    assert torch.float64 not in seen
    model(X.clone().requires_grad_())
    assert torch.float64 in seen
    seen.clear()
    model(X.clone().requires_grad_())
    assert torch.float64 not in seen
    assert ps.Purifier(denoiser, sigma=0.3, steps=1, step="sign", step_size=0.1).check_derivative(X) is None
    assert ps.Purifier(denoiser, sigma=0.3, steps=0).check_derivative(X) is None


def evaluation_of(denoiser, folder, *attacks, direction="ere"):
    purifier = ps.Purifier(denoiser, sigma=0.3, steps=1, noise=NOISE, direction=direction)
    model = ps.PurifiedClassifier(purifier, lambda x: x.flatten(1)[:, :4])
    protocol = Protocol("tiny", (Attack("clean", "none"), *attacks))
    labels = torch.arange(len(X)) % 4
    return ps.evaluate(model, X, labels, folder=folder, eps=0.05, preset=protocol)


EXACT = Attack("pgd-exact", "pgd", steps=2)
OTHER = Attack("other-noise", "transfer", sources=("other_noise",), steps=2)
HARMLESS = (
    Attack("pgd-bpda", "pgd", steps=2, gradient="identity"),
    Attack("bare", "transfer", sources=("bare",), steps=2),
    Attack("search", "random_search", steps=2),
)


@pytest.mark.parametrize("attack", [EXACT, OTHER], ids=lambda attack: attack.name)
def test_an_evaluation_refuses_a_wrong_derivative_before_any_attack(tmp_path, attack):
    with pytest.raises(RuntimeError, match="differs from finite differences"):
        evaluation_of(fixed_weights(Denoiser(SiluDetached.apply)), tmp_path / "run", attack)
    assert not (tmp_path / "run").exists()


def test_an_evaluation_without_exact_gradients_needs_no_derivative(tmp_path):
    result = evaluation_of(fixed_weights(Denoiser(SiluDetached.apply)), tmp_path / "run", *HARMLESS)
    assert "derivative" not in [check.name for check in result.checks]


def test_an_evaluation_reports_the_figure(tmp_path):
    result = evaluation_of(fixed_weights(Denoiser(Silu.apply)), tmp_path / "run", EXACT, *HARMLESS)
    (check,) = [check for check in result.checks if check.name == "derivative"]
    assert check.passed
    assert "in float64" in check.detail
    assert check.detail in (tmp_path / "run" / "report.md").read_text()


def test_an_evaluation_warns_where_it_cannot_tell(tmp_path):
    function = only_float32(Silu).apply
    denoiser = fixed_weights(Denoiser(lambda x: function(x) + 0.01 * torch.relu(torch.sin(1e4 * x))))
    with pytest.warns(RuntimeWarning, match="could not be verified"):
        result = evaluation_of(denoiser, tmp_path / "run", EXACT)
    assert [check.passed for check in result.checks if check.name == "derivative"] == [False]
