"""Training on adversarial images and through a purifier."""

import dataclasses

import pytest
import torch
from torch.nn import functional
from training_case import settings_of, tiny_denoiser, write_data

import pursamere as ps
from pursamere.models import EDMUNet
from pursamere.pretrained import folder
from pursamere.training import ClassifierConfiguration, Watcher, train
from pursamere.training.adversarial import adversarial_images
from pursamere.training.augmentation import augment
from pursamere.training.classifier import ClassifierTask, build_classifier, build_purifier
from pursamere.training.data import describe_checkpoints
from pursamere.training.data_parallel import Processes
from pursamere.training.initial import seeded
from pursamere.training.order import noise_generator

CLASSES = ("0", "1")
CPU = torch.device("cpu")
PURIFIER = {"purifier_steps": 2, "purifier_step_size": 0.2, "purifier_radius": 0.1}


@pytest.fixture
def data(tmp_path):
    return write_data(tmp_path)


@pytest.fixture
def denoiser(tmp_path):
    return str(ps.save_checkpoint(tmp_path / "denoiser", tiny_denoiser()))


def sets(data):
    return [ps.datasets.load(data, split) for split in ("train", "validation")]


def uniform(*shape, low=0.0, seed=0):
    return low + (1 - low) * torch.rand(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_a_linear_loss_is_maximized_in_the_ball_and_the_box(steps):
    """The maximum of <w, x> is the corner given by the signs of w; steps of 2 eps in all reach it from any start."""
    x, weight = uniform(4, 1, 3, 3), uniform(4, 1, 3, 3, low=-1, seed=1)
    start = uniform(*x.shape, low=-1, seed=2)
    found = adversarial_images(lambda images: (weight * images).flatten(1).sum(1), x, start, 0.1, steps)
    if steps == 1:  # 1.25 eps from the start, but not beyond the ball
        want = torch.clamp((x + 0.1 * start).clamp(0, 1) + 0.125 * weight.sign(), x - 0.1, x + 0.1).clamp(0, 1)
    else:
        want = (x + 0.1 * weight.sign()).clamp(0, 1)
    torch.testing.assert_close(found, want)


def test_only_the_chosen_share_of_a_batch_is_attacked(data):
    """Cross-entropy by hand on the images that the task was given, clean but for every fourth."""
    settings = settings_of(
        "classifier", data, adversarial_eps=0.2, adversarial_steps=9, adversarial_fraction=0.25, shift=0
    )
    network, rows = build_classifier(settings, (1, 8, 8), CLASSES), torch.arange(8)
    task = ClassifierTask(settings, *sets(data), CPU)
    losses = task.losses(network, rows, slice(0, 8), torch.Generator().manual_seed(4))
    clean = functional.cross_entropy(network(task.images[:8]), task.labels[:8], reduction="none")
    attacked = torch.arange(8) % 4 == 3
    torch.testing.assert_close(losses[~attacked], clean[~attacked])
    assert bool((losses[attacked] > clean[attacked]).all())


def test_adversarial_images_leave_running_statistics_alone(data):
    """A step updates them once, by the images of the loss, whatever the number of attack steps."""
    settings = settings_of("classifier", data, adversarial_eps=0.2, adversarial_steps=5, normalization="batch")
    network, task = build_classifier(settings, (1, 8, 8), CLASSES).train(), ClassifierTask(settings, *sets(data), CPU)
    seen = []
    network.register_forward_pre_hook(lambda module, inputs: seen.append(module.training))
    task.losses(network, torch.arange(8), slice(0, 8), torch.Generator().manual_seed(4))
    assert seen == [False] * 5 + [True]


@pytest.mark.parametrize("with_purifier", [False, True])
def test_parts_of_a_batch_have_the_losses_of_the_whole(data, denoiser, with_purifier):
    purifier = {"purifier": denoiser, **PURIFIER} if with_purifier else {}
    settings = settings_of("classifier", data, adversarial_eps=0.2, adversarial_fraction=0.5, **purifier)
    network, task = build_classifier(settings, (1, 8, 8), CLASSES), ClassifierTask(settings, *sets(data), CPU)

    def losses(mine):
        return task.losses(network, torch.arange(7), mine, torch.Generator().manual_seed(4))

    parts = [losses(Processes(rank, 3).rows(7)) for rank in range(3)]
    torch.testing.assert_close(torch.cat(parts), losses(slice(0, 7)), rtol=1e-4, atol=1e-5)


def test_the_network_sees_what_the_purifier_makes_of_the_images(data, denoiser):
    settings = settings_of("classifier", data, purifier=denoiser, shift=0, **PURIFIER)
    network, task = build_classifier(settings, (1, 8, 8), CLASSES), ClassifierTask(settings, *sets(data), CPU)
    losses = task.losses(network, torch.arange(8), slice(0, 8), torch.Generator())
    purifier = ps.Purifier(
        tiny_denoiser(),
        sigma=0.2,
        steps=2,
        step_size=0.2,
        radius=0.1,
        direction="score",
        noise=ps.GaussianNoise(draws=2),
    )
    images = task.images[:8]
    logits = network(purifier(images))
    torch.testing.assert_close(losses, functional.cross_entropy(logits, task.labels[:8], reduction="none"))
    assert float((purifier(images) - images).abs().max()) > 0.01


def test_a_step_with_exact_adversaries_follows_the_gradient_through_the_purifier(data, denoiser):
    """Against autograd through the unrolled steps, and against BPDA's, which is another one."""
    changes = {"purifier": denoiser, "shift": 0, "adversarial_eps": 0.1, **PURIFIER}
    task = ClassifierTask(settings_of("classifier", data, adversarial_exact_fraction=1.0, **changes), *sets(data), CPU)
    network = build_classifier(task.settings, (1, 8, 8), CLASSES)
    rows, images, labels = torch.arange(8), task.images[:8], task.labels[:8]
    losses = task.losses(network, rows, slice(0, 8), torch.Generator().manual_seed(4))

    generator = torch.Generator().manual_seed(4)
    augment(images, 0, False, 0, generator)
    start = 2 * torch.rand(images.shape, generator=generator) - 1
    expected = {}
    for gradient in ("unrolled", "identity"):
        x = (images + 0.1 * start).clamp(0, 1).requires_grad_()
        loss = functional.cross_entropy(network(task.purifier(x, gradient=gradient)), labels, reduction="none").sum()
        (slope,) = torch.autograd.grad(loss, x)
        found = torch.clamp(x + 0.125 * slope.sign(), images - 0.1, images + 0.1).clamp(0, 1).detach()
        logits = network(task.purifier(found))
        expected[gradient] = functional.cross_entropy(logits, labels, reduction="none")
    torch.testing.assert_close(losses, expected["unrolled"], rtol=1e-4, atol=1e-4)
    assert not torch.allclose(losses, expected["identity"], rtol=1e-3, atol=1e-3)


def test_processes_agree_on_the_steps_with_exact_adversaries(data, denoiser):
    settings = settings_of(
        "classifier", data, purifier=denoiser, adversarial_eps=0.1, adversarial_exact_fraction=0.5, **PURIFIER
    )
    task, gradients = ClassifierTask(settings, *sets(data), CPU), []
    network, purify = build_classifier(settings, (1, 8, 8), CLASSES), task.purifier
    task.purifier = lambda x, gradient: gradients.append(gradient) or purify(x, gradient=gradient)
    for step in range(20):
        for part in (slice(0, 2), slice(2, 4)):
            task.losses(network, torch.arange(4), part, noise_generator(0, step, CPU))
    first, second = gradients[::4], gradients[2::4]  # the loss itself purifies, too
    assert first == second
    assert set(first) == {"exact", "identity"}
    assert set(gradients[1::2]) == {"identity"}


@pytest.mark.slow
def test_adversarial_training_resists_what_plain_training_does_not(data, tmp_path):
    """Two classes that a bright half tells apart by 0.6 a pixel: attacked with 0.25, plain training has no reason
    to use all pixels alike."""
    settings = settings_of("classifier", data, steps=60, adversarial_eps=0.25, adversarial_steps=2)
    history = train(settings, tmp_path / "robust").history
    assert set(history[-1]) == {"step", "loss", "cross-entropy", "accuracy", "accuracy under attack"}
    assert history[-1]["accuracy under attack"] >= 0.9 > history[0]["accuracy under attack"]


@pytest.mark.slow
def test_a_training_goes_on_with_the_same_bits(data, denoiser, tmp_path):
    class Interrupted(Exception):  # noqa: N818
        pass

    def stop_after(count):
        left = [count]

        def advance(n):
            left[0] -= n
            if left[0] == 0:
                raise Interrupted

        return advance

    changes = {"adversarial_eps": 0.1, "adversarial_fraction": 0.5, "purifier": denoiser, **PURIFIER}
    settings = settings_of("classifier", data, **changes)
    whole = train(settings, tmp_path / "whole").network.state_dict()
    with pytest.raises(Interrupted):
        train(settings, tmp_path / "parts", watcher=Watcher(stop_after(5)))
    parts = train(settings, tmp_path / "parts").network.state_dict()
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_training_starts_from_given_weights(data, tmp_path):
    first = train(settings_of("classifier", data), tmp_path / "first").network
    settings = settings_of("classifier", data, initial=str(tmp_path / "first"), seed=1)
    network = build_classifier(settings, (1, 8, 8), CLASSES)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), network.parameters(), strict=True))
    with pytest.raises(ValueError, match="initial must hold a ConvClassifier with the arguments"):
        build_classifier(dataclasses.replace(settings, widths=(8, 16)), (1, 8, 8), CLASSES)


