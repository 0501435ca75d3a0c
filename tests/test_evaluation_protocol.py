"""Protocols and their attacks: what they hold, what they refuse, and what becomes of them in a run."""

import json
import math
from dataclasses import dataclass, replace
from typing import ClassVar

import evaluation_case
import pytest
import torch
from evaluation_case import Smooth, rows_of

import pursamere as ps
from pursamere import _evaluate
from pursamere._evaluate import evaluate
from pursamere._extras import MissingExtraError
from pursamere.attacks import APGD, PGD, Attack, AutoAttack, Clean, RandomSearch, Square, Transfer
from pursamere.attacks._balls import check_radius
from pursamere.evaluation import PRESETS, Protocol
from pursamere.evaluation.protocol import sweep_radii


@pytest.fixture(autouse=True)
def no_report(monkeypatch):
    """Most tests here don't look at the report, which takes more time than the attacks; ``undo()`` brings it back."""
    monkeypatch.setattr(_evaluate, "write_summary", lambda *_: None)


# An attack is a class: nothing else knows it.


@dataclass(frozen=True, kw_only=True)
class Brightness(Attack):
    """Makes images brighter or darker."""

    levels: int = 4
    only: str = "both"

    packages: ClassVar[tuple[str, ...]] = ("json",)

    def run(self, target, images, labels, *, eps, norm, seed, hooks):
        model, best = target.attacked(), images.clone()
        best_margin = ps.attacks.margin(model(images), labels)
        for level in range(-self.levels, self.levels + 1):
            found = (images + eps * level / self.levels).clamp(0, 1)
            reached = ps.attacks.margin(model(found), labels)
            best[reached < best_margin] = found[reached < best_margin]
            best_margin = torch.minimum(best_margin, reached)
            hooks.observe(best_margin, None)
            hooks.progress(1)
        hooks.warn("it only knows brightness")
        return best

    @property
    def work(self):
        return 2 * self.levels + 1

    def check_images(self, images, norm):
        if norm != "linf":
            raise ValueError("norm must be 'linf'")

    def reason_against(self, target):
        return f"{target.classes} classes are too many" if target.classes > 9 else None


NEW = (Clean(), Brightness("brightness"), PGD("pgd", steps=3), Brightness("sweep", levels=2, sweep=True))


@pytest.mark.slow
def test_a_new_attack_is_run_judged_and_reported(tmp_path, monkeypatch):
    monkeypatch.undo()
    model = Smooth()
    images = 0.5 + 0.4 * (torch.rand(20, 1, 4, 4, generator=torch.Generator().manual_seed(2)) - 0.5)
    labels = model(images).argmax(1)
    folder, protocol = tmp_path / "run", Protocol("new", NEW, "the rest")
    options = {"folder": folder, "eps": 0.03, "preset": protocol, "chunk": 8, "bar": evaluation_case.bar}
    result = evaluate(model, images, labels, **options)
    offsets = torch.linspace(-0.03, 0.03, 9)
    expected = torch.stack([model(images + offset).argmax(1) == labels for offset in offsets]).all(0)
    line = result.lines[1]
    assert torch.equal(line.correct, expected)
    assert 0 < int(expected.sum()) < 20
    assert line.flags == ["it only knows brightness"]
    assert len(line.curve) == 9
    config = json.loads((folder / "config.json").read_text())["protocol"]["attacks"]
    assert config[1] == {
        "class": "Brightness", "name": "brightness", "survivors_only": False, "samples": None, "sweep": False,
        "levels": 4, "only": "both",
    }  # fmt: skip
    report = (folder / "report.md").read_text()
    assert f"| brightness | Brightness: levels 4, only both | none | 20 | {line.share} |" in report
    (check,) = [check for check in result.checks if check.name.startswith("black-box")]
    assert "of 20 samples fell to black-box attacks only" in check.detail
    assert len([row for row in rows_of(folder) if row["attack"] == "brightness"]) == 20
    assert list(result.sweeps) == ["sweep"]


