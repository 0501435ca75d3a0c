"""What an evaluation finds."""

import json
import sys

import evaluation_case
import pytest
import torch
from evaluation_case import Smooth, rows_of
from safetensors.torch import load_file

import pursamere as ps
from pursamere import _evaluate
from pursamere._evaluate import evaluate
from pursamere.attacks import APGD, PGD, Clean, RandomSearch, Square
from pursamere.evaluation import AttackResult, Protocol
from pursamere.evaluation.protocol import sweep_radii
from pursamere.evaluation.units import Outcome


@pytest.fixture(autouse=True)
def no_report(monkeypatch):
    """Most tests here don't look at the report, which takes more time than the attacks; ``undo()`` brings it back."""
    monkeypatch.setattr(_evaluate, "write_summary", lambda *_: None)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """One run from beginning to end: (result, folder)."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    return evaluation_case.run(folder), folder


@pytest.mark.slow
def test_outcomes_are_what_the_model_says_of_the_kept_images(whole):
    result, folder = whole
    model, images, labels = evaluation_case.model_and_data()
    rows = rows_of(folder)
    assert len(rows) == 13 * (1 + 2 * 6) + 2 * 8 + len(sweep_radii("linf", (0.05, 0.1))) * 4
    adversarial = {}
    for file in (folder / "adversarial").iterdir():
        name, _, chunk = file.stem.rpartition("-")
        for i, image in enumerate(load_file(file)["images"]):
            adversarial[name, 4 * int(chunk) + i] = image
    for row in rows:
        sample, eps = int(row["sample"]), float(row["eps"])
        assert int(row["label"]) == int(labels[sample])
        found = images[sample] if row["attack"] == "clean" else adversarial[f"{row['attack']}-eps{eps:.6g}", sample]
        logits = model(found[None])[0].detach()
        assert int(row["prediction"]) == int(logits.argmax())
        assert int(row["correct"]) == int(int(row["prediction"]) == int(row["label"]))
        others = torch.cat([logits[: int(labels[sample])], logits[int(labels[sample]) + 1 :]])
        assert float(row["margin"]) == pytest.approx(float(logits[labels[sample]] - others.max()), abs=1e-6)
        assert float(row["linf"]) == pytest.approx(float((found - images[sample]).abs().max()), abs=1e-7)
        assert float(row["linf"]) <= eps + 1e-6
        if not int(row["attacked"]):
            assert torch.equal(found, images[sample])
    for eps, share in result.worst_case.items():
        alive = []
        for sample in range(13):
            mine = [r for r in rows if int(r["sample"]) == sample and r["attack"] != "sweep"]
            alive.append(all(int(r["correct"]) for r in mine if float(r["eps"]) in (0.0, eps)))
        assert (share.count, share.samples) == (sum(alive), 13)
        assert result.withstood[eps].tolist() == alive
    assert 0 < result.worst_case[0.1].count < result.clean.count


@pytest.mark.slow
def test_late_attacks_see_survivors_only(whole):
    _, folder = whole
    rows = rows_of(folder)
    for sample in range(13):
        for eps in evaluation_case.EPS:
            mine = [r for r in rows if int(r["sample"]) == sample and float(r["eps"]) in (0.0, eps)]
            alive = True
            for row in (r for r in mine if r["attack"] not in ("sweep",)):
                if row["attack"] in ("apgd-t", "square"):
                    assert int(row["attacked"]) == alive
                alive = alive and bool(int(row["correct"]))


@pytest.mark.slow
def test_summary_tells_the_same(whole):
    result, folder = whole
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["verdict"] == result.verdict
    assert "worst case per sample over all attacks (linf)" in result.verdict
    assert {entry["attack"] for entry in summary["attacks"]} == {
        attack.name for attack in evaluation_case.PROTOCOL.attacks
    }
    config = json.loads((folder / "config.json").read_text())
    assert len(config["model"]["sha256"]) == len(config["data"]["sha256"]) == 64
    assert config["model"]["micro_batches"] == {"purifier": [1], "classifier": [1], "exact gradient": [1]}
    environment = json.loads((folder / "environment.json").read_text())
    assert environment["versions"]["torch"] == torch.__version__


class Staircase(Smooth):
    """The same model behind coarse rounding: its gradient is zero, and hides what random search finds."""

    def forward(self, x):
        return self.logits((x * 20).round() / 20)


class Shattered(Smooth):
    """The same model with a steep ripple on top, whose gradient points anywhere."""

    def forward(self, x):
        ripple = 0.02 * (3000 * x.flatten(1)).sin()
        return self.logits(x) + torch.nn.functional.pad(ripple.sum(1, keepdim=True), (1, 2))


def planted(model, tmp_path, samples=80):
    generator = torch.Generator().manual_seed(2)
    images = 0.5 + 0.4 * (torch.rand(samples, 1, 4, 4, generator=generator) - 0.5)
    labels = model(images).argmax(1)
    protocol = Protocol(
        "planted",
        (
            Clean(),
            RandomSearch("random-search", queries=60),
            PGD("pgd-margin-short", steps=5),
            PGD("pgd-margin", steps=40),
            APGD("apgd-ce", steps=40),
            Square("square", queries=200),
            PGD("sweep", steps=20, sweep=True),
        ),
        ladder=("pgd-margin-short", "pgd-margin"),
    )
    return evaluate(model, images, labels, folder=tmp_path / "run", eps=0.05, preset=protocol), images, labels


@pytest.mark.slow
def test_a_robust_model_passes_all_checks_and_has_its_known_accuracy(tmp_path):
    model = Smooth()
    result, images, labels = planted(model, tmp_path)
    score = (images.flatten(1) - 0.5) @ model.weight
    robust = score.abs() > 0.05 * model.weight.abs().sum()
    assert torch.equal(result.withstood[0.05], robust)
    assert 0.1 < robust.float().mean() < 0.9
    for line in result.lines:
        if line.attack.gradient is not None and not line.attack.sweep:
            assert torch.equal(line.correct, robust), line.attack.name
    assert [check for check in result.checks if not check.passed] == []
    assert result.verdict.endswith("masking checks pass")
    assert torch.equal(labels, model(images).argmax(1))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "expected"),
    [(Staircase, {"black-box", "gradients", "accuracy falls with eps"}), (Shattered, {"black-box"})],
)
def test_planted_obfuscation_is_flagged(tmp_path, kind, expected):
    result, _, _ = planted(kind(), tmp_path)
    warned = {check.name.partition(",")[0] for check in result.checks if not check.passed}
    assert expected <= warned
    assert " masking checks warn: " in result.verdict


@pytest.mark.slow
def test_a_blind_attack_is_flagged_and_not_counted_as_robustness(tmp_path):
    class NaNGradient(Smooth):
        def forward(self, x):
            return self.logits(x) + (x - x.detach()).flatten(1).abs().sum(1, keepdim=True).sqrt()

    result, _, _ = planted(NaNGradient(), tmp_path, samples=20)
    (check,) = [check for check in result.checks if check.name == "attacks could see"]
    assert not check.passed
    assert "pgd-margin, eps 0.05: the gradient of the model is NaN" in check.detail
    assert result.worst_case[0.05].count == 0


@pytest.mark.slow
def test_one_blind_sample_hides_no_other(tmp_path):
    """The gradient is NaN for the one image that is bright."""

    class NaNForOne(Smooth):
        def forward(self, x):
            bright = x.flatten(1).mean(1, keepdim=True) > 0.65
            zero = (x - x.detach()).flatten(1).abs().sum(1, keepdim=True)
            return self.logits(x) + torch.where(bright, zero, 1.0).sqrt()

    model = NaNForOne()
    clean, images, _ = planted(Smooth(), tmp_path / "smooth", samples=40)
    images = images.clone()
    images[17] = 0.75
    labels = model(images).argmax(1)
    protocol = Protocol("p", (Clean(), PGD("pgd-margin", steps=20)))
    result = evaluate(model, images, labels, folder=tmp_path / "run", eps=0.05, preset=protocol)
    expected = clean.withstood[0.05].clone()
    expected[17] = False
    assert torch.equal(result.withstood[0.05], expected)
    assert [line.blind for line in result.lines] == [0, 1]
    assert [row["sample"] for row in rows_of(tmp_path / "run") if row["blind"] == "1"] == ["17"]


@pytest.mark.slow
def test_nan_logits_count_as_wrong(tmp_path):
    class NaNForOne(Smooth):
        def forward(self, x):
            return self.logits(x) + torch.where(x.flatten(1)[:, :1] > 0.9, torch.nan, 0.0)

    images = 0.5 + 0.4 * (torch.rand(6, 1, 4, 4, generator=torch.Generator().manual_seed(2)) - 0.5)
    labels = Smooth()(images).argmax(1)
    images[3, 0, 0, 0] = 0.95
    protocol = Protocol("p", (Clean(), PGD("pgd-margin", steps=3)))
    result = evaluate(NaNForOne(), images, labels, folder=tmp_path / "run", eps=0.001, preset=protocol)
    assert not result.withstood[0.001][3]
    assert (result.clean.count, result.worst_case[0.001].count) == (5, 5)
    (check,) = [check for check in result.checks if check.name == "attacks could see"]
    assert check.detail == (
        "clean, eps 0: NaN or infinite logits, which count as wrong, on sample 3; "
        "pgd-margin, eps 0.001: model returned NaN or infinity (on sample 3)"
    )


def test_a_sample_that_was_not_attacked_has_not_fallen():
    """It is judged all the same, a random defense with other noise."""
    attacked, correct = [True, True, False, False], [True, False, True, False]
    assert Outcome(attacked, correct=correct).withstood == [True, False, True, True]
    masks = (torch.tensor(mask) for mask in (attacked, correct))
    line = AttackResult(PGD("a"), 0.1, [0, 1, 2, 3], *masks, [], {}, [], torch.ones(4, dtype=torch.bool), None, 0.0)
    assert line.withstood.tolist() == [True, False, True, True]


@pytest.mark.slow
def test_a_random_defense_is_evaluated_and_left_as_it_was(tmp_path):
    _, images, labels = evaluation_case.model_and_data(6)
    means = torch.stack([torch.full((1, 3, 3), 0.2), torch.full((1, 3, 3), 0.8)])
    purifier = ps.baselines.DiffPure(
        ps.denoisers.GaussianMixture(means, 0.1),
        steps=2,
        fresh_noise=True,
        micro_batch=1,
        noise=ps.GaussianNoise(seed=5),
    )
    classifier = evaluation_case.model_and_data(6)[0].classifier
    protocol = Protocol("p", (
        Clean(), PGD("pgd-margin", steps=2), PGD("first", steps=2, samples=3),
        APGD("bpda", gradient="identity", steps=2, survivors_only=True),
    ))  # fmt: skip
    results = []
    for folder in ("one", "two"):
        model = ps.PurifiedClassifier(purifier, classifier)
        results.append(evaluate(model, images, labels, folder=tmp_path / folder, eps=0.1, preset=protocol, chunk=4))
        assert (purifier.noise.seed, purifier._calls) == (5, 0)
    assert (tmp_path / "one" / "outcomes.csv").read_bytes() == (tmp_path / "two" / "outcomes.csv").read_bytes()
    result = results[0]
    alive = torch.ones(6, dtype=torch.bool)
    for line in result.lines:  # what was not attacked was judged with other noise, and does not count
        alive[torch.tensor(line.rows)] &= line.correct | ~line.attacked
    assert torch.equal(result.withstood[0.1], alive)
    (check,) = [check for check in result.checks if check.name == "deterministic"]
    assert not check.passed


def test_a_missing_package_is_told_before_the_work(tmp_path, monkeypatch):
    model, images, labels = evaluation_case.model_and_data(4)
    monkeypatch.setitem(sys.modules, "pyautoattack", None)
    with pytest.raises(ImportError, match=r'pip install "pursamere\[evaluation\]"'):
        evaluate(model, images, labels, folder=tmp_path / "run", eps=0.1, preset="quick")
    assert not (tmp_path / "run").exists()


def test_a_random_model_is_refused_with_both_logits(tmp_path):
    class Noisy(Smooth):
        def __init__(self):
            super().__init__()
            self.generator = torch.Generator().manual_seed(0)

        def forward(self, x):
            return self.logits(x) + torch.rand(len(x), 1, generator=self.generator)

    number = r"-?\d+\.\d+"
    with pytest.raises(RuntimeError, match=rf"logit 0 of sample 0 was {number}, and {number} in a second call"):
        planted(Noisy(), tmp_path)
    assert not (tmp_path / "run").exists()


def test_a_model_that_looks_at_the_batch_is_refused(tmp_path):
    class Batch(Smooth):
        def forward(self, x):
            return self.logits(x - 0.01 * x.mean(0, keepdim=True))

    with pytest.raises(RuntimeError, match=r"deterministic: logit .* one by one; .*rows depend on one another"):
        planted(Batch(), tmp_path)


@pytest.mark.slow
def test_global_state_is_left_alone(tmp_path):
    before = torch.get_rng_state(), torch.get_num_threads()
    evaluation_case.run(tmp_path / "run")
    assert torch.equal(torch.get_rng_state(), before[0])
    assert torch.get_num_threads() == before[1]
    assert torch.is_grad_enabled()
