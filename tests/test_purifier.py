"""The algorithm against a plain float64 implementation, its neighborhood, its gradients and its determinism."""

import itertools
import subprocess
import sys
import warnings

import pytest
import torch
from cases import tensor
from closed_forms import gaussian_denoiser
from hypothesis import given, settings
from hypothesis import strategies as st
from nets import conv_classifier, conv_denoiser, fixed_weights

import pursamere as ps

NOISE = ps.GaussianNoise(seed=4, draws=4)
OPTIONS = list(
    itertools.product(("ere", "score"), ("unit", "gradient", "sign"), ("linf", "l2"), (0.0, 0.1))
)  # direction, step, norm, ascent radius
STEP_SIZE = {"unit": 0.1, "gradient": 0.3, "sign": 0.02}


def purifier(denoiser, direction="ere", step_rule="unit", norm="linf", ascent_radius=0.1, **keywords):
    defaults = {"sigma": 0.3, "steps": 4, "radius": 0.15, "noise": NOISE, "step_size": STEP_SIZE[step_rule]}
    return ps.Purifier(
        denoiser,
        direction=direction,
        step_rule=step_rule,
        norm=norm,
        ascent_radius=ascent_radius,
        **(defaults | keywords),
    )


def plain_purify(denoiser, x0, direction, step_rule, norm, ascent_radius, sigma=0.3, steps=4, radius=0.15):
    """M6 to M8 as they are written, in PyTorch and float64."""
    bank = NOISE.sample(x0.shape[1:], dtype=torch.float64)

    def length(v):
        return v.flatten(1).norm(dim=1).reshape(-1, 1, 1, 1)

    def gradient(x):
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            r = torch.stack([x - denoiser(x + sigma * xi, sigma) for xi in bank])
            if direction == "score":
                return 2 * r.mean(0).detach()
            return torch.autograd.grad(r.square().sum() / len(bank), x)[0]

    x = x0
    for _ in range(steps):
        g = gradient(x)
        if ascent_radius:
            g = gradient(x + ascent_radius * g / length(g))
        u = {"unit": g / length(g), "gradient": g, "sign": g.sign()}[step_rule]
        offset = x - STEP_SIZE[step_rule] * u - x0
        offset = offset.clamp(-radius, radius) if norm == "linf" else offset * (radius / length(offset)).clamp(max=1)
        x = (x0 + offset).clamp(0, 1)
    return x


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_is_the_algorithm(options):
    denoiser, x = conv_denoiser(dtype=torch.float64), tensor(0, 3, 1, 6, 5)
    want = plain_purify(denoiser, x, *options)
    assert float((want - x).abs().max()) > 0.02
    torch.testing.assert_close(purifier(denoiser, *options)(x), want, rtol=0, atol=1e-10)
    single = purifier(conv_denoiser(), *options)(x.float())
    if options[1] != "sign":  # the sign of a vanishing gradient is rounding
        torch.testing.assert_close(single.double(), want, rtol=0, atol=2e-4)


@pytest.mark.parametrize("options", OPTIONS[::3], ids=str)
def test_unrolled_gradient_matches_finite_differences(options):
    """Directional derivatives of the whole purifier, in float64."""
    model = purifier(conv_denoiser(dtype=torch.float64), *options, steps=3)
    x = tensor(0, 2, 1, 4, 4, low=0.3, high=0.7).requires_grad_()
    weight, direction, h = tensor(1, 2, 1, 4, 4), tensor(2, 2, 1, 4, 4, low=-1), 1e-6

    def value(point):
        return float((model(point.detach()) * weight).sum())

    (gradient,) = torch.autograd.grad((model(x, gradient="unrolled") * weight).sum(), x)
    slope = (value(x + h * direction) - value(x - h * direction)) / (2 * h)
    assert float((gradient * direction).sum()) == pytest.approx(slope, rel=1e-5, abs=1e-8)


