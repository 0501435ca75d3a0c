"""Noise read from a bank, and the ops that perturb their own result with it: the bits of separate ops."""

import dataclasses

import pytest
import torch
from cases import DTYPE_PAIRS, OPS, SHAPES, assert_same_bits, tensor
from own_ops import OwnOps

import pursamere as ps
from pursamere import functional
from pursamere.noise import NoiseBank

NOISES = [ps.GaussianNoise(seed=3, draws=4), ps.GaussianNoise(seed=2**40 + 5, draws=3, antithetic=False)]
UNITS = [{}, {"scale": 1.7, "shift": -0.8}]
DESCENT = {"step_size": 0.07, "radius": 0.12}


def inputs(shape, image, network, draws=2):
    x, start = tensor(1, *shape, dtype=image), tensor(2, *shape, dtype=image)
    return x, start, tensor(3, draws, *shape, dtype=network, low=-1), tensor(4, *shape, dtype=image, low=-1)


@pytest.mark.parametrize("noise", NOISES, ids=["antithetic", "independent"])
def test_a_bank_has_the_independent_draws(noise):
    bank = noise.bank((3, 5, 7))
    want = noise.sample((3, 5, 7))[:: 2 if noise.antithetic else 1].clone(memory_format=torch.contiguous_format)
    assert_same_bits(bank.values, want, noise)
    assert (bank.seed, bank.draws, bank.antithetic) == (noise.seed, noise.draws, noise.antithetic)
    other = dataclasses.replace(bank, seed=9)
    assert_same_bits(other.values, dataclasses.replace(noise, seed=9).bank((3, 5, 7)).values, "another seed")


@pytest.mark.parametrize("units", UNITS, ids=["pixels", "other units"])
@pytest.mark.parametrize("noise", NOISES, ids=["antithetic", "independent"])
@pytest.mark.parametrize(("image", "network"), DTYPE_PAIRS, ids=str)
@pytest.mark.parametrize("shape", [*SHAPES, (0, 3, 4), (2, 0), (1, 70_001), (70, 40)], ids=str)
def test_ops_with_a_bank_have_the_bits_of_separate_ops_that_generate_the_noise(shape, image, network, noise, units):
    x, start, per_draw, direct = inputs(shape, image, network)
    bank = noise.bank(shape[1:])

    def perturbed(point):
        return functional.perturb(point, 0.3, noise, dtype=network, **units)

    assert_same_bits(functional.perturb(x, 0.3, bank, dtype=network, **units), perturbed(x), "perturb")
    for optional in (direct, None):
        with OwnOps() as own:
            got = functional.accumulate_ascend_perturb(x, per_draw, optional, 0.25, 0.3, bank, **units)
        assert own.names == ["accumulate_ascend_perturb"]
        point, norm = functional.accumulate_ascend(x, per_draw, optional, 0.25)
        assert_same_bits(got, (point, norm, perturbed(point)), "ascend")
    for rule in functional.STEP_RULES:
        for ball in functional.NORMS:
            options = {**DESCENT, "step_rule": rule, "norm": ball}
            with OwnOps() as own:
                got = functional.accumulate_descend_perturb(x, start, per_draw, direct, 0.3, bank, **options, **units)
            assert own.names == ["accumulate_descend_perturb"]
            after = functional.accumulate_descend(x, start, per_draw, direct, **options)
            assert_same_bits(got, (after, perturbed(after)), (rule, ball))


