"""``experiments/public_cifar10.py`` loads what the hubs offer, from folders that the tests make."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from cases import tensor
from diffusion_families import diffusers_unet
from nets import conv_classifier

import pursamere as ps

SCRIPT = Path(__file__).parents[1] / "experiments" / "public_cifar10.py"
OPTIONS = "direction=score sigma=0.2 radius=8/255 steps=1 draws=2 ascent_radius=0"
ROBUSTBENCH = """\
from nets import conv_classifier

def load_model(name, dataset, threat_model):
    assert (name, dataset, threat_model) == ("Standard", "cifar10", "Linf")
    return conv_classifier(channels=3).train()
"""
diffusers = pytest.importorskip("diffusers", reason="needs diffusers")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A diffusers pipeline as the hub has it, a package robustbench, images, and an EDM network in a file."""
    folder = tmp_path_factory.mktemp("public")
    pipeline = diffusers.DDPMPipeline(diffusers_unet(3), diffusers.DDPMScheduler())
    pipeline.save_pretrained(folder / "ddpm", safe_serialization=True)
    (folder / "robustbench").mkdir()
    (folder / "robustbench" / "__init__.py").touch()
    (folder / "robustbench" / "utils.py").write_text(ROBUSTBENCH)
    (folder / "edm.py").write_text(
        "from diffusion_families import EDMNetwork\n\ndef network():\n    return EDMNetwork(3).eval()\n"
    )
    images = tensor(0, 4, 3, 8, 8, dtype=torch.float32).mul(255).byte().permute(0, 2, 3, 1).numpy()
    np.savez(folder / "data.npz", images=images, labels=np.arange(4) % 3)
    return folder


@pytest.fixture
def public(folder, monkeypatch):
    """The script as a module, with the variables that it reads."""
    monkeypatch.syspath_prepend(folder)
    for name, value in settings(folder).items():
        monkeypatch.setenv(name, value)
    spec = importlib.util.spec_from_file_location("public_cifar10", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    for name in ("robustbench", "robustbench.utils"):
        sys.modules.pop(name, None)


def settings(folder):
    return {
        "PUBLIC_DENOISER": str(folder / "ddpm"), "PUBLIC_CLASSIFIER": "robustbench:Standard",
        "PUBLIC_OPTIONS": OPTIONS, "PUBLIC_DEVICE": "cpu",
    }  # fmt: skip


def test_a_pipeline_and_a_robustbench_classifier(public, folder):
    x = tensor(1, 2, 3, 8, 8, dtype=torch.float32)
    pipeline = diffusers.DDPMPipeline.from_pretrained(folder / "ddpm")
    by_hand = ps.Purifier(
        ps.denoisers.from_diffusers(pipeline.unet.eval().requires_grad_(False), pipeline.scheduler),
        direction="score", sigma=0.2, radius=8 / 255, steps=1, ascent_radius=0, noise=ps.GaussianNoise(draws=2),
    )  # fmt: skip
    model = public.purified()
    assert torch.equal(model.purifier(x), by_hand(x))
    assert torch.equal(model(x), ps.PurifiedClassifier(by_hand, conv_classifier(channels=3))(x))
    assert torch.equal(public.undefended()(x), conv_classifier(channels=3)(x))


def test_an_edm_network_of_a_function(public, folder, monkeypatch):
    monkeypatch.setenv("PUBLIC_DENOISER", f"{folder / 'edm.py'}:network")
    y = tensor(1, 2, 3, 8, 8, dtype=torch.float32)
    torch.manual_seed(0)
    denoiser = public.denoiser()
    assert torch.equal(denoiser(y, 0.3), ps.denoisers.from_edm(denoiser.network)(y, 0.3))


def test_weights_that_execute_code_are_refused(public, folder, monkeypatch):
    pipeline = diffusers.DDPMPipeline(diffusers_unet(3), diffusers.DDPMScheduler())
    pipeline.save_pretrained(folder / "pickled", safe_serialization=False)
    monkeypatch.setenv("PUBLIC_DENOISER", str(folder / "pickled"))
    with pytest.raises(OSError, match="safetensors"):
        public.denoiser()


def test_a_timm_classifier_is_normalized(public, monkeypatch):
    def create_model(name, pretrained):
        assert (name, pretrained) == ("resnet18_cifar10", True)
        network = conv_classifier(channels=3)
        network.pretrained_cfg = {"mean": (0.1, 0.2, 0.3), "std": (0.5, 0.25, 2.0)}
        return network

    timm = ModuleType("timm")
    timm.create_model = create_model
    monkeypatch.setitem(sys.modules, "timm", timm)
    monkeypatch.setenv("PUBLIC_CLASSIFIER", "timm:resnet18_cifar10")
    x = tensor(2, 2, 3, 8, 8, dtype=torch.float32)
    normalized = torch.stack([(x[:, 0] - 0.1) / 0.5, (x[:, 1] - 0.2) / 0.25, (x[:, 2] - 0.3) / 2], dim=1)
    assert torch.allclose(public.undefended()(x), conv_classifier(channels=3)(normalized))


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("PUBLIC_CLASSIFIER", "", "PUBLIC_CLASSIFIER must be set"),
        ("PUBLIC_CLASSIFIER", "hub:Standard", "kind of PUBLIC_CLASSIFIER"),
        ("PUBLIC_OPTIONS", "sigm=1", "an option of pursamere"),
    ],
)
def test_bad_settings(public, monkeypatch, name, value, message):
    monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=message):
        public.purified()


@pytest.mark.slow
def test_processes_share_an_evaluation(folder):
    command = [
        sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone",
        "-m", "pursamere", "evaluate", "--data", str(folder / "data.npz"), "--model", f"{SCRIPT}:purified",
        "--samples", "4", "--chunk", "2",
        "--eps", "8/255", "--preset", "quick", "--threads", "1", "-q", "-o", str(folder / "run"),
    ]  # fmt: skip
    path = os.pathsep.join([str(folder), str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=600, check=False,
        env={**os.environ, **settings(folder), "PYTHONPATH": path},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "worst case" in (folder / "run" / "report.md").read_text()
