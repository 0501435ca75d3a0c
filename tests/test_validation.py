"""Every error by its message: the argument, what was expected, what was got."""

import math
import subprocess
import sys

import pytest
import torch
from nets import conv_classifier, conv_denoiser
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

import pursamere as ps
from pursamere import functional
from pursamere.determinism import check_evaluation_mode, repeatable_algorithms

X = torch.full((2, 1, 4, 4), 0.5)
NOISE = ps.GaussianNoise(draws=4)


def identity(y, sigma):
    return y


@pytest.mark.parametrize(
    ("keywords", "error", "message"),
    [
        ({"seed": -1}, ValueError, r"seed must be in \[0, 9223372036854775807\], got -1"),
        ({"seed": 2**63}, ValueError, r"seed must be in"),
        ({"seed": 1.5}, TypeError, "seed must be an int, got float"),
        ({"draws": 0}, ValueError, r"draws must be in \[1, 4294967295\], got 0"),
        ({"draws": True}, TypeError, "draws must be an int, got bool"),
        ({"draws": 3}, ValueError, "draws must be even with antithetic noise, got 3"),
        ({"antithetic": 1}, TypeError, "antithetic must be a bool, got int"),
    ],
)
def test_noise(keywords, error, message):
    with pytest.raises(error, match=message):
        ps.GaussianNoise(**keywords)


def test_noise_takes_no_positions():
    with pytest.raises(TypeError, match="positional"):
        ps.GaussianNoise(8)  # seed or draws?


def test_noise_sample():
    with pytest.raises(TypeError, match=r"dtype must be float16, bfloat16, float32 or float64, got torch.int64"):
        NOISE.sample((3,), dtype=torch.int64)


@pytest.mark.parametrize(
    ("keywords", "error", "message"),
    [
        ({"sigma": 0}, ValueError, "sigma must be positive and finite, got 0"),
        ({"sigma": -0.1}, ValueError, "sigma must be positive and finite, got -0.1"),
        ({"sigma": math.nan}, ValueError, "sigma must be positive and finite, got nan"),
        ({"sigma": math.inf}, ValueError, "sigma must be positive and finite, got inf"),
        ({"sigma": "0.1"}, TypeError, "sigma must be a real number, got str '0.1'"),
        ({"sigma": torch.tensor(0.1)}, TypeError, r"sigma must be a real number, got Tensor; use .item\(\)"),
        ({"steps": -1}, ValueError, r"steps must be in \[0, 100000\], got -1"),
        ({"steps": 2.0}, TypeError, "steps must be an int, got float"),
        ({"step_size": -1}, ValueError, "step_size must be at least 0 and finite, got -1"),
        ({"ascent_radius": -0.1}, ValueError, "ascent_radius must be at least 0 and finite, got -0.1"),
        ({"radius": -0.1}, ValueError, "radius must be at least 0, got -0.1"),
        ({"radius": math.nan}, ValueError, "radius must be at least 0, got nan"),
        ({"radius": 8}, ValueError, "radius must be at most 1, the range of the images, or infinite, got 8"),
        ({"radius": math.inf}, ValueError, "step_size must be given for step_rule='unit' when radius is infinite"),
        ({"norm": "l1"}, ValueError, "norm must be one of 'linf', 'l2', got 'l1'"),
        ({"step_rule": "adam"}, ValueError, "step_rule must be one of 'unit', 'gradient', 'sign', got 'adam'"),
        ({"direction": "up"}, ValueError, "direction must be one of 'ere', 'score', got 'up'"),
        ({"noise": 3}, TypeError, r"noise must be a pursamere.GaussianNoise, got int"),
        ({"micro_batch": 0}, ValueError, "micro_batch must be at least 1, got 0"),
        ({"invariance": "maybe"}, ValueError, "invariance must be one of 'warn', 'strict', 'off', got 'maybe'"),
        ({"denoiser": 3}, TypeError, r"denoiser must be callable as denoiser\(y, sigma\), got int"),
    ],
)
def test_purifier_arguments(keywords, error, message):
    with pytest.raises(error, match=message):
        ps.Purifier(**({"denoiser": identity, "sigma": 0.2, "radius": 0.2} | keywords))


