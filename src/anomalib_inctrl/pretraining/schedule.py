"""What the pre-training shows and asks for, and how fast it learns, from step to step."""

from __future__ import annotations

import math
from typing import NamedTuple

from anomalib_inctrl.data.procedural.category import KINDS

STEPS = 3200  # that the phases are given in; a run of another length scales them
_FLOOR = 0.01  # of a cycle's highest learning rate, where it ends
_WARMUP = 200


class Phase(NamedTuple):
    """A part of the training.

    Attributes:
        begins (int): Its first step out of :data:`STEPS`.
        rate (float | None): Highest learning rate of the cycle that begins with it, as a share of the whole run's;
            ``None`` to stay in the cycle of the phase before.
        kinds (tuple[float, float, float]): Shares of surfaces, objects and glyphs among the categories.
        siblings (float): How often a category is of its predecessor's family, and hard to tell from it.
        alike (float): How often all categories of a batch are, so that they are told apart by what they are alone.
        factors (dict[str, float]): What the objective's weights are multiplied by; 1 where a term is not named.
    """

    begins: int
    rate: float | None
    kinds: tuple[float, float, float]
    siblings: float
    alike: float
    factors: dict[str, float]


_BROAD = Phase(0, 1.0, KINDS, 0.5, 0.0, {})
PHASES = (
    _BROAD,
    # Few images tell by themselves whether they are normal: what `state` has to teach is restraint, and to learn it
    # while all else moves is in vain.
    _BROAD._replace(begins=1900, rate=None, factors={"state": 10.0}),
    # Patches have learned what alike means; image embeddings have yet to learn where the parts of a thing belong.
    # Categories that differ in colour or size teach nothing about that.
    Phase(
        2200,
        0.5,
        (0.35, 0.25, 0.4),
        0.5,
        0.7,
        {"relation": 0.6, "category": 6.0, "distance": 2.0, "caption": 0.3, "state": 0.0},
    ),
)


def phase_at(step: int, steps: int) -> Phase:
    """Find the phase of a step of a run of so many steps."""
    return [phase for phase in PHASES if phase.begins * steps <= step * STEPS][-1]


def first_step(phase: Phase, steps: int) -> int:
    """Find the first step of a phase in a run of so many steps, which may be beyond its end."""
    return math.ceil(phase.begins * steps / STEPS)


def rate_at(step: int, steps: int) -> float:
    """Learning rate of a step, as a share of the highest of the run; every cycle goes by :func:`cycle_rate`."""
    cycles = [(first_step(phase, steps), phase.rate) for phase in PHASES if phase.rate is not None]
    ends = [*(first for first, _ in cycles[1:]), steps]
    first, rate, end = [(*cycle, end) for cycle, end in zip(cycles, ends, strict=True) if cycle[0] <= step][-1]
    return rate * cycle_rate(step - first, end - first)


def cycle_rate(step: int, steps: int) -> float:
    """Learning rate of a step of one cycle, as a share of its highest: a rise, then half a cosine down."""
    warmup = min(_WARMUP, steps // 5)
    if step < warmup:
        return (step + 1) / warmup
    done = min((step - warmup) / max(steps - warmup, 1), 1)
    return _FLOOR + (1 - _FLOOR) * 0.5 * (1 + math.cos(math.pi * done))
