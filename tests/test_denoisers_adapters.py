"""Adapters of diffusion models: against closed forms, against the families' own formulas, and inside a purifier."""

import copy
import math
import pickle
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import diffusion_families as families
import numpy as np
import pytest
import torch
from cases import tensor
from diffusion_families import EDMNetwork, GuidedNetwork, MeanType, ScaledBySigma, SubVPSDE, TinyUNet
from nets import fixed_weights
from torch import nn

import pursamere as ps
from pursamere.baselines import BASELINES, DiffPure
from pursamere.denoisers import from_diffusers, from_edm, from_guided_diffusion, from_score_sde, prediction_of

VP, VE, SUB_VP = families.VPSDE(), families.VESDE(), SubVPSDE()
PRIOR = families.GaussianPrior(0.4, 0.3)
CENTERD = PRIOR.centered()
Y = tensor(0, 3, 2, 4, 5, low=-0.5, high=1.5)
DIFFUSERS_OUTPUTS = ("epsilon", "v_prediction", "sample")


@pytest.fixture(scope="session")
def diffusers():
    return pytest.importorskip("diffusers", reason="diffusers is not installed")


def scheduler_of(prediction_type="epsilon", **options):
    """As much of a diffusers scheduler as is read, with the linear schedule of Ho et al. (2020)."""
    alphas_cumprod = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000), 0)
    return SimpleNamespace(
        config=SimpleNamespace(prediction_type=prediction_type, **options), alphas_cumprod=alphas_cumprod
    )


class Recorder(nn.Module):
    """Answers with a closed form, and keeps the times that it was given."""

    def __init__(self, answer, **attributes):
        super().__init__()
        self.answer, self.times = answer, []
        for name, value in attributes.items():
            setattr(self, name, value)

    def forward(self, x, times, *args, return_dict=True, **kwargs):
        self.times.append(times)
        output = self.answer(x, times).to(x.dtype)
        return output if return_dict else (output,)


def gaussian_edm():
    return from_edm(Recorder(lambda x, sigma: CENTERD.denoised(x, 1.0, sigma[:, None, None, None])))


def gaussian_diffusers(kind):
    scheduler = scheduler_of(kind)
    answer = CENTERD.denoised if kind == "sample" else getattr(CENTERD, kind)
    network = Recorder(
        lambda x, t: answer(x, *families.at_timesteps(scheduler.alphas_cumprod, t)), config=SimpleNamespace()
    )
    return from_diffusers(network, scheduler)


def gaussian_guided(kind, steps=1000, kept=None, rescale=True):
    diffusion = families.guided_diffusion(steps, kind, rescale, kept)

    def network(x, times):
        index = times * (steps / 1000) if rescale else times
        if kept is not None:
            index = torch.from_numpy(np.interp(index.numpy(), kept, np.arange(len(kept))))
        answer = CENTERD.denoised if kind is MeanType.START_X else CENTERD.epsilon
        output = answer(x, *families.at_timesteps(diffusion.alphas_cumprod, index))
        return torch.cat([output, torch.full_like(output, 1e3)], 1)  # a variance that must not be seen

    return from_guided_diffusion(Recorder(network), diffusion)


def gaussian_score_sde(sde, prior, centered):
    def network(x, labels):
        if sde is VE:
            return prior.score(x, 1.0, labels[:, None, None, None])
        alpha, std = (c[:, None, None, None] for c in sde.coefficients(labels / 999))
        return -std * prior.score(x, alpha, std)

    return from_score_sde(families.get_score_fn(sde, network), sde, centered=centered)