@pytest.mark.parametrize("missing", ["sigma", "radius"])
def test_what_depends_on_the_data_has_no_default(missing):
    given = {name: 0.2 for name in ("sigma", "radius") if name != missing}
    with pytest.raises(TypeError, match=f"missing 1 required keyword-only argument: '{missing}'"):
        ps.Purifier(identity, **given)


@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        (X[0], ValueError, r"x must be a batch of images \[B, C, H, W\], got shape \(1, 4, 4\)"),
        (X.int(), TypeError, "x must have a floating dtype .*, got torch.int32$"),
        (X.to(torch.uint8), TypeError, r"got torch.uint8; 8-bit images are x.float\(\) / 255$"),
        ([[0.5]], TypeError, "x must be a torch.Tensor, got list"),
        (X * 255, ValueError, r"x must have .*, got a range of \[127.5, 127.5\]; if white is 255, use x / 255$"),
        (X - 0.6, ValueError, r"x must have values in \[0, 1\], got a range of \[-0.1, -0.1\]; for an attack that"),
        (X - 1.3, ValueError, r"got a range of \[-0.8, -0.8\]; for an attack that"),
        (X * 4.5, ValueError, r"got a range of \[2.25, 2.25\]$"),
        (X + 0.6, ValueError, r"x must have values in \[0, 1\], got a range of \[1.1, 1.1\]; for an attack that"),
        (X - 1.5, ValueError, r"got a range of \[-1, -1\]; if black is -1, use \(x \+ 1\) / 2$"),
        (X * 65535, ValueError, "if white is 65535, use x / 65535$"),
        (X * 1e9, ValueError, r"got a range of \[5e\+08, 5e\+08\]$"),
        ((torch.eye(4).expand(2, 1, 4, 4) - 0.13) / 0.3, ValueError, "normalization .* belongs into the classifier$"),
        (X - 2.5, ValueError, r"got a range of \[-2, -2\]; normalization .* belongs into the classifier$"),
        (X * math.nan, ValueError, "x must be finite, got NaN or infinity"),
        (X / 0, ValueError, "x must be finite, got NaN or infinity"),
        (X.masked_fill(torch.eye(4) > 0, math.nan), ValueError, "x must be finite, got NaN or infinity"),
    ],
)
def test_purifier_input(x, error, message):
    model = ps.Purifier(identity, sigma=0.2, radius=0.2)
    for call in (model, model.trace, ps.PurifiedClassifier(model, conv_classifier())):
        with pytest.raises(error, match=message):
            call(x)


@pytest.mark.parametrize(
    "denoiser",
    [
        ps.denoisers.KernelDensity(torch.rand(3, 1, 8, 8), 0.2),
        ps.denoisers.GaussianMixture(torch.rand(3, 1, 8, 8), torch.ones(3), torch.ones(3)),
        ps.models.EDMUNet((1, 8, 8), (8,)),
    ],
)
def test_images_of_another_shape_than_the_denoisers(denoiser):
    model = ps.Purifier(denoiser, sigma=0.2, radius=0.2)
    for call in (model, model.trace, ps.PurifiedClassifier(model, conv_classifier())):
        with pytest.raises(ValueError, match=r"x must have the shape \[B, 1, 8, 8\], got \[2, 1, 4, 4\]"):
            call(X)


@pytest.mark.parametrize("image_shape", [8, (8, 8), (8, 8, 1), (1, 9, 9), lambda: None])
def test_an_image_shape_of_another_meaning_is_no_error(image_shape):
    denoiser = conv_denoiser()
    denoiser.image_shape = image_shape
    ps.Purifier(denoiser, sigma=0.2, radius=0.2, steps=1)(X)


def test_gradient_names():
    names = "'exact', 'straight_through', 'identity', 'unrolled'"
    message = f"gradient must be one of {names}, got 'bpda'; BPDA is 'identity'"
    with pytest.raises(ValueError, match=message):
        ps.Purifier(identity, sigma=0.2, radius=0.2)(X, gradient="bpda")
    with pytest.raises(ValueError, match=message):
        ps.PurifiedClassifier(ps.Purifier(identity, sigma=0.2, radius=0.2), conv_classifier(), gradient="bpda")


