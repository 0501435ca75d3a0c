"""Sizes near 2^63: an error that gives them, or the right result where there are no elements; no overflow, no crash."""

import pytest
import torch
from cases import OPS, as_tuple, expanded_calls

import pursamere as ps
from pursamere import functional


def expanded(*shape, device="cpu"):
    """A tensor of a single value in memory."""
    return torch.zeros(1, device=device).expand(shape)


@pytest.mark.parametrize(
    ("shape", "draws"),
    [
        ((1, 2**44), 2),  # more than the memory there is
        ((2, 2**59), 3),  # 2^60 values: their bytes overflow
        ((2**30, 2**30 + 1), 4),
        ((1, 2**61 + 1), 3),
    ],
)
def test_what_cannot_be_allocated_is_refused_by_its_shape(shape, draws):
    for name, arguments in expanded_calls(expanded(*shape), draws):
        with pytest.raises(RuntimeError, match=r"pursamere could not allocate a tensor of shape \[[\d, ]+\]") as caught:
            getattr(OPS, name)(*arguments)
        assert ", ".join(map(str, shape)) in str(caught.value), name


@pytest.mark.parametrize("draws", [8, 16, 2**31, 2**32 - 1])
@pytest.mark.parametrize("size", [2**60, 2**61 + 1, 2**62, 2**63 - 1])
def test_draws_times_sizes_that_wrap_to_a_small_number(size, draws):
    """Modulo 2^64, eight draws of 2^61 + 1 values are eight values."""
    with pytest.raises(RuntimeError, match=rf"could not allocate a tensor of shape \[{draws}, {size}\]"):
        OPS.noise(expanded(size), draws, 0, False)


@pytest.mark.parametrize("shape", [(3, 0), (0, 5), (0, 2**40), (0, 2**31, 2**31)])
@pytest.mark.parametrize("draws", [1, 2**20, 2**32 - 1])
def test_without_elements_any_number_of_draws_takes_no_time(shape, draws):
    x = torch.empty([min(size, 1) for size in shape]).expand(shape)
    for name, arguments in expanded_calls(x, draws):
        for result in as_tuple(getattr(OPS, name)(*arguments)):
            assert result.shape in (x.shape, (draws, *x.shape), x.shape[:1])
            assert not result.any()


@pytest.mark.parametrize("draws", [2**52, 2**60, 2**62])
def test_sums_over_draws_without_elements(draws):
    """Here the number of draws has no bound."""
    x = torch.zeros(3, 0)
    terms = torch.zeros(1, 3, 0).expand(draws, 3, 0)
    point, norm = OPS.accumulate_ascend(x, terms, None, 0.1)
    assert point.shape == (3, 0)
    assert torch.equal(norm, torch.zeros(3))
    assert OPS.accumulate_descend(x, x, terms, None, "unit", 0.1, "l2", 0.1).shape == (3, 0)
    empty = torch.zeros(0, 5)
    terms = torch.zeros(1, 0, 5).expand(draws // 8, 0, 5)
    assert OPS.accumulate_descend(empty, empty, terms, None, "unit", 0.1, "l2", 0.1).shape == (0, 5)


def test_strides_that_overflow():
    with pytest.raises(RuntimeError, match=r"a tensor of shape \[2, 0, 1099511627776, 1099511627776\] is too large"):
        OPS.noise(torch.empty(0, 1, 1).expand(0, 2**40, 2**40), 2, 0, False)


@pytest.mark.parametrize("draws", [0, -1, -(2**63), 2**32, 2**63 - 1])
def test_absurd_draws(draws):
    for name, arguments in (
        ("noise", (torch.zeros(3), draws, 0, True)),
        ("perturb", (torch.zeros(1, 3), 0.1, draws, 0, True)),
    ):
        with pytest.raises(RuntimeError, match=rf"draws must be in \[1, 2\^32\), got {draws}"):
            getattr(OPS, name)(*arguments)


def test_more_draws_of_a_prediction_than_there_is_noise():
    x = torch.zeros(3, 0)
    with pytest.raises(RuntimeError, match=r"draws must be in \[1, 2\^32\), got 4294967296"):
        OPS.residual(x, torch.zeros(1, 3, 0).expand(2**32, 3, 0), "score", 0.1, 0, False)


def test_meta_tensors():
    for name, arguments in (
        ("noise", (expanded(2**61 + 1, device="meta"), 8, 0, False)),
        ("perturb", (expanded(1, 2**61 + 1, device="meta"), 0.1, 8, 0, False)),
    ):
        with pytest.raises(RuntimeError, match="overflow"):
            getattr(OPS, name)(*arguments)


def test_functional_calls():
    x = expanded(1, 2**60)
    noise = ps.GaussianNoise(draws=2)
    message = "you tried to allocate 4611686018427387904 bytes"
    with pytest.raises(RuntimeError, match=message):
        functional.perturb(x, 0.1, noise)
    with pytest.raises(RuntimeError, match=message):
        functional.residual(x, x.expand(2, *x.shape), 0.1, noise)


@pytest.mark.parametrize(
    ("shape", "error", "message"),
    [
        ((2**40, 2**40), ValueError, r"less than 2\^63 bytes, got \[1099511627776, 1099511627776\] for 8 draws"),
        ((2**58,), ValueError, r"shape must give a bank of less than 2\^63 bytes"),
        ((2**70,), ValueError, r"shape must give a bank of less than 2\^63 bytes"),
        ((0, 2**70), ValueError, r"shape must give a bank of less than 2\^63 bytes"),
        ((3, -1), ValueError, r"shape\[1\] must be at least 0, got -1"),
        ((3, 2.0), TypeError, r"shape\[1\] must be an int, got float"),
        (3, TypeError, "shape must be a sequence of ints, got int"),
        ("33", TypeError, "shape must be a sequence of ints, got str"),
    ],
)
def test_shape_of_a_noise_bank(shape, error, message):
    with pytest.raises(error, match=message):
        ps.GaussianNoise().sample(shape)


@pytest.mark.slow
def test_the_checks_of_a_shape_can_be_compiled():
    def noisy(x):
        return x + ps.GaussianNoise(draws=2, antithetic=False).sample(x.shape[1:]).sum(0)

    compiled = torch.compile(noisy, backend="aot_eager", fullgraph=True, dynamic=True)
    for size in (4, 5):
        x = torch.rand(2, size, 3)
        assert torch.equal(compiled(x), noisy(x))