def test_other_dtypes_and_plain_noise_take_two_ops():
    x, start, per_draw, _ = inputs((2, 9), torch.float32, torch.float32)
    noise = NOISES[0]
    bank = noise.bank((9,))
    options = {**DESCENT, "step_rule": "unit", "norm": "linf"}
    for given, dtype in ((bank, torch.float16), (noise, torch.float16), (noise, None)):
        with OwnOps() as own:
            got = functional.accumulate_ascend_perturb(x, per_draw, None, 0.1, 0.3, given, dtype=dtype)
        assert own.names == ["accumulate_ascend", "perturb"]
        want = functional.accumulate_ascend(x, per_draw, None, 0.1)
        assert_same_bits(got, (*want, functional.perturb(want[0], 0.3, noise, dtype=dtype)), "ascend")
        with OwnOps() as own:
            got = functional.accumulate_descend_perturb(x, start, per_draw, None, 0.3, given, dtype=dtype, **options)
        assert own.names == ["accumulate_descend", "perturb"]
        after = functional.accumulate_descend(x, start, per_draw, None, **options)
        assert_same_bits(got, (after, functional.perturb(after, 0.3, noise, dtype=dtype)), "descend")


@pytest.mark.parametrize("number", range(4))
def test_gradients_flow_through_functions_whose_op_has_none(number):
    """Whichever of the tensors requires one."""
    tensors = inputs((2, 9), torch.float64, torch.float64)
    noise = NOISES[0]
    options = {**DESCENT, "step_rule": "unit", "norm": "l2"}

    def gradients(noise):
        leaves = [value.clone().requires_grad_(i == number) for i, value in enumerate(tensors)]
        x, start, per_draw, direct = leaves
        results = functional.accumulate_ascend_perturb(x, per_draw, direct, 0.1, 0.3, noise, **UNITS[1])
        results += functional.accumulate_descend_perturb(x, start, per_draw, direct, 0.3, noise, **options, **UNITS[1])
        return torch.autograd.grad(sum((r * tensor(i, *r.shape)).sum() for i, r in enumerate(results)), leaves[number])

    assert_same_bits(gradients(noise.bank((9,))), gradients(noise), number)
    assert bool(gradients(noise)[0].any())


def test_the_ops_refuse_a_gradient_rather_than_dropping_it():
    x, start, per_draw, _ = inputs((2, 9), torch.float32, torch.float32)
    banked = (NOISES[0].bank((9,)).values, 0.3, True)
    calls = {
        "accumulate_ascend_perturb": (x, per_draw, None, 0.1, *banked),
        "accumulate_descend_perturb": (x, start, per_draw, None, "unit", 0.1, "linf", 0.1, *banked),
        "perturb": (x, 0.3, 4, 3, True, None, 1.0, 0.0, banked[0]),
    }
    for name, arguments in calls.items():
        for i, value in enumerate(arguments):
            if not isinstance(value, torch.Tensor) or (name == "perturb" and i == 0):
                continue
            tracked = [v.detach().requires_grad_() if v is value else v for v in arguments]
            with pytest.raises(NotImplementedError, match="has no derivative"):
                getattr(OPS, name)(*tracked)
            with torch.no_grad():
                getattr(OPS, name)(*tracked)


def test_a_bank_for_other_images_is_refused():
    x, start, per_draw, _ = inputs((2, 9), torch.float32, torch.float32)
    options = {**DESCENT, "step_rule": "unit", "norm": "l2"}
    bank = NOISES[0].bank((3, 3))
    message = r"noise must be a bank for samples of shape \[9\], got \[3, 3\]"
    with pytest.raises(ValueError, match=message):
        functional.perturb(x, 0.3, bank)
    with pytest.raises(ValueError, match=message):
        functional.accumulate_ascend_perturb(x, per_draw, None, 0.1, 0.3, bank)
    with pytest.raises(ValueError, match=message):
        functional.accumulate_descend_perturb(x, start, per_draw, None, 0.3, bank, **options)
    with pytest.raises(ValueError, match="noise must be on the device of x, cpu, got meta"):
        functional.perturb(x, 0.3, NOISES[0].bank((9,), "meta"))
    with pytest.raises(RuntimeError, match=r"bank must have shape \[independent draws, \*x.shape\[1:\]\]"):
        OPS.perturb(x, 0.3, 4, 3, True, None, 1.0, 0.0, torch.zeros(4, 9))
    with pytest.raises(RuntimeError, match=r"bank must be float32"):
        OPS.perturb(x, 0.3, 4, 3, True, None, 1.0, 0.0, torch.zeros(2, 9).double())