def test_purified_classifier_arguments():
    with pytest.raises(TypeError, match=r"purifier must be a .* or another IterativePurifier, got function$"):
        ps.PurifiedClassifier(identity, conv_classifier())
    with pytest.raises(TypeError, match="got Sequential; the purifier comes first"):
        ps.PurifiedClassifier(conv_classifier(), ps.Purifier(identity, sigma=0.2, radius=0.2))
    with pytest.raises(TypeError, match="classifier must be an instance, got the class Linear"):
        ps.PurifiedClassifier(ps.Purifier(identity, sigma=0.2, radius=0.2), nn.Linear)
    with pytest.raises(TypeError, match="denoiser must be an instance, got the class Noisy"):
        ps.Purifier(Noisy, sigma=0.2, radius=0.2)
    with pytest.raises(TypeError, match="classifier must be callable, got int"):
        ps.PurifiedClassifier(ps.Purifier(identity, sigma=0.2, radius=0.2), 3)


class Noisy(nn.Module):
    """An identity denoiser with a layer that is random in training mode."""

    def __init__(self):
        super().__init__()
        self.drop = nn.Dropout(0.5)

    def forward(self, y, sigma):
        return self.drop(y)


def test_denoiser_in_training_mode():
    model = ps.Purifier(Noisy(), sigma=0.2, radius=0.2)
    model.denoiser.train()
    with pytest.raises(ValueError, match=r"denoiser must be in evaluation mode, but its layer 'drop' is training"):
        model(X)
    model.eval()
    model(X)
    model = ps.Purifier(conv_denoiser(), sigma=0.2, radius=0.2, steps=1)
    model.denoiser.train()  # nothing stochastic: allowed
    model(X)


class Holder(nn.Module):
    """Holds networks where PyTorch doesn't see them."""

    def __init__(self, *networks):
        super().__init__()
        self.networks = list(networks)

    def forward(self, y, sigma):
        return self.networks[0](y)


@pytest.mark.parametrize("micro_batch", [None, 1, 4])
def test_a_network_in_training_mode_that_pytorch_does_not_see(micro_batch):
    norm = nn.BatchNorm2d(1)
    layers = {"first": [norm]}
    functions = (
        lambda y, sigma: norm(y),
        lambda y, sigma: layers["first"][0](y),
        Holder(norm),
        Holder(nn.Identity(), lambda y: norm(y)).networks[1],
    )
    for function in functions:
        norm.train()
        model = ps.Purifier(
            lambda y, sigma, f=function: f(y, sigma) if f is not functions[3] else f(y),
            sigma=0.2,
            radius=0.2,
            steps=1,
            micro_batch=micro_batch,
        )
        for call in (model, model.trace, model.micro_batch_sizes):
            with pytest.raises(
                ValueError, match=r"denoiser must be in evaluation mode, but its layer 'BatchNorm2d' is"
            ):
                call(X)
        assert norm.num_batches_tracked == 0
        assert not norm._forward_pre_hooks
        norm.eval()
        model(X)
    norm.train()
    classifier = ps.PurifiedClassifier(ps.Purifier(identity, sigma=0.2, radius=0.2), lambda x: norm(x).flatten(1))
    with pytest.raises(ValueError, match="classifier must be in evaluation mode"):
        classifier(X)


def test_a_network_in_training_mode_that_does_not_run():
    """As in a module that trains a network and purifies with an average of its weights."""
    average, student = nn.BatchNorm2d(1).eval(), nn.BatchNorm2d(1).train()
    ps.Purifier(lambda y, sigma: (average, student)[0](y), sigma=0.2, radius=0.2, steps=1)(X)
    assert student.num_batches_tracked == 0


def test_noise_levels_outside_of_the_denoisers_range():
    denoiser = conv_denoiser()
    denoiser.sigma_range = (0.01, 0.1)
    with pytest.warns(UserWarning, match=r"sigma=0.2 is outside denoiser.sigma_range, \[0.01, 0.1\]"):
        ps.Purifier(denoiser, sigma=0.2, radius=0.2)
    for right in ((0.01, 0.1), [0.01, 0.1], torch.tensor([0.01, 0.11])):
        denoiser.sigma_range = right
        ps.Purifier(denoiser, sigma=0.1, radius=0.2)
    denoiser.sigma_range = 0.5
    with pytest.raises(TypeError, match=r"denoiser.sigma_range must hold two numbers"):
        ps.Purifier(denoiser, sigma=0.2, radius=0.2)