def test_a_new_attack_refuses_what_it_cannot_run(tmp_path, monkeypatch):
    model, images = Smooth(), torch.full((4, 1, 4, 4), 0.6)
    options = {"folder": tmp_path / "run", "eps": 0.1, "preset": Protocol("new", NEW[:2])}
    labels = model(images).argmax(1)

    def forbidden(x):
        raise AssertionError("the model was run")

    with pytest.raises(ValueError, match="norm must be 'linf'"):
        evaluate(forbidden, images, labels, norm="l2", **options)
    monkeypatch.setattr(Brightness, "packages", ("no_such_package",))
    with pytest.raises(MissingExtraError):
        evaluate(forbidden, images, labels, **options)
    monkeypatch.undo()
    assert not (tmp_path / "run").exists()
    result = evaluate(lambda x: model(x).repeat(1, 3), images, labels, **options)
    assert result.skipped == {"brightness": "12 classes are too many"}


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda images: images + 0.2, r"returned images outside the ball of radius 0.1 .*, or NaN: in the"),
        (lambda images: images * torch.nan, r"returned images outside the ball of radius 0.1 .*, or NaN: in the"),
        (lambda images: images[:1], r"must return images of shape \(4, 1, 4, 4\), got \(1, 1, 4, 4\)"),
    ],
    ids=["far away", "NaN", "one image"],
)
def test_an_attack_that_returns_anything_but_images_in_the_ball_is_an_error(tmp_path, change, message, norm):
    class Cheating(Brightness):
        def run(self, target, images, labels, **options):
            return change(images)

        def check_images(self, images, norm):
            pass

    model, images = Smooth(), torch.full((4, 1, 4, 4), 0.6)
    protocol = Protocol("p", (Clean(), Cheating("cheat")))
    with pytest.raises(RuntimeError, match=f"attack cheat {message}"):
        evaluate(model, images, model(images).argmax(1), folder=tmp_path / "run", eps=0.1, norm=norm, preset=protocol)


@pytest.mark.parametrize("eps", [(0.1,), (0.3, 0.6), (1.0,)])
def test_every_radius_of_a_sweep_is_legal(eps):
    radii = sweep_radii("linf", eps)
    assert [check_radius("eps", radius, "linf") for radius in radii] == sorted(set(radii))
    assert {*eps} < {*radii}
    assert radii[-1] == max(0.5, min(1.0, 2 * max(eps)))


@pytest.mark.parametrize(
    ("attack", "work", "cost", "gradient", "differentiates"),
    [
        (Clean(), 1, 2, None, False),
        (RandomSearch("a", queries=8), 8, 20, None, False),
        (Square("a", queries=8, survivors_only=True), 8, 12, None, False),
        (Transfer("a", sources=("bare",), steps=8), 8, 80, None, False),
        (Transfer("a", sources=("bare", "other_noise"), steps=8), 16, 160, None, True),
        (PGD("a", steps=8, restarts=2), 16, 160, "exact", True),
        (PGD("a", steps=8, gradient="identity"), 8, 24, "identity", False),
        (APGD("a", steps=8, gradient="straight_through"), 8, 80, "straight_through", True),
        (AutoAttack("a", queries=8), 8, 80, "exact", True),
    ],
)
def test_what_an_attack_needs(attack, work, cost, gradient, differentiates):
    assert (attack.work, attack.cost(10)) == (work, cost)
    assert (attack.gradient, attack.differentiates_purifier) == (gradient, differentiates)
    assert attack.perturbs == (not isinstance(attack, Clean))


def test_attacks_describe_their_settings():
    attack = PGD("a", steps=1000, restarts=2, loss="cross_entropy", ere_weight=0.5, gradient="identity", samples=9)
    assert attack.describe() == "PGD: loss cross entropy, steps 1,000, restarts 2, ere weight 0.5"
    assert attack.describe() == replace(attack, name="b", gradient="exact", samples=None).describe()
    assert attack.settings() == {
        "class": "PGD", "name": "a", "survivors_only": False, "samples": 9, "sweep": False, "gradient": "identity",
        "loss": "cross_entropy", "steps": 1000, "restarts": 2, "ere_weight": 0.5,
    }  # fmt: skip
    transfer = Transfer("a", sources=("other_noise", "fewer_steps"))
    assert transfer.describe() == "Transfer: sources other noise and fewer steps, steps 100"
    assert Clean().describe() == "Clean"


