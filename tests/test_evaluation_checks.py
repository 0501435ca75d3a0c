"""Masking checks: of which samples and gradients each says how many."""

import math

import pytest
import torch

from pursamere import _evaluate
from pursamere._evaluate import evaluate
from pursamere.attacks import APGD, PGD, Clean, Square, apgd, margin, pgd
from pursamere.evaluation import AttackResult, Protocol
from pursamere.evaluation.checks import masking_checks
from pursamere.evaluation.course import Course, joined
from pursamere.evaluation.units import Unit
from pursamere.report.terminal import text_table


@pytest.fixture(autouse=True)
def no_report(monkeypatch):
    """Most tests here don't look at the report, which takes more time than the attacks; ``undo()`` brings it back."""
    monkeypatch.setattr(_evaluate, "write_summary", lambda *_: None)


def line(attack, correct, curve=(), *, attacked=None, saw=None, eps=0.1):
    """What an attack found, made up."""
    correct = torch.tensor(correct)
    attacked, saw = (torch.ones_like(correct) if mask is None else torch.tensor(mask) for mask in (attacked, saw))
    return AttackResult(attack, eps, list(range(len(correct))), attacked, correct, list(curve), {}, [], saw, None, 0.0)


def checks_of(name, *lines):
    """The checks whose names begin like that."""
    ladder = ("pgd-margin-short", "pgd-margin", "pgd-margin-1000")
    return [check for check in masking_checks(lines, [0.1], False, None, ladder) if check.name.startswith(name)]


def check_of(name, *lines):
    """The only check of that name; ``None`` if there is none."""
    found = checks_of(name, *lines)
    assert len(found) < 2
    return found[0] if found else None


@pytest.mark.parametrize(
    ("last", "found"), [(torch.nn.Softmax(1), True), (torch.nn.Sigmoid(), True), (torch.nn.Identity(), False)]
)
def test_probabilities_instead_of_logits(tmp_path, last, found):
    bare = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 3)).requires_grad_(False)
    torch.nn.init.eye_(bare[1].weight).mul_(9)
    images = torch.linspace(0, 1, 6 * 16).reshape(6, 1, 4, 4)
    labels = bare(images).argmax(1)
    protocol = Protocol("brief", (Clean(), PGD("pgd", steps=1)))
    result = evaluate(torch.nn.Sequential(bare, last).eval(), images, labels, folder=tmp_path, eps=0.1, preset=protocol)
    checks = [check for check in result.checks if check.name == "logits"]
    assert [check.passed for check in checks] == [False] * found
    assert ("1 of 3 masking checks warn: logits" in result.verdict) == found


def test_each_masking_check_can_warn():
    many, few = [True] * 9 + [False], [True] * 5 + [False] * 5
    short, long = PGD("pgd-margin-short", steps=5), PGD("pgd-margin", steps=40)
    bpda = PGD("x", gradient="identity", steps=40)
    cases = {
        "more steps": ([line(short, few), line(long, many)], [line(short, many), line(long, few)]),
        "identity against exact": ([line(long, many), line(bpda, few)], [line(long, few), line(bpda, many)]),
        "loss at rest": (
            [line(long, many, [1 - 0.02 * i for i in range(41)])],
            [line(long, many, [0.9**i for i in range(41)])],
        ),
    }
    for name, (bad, good) in cases.items():
        for lines, passed in ((bad, False), (good, True)):
            check = check_of(name, *lines)
            assert check.passed == passed, (name, check)
    longest = PGD("pgd-margin-1000", steps=1000, samples=4)
    for found, passed in (([True, False, False, True], False), ([True, True, False, True], True)):
        lines = [line(long, [True] * 10, [0.9**i for i in range(41)]), line(longest, found)]
        assert check_of("loss at rest", *lines).passed == passed
    # An attack through the identity is not compared with itself, nor with another attack.
    assert check_of("identity", line(bpda, few)) is None
    for other in (PGD("pgd-margin", steps=41), APGD("pgd-margin", loss="margin", steps=40)):
        assert check_of("identity", line(other, many), line(bpda, few)) is None
    # Only attacks that the protocol calls a ladder are compared by their steps.
    lines = [line(short, few), line(long, many, [1 - 0.02 * i for i in range(41)])]
    assert not [c for c in masking_checks(lines, [0.1], False, None) if c.name.startswith(("more steps", "loss"))]


def test_zero_gradients_are_counted_where_the_median_is_zero():
    for zeros, message in (
        (1, "0.50% of 200 exact gradients are zero (at most 1% allowed); the largest is 2 times the median (at most"),
        (60, "30.00% of 200 exact gradients are zero (at most 1% allowed); of blind, eps 0.1, 60 of 100, so that"),
    ):
        found = [line(PGD(name, steps=1), [True]) for name in ("seeing", "blind")]
        found[0].gradients.update(count=100, zero=0, median=2.0, largest=4.0)
        found[1].gradients.update(count=100, zero=zeros, median=0.0 if zeros > 50 else 2.0, largest=4.0)
        check = check_of("gradients", *found)
        assert check.detail.startswith(message)
        assert check.passed == (zeros == 1)


