"""How the denoiser runs: each mode is deterministic, differentiable, and leaves nothing behind."""

import copy
import pickle
import warnings

import pytest
import torch
from cases import tensor
from nets import conv_classifier, conv_denoiser
from torch import nn
from torch._dynamo.testing import CompileCounter

import pursamere as ps
from pursamere import execution as execution_module
from pursamere.denoisers.protocol import NetworkCall

BFLOAT16 = ps.Execution(precision="bfloat16")
MODES = {
    "bfloat16": BFLOAT16,
    "channels_last": ps.Execution(channels_last=True),
    "compile": ps.Execution(compile=True),
    "all": ps.Execution(precision="bfloat16", channels_last=True, compile=True),
}
SETTINGS = {"sigma": 0.3, "radius": 0.2, "steps": 2, "step_size": 0.2}


@pytest.fixture(autouse=True)
def no_bfloat16_warning(monkeypatch):
    monkeypatch.setattr(execution_module, "has_bfloat16", lambda device: True)


@pytest.fixture
def x():
    return tensor(0, 5, 3, 8, 6, dtype=torch.float32)


def purifier(execution, denoiser=None, **options):
    denoiser = conv_denoiser(channels=3) if denoiser is None else denoiser
    return ps.Purifier(denoiser, execution=execution, **{**SETTINGS, **options})


@pytest.mark.slow
@pytest.mark.parametrize("direction", ["ere", "score"])
@pytest.mark.parametrize("mode", MODES)
def test_a_sample_has_the_same_bits_in_any_batch_and_global_random_state_is_untouched(mode, direction, x):
    model = purifier(MODES[mode], direction=direction)
    state = torch.random.get_rng_state()
    whole = model(x)
    assert torch.equal(model(x), whole)
    assert torch.equal(purifier(MODES[mode], model.denoiser, direction=direction)(x), whole)
    for split in (1, 2, 3):
        assert torch.equal(torch.cat([model(part) for part in x.split(split)]), whole)
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
def test_results_are_those_of_the_plain_mode_to_the_precision(mode, x):
    model = purifier(MODES[mode])
    difference = (model(x) - purifier(None, model.denoiser)(x)).abs().max()
    bound = 0.05 if MODES[mode].precision == "bfloat16" else 1e-4
    assert float(difference) < bound
    assert (float(difference) > 1e-5) == (MODES[mode].precision == "bfloat16")  # bfloat16 does something


@pytest.mark.slow
@pytest.mark.parametrize("direction", ["ere", "score"])
@pytest.mark.parametrize("mode", MODES)
def test_the_exact_gradient_is_the_unrolled_one_in_the_same_precision(mode, direction, x):
    model = purifier(MODES[mode], direction=direction)
    gradients = []
    for gradient in ("exact", "unrolled"):
        leaf = x.clone().requires_grad_()
        result = model(leaf, gradient=gradient)
        assert torch.equal(result, model(x))
        gradients.append(torch.autograd.grad(result.square().sum(), leaf)[0])
    atol = 1e-4 if MODES[mode].precision == "float32" else 1e-3  # sums over the draws are in another order
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=atol)
    leaf = x.clone().requires_grad_()
    (plain,) = torch.autograd.grad(purifier(None, model.denoiser, direction=direction)(leaf).square().sum(), leaf)
    if MODES[mode].precision == "float32":
        torch.testing.assert_close(gradients[0], plain, rtol=1e-3, atol=1e-4)
    else:
        assert float(nn.functional.cosine_similarity(gradients[0].flatten(), plain.flatten(), dim=0)) > 0.98


class Recorder(nn.Module):
    """A denoiser that records the dtype of its convolution's result, its input's layout, and whether it is compiled."""

    def __init__(self):
        super().__init__()
        self.inner = conv_denoiser(channels=3)
        self.convolution = nn.Conv2d(3, 3, 1)
        self._seen = []

    def forward(self, y, sigma):
        channels_last = y.is_contiguous(memory_format=torch.channels_last)
        self._seen.append((self.convolution(y).dtype, channels_last, torch.is_autocast_enabled("cpu")))
        return self.inner(y, sigma)


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        (ps.Execution(), (torch.float32, False, False)),
        (BFLOAT16, (torch.bfloat16, False, True)),
        (ps.Execution(channels_last=True), (torch.float32, True, False)),
    ],
)
def test_every_pass_runs_in_the_mode_also_those_of_gradients_and_checks(mode, expected, x):
    denoiser = Recorder()
    model = purifier(mode, denoiser)
    model(x)
    model.trace(x)
    leaf = x.clone().requires_grad_()
    model(leaf).sum().backward()
    without_float64 = [seen for seen in denoiser._seen if seen[0] != torch.float64]  # of the check of the derivative
    assert set(without_float64) == {expected}
    assert not torch.is_autocast_enabled("cpu")


