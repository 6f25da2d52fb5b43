"""The recipe: what is chosen from data, machine and budget, as pure functions.

Two patterns, each with numbers of its own: ``small``, the demo's (a small detector, AdamW, networks
that go on from the supernet; for CPUs), and ``large``, the one for own data on GPUs. What a person
would set by hand follows from the data: sizes of images and anchors, numbers of proposals.
"""

from __future__ import annotations

from dataclasses import dataclass

from detnas_d2.recipe.amounts import Budget, millions
from detnas_d2.recipe.facts import DataFacts, Machine
from detnas_d2.search_space import build_cost_table
from detnas_d2.search_space.space import SPACES, SearchSpace
from detnas_d2.utils.errors import InputError

METHODS = ("detnas", "hit")
SMALL, LARGE = "small", "large"

_SIDES = {
    SMALL: (128, 160, 192, 224, 256, 320, 384),
    LARGE: (320, 384, 480, 576, 672, 800),
}
"""Shorter sides that images are resized to, pixels."""
_LEAST_OBJECT = 16
"""Pixels that small objects should keep: the finest level has one position in four pixels."""
_USUAL_SIDE = {SMALL: 128, LARGE: 480}
"""Side of data whose objects would be large enough in smaller images."""
OF_WEIGHTS = "of the weights"
HAND_MADE_OP = "3x3"
"""Of every layer of the hand-made network, ShuffleNetV2."""
_BATCH = {SMALL: 4, LARGE: 8}
_RATE = {SMALL: 0.003, LARGE: 0.01}
_NETWORK_RATE = {
    SMALL: {"detnas": 2.0, "hit": 1.0},
    LARGE: {"detnas": 0.5, "hit": 0.5},
}
"""Rate of a single network for one of the supernet, by method. Those that go on from a supernet for
a short time on a CPU want a high one (docs/measurements.md, "Rates of short trainings").
"""
_SPACES = {
    SMALL: ("detnas_demo", "detnas_small", "detnas_small_elastic", "detnas_large"),
    LARGE: ("detnas_small", "detnas_large", "detnas_small_elastic", "detnas_3.8G", "detnas_demo"),
}
"""In the order in which a budget is looked up."""
_USUAL_MACS = {SMALL: 48_000_000, LARGE: 300_000_000}
_LEAST_VALIDATION, _MOST_VALIDATION = 20, {SMALL: 200, LARGE: 2000}
_FEW_TIMES = 4
"""A validation set of its own that is larger than so many times the most is left alone: candidates
would take too long."""


@dataclass(frozen=True)
class Recipe:
    """Everything that is chosen before anything is measured.

    Attributes:
        pattern: SMALL or LARGE.
        space: of DetNAS, or the frame of Hit-Detector's network.
        max_macs: limit of the backbone at 224x224; 0: none.
        side, longest: shorter side of resized images, and what the longer one has at most.
        anchors: side of the anchors of each level, finest first, pixels of the resized image.
        ratios: height over width of anchors.
        batch: images of an update, all processes together; ``rate``: of learning in common.
        proposals, detections: of an image in testing, at most.
        validation: training images that score candidates, or that Hit-Detector's architecture
            parameters learn from; 0: a dataset of its own scores.
        scoring: images that score candidates.
        calibration: images of BatchNorm statistics.
        reasons: key of the above -> why, in a few words.
    """

    method: str
    pattern: str
    space: str
    max_macs: int
    side: int
    longest: int
    anchors: tuple[int, ...]
    ratios: tuple[float, ...]
    batch: int
    rate: float
    proposals: int
    detections: int
    validation: int
    scoring: int
    calibration: int
    reasons: tuple[tuple[str, str], ...] = ()

    @property
    def network_rate(self) -> float:
        """Rate that single networks learn at."""
        return self.rate * _NETWORK_RATE[self.pattern][self.method]


def choose(
    data: DataFacts,
    machine: Machine,
    method: str,
    macs: int | None = None,
    side: int = 0,
    space: str = "",
    why_space: str = OF_WEIGHTS,
) -> Recipe:
    """The recipe for some data on a machine.

    Args:
        macs: budget of the backbone at 224x224; None: the pattern's.
        side: shorter side of resized images; 0: chosen.
        space: that is searched, "" where the budget decides. Without ``macs`` it has no limit of
            multiply-adds but the pattern's, where that is one of its own.
        why_space: why it is given, in a few words.

    Raises:
        InputError: no space has networks on both sides of the budget, naming the ranges.
    """
    pattern = LARGE if machine.gpu else SMALL
    space, limit, why = _space(pattern, method, machine, macs, space, why_space)
    chosen, why_side = (side, "as large as the time allows") if side else _side(data, pattern)
    scale = chosen / data.short
    batch = _batch(pattern, machine)
    own = 0 < data.val <= _FEW_TIMES * _MOST_VALIDATION[pattern] and method == "detnas"
    validation = 0 if own else _validation(data.train, pattern, method)
    crowd = data.crowd
    return Recipe(
        method=method,
        pattern=pattern,
        space=space,
        max_macs=limit,
        side=chosen,
        longest=_multiple(chosen * min(max(data.elongation, 1.0), 2.0), 16),
        anchors=anchors(data.smallest * scale, data.large * scale),
        ratios=(1.0,) if data.aspects[0] >= 2 / 3 and data.aspects[1] <= 3 / 2 else (0.5, 1.0, 2.0),
        batch=batch,
        rate=_rate(pattern, batch),
        proposals=_between(_multiple(3 * crowd, 10), 50, 300) if pattern == SMALL else 1000,
        detections=_between(_multiple(2 * crowd, 10), 20, 100),
        validation=validation,
        scoring=validation or data.val,
        calibration=min(64 if pattern == SMALL else 128, data.train - validation),
        reasons=(("space", why), ("side", why_side)),
    )