def fell(count, first, samples=100):
    """``count`` of the first samples fell, the others were judged as they are."""
    return [i >= count for i in range(first)] + [True] * (samples - first)


def mask(first, samples=100):
    return [i < first for i in range(samples)]


@pytest.mark.parametrize(("found", "passed"), [(1, True), (2, False)])
def test_loss_at_rest_counts_the_samples_that_both_attacks_tried(found, passed):
    long, longest = PGD("pgd-margin", steps=40), PGD("pgd-margin-1000", steps=1000, samples=32)
    check = check_of("loss at rest", line(long, [True] * 100), line(longest, fell(found, 32), attacked=mask(32)))
    assert check.passed == passed
    assert check.detail.startswith(f"{found} of 32 samples fell")
    assert "at most 1 allowed" in check.detail
    blind = line(longest, fell(3, 32), attacked=mask(32), saw=[False] * 2 + [True] * 98)
    assert check_of("loss at rest", line(long, [True] * 100), blind).detail.startswith("1 of 30 samples fell")
    assert check_of("loss at rest", line(long, [True] * 100), line(longest, [True], saw=[False])) is None


@pytest.mark.slow
def test_loss_at_rest_does_not_depend_on_the_chunk(tmp_path):
    """Two samples of 128 that only a fine search breaks, among the 32 that the long one looks at."""
    images = torch.full((128, 1, 2, 2), 0.5)
    images[:2, 0, 0, 0] = 0.9

    def model(x):
        x = x.flatten(1)
        value = torch.where(x[:, 0] > 0.7, (x[:, 1] - 0.53).abs() * 10 - 0.01, 1 + 0 * x[:, 1])
        return torch.stack([value, 0 * value], 1)

    protocol = Protocol(
        "p",
        (Clean(), PGD("short", steps=1), PGD("pgd-margin", steps=1), PGD("pgd-margin-1000", steps=300, samples=32)),
        ladder=("short", "pgd-margin", "pgd-margin-1000"),
    )
    for chunk in (128, 32, 20):
        labels = torch.zeros(128, dtype=torch.int64)
        folder = tmp_path / str(chunk)
        result = evaluate(model, images, labels, folder=folder, eps=0.1, preset=protocol, chunk=chunk)
        (check,) = [check for check in result.checks if check.name.startswith("loss at rest")]
        assert not check.passed
        assert check.detail.startswith("2 of 32 samples fell to pgd-margin-1000 that withstood pgd-margin (at most 1")
        (shown,) = [row for row in text_table(result).splitlines() if row.startswith("pgd-margin-1000")]
        assert shown.endswith(", 32 samples")


@pytest.mark.parametrize(("found", "passed"), [(1, True), (2, False)])
def test_black_box_attacks_are_compared_on_what_both_kinds_were_run_on(found, passed):
    white, few = PGD("pgd-margin"), Square("square", samples=32)
    check = check_of("black-box", line(white, [True] * 100), line(few, fell(found, 32), attacked=mask(32)))
    assert check.passed == passed
    assert check.detail == f"{found} of 32 samples fell to black-box attacks only (at most 1 allowed)"
    # No gradient was followed on the others, so that they fell to a black-box attack shows nothing.
    every, first = Square("square"), PGD("pgd-margin", samples=10)
    lines = line(first, [True] * 100, attacked=mask(10)), line(every, [True] * 10 + [False] * 90)
    assert check_of("black-box", *lines).detail.startswith("0 of 10 samples")
    # Nor on those on which it could not be followed.
    lines = line(white, fell(50, 50), saw=[not m for m in mask(50)]), line(every, fell(100, 100))
    assert check_of("black-box", *lines).detail.startswith("50 of 50 samples")
    # An attack on survivors was meant for all.
    late = Square("square", survivors_only=True)
    lines = line(white, fell(60, 100)), line(late, [True] * 100, attacked=[not m for m in mask(60)])
    assert check_of("black-box", *lines).detail.startswith("0 of 100 samples")
    assert check_of("black-box", line(white, [True])) is check_of("black-box", line(every, [True])) is None


def test_accuracies_are_compared_on_the_samples_that_both_attacks_tried():
    short, long = PGD("pgd-margin-short", steps=5, samples=50), PGD("pgd-margin", steps=40)
    first, every = [True] * 45 + [False] * 5 + [True] * 50, [True] * 50 + [False] * 50
    check = check_of("more steps", line(short, first, attacked=mask(50)), line(long, every))
    assert not check.passed
    assert check.detail.startswith("accuracy 0.900 under pgd-margin-short, 1.000 under pgd-margin,")
    bpda = PGD("bpda", steps=40, gradient="identity")
    # The exact gradient was NaN on half the samples, and broke none of the others; BPDA broke half of those.
    exact = line(long, [True] * 50 + [False] * 50, saw=mask(50))
    check = check_of("identity", exact, line(bpda, [True] * 25 + [False] * 75))
    assert not check.passed
    assert "accuracy 1.000 with the exact gradient, 0.500 with the identity" in check.detail


