"""Runs that are killed, resumed, divided or continued with something else."""

import re
import signal
import subprocess
import sys
import types
from pathlib import Path

import evaluation_case
import pytest
import torch
from evaluation_case import Smooth, rows_of
from nets import conv_classifier

import pursamere as ps
from pursamere import _evaluate
from pursamere._evaluate import evaluate
from pursamere._threads import cpu_threads
from pursamere.attacks import Clean, RandomSearch
from pursamere.evaluation import Protocol, case, engine
from pursamere.evaluation.folder import _shown

CASE = Path(evaluation_case.__file__)
# The images of the case are too small for Square in L2.
WITHOUT_SQUARE = Protocol(
    "tiny", tuple(each for each in evaluation_case.PROTOCOL.attacks if each.name != "square"), "without Square"
)


@pytest.fixture(autouse=True)
def no_report(monkeypatch):
    """Most tests here don't look at the report, which takes more time than the attacks; ``undo()`` brings it back."""
    monkeypatch.setattr(_evaluate, "write_summary", lambda *_: None)


def start(*arguments: str, torchrun: int = 0) -> subprocess.CompletedProcess:
    launcher = ["-m", "torch.distributed.run", f"--nproc-per-node={torchrun}", "--standalone"] if torchrun else []
    command = [sys.executable, *launcher, str(CASE), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """One run from beginning to end: (result, folder)."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    return evaluation_case.run(folder), folder


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
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
    monkeypatch.setattr(engine, "time", clock)
    with pytest.warns(UserWarning, match=r"RANK is 0 and WORLD_SIZE 2, .* pass shard=\(0, 1\)"):
        result = evaluation_case.run(folder)
    assert result.verdict == whole[0].verdict
    assert evaluation_case.run(tmp_path / "alone", shard=(0, 1)).verdict == whole[0].verdict


@pytest.mark.slow
def test_torchrun_is_the_same_to_the_byte(whole, tmp_path):
    done = start(str(tmp_path / "run"), torchrun=2)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines().count(whole[0].verdict) == 2, "each process has the result"
    assert (tmp_path / "run" / "outcomes.csv").read_bytes() == (whole[1] / "outcomes.csv").read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"eps": (0.05, 0.2)}, r"eps\[1\] is 0.1 there, and 0.2"),
        ({"seed": 1}, "seed is 0 there, and 1"),
        ({"norm": "l2", "preset": WITHOUT_SQUARE}, 'norm is "linf" there, and "l2"'),
        ({"chunk": 7}, "chunk is 4 there, and 7"),
        ({"preset": "quick"}, r"protocol\.name"),
    ],
)
def test_a_folder_of_another_configuration_is_refused_by_name(whole, change, named):
    before = (whole[1] / "outcomes.csv").read_bytes()
    with pytest.raises(ValueError, match=named) as error:
        evaluation_case.run(whole[1], **change)
    assert str(whole[1]) in str(error.value)
    assert (whole[1] / "outcomes.csv").read_bytes() == before


@pytest.mark.slow
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
    with pytest.raises(ValueError, match=r"was not created by pursamere evaluate and holds thesis\.txt"):
        evaluate(model, images, labels, **{**options, "folder": tmp_path})
    assert [file.name for file in tmp_path.iterdir()] == ["thesis.txt"]


def test_what_the_parameters_do_not_tell_is_told_by_logits(tmp_path):
    """Functions have no parameters, so another one of the same name must not go on with the first one's run."""
    images = 0.5 + 0.4 * (torch.rand(6, 1, 4, 4, generator=torch.Generator().manual_seed(2)) - 0.5)
    protocol = Protocol("p", (Clean(), RandomSearch("r", queries=2)))

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
    protocol = Protocol("p", (Clean(), RandomSearch("r", queries=2)))
    labels = Smooth()(images).argmax(1)
    evaluate(Smooth(), images, labels, folder=tmp_path / "run", eps=eps, preset=protocol)
    assert len(list((tmp_path / "run" / "units").iterdir())) == 3
    assert {float(row["eps"]) for row in rows_of(tmp_path / "run")} == {0.0, *eps}


def test_long_values_are_shown_where_they_differ():
    same = "a" * 200
    asked, there = _shown(f"{same} sigma=0.2 {same}", f"{same} sigma=0.3 {same}")
    assert "sigma=0.2" in asked
    assert "sigma=0.3" in there
    assert max(len(asked), len(there)) <= 86
    assert _shown(0.1, None) == ["0.1", "null"]


def test_clean_images_alone_are_no_worst_case(tmp_path):
    images = torch.rand(3, 1, 4, 4, generator=torch.Generator().manual_seed(2))
    labels, protocol = Smooth()(images).argmax(1), Protocol("p", (Clean(),))
    result = evaluate(Smooth(), images, labels, folder=tmp_path / "run", eps=0.1, preset=protocol)
    assert result.verdict == f"no attack was run; clean {result.clean}"


def test_another_version_is_refused(whole, monkeypatch):
    real = case.versions()
    monkeypatch.setattr(case, "versions", lambda: {**real, "torch": "1.0"})
    with pytest.raises(ValueError, match=r'versions\.torch is "2.* there, and "1.0" was asked for'):
        evaluation_case.run(whole[1])


@pytest.mark.slow
def test_a_run_keeps_the_threads_it_began_with(whole):
    with pytest.warns(UserWarning, match="evaluating with 1 CPU threads, as the run began, not 2"):
        evaluation_case.run(whole[1], threads=2)


def test_micro_batches_are_those_of_the_threads_that_the_run_began_with(tmp_path):
    """Whether rows fill vectors depends on threads."""

    def denoiser(y, sigma):
        return y * (0.9 if torch.get_num_threads() == 1 else 0.9 + 1e-5 * len(y))

    purifier = ps.Purifier(denoiser, sigma=0.3, radius=0.2, steps=1, direction="score", noise=ps.GaussianNoise(draws=2))
    model, images = ps.PurifiedClassifier(purifier, conv_classifier()), torch.rand(4, 1, 8, 8)
    labels, protocol = torch.zeros(4, dtype=torch.long), Protocol("p", (Clean(),))
    common = {"folder": tmp_path / "run", "eps": (0.1,), "preset": protocol}
    sizes = evaluate(model, images, labels, threads=1, **common).config["model"]["micro_batches"]
    with cpu_threads(2):
        assert purifier.micro_batch_sizes(images) == (4,)
        with pytest.warns(UserWarning, match="as the run began"):
            again = evaluate(model, images, labels, **common)
    assert again.config["model"]["micro_batches"] == sizes
    assert sizes["purifier"][0] == 32


@pytest.mark.slow
def test_a_truncated_unit_is_an_error_that_names_the_file(whole, tmp_path):
    folder = tmp_path / "run"
    evaluation_case.run(folder)
    file = next((folder / "units").iterdir())
    file.write_bytes(file.read_bytes()[:20])
    with pytest.raises(ValueError, match=file.name):
        evaluation_case.run(folder)


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        '{"cost": {}, "compression": []}',
        '{"cost": {"images_per_second": "x", "peak_memory_mib": 1.0}, "compression": []}',
        '{"cost": {"images_per_second": 1.0, "peak_memory_mib": 1.0, "forward_passes": null}, "compression": []}',
        '{"cost": {"images_per_second": 1.0, "peak_memory_mib": 1.0}, "compression": [1]}',
        '{"cost": {"images_per_second": 1.0, "peak_memory_mib": 1.0}, "compression": [[0.1, null, 3]]}',
    ],
)
def test_damaged_measurements_are_an_error_that_names_the_file(tmp_path, content):
    labels, protocol = torch.zeros(4, dtype=torch.long), Protocol("p", (Clean(),))
    common = {"folder": tmp_path / "run", "eps": (0.1,), "preset": protocol}
    images = torch.full((4, 1, 4, 4), 0.5)
    cost = evaluate(Smooth(), images, labels, **common).cost
    assert evaluate(Smooth(), images, labels, **common).cost == cost
    (tmp_path / "run" / "measurements.json").write_text(content)
    with pytest.raises(ValueError, match=r"measurements.json is damaged: .*; remove it, and the same command"):
        evaluate(Smooth(), images, labels, **common)