GAUSSIANS = {
    "edm": gaussian_edm,
    **{f"diffusers {kind}": (lambda kind=kind: gaussian_diffusers(kind)) for kind in DIFFUSERS_OUTPUTS},
    "guided epsilon": lambda: gaussian_guided(MeanType.EPSILON),
    "guided start": lambda: gaussian_guided(MeanType.START_X),
    "guided, 4000 steps": lambda: gaussian_guided(MeanType.EPSILON, 4000),
    "guided, 400 steps, not rescaled": lambda: gaussian_guided(MeanType.EPSILON, 400, rescale=False),
    "guided, spaced": lambda: gaussian_guided(MeanType.EPSILON, 1000, kept=np.arange(0, 1000, 13)),
    "score_sde vp": lambda: gaussian_score_sde(VP, CENTERD, True),
    "score_sde vp, not centered": lambda: gaussian_score_sde(VP, PRIOR, False),
    "score_sde sub-vp": lambda: gaussian_score_sde(SUB_VP, CENTERD, True),
    "score_sde ve": lambda: gaussian_score_sde(VE, PRIOR, False),
    "score_sde ve, centered": lambda: gaussian_score_sde(VE, CENTERD, True),
}


@pytest.mark.parametrize("name", GAUSSIANS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-9)])
def test_gaussian_prior_has_the_same_denoiser_in_every_convention(name, dtype, tolerance):
    denoiser = GAUSSIANS[name]()
    for sigma in (0.02, 0.1, 0.2, 0.5, 1.7):
        want = PRIOR.denoised(Y, 1.0, sigma)
        got = denoiser(Y.to(dtype), sigma)
        assert got.dtype == dtype
        torch.testing.assert_close(got.double(), want, rtol=0, atol=tolerance)


def test_timesteps_that_networks_are_told():
    """At the noise of a step, and half way to the next in the log signal-to-noise ratio."""
    for denoiser in (gaussian_diffusers("epsilon"), gaussian_guided(MeanType.EPSILON, rescale=False)):
        acp = scheduler_of().alphas_cumprod.double()
        sigmas = ((1 - acp) / acp).sqrt() / 2
        for step in (1, 137, 998):
            here, there = sigmas[step : step + 2].tolist()
            denoiser(Y, here)
            denoiser(Y, math.sqrt(here * there))
            exact, between = denoiser.network.times[-2:]
            assert exact.tolist() == pytest.approx([step] * len(Y), abs=1e-3)
            assert between.tolist() == pytest.approx([step + 0.5] * len(Y), abs=1e-3)
    denoiser = gaussian_guided(MeanType.EPSILON, 250)
    acp = families.guided_diffusion(250).alphas_cumprod
    denoiser(Y, math.sqrt((1 - acp[100]) / acp[100]) / 2)
    assert denoiser.network.times[0].tolist() == pytest.approx([400.0] * len(Y))


# Networks with random weights, and what the family's own formulas make of them.


def random_edm(**options):
    return from_edm(fixed_weights(EDMNetwork(**options)))


def random_guided(**options):
    return from_guided_diffusion(fixed_weights(GuidedNetwork(**options)), families.guided_diffusion())


def random_score_sde(sde, model):
    model = fixed_weights(model)
    return from_score_sde(families.get_score_fn(sde, model), sde, centered=sde is not VE, network=model)


RANDOM = {
    "edm": random_edm,
    "guided": random_guided,
    "score_sde vp": lambda: random_score_sde(VP, TinyUNet(1, 1)),
    "score_sde ve": lambda: random_score_sde(VE, ScaledBySigma()),
    "diffusers": lambda: from_diffusers(families.diffusers_unet(), scheduler_of("v_prediction")),
}


@pytest.fixture(params=RANDOM)
def random_denoiser(request):
    if request.param == "diffusers":
        request.getfixturevalue("diffusers")
    return RANDOM[request.param]()


@pytest.mark.parametrize("label", [None, 0, 2])
def test_edm_is_the_network_in_its_range(label):
    network = fixed_weights(EDMNetwork(2, label_dim=3)).double()
    rows = None if label is None else torch.eye(3)[[label]]
    want = (network(2 * Y - 1, torch.tensor(0.6), rows) + 1) / 2
    torch.testing.assert_close(from_edm(network, label=label)(Y, 0.3), want)
    others = [from_edm(network, label=other)(Y, 0.3) for other in {None, 0, 2} - {label}]
    assert all(not torch.allclose(want, other) for other in others)