WRONG = [
    ({"sigma": 0.0}, ValueError, "sigma must be positive"),
    ({"noise": 8}, TypeError, r"noise must be a pursamere.GaussianNoise, got int"),
    ({"dtype": torch.int8}, TypeError, "dtype must be float16"),
    ({"scale": -1.0}, ValueError, "scale must be positive"),
    ({"shift": "1"}, TypeError, "shift must be a real number"),
    ({"per_draw": torch.zeros(2, 2, 8)}, ValueError, r"per_draw must have shape \[draws, \*\[2, 9\]\]"),
    ({"direct": torch.zeros(2, 8)}, ValueError, "direct must have the shape of x"),
]


@pytest.mark.parametrize(("wrong", "error", "message"), WRONG)
@pytest.mark.parametrize("banked", [False, True])
def test_wrong_arguments_are_refused_before_any_op_runs(banked, wrong, error, message):
    x, start, per_draw, _ = inputs((2, 9), torch.float32, torch.float32)
    noise = NOISES[0].bank((9,)) if banked else NOISES[0]
    arguments = {"x": x, "per_draw": per_draw, "direct": None, "sigma": 0.3, "noise": noise} | wrong
    options = {**DESCENT, "step_rule": "unit", "norm": "l2"}
    with OwnOps() as own:
        with pytest.raises(error, match=message):
            functional.accumulate_ascend_perturb(**arguments, ascent_radius=0.1)
        with pytest.raises(error, match=message):
            functional.accumulate_descend_perturb(**arguments, start=start, **options)
    assert own.names == []


def test_a_bank_stands_for_its_noise_wherever_noise_is_taken():
    x = tensor(0, 2, 1, 4, 4, dtype=torch.float32)
    noise = NOISES[0]
    with torch.inference_mode():
        bank = noise.bank((1, 4, 4))
    results = []
    for given in (noise, bank):
        leaf = x.clone().requires_grad_()
        ere = ps.expected_reconstruction_error(lambda y, sigma: y.tanh(), leaf, 0.3, given)
        results.append((ere, *torch.autograd.grad(ere.sum(), leaf)))
    assert_same_bits(results[1], results[0], "ERE")
    assert isinstance(bank, NoiseBank)


@pytest.mark.slow
def test_compiles_without_graph_breaks():
    bank = NOISES[0].bank((9,))
    options = {**DESCENT, "step_rule": "unit", "norm": "l2"}

    def step(x, start, per_draw):
        point, _, y = functional.accumulate_ascend_perturb(x, per_draw, None, 0.1, 0.3, bank)
        after, z = functional.accumulate_descend_perturb(point, start, y, None, 0.3, bank, **options)
        return after, z, functional.perturb(after, 0.3, bank)

    x, start, per_draw, _ = inputs((2, 9), torch.float32, torch.float32)
    for requires_grad in (False, True):
        leaf = x.clone().requires_grad_(requires_grad)
        got, want = (f(leaf, start, per_draw) for f in (torch.compile(step, fullgraph=True), step))
        for a, b in zip(got, want, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
            assert a.requires_grad == b.requires_grad == requires_grad


def test_the_shape_of_a_bank_may_be_a_list():
    noise = ps.GaussianNoise(draws=2)
    bank = NoiseBank(seed=0, draws=2, shape=[3], device="cpu")
    x = tensor(0, 2, 3, dtype=torch.float32)
    assert torch.equal(functional.perturb(x, 0.5, bank), functional.perturb(x, 0.5, noise))


def test_an_integer_is_an_accelerator_as_in_pytorch():
    if torch.accelerator.is_available():
        assert ps.GaussianNoise(draws=2).sample((3,), device=0).device.index == 0
        return
    for make in (ps.GaussianNoise(draws=2).sample, ps.GaussianNoise(draws=2).bank):
        with pytest.raises(RuntimeError, match="accelerator"):
            make((3,), 0)
