"""The evaluation's engine: what it finds, and that killed, resumed and divided runs agree to the byte."""

import csv
import json
import math
import re
import signal
import subprocess
import sys
import types
from pathlib import Path

import evaluation_case
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import pursamere as ps
from pursamere._evaluate import evaluate
from pursamere.evaluation import Attack, Protocol
from pursamere.evaluation.protocol import LONG, PRESETS, SHORT, sweep_radii

CASE = Path(evaluation_case.__file__)
# The images of the case are too small for Square in L2.
WITHOUT_SQUARE = Protocol(
    "tiny", tuple(each for each in evaluation_case.PROTOCOL.attacks if each.kind != "square"), "without Square"
)


def start(*arguments: str, torchrun: int = 0) -> subprocess.CompletedProcess:
    launcher = ["-m", "torch.distributed.run", f"--nproc-per-node={torchrun}", "--standalone"] if torchrun else []
    command = [sys.executable, *launcher, str(CASE), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


def rows_of(folder: Path) -> list[dict[str, str]]:
    with open(folder / "outcomes.csv", newline="") as stream:
        return list(csv.DictReader(stream))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """One run from beginning to end: (result, folder)."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    return evaluation_case.run(folder), folder


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
    environment = json.loads((folder / "environment.json").read_text())
    assert environment["versions"]["torch"] == torch.__version__


@pytest.mark.parametrize("fraction", ["0.3", "0.7"])
def test_killed_and_resumed_is_the_same_to_the_byte(whole, tmp_path, fraction):
    folder = tmp_path / "run"
    killed = start(str(folder), "", fraction)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    done = sorted(file.name for file in (folder / "units").iterdir())
    assert done, "killed before anything was done"
    stamps = {name: (folder / "units" / name).stat().st_mtime_ns for name in done}
    resumed = start(str(folder))
    assert resumed.returncode == 0, resumed.stderr
    assert (folder / "outcomes.csv").read_bytes() == (whole[1] / "outcomes.csv").read_bytes()
    assert {name: (folder / "units" / name).stat().st_mtime_ns for name in done} == stamps, "done again"
    assert len(list((folder / "units").iterdir())) > len(done)


def test_two_shards_are_the_same_to_the_byte(whole, tmp_path):
    folder = tmp_path / "run"
    first = start(str(folder), "1/2")
    assert first.returncode == 0, first.stderr
    assert re.fullmatch(r"shard 1/2 is done; \d+ of \d+ units are missing", first.stdout.strip())
    assert not (folder / "outcomes.csv").exists()
    second = start(str(folder), "0/2")
    assert second.returncode == 0, second.stderr
    assert second.stdout.strip() == whole[0].verdict
    assert (folder / "outcomes.csv").read_bytes() == (whole[1] / "outcomes.csv").read_bytes()


def test_a_process_that_waits_says_what_for(whole, tmp_path, monkeypatch):
    """``RANK`` and ``WORLD_SIZE`` may be set although this is the only process that evaluates."""
    folder, now = tmp_path / "run", 0.0

    def sleep(seconds):
        nonlocal now
        now += 50
        if now == 150:  # the other process comes at last
            with pytest.MonkeyPatch.context() as alone:
                alone.delenv("RANK")
                alone.delenv("WORLD_SIZE")
                evaluation_case.run(folder, shard=(1, 2))

    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    clock = types.SimpleNamespace(sleep=sleep, monotonic=lambda: now)
    monkeypatch.setattr(sys.modules["pursamere._evaluate"], "time", clock)
    with pytest.warns(UserWarning, match=r"RANK is 0 and WORLD_SIZE 2, .* pass shard=\(0, 1\)"):
        result = evaluation_case.run(folder)
    assert result.verdict == whole[0].verdict
    assert evaluation_case.run(tmp_path / "alone", shard=(0, 1)).verdict == whole[0].verdict


def test_torchrun_is_the_same_to_the_byte(whole, tmp_path):
    done = start(str(tmp_path / "run"), torchrun=2)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines().count(whole[0].verdict) == 2, "each process has the result"
    assert (tmp_path / "run" / "outcomes.csv").read_bytes() == (whole[1] / "outcomes.csv").read_bytes()


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"eps": (0.05, 0.2)}, r"eps\[1\] is 0.1 there, and 0.2"),
        ({"seed": 1}, "seed is 0 there, and 1"),
        ({"norm": "l2", "preset": WITHOUT_SQUARE}, 'norm is "linf" there, and "l2"'),
        ({"chunk": 7}, "chunk is 4 there, and 7"),
        ({"preset": "quick"}, r"protocol\.attacks"),
    ],
)
def test_a_folder_of_another_configuration_is_refused_by_name(whole, change, named):
    before = (whole[1] / "outcomes.csv").read_bytes()
    with pytest.raises(ValueError, match=named) as error:
        evaluation_case.run(whole[1], **change)
    assert str(whole[1]) in str(error.value)
    assert (whole[1] / "outcomes.csv").read_bytes() == before


def test_other_data_weights_and_folders_are_refused(whole, tmp_path):
    model, images, labels = evaluation_case.model_and_data()
    options = {"folder": whole[1], "eps": evaluation_case.EPS, "preset": evaluation_case.PROTOCOL, "chunk": 4}
    with pytest.raises(ValueError, match=r"data\.sha256"):
        evaluate(model, images.flip(0), labels, **options)
    with torch.no_grad():
        model.classifier[1].bias += 1
    with pytest.raises(ValueError, match=r"model\.logits_sha256"):
        evaluate(model, images, labels, **options)
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(ValueError, match=r"is not marked as pursamere evaluate's and holds thesis\.txt"):
        evaluate(model, images, labels, **{**options, "folder": tmp_path})
    assert [file.name for file in tmp_path.iterdir()] == ["thesis.txt"]


class Smooth(nn.Module):
    """A robust linear model whose robust accuracy is known: the margin of class 1 is <w, x - 0.5>."""

    def __init__(self):
        super().__init__()
        self.weight = torch.randn(16, generator=torch.Generator().manual_seed(1))

    def logits(self, x):
        score = (x.flatten(1) - 0.5) @ self.weight
        return torch.stack([-score, score, -100 + 0 * score, -200 + 0 * score], 1)

    def forward(self, x):
        return self.logits(x)


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
            Attack("clean", "none"),
            Attack("random-search", "random_search", steps=60),
            Attack(SHORT, "pgd", steps=5),
            Attack(LONG, "pgd", steps=40),
            Attack("apgd-ce", "apgd", loss="cross_entropy", steps=40),
            Attack("square", "square", steps=200),
            Attack("sweep", "pgd", steps=20, sweep=True),
        ),
    )
    return evaluate(model, images, labels, folder=tmp_path / "run", eps=0.05, preset=protocol), images, labels


def test_a_robust_model_passes_all_checks_and_has_its_known_accuracy(tmp_path):
    model = Smooth()
    result, images, labels = planted(model, tmp_path)
    score = (images.flatten(1) - 0.5) @ model.weight
    robust = score.abs() > 0.05 * model.weight.abs().sum()
    assert torch.equal(result.withstood[0.05], robust)
    assert 0.1 < robust.float().mean() < 0.9
    for line in result.lines:
        if line.attack.kind in ("pgd", "apgd") and not line.attack.sweep:
            assert torch.equal(line.correct, robust), line.attack.name
    assert [check for check in result.checks if not check.passed] == []
    assert result.verdict.endswith("masking checks pass")
    assert torch.equal(labels, model(images).argmax(1))


@pytest.mark.parametrize(
    ("kind", "expected"),
    [(Staircase, {"black-box", "gradients", "accuracy falls with eps"}), (Shattered, {"black-box"})],
)
def test_planted_obfuscation_is_flagged(tmp_path, kind, expected):
    result, _, _ = planted(kind(), tmp_path)
    warned = {check.name.partition(",")[0] for check in result.checks if not check.passed}
    assert expected <= warned
    assert "masking check(s) warn" in result.verdict


def test_a_blind_attack_is_flagged_and_not_counted_as_robustness(tmp_path):
    class NaNGradient(Smooth):
        def forward(self, x):
            return self.logits(x) + (x - x.detach()).flatten(1).abs().sum(1, keepdim=True).sqrt()

    result, _, _ = planted(NaNGradient(), tmp_path, samples=20)
    (check,) = [check for check in result.checks if check.name == "attacks could see"]
    assert not check.passed
    assert "pgd-margin, eps 0.05: the gradient of the model is NaN" in check.detail
    assert result.worst_case[0.05].count == 0


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
    protocol = Protocol("p", (Attack("clean", "none"), Attack(LONG, "pgd", steps=20)))
    result = evaluate(model, images, labels, folder=tmp_path / "run", eps=0.05, preset=protocol)
    expected = clean.withstood[0.05].clone()
    expected[17] = False
    assert torch.equal(result.withstood[0.05], expected)
    assert [line.blind for line in result.lines] == [0, 1]
    assert [row["sample"] for row in rows_of(tmp_path / "run") if row["blind"] == "1"] == ["17"]


def test_nan_logits_count_as_wrong(tmp_path):
    class NaNForOne(Smooth):
        def forward(self, x):
            return self.logits(x) + torch.where(x.flatten(1)[:, :1] > 0.9, torch.nan, 0.0)

    images = 0.5 + 0.4 * (torch.rand(6, 1, 4, 4, generator=torch.Generator().manual_seed(2)) - 0.5)
    labels = Smooth()(images).argmax(1)
    images[3, 0, 0, 0] = 0.95
    protocol = Protocol("p", (Attack("clean", "none"), Attack(LONG, "pgd", steps=3)))
    result = evaluate(NaNForOne(), images, labels, folder=tmp_path / "run", eps=0.001, preset=protocol)
    assert not result.withstood[0.001][3]
    assert (result.clean.count, result.worst_case[0.001].count) == (5, 5)
    (check,) = [check for check in result.checks if check.name == "attacks could see"]
    assert check.detail == (
        "clean, eps 0: NaN or infinite logits, which count as wrong, on sample 3; "
        "pgd-margin, eps 0.001: model returned NaN or infinity (on sample 3)"
    )


def test_what_the_parameters_do_not_tell_is_told_by_logits(tmp_path):
    """Functions have no parameters, so another one of the same name must not go on with the first one's run."""
    images = 0.5 + 0.4 * (torch.rand(6, 1, 4, 4, generator=torch.Generator().manual_seed(2)) - 0.5)
    protocol = Protocol("p", (Attack("clean", "none"), Attack("r", "random_search", steps=2)))

    def make(sign):
        def model(x):
            return sign * Smooth().logits(x)

        return model

    labels = make(1)(images).argmax(1)
    for sign in (1, -1):
        if sign == -1:
            with pytest.raises(ValueError, match=r"model\.logits_sha256"):
                evaluate(make(sign), images, labels, folder=tmp_path / "run", eps=0.05, preset=protocol)
        else:
            evaluate(make(sign), images, labels, folder=tmp_path / "run", eps=0.05, preset=protocol)


def test_radii_that_look_alike_are_two(tmp_path):
    eps = (8 / 255, 0.0313725)
    images = 0.5 + 0.4 * (torch.rand(6, 1, 4, 4, generator=torch.Generator().manual_seed(2)) - 0.5)
    protocol = Protocol("p", (Attack("clean", "none"), Attack("r", "random_search", steps=2)))
    labels = Smooth()(images).argmax(1)
    evaluate(Smooth(), images, labels, folder=tmp_path / "run", eps=eps, preset=protocol)
    assert len(list((tmp_path / "run" / "units").iterdir())) == 3
    assert {float(row["eps"]) for row in rows_of(tmp_path / "run")} == {0.0, *eps}


def test_another_version_is_refused(whole, monkeypatch):
    module = sys.modules["pursamere._evaluate"]
    real = module.versions()
    monkeypatch.setattr(module, "versions", lambda: {**real, "torch": "1.0"})
    with pytest.raises(ValueError, match=r'versions\.torch is "2.* there, and "1.0" was asked for'):
        evaluation_case.run(whole[1])


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
        Attack("clean", "none"), Attack(LONG, "pgd", steps=2), Attack("first", "pgd", steps=2, samples=3),
        Attack("bpda", "apgd", gradient="identity", loss="cross_entropy", steps=2, survivors_only=True),
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

    with pytest.raises(RuntimeError, match=r"model must be deterministic: logit .* one by one"):
        planted(Batch(), tmp_path)


def test_what_cannot_be_run_is_said(tmp_path):
    images = torch.full((4, 1, 4, 4), 0.6)
    model = Smooth()

    def two_classes(x):
        return model.logits(x)[:, :2]

    protocol = Protocol(
        "p", (*PRESETS["standard"].attacks[:3], *[a for a in PRESETS["standard"].attacks if a.ere_weight])
    )
    protocol = Protocol("p", (*protocol.attacks, Attack("t", "apgd", loss="targeted_dlr", steps=2)))
    labels = two_classes(images).argmax(1)
    result = evaluate(two_classes, images, labels, folder=tmp_path / "run", eps=0.1, preset=protocol)
    assert result.skipped == {
        "transfer-bare": "there is no such model to transfer from",
        "ere-aware": "the defense has no expected reconstruction error of its own",
        "t": "its loss needs at least 4 classes, and there are 2",
    }


def test_global_state_is_left_alone(tmp_path):
    before = torch.get_rng_state(), torch.get_num_threads()
    evaluation_case.run(tmp_path / "run")
    assert torch.equal(torch.get_rng_state(), before[0])
    assert torch.get_num_threads() == before[1]
    assert torch.is_grad_enabled()


def test_a_run_keeps_the_threads_it_began_with(whole):
    with pytest.warns(UserWarning, match="evaluating with 1 CPU threads, as the run began, not 2"):
        evaluation_case.run(whole[1], threads=2)


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
        (("model", images, labels), {}, TypeError, "model must be callable, got str"),
    ]
    for arguments, options, kind, message in cases:
        with pytest.raises(kind, match=message):
            evaluate(*arguments, **{**good, **options})
    with pytest.raises(ValueError, match=r"labels must be in \[0, 4\), got \[0, 9\]"):
        evaluate(model, images, labels.clone().index_fill_(0, torch.tensor([3]), 9), **good)
    with pytest.raises(ValueError, match=r"kind must be one of 'none', 'pgd'.*, got 'guess'"):
        Attack("a", "guess")
    attack_cases = [
        ({"name": "../out", "kind": "pgd"}, "name must be letters"),
        ({"name": "=1+1", "kind": "pgd"}, "name must be letters"),
        ({"name": "a", "kind": "transfer"}, "sources are for kind 'transfer', which needs one"),
        ({"name": "a", "kind": "pgd", "sources": ("bare",)}, "sources are for kind 'transfer'"),
        ({"name": "a", "kind": "transfer", "sources": ("other_nosie",)}, "sources must be one of 'bare'"),
        ({"name": "a", "kind": "apgd", "ere_weight": 1.0}, "ere_weight is for kind 'pgd'"),
        ({"name": "a", "kind": "pgd", "samples": 0}, "samples must be at least 1"),
        ({"name": "a", "kind": "pgd", "sweep": True, "survivors_only": True}, "sweep must be of an attack on all samp"),
        ({"name": "a", "kind": "pgd", "steps": 0}, "steps must be at least 1"),
    ]
    for options, message in attack_cases:
        with pytest.raises(ValueError, match=message):
            Attack(**options)
    for attacks in ((Attack("a", "pgd"),), (Attack("clean", "none", samples=4),), ()):
        with pytest.raises(ValueError, match="the first attack, and no other, must be the images as they are"):
            Protocol("p", attacks)
    for dtype in (torch.float16, torch.bfloat16):
        with pytest.raises(TypeError, match="images must be float32 or float64"):
            evaluate(forbidden, images.to(dtype), labels, **good)
    with pytest.raises(ValueError, match="attack names must differ"):
        Protocol("p", (Attack("clean", "none"), Attack("a", "pgd"), Attack("a", "apgd")))
    assert not (tmp_path / "run").exists()


