"""The experiments still make the files in docs/results: same rows, same format."""

import csv
import importlib
import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import pursamere as ps
from pursamere.datasets import Dataset
from pursamere.pretrained import Pretrained, make_purifier
from pursamere.training import ClassifierConfiguration, configuration

ROOT = Path(__file__).parents[1]
NAMES = (
    "digits-sweep", "digits-table", "digits-classifiers", "mnist-sweep", "mnist-table", "cifar10-sweep",
    "cifar10-table", "cifar10-radii", "cifar10-budget",
)  # fmt: skip


@pytest.fixture(scope="module")
def experiments():
    """Their modules have names like "run", which the other tests shall not see."""
    before = set(sys.modules)
    sys.path.insert(0, str(ROOT / "experiments"))
    try:
        yield importlib.import_module("run").EXPERIMENTS
    finally:
        sys.path.remove(str(ROOT / "experiments"))
        for name in set(sys.modules) - before:
            if Path(getattr(sys.modules[name], "__file__", None) or "/").is_relative_to(ROOT / "experiments"):
                del sys.modules[name]


IN_THE_README = {
    "none": "no purifier",
    "adversarial training": "adversarially trained, no purifier",
    "PurSAMERE, ERE": "PurSAMERE, ERE, rho 0.05",
    "ScoreOpt-O": "scoreopt_o",
    "likelihood maximization": "likelihood_maximization",
    "DiffPure, fixed noise": "diffpure_fixed_noise",
    "score without SAM, before the adversarially trained classifier": "adversarially trained, score without SAM",
    "PurSAMERE, score": "PurSAMERE, score, rho 0.05",
    "the same, fine-tuned with 10 % clean images": "adversarially trained further, no purifier",
    "purifier (score), its classifier adversarially trained behind it":
        "trained behind the purifier, score without SAM",
    "purifier (score), classifier trained on clean images": "undefended, score without SAM",
}  # fmt: skip


def published(name):
    tables = ("digits-table", "digits-classifiers", "mnist-table", "cifar10-table")
    file = f"{name.removesuffix('-table')}-outcomes" if name in tables else name
    with open(ROOT / "docs" / "results" / f"{file}.csv", newline="") as stream:
        return list(csv.reader(stream))


@pytest.mark.parametrize("name", NAMES)
def test_the_rows_are_those_of_the_published_results(experiments, name):
    names = list(dict.fromkeys(row[0] for row in published(name)[1:]))
    assert [row.name for row in experiments[name].rows] == names


@pytest.mark.parametrize("name", ["digits-table", "digits-classifiers", "mnist-table", "cifar10-table"])
def test_the_published_introductions_are_those_of_the_experiments(experiments, name):
    _, words = experiments[name].introduction.split("{conditions}")
    assert words in (ROOT / "docs" / "results" / f"{name.removesuffix('-table')}.md").read_text()


@pytest.mark.slow
def test_every_row_has_settings_that_its_defense_takes(experiments):
    networks = Pretrained(lambda y, sigma: y, torch.nn.Identity(), None, None, torch.nn.Identity())
    comparisons = [experiment for experiment in experiments.values() if hasattr(experiment, "rows")]
    assert len(comparisons) >= 9
    for experiment in comparisons:
        assert len({row.name for row in experiment.rows}) == len(experiment.rows)
    for row in (row for experiment in comparisons for row in experiment.rows):
        model = row.model(networks)
        if row.passes:
            assert 0 < model.purifier.network_passes.total <= row.passes
        elif row.defense is None:
            assert model is networks.undefended


@pytest.mark.parametrize(("name", "passes"), [("mnist-table", 16), ("cifar10-table", 8)])
def test_the_purifiers_of_a_table_take_the_same_passes(experiments, name, passes):
    networks = Pretrained(lambda y, sigma: y, torch.nn.Identity(), None, None, torch.nn.Identity())
    purifiers = [row.model(networks).purifier for row in experiments[name].rows if row.defense]
    assert len(purifiers) > 3
    for purifier in purifiers:
        assert passes - 2 < purifier.network_passes.total <= passes  # steps of several passes may leave one over