@pytest.mark.parametrize("prediction_type", DIFFUSERS_OUTPUTS)
@pytest.mark.parametrize("options", [{}, {"beta_schedule": "squaredcos_cap_v2"}, {"rescale_betas_zero_snr": True}])
def test_diffusers_agrees_with_the_scheduler(diffusers, prediction_type, options):
    scheduler = diffusers.DDPMScheduler(prediction_type=prediction_type, clip_sample=False, **options)
    unet = families.diffusers_unet(2).double()
    y = tensor(0, 2, 2, 8, 8)
    for step in (3, 250, 800):
        acp = float(scheduler.alphas_cumprod[step])
        x = math.sqrt(acp) * (2 * y - 1)
        want = scheduler.step(unet(x, step).sample, step, x).pred_original_sample
        got = from_diffusers(unet, scheduler)(y, math.sqrt((1 - acp) / acp) / 2)
        torch.testing.assert_close(got, (want + 1) / 2, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["DDIMScheduler", "EulerDiscreteScheduler", "DPMSolverMultistepScheduler"])
def test_diffusers_reads_every_discrete_scheduler_alike(diffusers, name):
    unet, y = families.diffusers_unet(), tensor(0, 2, 1, 8, 8)
    want = from_diffusers(unet, diffusers.DDPMScheduler())(y, 0.3)
    assert torch.equal(from_diffusers(unet, getattr(diffusers, name)(beta_start=1e-4, beta_end=0.02))(y, 0.3), want)


