"""The report of an evaluation: its numbers, its words, its pictures, and text that tries to be more than text."""

import base64
import csv
import html.parser
import io
import json
import re
import sys
from contextlib import redirect_stdout
from dataclasses import replace

import matplotlib
import numpy
import pytest
import torch
from nets import conv_classifier, conv_denoiser
from PIL import Image
from scipy import stats
from torch import nn

import pursamere as ps
from pursamere._evaluate import evaluate
from pursamere._extras import MissingExtraError
from pursamere.attacks import APGD, PGD, Clean, RandomSearch, Square
from pursamere.evaluation import PRESETS, Protocol
from pursamere.evaluation.folder import RunFolder
from pursamere.evaluation.plan import Plan
from pursamere.evaluation.units import Unit
from pursamere.report.html import html_page
from pursamere.report.markdown import escape, markdown_report
from pursamere.report.pictures import _choose

SAMPLES, CHUNK, EPS = 11, 4, (0.03, 0.08)
TINY = Protocol(
    "tiny",
    (
        Clean(),
        APGD("apgd-first", steps=2, samples=5),
        PGD("pgd-margin-bpda", gradient="identity", steps=2),
        PGD("pgd-margin", steps=3),
        Square("square", queries=5, survivors_only=True),
        PGD("sweep", steps=2, samples=6, sweep=True),
    ),
    "nearly everything",
)
BRIEF = Protocol("brief", (TINY.attacks[0], PGD("pgd-margin", steps=1)))
PNG = b"\x89PNG\r\n\x1a\n"


def tiny_model(channels=1):
    noise = ps.GaussianNoise(draws=2)
    purifier = ps.Purifier(
        conv_denoiser(channels),
        sigma=0.2,
        steps=1,
        step_size=0.2,
        radius=0.2,
        direction="score",
        noise=noise,
        micro_batch=4,
    )
    return ps.PurifiedClassifier(purifier, conv_classifier(channels))


def tiny_data(model, channels=1):
    images = torch.rand(SAMPLES, channels, 6, 6, generator=torch.Generator().manual_seed(3))
    labels = model(images).argmax(1)
    labels[2] = (labels[2] + 1) % 10  # one that is wrong as it is
    return images, labels


def run(folder, model=None, channels=1, preset=TINY, eps=EPS, **options):
    model = model or tiny_model(channels)
    images, labels = tiny_data(model, channels)
    return evaluate(model, images, labels, folder=folder, eps=eps, preset=preset, chunk=CHUNK, **options)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluation") / "run"
    return folder, run(folder, data="gray pixels")


def outcomes(folder):
    with open(folder / "outcomes.csv", newline="") as stream:
        return list(csv.DictReader(stream))


def tables(text):
    """The body rows of every table by the heading before it; cells as they stand."""
    found, heading = {}, ""
    for line in text.splitlines():
        if line.startswith("#"):
            heading = line.lstrip("# ")
        elif line.startswith("|"):
            cells = [cell.strip() for cell in line.strip("|").split("|")]
            found.setdefault(heading, []).append(cells)
    return {heading: rows[2:] for heading, rows in found.items()}


def accuracy(correct, count):
    low, high = stats.binomtest(correct, count).proportion_ci(method="wilson")
    return f"{correct / count:.3f} ({low:.3f} - {high:.3f})"


def pixels(file):
    content = file.read_bytes()
    assert content.startswith(PNG)
    return numpy.asarray(Image.open(io.BytesIO(content)).convert("RGB"))