@pytest.mark.parametrize(("name", "radii"), [("mnist", 2), ("cifar10", 1)])
def test_the_figures_in_the_readme_are_those_of_the_tables(name, radii):
    table = (ROOT / "docs" / "results" / f"{name}.md").read_text().split("\n## ")[1:]
    published = [{tuple(line.strip("| ").replace("**", "").split(" | ")[index] for index in (0, 1, 2, 8))
                  for line in part.splitlines() if line.count(" | ") == 9} for part in table]  # fmt: skip
    readme = (ROOT / "README.md").read_text().split(f"run.py {name}-table")[1].split("\n\n")[1].splitlines()[2:]
    assert len(readme) >= 4
    for line in readme:
        defense, passes, clean, *worst = line.strip("| ").split(" | ")
        assert len(worst) == radii == len(published)
        for found, known in zip(worst, published, strict=True):
            assert (IN_THE_README.get(defense, defense), passes, clean, found) in known, line


@pytest.mark.parametrize("name", ["cifar10-radii", "cifar10-budget"])
def test_the_published_worst_cases_are_those_of_the_published_outcomes(name):
    with open(ROOT / "docs" / "results" / f"{name}-outcomes.csv", newline="") as stream:
        outcomes = list(csv.DictReader(stream))
    header, *rows = published(name)
    for setting, clean, *worst in rows:
        fell = {}
        for row in (row for row in outcomes if row["defense"] == setting):
            fell.setdefault(float(row["eps"]), []).append(row["fell_to"])
        assert [f"{255 * eps:.0f}/255" for eps in fell] == [column.removeprefix("worst_") for column in header[2:]]
        assert [f"{attacks.count('') / len(attacks):.3f}" for attacks in fell.values()] == worst
        assert {f"{1 - attacks.count('clean') / len(attacks):.3f}" for attacks in fell.values()} == {clean}


def test_the_published_differences_are_those_of_the_published_outcomes(experiments, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["run.py", "paired"])
    sys.modules["run"].main()
    assert capsys.readouterr().out == (ROOT / "docs/results/paired.md").read_text()


def test_the_recommended_settings_are_a_row_of_the_table(experiments):
    (row,) = [row for row in experiments["mnist-table"].rows if row.name == "PurSAMERE, score, rho 0.05"]
    networks = Pretrained(lambda y, sigma: y, torch.nn.Identity(), None, None, torch.nn.Identity())
    expected = make_purifier("mnist", networks.denoiser, micro_batch=16)
    assert row.model(networks).purifier.extra_repr() == expected.extra_repr()


@pytest.mark.slow
@pytest.mark.parametrize(("name", "first"), [("digits-sweep", 11), ("digits-table", 0)])
def test_a_tiny_run_writes_files_like_the_published_ones(experiments, tmp_path, monkeypatch, capsys, name, first):
    small = replace(experiments[name], rows=experiments[name].rows[first : first + 1])
    monkeypatch.setitem(experiments, name, small)
    monkeypatch.setattr(
        sys, "argv", ["run.py", name, "-o", str(tmp_path / "runs"), "--samples", "2", "--write", str(tmp_path)]
    )
    sys.modules["run"].main()
    said = capsys.readouterr()
    assert small.rows[0].name in said.out
    written = sorted(path.name for path in tmp_path.glob("*.*"))
    assert written == (["digits-sweep.csv"] if name == "digits-sweep" else ["digits-outcomes.csv", "digits.md"])
    with open(next(tmp_path.glob("*.csv")), newline="") as stream:
        header, *rows = csv.reader(stream)
    assert header == published(name)[0]
    assert {row[0] for row in rows} == {small.rows[0].name}
    if name == "digits-table":
        mine, theirs = ((folder / "digits.md").read_text().splitlines() for folder in (tmp_path, ROOT / "docs/results"))
        changing = re.compile(r"^\d+|torch \S+ \(.*?\)")  # samples, version and machine
        assert [changing.sub("", line) for line in mine[:13]] == [changing.sub("", line) for line in theirs[:13]]
        assert mine[6].startswith("2 digits of the test split, preset `standard`, torch ")


def test_the_settings_of_every_training_are_valid(experiments):
    rows = [row for experiment in experiments.values() for row in getattr(experiment, "rows", ())]
    trainings = [row.classifier for row in rows if hasattr(row.classifier, "settings")]
    assert {training.name for training in trainings} >= {"clean", "adversarial"}
    for training in trainings:
        assert configuration(ClassifierConfiguration, training.settings).dataset in ("digits", "mnist")


