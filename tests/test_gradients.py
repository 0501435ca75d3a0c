"""Derivatives of every op: finite differences, once and twice, registration checks, and compilation."""

import contextlib

import pytest
import reference
import torch
from cases import DTYPE_PAIRS, OPS, op_calls, tensor, without_derivative
from torch.autograd import forward_ad, gradcheck, gradgradcheck

import pursamere as ps
from pursamere import _run_op, functional

DIFFERENTIABLE = [
    (f"{name}-{i}", name, arguments)
    for i, (name, arguments) in enumerate(op_calls((2, 3, 2), torch.float64, torch.float64))
    if not without_derivative(name, arguments)
]


def with_gradients(arguments):
    """The same arguments with fresh tensors that require gradients, and the function of those tensors."""
    leaves = [v.clone().requires_grad_() for v in arguments if isinstance(v, torch.Tensor)]

    def filled(tensors):
        remaining = iter(tensors)
        return [next(remaining) if isinstance(v, torch.Tensor) else v for v in arguments]

    return leaves, filled


@pytest.mark.parametrize(("name", "arguments"), [c[1:] for c in DIFFERENTIABLE], ids=[c[0] for c in DIFFERENTIABLE])
def test_first_and_second_derivatives(name, arguments):
    leaves, filled = with_gradients(arguments)

    def op(*tensors):
        return getattr(OPS, name)(*filled(tensors))

    assert gradcheck(op, leaves)
    assert gradgradcheck(op, leaves)


@pytest.mark.parametrize(("image", "network"), DTYPE_PAIRS, ids=str)
def test_derivatives_match_those_of_the_reference(image, network):
    """The reference is differentiated by PyTorch; also in mixed and half precision."""
    limit = {torch.float64: 1e-6, torch.float32: 1e-4}.get(network, 4e-2)
    for name, arguments in op_calls((3, 2, 9), image, network):
        if without_derivative(name, arguments):
            continue
        gradients = []
        for implementation in (OPS, reference):
            leaves, filled = with_gradients(arguments)
            results = getattr(implementation, name)(*filled(leaves))
            results = results if isinstance(results, tuple) else (results,)
            total = sum((r.double() * tensor(i, *r.shape, low=-1)).sum() for i, r in enumerate(results))
            gradients.append(torch.autograd.grad(total, leaves, allow_unused=True, materialize_grads=True))
        for got, want in zip(*gradients, strict=True):
            assert (got.dtype, got.shape) == (want.dtype, want.shape)
            scale = max(1.0, float(want.double().abs().max()))
            assert float((got.double() - want.double()).abs().max()) <= limit * scale, (name, arguments[2:])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("shape", "dtype"), [((2, 3, 4, 5), torch.float32), ((3, 7), torch.float16), ((0, 3), torch.float64)], ids=str
)
def test_opcheck(shape, dtype):
    for name, arguments in op_calls(shape, dtype, dtype):
        op = getattr(OPS, name).default
        torch.library.opcheck(op, arguments)
        if not without_derivative(name, arguments):
            leaves, filled = with_gradients(arguments)
            torch.library.opcheck(op, tuple(filled(leaves)))


@pytest.mark.slow
@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_without_graph_breaks(dynamic):
    noise = ps.GaussianNoise(seed=1, draws=4)

    def step(x, weight):
        y = functional.perturb(x, 0.3, noise)
        return functional.residual(x, (y * weight).tanh(), 0.3, noise)[2].sum()

    compiled = torch.compile(step, fullgraph=True, dynamic=dynamic)
    for batch in (2, 5):
        gradients = []
        for function in (step, compiled):
            x = tensor(batch, batch, 3, 4, 4, dtype=torch.float32).requires_grad_()
            weight = tensor(9, 4, 4, dtype=torch.float32).requires_grad_()
            value = function(x, weight)
            gradients.append((value, *torch.autograd.grad(value, (x, weight))))
        for got, want in zip(*gradients, strict=True):
            torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("ball", ["linf", "l2"])
@pytest.mark.parametrize("radius", [0.0, 0.12, float("inf")])
def test_derivatives_are_finite_at_every_radius(ball, radius):
    x, start = tensor(1, 2, 5).requires_grad_(), tensor(2, 2, 5).requires_grad_()
    per_draw = tensor(3, 2, 2, 5, low=-1).requires_grad_()
    moved = OPS.accumulate_descend(x, start, per_draw, None, "unit", 0.1, ball, radius)
    first = torch.autograd.grad((moved * tensor(4, 2, 5)).sum(), (x, start, per_draw), create_graph=True)
    second = torch.autograd.grad(sum(g.square().sum() for g in first), (x, start, per_draw), materialize_grads=True)
    assert all(bool(g.isfinite().all()) for g in (*first, *second))


def test_gradient_flows_to_the_input_where_the_ball_is_active():
    x, start = torch.tensor([[0.5, 0.5]], dtype=torch.float64), torch.tensor([[0.5, 0.3]], dtype=torch.float64)
    leaves = [t.requires_grad_() for t in (x, start, torch.zeros(1, 1, 2, dtype=torch.float64))]
    moved = OPS.accumulate_descend(*leaves, None, "gradient", 0.1, "linf", 0.1)
    to_x, to_start, _ = torch.autograd.grad(moved.sum(), leaves)
    assert to_x.tolist() == [[1.0, 0.0]]
    assert to_start.tolist() == [[0.0, 1.0]]