def test_a_truncated_unit_is_an_error_that_names_the_file(whole, tmp_path):
    folder = tmp_path / "run"
    evaluation_case.run(folder)
    file = next((folder / "units").iterdir())
    file.write_bytes(file.read_bytes()[:20])
    with pytest.raises(ValueError, match=file.name):
        evaluation_case.run(folder)


def test_presets_hold_what_the_protocol_asks_for():
    """Point 3 of the protocol: losses, gradients, black-box attacks and transfer."""
    full = PRESETS["full"].attacks
    for gradient in ("exact", "identity", "straight_through"):
        for kind in ("pgd", "apgd"):
            losses = {
                a.loss for a in full if (a.kind, a.gradient) == (kind, gradient) and a.steps >= 100 and a.restarts >= 5
            }
            assert {"cross_entropy", "margin", "dlr"} <= losses, (gradient, kind)
    assert any(a.steps == 1000 and a.samples == 32 for a in full)
    assert {"autoattack", "square", "random_search", "transfer"} <= {a.kind for a in full}
    assert {"bare", "other_noise", "fewer_steps"} <= {source for a in full for source in a.sources}
    assert any(a.ere_weight for a in full)
    assert not any(a.survivors_only for a in full)
    assert PRESETS["full"].left_out == ""
    for name in ("quick", "standard"):
        assert "AutoAttack" in PRESETS[name].left_out
    for preset in PRESETS.values():
        assert preset.attacks[0].name == "clean"


def test_purified_classifiers_are_attacked_through_every_gradient(tmp_path, monkeypatch):
    seen = set()
    real = ps.Purifier.forward

    def spy(self, x, gradient="exact"):
        if torch.is_grad_enabled() and x.requires_grad:
            seen.add((gradient, self.noise.seed, self.steps))
        return real(self, x, gradient)

    monkeypatch.setattr(ps.Purifier, "forward", spy)
    model, images, labels = evaluation_case.model_and_data(6)
    protocol = Protocol("p", tuple(
        Attack(a.name, a.kind, a.gradient, a.loss, 2, 1, a.sources, a.ere_weight) for a in PRESETS["standard"].attacks
    ))  # fmt: skip
    result = evaluate(model, images, labels, folder=tmp_path / "run", eps=0.001, preset=protocol, threads=1)
    assert {gradient for gradient, *_ in seen} == {"exact", "identity", "straight_through"}
    assert {("exact", 1, 2), ("exact", 0, 1)} <= seen  # another noise seed, half the steps
    assert result.skipped == {}
    assert math.isclose(result.worst_case[0.001].value, result.clean.value)