def test_what_cannot_be_run_is_said(tmp_path):
    images = torch.full((4, 1, 4, 4), 0.6)
    model = Smooth()

    def two_classes(x):
        return model.logits(x)[:, :2]

    attacks = (
        Clean(),
        Transfer("transfer-bare", sources=("bare",)),
        RandomSearch("random-search", queries=2),
        PGD("ere-aware", ere_weight=1.0),
        APGD("t", loss="targeted_dlr", steps=2),
        PGD("bpda", gradient="identity"),
        AutoAttack("bpda-too", gradient="identity"),
    )
    protocol = Protocol("p", attacks)
    labels = two_classes(images).argmax(1)
    result = evaluate(two_classes, images, labels, folder=tmp_path / "run", eps=0.1, preset=protocol)
    assert result.skipped == {
        "transfer-bare": "there is no such model to transfer from",
        "ere-aware": "the defense does not minimize an expected reconstruction error",
        "t": "its loss needs at least 4 classes, and there are 2",
        "bpda": "the model is not a PurifiedClassifier, so it has only one gradient",
        "bpda-too": "the model is not a PurifiedClassifier, so it has only one gradient",
    }


def test_bad_input_is_refused_before_any_work(tmp_path):
    model, images, labels = evaluation_case.model_and_data()

    def forbidden(x):
        raise AssertionError("the model was run")

    good = {"folder": tmp_path / "run", "eps": 0.1, "preset": "quick"}
    cases = [
        ((forbidden, images + 1, labels), {}, ValueError, r"images must have values in \[0, 1\]"),
        ((forbidden, images[0], labels), {}, ValueError, r"images must be a batch of images"),
        ((forbidden, images, labels[:3]), {}, ValueError, r"labels must have shape \(13,\), got \(3,\)"),
        ((forbidden, images[:0], labels[:0]), {}, ValueError, "images must hold at least one image, got none"),
        ((forbidden, images, labels), {"eps": ()}, ValueError, "eps must be at least one radius"),
        ((forbidden, images, labels), {"eps": (0.1, 8)}, ValueError, "eps must be at most 1, .*8/255, got 8"),
        (
            (forbidden, images, labels),
            {"eps": (0.1, 0.1)},
            ValueError,
            "eps must be at least one radius, and different",
        ),
        ((forbidden, images, labels), {"eps": -0.1}, ValueError, "eps must be positive"),
        ((forbidden, images, labels), {"norm": "l1"}, ValueError, "norm must be one of 'linf', 'l2', got 'l1'"),
        (
            (forbidden, images, labels),
            {"preset": "huge"},
            ValueError,
            "preset must be one of 'quick', 'standard', 'full'",
        ),
        ((forbidden, images, labels), {"shard": (2, 2)}, ValueError, r"shard's number must be in \[0, 1\], got 2"),
        ((forbidden, images, labels), {"chunk": 0}, ValueError, "chunk must be at least 1"),
        ((forbidden, images, labels), {"threads": 0}, ValueError, "threads must be at least 1"),
        (("model", images, labels), {}, TypeError, "model must be callable, got str"),
        (
            (forbidden, images, labels),
            {"preset": [PGD("a")]},
            TypeError,
            "preset must be a name or a .*Protocol, got list",
        ),
        ((forbidden, images, labels), {"folder": None}, TypeError, "folder must be a path, got NoneType"),
        ((model.purifier, images, labels), {}, TypeError, "model must be a classifier: wrap the purifier"),
    ]
    for arguments, options, kind, message in cases:
        with pytest.raises(kind, match=message):
            evaluate(*arguments, **{**good, **options})
    with pytest.raises(ValueError, match=r"labels must be in \[0, 4\), got \[0, 9\]"):
        evaluate(model, images, labels.clone().index_fill_(0, torch.tensor([3]), 9), **good)
    for dtype in (torch.float16, torch.bfloat16):
        with pytest.raises(TypeError, match="images must be float32 or float64"):
            evaluate(forbidden, images.to(dtype), labels, **good)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (PGD, {"name": "../out"}, "name must be 1 to 64 letters"),
        (PGD, {"name": "=1+1"}, "name must be 1 to 64 letters"),
        (PGD, {"samples": 0}, "samples must be at least 1"),
        (PGD, {"sweep": True, "survivors_only": True}, "sweep needs an attack on all samples"),
        (PGD, {"steps": 0}, "steps must be at least 1"),
        (APGD, {"restarts": 0}, "restarts must be at least 1"),
        (APGD, {"loss": "hinge"}, "loss must be one of 'margin', 'cross_entropy', 'dlr', 'targeted_dlr', got 'hinge'"),
        (PGD, {"gradient": "bpda"}, "got 'bpda'; BPDA is 'identity'"),
        (PGD, {"gradient": "none"}, "gradient must be one of 'exact', 'identity', 'straight_through', got 'none'"),
        (AutoAttack, {"gradient": "none"}, "gradient must be one of 'exact'"),
        (PGD, {"ere_weight": -1.0}, "ere_weight must be at least 0"),
        (Transfer, {"sources": ()}, "sources must name at least one model"),
        (Transfer, {"sources": ("other_nosie",)}, "sources must be one of 'bare'"),
        (Transfer, {"sources": ("bare",), "steps": 0}, "steps must be at least 1"),
        (Square, {"queries": 0}, "queries must be at least 1"),
        (RandomSearch, {"queries": 0}, "queries must be at least 1"),
        (AutoAttack, {"queries": 0}, "queries must be at least 1"),
    ],
)
def test_bad_settings_are_refused(kind, options, message):
    with pytest.raises(ValueError, match=message):
        kind(**{"name": "a", **options})