class NormWithP(nn.BatchNorm2d):
    p = 0


def test_only_dropout_of_probability_0_is_no_randomness():
    with pytest.raises(ValueError, match="its layer '0' is training"):
        check_evaluation_mode("denoiser", nn.Sequential(NormWithP(1)).train())
    check_evaluation_mode("denoiser", nn.Sequential(nn.Dropout(0.0)).train())


class WithDropout(ps.PurifiedClassifier):
    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.extra = nn.Dropout(0.5)

    def forward(self, x):
        return self.extra(super().forward(x))


def test_a_layer_that_a_subclass_adds_must_be_in_evaluation_mode():
    model = WithDropout(ps.Purifier(identity, sigma=0.2, radius=0.2), conv_classifier())
    with pytest.raises(ValueError, match="extra must be in evaluation mode"):
        model(X)
    model.eval()
    assert torch.equal(model(X), model(X))


def test_there_is_no_training_mode():
    classifier = nn.Sequential(nn.Dropout(0.5), conv_classifier()).train()
    model = ps.PurifiedClassifier(ps.Purifier(Noisy().train(), sigma=0.2, radius=0.2, steps=1), classifier)
    outer = nn.Sequential(nn.Identity(), model)
    want = model(X)
    for switched in (model, model.purifier, outer):
        was_training = model.training
        switched.eval()
        switched.train(was_training)
        assert switched.train() is switched
        assert not any(module.training for module in model.modules())
        assert torch.equal(model(X), want)


def test_purifiers_have_no_training_mode():
    for purifier in (ps.Purifier(Noisy(), sigma=0.2, radius=0.2), ps.baselines.DiffPure(Noisy())):
        assert not any(module.training for module in purifier.train().modules())


@pytest.mark.parametrize(
    ("layer", "raises"),
    [
        (nn.BatchNorm2d(1), True),
        (nn.Dropout(0.5), True),
        (nn.Dropout(0.0), False),
        (nn.AlphaDropout(0), False),
        (nn.RReLU(), True),
        (nn.InstanceNorm2d(1, track_running_stats=True), True),
        (nn.InstanceNorm2d(1), False),
        (nn.MultiheadAttention(4, 1, dropout=0.1), True),
        (nn.MultiheadAttention(4, 1), False),
    ],
)
def test_layers_that_training_mode_makes_random_or_mixing(layer, raises):
    if not raises:
        check_evaluation_mode("denoiser", layer)
        return
    model = ps.PurifiedClassifier(ps.Purifier(identity, sigma=0.2, radius=0.2), nn.Sequential(layer))
    model.classifier.train()
    with pytest.raises(ValueError, match=r"classifier must be in evaluation mode, .*; call classifier.eval\(\)"):
        model(X)


def test_denoiser_that_draws_random_numbers():
    with pytest.raises(RuntimeError, match="drew random numbers from PyTorch's global state"):
        ps.Purifier(lambda y, sigma: nn.functional.dropout(y), sigma=0.2, radius=0.2)(X)


@pytest.mark.parametrize("direction", ["ere", "score"])
@pytest.mark.parametrize("cut", ["no_grad", "detach", "parameter"])
def test_gradient_of_a_denoiser_without_one(direction, cut):
    """It would pass for a constant, and the "exact" gradient be wrong: an accidental obfuscation."""
    scale = torch.tensor(0.9, requires_grad=True)
    denoiser = {
        "no_grad": torch.no_grad()(lambda y, sigma: y * 0.9),
        "detach": lambda y, sigma: y.detach() * 0.9,
        "parameter": lambda y, sigma: y.detach() * scale,
    }[cut]
    model = ps.Purifier(denoiser, sigma=0.2, radius=0.2, direction=direction)
    for gradient in ("exact", "unrolled"):
        with pytest.raises(ValueError, match="denoiser must be differentiable in its input"):
            model(X.clone().requires_grad_(), gradient=gradient).sum().backward()
    if direction == "score":
        model(X)


