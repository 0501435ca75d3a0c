"""What is evaluated is the model that was given, or it is refused."""

import functools

import evaluation_case
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

import pursamere as ps
from pursamere import _evaluate
from pursamere._evaluate import evaluate
from pursamere.attacks import APGD, PGD, Clean, RandomSearch, Square, Transfer
from pursamere.evaluation import Protocol

# Every form in which attacks see a model.
PROTOCOL = Protocol(
    "p",
    (
        Clean(),
        RandomSearch("random-search", queries=2),
        Transfer("transfer-bare", steps=2, sources=("bare",)),
        PGD("pgd-margin", steps=3),
        PGD("bpda", gradient="identity", steps=3),
        APGD("st", gradient="straight_through", steps=3),
        Square("square", queries=3),
        Transfer("transfer-purifiers", steps=2, sources=("other_noise", "fewer_steps")),
    ),
)
SHORT = Protocol("p", PROTOCOL.attacks[:2])
SAMPLES, EPS = 5, 0.1


@pytest.fixture(autouse=True)
def no_report(monkeypatch):
    """Most tests here don't look at the report, which takes more time than the attacks; ``undo()`` brings it back."""
    monkeypatch.setattr(_evaluate, "write_summary", lambda *_: None)


def run(model, images, labels, folder, protocol=PROTOCOL, **options):
    return evaluate(model, images, labels, folder=folder, eps=EPS, preset=protocol, threads=1, chunk=3, **options)


def parts():
    """A purifier, a classifier, images, and labels of which it gets all but the last."""
    model, images, _ = evaluation_case.model_and_data(SAMPLES)
    labels = model(images).argmax(1).detach()
    labels[-1] = (labels[-1] + 1) % 4
    return model.purifier, model.classifier, images, labels


def outcomes(folder, without=()):
    """The lines of the table, but for those of some attacks."""
    lines = (folder / "outcomes.csv").read_text().splitlines()
    return [line for line in lines if not any(f",{name}," in line for name in without)]


class Rolled(nn.Module):
    """A classifier with its classes moved by one."""

    def __init__(self, classifier):
        super().__init__()
        self.classifier = classifier

    def forward(self, x):
        return self.classifier(x).roll(1, dims=1)


class RolledForward(ps.PurifiedClassifier):
    def forward(self, x):
        return super().forward(x).roll(1, dims=1)


class RolledCall(ps.PurifiedClassifier):
    def __call__(self, x):
        return super().__call__(x).roll(1, dims=1)


class Shift(nn.Module):
    def forward(self, x):
        return x + 1


class RolledByParameter(ps.PurifiedClassifier):
    """Rolls by a parameter of its own, which has a parametrization."""

    def __init__(self, purifier, classifier):
        super().__init__(purifier, classifier)
        self.amount = nn.Parameter(torch.zeros(()))
        parametrize.register_parametrization(self, "amount", Shift())

    def forward(self, x):
        return super().forward(x).roll(int(self.amount), dims=1)


def hooked(purifier, classifier):
    model = ps.PurifiedClassifier(purifier, classifier)
    model.register_forward_hook(lambda module, inputs, logits: logits.roll(1, dims=1))
    return model


def hooked_classifier(purifier, classifier):
    classifier.register_forward_hook(lambda module, inputs, logits: logits.roll(1, dims=1))
    return ps.PurifiedClassifier(purifier, classifier)


@pytest.fixture(scope="module")
def rolled(tmp_path_factory):
    """The folder of a plain PurifiedClassifier whose classifier is rolled."""
    purifier, classifier, images, labels = parts()
    folder = tmp_path_factory.mktemp("rolled") / "run"
    result = run(ps.PurifiedClassifier(purifier, Rolled(classifier)), images, (labels + 1) % 4, folder)
    assert 0 < result.worst_case[EPS].count < result.clean.count < SAMPLES
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("make", [RolledForward, RolledCall, RolledByParameter, hooked, hooked_classifier])
def test_a_subclass_and_hooks_are_in_what_is_judged_and_in_what_is_attacked(rolled, tmp_path, make):
    purifier, classifier, images, labels = parts()
    labels = (labels + 1) % 4
    model = make(purifier, classifier)
    before, state = dict(vars(model)), dict(model._modules)
    result = run(model, images, labels, tmp_path / "run")
    assert result.clean.count == int((model(images).argmax(1) == labels).sum())
    other = () if make is hooked_classifier else ("transfer-bare",)  # of which the classifier alone is the source
    assert outcomes(tmp_path / "run", other) == outcomes(rolled, other)
    assert (model.purifier, model.gradient) == (purifier, "exact")
    assert (vars(model).keys(), model._modules) == (before.keys(), state)
    assert not [name for name in vars(purifier) if name == "forward"]


