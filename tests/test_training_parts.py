"""What a training is made of: batches, noise levels, learning rates, averages, and the split of the data."""

import math

import pytest
import torch
from torch.optim.swa_utils import AveragedModel
from training_case import settings_of, write_data

import pursamere as ps
from pursamere.models.checkpoints import read_configuration
from pursamere.models.conv_classifier import _BatchNorm
from pursamere.pretrained import folder, make_purifier
from pursamere.training import ClassifierConfiguration, DenoiserConfiguration, Watcher
from pursamere.training.augmentation import augment
from pursamere.training.classifier import ClassifierTask, build_classifier, build_purifier
from pursamere.training.configuration import configuration, with_precision
from pursamere.training.data import load_data
from pursamere.training.data_parallel import Processes
from pursamere.training.denoiser import DenoiserTask, build_denoiser, noise_levels
from pursamere.training.loop import _check_same_settings, _moving_average, fit, learning_rate
from pursamere.training.order import DataOrder


@pytest.fixture
def data(tmp_path):
    return write_data(tmp_path)


@pytest.mark.parametrize("kind", ["denoiser", "classifier"])
def test_parts_of_a_batch_have_the_losses_of_the_whole(data, kind):
    """With what all-reduce adds up, processes of unequal parts have the gradient of one."""
    settings = settings_of(kind, data, flip=True)
    sets = [ps.datasets.load(data, split) for split in ("train", "validation")]
    build, task = (build_denoiser, DenoiserTask) if kind == "denoiser" else (build_classifier, ClassifierTask)
    network = build(settings, (1, 8, 8), *([] if kind == "denoiser" else [("0", "1")]))
    task = task(settings, *sets, torch.device("cpu"))

    def losses(mine):
        return task.losses(network, torch.arange(7), mine, torch.Generator().manual_seed(4))

    parts = [Processes(rank, 3).rows(7) for rank in range(3)]
    assert [row for part in parts for row in range(7)[part]] == list(range(7))
    torch.testing.assert_close(torch.cat([losses(part) for part in parts]), losses(slice(0, 7)), rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="batch_size must be at least the number of processes, 3, got 2"):
        Processes(0, 3).rows(2)


def test_learning_rate_rises_linearly_and_falls_along_a_cosine():
    settings = ClassifierConfiguration(steps=110, warmup_steps=10, learning_rate=0.4)
    rates = [learning_rate(step, settings) for step in range(110)]
    assert rates[:11] == pytest.approx([0.4 * (step + 1) / 11 for step in range(11)])
    assert rates[10:] == pytest.approx([0.2 * (1 + math.cos(math.pi * k / 100)) for k in range(100)])
    assert rates[60] == pytest.approx(0.2)  # half way
    assert min(rates) > 0
    assert learning_rate(0, ClassifierConfiguration(steps=1, warmup_steps=0)) == 1e-3


def test_moving_average_of_the_weights():
    """Against the recursion in plain numbers: the decay is (1 + n) / (10 + n) until it has reached its setting."""
    network = torch.nn.Linear(1, 1, bias=False).double()
    average = AveragedModel(network, multi_avg_fn=_moving_average(0.4))
    expected = None
    for n, value in enumerate([1.0, 5.0, -2.0, 3.0, 8.0, 0.5, 7.0, -4.0]):
        network.weight.data.fill_(value)
        average.update_parameters(network)
        decay = min(0.4, (1 + n) / (10 + n))
        expected = value if expected is None else decay * expected + (1 - decay) * value
        assert average.module.weight.item() == pytest.approx(expected, rel=1e-12)
    assert (1 + 7) / (10 + 7) > 0.4  # both parts of the rule were used


def test_running_statistics_are_averaged_like_weights(tmp_path):
    """By the loop itself: the step's batch is its number, so that the running mean is known at every step."""

    class Task:
        size = 4
        number = 0

        def losses(self, network, rows, mine, generator):
            self.number += 1
            return network(torch.full((4, 1, 1, 1), float(self.number))).flatten()

        def validate(self, network):
            return {}

    settings = ClassifierConfiguration(steps=6, batch_size=4, ema_decay=0.4)
    network, _ = fit(_BatchNorm(1), Task(), settings, tmp_path, torch.device("cpu"), Processes(), Watcher(), {})
    running, average = 0.0, None
    for n in range(6):
        running += 0.1 * (n + 1 - running)
        decay = min(0.4, (1 + n) / (10 + n))
        average = running if average is None else decay * average + (1 - decay) * running
    assert network.running_mean.item() == pytest.approx(average, rel=1e-6)
    assert not network.training


