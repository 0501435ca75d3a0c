"""Samples have the same bits in any batch, on architectures whose libraries choose algorithms by shape."""

import pytest
import torch
from cases import tensor
from nets import AttentionDenoiser, conv_classifier, conv_denoiser, fixed_weights
from torch import nn

import pursamere as ps
from pursamere._threads import cpu_threads
from pursamere.determinism import candidate_sizes, map_micro_batches
from pursamere.determinism.vector_tails import elements_fill_vectors


class Linear(nn.Module):
    """Matrix products over all pixels, whose bits go by the number of rows."""

    def __init__(self, shape):
        super().__init__()
        self.pixels = nn.Sequential(nn.Linear(shape.numel(), 24), nn.SiLU(), nn.Linear(24, shape.numel()))

    def forward(self, y, sigma):
        return y + 0.3 * self.pixels(y.flatten(1)).view_as(y)


def unet(shape):
    return ps.models.EDMUNet(shape, channels=(8, 16), groups=4, attention=True)


ARCHITECTURES = {
    "unet with attention": (unet, (3, 13, 11)),
    "unet with attention, even": (unet, (1, 16, 16)),
    "convolutions": (lambda shape: conv_denoiser(shape[0]), (3, 13, 11)),
    "attention": (lambda shape: AttentionDenoiser(), (1, 9, 7)),
    "linear": (lambda shape: Linear(torch.Size(shape)), (1, 13, 11)),
}