@pytest.mark.slow
def test_hooks_and_subclasses_of_the_purifier_count_too(tmp_path):
    _, classifier, images, _ = parts()

    class Flipping(ps.Purifier):
        def forward(self, x, gradient="exact"):
            return super().forward(x, gradient).flip(-1)

    purifier = parts()[0]
    flipping = Flipping(
        purifier.denoiser,
        sigma=0.2,
        steps=2,
        radius=0.05,
        direction="score",
        noise=ps.GaussianNoise(draws=2),
        micro_batch=1,
    )
    purifier.register_forward_hook(lambda module, inputs, purified: purified.flip(-1))
    labels = ps.PurifiedClassifier(flipping, classifier)(images).argmax(1)
    for name, each in (("hook", purifier), ("subclass", flipping)):
        result = run(ps.PurifiedClassifier(each, classifier), images, labels, tmp_path / name)
        assert result.clean.count == SAMPLES
    assert outcomes(tmp_path / "hook") == outcomes(tmp_path / "subclass")


@pytest.mark.slow
def test_a_hook_before_the_model_counts_too(tmp_path):
    purifier, classifier, images, _ = parts()
    model = ps.PurifiedClassifier(purifier, classifier)
    model.register_forward_pre_hook(lambda module, inputs: (1 - inputs[0],))
    labels = model(images).argmax(1)
    assert run(model, images, labels, tmp_path / "run").clean.count == SAMPLES


@pytest.mark.slow
def test_a_random_subclass_is_copied_and_left_as_it_was(tmp_path):
    _, classifier, images, labels = parts()
    purifier = ps.baselines.DiffPure(
        ps.denoisers.GaussianMixture(torch.full((1, 1, 3, 3), 0.5), 0.1),
        steps=2,
        fresh_noise=True,
        noise=ps.GaussianNoise(seed=5),
    )
    for name, model in (
        ("subclass", RolledForward(purifier, classifier)),
        ("plain", ps.PurifiedClassifier(purifier, Rolled(classifier))),
    ):
        run(model, images, (labels + 1) % 4, tmp_path / name, PROTOCOL)
        assert (purifier.noise.seed, purifier._calls) == (5, 0)
    assert outcomes(tmp_path / "subclass", ("transfer-bare",)) == outcomes(tmp_path / "plain", ("transfer-bare",))


class OwnGradient(ps.PurifiedClassifier):
    """Forgets to hand on its gradient."""

    def forward(self, x):
        return torch.cat([self.classifier(purified[None]) for purified in self.purifier(x)])


class OtherPurifier(ps.PurifiedClassifier):
    def __init__(self, purifier, classifier):
        super().__init__(purifier, classifier)
        self.used = [purifier]

    def forward(self, x):
        purified = self.used[0](x, gradient=self.gradient)
        return torch.cat([self.classifier(each[None]) for each in purified])


class GradientInValue(ps.PurifiedClassifier):
    def forward(self, x):
        return super().forward(x) + float(self.gradient == "identity")


def patched(purifier, classifier):
    model = ps.PurifiedClassifier(purifier, classifier)
    forward = model.forward
    model.forward = lambda x: forward(x).roll(1, dims=1)
    return model


def patched_purifier(purifier, classifier):
    forward = purifier.forward
    purifier.forward = lambda x, gradient: forward(x, gradient)
    return ps.PurifiedClassifier(purifier, classifier)


def compiled(purifier, classifier):
    model = ps.PurifiedClassifier(purifier, classifier)
    model.compile(backend="eager")
    return model