@pytest.mark.slow
def test_a_classifier_is_trained_once_with_the_threads_of_the_experiment(experiments, tmp_path, monkeypatch):
    networks = importlib.import_module("networks")
    settings = {"dataset": "digits", "steps": 2, "validate_every": 2}
    first = networks.Training("first", settings)
    second = networks.Training("second", {**settings, "steps": 1, "validate_every": 1}, first)
    threads = torch.get_num_threads()
    trained = []

    def train(settings, folder, **options):
        trained.append(folder.name)
        return networks_train(settings, folder, **options)

    networks_train = networks.train
    monkeypatch.setattr(networks, "train", train)
    for _ in range(2):
        folder = second.checkpoint(tmp_path, threads=1)
        (folder / "training.safetensors").unlink(missing_ok=True)  # as one may at the end
    assert trained == ["first", "second"]
    weights = {name: (tmp_path / name / "model.safetensors").read_bytes() for name in ("first", "second")}
    assert folder == tmp_path / "second"
    assert torch.get_num_threads() == threads
    assert weights["first"] != weights["second"]
    other = networks.Training("first", settings).checkpoint(tmp_path / "again", threads=1)
    assert (other / "model.safetensors").read_bytes() == weights["first"]
    with pytest.raises(ValueError, match="holds a training with steps=2, not 3"):
        networks.Training("first", {**settings, "steps": 3}).checkpoint(tmp_path, threads=1)
    elsewhere = networks.Training("other", {**settings, "seed": 1}).checkpoint(tmp_path, threads=1)
    with pytest.raises(ValueError, match="another checkpoint for initial"):
        networks.Training("second", {**second.settings, "initial": str(elsewhere)}).checkpoint(tmp_path, threads=1)
    with pytest.raises(ValueError, match="holds a training with"):
        networks.Training("second", second.settings).checkpoint(tmp_path, threads=1)
    (folder / "model.safetensors").unlink()
    second.checkpoint(tmp_path, threads=1)
    assert (folder / "model.safetensors").read_bytes() == weights["second"]


def test_the_classifiers_that_rows_name_exist(experiments):
    rows = [row for experiment in experiments.values() for row in getattr(experiment, "rows", ())]
    checkpoints = {row.classifier for row in rows if isinstance(row.classifier, Path)}
    assert checkpoints
    for checkpoint in checkpoints:
        assert ps.load_checkpoint(checkpoint).image_shape == (3, 32, 32), checkpoint


@pytest.mark.slow
def test_processes_divide_the_rows_of_an_experiment(experiments, tmp_path, monkeypatch, capsys):
    """A row that another process is at is left to it."""
    locks = importlib.import_module("locks")
    experiment = experiments["digits-table"]
    small = replace(experiment, rows=(experiment.rows[0], replace(experiment.rows[0], name="again")))
    monkeypatch.setitem(experiments, "digits-table", small)
    monkeypatch.setattr(sys, "argv", ["run.py", "digits-table", "-o", str(tmp_path), "--samples", "2"])
    with locks.lock(tmp_path / ".locks" / small.rows[0].name, wait=False) as mine:
        assert mine
        sys.modules["run"].main()
    assert capsys.readouterr().out.startswith("again ")
    assert not (tmp_path / small.rows[0].name).exists()


def test_adjusted_p_values_reject_what_the_step_down_method_does(experiments):
    """Holm's step-down method by its definition: reject in order while p <= alpha / (number left)."""
    paired = importlib.import_module("paired")
    values = [0.01, 0.04, 0.03, 0.005, 0.5, 0.04]
    adjusted = paired.holm(values)
    for alpha in (0.01, 0.03, 0.05, 0.06, 0.12, 0.13, 0.5, 0.9):
        rejected, ordered = set(), sorted(range(6), key=values.__getitem__)
        for left, i in zip(range(6, 0, -1), ordered, strict=True):
            if values[i] > alpha / left:
                break
            rejected.add(i)
        assert {i for i, p in enumerate(adjusted) if p <= alpha + 1e-12} == rejected


def test_outcomes_are_paired_by_sample_not_by_line(experiments, tmp_path):
    paired = importlib.import_module("paired")
    lines = ["a,0.1,2,pgd", "a,0.1,0,", "b,0.1,0,pgd", "b,0.1,2,", "a,0.1,1,", "b,0.1,1,clean"]
    (tmp_path / "x.csv").write_text("\n".join(["defense,eps,sample,fell_to", *lines]))
    assert paired.read(tmp_path / "x.csv") == {("0.1", "a"): ["", "", "pgd"], ("0.1", "b"): ["pgd", "clean", ""]}