def test_a_loss_that_ends_early_is_at_rest():
    """All samples had fallen after 12 of 41 evaluations, the last of them at the last."""
    check = check_of("loss at rest", line(PGD("pgd-margin", steps=40), [False], [1 - 0.1 * i for i in range(12)]))
    assert check.passed
    assert check.detail.startswith("0.0% of the fall")
    assert check_of("loss at rest", line(PGD("pgd-margin", steps=8), [False], [1 - 0.1 * i for i in range(9)])) is None


def test_every_sweep_is_checked_by_itself():
    strong, weak = (PGD(name, sweep=True) for name in ("strong", "weak"))
    lines = [line(strong, [i > 5 for i in range(10)], eps=0.05), line(strong, [False] * 10, eps=0.2)]
    (check,) = checks_of("accuracy falls", *lines)
    assert (check.name, check.passed) == ("accuracy falls with eps", True)
    lines += [line(weak, [True] * 10, eps=0.05), line(weak, [True] * 10, eps=0.2)]
    checks = checks_of("accuracy falls", *lines)
    assert [(check.name[len("accuracy falls with eps, ") :], check.passed) for check in checks] == [
        ("strong", True),
        ("weak", False),
    ]


@pytest.mark.parametrize("sizes", [[60], [1, 59], [20, 1, 39]])
def test_a_course_does_not_depend_on_how_samples_are_divided(sizes):
    """Norms over thirty orders of magnitude, 1 sample in 60 as important in a chunk of its own as in one of 60."""
    generator = torch.Generator().manual_seed(0)
    norms = 10 ** (30 * torch.rand(7, 60, generator=generator) - 30)
    norms[:, 7] = 0
    margins = torch.rand(7, 60, generator=generator).cummin(0).values
    courses = []
    for part in torch.arange(60).split(sizes):
        course = Course(len(part))
        for norm, found in zip(norms, margins, strict=True):
            course.observe(found[part], norm[part, None, None, None].expand(-1, 1, 2, 2) / 2)
        courses.append(course)
    whole = joined(courses)
    assert whole.curve == pytest.approx(margins.mean(1).tolist(), rel=1e-6)
    figures = whole.gradients()
    assert (figures["count"], figures["zero"]) == (420, 7)
    assert figures["largest"] == pytest.approx(float(norms.max()))
    assert figures["median"] == pytest.approx(float(norms.median()), rel=0.01)
    assert joined([]).gradients() == {}


@pytest.mark.parametrize("attack", [pgd, apgd])
def test_samples_that_are_wrong_as_they_are_count_in_the_curve(attack):
    """Also in a chunk that has no others, so that the mean does not depend on the chunks."""
    images = torch.rand(6, 1, 2, 2, generator=torch.Generator().manual_seed(0))

    def model(x):
        return torch.stack([x.flatten(1).sum(1), x.flatten(1).sum(1) + 1], 1)

    labels, seen = torch.zeros(6, dtype=torch.int64), []
    attack(model, images, labels, eps=0.1, steps=3, observe=lambda *what: seen.append(what))
    ((best_margin, gradient),) = seen
    assert gradient is None
    assert torch.equal(best_margin, margin(model(images), labels))


def test_what_an_attack_saw_before_it_was_blind_does_not_count(tmp_path):
    """The gradient is NaN for one sample of 8, once the attack has made a step: the others are attacked again."""
    images = 0.5 + 0.01 * torch.arange(8).reshape(8, 1, 1, 1) * torch.ones(1, 1, 2, 2)

    def model(x):
        x = x.flatten(1)
        low = (x.detach().mean(1) - 0.5657).abs() < 0.0008  # where the attack on sample 7 leads
        away = torch.where(low, x[:, 0] - x[:, 0].detach(), x[:, 0])
        return torch.stack([5 + x.sum(1) + 0 * away.abs().sqrt(), 0 * x[:, 0]], 1)

    protocol = Protocol("p", (Clean(), PGD("pgd-margin", steps=20)))
    labels = torch.zeros(8, dtype=torch.int64)
    result = evaluate(model, images, labels, folder=tmp_path / "run", eps=0.005, preset=protocol, seed=1)
    (attacked,) = [line for line in result.lines if line.attack.name == "pgd-margin"]
    assert attacked.blind == 1
    assert attacked.blind_reason == "the gradient of the model is NaN or infinite (on sample 7)"
    assert attacked.gradients["count"] == 7 * 20
    assert len(attacked.curve) == 21
    assert all(later <= before for before, later in zip(attacked.curve, attacked.curve[1:], strict=False))
    lowest = 5 + (images[:7] - 0.005).sum((1, 2, 3))
    assert attacked.curve[-1] == pytest.approx(float(lowest.mean()), abs=1e-5)


def test_a_unit_costs_what_it_attacks():
    attack = PGD("a", steps=10, samples=32)
    assert [len(Unit(attack, 0.1, i, range(20 * i, 20 * i + 20)).meant) for i in range(3)] == [20, 12, 0]
    assert Unit(attack, 0.1, 1, range(20, 40)).cost == 120
    assert math.isclose(Unit(PGD("a", steps=10), 0.1, 1, range(20, 40)).cost, 200)