def test_gaussian_prior_contracts_as_computed_by_hand():
    """Score direction, factor 1/2, on N(0, tau^2): every step is x <- x (1 - sigma^2 / (sigma^2 + tau^2))."""
    sigma, tau, x = 0.3, 0.6, tensor(0, 2, 1, 3, 3)
    model = purifier(gaussian_denoiser(tau), "score", "gradient", ascent_radius=0, step_size=0.5, radius=float("inf"))
    torch.testing.assert_close(model(x), x * (tau**2 / (sigma**2 + tau**2)) ** 4, rtol=1e-12, atol=0)


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("step_rule", ["unit", "gradient", "sign"])
def test_stays_in_the_neighborhood_and_the_pixel_range(norm, step_rule):
    x = tensor(0, 4, 1, 8, 8, dtype=torch.float32).round(decimals=1)  # some pixels at the ends
    result = purifier(conv_denoiser(), step_rule=step_rule, norm=norm, step_size=5.0, radius=0.07)(x)
    assert float(result.min()) >= 0
    assert float(result.max()) <= 1
    offset = (result - x).flatten(1)
    size = offset.abs().amax(1) if norm == "linf" else offset.norm(dim=1)
    assert float(size.max()) <= 0.07 * (1 + 1e-5)
    assert float(size.min()) > 0.05


def test_defaults_are_usable_and_reduce_the_error():
    x = tensor(0, 2, 3, 8, 8, dtype=torch.float32)
    model = ps.Purifier(
        ps.denoisers.KernelDensity(tensor(1, 20, 3, 8, 8, dtype=torch.float32), 0.2), sigma=0.2, radius=0.2
    )
    trace = model.trace(x)
    assert bool((trace.ere[-1] < trace.ere[0]).all())
    assert torch.equal(trace.images[-1], model(x))


def test_trace_reports_what_happened():
    denoiser, x = conv_denoiser(dtype=torch.float64), tensor(0, 3, 1, 5, 5)
    model = purifier(denoiser)
    trace = model.trace(x)
    assert trace.images.shape == (5, 3, 1, 5, 5)
    assert torch.equal(trace.images[0], x)
    assert torch.equal(trace.images[-1], model(x))
    for t, image in enumerate(trace.images):
        point = image.clone().requires_grad_()
        ere = ps.expected_reconstruction_error(denoiser, point, 0.3, NOISE)
        (gradient,) = torch.autograd.grad(ere.sum(), point)
        torch.testing.assert_close(trace.ere[t], ere.detach())
        torch.testing.assert_close(trace.gradient_norm[t], gradient.flatten(1).norm(dim=1))
        torch.testing.assert_close(trace.displacement[t], (image - x).flatten(1).norm(dim=1))


# Determinism: D1, D2 and D5, for every built-in denoiser and for a small network.


def denoisers():
    images = tensor(9, 30, 1, 7, 6, dtype=torch.float32)
    return {
        "kernel_density": ps.denoisers.KernelDensity(images, 0.2),
        "gaussian_mixture": ps.denoisers.GaussianMixture(images[:5], 0.3),
        "from_score": ps.denoisers.from_score(lambda y, sigma: (0.5 - y) / (sigma**2 + 0.1)),
        "from_noise_prediction": ps.denoisers.from_noise_prediction(lambda y, sigma: (y - 0.5).tanh() * sigma),
        "network": conv_denoiser(),
    }


@pytest.mark.parametrize("name", denoisers())
@pytest.mark.parametrize("micro_batch", [None, 8])
@settings(max_examples=5, deadline=None, derandomize=True)
@given(data=st.data())
def test_a_sample_has_the_same_bits_in_any_batch(name, micro_batch, data):
    x = tensor(0, 9, 1, 7, 6, dtype=torch.float32)
    model = purifier(denoisers()[name], steps=2, micro_batch=micro_batch, invariance="strict")
    whole = model(x)
    rows = torch.tensor(data.draw(st.lists(st.integers(0, 8), min_size=1, max_size=9)))
    assert torch.equal(model(x[rows]), whole[rows])


@pytest.mark.parametrize("name", denoisers())
def test_the_same_bits_in_every_run_and_under_any_random_state(name):
    x, model = tensor(0, 2, 1, 7, 6, dtype=torch.float32), purifier(denoisers()[name])
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = model(x)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert torch.equal(purifier(denoisers()[name])(x), first)


SCRIPT = """
import sys, torch
sys.path.insert(0, {folder!r})
from test_purifier import denoisers, purifier
from cases import tensor
x = tensor(0, 3, 1, 7, 6, dtype=torch.float32)
for name, denoiser in denoisers().items():
    print(name, purifier(denoiser)(x).numpy().tobytes().hex())
"""


