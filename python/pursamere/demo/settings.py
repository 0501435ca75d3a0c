"""What the demo does, in one record that also goes into its JSON file."""

from __future__ import annotations

from dataclasses import dataclass

MOST_SAMPLES = 512  # held-out images that there are, of either data set


@dataclass(frozen=True)
class Settings:
    """The defaults, those for the digits, were chosen on validation images, which the demo does not attack.

    Attributes:
        dataset: ``"digits"`` or ``"mnist"``.
        seed: of the weights and batches of the digits' classifier, and of the attacks' random starts.
        samples: number of held-out images attacked.
        eps: Linf radii of the attacks, in pixel units.
        bare_attack_steps: gradient steps of the attack on the classifier alone, which are cheap.
        attack_steps: gradient steps of each attack on the purified classifier.
        epochs: of the training of the digits' classifier.
        bandwidth: of the kernel density estimate of the digits.
        sigma: noise level of the purifier.
        draws: noise draws of the purifier.
        noise_seed: of the purifier's noise.
        steps: of the purifier.
        step_size: L2 length of a step of the purifier.
        ascent_radius: L2 length of the ascent (SAM) before each step.
        radius: Linf radius of the purifier's neighborhood. One purifier faces all eps, since a defender does not know
            them.
        direction: of the purifier, ``"ere"`` (the paper's) or ``"score"``.
        micro_batch: images that pass through the denoiser at a time; results may depend on it in the last bits.
    """

    dataset: str = "digits"
    seed: int = 0
    samples: int = 256
    eps: tuple[float, ...] = (0.10, 0.15)
    bare_attack_steps: int = 50
    attack_steps: int = 20
    epochs: int = 20
    bandwidth: float = 0.25
    sigma: float = 0.2
    draws: int = 8
    noise_seed: int = 0
    steps: int = 5
    step_size: float = 0.4
    ascent_radius: float = 0.05
    radius: float = 0.2
    direction: str = "ere"
    micro_batch: int = 32


SETTINGS = {
    "digits": Settings(),
    "mnist": Settings(
        dataset="mnist",
        samples=32,
        eps=(0.2, 0.3),
        attack_steps=10,
        sigma=0.5,
        draws=2,
        steps=4,
        step_size=3.0,
        radius=0.3,
        direction="score",
        micro_batch=8,
    ),
}
"""By data set."""