@pytest.mark.slow
def test_another_purifier_than_before_is_refused_and_the_same_one_may_move(data, denoiser, tmp_path):
    settings = settings_of("classifier", data, purifier=denoiser, **PURIFIER)
    train(settings, tmp_path / "run")
    moved = (tmp_path / "denoiser").rename(tmp_path / "moved")
    train(dataclasses.replace(settings, purifier=str(moved)), tmp_path / "run")
    with seeded(1):
        ps.save_checkpoint(tmp_path / "denoiser", EDMUNet((1, 8, 8), (8,), groups=4))
    with pytest.raises(ValueError, match="holds a training with another checkpoint for purifier"):
        train(settings, tmp_path / "run")


def test_a_purifier_for_other_images_is_refused(data, tmp_path):
    other = ps.save_checkpoint(tmp_path / "denoiser", tiny_denoiser((1, 6, 6)))
    with pytest.raises(ValueError, match=r"purifier must denoise images \[1, 8, 8\], got one for \[1, 6, 6\]"):
        ClassifierTask(settings_of("classifier", data, purifier=str(other)), *sets(data), CPU)


def test_the_denoiser_of_a_known_data_set_purifies_by_its_name():
    settings = ClassifierConfiguration(purifier="digits", purifier_draws=4, purifier_radius=0.2)
    assert describe_checkpoints(settings) == {}
    purifier = build_purifier(settings, (1, 8, 8), CPU)
    expected = ps.Purifier(
        ps.load_pretrained("digits").denoiser,
        sigma=0.2,
        radius=0.2,
        steps=4,
        step_size=0.6,
        ascent_radius=0.05,
        direction="score",
        noise=ps.GaussianNoise(draws=4),
    )
    x = uniform(2, 1, 8, 8)
    torch.testing.assert_close(purifier(x), expected(x))
    with pytest.raises(ValueError, match=r"purifier must denoise images \[1, 28, 28\], got one for \[1, 8, 8\]"):
        build_purifier(settings, (1, 28, 28), CPU)
    jpeg, cifar10 = (ClassifierConfiguration(purifier=name) for name in ("cifar10_jpeg", "cifar10"))
    assert describe_checkpoints(jpeg) == describe_checkpoints(cifar10)
    shipped = describe_checkpoints(ClassifierConfiguration(purifier="mnist"))
    assert shipped == describe_checkpoints(ClassifierConfiguration(purifier=str(folder("mnist") / "denoiser")))
    assert len(shipped["purifier"]) == 64


