"""Networks called as k-diffusion and EDM call theirs."""

import pytest
import torch
from cases import tensor
from torch import nn

from pursamere.denoisers import from_edm, from_k_diffusion

Y = tensor(0, 3, 1, 4, 4)


class Network(nn.Module):
    """The posterior mean of N(mean, 1) in [-1, 1], told by a keyword."""

    sigma_min = torch.tensor(0.02)
    sigma_max = 4.0

    def forward(self, x, sigma, mean=0.0):
        assert sigma.shape == (len(x),)
        variance = sigma[:, None, None, None] ** 2
        return (x + variance * mean) / (1 + variance)


@pytest.mark.parametrize("keywords", [{}, {"mean": 0.5}])
def test_k_diffusion(keywords):
    denoiser = from_k_diffusion(Network(), **keywords)
    mean = (keywords.get("mean", 0.0) + 1) / 2  # in pixel units, with a standard deviation of 0.5
    torch.testing.assert_close(denoiser(Y, 0.3), (0.25 * Y + 0.09 * mean) / (0.25 + 0.09))
    assert denoiser.sigma_range == pytest.approx((0.01, 2.0))
    with pytest.raises(ValueError, match="sigma"):
        denoiser(Y, 3.0)
    with pytest.raises(TypeError, match=r"network must be a torch\.nn\.Module"):
        from_k_diffusion(lambda x, sigma: x)


def test_edm_without_a_label_passes_none():
    class Unconditional(nn.Module):
        def forward(self, x, sigma):
            return 0.5 * x

    torch.testing.assert_close(from_edm(Unconditional())(Y, 0.3), 0.5 * Y + 0.25)


@pytest.mark.parametrize("adapter", [from_edm, from_k_diffusion])
def test_bounds_of_the_noise_level(adapter):
    network = Network()
    network.sigma_min, network.sigma_max = torch.tensor([0.02]), torch.tensor(4.0)
    assert adapter(network).sigma_range == pytest.approx((0.01, 2.0))
    for bound in (None, "a lot", torch.ones(2)):
        network.sigma_max = bound
        with pytest.raises(TypeError, match=r"network\.sigma_max must be a real number"):
            adapter(network)
