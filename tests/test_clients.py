"""Attack and attribution libraries on a purified classifier of the digits, with three lines of glue at most."""

import warnings

import numpy as np
import pytest
import torch
from torch.nn import functional

import pursamere as ps
from pursamere.pretrained.digits import train_classifier

EPS = 0.1
MISSING = "is in the extra 'clients' (torchattacks: pip install --no-deps torchattacks)"


@pytest.fixture(scope="module", autouse=True)
def quiet():
    """They warn of deprecated parts of PyTorch, and of one another."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@pytest.fixture(scope="module")
def digits():
    test = ps.datasets.load("digits", "test")
    return test.images[:8], test.labels[:8]


@pytest.fixture(scope="module")
def model():
    train = ps.datasets.load("digits", "train")
    purifier = ps.Purifier(
        ps.denoisers.KernelDensity(train.images, 0.2),
        sigma=0.2,
        steps=2,
        radius=0.2,
        direction="score",
        noise=ps.GaussianNoise(draws=2),
    )
    return ps.PurifiedClassifier(purifier, train_classifier(train, seed=0, epochs=3))


def clipping(model):
    return ps.PurifiedClassifier(model.purifier, model.classifier, clip=True)


def torchattacks(name, **options):
    def attack(model, x, y):
        library = pytest.importorskip("torchattacks", reason=MISSING)
        return getattr(library, name)(model, **options)(x, y)

    return attack


def foolbox(name, **options):
    def attack(model, x, y):
        library = pytest.importorskip("foolbox", reason=MISSING)
        wrapped = library.PyTorchModel(model, bounds=(0, 1), device="cpu")
        return getattr(library.attacks, name)(**options)(wrapped, x, y, epsilons=EPS)[1]

    return attack


def toolbox(name, dtype=np.float32, **options):
    def attack(model, x, y):
        classification = pytest.importorskip("art.estimators.classification", reason=MISSING)
        evasion = pytest.importorskip("art.attacks.evasion")
        loss = torch.nn.CrossEntropyLoss()
        wrapped = classification.PyTorchClassifier(model, loss, x.shape[1:], nb_classes=10, clip_values=(0, 1))
        found = getattr(evasion, name)(wrapped, **options).generate(x.numpy().astype(dtype), y.numpy())
        return torch.from_numpy(found).to(x.dtype)

    return attack


def captum(name, *arguments):
    def attack(model, x, y):
        robust = pytest.importorskip("captum.robust", reason=MISSING)
        attack = getattr(robust, name)(model, torch.nn.CrossEntropyLoss(reduction="none"), 0, 1)
        return attack.perturb(x, *arguments, y)

    return attack


def pyautoattack(name):
    def attack(model, x, y):
        library = pytest.importorskip("pyautoattack")
        attack = library.AutoAttack(model, eps=EPS, device="cpu", version="custom", attacks=[name])
        attack.apgd.n_restarts, attack.apgd.n_iter, attack.square.n_queries = 1, 5, 10
        return attack.run_standard_evaluation(x.clone(), y)[0]

    return attack


ONE_STEP = {
    "torchattacks": torchattacks("FGSM", eps=EPS),
    "foolbox": foolbox("LinfFastGradientAttack", random_start=False),
    "toolbox": toolbox("FastGradientMethod", eps=EPS),
    "toolbox, float64": toolbox("FastGradientMethod", np.float64, eps=EPS),
    "captum": captum("FGSM", EPS),
}
BOUNDED = {
    "torchattacks PGD": torchattacks("PGD", eps=EPS, steps=3),
    "torchattacks APGD": torchattacks("APGD", eps=EPS, steps=3),
    "foolbox PGD": foolbox("LinfPGD", steps=3),
    "foolbox DeepFool": foolbox("LinfDeepFoolAttack", steps=2),
    "toolbox PGD": toolbox("ProjectedGradientDescent", np.float64, eps=EPS, eps_step=0.05, max_iter=3, verbose=False),
    "toolbox AutoPGD": toolbox("AutoProjectedGradientDescent", eps=EPS, max_iter=3, verbose=False),
    "captum PGD": captum("PGD", EPS, 0.05, 3),
}
# Those without gradients, and AutoAttack, which returns the image itself where it finds no misclassified one.
MAY_FIND_NONE = {
    "pyautoattack APGD": pyautoattack("apgd-ce"),
    "torchattacks Square": torchattacks("Square", eps=EPS, n_queries=5),
    "toolbox Square": toolbox("SquareAttack", eps=EPS, max_iter=5, verbose=False),
    "pyautoattack Square": pyautoattack("square"),
}
UNBOUNDED = {
    "torchattacks CW": torchattacks("CW", steps=3),
    "torchattacks DeepFool": torchattacks("DeepFool", steps=2),
    "foolbox CW": foolbox("L2CarliniWagnerAttack", steps=3, binary_search_steps=1),
    "foolbox DDN": foolbox("DDNAttack", steps=3),
    "foolbox boundary": foolbox("BoundaryAttack", steps=2),
    "toolbox boundary": toolbox("BoundaryAttack", targeted=False, max_iter=2, verbose=False),
}
LEAVE_THE_RANGE = {
    "torchattacks NIFGSM": torchattacks("NIFGSM", eps=EPS, steps=3),
    "torchattacks SINIFGSM": torchattacks("SINIFGSM", eps=EPS, steps=2),
    "torchattacks VMIFGSM": torchattacks("VMIFGSM", eps=EPS, steps=2),
    "foolbox EAD": foolbox("EADAttack", steps=3),
}


def run(attack, model, digits):
    """What the attack finds; it leaves the model as it was."""
    x, y = digits
    before, frozen = model(x), [p.requires_grad for p in model.parameters()]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        np.random.seed(0)  # noqa: NPY002 (the toolbox draws from the global generator)
        found = attack(model, x.clone(), y)
    assert torch.equal(model(x), before)
    assert not any(module.training for module in model.modules())
    assert [p.requires_grad for p in model.parameters()] == frozen
    assert found.shape == x.shape
    assert found.min() >= -1e-6
    assert found.max() <= 1 + 1e-6
    return found.detach()


@pytest.mark.parametrize("name", ONE_STEP)
def test_the_fast_gradient_step_is_that_of_autograd(model, digits, name):
    x, y = digits
    leaf = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(functional.cross_entropy(model(leaf), y), leaf)
    want = (x + EPS * gradient.sign()).clamp(0, 1)
    found = run(ONE_STEP[name], model, digits)
    clear = gradient.abs() > 1e-6  # captum takes the others for zero
    assert clear.float().mean() > 0.8
    torch.testing.assert_close(found[clear], want[clear], rtol=0, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", BOUNDED | MAY_FIND_NONE)
def test_bounded_attacks(model, digits, name):
    found = run((BOUNDED | MAY_FIND_NONE)[name], model, digits)
    assert (found - digits[0]).abs().max() <= EPS + 1e-6
    after = ps.attacks.margin(model(found.clamp(0, 1)), digits[1]).mean()
    assert after < margin(model, digits) if name in BOUNDED else after <= margin(model, digits)


@pytest.mark.slow
@pytest.mark.parametrize("name", UNBOUNDED)
def test_attacks_that_minimize_the_distance(model, digits, name):
    run(UNBOUNDED[name], model, digits)


@pytest.mark.slow
@pytest.mark.parametrize("name", LEAVE_THE_RANGE)
def test_attacks_that_leave_the_range_need_clip(model, digits, name):
    with pytest.raises(ValueError, match=r"x must have values in \[0, 1\].*clip=True"):
        LEAVE_THE_RANGE[name](model, digits[0].clone(), digits[1])
    found = run(LEAVE_THE_RANGE[name], clipping(model), digits)
    assert ps.attacks.margin(model(found.clamp(0, 1)), digits[1]).mean() < margin(model, digits)


def margin(model, digits):
    return ps.attacks.margin(model(digits[0]), digits[1]).mean()


@pytest.mark.slow
def test_attributions_are_autograds(model, digits):
    """Captum's, of the exact gradient."""
    attr = pytest.importorskip("captum.attr", reason=MISSING)
    x, y = digits
    leaf = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(model(leaf)[torch.arange(len(y)), y].sum(), leaf)
    saliency = attr.Saliency(model).attribute(x, target=y, abs=False)
    torch.testing.assert_close(saliency, gradient, rtol=0, atol=1e-5)
    few, targets = x[:2], y[:2]
    options = {"n_steps": 200, "method": "gausslegendre"}
    total = attr.IntegratedGradients(model).attribute(few, 0.5 * few, target=targets, **options)
    change = (model(few) - model(0.5 * few))[torch.arange(2), targets]
    torch.testing.assert_close(total.sum((1, 2, 3)), change, rtol=0, atol=0.15)
    noisy = attr.NoiseTunnel(attr.Saliency(clipping(model)))
    assert noisy.attribute(x, target=y, nt_samples=2, stdevs=0.1).isfinite().all()


def test_the_users_gradients_stay_away_from_parameters(model, digits):
    """foolbox and others call ``backward()``."""
    x = digits[0].clone().requires_grad_()
    functional.cross_entropy(model(x), digits[1]).backward()
    assert all(p.grad is None for p in model.parameters())
