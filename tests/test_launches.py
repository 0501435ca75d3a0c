"""How many of the library's own ops, each one kernel launch for small images, a purification runs."""

from collections import Counter

import pytest
import torch
from cases import tensor
from own_ops import OwnOps

import pursamere as ps

STEPS = 3
DESCENT = ("accumulate_descend_perturb", "accumulate_descend")


@pytest.mark.parametrize("step_rule", ["unit", "sign"])
@pytest.mark.parametrize("direction", ["ere", "score"])
@pytest.mark.parametrize(("ascent_radius", "per_step"), [(0.05, 4), (0.0, 2)])
def test_a_step_launches_two_kernels_for_each_gradient(direction, ascent_radius, per_step, step_rule):
    """Four in a SAM step: the residual and an accumulating op twice, which makes the next noisy images too."""
    purifier = ps.Purifier(
        lambda y, sigma: y.tanh(),
        sigma=0.3,
        radius=0.2,
        steps=STEPS,
        ascent_radius=ascent_radius,
        step_rule=step_rule,
        direction=direction,
        micro_batch=2,
    )
    x = tensor(0, 2, 1, 8, 8, dtype=torch.float32)
    want = purifier(x)  # which also checks the denoiser
    with OwnOps() as own:
        assert torch.equal(purifier(x), want)
    counts = Counter(own.names)
    assert "noise" not in counts, "made in the first call"
    assert counts.pop("perturb") == 1, "the first step's noisy images"
    assert sum(counts.values()) == STEPS * per_step
    assert counts["residual"] == STEPS * per_step / 2
    assert (counts[DESCENT[0]], counts[DESCENT[1]]) == (STEPS - 1, 1)


@pytest.mark.parametrize("direction", ["ere", "score"])
def test_steps_in_a_row_have_the_bits_of_single_steps(direction):
    """Which is what the exact gradient differentiates."""
    purifier = ps.Purifier(
        lambda y, sigma: y.tanh(), sigma=0.3, radius=0.2, steps=STEPS, direction=direction, micro_batch=2
    )
    x = tensor(0, 2, 1, 8, 8, dtype=torch.float32)
    mode = purifier._mode(purifier.noise)
    with torch.no_grad():
        *_, last = purifier._states(mode, x)
        stepped = x
        for t in range(STEPS):
            stepped = purifier._step(t, stepped, x, mode)
    assert torch.equal(last, stepped)
    assert torch.equal(purifier(x), stepped)
