"""What the operations are timed on, and against what."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

import pursamere as ps
from pursamere import functional
from pursamere.noise import NoiseBank

SIGMA, ASCENT_RADIUS, STEP_SIZE, RADIUS = 0.2, 0.05, 0.16, 0.1
# "perturb_bank" is perturb with a bank of noise, as the two ops that perturb their own result have it.
OPS = (
    "perturb",
    "perturb_bank",
    "residual",
    "residual_backward",
    "accumulate_ascend",
    "accumulate_ascend_perturb",
    "accumulate_descend",
    "accumulate_descend_perturb",
)
DESCENT = {"step_rule": "unit", "step_size": STEP_SIZE, "norm": "linf", "radius": RADIUS}


@dataclass(frozen=True)
class Case:
    """An op, the shape and types of its tensors, and for `residual` what was predicted."""

    op: str
    draws: int
    batch: int
    d: int
    network: torch.dtype = torch.float32  # images are float32
    kind: str = "denoised"

    @property
    def noise(self) -> ps.GaussianNoise:
        return ps.GaussianNoise(draws=self.draws)

    @property
    def moved_bytes(self) -> int:
        """What the op must move: inputs read once, outputs written once."""
        image = 4 * self.batch * self.d
        network = self.network.itemsize * self.draws * self.batch * self.d
        per_sample = 4 * self.batch
        bank = 4 * self.draws // 2 * self.d
        return {
            "perturb": image + network,
            "perturb_bank": image + network + bank,
            "residual": 2 * image + 2 * network + per_sample,
            "residual_backward": 2 * image + 2 * network,
            "accumulate_ascend": 3 * image + network + per_sample,
            "accumulate_ascend_perturb": 3 * image + 2 * network + per_sample + bank,
            "accumulate_descend": 4 * image + network,
            "accumulate_descend_perturb": 4 * image + 2 * network + bank,
        }[self.op]


@dataclass(frozen=True)
class Inputs:
    """Images [B, d], values per draw [K, B, d] and the noise: all of it, [K, 1, d], and as the library keeps it."""

    x: Tensor
    start: Tensor
    direct: Tensor
    per_draw: Tensor
    bank: Tensor
    noise: NoiseBank


def make_inputs(case: Case, generator: torch.Generator) -> Inputs:
    """Uniform values on the generator's device."""
    device = generator.device
    x, start, direct = torch.rand(3, case.batch, case.d, generator=generator, device=device)
    per_draw = torch.rand(case.draws, case.batch, case.d, generator=generator, device=device).to(case.network)
    every_draw, kept = case.noise.sample((1, case.d), device=device), case.noise.bank((case.d,), device)
    return Inputs(x, start, direct, per_draw, every_draw, kept)


def ours(case: Case, inputs: Inputs) -> Callable[[], object]:
    """The library's function."""
    i = inputs
    summed, perturbed = (i.per_draw, i.direct), (SIGMA, i.noise)
    return {
        "perturb": partial(functional.perturb, i.x, SIGMA, case.noise, dtype=case.network),
        "perturb_bank": partial(functional.perturb, i.x, *perturbed, dtype=case.network),
        "residual": partial(functional.residual, i.x, i.per_draw, SIGMA, case.noise, kind=case.kind),
        "residual_backward": raw_op(case, inputs),
        "accumulate_ascend": partial(functional.accumulate_ascend, i.x, *summed, ASCENT_RADIUS),
        "accumulate_ascend_perturb": partial(
            functional.accumulate_ascend_perturb, i.x, *summed, ASCENT_RADIUS, *perturbed
        ),
        "accumulate_descend": partial(functional.accumulate_descend, i.x, i.start, *summed, **DESCENT),
        "accumulate_descend_perturb": partial(
            functional.accumulate_descend_perturb, i.x, i.start, *summed, *perturbed, **DESCENT
        ),
    }[case.op]


def raw_op(case: Case, inputs: Inputs) -> Callable[[], object]:
    """The op under the library's function, which checks no arguments."""
    i, noise, ops = inputs, case.noise, torch.ops.pursamere
    perturb = (i.x, SIGMA, noise.draws, noise.seed, noise.antithetic, case.network)
    summed, perturbed = (i.per_draw, i.direct), (i.noise.values, SIGMA, noise.antithetic)
    arguments = {
        "perturb": perturb,
        "perturb_bank": (*perturb, 1.0, 0.0, i.noise.values),
        "residual": (i.x, i.per_draw, case.kind, SIGMA, noise.seed, noise.antithetic),
        "residual_backward": (i.per_draw, i.direct, *residual_factors(case)),
        "accumulate_ascend": (i.x, *summed, ASCENT_RADIUS),
        "accumulate_ascend_perturb": (i.x, *summed, ASCENT_RADIUS, *perturbed),
        "accumulate_descend": (i.x, i.start, *summed, *DESCENT.values()),
        "accumulate_descend_perturb": (i.x, i.start, *summed, *DESCENT.values(), *perturbed),
    }[case.op]
    return partial(getattr(ops, case.op.removesuffix("_bank")).default, *arguments)


def add_bank(x: Tensor, bank: Tensor) -> Tensor:
    return torch.add(x, bank, alpha=SIGMA)