@pytest.mark.parametrize("distribution", ["log-uniform", "log-normal"])
def test_noise_levels_cover_their_range_in_every_batch(distribution):
    settings = DenoiserConfiguration(
        sigma_distribution=distribution, sigma_min=0.05, sigma_max=0.8, sigma_median=0.2, sigma_spread=0.9
    )
    ends = noise_levels(torch.tensor([0.0, 1.0], dtype=torch.float64), settings)
    assert ends.tolist() == pytest.approx([0.05, 0.8])
    uniform = (torch.arange(4096) + 0.5) / 4096
    sigma = noise_levels(uniform, settings).double()
    assert bool((sigma[1:] >= sigma[:-1]).all())
    assert 0.05 <= float(sigma.min()) < 0.0501
    assert 0.799 < float(sigma.max()) <= 0.8

    def cdf(value):  # of the logarithm, before it is cut
        return value if distribution == "log-uniform" else 0.5 * (1 + math.erf((value - math.log(0.2)) / 0.9 / 2**0.5))

    low, high = cdf(math.log(0.05)), cdf(math.log(0.8))
    for quantile in (0.1, 0.5, 0.9):
        found = (cdf(math.log(float(sigma[int(quantile * 4096)]))) - low) / (high - low)
        assert found == pytest.approx(quantile, abs=1e-3)


def test_every_part_of_the_distribution_has_one_noise_level(data):
    """Stratified: the k-th of n images has a level from the k-th n-th of the distribution."""
    settings = settings_of("denoiser", data, sigma_min=0.1, sigma_max=1.0)
    sets = [ps.datasets.load(data, split) for split in ("train", "validation")]
    seen = []

    class Spy:
        def loss_weight(self, sigma):
            return torch.ones_like(sigma)

        def __call__(self, y, sigma):
            seen.append(sigma)
            return y

    task = DenoiserTask(settings, *sets, torch.device("cpu"))
    losses = task.losses(Spy(), torch.arange(16), slice(None), torch.Generator().manual_seed(0))
    strata = 1 + torch.log10(seen[0])  # uniform in [0, 1]
    assert (strata * 16).floor().tolist() == list(range(16))
    assert bool((losses.sqrt() / seen[0] - 1).abs().lt(0.4).all())  # doing nothing leaves the noise: sigma^2 per pixel


def test_every_epoch_visits_every_image_once():
    order = DataOrder(10, 4, seed=3)
    rows = torch.cat([order.batch(step) for step in range(5)])
    assert sorted(rows[:10].tolist()) == sorted(rows[10:].tolist()) == list(range(10))
    assert rows[:10].tolist() != rows[10:].tolist()
    assert torch.equal(DataOrder(10, 4, seed=3).batch(2), rows[8:12])  # without what came before
    assert not torch.equal(DataOrder(10, 4, seed=4).batch(0), rows[:4])
    assert len(DataOrder(3, 8, seed=0).batch(1)) == 8  # a batch may be longer than an epoch


def test_augmented_images_are_shifted_and_mirrored_originals():
    x = torch.rand(40, 2, 5, 4, generator=torch.Generator().manual_seed(0))
    found = set()
    for image, original in zip(augment(x, 1, True, 0, torch.Generator().manual_seed(1)), x, strict=True):
        padded = torch.nn.functional.pad(original, (1, 1, 1, 1))
        crops = {
            (row, column): padded[:, row : row + 5, column : column + 4] for row in range(3) for column in range(3)
        }
        matches = [(where, "as it was") for where, crop in crops.items() if torch.equal(image, crop)]
        matches += [(where, "mirrored") for where, crop in crops.items() if torch.equal(image, crop.flip(-1))]
        assert len(matches) == 1
        found.add(matches[0])
    assert len(found) > 12  # of 18
    assert torch.equal(augment(x, 0, False, 0, torch.Generator()), x)


def test_a_square_is_cut_out_of_augmented_images():
    x = torch.rand(400, 2, 7, 5, generator=torch.Generator().manual_seed(0))
    cut = augment(x, 0, False, 3, torch.Generator().manual_seed(1)) != x
    assert torch.equal(cut[:, 0], cut[:, 1])
    squares = set()
    for mask in cut[:, 0]:
        rows, columns = mask.any(dim=1).nonzero().flatten().tolist(), mask.any(dim=0).nonzero().flatten().tolist()
        assert mask.sum() == len(rows) * len(columns)  # a rectangle: without gaps, as rows and columns are
        assert rows == list(range(rows[0], rows[-1] + 1))
        assert columns == list(range(columns[0], columns[-1] + 1))
        squares.add((rows[0], rows[-1], columns[0], columns[-1]))
    # Around every pixel, and smaller at the border alone.
    rows = [(max(row - 1, 0), min(row + 1, 6)) for row in range(7)]
    columns = [(max(column - 1, 0), min(column + 1, 4)) for column in range(5)]
    assert squares == {(*row, *column) for row in rows for column in columns}
    assert bool((augment(x, 0, False, 3, torch.Generator().manual_seed(1))[cut] == 0.5).all())


def test_a_training_on_a_built_in_set_goes_on_by_its_name_only():
    """By a path its validation images would be others."""
    settings = ClassifierConfiguration(dataset="digits")
    _check_same_settings(settings.to_json(), settings, "folder")
    _check_same_settings({**settings.to_json(), "dataset": "a"}, ClassifierConfiguration(dataset="b"), "folder")
    with pytest.raises(ValueError, match=r"holds a training with dataset='digits', not 'copy.npz'"):
        _check_same_settings(settings.to_json(), ClassifierConfiguration(dataset="copy.npz"), "folder")