@pytest.mark.slow
def test_a_fresh_process_gives_the_same_bits(request):
    """D1, also with another hash seed."""
    script = SCRIPT.format(folder=str(request.path.parent))
    command, environment = [sys.executable, "-c", script], {"PYTHONHASHSEED": "1"}
    output = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    x = tensor(0, 3, 1, 7, 6, dtype=torch.float32)
    here = [f"{name} {purifier(d)(x).numpy().tobytes().hex()}" for name, d in denoisers().items()]
    assert output.splitlines() == here


def mixing(y, sigma):
    """A denoiser whose rows influence one another."""
    return y * 0.5 + 0.01 * y.mean(dim=0, keepdim=True)


def positional(y, sigma):
    """A denoiser that treats rows by position."""
    return y * torch.linspace(0.5, 0.6, y.shape[0], dtype=y.dtype).reshape(-1, 1, 1, 1)


@pytest.mark.parametrize("denoiser", [mixing, positional])
def test_dependence_on_companions_is_noticed(denoiser):
    x = tensor(0, 3, 1, 4, 4, dtype=torch.float32)
    with pytest.raises(RuntimeError, match=r"depend on the other images in a micro-batch of 4; set micro_batch=1"):
        purifier(denoiser, micro_batch=4, invariance="strict")(x)
    model = purifier(denoiser, micro_batch=4)
    with pytest.warns(RuntimeWarning, match="set micro_batch=1"):
        model(x)
    model(x)  # said once
    purifier(denoiser, micro_batch=4, invariance="off")(x)
    purifier(denoiser, micro_batch=1, invariance="strict")(x)


# The autograd modes.


def test_identity_gradient_passes_through_unchanged():
    x = tensor(0, 2, 1, 4, 4).requires_grad_()
    model = purifier(conv_denoiser(dtype=torch.float64))
    result = model(x, gradient="identity")
    assert torch.equal(result, model(x.detach()))
    weight = tensor(1, 2, 1, 4, 4)
    assert torch.equal(torch.autograd.grad((result * weight).sum(), x)[0], weight)


def test_modes_do_not_change_the_result_and_are_left_as_they_were():
    x, model = tensor(0, 2, 1, 6, 6, dtype=torch.float32), purifier(conv_denoiser())
    want = model(x)
    assert not want.requires_grad
    with torch.no_grad():
        assert torch.equal(model(x), want)
        assert not torch.is_grad_enabled()
        assert torch.equal(model(x.clone().requires_grad_()), want)
    with torch.inference_mode():
        assert torch.equal(model(x * 1), want)
        assert torch.is_inference_mode_enabled()
    tracked = model(x.clone().requires_grad_())
    assert tracked.requires_grad
    assert torch.equal(tracked.detach(), want)
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("gradient", ["exact", "identity"])
def test_purified_classifier(gradient):
    x = tensor(0, 5, 1, 8, 8, dtype=torch.float32)
    net = conv_classifier()
    model = ps.PurifiedClassifier(purifier(conv_denoiser(), steps=2), net, gradient=gradient)
    logits = model(x)
    assert logits.shape == (5, 10)
    torch.testing.assert_close(logits, net(model.purifier(x)))
    assert torch.equal(model(x[3:]), logits[3:])
    leaf = x.clone().requires_grad_()
    (got,) = torch.autograd.grad(model(leaf)[:, 3].sum(), leaf)
    through = x.clone().requires_grad_()
    (want,) = torch.autograd.grad(net(model.purifier(through, gradient=gradient))[:, 3].sum(), through)
    torch.testing.assert_close(got, want)
    assert float(got.abs().max()) > 0
    assert sum(1 for _ in model.parameters()) > 0
    assert repr(gradient) in repr(model)


def test_empty_batch():
    empty = torch.zeros(0, 1, 8, 8, requires_grad=True)
    model = ps.PurifiedClassifier(purifier(conv_denoiser()), conv_classifier())
    assert model.purifier(empty).shape == (0, 1, 8, 8)
    assert model.purifier.trace(empty).ere.shape == (5, 0)
    logits = model(empty)
    assert logits.shape == (0, 10)
    assert torch.autograd.grad(logits.sum(), empty)[0].shape == (0, 1, 8, 8)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_other_dtypes(dtype):
    x = tensor(0, 2, 1, 6, 6, dtype=dtype)
    result = purifier(conv_denoiser(dtype=dtype))(x)
    assert result.dtype == dtype
    want = purifier(conv_denoiser(dtype=torch.float64))(x.double())
    assert float((result.double() - want).abs().max()) < (1e-12 if dtype == torch.float64 else 0.06)


