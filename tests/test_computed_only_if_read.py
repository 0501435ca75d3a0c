"""A purification, its trace and its gradient compute nothing that nobody reads."""

from collections import Counter

import pytest
import torch
from cases import tensor
from torch.utils._python_dispatch import TorchDispatchMode

import pursamere as ps

NOISE = ps.GaussianNoise(draws=6)
X = tensor(0, 2, 1, 8, 8, dtype=torch.float32)
WITHOUT_VALUES = {"view", "_unsafe_view", "expand", "unsqueeze", "alias", "detach", "new_full"}  # of their argument


@torch.library.custom_op("computed_only_if_read::network", mutates_args=())
def network(y: torch.Tensor) -> torch.Tensor:
    return y * 0.5


network.register_autograd(lambda ctx, v: torch.ops.computed_only_if_read.network(v))


class Network(torch.nn.Module):
    """As much of an EDM network as the adapter reads."""

    def forward(self, x, sigma):
        return torch.ops.computed_only_if_read.network(x)


DENOISERS = {
    "denoised": lambda y, sigma: torch.ops.computed_only_if_read.network(y),
    "score": ps.denoisers.from_score(lambda y, sigma: torch.ops.computed_only_if_read.network(y)),
    "noise": ps.denoisers.from_noise_prediction(lambda y, sigma: torch.ops.computed_only_if_read.network(y)),
    "denoised, in other units": ps.denoisers.from_edm(Network()),
}


class Calls(TorchDispatchMode):
    """Records every op that runs below autograd."""

    def __init__(self):
        super().__init__()
        self.residuals = Counter()  # (cotangent, drift, ERE), by the sizes of what came back
        self.over_all_draws = Counter()  # PyTorch's own ops that read or write a value for every draw

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        namespace, name = func._schema.name.split("::")
        if name == "residual":
            self.residuals[tuple(part.numel() > 0 for part in result)] += 1
        if namespace == "aten" and name not in WITHOUT_VALUES:
            tensors = [t for t in (*args, result) if isinstance(t, torch.Tensor)]
            self.over_all_draws[name] += any(t.numel() == NOISE.draws * X.numel() for t in tensors)
        return result


def purifier(kind, direction):
    model = ps.Purifier(
        DENOISERS[kind], sigma=0.2, radius=0.2, steps=3, noise=NOISE, direction=direction, micro_batch=len(X)
    )
    model(X)  # the checks of the denoiser
    return model


@pytest.mark.parametrize("kind", DENOISERS)
@pytest.mark.parametrize("direction", ["ere", "score"])
def test_a_step_computes_what_the_accumulating_ops_read(kind, direction):
    model = purifier(kind, direction)
    with Calls() as calls:
        model(X)
    cotangent = direction == "ere"
    drift = direction == "score" or kind.startswith("denoised")
    assert calls.residuals == {(cotangent, drift, False): 6}
    assert not any(calls.over_all_draws.values())


@pytest.mark.parametrize("kind", DENOISERS)
def test_only_the_error_itself_and_a_trace_compute_the_error(kind):
    with Calls() as calls:
        ps.expected_reconstruction_error(DENOISERS[kind], X, 0.2, NOISE, micro_batch=len(X))
    assert calls.residuals == {(False, False, True): 1}
    model = purifier(kind, "score")
    with Calls() as calls:
        model.trace(X)
    assert calls.residuals == {(False, True, False): 6, (False, True, True): 4}


@pytest.mark.parametrize("kind", ["denoised", "denoised, in other units"])
def test_the_exact_gradient_passes_over_all_draws_only_to_hand_the_network_its_share(kind):
    model = purifier(kind, "ere")
    x = X.clone().requires_grad_()
    torch.autograd.grad(model(x).sum(), x)  # the checks of the denoiser
    y = model(x)
    with Calls() as calls:
        torch.autograd.grad(y.sum(), x)
    # In each of the 3 steps, the gradients of both accumulating ops, copied for the network's draws.
    assert +calls.over_all_draws == {"clone": 3 * 2}