def test_diffusers_learned_variance_and_labels(diffusers):
    unet = families.diffusers_unet(out_channels=2, num_class_embeds=4).double()
    scheduler = diffusers.DDPMScheduler(variance_type="learned_range", clip_sample=False)
    y, acp = tensor(0, 2, 1, 8, 8), float(scheduler.alphas_cumprod[100])
    x = math.sqrt(acp) * (2 * y - 1)
    for label in (0, 3):
        output = unet(x, 100, class_labels=torch.tensor([label, label])).sample
        want = scheduler.step(output, 100, x, generator=torch.Generator()).pred_original_sample
        got = from_diffusers(unet, scheduler, label=label)(y, math.sqrt((1 - acp) / acp) / 2)
        torch.testing.assert_close(got, (want + 1) / 2, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("learn_sigma", [True, False])
@pytest.mark.parametrize("label", [None, 0, 2])
@pytest.mark.parametrize("mean_type", [MeanType.EPSILON, MeanType.START_X])
def test_guided_diffusion_by_its_formulas(learn_sigma, label, mean_type):
    network = GuidedNetwork(2, num_classes=None if label is None else 3, learn_sigma=learn_sigma)
    network, diffusion = fixed_weights(network).double(), families.guided_diffusion(500, mean_type)
    acp = diffusion.alphas_cumprod[200]
    labels = {} if label is None else {"y": torch.tensor([label] * len(Y))}
    x = math.sqrt(acp) * (2 * Y - 1)
    output = network(x, torch.full((len(Y),), 400.0), **labels)[:, :2]
    want = output if mean_type is MeanType.START_X else (x - math.sqrt(1 - acp) * output) / math.sqrt(acp)
    got = from_guided_diffusion(network, diffusion, label=label)(Y, math.sqrt((1 - acp) / acp) / 2)
    torch.testing.assert_close(got, (want + 1) / 2)


@pytest.mark.parametrize("sde", [VP, SUB_VP, VE], ids=["vp", "sub-vp", "ve"])
def test_score_sde_by_tweedie(sde):
    centered = sde is not VE
    network = fixed_weights(TinyUNet(2, 2)).double()
    score_fn = families.get_score_fn(sde, network)
    time = torch.tensor([0.3], dtype=torch.float64)
    alpha, sigma_t = (float(v) for v in sde.marginal_prob(torch.ones(1, 1, 1, 1, dtype=torch.float64), time))
    x = alpha * (2 * Y - 1 if centered else Y)
    want = (x + sigma_t**2 * score_fn(x, time.expand(len(Y)))) / alpha
    denoiser = from_score_sde(score_fn, sde, centered=centered, network=network)
    got = denoiser(Y, sigma_t / alpha / (2 if centered else 1))
    torch.testing.assert_close(got, (want + 1) / 2 if centered else want)


def test_parameters_are_those_of_the_network(random_denoiser):
    network = random_denoiser.inner if random_denoiser.output == "score" else random_denoiser.network
    assert {id(p) for p in random_denoiser.parameters()} == {id(p) for p in network.parameters()}
    assert prediction_of(random_denoiser) == ("denoised", random_denoiser)
    network.dropping = nn.Dropout()
    purifier = ps.Purifier(random_denoiser, sigma=0.2, radius=0.2)
    assert not network.dropping.training
    network.dropping.train()
    with pytest.raises(ValueError, match="denoiser must be in evaluation mode"):
        purifier(tensor(0, 1, 1, 8, 8))


@pytest.mark.parametrize(
    "make",
    [
        # The noise level of ere_descent is not a default.
        *(partial(make, steps=2) for name, make in BASELINES.items() if name != "ere_descent"),
        partial(DiffPure, solver="heun", steps=12),
    ],
)
def test_the_default_noise_levels_of_every_baseline_suit_every_family(random_denoiser, make):
    model = make(random_denoiser)
    assert bool(model(tensor(0, 1, 1, 8, 8, dtype=torch.float32)).isfinite().all())


@pytest.mark.parametrize("bounds", [(0.003, 2.0), (0.006, 2.0), (0.21, 0.22), (0.001, 0.1)])
def test_default_noise_levels_are_clipped_to_the_range_of_the_denoiser(bounds):
    """Levels that are asked for, at the rounding of the last bit; levels that are given are left to the denoiser."""
    asked = []

    def denoiser(y, sigma):
        asked.append(sigma)
        return 0.9 * y

    denoiser.sigma_range = bounds
    x = tensor(0, 1, 1, 4, 4)
    for name, make in BASELINES.items():
        if name != "ere_descent":  # which has no default
            make(denoiser, steps=7)(x)
    for solver in ("euler", "heun"):
        DiffPure(denoiser, steps=12, solver=solver)(x)
    assert bounds[0] <= min(asked) <= max(asked) <= bounds[1]
    assert DiffPure(denoiser, sigma_max=0.5, sigma_min=1e-4).sigmas()[-2] == pytest.approx(1e-4)


@pytest.mark.parametrize(
    ("bounds", "error", "message"),
    [
        ((0.1,), TypeError, r"denoiser.sigma_range must hold two numbers, .*, got \(0.1,\)"),
        (0.1, TypeError, "denoiser.sigma_range must hold two numbers, .*, got 0.1"),
        ((0.2, 0.1), ValueError, r"denoiser.sigma_range must not decrease, got \(0.2, 0.1\)"),
        ((-1, 1), ValueError, "denoiser.sigma_range must be at least 0, got -1"),
    ],
)
def test_a_range_that_is_none(bounds, error, message):
    def denoiser(y, sigma):
        return y

    denoiser.sigma_range = bounds
    with pytest.raises(error, match=message):
        DiffPure(denoiser)


@pytest.mark.slow
@pytest.mark.parametrize("direction", ["ere", "score"])
def test_exact_gradient_through_a_purifier(random_denoiser, direction):
    noise = ps.GaussianNoise(draws=2)
    purifier = ps.Purifier(
        random_denoiser.double(), sigma=0.2, radius=0.2, steps=2, direction=direction, step_size=0.3, noise=noise
    )
    x = tensor(1, 2, 1, 8, 8).requires_grad_()
    weight = tensor(2, *x.shape, low=-1)
    got, want = (
        torch.autograd.grad((purifier(x, gradient=mode) * weight).sum(), x)[0] for mode in ("exact", "unrolled")
    )
    assert float(want.norm()) > 0
    assert float((got - want).norm()) <= 1e-9 * float(want.norm())


def test_rows_do_not_depend_on_the_batch(random_denoiser):
    x = tensor(3, 3, 1, 8, 8, dtype=torch.float32)
    purifier = ps.Purifier(
        random_denoiser, sigma=0.2, radius=0.2, steps=2, micro_batch=1, noise=ps.GaussianNoise(draws=2)
    )
    together = purifier(x)
    assert not torch.equal(together, x)
    assert torch.equal(torch.cat([purifier(row[None]) for row in x]), together)
    assert torch.equal(purifier(x.flip(0)).flip(0), together)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_weights(random_denoiser, dtype):
    y = tensor(4, 2, 1, 8, 8, dtype=torch.float32)
    want = random_denoiser(y, 0.2)
    got = random_denoiser.to(dtype)(y, 0.2)
    assert got.dtype == torch.float32
    assert not torch.equal(got, want)
    torch.testing.assert_close(got, want, rtol=0, atol=16 * torch.finfo(dtype).eps)


def test_half_precision_leaves_the_times_alone():
    denoiser = gaussian_edm()
    denoiser.network.weight = nn.Parameter(torch.zeros(1, dtype=torch.float16))
    denoiser(Y, 0.123456)
    (times,) = denoiser.network.times
    assert times.dtype == torch.float32
    assert times.tolist() == pytest.approx([2 * 0.123456] * len(Y), rel=1e-7)


def test_half_precision_images(random_denoiser):
    y = tensor(4, 2, 1, 8, 8, dtype=torch.float16)
    want = random_denoiser(y.float(), 0.2)
    assert torch.equal(random_denoiser(y, 0.2), want.half())


@pytest.mark.parametrize("build", [random_edm, random_guided])
def test_copies_are_whole(build):
    denoiser, y = build(), tensor(4, 2, 1, 8, 8, dtype=torch.float32)
    copied = copy.deepcopy(denoiser)
    want = denoiser(y, 0.2)
    with torch.no_grad():
        for parameter in denoiser.parameters():
            parameter.zero_()
    assert torch.equal(copied(y, 0.2), want)
    assert torch.equal(pickle.loads(pickle.dumps(copied))(y, 0.2), want)
    assert "sigma_range=(" in repr(copied)


# What is refused.


def test_paths_are_refused():
    for path in ("edm.pkl", Path("edm.pkl"), b"edm.pkl"):
        for build in (
            lambda path: from_edm(path),
            lambda path: from_diffusers(path, scheduler_of()),
            lambda path: from_diffusers(Recorder(None, config=SimpleNamespace()), path),
            lambda path: from_guided_diffusion(path, families.guided_diffusion()),
            lambda path: from_guided_diffusion(GuidedNetwork(), path),
            lambda path: from_score_sde(path, VP, centered=True),
            lambda path: from_score_sde(TinyUNet(1, 1), path, centered=True),
            lambda path: from_score_sde(lambda x, t: x, VP, centered=True, network=path),
        ):
            with pytest.raises(TypeError, match=r"must be the loaded object, got the path .*edm.pkl.*can execute code"):
                build(path)


def test_wrong_types():
    unet = Recorder(None, config=SimpleNamespace())
    for build, message in (
        (lambda: from_edm({"ema": EDMNetwork()}), "network must be a torch.nn.Module, got dict"),
        (lambda: from_diffusers(3, scheduler_of()), "unet must be a torch.nn.Module, got int"),
        (lambda: from_diffusers(nn.Identity(), scheduler_of()), "unet must have the attribute config, got Identity"),
        (lambda: from_diffusers(unet, 3), "scheduler must have the attribute config, got int"),
        (
            lambda: from_diffusers(unet, SimpleNamespace(config=None)),
            "scheduler must have the attribute alphas_cumprod, got SimpleNamespace",
        ),
        (lambda: from_guided_diffusion(3, families.guided_diffusion()), "network must be a torch.nn.Module, got int"),
        (
            lambda: from_guided_diffusion(GuidedNetwork(), 3),
            "diffusion must have the attribute alphas_cumprod, got int",
        ),
        (lambda: from_score_sde(3, VP, centered=True), r"score_fn must be callable as score_fn\(x, t\), got int"),
        (
            lambda: from_score_sde(TinyUNet(1, 1), 3, centered=True),
            "sde must have the attribute marginal_prob, got int",
        ),
        (lambda: from_score_sde(TinyUNet(1, 1), VP, centered=1), "centered must be a bool, got int"),
        (lambda: from_score_sde(len, VP, centered=True, network=3), "network must be a torch.nn.Module, got int"),
    ):
        with pytest.raises(TypeError, match=message):
            build()


def test_unsupported_conventions():
    def edm(low, high):
        network = EDMNetwork()
        network.sigma_min, network.sigma_max = low, high
        return network

    def diffusers(scheduler, **config):
        return from_diffusers(Recorder(None, config=SimpleNamespace(**config)), scheduler)

    def with_signal(values):
        scheduler = scheduler_of()
        scheduler.alphas_cumprod = torch.tensor(values)
        return scheduler

    decrease = r"scheduler.alphas_cumprod must decrease within \(0, 1\), with at least two values"
    backwards = SimpleNamespace(T=1, marginal_prob=lambda x, t: (x, 1 - t))
    previous = families.guided_diffusion(10, MeanType.PREVIOUS_X)
    unequal = families.guided_diffusion(10)
    unequal.timestep_map = range(9)
    for build, message in (
        (
            lambda: from_edm(edm(2.0, 1.0)),
            r"network must have nonnegative, increasing noise levels, got a range of \[2, 1\]",
        ),
        (
            lambda: from_edm(edm(-1.0, 1.0)),
            r"network must have nonnegative, increasing noise levels, got a range of \[-1, 1\]",
        ),
        (lambda: diffusers(scheduler_of("flow_prediction")), "prediction_type must be one of .*got 'flow_prediction'"),
        (lambda: diffusers(scheduler_of(None)), "scheduler.config.prediction_type must be one of .*got None"),
        (
            lambda: diffusers(scheduler_of(), time_embedding_type="fourier"),
            "unet.config.time_embedding_type must be 'positional', got 'fourier'",
        ),
        (
            lambda: diffusers(scheduler_of(), class_embed_type="timestep"),
            "unet.config.class_embed_type must be None, got 'timestep'",
        ),
        (
            lambda: diffusers(scheduler_of(), center_input_sample=True),
            "unet.config.center_input_sample must be False, got True",
        ),
        (lambda: diffusers(with_signal([0.5, 0.9])), decrease),
        (lambda: diffusers(with_signal([1.0, 0.9])), decrease),
        (lambda: diffusers(with_signal([0.9, math.nan])), decrease),
        (lambda: diffusers(with_signal([0.9, -0.1])), decrease),
        (lambda: diffusers(with_signal([0.9, 0.0])), decrease),
        (lambda: diffusers(with_signal([])), decrease),
        (lambda: diffusers(with_signal([[0.9, 0.5]])), r"must have 1 dimension, got shape \(1, 2\)"),
        (lambda: from_guided_diffusion(GuidedNetwork(), previous), "model_mean_type must be one of .*got 'PREVIOUS_X'"),
        (
            lambda: from_guided_diffusion(GuidedNetwork(), unequal),
            r"diffusion must have one time per timestep, 10, got shape \(9,\)",
        ),
        (
            lambda: from_score_sde(TinyUNet(1, 1), backwards, centered=True),
            r"sde must have nonnegative, increasing noise levels, got a range of \[1, 0\]",
        ),
        (
            lambda: from_score_sde(TinyUNet(1, 1), SimpleNamespace(T=-1, marginal_prob=None), centered=True),
            "sde.T must be positive and finite, got -1",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            build()


def test_labels_that_are_refused():
    def edm(classes, label):
        return from_edm(EDMNetwork(label_dim=classes), label=label)

    def guided(classes, label):
        return from_guided_diffusion(
            GuidedNetwork(num_classes=classes or None), families.guided_diffusion(), label=label
        )

    def diffusers(classes, label):
        unet = Recorder(None, config=SimpleNamespace(num_class_embeds=classes or None))
        return from_diffusers(unet, scheduler_of(), label=label)

    for build in (edm, guided, diffusers):
        with pytest.raises(ValueError, match="label must be None for an unconditional network, got 1"):
            build(0, 1)
        for label in (-1, 3):
            with pytest.raises(ValueError, match=rf"label must be in \[0, 2\], got {label}"):
                build(3, label)
        for label in (1.0, True, torch.tensor([0, 1])):
            with pytest.raises(TypeError, match=f"label must be an int, got {type(label).__name__}"):
                build(3, label)
    for build in (guided, diffusers):
        with pytest.raises(
            ValueError, match="label must be a class index, since the network is conditional on 3 classes"
        ):
            build(3, None)


RANGES = {
    "edm": (0.001, 40.0),
    "guided": (0.5 * math.sqrt(1e-4 / (1 - 1e-4)), 78.7),
    "score_sde vp": (0.5 * math.sqrt(math.expm1(1e-6 + 0.5 * 19.9e-10)), 0.5 * math.sqrt(math.expm1(10.05))),
    "score_sde ve": (0.01 * 5000**1e-5, 50.0),
}


@pytest.mark.parametrize("name", RANGES)
def test_noise_outside_the_range(name):
    denoiser, y = RANDOM[name](), tensor(4, 2, 1, 8, 8)
    low, high = denoiser.sigma_range
    assert denoiser.sigma_range == pytest.approx(RANGES[name], rel=1e-3)
    for sigma in (low, high):
        assert bool(torch.isfinite(denoiser(y, sigma)).all())
    for sigma in (low * (1 - 1e-6), high * (1 + 1e-6)):
        message = rf"sigma must be in the range of the network, \[{low:.6g}, {high:.6g}\] in pixel units"
        with pytest.raises(ValueError, match=message.replace("+", r"\+")):
            denoiser(y, sigma)
    for sigma in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match=f"sigma must be positive and finite, got {sigma}"):
            denoiser(y, sigma)


def test_wrong_images_and_outputs():
    denoiser = random_edm()
    with pytest.raises(TypeError, match=r"y must be a torch\.Tensor, got float"):
        denoiser(0.5, 0.2)
    with pytest.raises(ValueError, match=r"y must have 4 dimensions, got shape \(2, 4, 5\)"):
        denoiser(Y[0], 0.2)
    with pytest.raises(TypeError, match="sigma must be a real number, got str"):
        denoiser(Y, "0.2")
    for answer, error, message in (
        (lambda x, t: x.long(), TypeError, "the network's output must have a floating dtype"),
        (lambda x, t: None, TypeError, "the network's output must be a torch.Tensor, got NoneType"),
        (
            lambda x, t: x[:, :1],
            ValueError,
            r"the network's output must have the shape of y, \(3, 2, 4, 5\), got \(3, 1, 4, 5\)",
        ),
    ):
        with pytest.raises(error, match=message):
            from_score_sde(answer, VP, centered=True)(Y, 0.2)
