"""The attacks of pyautoattack whatever the user's default dtype, memory formats and image sizes are."""

import pytest
import torch
from nets import conv_classifier

import pursamere as ps
from pursamere.attacks import apgd, autoattack, square

X = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
MODEL = conv_classifier(classes=4)  # AutoAttack's time is proportional to their number
LABELS = MODEL(X).argmax(1)
ATTACKS = {
    "apgd": lambda model, x, norm: apgd(model, x, LABELS, eps=0.5, steps=6, norm=norm),
    "square": lambda model, x, norm: square(model, x, LABELS, eps=0.5, queries=12, norm=norm),
    "autoattack": lambda model, x, norm: autoattack(
        model, x, LABELS, eps=0.02, queries=8, norm=norm, on_warning=lambda _: None
    ),
}


CASES = [("apgd", "linf"), ("apgd", "l2"), ("square", "linf"), ("square", "l2"), ("autoattack", "linf")]


@pytest.fixture
def float64_by_default():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.slow
@pytest.mark.parametrize(("attack", "norm"), CASES)
def test_another_default_dtype_changes_no_bit(attack, norm):
    want = ATTACKS[attack](MODEL, X, norm)
    torch.set_default_dtype(torch.float64)
    try:
        got = ATTACKS[attack](MODEL, X, norm)
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(got, want)


class Watched(torch.nn.Module):
    """Notes the default dtype that the model and its backward pass meet, by tensors that they make."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, x):
        self.seen.append(("forward", torch.zeros(1).dtype))
        return Noting.apply(MODEL(x), self.seen)


class Noting(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, seen):
        ctx.seen = seen
        return x.clone()

    @staticmethod
    def backward(ctx, v):
        ctx.seen.append(("backward", torch.zeros(1).dtype))
        return v, None


@pytest.mark.slow
@pytest.mark.usefixtures("float64_by_default")
@pytest.mark.parametrize("attack", ATTACKS)
def test_the_model_meets_the_users_default_dtype(attack):
    model = Watched()
    ATTACKS[attack](model, X, "linf")
    passes = ["forward"] if attack == "square" else ["forward", "backward"]
    assert set(model.seen) == {(each, torch.float64) for each in passes}


@pytest.mark.parametrize(("attack", "norm"), CASES[:-1])
def test_memory_formats_change_no_bit(attack, norm):
    x = X.repeat(1, 3, 1, 1)

    def model(images):
        return MODEL(images.mean(1, keepdim=True))

    want = ATTACKS[attack](model, x, norm)
    permuted = x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
    assert not permuted.is_contiguous()
    assert torch.equal(ATTACKS[attack](model, permuted, norm), want)


def forbidden(images):
    raise AssertionError("the model ran")


@pytest.mark.parametrize("attack", ["square", "autoattack"])
@pytest.mark.parametrize(("height", "width"), [(3, 3), (12, 12), (24, 25)])
def test_sizes_that_square_cannot_take_are_refused_before_any_work(attack, height, width):
    x = torch.rand(4, 1, height, width)
    with pytest.raises(
        ValueError, match=rf"images must have a size that Square .* got {height} x {width} for norm='l2'"
    ):
        ATTACKS[attack](forbidden, x, "l2")


@pytest.mark.parametrize(("height", "width"), [(24, 24), (1, 1)])
def test_other_norms_take_every_size(height, width):
    x = torch.rand(4, 1, height, width)

    def model(images):
        return torch.nn.functional.one_hot(LABELS[: len(images)], 10).float() + 0 * images.sum((1, 2, 3))[:, None]

    assert ATTACKS["square"](model, x, "linf").shape == x.shape


def test_an_evaluation_refuses_such_sizes_before_any_work(tmp_path):
    x = torch.rand(4, 1, 24, 24)
    with pytest.raises(ValueError, match="Square"):
        ps.evaluate(forbidden, x, LABELS, folder=tmp_path / "run", eps=0.1, norm="l2")
    assert not (tmp_path / "run").exists()