def test_compiled_passes_are_compiled_once_and_gradients_run_uncompiled(x):
    torch._dynamo.reset()  # it remembers what it compiled in other tests
    counter = CompileCounter()
    compile = torch.compile
    calls = []

    def counting(function, **options):
        calls.append(options)
        return compile(function, backend=counter, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "compile", counting)
        model = purifier(ps.Execution(compile=True), micro_batch=1, direction="score")
        model(x)
        frames = counter.frame_count
        assert frames > 0
        model(x + 0)
        model(x[:1])
        leaf = x.clone().requires_grad_()
        model(leaf).sum().backward()
    assert len(calls) == 1
    assert counter.frame_count <= frames + 1  # a graph more where gradients are recorded would be two


def test_every_size_and_noise_level_is_compiled_however_many_there_are(x, monkeypatch):
    # From a ninth graph on Dynamo would run the network uncompiled: bits would depend on what was purified before.
    torch._dynamo.reset()
    counter, compile, denoiser = CompileCounter(), torch.compile, conv_denoiser(channels=3)
    monkeypatch.setattr(torch, "compile", lambda function, **options: compile(function, backend=counter, **options))
    for size in range(1, 11):
        purifier(ps.Execution(compile=True), denoiser, micro_batch=size, direction="score", steps=1)(x[:1])
        assert counter.frame_count == size
    ps.baselines.DiffPure(denoiser, steps=12, micro_batch=1, execution=ps.Execution(compile=True))(x[:1])
    assert counter.frame_count >= 10 + 12


def test_a_caller_s_autocast_is_kept(x):
    model = purifier(None)
    with torch.autocast("cpu", torch.bfloat16):
        ambient = model(x)
    assert torch.equal(ambient, purifier(BFLOAT16, model.denoiser)(x))


@pytest.mark.parametrize("name", sorted(ps.baselines.BASELINES))
def test_baselines_run_in_the_mode_too(name, x):
    denoiser = Recorder()
    options = {"sigma": 0.3, "radius": 0.2} if name == "ere_descent" else {}
    model = ps.baselines.BASELINES[name](denoiser, steps=1, execution=BFLOAT16, **options)
    model(x)
    denoiser._seen.clear()  # its derivative was checked in float64
    model(x)
    assert {seen[0] for seen in denoiser._seen} == {torch.bfloat16}
    assert "precision='bfloat16'" in repr(model)


def test_a_cpu_without_bfloat16_is_told_once(monkeypatch, x):
    monkeypatch.setattr(execution_module, "has_bfloat16", lambda device: False)
    model = purifier(BFLOAT16)
    with pytest.warns(RuntimeWarning, match="this CPU has no bfloat16 instructions"):
        model(x)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model(x)
        purifier(None)(x)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"precision": "float16"}, ValueError, "precision must be one of 'float32', 'bfloat16', got 'float16'"),
        ({"compile": 1}, TypeError, "compile must be a bool, got int"),
        ({"channels_last": None}, TypeError, "channels_last must be a bool, got NoneType"),
        ({"cuda_graphs": "yes"}, TypeError, "cuda_graphs must be a bool, got str"),
    ],
)
def test_bad_settings(options, error, message):
    with pytest.raises(error, match=message):
        ps.Execution(**options)


def test_an_execution_of_another_type_is_refused():
    with pytest.raises(TypeError, match=r"execution must be a pursamere\.Execution, got str"):
        purifier("bfloat16")


def test_it_is_told_by_repr_and_state():
    model = purifier(BFLOAT16)
    assert "execution=Execution(precision='bfloat16')" in repr(model)
    assert "execution=Execution()" in repr(purifier(None))
    with pytest.raises(ValueError, match="execution"):
        purifier(None).load_state_dict(model.state_dict())


def test_a_purified_classifier_runs_its_classifier_in_its_own_precision(x):
    model = ps.PurifiedClassifier(purifier(BFLOAT16), conv_classifier(channels=3))
    assert model(x).dtype == torch.float32


def test_float64_images_are_refused_in_bfloat16(x):
    with pytest.raises(TypeError, match=r"with precision='bfloat16', got torch\.float64"):
        purifier(BFLOAT16)(x.double())


def test_a_denoiser_need_not_be_hashable(x):
    class Unhashable:
        __hash__ = None

        def __call__(self, y, sigma):
            return y.tanh()

    torch._dynamo.reset()
    model = purifier(ps.Execution(compile=True), Unhashable(), steps=1, direction="score")
    assert model(x).shape == x.shape


def test_purifiers_in_every_mode_can_be_copied_and_pickled_after_use(x):
    model = purifier(BFLOAT16)
    want = model(x)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(other(x), want)


def test_a_bank_of_noise_serves_images_of_any_shape(x):
    noise = ps.GaussianNoise(draws=2)
    model = purifier(None, noise=noise.bank((3, 4, 4)))
    assert torch.equal(model(x), purifier(None, noise=noise)(x))
    assert repr(model.noise) == repr(noise)


class CallsNewFunctions(torch.nn.Module):
    def forward(self, y, sigma):
        return 0.5 * y

    def network_call(self, sigma, dtype):
        return NetworkCall("denoised", lambda y, level: 0.5 * y, sigma, dtype)


def test_a_denoiser_that_is_compiled_in_every_pass_is_told_about(x, monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda function, **options: function)
    with pytest.warns(RuntimeWarning, match="network_call returns a new function every time"):
        purifier(ps.Execution(compile=True), CallsNewFunctions(), micro_batch=1, direction="score", steps=8)(x[:1])
