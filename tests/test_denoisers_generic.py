import pytest
import torch
from torch import nn

from pursamere.denoisers import GaussianMixture, KernelDensity, from_noise_prediction, from_score, prediction_of

TAU, SIGMA = 0.7, 0.3
VARIANCE = TAU**2 + SIGMA**2
Y = torch.rand(5, 2, 3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def gaussian_score(y, sigma):
    return -y / (TAU**2 + sigma**2)


def gaussian_noise(y, sigma):
    return sigma * y / (TAU**2 + sigma**2)


@pytest.mark.parametrize(
    ("build", "fn", "kind"), [(from_score, gaussian_score, "score"), (from_noise_prediction, gaussian_noise, "noise")]
)
def test_gaussian(build, fn, kind):
    denoiser = build(fn)
    torch.testing.assert_close(denoiser(Y, SIGMA), Y * TAU**2 / VARIANCE, rtol=1e-14, atol=0)
    assert torch.equal(denoiser.predict(Y, SIGMA), fn(Y, SIGMA))
    assert prediction_of(denoiser) == (kind, denoiser.predict)


@pytest.mark.parametrize("build", [from_score, from_noise_prediction])
def test_parameters_of_a_module_are_registered(build):
    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Conv2d(2, 2, 1)

        def forward(self, y, sigma):
            return self.layer(y) * sigma

    network = Network()
    denoiser = build(network)
    assert [id(p) for p in denoiser.parameters()] == [id(p) for p in network.parameters()]
    denoiser(Y.float(), SIGMA).sum().backward()
    assert network.layer.weight.grad is not None


@pytest.mark.parametrize("build", [from_score, from_noise_prediction])
def test_dtype_is_that_of_y(build):
    denoiser = build(lambda y, sigma: y.to(torch.bfloat16))
    assert denoiser(Y.float(), SIGMA).dtype == torch.float32
    denoiser = build(lambda y, sigma: y.float())
    assert denoiser(Y.to(torch.bfloat16), SIGMA).dtype == torch.bfloat16


@pytest.mark.parametrize(("build", "name"), [(from_score, "score_fn"), (from_noise_prediction, "noise_fn")])
def test_errors(build, name):
    with pytest.raises(TypeError, match=rf"{name} must be callable as {name}\(y, sigma\), got int"):
        build(3)
    with pytest.raises(TypeError, match=f"the output of {name} must be a torch.Tensor, got NoneType"):
        build(lambda y, sigma: None)(Y, SIGMA)
    with pytest.raises(
        ValueError, match=rf"the output of {name} must have the shape of y, \(5, 2, 3, 3\), got \(5, 2\)"
    ):
        build(lambda y, sigma: y[:, :, 0, 0])(Y, SIGMA)
    denoiser = build(lambda y, sigma: y)
    with pytest.raises(TypeError, match=r"y must be a torch.Tensor, got float"):
        denoiser(0.5, SIGMA)
    with pytest.raises(ValueError, match=r"y must have 4 dimensions, got shape \(2, 3, 3\)"):
        denoiser(Y[0], SIGMA)
    for sigma in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=f"sigma must be positive and finite, got {sigma}"):
            denoiser(Y, sigma)


def test_prediction_of_denoised_kinds():
    def plain(y, sigma):
        return y

    assert prediction_of(plain) == ("denoised", plain)
    for denoiser in (KernelDensity(Y, 0.1), GaussianMixture(Y, 0.1)):
        assert prediction_of(denoiser) == ("denoised", denoiser)


def test_prediction_of_rejects_what_is_no_denoiser():
    with pytest.raises(TypeError, match=r"denoiser must be callable as denoiser\(y, sigma\), got str"):
        prediction_of("unet")
    denoiser = from_score(gaussian_score)
    denoiser.prediction = "velocity"
    with pytest.raises(
        ValueError, match=r"denoiser.prediction must be one of 'denoised', 'score', 'noise', got 'velocity'"
    ):
        prediction_of(denoiser)

    class Incomplete:
        prediction = "noise"

        def __call__(self, y, sigma):
            return y

    with pytest.raises(TypeError, match=r"denoiser.predict must be callable as predict\(y, sigma\).*got NoneType"):
        prediction_of(Incomplete())


@pytest.mark.parametrize("build", [from_score, from_noise_prediction])
def test_hooks_and_compiled_modules_are_called_not_only_their_predictions(build):
    denoiser = build(lambda y, sigma: -y)
    denoiser.register_forward_hook(lambda module, arguments, output: 0.5 * output)
    assert prediction_of(denoiser) == ("denoised", denoiser)
    compiled = torch.compile(build(lambda y, sigma: -y), backend="eager")
    assert prediction_of(compiled) == ("denoised", compiled)
    in_place = build(lambda y, sigma: -y)
    in_place.compile(backend="eager")
    assert prediction_of(in_place) == ("denoised", in_place)