def anchors(smallest: float, largest: float) -> tuple[int, ...]:
    """Five sizes in equal ratios from the 5 % to the 95 % quantile of object sizes (pixels).

    They span a factor of 2.5 at least, around their middle, so that no two are the same.
    """
    middle, span = (smallest * largest) ** 0.5, max((largest / smallest) ** 0.5, 2.5**0.5)
    low = max(middle / span, 8.0)
    high = max(middle * span, 2.5 * low)
    return tuple(round(low * (high / low) ** (level / 4)) for level in range(5))


def sides_up_to(recipe: Recipe) -> list[int]:
    """Sides of the recipe's pattern from its own down."""
    return [side for side in reversed(_SIDES[recipe.pattern]) if side <= recipe.side]


def _side(data: DataFacts, pattern: str) -> tuple[int, str]:
    wanted = data.short * _LEAST_OBJECT / data.small
    wanted = max(wanted, _USUAL_SIDE[pattern])
    sides = [side for side in _SIDES[pattern] if side <= data.short] or [_SIDES[pattern][0]]
    side = next((side for side in sides if side >= wanted), sides[-1])
    pixels = data.small * side / data.short
    return side, f"small objects keep {pixels:.0f} pixels"


def spaces_of(machine: Machine) -> tuple[str, ...]:
    """Search spaces of DetNAS in the order in which a budget is looked up."""
    return _SPACES[LARGE if machine.gpu else SMALL]


def _space(
    pattern: str, method: str, machine: Machine, macs: int | None, named: str, why_named: str
) -> tuple[str, int, str]:
    """Name, limit of multiply-adds (0: none) and why."""
    where = "on GPUs" if machine.gpu else "on a CPU"
    if method == "hit":
        return ("hit" if machine.gpu else "hit_tiny"), 0, f"usual {where}"
    limit = _USUAL_MACS[pattern] if macs is None else macs
    names = (named,) if named else _SPACES[pattern]
    fitting = [name for name in names if _holds(SPACES[name], limit)]
    if not fitting and macs is None:
        fitting, limit = [named], 0
    if not fitting:
        ranges = ", ".join(f"{name} {_range_text(SPACES[name])}" for name in names)
        raise InputError(
            f"--budget {Budget(macs=limit)}: expected a number of multiply-adds at 224x224 within "
            f"the range of a search space: {ranges}"
        )
    reason = "by --budget" if macs is not None else f"usual {where}"
    reason = why_named if named else reason
    return fitting[0], limit, f"{reason}; its networks have {_range_text(SPACES[fitting[0]])}"


def macs_range(space: SearchSpace) -> tuple[int, int]:
    """Multiply-adds of the cheapest and the most expensive path at 224x224."""
    table = build_cost_table(space, (224, 224)).macs
    return table.cheapest(), table.most_expensive()


def _holds(space: SearchSpace, macs: int) -> bool:
    low, high = macs_range(space)
    return low <= macs <= high


def _range_text(space: SearchSpace) -> str:
    low, high = macs_range(space)
    return f"{millions(low)} to {millions(high)}"


def _batch(pattern: str, machine: Machine) -> int:
    if pattern == SMALL:
        return _multiple(_BATCH[SMALL], machine.processes)
    return (_BATCH[LARGE] if machine.memory >= 10 else _BATCH[LARGE] // 2) * machine.processes


def _rate(pattern: str, batch: int) -> float:
    """AdamW's rate grows with the root of the batch, SGD's with the batch."""
    growth = batch / _BATCH[pattern]
    return _RATE[pattern] * (growth**0.5 if pattern == SMALL else growth)


def _validation(train: int, pattern: str, method: str) -> int:
    """A fifth of the training images, within bounds, and never more than a third; of Hit-Detector
    one half.
    """
    if method == "hit":
        return max(1, train // 2)
    wanted = _between(train // 5, _LEAST_VALIDATION, _MOST_VALIDATION[pattern])
    return max(1, min(wanted, train // 3))


def _multiple(value: float, of: int) -> int:
    """The least multiple that is not below."""
    return -int(-value // of) * of


def _between(value: float, low: int, high: int) -> int:
    return int(min(max(value, low), high))