def test_zero_steps_and_zero_radius_return_the_input():
    x = tensor(0, 2, 1, 4, 4, dtype=torch.float32)
    assert torch.equal(purifier(conv_denoiser(), steps=0)(x), x)
    assert torch.equal(ps.Purifier(conv_denoiser(), sigma=0.2, radius=0.2, steps=0)(x), x)
    assert torch.equal(purifier(conv_denoiser(), radius=0.0)(x), x)


def test_channels_last_input_gives_the_same_bits():
    x, model = tensor(0, 2, 3, 6, 6, dtype=torch.float32), purifier(conv_denoiser(channels=3))
    assert torch.equal(model(x.to(memory_format=torch.channels_last)), model(x))


def test_kernel_density_treats_rows_alike_where_its_tiles_do_not_divide_the_queries():
    """A thousand images and 512 queries: more than one tile of rows, which must be of one size."""
    denoiser = ps.denoisers.KernelDensity(tensor(0, 1029, 1, 8, 8, dtype=torch.float32), 0.2)
    x = tensor(1, 3, 1, 8, 8, dtype=torch.float32)
    model = ps.Purifier(
        denoiser, sigma=0.2, radius=0.2, steps=1, noise=ps.GaussianNoise(draws=8), micro_batch=64, invariance="strict"
    )
    assert torch.equal(model(x)[1:2], model(x[1:2]))


