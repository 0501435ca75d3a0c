"""APGD, AutoAttack, Square and transfer, against models whose answer is known."""

import sys
import threading
import warnings

import pytest
import torch
from torch import Tensor, nn

import pursamere as ps
from pursamere.attacks import apgd, autoattack, margin, pgd, square, transfer
from pursamere.attacks._pyautoattack import package
from pursamere.attacks.losses import likeliest_wrong_class, targeted_difference_of_logits_ratio

EPS = 0.1
LOSSES = ["cross_entropy", "margin", "dlr", "targeted_dlr"]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Linear(nn.Module):
    """Several classes with linear logits; counts the images that it sees."""

    def __init__(self, classes: int = 5):
        super().__init__()
        weight = torch.randn(classes, 16, generator=generator(1))
        self.weight = nn.Parameter(weight - weight.mean(1, keepdim=True))
        self.seen = 0

    def forward(self, x: Tensor) -> Tensor:
        self.seen += len(x)
        return (x.flatten(1) - 0.5) @ self.weight.to(x.dtype).T

    def is_robust(self, images: Tensor, labels: Tensor, eps: float, norm: str) -> Tensor:
        """Exactly, for images away from 0 and 1: no other class can be brought level within the ball."""
        gap = self.weight[labels][:, None] - self.weight[None]  # [B, classes, d]
        score = ((images.flatten(1) - 0.5)[:, None] * gap).sum(-1)
        reach = gap.abs().sum(-1) if norm == "linf" else gap.norm(dim=-1)
        robust = score > eps * reach
        robust[torch.arange(len(labels)), labels] = True
        return robust.all(1)


class TwoOfThree(Linear):
    """Two classes, and a third that never wins: here no loss can prefer a class that is not the nearest."""

    def __init__(self):
        super().__init__(3)
        self.weight.data[2] = 0

    def forward(self, x):
        return super().forward(x) - 100 * torch.tensor([0, 0, 1], dtype=x.dtype)

    def is_robust(self, images, labels, eps, norm):
        gap = self.weight[labels] - self.weight[1 - labels]
        reach = gap.abs().sum(-1) if norm == "linf" else gap.norm(dim=-1)
        return ((images.flatten(1) - 0.5) * gap).sum(-1) > eps * reach


@pytest.fixture
def problem():
    model = Linear()
    images = 0.5 + 0.3 * (torch.rand(120, 1, 4, 4, generator=generator(2)) - 0.5)
    return model, images, model(images).argmax(1).detach()


def length(offset: Tensor, norm: str) -> Tensor:
    flat = offset.flatten(1)
    return flat.abs().amax(1) if norm == "linf" else flat.norm(dim=1)


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("loss", LOSSES)
def test_apgd_reaches_the_exact_robust_accuracy(problem, loss, norm):
    _, images, labels = problem
    model = Linear() if loss == "targeted_dlr" else TwoOfThree()
    labels = model(images).argmax(1)
    eps = 0.02 if norm == "linf" else 0.06
    expected = model.is_robust(images, labels, eps, norm)
    assert 0.2 < expected.float().mean() < 0.8, "the problem is trivial"
    restarts = 4 if loss == "targeted_dlr" else 2
    found = apgd(model, images, labels, eps=eps, steps=40, norm=norm, loss=loss, restarts=restarts)
    assert float(length(found - images, norm).max()) <= eps * (1 + 1e-5)
    robust = model(found).argmax(1) == labels
    assert bool((robust >= expected).all()), "an attack cannot do better than the optimum"
    assert torch.equal(robust, expected)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_targeted_pgd_reaches_the_exact_robust_accuracy(problem, norm):
    model, images, labels = problem
    eps = 0.02 if norm == "linf" else 0.06
    found = pgd(model, images, labels, eps=eps, steps=40, norm=norm, loss="targeted_dlr", restarts=4)
    assert torch.equal(model(found).argmax(1) == labels, model.is_robust(images, labels, eps, norm))