def test_bad_protocols_are_refused():
    for attacks in ((PGD("a"),), (PGD("a"), Clean()), (Clean(), Clean("b")), (Clean(samples=4),), ()):
        with pytest.raises(ValueError, match="the first attack, and no other, must be Clean, on all samples"):
            Protocol("p", attacks)
    with pytest.raises(TypeError, match="attacks must be a tuple of attacks, got Clean"):
        Protocol("p", Clean())
    with pytest.raises(TypeError, match="sources must be a tuple of names, got the string 'bare'"):
        Transfer("t", sources="bare")
    with pytest.raises(ValueError, match="attack names must differ"):
        Protocol("p", (Clean(), PGD("a"), APGD("a")))
    with pytest.raises(TypeError, match=r"attacks must be .*Attack objects, got str"):
        Protocol("p", ("clean",))
    for ladder in (("a",), ("a", "c"), ("a", "a", "b", "b")):
        with pytest.raises(ValueError, match="ladder must be two or three names of attacks, or none"):
            Protocol("p", (Clean(), PGD("a"), PGD("b")), ladder=ladder)


def test_presets_hold_what_the_protocol_asks_for():
    """Point 3 of the protocol: losses, gradients, black-box attacks and transfer."""
    full = PRESETS["full"].attacks
    for gradient in ("exact", "identity", "straight_through"):
        for kind in (PGD, APGD):
            losses = {
                a.loss
                for a in full
                if isinstance(a, kind) and a.gradient == gradient and a.steps >= 100 and a.restarts >= 5
            }
            assert {"cross_entropy", "margin", "dlr"} <= losses, (gradient, kind)
    assert any(isinstance(a, PGD) and (a.steps, a.samples) == (1000, 32) for a in full)
    assert {AutoAttack, Square, RandomSearch, Transfer} <= {type(a) for a in full}
    assert {"bare", "other_noise", "fewer_steps"} == {s for a in full if isinstance(a, Transfer) for s in a.sources}
    assert any(a.ere_weight for a in full if isinstance(a, PGD))
    assert not any(a.survivors_only for a in full)
    assert PRESETS["full"].left_out == ""
    for name in ("quick", "standard"):
        assert "AutoAttack" in PRESETS[name].left_out
    for preset in PRESETS.values():
        assert preset.attacks[0].name == "clean"


def shortened(attack):
    """The attack on all samples, with hardly any steps."""
    few = {"steps": 2, "queries": 2, "restarts": 1}
    few = {name: value for name, value in few.items() if hasattr(attack, name)}
    return replace(attack, survivors_only=False, samples=None, sweep=False, **few)


@pytest.mark.slow
def test_purified_classifiers_are_attacked_through_every_gradient(tmp_path, monkeypatch):
    seen = set()
    real = ps.Purifier.forward

    def spy(self, x, gradient="exact"):
        if torch.is_grad_enabled() and x.requires_grad:
            seen.add((gradient, self.noise.seed, self.steps))
        return real(self, x, gradient)

    monkeypatch.setattr(ps.Purifier, "forward", spy)
    model, images, labels = evaluation_case.model_and_data(6)
    protocol = Protocol("p", tuple(map(shortened, PRESETS["standard"].attacks)))
    result = evaluate(model, images, labels, folder=tmp_path / "run", eps=0.001, preset=protocol, threads=1)
    assert {gradient for gradient, *_ in seen} == {"exact", "identity", "straight_through"}
    assert {("exact", 1, 2), ("exact", 0, 1)} <= seen  # another noise seed, half the steps
    assert result.skipped == {}
    assert math.isclose(result.worst_case[0.001].value, result.clean.value)
