"""What ``state_dict`` of a purifier keeps beside weights."""

import io

import pytest
import torch
from cases import tensor
from nets import ConvDenoiser, conv_denoiser, fixed_weights
from safetensors import torch as safetensors

import pursamere as ps


def test_a_state_carries_the_settings_and_refuses_others():
    """In each format that people save states in."""
    purifier = ps.Purifier(conv_denoiser(), sigma=0.3, radius=0.1)
    state = purifier.state_dict()
    twin = ps.Purifier(fixed_weights(ConvDenoiser(), 5), sigma=0.3, radius=0.1)
    for loaded in (state, through_torch(state), safetensors.load(safetensors.save(state))):
        assert twin.load_state_dict(loaded) == ([], [])
    x = tensor(0, 2, 1, 8, 8, dtype=torch.float32)
    assert torch.equal(twin(x), purifier(x))
    other = ps.Purifier(fixed_weights(ConvDenoiser(), 5), sigma=0.2, radius=0.1)
    before = {key: value.clone() for key, value in other.state_dict().items()}
    with pytest.raises(ValueError, match=r"a purifier with sigma=0\.3 \(here 0\.2\): make the purifier with these"):
        other.load_state_dict(state)
    assert all(torch.equal(value, before[key]) for key, value in other.state_dict().items())
    diffpure = ps.baselines.DiffPure(fixed_weights(ConvDenoiser(), 5))
    with pytest.raises(ValueError, match=r"with purifier=Purifier \(here DiffPure\), .*radius=0\.1 \(here nothing\)"):
        diffpure.load_state_dict(state)
    with pytest.raises(ValueError, match="must hold its settings as JSON"):
        twin.load_state_dict({**state, "_extra_state": torch.zeros(3, dtype=torch.uint8)})


def through_torch(state):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)