@pytest.mark.slow
def test_square_and_autoattack_reach_the_exact_robust_accuracy(problem):
    model, images, labels = problem
    images, labels = images[:40], labels[:40]
    two = TwoOfThree()
    for edge in (two.weight.data.view(3, 4, 4)[:, -1], two.weight.data.view(3, 4, 4)[:, :, -1]):
        edge.zero_()  # the package never places its smallest squares there
    answers = two(images).argmax(1)
    expected = two.is_robust(images, answers, 0.02, "linf")
    assert 0.2 < expected.float().mean() < 0.8, "the problem is trivial"
    found = square(two, images, answers, eps=0.02, queries=2000)
    robust = two(found).argmax(1) == answers
    assert torch.equal(robust, expected)
    expected = model.is_robust(images, labels, 0.02, "linf")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = autoattack(model, images, labels, eps=0.02, queries=20)
    assert torch.equal(model(found).argmax(1) == labels, expected)
    assert float((found - images).abs().max()) <= 0.02 + 1e-7


@pytest.mark.parametrize("classes", [2, 3])
def test_few_classes(classes):
    model = Linear(classes)
    images = 0.5 + 0.3 * (torch.rand(30, 1, 4, 4, generator=generator(2)) - 0.5)
    labels = model(images).argmax(1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = autoattack(model, images, labels, eps=0.02, queries=20)
    assert torch.equal(model(found).argmax(1) == labels, model.is_robust(images, labels, 0.02, "linf"))
    for attack in (apgd, pgd):
        with pytest.raises(ValueError, match=rf"at least 4 classes, (got|.*) {classes}"):
            attack(model, images, labels, eps=0.02, loss="targeted_dlr")


def test_apgd_ascends_its_own_loss():
    """One sample whose nearest class is another than the one that the cross-entropy would rise fastest for."""
    logits = torch.tensor([[3.0, 1.0, 0.0, -1.0, 0.5]])
    labels, targets = torch.tensor([0]), torch.tensor([2])
    value = targeted_difference_of_logits_ratio(logits, labels, targets)
    torch.testing.assert_close(value, torch.tensor([(0.0 - 3.0) / (3.0 - 0.5 * (0.5 + 0.0))]))
    assert [int(likeliest_wrong_class(logits, labels, rank)) for rank in range(5)] == [1, 4, 2, 3, 1]


def test_apgd_leaves_fallen_samples_alone_and_restarts_help(problem):
    model, images, labels = problem
    seen, outcomes = [], []
    for stop in (True, False):
        model.seen = 0
        found = apgd(model, images, labels, eps=0.02, steps=20, stop_at_success=stop)
        seen.append(model.seen)
        outcomes.append(model(found).argmax(1) == labels)
    assert torch.equal(*outcomes)
    assert seen[1] == len(images) * 22  # the images as they are, the start, and 20 steps
    assert seen[0] < 0.8 * seen[1]

    def bumpy(x):
        logits = model(x)
        return logits + 2 * (9 * x.flatten(1)).sin()[:, :5]

    labels = bumpy(images).argmax(1)
    margins = [
        margin(bumpy(apgd(bumpy, images, labels, eps=EPS, steps=5, restarts=r, stop_at_success=False)), labels)
        for r in (1, 4)
    ]
    assert bool((margins[1] <= margins[0]).all())
    assert bool((margins[1] < margins[0]).any())


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_apgd_on_float64_images_sees_the_whole_gradient(norm):
    """The package's float32 images may lie outside the ball by a rounding error; that must not hide their gradient."""
    model = Linear().double()
    images = (0.5 + 0.3 * (torch.rand(50, 1, 4, 4, generator=generator(2), dtype=torch.float64) - 0.5)).clamp(0.3, 0.7)
    labels = model(images).argmax(1)
    seen = []

    def observe(best_margin, gradient):
        if gradient is not None:
            seen.append(gradient)

    apgd(model, images, labels, eps=0.03, steps=20, norm=norm, stop_at_success=False, observe=observe)
    gradients = torch.cat(seen)
    assert bool((gradients != 0).all())
    if (
        norm == "l2"
    ):  # of the cross-entropy: a combination of differences of the weights, and nothing projected out of it
        basis, _ = torch.linalg.qr((model.weight[1:] - model.weight[0]).detach().T)
        flat = gradients.double().flatten(1)
        flat = flat / flat.norm(dim=1, keepdim=True)
        torch.testing.assert_close(flat @ basis @ basis.T, flat, rtol=0, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("attack", [apgd, autoattack, square])
def test_inference_mode_does_not_matter(problem, attack):
    model, images, labels = problem
    options = {"queries": 5} if attack in (autoattack, square) else {"steps": 3}
    want = attack(model, images[:6], labels[:6], eps=0.02, **options)
    with torch.inference_mode():
        got = attack(model, images[:6] * 1, labels[:6] * 1, eps=0.02, **options)
    assert torch.equal(got, want)


def test_a_samples_fate_under_apgd_does_not_depend_on_the_others(problem):
    """The package alone would draw the restart's starts for the survivors only."""
    model, images, labels = problem
    together = apgd(model, images, labels, eps=0.02, steps=5, restarts=2)
    fallen = model(together).argmax(1) != labels
    assert 0 < int(fallen.sum()) < len(fallen)
    again = apgd(model, images, labels, eps=0.02, steps=5, restarts=2, stop_at_success=False)
    assert torch.equal(model(again).argmax(1) != labels, fallen)


@pytest.mark.slow
@pytest.mark.parametrize("attack", [apgd, autoattack, square])
@pytest.mark.parametrize("closure", [False, True])
def test_the_caller_is_undisturbed(problem, attack, closure):
    network, images, labels = problem
    model = (lambda x: network(x)) if closure else network
    for parameter in network.parameters():
        parameter.grad = torch.full_like(parameter, 7.0)
    before, traced = torch.get_rng_state(), []
    seeds = list(torch.cuda._lazy_seed_tracker.get_calls())  # what CUDA will be seeded with when it is initialized

    def trace(frame, event, argument):
        traced.append(event)

    previous = sys.gettrace()
    sys.settrace(trace)
    try:
        options = {"queries": 5} if attack in (autoattack, square) else {"steps": 3}
        found = attack(model, images[:6], labels[:6], eps=0.02, **options)
        assert sys.gettrace() is trace
    finally:
        sys.settrace(previous)
    assert not found.requires_grad
    assert torch.equal(torch.get_rng_state(), before)
    assert seeds == list(torch.cuda._lazy_seed_tracker.get_calls())
    assert all(bool((parameter.grad == 7).all()) for parameter in network.parameters())
    assert torch.is_grad_enabled()
    again = attack(model, images[:6], labels[:6], eps=0.02, **options)
    assert torch.equal(found, again)


@pytest.mark.parametrize("attack", [apgd, autoattack, square, transfer])
def test_float64_models_and_wrong_images_and_empty_batches(problem, attack):
    model, images, labels = problem
    model, images = model.double(), images.double()
    options = {"queries": 5} if attack in (autoattack, square) else {"steps": 3}
    if attack is transfer:
        options["sources"] = [model]
    wrong = (labels + 1) % 5
    found = attack(model, images[:5], wrong[:5], eps=0.02, **options)
    assert found.dtype == torch.float64
    assert float((found - images[:5]).abs().max()) <= 0.02 + 1e-15
    if attack is not transfer:
        assert torch.equal(found, images[:5])
    assert attack(model, images[:0], labels[:0], eps=0.02, **options).shape == (0, 1, 4, 4)


@pytest.mark.slow
def test_autoattack_hands_on_warnings_and_explains_a_purifier():
    images = torch.rand(4, 1, 4, 4, generator=generator(3))
    linear = Linear()

    class Loop(nn.Module):
        """A dynamic defense: it differentiates inside, and is no PurifiedClassifier."""

        def forward(self, x):
            with torch.enable_grad():
                y = x.detach().requires_grad_()
                torch.autograd.grad(y.square().sum(), y)
            return linear(x)

    said: list[str] = []
    labels = linear(images).argmax(1)
    autoattack(Loop(), images, labels, eps=0.001, queries=5, on_warning=said.append)
    assert any("dynamic defense" in text for text in said)
    with pytest.warns(RuntimeWarning, match="AutoAttack: it seems to be a dynamic defense"):
        autoattack(Loop(), images, labels, eps=0.001, queries=5)


def dynamic_models():
    """A plain network, and one that differentiates inside, of the same answers."""
    linear = Linear()

    class Loop(nn.Module):
        def forward(self, x):
            with torch.enable_grad():
                y = x.detach().requires_grad_()
                torch.autograd.grad(y.square().sum(), y)
            return linear(x)

    return linear, Loop()


def flags_of(model, images, labels):
    said: list[str] = []
    autoattack(model, images, labels, eps=1e-4, queries=2, on_warning=said.append)
    return ["dynamic" in text for text in said]


@pytest.mark.slow
def test_a_model_is_called_dynamic_by_itself_alone(problem):
    """Whatever was attacked before, failed, or is attacked meanwhile in another thread."""
    plain, loop = dynamic_models()
    images, labels = problem[1][:2], problem[2][:2]
    counted = package("checks").funcs
    counted["grad"] = 3  # by someone else
    try:
        for _ in range(2):
            assert flags_of(plain, images, labels) == []
            assert flags_of(loop, images, labels) == [True]

        def broken(x):
            loop(x)
            if sys.gettrace() is package("checks").tracefunc:
                raise KeyError
            return plain(x)

        previous = sys.gettrace()
        with pytest.raises(KeyError):
            autoattack(broken, images, labels, eps=1e-4, queries=2)
        assert sys.gettrace() is previous
        assert flags_of(plain, images, labels) == []
        assert counted == {"grad": 3, "backward": 0, "_make_grads": 0}
    finally:
        counted["grad"] = 0


@pytest.mark.slow
def test_attacks_in_other_threads_make_no_difference(problem):
    """The package seeds and draws from generators, and counts in a dictionary, of which the process has one each."""
    _, images, labels = problem
    images, labels = images[:6], labels[:6]
    plain, loop = dynamic_models()
    alone = square(plain, images, labels, eps=0.02, queries=20)
    threads: list[threading.Thread] = []

    def disturbed(meanwhile, when):
        """The plain network, beside one call of which another thread attacks."""

        def model(x):
            if not threads and when():
                threads.append(threading.Thread(target=meanwhile))
                threads[0].start()
                threads[0].join(timeout=1)  # it ends if it is let in, and waits for this attack if not
            return plain(x)

        return model

    calls = iter(range(1000))
    other = disturbed(lambda: square(Linear(), images, labels, eps=0.02, seed=1), lambda: next(calls) == 5)
    assert torch.equal(square(other, images, labels, eps=0.02, queries=20), alone)
    threads.pop().join()
    traced = disturbed(lambda: flags_of(loop, images, labels), lambda: sys.gettrace() is tracefunc)
    tracefunc = package("checks").tracefunc
    assert flags_of(traced, images, labels) == []
    threads.pop().join()


@pytest.mark.slow
def test_autoattack_on_a_purified_classifier_of_16_digits():
    """End to end on real images, with the exact gradient of a small purifier."""
    from pursamere.pretrained.digits import train_classifier

    train, test = (ps.datasets.load("digits", split) for split in ("train", "test"))
    classifier = train_classifier(train, seed=0, epochs=4)
    purifier = ps.Purifier(
        ps.denoisers.KernelDensity(train.images[:200], 0.25),
        sigma=0.2,
        steps=1,
        radius=0.1,
        direction="score",
        noise=ps.GaussianNoise(draws=2),
        micro_batch=16,
    )
    model = ps.PurifiedClassifier(purifier, classifier)
    images, labels = test.images[:16], test.labels[:16]
    said: list[str] = []
    found = autoattack(model, images, labels, eps=0.2, queries=50, on_warning=said.append)
    assert not [text for text in said if "dynamic" in text or "randomized" in text]
    clean, robust = (model(x).argmax(1) == labels for x in (images, found))
    assert bool((robust <= clean).all())
    assert float(robust.float().mean()) < 0.5
    assert float((found - images).abs().max()) <= 0.2 + 1e-6
    # What it says fell has fallen, and what it left alone is as it was.
    assert torch.equal((found != images).flatten(1).any(1), clean & ~robust)


def test_transfer_keeps_the_best_of_its_sources(problem):
    _, images, _ = problem
    model, other = TwoOfThree(), TwoOfThree()
    other.weight.data = -model.weight.data
    labels = model(images).argmax(1)
    margins = [
        margin(model(transfer(model, images, labels, sources=sources, eps=0.02, steps=5)), labels)
        for sources in ([other], [model], [other, model])
    ]
    clean = margin(model(images), labels)
    assert torch.equal(margins[0], clean)  # moving against the model helps nobody, so the images stay
    assert torch.equal(margins[2], margins[1])
    assert bool((margins[1] < clean).all())


@pytest.mark.parametrize("attack", [apgd, autoattack, square])
def test_bad_input_is_refused_before_any_work(attack):
    x, labels = torch.rand(3, 1, 2, 2), torch.zeros(3).long()

    def forbidden(images):
        raise AssertionError("the model was run")

    cases = [
        ((x + 1, labels), {"eps": 0.1}, ValueError, r"images must have values in \[0, 1\]"),
        ((x, labels[:2]), {"eps": 0.1}, ValueError, r"labels must have shape \(3,\), got \(2,\)"),
        ((x, labels), {"eps": -1.0}, ValueError, "eps must be positive"),
        ((x, labels), {"eps": 0.1, "norm": "l1"}, ValueError, "norm must be one of 'linf', 'l2', got 'l1'"),
        ((x, labels), {"eps": 0.1, "seed": -1}, ValueError, "seed must be at least 0"),
    ]
    if attack is apgd:
        cases.append(((x, labels), {"eps": 0.1, "loss": "hinge"}, ValueError, "loss must be one of 'margin'"))
        cases.append(((x, labels), {"eps": 0.1, "steps": 0}, ValueError, "steps must be at least 1"))
    else:
        cases.append(((x, labels), {"eps": 0.1, "queries": 0}, ValueError, "queries must be at least 1"))
    for arguments, options, kind, message in cases:
        with pytest.raises(kind, match=message):
            attack(forbidden, *arguments, **options)


@pytest.mark.parametrize("attack", [apgd, autoattack, square])
def test_a_blind_attack_is_an_error(attack, problem):
    _, images, labels = problem
    options = {"queries": 5} if attack in (autoattack, square) else {"steps": 3}

    def with_nan(x):
        return x.flatten(1)[:, :5] * torch.nan

    with pytest.raises(RuntimeError, match="model returned NaN or infinity"):
        attack(with_nan, images, labels, eps=0.1, **options)
    if attack is apgd:

        def with_nan_gradient(x):
            total = x.flatten(1).sum(1, keepdim=True)
            return torch.cat([(total - total.detach()).abs().sqrt(), total * 0, total * 0 - 1], 1)

        with pytest.raises(RuntimeError, match="the gradient of the model is NaN or infinite"):
            attack(with_nan_gradient, images, labels * 0, eps=0.1, **options)


def test_a_missing_package_names_the_extra(monkeypatch, problem):
    monkeypatch.setitem(sys.modules, "pyautoattack.autopgd_base", None)
    model, images, labels = problem
    with pytest.raises(Exception, match=r'pip install "pursamere\[evaluation\]"'):
        apgd(model, images, labels, eps=0.1)
