"""A float argument that changes between calls of a compiled function."""

import pytest
import torch

import pursamere as ps
from pursamere import functional

NOISE = ps.GaussianNoise(draws=2)
X = torch.rand(2, 3, generator=torch.Generator().manual_seed(0))
P = torch.rand(2, 2, 3, generator=torch.Generator().manual_seed(1))
FUNCTIONS = {
    "perturb": lambda x, s: functional.perturb(x, s, NOISE),
    "residual": lambda x, s: functional.residual(x, P, s, NOISE)[1],
    "ascend": lambda x, s: functional.accumulate_ascend(x, P, None, s)[0],
    "step_size": lambda x, s: functional.accumulate_descend(
        x, x, P, None, step_rule="unit", step_size=s, norm="l2", radius=0.5
    ),
    "radius": lambda x, s: functional.accumulate_descend(
        x, x, P, None, step_rule="unit", step_size=0.1, norm="l2", radius=s
    ),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_float_may_change(name):
    torch._dynamo.reset()
    function = FUNCTIONS[name]
    compiled = torch.compile(function, backend="aot_eager", fullgraph=True)
    for value in (0.1, 0.2, 0.7):
        assert torch.equal(compiled(X, value), function(X, value))
