"""Purification inside PyTorch's transforms, compilers and exporters: it works, or an error says what to do."""

import pytest
import torch
from nets import conv_denoiser, fixed_weights

import pursamere as ps
from pursamere import functional

NOISE = ps.GaussianNoise(draws=2)


def images():
    return torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def purifier(**options):
    return ps.Purifier(conv_denoiser(), sigma=0.3, radius=0.2, steps=1, noise=NOISE, **options)


def model():
    return ps.PurifiedClassifier(
        purifier(), fixed_weights(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 4)))
    )


def error():
    denoiser = conv_denoiser()
    return lambda x: ps.expected_reconstruction_error(denoiser, x, 0.3, NOISE)


SUBJECTS = {
    "ere": purifier,
    "score": lambda: purifier(direction="score"),
    "diffpure": lambda: ps.baselines.DiffPure(conv_denoiser(), steps=2),
    "classifier": model,
    "error": error,
}
REVERSE = r"use torch\.autograd\.grad"
TRANSFORMS = {
    "grad": lambda f, x: torch.func.grad(lambda z: f(z).sum())(x),
    "vjp": lambda f, x: torch.func.vjp(f, x),
    "jacrev": lambda f, x: torch.func.jacrev(f)(x),
    "jacfwd": lambda f, x: torch.func.jacfwd(f)(x),
    "jvp": lambda f, x: torch.func.jvp(f, (x,), (x,)),
    "vmap": lambda f, x: torch.vmap(f)(x[:, None]),
}


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("subject", SUBJECTS)
def test_transforms_are_refused(subject, transform):
    with pytest.raises(NotImplementedError, match=REVERSE):
        TRANSFORMS[transform](SUBJECTS[subject](), images())


@pytest.mark.parametrize("gradient", ["exact", "straight_through"])
def test_several_vectors_at_once_are_refused(gradient):
    x = images().requires_grad_()
    y = purifier()(x, gradient=gradient)
    with pytest.raises(NotImplementedError, match="is_grads_batched"):
        torch.autograd.grad(y, x, torch.ones(2, *y.shape), is_grads_batched=True)


def test_jacobian_is_that_of_single_vectors():
    net, x = model(), images()[:1]
    jacobian = torch.autograd.functional.jacobian(net, x)
    z = x.clone().requires_grad_()
    for i in range(4):
        (row,) = torch.autograd.grad(net(z)[0, i], z)
        torch.testing.assert_close(jacobian[0, i], row, rtol=0, atol=1e-6)


class Module(torch.nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


@pytest.mark.parametrize("subject", SUBJECTS)
@pytest.mark.parametrize(
    "export",
    [
        lambda f, x: torch.export.export(Module(f), (x,)),
        lambda f, x: torch.export.export(Module(f), (x,), strict=True),
        lambda f, x: torch.jit.trace(f, x),
        lambda f, x: torch.compile(f, backend="eager", fullgraph=True)(x),
    ],
    ids=["export", "strict", "trace", "fullgraph"],
)
def test_exports_and_whole_graphs_are_refused(subject, export):
    torch._dynamo.reset()
    with pytest.raises(Exception, match=r"(export|compile) the denoiser"):  # Dynamo's own class, with our reason
        export(SUBJECTS[subject](), images())


@pytest.mark.parametrize("subject", SUBJECTS)
def test_compiled_calls_run_eagerly_to_the_bit(subject):
    torch._dynamo.reset()
    function, x = SUBJECTS[subject](), images()
    assert torch.equal(torch.compile(function, backend="aot_eager")(x), function(x))


def test_ops_refuse_derivatives_of_torch_func():
    x = images()
    with pytest.raises(NotImplementedError, match=REVERSE):
        torch.func.grad(lambda z: functional.perturb(z, 0.3, NOISE).sum())(x)


def test_ops_are_exported():
    x = images()
    program = torch.export.export(Module(lambda z: functional.perturb(z, 0.3, NOISE)), (x,))
    assert torch.equal(program.module()(x), functional.perturb(x, 0.3, NOISE))