def test_forward_mode_is_refused_rather_than_silently_zero():
    x = tensor(1, 2, 5)
    noise = ps.GaussianNoise(draws=2)
    with pytest.raises(NotImplementedError, match=r"pursamere.perturb.default has no forward-mode derivative"):
        torch.func.jvp(lambda x: functional.perturb(x, 0.1, noise), (x,), (x,))
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(x, x)
        with pytest.raises(NotImplementedError, match="has no forward-mode derivative"):
            functional.accumulate_ascend(x, dual[None], None, 0.1)
        assert functional.perturb(x, 0.1, noise).shape == (2, 2, 5)  # no tangent, no error


FORWARD_MODE = {
    "perturb": lambda o, x: o.perturb(x, 0.1, 2, 0, True),
    "residual": lambda o, x: o.residual(x, tensor(2, 2, 2, 5), "denoised", 0.1, 0, True),
    "residual's prediction": lambda o, x: o.residual(tensor(2, 2, 5), x[None].expand(2, 2, 5), "score", 0.1, 0, True),
    "sum_draws": lambda o, x: o.sum_draws(x, torch.float64),
    "accumulate_ascend": lambda o, x: o.accumulate_ascend(tensor(2, 2, 5), x[None], None, 0.1),
    "accumulate_descend": lambda o, x: o.accumulate_descend(x, x, x[None], None, "unit", 0.1, "l2", 0.5),
}


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("name", FORWARD_MODE)
def test_the_ops_themselves_refuse_forward_mode(name, compiled):
    """However they are reached: PyTorch would drop the tangent, and so return zero."""
    x = tensor(1, 2, 5)

    def tangents(x):
        return torch.func.jvp(lambda x: FORWARD_MODE[name](OPS, x), (x,), (x,))[1]

    run = torch.compile(tangents, backend="aot_eager") if compiled else tangents
    with pytest.raises(Exception, match="has no forward-mode derivative"):
        run(x)
    leaf = x.clone().requires_grad_()
    with forward_ad.dual_level(), pytest.raises(NotImplementedError, match="has no forward-mode derivative"):
        FORWARD_MODE[name](OPS, forward_ad.make_dual(leaf, x))


@pytest.mark.parametrize("name", ["Purifier", "ScoreOptO", "DiffPure"])
def test_purifiers_refuse_forward_mode(name):
    """Whether or not an op that refuses it is on the way."""
    kind = getattr(ps, name, None) or getattr(ps.baselines, name)
    model = kind(
        lambda y, sigma: torch.tanh(2 * y), steps=2, **({"sigma": 0.3, "radius": 0.2} if name == "Purifier" else {})
    )
    x = tensor(1, 2, 1, 4, 4)
    with forward_ad.dual_level(), pytest.raises(NotImplementedError, match="no forward-mode derivative"):
        model(forward_ad.make_dual(x, x))


MAPPED = {
    "perturb": lambda x, per_draw, noise: functional.perturb(x, 0.3, noise),
    "residual": lambda x, per_draw, noise: functional.residual(x, per_draw, 0.3, noise)[2],
    "accumulate_ascend": lambda x, per_draw, noise: functional.accumulate_ascend(x, per_draw, None, 0.1)[0],
    "accumulate_descend": lambda x, per_draw, noise: functional.accumulate_descend(
        x, x, per_draw, None, step_rule="unit", step_size=0.1, norm="l2", radius=0.5
    ),
}


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.parametrize("name", MAPPED)
def test_vmap_keeps_gradients(name):
    """A loss with a part beside the op keeps PyTorch from noticing that the op lost its gradient."""
    x, per_draw = (t.requires_grad_() for t in (tensor(1, 3, 2, 5), tensor(2, 3, 4, 2, 5)))
    noise = ps.GaussianNoise(draws=4)

    def gradients(values):
        return torch.autograd.grad(values.square().sum() + x.sum() + per_draw.sum(), (x, per_draw))

    mapped = torch.vmap(lambda a, b: MAPPED[name](a, b, noise))(x, per_draw)
    looped = torch.stack([MAPPED[name](a, b, noise) for a, b in zip(x, per_draw, strict=True)])
    assert torch.equal(mapped, looped)
    for got, want in zip(gradients(mapped), gradients(looped), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-12, atol=0)


@pytest.mark.parametrize("guard", ["there", "missing"])
def test_public_functions_are_the_ops_with_and_without_a_derivative(monkeypatch, guard):
    if guard == "missing":
        monkeypatch.setattr(_run_op, "_below_autograd", contextlib.nullcontext)
    x, per_draw = tensor(1, 2, 5, dtype=torch.float32), tensor(2, 2, 2, 5, dtype=torch.float32)
    want = OPS.accumulate_ascend(x, per_draw, None, 0.1)
    for requires_grad in (False, True):
        for context in (torch.no_grad, torch.enable_grad, torch.inference_mode):
            leaf = x.clone().requires_grad_(requires_grad)
            with context():
                got = functional.accumulate_ascend(leaf, per_draw, None, 0.1)
            assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))
            assert got[0].requires_grad == (requires_grad and context is torch.enable_grad)
