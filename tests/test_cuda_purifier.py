"""What purifiers do on a GPU alone: CUDA graphs, no waiting within a purification, checks of images at its end."""

import warnings

import pytest
import torch
from cases import tensor
from nets import conv_denoiser

import pursamere as ps

pytestmark = pytest.mark.usefixtures("cuda")
SETTINGS = {"sigma": 0.2, "radius": 0.2, "steps": 3, "noise": ps.GaussianNoise(seed=5, draws=4)}
GRAPHS = ps.Execution(cuda_graphs=True)


@pytest.fixture
def x(cuda):
    return tensor(1, 7, 1, 12, 12, dtype=torch.float32).to(cuda)


@pytest.mark.parametrize("direction", ["ere", "score"])
def test_captured_purifications_have_the_bits_of_others(cuda, x, direction):
    denoiser = conv_denoiser().to(cuda)
    plain = ps.Purifier(denoiser, direction=direction, **SETTINGS)
    captured = ps.Purifier(denoiser, direction=direction, execution=GRAPHS, **SETTINGS)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for images in (x, x.flip(0), x[:2], x):
            first, want = captured(images), plain(images)
            assert torch.equal(first, want)
            assert torch.equal(captured(1 - images), plain(1 - images))
            assert torch.equal(first, want)  # not overwritten by the next replay
        leaf, other = (x.clone().requires_grad_() for _ in range(2))
        (got,) = torch.autograd.grad(captured(leaf).square().sum(), leaf)
        (want,) = torch.autograd.grad(plain(other).square().sum(), other)
        assert torch.equal(got, want)
        stream = torch.cuda.Stream(cuda)
        stream.wait_stream(torch.cuda.current_stream(cuda))
        with torch.cuda.stream(stream):
            aside = captured(x)
        stream.synchronize()
        assert torch.equal(aside, plain(x))
    assert captured._captured._graphs


def test_a_captured_purification_sees_changed_and_replaced_weights(cuda, x):
    denoiser = conv_denoiser().to(cuda)
    captured = ps.Purifier(denoiser, execution=GRAPHS, **SETTINGS)
    captured(x)
    first = next(denoiser.parameters())
    first.mul_(1.5)
    assert torch.equal(captured(x), ps.Purifier(denoiser, **SETTINGS)(x))
    denoiser.net[0].weight = torch.nn.Parameter(first.detach() * 0.5, requires_grad=False)
    del first
    torch.empty(2**20, device=cuda).fill_(torch.nan)  # takes the memory that a stale graph would read
    assert torch.equal(captured(x), ps.Purifier(denoiser, **SETTINGS)(x))


def test_a_denoiser_that_waits_is_not_captured(cuda, x):
    inner = conv_denoiser().to(cuda)

    def waiting(y, sigma):
        return inner(y, sigma) * float(y.new_ones(()).item())

    captured = ps.Purifier(waiting, execution=GRAPHS, **SETTINGS)
    with pytest.warns(RuntimeWarning, match="cuda_graphs=True has no effect, since the capture failed"):
        result = captured(x)
    assert torch.equal(result, ps.Purifier(inner, **SETTINGS)(x))
    assert torch.equal(captured(x), result)


@pytest.mark.parametrize("direction", ["ere", "score"])
def test_a_purification_waits_once(cuda, x, direction):
    purifier = ps.Purifier(conv_denoiser().to(cuda), direction=direction, **SETTINGS)
    purifier(x)
    mode = purifier._mode(purifier._noise_of_call(x))
    torch.cuda.set_sync_debug_mode("error")
    try:
        with purifier._in_network(x.device, grad=False):
            purifier._map(purifier._last, mode, x)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    with warnings.catch_warnings(record=True) as waits:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            purifier(x)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert sum("synchroniz" in str(warning.message) for warning in waits) == 1


@pytest.mark.parametrize(
    ("value", "message"),
    [(1.5, r"x must have values in \[0, 1\], got a range of \[.*, 1.5\]"), (torch.nan, "x must be finite")],
)
def test_images_out_of_range_raise_the_error_of_a_cpu(cuda, x, value, message):
    purifier = ps.Purifier(conv_denoiser().to(cuda), **SETTINGS)
    bad = x.clone()
    bad[3, 0, 2, 2] = value
    for call in (purifier, purifier.trace, lambda images: purifier(images.requires_grad_())):
        with pytest.raises(ValueError, match=message):
            call(bad.clone())
    rounded = x.clone()
    rounded[0, 0, 0, 0] = 1 + 5e-5
    assert torch.equal(purifier(rounded), purifier(rounded.clamp(0, 1)))
    assert purifier(x[:0]).shape == (0, 1, 12, 12)


@pytest.mark.parametrize(
    "execution",
    [ps.Execution(precision="bfloat16"), ps.Execution(channels_last=True)],
    ids=["bfloat16", "channels_last"],
)
def test_a_sample_has_the_same_bits_in_any_batch_in_every_mode(cuda, x, execution):
    purifier = ps.Purifier(conv_denoiser().to(cuda), execution=execution, **SETTINGS)
    whole = purifier(x)
    assert torch.equal(torch.cat([purifier(image[None]) for image in x]), whole)
    torch.testing.assert_close(whole, ps.Purifier(purifier.denoiser, **SETTINGS)(x), rtol=0, atol=0.05)