def add_fresh(x: Tensor, draws: int, generator: torch.Generator) -> Tensor:
    return x + SIGMA * torch.randn(draws, *x.shape, generator=generator, device=x.device)


def reduce_residuals(r: Tensor, slope: float) -> tuple[Tensor, ...]:
    draws = r.shape[0]
    return r * (2 * slope / draws), r.sum(0) * (2 / draws), r.square().sum(dim=(0, 2)) / draws


def residual(x: Tensor, prediction: Tensor) -> tuple[Tensor, ...]:
    return reduce_residuals(x - prediction, -1)


def residual_factors(case: Case) -> tuple[float, float, float, float]:
    """What the derivative of a denoised prediction's residual is called with."""
    return -1.0, 1.0, -2.0 / case.draws, 2.0 / case.draws


def residual_backward(per_draw: Tensor, direct: Tensor, factors: tuple[float, ...]) -> tuple[Tensor, ...]:
    g, h, s, t = factors
    u = g * per_draw + h * direct
    return s * u, t * u.sum(0)


def score_residual(score: Tensor, bank: Tensor) -> tuple[Tensor, ...]:
    return reduce_residuals(-SIGMA * bank - SIGMA**2 * score, -(SIGMA**2))


def ascend(x: Tensor, per_draw: Tensor, direct: Tensor) -> tuple[Tensor, ...]:
    gradient = direct + per_draw.sum(0)
    norm = torch.linalg.vector_norm(gradient, dim=1)
    return x + ASCENT_RADIUS * gradient / norm[:, None], norm


def descend(x: Tensor, start: Tensor, per_draw: Tensor, direct: Tensor) -> Tensor:
    gradient = direct + per_draw.sum(0)
    moved = x - STEP_SIZE * gradient / torch.linalg.vector_norm(gradient, dim=1, keepdim=True)
    return torch.minimum(torch.maximum(moved, start - RADIUS), start + RADIUS).clamp(0, 1)


def ascend_perturb(x: Tensor, per_draw: Tensor, direct: Tensor, bank: Tensor) -> tuple[Tensor, ...]:
    point, norm = ascend(x, per_draw, direct)
    return point, norm, add_bank(point, bank)


def descend_perturb(x: Tensor, start: Tensor, per_draw: Tensor, direct: Tensor, bank: Tensor) -> tuple[Tensor, ...]:
    after = descend(x, start, per_draw, direct)
    return after, add_bank(after, bank)


def eager(case: Case, inputs: Inputs) -> tuple[Callable[..., object], tuple[Tensor, ...]]:
    """The same in plain PyTorch: a function and its arguments."""
    i = inputs
    if case.kind == "score":
        return score_residual, (i.per_draw, i.bank)
    return {
        "perturb": (add_bank, (i.x, i.bank)),
        "perturb_bank": (add_bank, (i.x, i.bank)),
        "residual": (residual, (i.x, i.per_draw)),
        "residual_backward": (residual_backward, (i.per_draw, i.direct, residual_factors(case))),
        "accumulate_ascend": (ascend, (i.x, i.per_draw, i.direct)),
        "accumulate_ascend_perturb": (ascend_perturb, (i.x, i.per_draw, i.direct, i.bank)),
        "accumulate_descend": (descend, (i.x, i.start, i.per_draw, i.direct)),
        "accumulate_descend_perturb": (descend_perturb, (i.x, i.start, i.per_draw, i.direct, i.bank)),
    }[case.op]


def check_agreement(case: Case, inputs: Inputs) -> None:
    """Raise unless the library computes what plain PyTorch does in float32, to rounding."""
    function, arguments = eager(case, replace(inputs, per_draw=inputs.per_draw.float()))
    got, want = (r if isinstance(r, tuple) else (r,) for r in (ours(case, inputs)(), function(*arguments)))
    for number, (a, b) in enumerate(zip(got, want, strict=True)):
        rtol = 1e-4 if a.dtype == torch.float32 else 2e-3
        if a.shape != b.shape or not torch.allclose(a, b.to(a.dtype), rtol=rtol, atol=1e-6):
            raise RuntimeError(f"result {number} of {case} is not what plain PyTorch computes")


def candidates(
    case: Case, sets: Sequence[Inputs], generator: torch.Generator
) -> tuple[dict[str, list], dict[str, str]]:
    """Return what to time, by name a function for every set of inputs, and the reasons why others cannot be timed."""
    found: dict[str, list] = {"pursamere": [ours(case, inputs) for inputs in sets]}
    plain = [eager(case, inputs) for inputs in sets]
    found["eager"] = [partial(function, *arguments) for function, arguments in plain]
    compiled = torch.compile(plain[0][0], fullgraph=True)
    found["compiled"] = [partial(compiled, *arguments) for _, arguments in plain]
    not_run = {}
    try:
        found["compiled"][0]()
    except Exception as error:  # there is no list of what a missing compiler or triton may raise
        not_run["compiled"] = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        del found["compiled"]
    if case.op == "perturb":
        found["fresh"] = [partial(add_fresh, inputs.x, case.draws, generator) for inputs in sets]
    return found, not_run
