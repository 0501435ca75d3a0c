"""Settings in the ``repr`` and the ``state_dict()`` of a module."""

from __future__ import annotations

import json

import torch
from torch import Tensor, nn

__all__ = ["SettingsInState"]


class SettingsInState(nn.Module):
    """A module that saves its settings with its weights and refuses weights that were saved with other settings."""

    @property
    def _shown(self) -> dict[str, str]:
        """The ``repr`` of every setting, by name."""
        raise NotImplementedError

    def get_extra_state(self) -> Tensor:
        """Return the settings for ``state_dict()``, as JSON in a uint8 tensor, which every file format can hold."""
        return torch.tensor(list(json.dumps(self._own_state()).encode()), dtype=torch.uint8, device="cpu")

    def set_extra_state(self, state: Tensor) -> None:
        """Check that ``state`` was saved with the same settings: ``load_state_dict()`` loads weights, not settings.

        Raises:
            ValueError: the settings differ, or ``state`` does not hold settings.
        """
        try:
            saved = dict(json.loads(bytes(state.tolist())))
        except (AttributeError, TypeError, ValueError) as error:
            raise ValueError(f"the state of a {type(self).__name__} must hold its settings as JSON: {error}") from error
        own = self._own_state()
        different = [
            f"{name}={saved.get(name, 'nothing')} (here {own.get(name, 'nothing')})"
            for name in own | saved
            if own.get(name) != saved.get(name)
        ]
        if different:
            raise ValueError(
                f"the state was saved from a purifier with {', '.join(different)}: make the purifier with these "
                "settings, or load the denoiser's weights alone, with purifier.denoiser.load_state_dict()"
            )

    def _own_state(self) -> dict[str, str]:
        return {"purifier": type(self).__name__, **self._shown}