def inner_identity(purifier, classifier):
    return nn.Sequential(ps.PurifiedClassifier(purifier, classifier, gradient="identity"))


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (OwnGradient, ValueError, r"must call self.purifier\(x, gradient=self.gradient\).*called with 'exact' on the"),
        (OtherPurifier, ValueError, r"a OtherPurifier, must call self.purifier\(.*it was not called on the first 5"),
        (GradientInValue, ValueError, r"same logits whatever its gradient, but a copy with gradient='identity' has"),
        (patched, TypeError, "model has 'forward' assigned to the instance"),
        (patched_purifier, TypeError, "model.purifier has 'forward' assigned to the instance"),
        (compiled, TypeError, "model was compiled"),
        (inner_identity, ValueError, "own gradient, but that of its part '0' is 'identity'"),
    ],
)
def test_what_cannot_be_attacked_is_refused_before_any_attack(tmp_path, make, error, message):
    purifier, classifier, images, labels = parts()
    with pytest.raises(error, match=message):
        run(make(purifier, classifier), images, labels, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_wrapped_model_is_attacked_through_its_own_gradient_and_the_report_says_what_is_not_run(
    tmp_path, monkeypatch
):
    monkeypatch.undo()
    purifier, classifier, images, labels = parts()
    model = ps.PurifiedClassifier(purifier, classifier)
    for number, wrapped in enumerate((nn.Sequential(model), functools.partial(model))):
        folder = tmp_path / str(number)
        result = run(wrapped, images, labels, folder, micro_batch=1)
        assert result.clean.count == int((model(images).argmax(1) == labels).sum())
        assert set(result.skipped) == {"transfer-bare", "transfer-purifiers", "bpda", "st"}
        report = (folder / "report.md").read_text()
        assert "Not run: " in report
        assert "st (the model is not a PurifiedClassifier, so it has only one gradient)" in report


def broken_on_bright(function, like):
    """``function``, which is NaN for bright images."""

    def broken(x, *sigma):
        bright = (x.amax((1, 2, 3)) > 0.99).reshape(-1, *[1] * (like - 1))
        return torch.where(bright, torch.nan, function(x, *sigma))

    return broken


@pytest.mark.slow
@pytest.mark.parametrize("part", ["denoiser", "classifier", "plain"])
@pytest.mark.parametrize("row", [0, 4, 16])
def test_a_sample_on_which_the_model_is_nan_has_fallen_and_is_named(tmp_path, monkeypatch, part, row):
    """Everywhere the model runs: 16 samples are tried before the attacks, 128 are timed, some are drawn."""
    if row == 4:
        monkeypatch.undo()
    _, classifier, _, _ = parts()
    images = 0.3 + 0.3 * torch.rand(18, 1, 3, 3, generator=torch.Generator().manual_seed(0))
    images[row, 0, 0, 0] = 1.0
    labels = classifier(images).argmax(1)

    def denoiser(y, sigma):
        return 0.99 * y

    if part == "denoiser":
        denoiser = broken_on_bright(denoiser, 4)
    else:
        classifier = broken_on_bright(classifier, 2)
    noise = ps.GaussianNoise(draws=2)
    purifier = ps.Purifier(denoiser, sigma=0.001, radius=0.001, steps=1, noise=noise)
    model = classifier if part == "plain" else ps.PurifiedClassifier(purifier, classifier)
    protocol = Protocol("p", (*PROTOCOL.attacks[:2], PGD("pgd-margin", steps=2)))
    options = {"folder": tmp_path / "run", "eps": 0.0005, "preset": protocol, "chunk": 6, "micro_batch": 1}
    for _ in range(2):  # the second call finds the first one's run
        result = evaluate(model, images, labels, **options)
        assert result.withstood[0.0005].tolist() == [sample != row for sample in range(18)]
        assert (result.clean.count, result.clean.samples) == (17, 18)
        (check,) = [check for check in result.checks if check.name == "attacks could see"]
        assert check.detail.startswith(f"clean, eps 0: NaN or infinite logits, which count as wrong, on sample {row}; ")
        assert "pgd-margin, eps 0.0005: " in check.detail
        assert check.detail.count(f"on sample {row}") == 3
        assert check.detail.count("sample") == 3
    assert (tmp_path / "run" / "pictures.png").exists() == (row == 4)
    search = result.lines[1]
    assert search.blind == 1
    assert not search.tried[row]
    assert search.tried.sum() == 17


def test_a_random_defense_that_is_nan_on_one_sample(tmp_path):
    _, classifier, images, _ = parts()
    images = 0.9 * images
    images[3, 0, 0, 0] = 1.0
    labels = classifier(images).argmax(1)

    class Random(ps.Purifier):
        random, _seed, _calls = True, 0, 0

        def reset(self, seed):
            self._seed, self._calls = seed, 0

        def _noise_of_call(self, x):
            self._calls += 1
            return ps.GaussianNoise(seed=self._seed + self._calls, draws=2)

    purifier = Random(
        broken_on_bright(lambda y, sigma: y, 4),
        sigma=1e-6,
        radius=0.01,
        step_size=0.0,
        steps=1,
        noise=ps.GaussianNoise(draws=2),
    )
    result = run(ps.PurifiedClassifier(purifier, classifier), images, labels, tmp_path / "run", SHORT)
    assert result.lines[0].correct.tolist() == [True, True, True, False, True]


def test_a_model_that_is_nan_everywhere_or_only_sometimes_is_refused(tmp_path):
    _, classifier, images, labels = parts()
    always = ps.Purifier(lambda y, sigma: y * torch.nan, sigma=0.2, radius=0.2, noise=ps.GaussianNoise(draws=2))
    with pytest.raises(RuntimeError, match="model has no logits for any of the 5 images: the denoiser returned NaN"):
        run(ps.PurifiedClassifier(always, classifier), images, labels, tmp_path / "run", SHORT)
    calls = []

    def sometimes(x):
        calls.append(len(x))
        return classifier(x) * (torch.nan if len(calls) == 7 else 1.0)

    with pytest.raises(RuntimeError, match=r"be deterministic: logit 0 of sample 0 was .* and nan in a second"):
        run(sometimes, images, labels, tmp_path / "run", SHORT, micro_batch=1)


class Output(dict):
    """What a library returns in place of a tensor."""

    @property
    def logits(self):
        return self["logits"]


NOT_LOGITS = {
    "tuple": (lambda y: (y, None), TypeError, r"got tuple; wrap it, for example as lambda x: model\(x\)\[0\]"),
    "dict": (lambda y: {"loss": 0, "logits": y}, TypeError, r"dict; wrap it, .* lambda x: model\(x\)\['logits'\]"),
    "other dict": (lambda y: {"sample": y}, TypeError, r"dict; wrap it, .* lambda x: model\(x\)\['sample'\]"),
    "output": (
        lambda y: Output(logits=y),
        TypeError,
        r"got Output; wrap it, for example as lambda x: model\(x\).logits",
    ),
    "None": (lambda y: None, TypeError, "model must return the logits as a torch.Tensor, got NoneType$"),
    "numpy": (lambda y: y.detach().numpy(), TypeError, "model must return the logits as a torch.Tensor, got ndarray$"),
    "rows": (lambda y: y.repeat(2, 1), ValueError, r"model must return logits \[\d, classes\], got shape \(\d+, 4\)"),
    "classes only": (lambda y: y[0], ValueError, r"model must return logits \[\d, classes\], got shape \(4,\)"),
    "maps": (lambda y: y[..., None], ValueError, r"model must return logits \[\d, classes\], got shape \(\d, 4, 1\)"),
    "whole": (lambda y: (100 * y).long(), TypeError, "what model returns must have a floating dtype .*got torch.int64"),
    "device": (lambda y: y.to("meta"), ValueError, "what model returns must be on the device of its images, cpu, got"),
    "one class": (lambda y: y[:, :1], ValueError, "model must have at least 2 classes, got 1"),
}


@pytest.mark.parametrize("name", NOT_LOGITS)
def test_results_that_are_no_logits_are_refused_before_they_are_used(tmp_path, name):
    change, error, message = NOT_LOGITS[name]
    purifier, classifier, images, labels = parts()

    def model(x):
        return change(classifier(x))

    with pytest.raises(error, match=message):
        run(model, images, labels, tmp_path / "run", SHORT, micro_batch=2)
    for attack, options in ((ps.attacks.pgd, {"steps": 1}), (ps.attacks.square, {"queries": 1})):
        with pytest.raises(error, match=message):
            attack(model, images, labels, eps=EPS, **options)
    if name != "one class":
        with pytest.raises(error, match=message.replace("model", "classifier")):
            ps.PurifiedClassifier(purifier, model)(images)
    if name not in ("one class", "None"):  # a hook that returns None changes nothing
        hooked = ps.PurifiedClassifier(purifier, classifier)
        hooked.register_forward_hook(lambda module, inputs, logits: change(logits))
        with pytest.raises(error, match=message):
            run(hooked, images, labels, tmp_path / "run", SHORT)
    assert not (tmp_path / "run").exists()