def test_a_validation_split_is_held_out_where_there_is_none(tmp_path):
    path, told = write_data(tmp_path, validation=False), []
    train_set, validation = load_data(str(path), told.append)
    assert told == ["sides has no validation split: 3 of its 24 training images are held out"]
    assert (len(train_set), len(validation)) == (21, 3)
    whole = ps.datasets.load(path, "train").images
    both = torch.cat([train_set.images, validation.images])
    assert sorted(both.flatten(1).tolist()) == sorted(whole.flatten(1).tolist())
    again = load_data(str(path), told.append)
    assert torch.equal(again[1].images, validation.images)
    assert ps.datasets.splits(path) == ("train", "test")


def test_denoisers_are_validated_on_images_of_all_classes(tmp_path):
    """Also of a folder, whose images are sorted by class: 10 classes of 40, each of a gray of its own."""
    labels = torch.arange(10).repeat_interleave(40)
    images = (labels / 10).view(-1, 1, 1, 1).expand(-1, 1, 8, 8).contiguous()
    data = ps.datasets.Dataset("sorted", images, labels, tuple("abcdefghij"))
    shown = DenoiserTask(settings_of("denoiser", tmp_path), data, data, torch.device("cpu")).validation
    found = (shown[:, 0, 0, 0] * 10).round().long().bincount()
    assert len(shown) == 256
    assert sorted(set(found.tolist())) == [25, 26]
    digits = ps.datasets.load("digits", "test")
    built_in = DenoiserTask(DenoiserConfiguration(dataset="digits"), digits, digits, torch.device("cpu")).validation
    assert torch.equal(built_in, digits.images[:256])


def test_data_that_is_not_split_at_all(tmp_path):
    import numpy

    images, labels = numpy.zeros((5, 1, 4, 4), numpy.float32), numpy.arange(5)
    numpy.savez(tmp_path / "five.npz", images=images, labels=labels)
    assert [len(part) for part in load_data(str(tmp_path / "five.npz"), lambda _: None)] == [4, 1]
    numpy.savez(tmp_path / "one.npz", images=images[:1], labels=labels[:1])
    with pytest.raises(ValueError, match="dataset must have at least two images"):
        load_data(str(tmp_path / "one.npz"), lambda _: None)
    numpy.savez(tmp_path / "test.npz", test_images=images, test_labels=labels)
    with pytest.raises(ValueError, match="split must be one of 'test', got 'train'"):
        load_data(str(tmp_path / "test.npz"), lambda _: None)


@pytest.mark.parametrize("dataset", ["cifar10", "cifar10_jpeg"])
def test_the_settings_for_cifar10_are_those_of_networks_that_ship(dataset):
    for kind, name in ((DenoiserConfiguration, "denoiser"), (ClassifierConfiguration, "adversarial")):
        recorded = read_configuration(folder("cifar10") / name)["training"]["settings"]
        chosen = configuration(kind, {"dataset": dataset}).to_json()
        # The first are given with the command, the others don't matter or depend on the machine.
        others = {"adversarial_eps", "adversarial_steps", "dataset", "channels_last", "precision"}
        others |= {"validate_every", "save_every"}
        for key in recorded.keys() - others:
            assert chosen[key] == recorded[key], key


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"purifier": "cifar10_jpeg", "purifier_radius": 0.1}, {"radius": 0.1, "ascent_radius": 0.0}),
        ({"purifier": "a/checkpoint", "dataset": "mnist"}, {"sigma": 0.5, "step_size": 3.0}),
        ({"purifier": "a/checkpoint", "dataset": "a/folder"}, {"sigma": 0.2, "step_size": 0.6}),
        ({"dataset": "mnist"}, {"sigma": 0.2, "step_size": 0.6}),
    ],
)
def test_the_settings_of_the_purifier_follow_from_its_denoiser_or_the_data(given, expected):
    settings = configuration(ClassifierConfiguration, given)
    assert {name: getattr(settings, f"purifier_{name}") for name in expected} == expected


@pytest.mark.parametrize(("name", "shape"), [("digits", (1, 8, 8)), ("mnist", (1, 28, 28)), ("cifar10", (3, 32, 32))])
def test_the_purifier_of_a_training_is_the_tuned_one(name, shape):
    purifier = build_purifier(configuration(ClassifierConfiguration, {"purifier": name}), shape, torch.device("cpu"))
    tuned = make_purifier(name, purifier.denoiser)
    for each in ("sigma", "radius", "norm", "steps", "step_rule", "step_size", "ascent_radius", "direction", "noise"):
        assert getattr(purifier, each) == getattr(tuned, each), each


def test_the_precision_of_a_training_is_that_of_its_device():
    settings = ClassifierConfiguration()
    assert with_precision(settings, torch.device("cuda")).precision == "bfloat16"
    assert with_precision(settings, torch.device("cpu")).precision == "float32"
    assert with_precision(settings, torch.device("cpu"), "bfloat16").precision == "bfloat16"
    chosen = ClassifierConfiguration(precision="bfloat16")
    assert with_precision(chosen, torch.device("cpu"), "float32") is chosen