def test_the_mixed_denoiser_scales_error_and_sensitivity_apart(experiments):
    module = importlib.import_module("denoiser_error")
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(3, 3, 8, 8, generator=generator)
    clean = x.repeat(module.DRAWS, 1, 1, 1)
    noisy, moved = (clean + 0.2 * torch.randn(clean.shape, generator=generator) for _ in range(2))

    def denoiser(y, sigma):
        return 0.3 + 0.5 * y.tanh()

    for b, c in ((1.0, 1.0), (0.5, 1.0), (1.0, 0.5), (0.25, 0.5)):
        mixed = module.Mixed(denoiser, x, noisy, b, c)
        torch.testing.assert_close(mixed(noisy, 0.2) - clean, b * (denoiser(noisy, 0.2) - clean))
        change = denoiser(moved, 0.2) - denoiser(noisy, 0.2)
        torch.testing.assert_close(mixed(moved, 0.2) - mixed(noisy, 0.2), c * change)
        for rows in (1, 4):
            with pytest.raises(RuntimeError, match=f"expected the noisy images of all clean ones, 6, got {rows}"):
                mixed(moved[:rows], 0.2)


def test_the_mixed_denoiser_is_given_the_noisy_images_that_it_knows(experiments):
    """So that the purifier is the ordinary one for b = c = 1, and denoises to the clean image for b = 0."""
    module = importlib.import_module("denoiser_error")
    classifier = torch.nn.Flatten()
    networks = Pretrained(lambda y, sigma: 0.3 + 0.5 * y.tanh(), classifier, None, None, classifier)
    x = torch.rand(5, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    purifier = make_purifier("cifar10", networks.denoiser, micro_batch=len(x), **module.SETTINGS)
    for model in module.models(networks, x, 1.0, 1.0):
        assert torch.equal(model(x), purifier(x).flatten(1))
    exact, _ = module.models(networks, x, 0.0, 0.5)
    torch.testing.assert_close(exact(x), x.flatten(1))


def test_steps_with_a_cosine_become_shorter_and_are_together_as_long(experiments):
    module = importlib.import_module("purifier_variants")
    x = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)) / 2 + 0.25
    settings = {"sigma": 0.2, "radius": 1.0, "step_size": 0.1, "ascent_radius": 0.0, "direction": "score"}

    def denoiser(y, sigma):
        return 0.3 + 0.2 * y.tanh()

    images = module.CosineStepSize(denoiser, steps=4, **settings).trace(x).images
    lengths = (images[1:] - images[:-1]).flatten(2).norm(dim=2)
    expected = torch.tensor([2.0, 1.0 + 0.5**0.5, 1.0, 1.0 - 0.5**0.5]) * 0.1 * 4 / 5
    torch.testing.assert_close(lengths, expected[:, None].expand(4, 2))
    ordinary, cosine = (kind(denoiser, steps=1, **settings) for kind in (ps.Purifier, module.CosineStepSize))
    assert torch.equal(ordinary(x), cosine(x))
    with pytest.raises(ValueError, match=r"ascent_radius must be 0, .* got 0\.05"):
        module.CosineStepSize(denoiser, **{**settings, "ascent_radius": 0.05})


def test_variants_of_the_purifier_are_compared_with_the_center(experiments, monkeypatch, capsys):
    generator = torch.Generator().manual_seed(0)
    classifier = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 8 * 8, 4)).eval().requires_grad_(False)
    images = torch.rand(6, 3, 8, 8, generator=generator)
    data = Dataset("small", images, classifier(images).argmax(1), ("a", "b", "c", "d"))
    networks = Pretrained(lambda y, sigma: y.tanh(), classifier, None, data, classifier)
    monkeypatch.setattr(ps, "load_pretrained", lambda name, device: networks)
    monkeypatch.setattr(ps.datasets, "load", lambda name, split: {("small", "validation"): data}[name, split])
    monkeypatch.setattr(sys, "argv", ["run.py", "cifar10-variants", "--samples", "5"])
    sys.modules["run"].main()
    header, _, *lines = capsys.readouterr().out.splitlines()
    assert header.startswith("| variant | passes | clean | PGD, BPDA |")
    cells = [line.removeprefix("| ").split(" | ") for line in lines]
    names = importlib.import_module("purifier_variants").purifiers(networks.denoiser)
    assert [row[:2] for row in cells] == [list(row) for row in zip(names, ("8", "8", "16", "16"), strict=True)]
    assert cells[0][-1].startswith("+0.000")
    for row in cells:
        clean, *attacked, worst = map(float, row[2:7])
        assert worst <= min(attacked) <= clean