class Page(html.parser.HTMLParser):
    """Which elements a page has, and its text."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.text, self.cells = [], "", []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag == "tr":
            self.cells.append(0)
        if tag in ("td", "th"):
            self.cells[-1] += 1

    def handle_data(self, data):
        self.text += data


@pytest.mark.slow
def test_the_tables_agree_with_the_outcomes(made):
    folder, _ = made
    found = tables((folder / "report.md").read_text())
    rows = outcomes(folder)
    clean = {row["sample"]: int(row["correct"]) for row in rows if row["attack"] == "clean"}
    for eps in EPS:
        expected = [["no attack", str(SAMPLES), accuracy(sum(clean.values()), SAMPLES)]]
        worst = dict(clean)
        for attack in TINY.attacks[1:-1]:
            here = [row for row in rows if row["attack"] == attack.name and float(row["eps"]) == eps]
            for row in here:
                worst[row["sample"]] &= int(row["correct"])
            attacked = [int(row["correct"]) for row in here if row["attacked"] == "1"]
            right, count = sum(attacked), len(attacked)
            broke = f"broke {count - right} of {count} survivors"
            expected.append([attack.name, str(count), broke if attack.survivors_only else accuracy(right, count)])
        expected.append(["**worst case**", f"**{SAMPLES}**", f"**{accuracy(sum(worst.values()), SAMPLES)}**"])
        assert [[cells[0], *cells[-2:]] for cells in found[f"eps {eps:.4g}"]] == expected
    sweep = {}
    for row in rows:
        if row["attack"] == "sweep" and row["attacked"] == "1":
            sweep.setdefault(float(row["eps"]), []).append(int(row["correct"]))
    assert found["Accuracy against eps"] == [
        ["sweep", f"{eps:.4g}", "6", accuracy(sum(right), 6)] for eps, right in sorted(sweep.items())
    ]


@pytest.mark.slow
def test_the_run_used_here_tells_something(made):
    _, result = made
    shares = [result.worst_case[eps].count for eps in EPS]
    assert 0 < shares[0] < result.clean.count < SAMPLES
    assert shares[1] < shares[0]


@pytest.mark.slow
def test_method_columns(made):
    folder, _ = made
    rows = {cells[0]: cells[1:4] for cells in tables((folder / "report.md").read_text())["eps 0.08"]}
    assert rows["pgd-margin-bpda"] == ["PGD: loss margin, steps 2, restarts 1", "identity (BPDA)", str(SAMPLES)]
    assert rows["apgd-first"] == ["APGD: loss cross entropy, steps 2, restarts 1", "exact", "5"]
    assert rows["square"][:2] == ["Square: queries 5", "none"]


def test_verdict_checks_and_reproduction_are_told(made):
    folder, result = made
    text = (folder / "report.md").read_text()
    summary = json.loads((folder / "summary.json").read_text())
    assert f"**Verdict: {summary['verdict']}**" in text
    told = {cells[0]: (cells[1], cells[2]) for cells in tables(text)["Signs of masked gradients"]}
    assert told == {
        check["name"]: (f"**{'pass' if check['passed'] else 'warn'}**", escape(check["detail"]))
        for check in summary["checks"]
    }
    config = json.loads((folder / "config.json").read_text())
    for value in (config["data"]["sha256"], config["model"]["sha256"], "gray pixels", torch.__version__):
        assert value in text
    assert "proves nothing" in text
    assert f"adversarial/apgd-first-eps{EPS[0]:g}-00000.safetensors" in text
    assert result.config["protocol"]["left_out"] in text


def test_the_worst_case_is_recomputed_by_the_code_shown(made, monkeypatch):
    pytest.importorskip("pandas", reason="pandas is not installed")
    folder, result = made
    code = re.search(r"((?:^    .*\n)*^    .*read_csv.*\n(?:^    .*\n)*)", (folder / "report.md").read_text(), re.M)[1]
    monkeypatch.chdir(folder)
    said = io.StringIO()
    with redirect_stdout(said):
        exec("\n".join(line[4:] for line in code.splitlines()), {})
    assert float(said.getvalue()) == pytest.approx(result.worst_case[EPS[0]].value)


def told(result, **changes):
    config = {**result.config, **changes.pop("config", {})}
    return markdown_report(replace(result, config=config, **changes), [], None)


def test_what_limits_the_figures_is_said(made):
    _, result = made
    model, protocol = result.config["model"], result.config["protocol"]
    full = json.loads(json.dumps({"attacks": PRESETS["full"].settings()["attacks"]}))
    assert f"{SAMPLES} samples: fewer than the 1,024" in told(result)
    assert "1024 samples." in told(result, clean=replace(result.clean, samples=1024))
    assert "Protocol tiny, a reduced version of the full one: nearly everything." in told(result)
    assert "what it leaves out is not stated" in told(result, config={"protocol": {**protocol, "left_out": ""}})
    assert "- The full protocol.\n" in told(result, config={"protocol": {**protocol, **full}})
    assert "Not run: square (too &#124; slow)." in told(result, skipped={"square": "too | slow"})
    assert "random" not in told(result).split("## Threat")[0]
    assert "The defense is random" in told(result, config={"model": {**model, "random": True}})
    assert "bitwise equal" in told(result)
    assert "bitwise equal" not in told(result, config={"model": {**model, "random": True}})


def test_radii_of_eight_bit_images_are_named(made):
    _, result = made
    eps = 8 / 255
    text = told(result, eps=(eps, 0.2), worst_case={eps: result.clean, 0.2: result.clean})
    assert "is 0.03137 (8/255), 0.2." in text


class Evil(nn.Module):
    """Its description and every name around it try to be Markdown and HTML."""

    text = '<script>alert("1")</script> | **b** `c` [d](javascript:e) &amp; \\| _f_ ![g](http://h/i.png) $x$'

    def __init__(self):
        super().__init__()
        self.model = conv_classifier()
        self.eval()

    def forward(self, x):
        return self.model(x)

    def __repr__(self):
        return f"{self.text}\n\n{self.text}\n# heading\n\n<img src=x onerror=y>\r<b>\x1b\u202e"


def test_names_stay_text(tmp_path):
    attack = PGD("a_b_-c_d__", steps=2)
    result = run(tmp_path, Evil(), preset=Protocol(Evil.text, (TINY.attacks[0], attack), Evil.text), data=Evil.text)
    page = Page((tmp_path / "report.html").read_text())
    # The page of the same result with harmless names has the same elements.
    config = {
        **result.config,
        "data": {**result.config["data"], "name": "d"},
        "model": {**result.config["model"], "description": "m\nm"},
        "protocol": {**result.config["protocol"], "name": "p", "left_out": "l"},
    }
    lines = [replace(line, attack=replace(line.attack, name=line.attack.name[:5])) for line in result.lines]
    pictures = {file.name: file.read_bytes() for file in tmp_path.glob("*.png")}
    text = markdown_report(replace(result, config=config, lines=lines), pictures, "u")
    plain = Page(html_page("t", text, pictures))
    kinds = [element for element, _ in page.elements]
    assert kinds == [element for element, _ in plain.elements]
    assert page.cells == plain.cells
    assert not {"script", "a", "b", "em"} & set(kinds)
    assert all(not name.startswith("on") for _, attributes in page.elements for name in attributes)
    assert (
        page.text.count(Evil.text) == 7
    )  # title twice, data, protocol, what it lacks, and twice in the model's description
    assert "a_b_-c_d__" in page.text
    assert "\u202e" not in page.text
    assert "\x1b" not in page.text
    rows = [line for line in (tmp_path / "report.md").read_text().splitlines() if line.startswith("|")]
    assert {line.count("|") for line in rows} <= {3, 4, 5, 6}


def test_the_page_needs_nothing_else(made):
    folder, _ = made
    page = Page((folder / "report.html").read_text())
    pictures = [attributes["src"] for element, attributes in page.elements if element == "img"]
    names = ["attacks.png", "accuracy.png", "loss.png", "pictures.png"]
    prefix = "data:image/png;base64,"
    assert [base64.b64decode(picture.removeprefix(prefix)) for picture in pictures] == [
        (folder / name).read_bytes() for name in names
    ]
    assert not {"link", "script", "iframe"} & {element for element, _ in page.elements}
    assert not re.search(r"(src|href)=.?https?:", (folder / "report.html").read_text())


def test_results_of_checks_are_colored():
    page = html_page("t", "| a | b |\n| --- | --- |\n| x | **warn** |\n| pass | **pass** |\n", {})
    assert '<td class="warn">warn</td>' in page
    assert page.count('<td class="pass">') == 1


@pytest.mark.parametrize("name", ["attacks.png", "accuracy.png", "loss.png", "pictures.png"])
def test_pictures_show_something(made, name):
    folder, _ = made
    picture = pixels(folder / name)
    assert min(picture.shape[:2]) > 300
    assert 0.02 < (picture < 250).any(axis=2).mean() < 0.9


@pytest.mark.slow
def test_same_run_same_bytes(made, tmp_path):
    folder, _ = made
    run(tmp_path, data="gray pixels")
    for name in ("attacks.png", "accuracy.png", "loss.png", "pictures.png"):
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes(), name
    texts = [
        re.sub("## Cost.*?## Repro", "", (path / "report.md").read_text(), flags=re.S) for path in (folder, tmp_path)
    ]
    assert texts[0] == texts[1]


def test_colors_are_kept(tmp_path):
    class Flat(nn.Module):
        def forward(self, x):
            return torch.stack([0.5 - x.mean((1, 2, 3)), x.mean((1, 2, 3)) - 0.5], 1)

    images = torch.zeros(3, 3, 4, 4)
    images[0, 0], images[1, 1], images[2, 2] = 1, 1, 1
    evaluate(Flat().eval(), images, torch.zeros(3, dtype=torch.int64), folder=tmp_path, eps=0.01, preset=BRIEF)
    picture = pixels(tmp_path / "pictures.png").reshape(-1, 3)
    for color in ((255, 0, 0), (0, 255, 0), (0, 0, 255)):
        assert (picture == color).all(axis=1).sum() > 1000


@pytest.mark.slow
def test_a_model_without_purifier_has_no_purified_rows(made, tmp_path):
    folder, _ = made
    run(tmp_path, conv_classifier(), preset=BRIEF)
    assert len(pixels(tmp_path / "pictures.png")) < 0.7 * len(pixels(folder / "pictures.png"))


@pytest.mark.slow
def test_rgb_with_purifier(tmp_path):
    run(tmp_path, channels=3, preset=BRIEF)
    picture = pixels(tmp_path / "pictures.png").astype(int)
    assert (numpy.ptp(picture, axis=2) > 60).mean() > 0.05


@pytest.mark.slow
@pytest.mark.parametrize(("channels", "keep"), [(1, False), (2, True)])
def test_no_grid_without_images_to_show(tmp_path, channels, keep):
    run(tmp_path, channels=channels, preset=BRIEF, keep_adversarial=keep)
    text = (tmp_path / "report.md").read_text()
    assert not (tmp_path / "pictures.png").exists()
    assert "pictures.png" not in text
    assert "were not kept, or are neither gray nor RGB" in text
    assert ("Adversarial images were not kept." in text) == (not keep)
    assert len([e for e, _ in Page((tmp_path / "report.html").read_text()).elements if e == "img"]) == 3


@pytest.mark.slow
def test_without_gradient_attacks_there_are_no_loss_curves(tmp_path):
    few = Protocol("p", (Clean(), RandomSearch("random-search", queries=2)))
    run(tmp_path / "two", preset=few)
    assert not (tmp_path / "two" / "loss.png").exists()
    text = (tmp_path / "two" / "report.md").read_text()
    assert "no loss curves" in text
    assert "No attack was run at other radii" in text
    assert "(accuracy.png)" in text
    run(tmp_path / "one", preset=few, eps=EPS[0])
    assert not (tmp_path / "one" / "accuracy.png").exists()
    assert "accuracy.png" not in (tmp_path / "one" / "report.md").read_text()


def test_broken_samples_come_first_with_the_attack_that_broke_them(made):
    folder, result = made
    rows = [row for row in outcomes(folder) if row["attack"] != "sweep" and float(row["eps"]) in (0, EPS[1])]
    order = [attack.name for attack in TINY.attacks]
    units = [
        Unit(attack, eps, chunk, range(first, min(first + CHUNK, SAMPLES)))
        for chunk, first in enumerate(range(0, SAMPLES, CHUNK))
        for attack in TINY.attacks
        for eps in ((0.0,) if attack.name == "clean" else EPS)
        if attack.samples is None or first < attack.samples
    ]
    chosen = _choose(result, RunFolder(folder, result.config, result.environment), Plan([units], {}))
    wrong = {int(row["sample"]) for row in rows if row["attack"] == "clean" and row["correct"] == "0"}
    fell = {int(row["sample"]) for row in rows if row["correct"] == "0"} - wrong
    assert wrong == {2}
    assert 0 < len(fell) < 8 < SAMPLES - len(wrong)
    expected = sorted(fell) + sorted(set(range(SAMPLES)) - fell - wrong)
    assert [row for row, _ in chosen] == expected[:8]
    for row, unit in chosen:
        attacked = [r for r in rows if int(r["sample"]) == row and r["attacked"] == "1" and r["attack"] != "clean"]
        broke = [r for r in attacked if r["correct"] == "0"]
        if broke:
            assert unit.attack.name == min((r["attack"] for r in broke), key=order.index)
        else:
            assert unit.attack.name == min(attacked, key=lambda r: float(r["margin"]))["attack"]


@pytest.mark.slow
def test_matplotlib_is_left_as_it_was(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)  # importing it now fails
    before = matplotlib.rcParams.copy()
    model = tiny_model()
    state = torch.get_rng_state()
    run(tmp_path, model, preset=BRIEF)
    assert matplotlib.rcParams.copy() == before
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("package", ["markdown", "matplotlib.figure"])
def test_a_missing_package_is_told_before_any_work(tmp_path, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtraError, match=r"pursamere\[evaluation\]"):
        run(tmp_path / "run")
    assert not (tmp_path / "run").exists()