@pytest.mark.parametrize(
    ("classifier", "error", "message"),
    [
        (
            lambda x: x.mean(dim=(1, 2, 3)),
            ValueError,
            r"classifier must return logits \[1, classes\], got shape \(1,\)",
        ),
        (
            lambda x: torch.ones(2, 10),
            ValueError,
            r"classifier must return logits \[1, classes\], got shape \(2, 10\)",
        ),
        (
            lambda x: {"logits": x},
            TypeError,
            r"got dict; wrap it, for example as lambda x: classifier\(x\)\['logits'\]",
        ),
        (
            lambda x: x.flatten(1).long(),
            TypeError,
            "what classifier returns must have a floating dtype .*, got torch.i",
        ),
    ],
)
def test_classifier_results(classifier, error, message):
    with pytest.raises(error, match=message):
        ps.PurifiedClassifier(ps.Purifier(identity, sigma=0.2, radius=0.2), classifier)(X)


def test_ere_micro_batch():
    for bad in (0, -1):
        with pytest.raises(ValueError, match=f"micro_batch must be at least 1, got {bad}"):
            ps.expected_reconstruction_error(identity, X, 0.1, NOISE, micro_batch=bad)


def test_errors_are_public():
    assert ps.NotFiniteError is ps._validation.NotFiniteError
    assert ps.MissingExtraError is ps._extras.MissingExtraError


@pytest.mark.slow
def test_import_without_the_metadata_of_the_distribution():
    code = (
        "from importlib import metadata\n"
        "def missing(name): raise metadata.PackageNotFoundError(name)\n"
        "find, metadata.version = metadata.version, lambda n: missing(n) if n == 'pursamere' else find(n)\n"
        "import pursamere; print(pursamere.__version__)"
    )
    command = [sys.executable, "-P", "-c", code]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "unknown\n"


def test_autocast_is_mentioned():
    conv = conv_denoiser()
    with torch.autocast("cpu"), pytest.raises(ValueError, match=r"got torch.bfloat16 \(is torch.autocast on\?\)"):
        ps.Purifier(lambda y, sigma: conv.net(y), sigma=0.2, radius=0.2)(X)


def test_denoiser_on_another_device():
    with pytest.raises(ValueError, match=r"x must be on the device of denoiser.net.0.weight, meta, got cpu"):
        ps.Purifier(conv_denoiser().to("meta"), sigma=0.2, radius=0.2)(X)


def test_denoiser_that_returns_nan():
    for bad in (math.nan, math.inf):
        with pytest.raises(RuntimeError, match="the denoiser returned NaN or infinity"):
            ps.Purifier(lambda y, sigma, bad=bad: y * bad, sigma=0.2, radius=0.2)(X)


def test_cuda_tensor_without_cuda_kernels(monkeypatch):
    """A fake CUDA tensor has the device, and needs no GPU."""
    monkeypatch.setattr(ps._validation, "BUILT_WITH_CUDA", False)
    with FakeTensorMode(allow_non_fake_inputs=True):
        x = torch.empty(2, 1, 4, 4, device="cuda")
    message = r"x is on cuda:0, but pursamere was built without CUDA; reinstall with nvcc .*PURSAMERE_CUDA=ON"
    with pytest.raises(ValueError, match=message):
        functional.perturb(x, 0.1, NOISE)


def test_cuda_tensor_with_cuda_kernels(monkeypatch):
    monkeypatch.setattr(ps._validation, "BUILT_WITH_CUDA", True)
    with FakeTensorMode(allow_non_fake_inputs=True):
        x = torch.empty(2, 1, 4, 4, device="cuda")
        y = functional.perturb(x, 0.1, NOISE)
    assert (y.device.type, y.shape) == ("cuda", (NOISE.draws, 2, 1, 4, 4))


def test_cudnn_is_pinned_inside_and_left_as_it_was():
    cudnn = torch.backends.cudnn

    def fail_inside():
        with repeatable_algorithms(torch.device("cuda")):
            assert (cudnn.benchmark, cudnn.deterministic) == (False, True)
            raise KeyError

    before = cudnn.benchmark, cudnn.deterministic
    cudnn.benchmark = True
    try:
        with pytest.raises(KeyError):
            fail_inside()
        assert (cudnn.benchmark, cudnn.deterministic) == (True, before[1])
        with repeatable_algorithms(torch.device("cpu")):
            assert cudnn.benchmark
    finally:
        cudnn.benchmark = before[0]