def test_a_classifier_is_no_purifier(data, tmp_path):
    train(settings_of("classifier", data), tmp_path / "first")
    with pytest.raises(ValueError, match="purifier must hold a denoiser"):
        ClassifierTask(settings_of("classifier", data, purifier=str(tmp_path / "first")), *sets(data), CPU)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"adversarial_eps": -0.1}, "adversarial_eps must be"),
        ({"adversarial_eps": 8.0}, r"adversarial_eps must be in \[0, 1\], got 8.0"),
        (
            {"adversarial_eps": 0.1, "adversarial_fraction": 0.0},
            "adversarial_fraction must be above 0 for adversarial_eps=0.1, got 0",
        ),
        ({"adversarial_fraction": 1.5}, r"adversarial_fraction must be in \[0, 1\], got 1.5"),
        ({"adversarial_exact_fraction": 1.5}, r"adversarial_exact_fraction must be in \[0, 1\], got 1.5"),
        (
            {"adversarial_exact_fraction": 0.5, "adversarial_eps": 0.1},
            "adversarial_exact_fraction must be 0 without a purifier and adversarial_eps, got 0.5",
        ),
        ({"adversarial_steps": 0}, "adversarial_steps must be"),
        ({"purifier_direction": "up"}, "purifier_direction must be one of 'ere', 'score', got 'up'"),
        ({"purifier_sigma": 0.0}, "purifier_sigma must be"),
    ],
)
def test_settings_are_checked(changes, message):
    with pytest.raises(ValueError, match=message):
        ClassifierConfiguration(**changes)