@pytest.mark.parametrize(("micro_batch", "sizes"), [(None, (8, 4, 2, 1)), (4, (4,))])
def test_networks_see_few_numbers_of_images(micro_batch, sizes):
    seen = []

    def denoiser(y, sigma):
        seen.append(len(y))
        return y * 0.9

    model = purifier(denoiser, micro_batch=micro_batch, noise=ps.GaussianNoise(draws=8))
    rows = {size * 8 for size in sizes}
    for batch in (0, 1, 3, 4, 9, 27):
        for requires_grad in (False, True):
            model.check_derivative(tensor(0, batch, 1, 4, 4))  # which runs the denoiser on fewer
            model(tensor(0, 0, 1, 4, 4))  # and so does the first purification
            seen.clear()
            model(tensor(0, batch, 1, 4, 4).requires_grad_(requires_grad))
            assert set(seen) <= rows
    seen.clear()
    model(tensor(0, 9, 1, 4, 4))
    assert {n // 8 for n in seen} == ({8, 1} if micro_batch is None else {4})
    assert model.micro_batch_sizes(tensor(0, 1, 1, 4, 4)) == sizes


def rounds_by_size(below):
    """A denoiser whose last bits differ below a number of rows, as those of a matrix product may."""
    return lambda y, sigma: y * 0.9 if len(y) >= below else y * (0.9 + 1e-12)


@pytest.mark.parametrize(
    ("denoiser", "draws", "shape", "sizes"),
    [
        (rounds_by_size(0), 8, (1, 4, 4), (8, 4, 2, 1)),
        (rounds_by_size(8), 2, (1, 4, 4), (32, 16, 8, 4)),  # a lone image costs 8 rows
        (rounds_by_size(16), 2, (1, 4, 4), (4, 2, 1)),  # instead of the 16 rows of (32, 16, 8)
        (rounds_by_size(16), 8, (1, 4, 4), (1,)),
        (positional, 8, (1, 4, 4), (1,)),
        (rounds_by_size(0), 8, (1, 128, 128), (2, 1)),  # large images fill the machine sooner
        (rounds_by_size(0), 128, (1, 4, 4), (1,)),
    ],
)
def test_sizes_of_micro_batches_are_found_by_their_bits(denoiser, draws, shape, sizes):
    model = purifier(denoiser, noise=ps.GaussianNoise(draws=draws), steps=1)
    x = tensor(0, 5, *shape)
    assert "micro_batch=None," in repr(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert model.micro_batch_sizes(x) == sizes
    assert f"micro_batch=None ({sizes[0]} for {'x'.join(map(str, shape))} float64 on cpu)" in repr(model)
    whole = model(x)
    for part in (1, 2, 3):
        assert torch.equal(torch.cat([model(piece) for piece in x.split(part)]), whole)


def test_a_denoiser_that_mixes_images_runs_them_alone_and_says_so():
    x = tensor(0, 3, 1, 4, 4)
    model = purifier(mixing, steps=1)
    with pytest.warns(RuntimeWarning, match="images are run one by one") as caught:
        whole = model(x)
    assert [warning.filename for warning in caught] == [__file__]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(model(x), whole)
    with pytest.warns(RuntimeWarning, match="the denoiser mixes the images of a batch"):
        model(tensor(0, 3, 1, 5, 5))
    with pytest.warns(RuntimeWarning, match="the denoiser mixes the images of a batch"):
        purifier(mixing, steps=1)(x.clone().requires_grad_()).sum().backward()
    assert model.micro_batch_sizes(x) == (1,)
    assert torch.equal(whole[1:2], model(x[1:2]))
    with pytest.raises(RuntimeError, match=r"must be independent .*; invariance='warn' would run images one by one"):
        purifier(mixing, steps=1, invariance="strict")(x)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(purifier(mixing, steps=1, micro_batch=1, invariance="strict")(x), whole)


def test_a_network_that_takes_one_image_only():
    """64 draws make a CPU's whole batch, so that no larger one is tried."""

    def fixed(y, sigma):
        if len(y) not in (2, 64):  # 2: the derivative's check
            raise RuntimeError(f"expected a batch of 64, got {len(y)}")
        return 0.9 * y

    model = purifier(fixed, noise=ps.GaussianNoise(draws=64), steps=1, direction="score")
    assert model.micro_batch_sizes(tensor(0, 1, 1, 4, 4)) == (1,)


@pytest.mark.parametrize(("below", "sizes"), [(0, (32, 1)), (8, (32, 4)), (16, (4, 1))])
def test_two_sizes_of_a_compiled_network_are_found(below, sizes, monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda function, **options: function)
    model = purifier(
        rounds_by_size(below), noise=ps.GaussianNoise(draws=2), steps=1, execution=ps.Execution(compile=True)
    )
    x = tensor(0, 37, 1, 4, 4)
    assert model.micro_batch_sizes(x) == sizes
    assert torch.equal(torch.cat([model(piece) for piece in x.split(1)]), model(x))


def test_logits_have_the_same_bits_in_any_batch():
    """With 143 pixels rows of a batch are aligned differently, and a linear layer's sums go by alignment."""
    x = tensor(0, 9, 1, 13, 11, dtype=torch.float32)
    linear = fixed_weights(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(143, 10)))
    model = ps.PurifiedClassifier(purifier(conv_denoiser(), steps=1), linear)
    whole = model(x)
    for i in range(9):
        assert torch.equal(model(x[i : i + 1]), whole[i : i + 1])


def test_a_classifier_whose_rows_mix_is_noticed():
    invariant = purifier(lambda y, sigma: y * 0.5, micro_batch=4, invariance="strict")
    model = ps.PurifiedClassifier(invariant, lambda images: images.flatten(1) - images.mean())
    with pytest.raises(RuntimeError, match="the classifier's results for one image depend on the other images"):
        model(tensor(0, 3, 1, 4, 4, dtype=torch.float32))


@pytest.mark.parametrize("first", [torch.nn.ReLU(inplace=True), lambda images: images.sub_(0.5)])
@pytest.mark.parametrize("micro_batch", [None, 2])
def test_a_classifier_may_write_into_its_input(first, micro_batch):
    net = conv_classifier()
    x = tensor(0, 3, 1, 6, 6, dtype=torch.float32)
    writing, plain = (
        ps.PurifiedClassifier(purifier(conv_denoiser(), micro_batch=micro_batch), classifier)
        for classifier in (lambda images: net(first(images)), lambda images: net(first(images.clone())))
    )
    leaves = [x.clone().requires_grad_() for _ in range(2)]
    results = [model(leaf) for model, leaf in zip((writing, plain), leaves, strict=True)]
    assert torch.equal(*results)
    assert torch.equal(*[torch.autograd.grad(r.sum(), leaf)[0] for r, leaf in zip(results, leaves, strict=True)])


def test_a_trace_that_is_not_finite_is_an_error():
    model = purifier(lambda y, sigma: y / 0)
    for call in (model, model.trace):
        with pytest.raises(RuntimeError, match="the denoiser returned NaN or infinity"):
            call(tensor(0, 1, 1, 4, 4, dtype=torch.float32))