def test_device_without_kernels():
    with pytest.raises(ValueError, match=r"x must be on a CPU or a CUDA device, got xpu"):
        ps._validation.check_supported_device("x", torch.device("xpu"))


def functional_calls():
    per_draw = torch.zeros(4, *X.shape)
    options = {"step_rule": "unit", "step_size": 0.1, "norm": "linf", "radius": 0.1}
    wrong = r"per_draw must have shape \[draws, \*\[2, 1, 4, 4\]\], got"
    return [
        (functional.perturb, (X, 0.0, NOISE), {}, ValueError, "sigma must be positive"),
        (functional.perturb, (X, 0.1, 8), {}, TypeError, r"noise must be a pursamere.GaussianNoise, got int"),
        (functional.perturb, (X.int(), 0.1, NOISE), {}, TypeError, "x must have a floating dtype"),
        (functional.perturb, (X.sum(), 0.1, NOISE), {}, ValueError, "x must have a batch dimension, got a scalar"),
        (functional.perturb, (X, 0.1, NOISE), {"dtype": torch.int8}, TypeError, "dtype must be float16"),
        (functional.perturb, (X, 0.1, NOISE), {"scale": 0.0}, ValueError, "scale must be positive and finite, got 0"),
        (functional.perturb, (X, 0.1, NOISE), {"shift": "1"}, TypeError, "shift must be a real number, got str"),
        (functional.residual, (X, per_draw, 0.1, NOISE), {"gain": None}, TypeError, "gain must be a real number"),
        (
            functional.residual,
            (X, per_draw, 0.1, NOISE),
            {"input_scale": -2},
            ValueError,
            "input_scale must be positive",
        ),
        (functional.residual, (X, per_draw[0], 0.1, NOISE), {}, ValueError, "prediction must have shape"),
        (functional.residual, (X, per_draw[:2], 0.1, NOISE), {}, ValueError, r"noise.draws = 4 draws, got 2"),
        (functional.residual, (X, per_draw, 0.1, NOISE), {"kind": "v"}, ValueError, "kind must be one of 'denoised'"),
        (functional.residual, (X, per_draw.double(), 0.1, NOISE), {}, TypeError, "prediction must have the dtype of x"),
        (functional.residual, (X.double(), per_draw, 0.1, NOISE), {}, TypeError, "prediction must have the dtype of x"),
        (
            functional.residual,
            (X, per_draw.to("meta"), 0.1, NOISE),
            {},
            ValueError,
            "on the device of x, cpu, got meta",
        ),
        (functional.accumulate_ascend, (X, per_draw[:, :1], None, 0.1), {}, ValueError, wrong),
        (functional.accumulate_ascend, (X, per_draw[:0], None, 0.1), {}, ValueError, wrong),
        (functional.accumulate_ascend, (X, per_draw, X[:1], 0.1), {}, ValueError, "direct must have the shape of x"),
        (functional.accumulate_ascend, (X, per_draw, X.half(), 0.1), {}, TypeError, "direct must have the dtype of x"),
        (functional.accumulate_ascend, (X, per_draw, None, -1), {}, ValueError, "ascent_radius must be at least 0"),
        (functional.accumulate_descend, (X, X[:1], per_draw, None), options, ValueError, "start must have the shape"),
        *(
            (
                functional.accumulate_descend,
                (X, X, per_draw, None),
                options | {name: bad},
                ValueError,
                f"{name} must be",
            )
            for name, bad in {"step_rule": "up", "step_size": -1, "norm": "l0", "radius": -1}.items()
        ),
    ]


@pytest.mark.parametrize(("call", "arguments", "keywords", "error", "message"), functional_calls())
def test_functional(call, arguments, keywords, error, message):
    with pytest.raises(error, match=message):
        call(*arguments, **keywords)


@pytest.mark.slow
def test_source_folder_in_the_way_is_explained(request):
    """Python started in the repository's root would import the folder without the compiled module."""
    root = request.path.parent.parent
    result = subprocess.run([sys.executable, "-c", "import pursamere"], cwd=root, capture_output=True, text=True)
    assert result.returncode != 0
    assert "is the source folder and has no compiled module" in result.stderr
    assert "start Python from another directory" in result.stderr