@pytest.mark.slow
@pytest.mark.parametrize("draws", [2, 8])
@pytest.mark.parametrize("direction", ["ere", "score"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_values_and_exact_gradients_have_the_same_bits_in_any_batch(name, direction, draws):
    make, shape = ARCHITECTURES[name]
    denoiser = fixed_weights(make(shape))
    purifier = ps.Purifier(
        denoiser, sigma=0.3, radius=0.2, steps=2, direction=direction, noise=ps.GaussianNoise(draws=draws)
    )
    x = tensor(0, 11, *shape, dtype=torch.float32)
    weight = tensor(1, 11, *shape, dtype=torch.float32, low=-1)

    def results(rows):
        leaf = x[rows].clone().requires_grad_()
        result = purifier(leaf)
        return result.detach(), torch.autograd.grad((weight[rows] * result).sum(), leaf)[0]

    whole = results(slice(None))
    order = torch.tensor([7, 3, 3, 0, 10, 5])
    for got, want in zip(results(order), whole, strict=True):
        assert torch.equal(got, want[order])
    for i in (0, 4, 10):
        for got, want in zip(results(slice(i, i + 1)), whole, strict=True):
            assert torch.equal(got, want[i : i + 1])


class NormalizedSiLU(nn.Module):
    """Its elementwise function rounds differently where vectors are not filled, in few elements."""

    def __init__(self, channels):
        super().__init__()
        self.first, self.last = nn.Conv2d(channels, 6, 5, padding=2), nn.Conv2d(6, channels, 5, padding=2)
        self.norm = nn.GroupNorm(2, 6)

    def forward(self, y, sigma):
        return y + 0.3 * self.last(nn.functional.silu(self.norm(self.first(y))))


@pytest.mark.parametrize(
    ("shape", "sizes"),
    [((3, 9, 13), (1,)), ((3, 7, 9), (1,)), ((3, 15, 10), (8, 4, 2, 1)), ((3, 32, 32), (8, 4, 2, 1))],
)
@pytest.mark.parametrize("direction", ["ere", "score"])
def test_draws_that_do_not_fill_vectors_run_image_by_image(direction, shape, sizes):
    """Comparing the bits of sample images may not show it: few elements differ, and rarely.

    Of 15 by 10 pixels, those of one draw do not fill vectors, but those of all 8 draws do.
    """
    denoiser = fixed_weights(NormalizedSiLU(shape[0]), 1)
    purifier = ps.Purifier(denoiser, sigma=0.3, radius=0.2, steps=1, direction=direction)
    x = tensor(0, 4, *shape, dtype=torch.float32)
    assert purifier.micro_batch_sizes(x) == sizes
    assert purifier.micro_batch_sizes(x, differentiated=True) == sizes


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("shape", [(3, 9, 13), (3, 15, 10)])
def test_many_images_have_the_same_bits_alone(shape, seed):
    denoiser = fixed_weights(NormalizedSiLU(shape[0]), seed)
    purifier = ps.Purifier(denoiser, sigma=0.3, radius=0.2, steps=1, direction="score")
    x = tensor(seed, 64, *shape, dtype=torch.float32)
    whole = purifier(x)
    assert torch.equal(torch.cat([purifier(image[None]) for image in x]), whole)


class Gated(NormalizedSiLU):
    """Its elementwise function reads half of the channels, so not in one run of memory."""

    def forward(self, y, sigma):
        values, gates = self.norm(self.first(y)).chunk(2, dim=1)
        return y + 0.3 * self.last(torch.cat([values, nn.functional.silu(gates)], dim=1))


@pytest.mark.parametrize(("network", "sizes"), [(NormalizedSiLU, (8, 4, 2, 1)), (Gated, (1,))])
def test_rows_must_fill_vectors_where_one_is_not_next_to_the_other(network, sizes):
    purifier = ps.Purifier(fixed_weights(network(3), 1), sigma=0.3, radius=0.2, steps=1, direction="score")
    assert purifier.micro_batch_sizes(tensor(0, 4, 3, 14, 10, dtype=torch.float32)) == sizes


def gate(x):
    return nn.functional.silu(x.chunk(2, dim=-1)[1])


def sequence_first(x):
    return x.transpose(0, 1).contiguous().pow(torch.linspace(0.5, 2, 48)[:, None, None])


def foreach(x):
    return torch._foreach_sigmoid([x, x])


def foreach_in_place(x):
    torch._foreach_sigmoid_([x])


@pytest.mark.parametrize(
    ("function", "shape", "threads", "fills"),
    [
        (nn.functional.silu, (4, 104, 7, 7), 2, True),
        (nn.functional.silu, (4, 103, 7, 7), 2, False),
        (nn.functional.gelu, (4, 104, 7, 7), 1, True),
        (nn.functional.gelu, (4, 104, 7, 7), 2, False),  # which is divided among threads earlier
        (gate, (64, 64, 48), 1, True),
        (gate, (64, 64, 48), 2, True),
        (gate, (64, 64, 48), 3, False),  # a thread's share ends within a row
        (nn.functional.glu, (64, 64, 48), 1, True),
        (nn.functional.glu, (64, 64, 48), 3, False),
        (sequence_first, (4, 48, 8), 1, False),
        (foreach, (4, 3, 7, 7), 1, False),
        (foreach, (4, 3, 8, 8), 1, True),
        (foreach_in_place, (4, 3, 7, 7), 1, False),
        (torch.relu, (4, 3, 7, 7), 1, True),  # rounds nothing
    ],
)
def test_elements_fill_vectors(function, shape, threads, fills):
    functions = [lambda seed=seed: function(tensor(seed, *shape, dtype=torch.float32)) for seed in (0, 1)]
    with cpu_threads(threads):
        assert elements_fill_vectors(functions, shape[0], constants=True) == fills


def test_what_a_compiler_made_runs_image_by_image():
    """Its code for elements that fill no vector is not known."""
    network = conv_denoiser()
    torch._dynamo.reset()
    compiled = ps.Purifier(torch.compile(network, backend="eager"), sigma=0.3, radius=0.2, steps=1, direction="score")
    eager = ps.Purifier(network, sigma=0.3, radius=0.2, steps=1, direction="score")
    x = tensor(0, 2, 1, 16, 16, dtype=torch.float32)
    assert (compiled.micro_batch_sizes(x), eager.micro_batch_sizes(x)) == ((1,), (8, 4, 2, 1))


def test_large_images_have_the_same_exact_gradient_in_any_batch():
    """Sums over more than 32,768 values are shared among threads, if there are few of them."""
    purifier = ps.Purifier(
        lambda y, sigma: y * 0.9 + 0.1 * y.square(), sigma=0.3, radius=0.2, steps=1, noise=ps.GaussianNoise(draws=2)
    )
    x = tensor(0, 3, 1, 200, 200, dtype=torch.float32)

    def gradient(images):
        leaf = images.clone().requires_grad_()
        return torch.autograd.grad((purifier(leaf) * images).sum(), leaf)[0]

    assert torch.equal(torch.cat([gradient(image[None]) for image in x]), gradient(x))


@pytest.mark.parametrize("size", [7, 64, 130])
def test_logits_and_their_gradients_have_the_same_bits_in_any_batch(size):
    x = tensor(0, size, 1, 13, 11, dtype=torch.float32)
    linear = fixed_weights(nn.Sequential(nn.Flatten(), nn.Linear(143, 10)))
    for classifier in (conv_classifier(), linear):
        model = ps.PurifiedClassifier(ps.Purifier(conv_denoiser(), sigma=0.3, radius=0.2, steps=1), classifier)
        results = []
        for parts in (x.split(size), x.split(1)[:5]):
            leaves = [part.clone().requires_grad_() for part in parts]
            logits = [model(leaf) for leaf in leaves]
            gradients = [
                torch.autograd.grad(value[:, 3].sum(), leaf)[0] for value, leaf in zip(logits, leaves, strict=True)
            ]
            results.append((torch.cat(logits).detach(), torch.cat(gradients)))
        (whole, gradient), (alone, of_alone) = results
        assert torch.equal(whole[:5], alone)
        assert torch.equal(gradient[:5], of_alone)


@pytest.mark.parametrize(
    ("draws", "shape", "sizes"),
    [
        (8, (1, 28, 28), (8, 4, 2, 1)),
        (8, (3, 32, 32), (8, 4, 2, 1)),
        (2, (3, 32, 32), (32, 16, 8, 4, 2, 1)),
        (8, (3, 224, 224), (1,)),
        (1000, (1, 8, 8), (1,)),
        (1, (3, 0, 8), (64, 32, 16, 8, 4, 2, 1)),
    ],
)
def test_the_largest_size_fills_a_cpu(draws, shape, sizes):
    assert candidate_sizes(draws, shape, torch.device("cpu")) == sizes


@pytest.mark.parametrize(
    ("threads", "sizes"), [(1, (16, 8, 4, 2, 1)), (6, (16, 12, 8, 6, 4, 3, 2, 1)), (5, (16, 10, 8, 5, 4, 2, 1))]
)
def test_sizes_are_powers_of_two_and_what_an_odd_number_of_threads_divides(threads, sizes):
    with cpu_threads(threads):
        assert candidate_sizes(4, (1, 8, 8), torch.device("cpu")) == sizes


@pytest.mark.parametrize(("rows", "sizes"), [(0, (8, 2)), (1, (4,)), (3, (8, 4)), (11, (8, 2, 1)), (29, (8, 4, 2, 1))])
def test_batches_are_divided_into_the_sizes_and_padded_to_the_smallest(rows, sizes):
    seen = []

    def function(x):
        seen.append(len(x))
        return (x * 2,)

    x = tensor(0, rows, 3)
    (result,) = map_micro_batches(function, sizes, x)
    assert torch.equal(result, 2 * x)
    assert set(seen) <= set(sizes)
    assert seen == sorted(seen, reverse=True)
    assert 0 <= sum(seen) - rows < sizes[-1] or rows == 0


def test_results_do_not_keep_the_memory_of_padding():
    (result,) = map_micro_batches(lambda x: (x * 2,), (64,), tensor(0, 1, 3))
    assert result.untyped_storage().nbytes() == result.numel() * result.element_size()
