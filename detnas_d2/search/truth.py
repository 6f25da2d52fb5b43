"""Truth sets: networks of a space with the scores of their own trainings, in one small file.

What the fitness of a supernet is compared with, and what strategies search by table. The file is
JSON with a network per line, some 200 bytes each, to be kept next to a config.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from detnas_d2.search.cost_draws import BAND
from detnas_d2.search_space import Choices
from detnas_d2.search_space.space import PathSpace, space_digest
from detnas_d2.utils.errors import InputError
from detnas_d2.utils.io import write_text

VERSION = 1


@dataclass(frozen=True)
class TruthNetwork:
    """A network and what it scored.

    Attributes:
        path: its canonical text.
        choices: index of the operation of each layer.
        macs, params: of the searchable layers, as the search counts them.
        scores: of its trainings by :attr:`TruthSet.seeds`, in that order; fewer if some miss.
        band: whether it was drawn within a band around one cost, not over the range of costs.
        supernet: its fitness by the supernet; None if it was not evaluated.
        others: further scores by name: of other supernets, training-free, of a short training.
    """

    path: str
    choices: Choices
    macs: int
    params: int
    scores: tuple[float, ...]
    band: bool = False
    supernet: float | None = None
    others: Mapping[str, float] = field(default_factory=dict)

    @property
    def truth(self) -> float:
        """Mean of the scores."""
        return statistics.fmean(self.scores)


@dataclass(frozen=True)
class TruthSet:
    """Networks of one space, trained alone by one config.

    Attributes:
        space: its name.
        space_digest: of its layers and operations, see ``space.space_digest``.
        metric: "task/name" of the scores.
        dataset: that they were measured on.
        seeds: of the trainings.
        command: that made the set.
        versions: of libraries.
        networks: those over the range of costs first, each part in the order of its draw.
        band_macs: cost around which the networks of the band were drawn; 0 without any.
    """

    space: str
    space_digest: str
    metric: str
    dataset: str
    seeds: tuple[int, ...]
    command: str
    versions: Mapping[str, str]
    networks: tuple[TruthNetwork, ...]
    band_macs: int = 0

    @property
    def ranged(self) -> tuple[TruthNetwork, ...]:
        """The networks that were drawn over the range of costs."""
        return tuple(network for network in self.networks if not network.band)

    @property
    def banded(self) -> tuple[TruthNetwork, ...]:
        """All networks whose cost lies within the band, wherever they were drawn."""
        low, high = (1 - BAND) * self.band_macs, (1 + BAND) * self.band_macs
        return tuple(network for network in self.networks if low <= network.macs <= high)

    def balanced(self) -> TruthSet:
        """The same with as many seeds as nine of ten networks have, without the other networks.

        Of a set that is not finished, or some of whose trainings failed.
        """
        counts = sorted(len(network.scores) for network in self.networks)
        seeds = counts[len(counts) // 10]
        kept = [network for network in self.networks if len(network.scores) >= seeds]
        cut = tuple(replace(network, scores=network.scores[:seeds]) for network in kept)
        return replace(self, seeds=self.seeds[:seeds], networks=cut)

    def check_space(self, space: PathSpace) -> None:
        """Raises InputError if the networks are of another space."""
        if self.space_digest != space_digest(space):
            raise InputError(
                f"the truth set is of another space: of {self.space!r} with digest "
                f"{self.space_digest}, expected {space.name!r} with {space_digest(space)}"
            )


def write_truth(file: str, truth: TruthSet) -> None:
    """Writes a truth set, atomically; scores to four decimals."""
    header = asdict(truth)
    networks = header.pop("networks")
    lines = [json.dumps(_rounded(network), allow_nan=False) for network in networks]
    head = json.dumps({"version": VERSION, **header}, indent=1, allow_nan=False)
    body = ",\n  ".join(lines)
    write_text(file, f'{head[:-2]},\n "networks": [\n  {body}\n ]\n}}\n')


def _rounded(network: Mapping[str, Any]) -> dict[str, Any]:
    supernet = network["supernet"]
    return {
        **network,
        "scores": [round(score, 4) for score in network["scores"]],
        "supernet": None if supernet is None else round(supernet, 4),
        "others": {name: float(f"{value:.6g}") for name, value in network["others"].items()},
    }


def read_truth(file: str) -> TruthSet:
    """The truth set that a file holds.

    Raises:
        InputError: naming the file, and the key or network that is wrong.
        OSError: it cannot be read.
    """
    with open(file, encoding="utf-8") as text:
        try:
            values = json.load(text, parse_constant=_refuse)
        except ValueError as error:
            raise InputError(f"{file}: no JSON ({error}); expected a truth set") from None
    if not isinstance(values, dict) or values.pop("version", None) != VERSION:
        raise InputError(f'{file}: expected a truth set, with "version": {VERSION}')
    problem = _problem(values, _HEADER)
    if problem:
        raise InputError(f"{file}: {problem}")
    networks = []
    for number, entry in enumerate(values["networks"], start=1):
        problem = _problem(entry, _NETWORK) or _disagreement(entry, values)
        if problem:
            raise InputError(f"{file}: network {number}: {problem}")
        tuples = {key: tuple(entry[key]) for key in ("choices", "scores")}
        networks.append(TruthNetwork(**{**entry, **tuples}))
    if len({network.choices for network in networks}) != len(networks):
        raise InputError(f"{file}: a network is there twice; expected distinct paths")
    return TruthSet(**{**values, "seeds": tuple(values["seeds"]), "networks": tuple(networks)})


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not allowed")


def _problem(values: Any, checks: Mapping[str, Callable[[Any], bool]]) -> str:
    """What is wrong with a mapping, "" if nothing is."""
    if not isinstance(values, dict) or values.keys() != checks.keys():
        found = sorted(values) if isinstance(values, dict) else values
        return f"{str(found)[:100]}: expected the keys {', '.join(checks)}"
    wrong = [key for key, check in checks.items() if not check(values[key])]
    return f"{wrong[0]} is {repr(values[wrong[0]])[:80]}" if wrong else ""


def _disagreement(entry: Mapping[str, Any], header: Mapping[str, Any]) -> str:
    ops = len(entry["path"].replace("/", " ").split())
    if ops != len(entry["choices"]):
        return f"a path of {ops} operations, and {len(entry['choices'])} choices"
    if len(entry["scores"]) > len(header["seeds"]):
        return f"{len(entry['scores'])} scores for {len(header['seeds'])} seeds"
    return ""


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 0


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _list_of(check: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and all(map(check, value))


def _dict_of(check: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, dict) and all(map(check, value.values()))


_HEADER: dict[str, Callable[[Any], bool]] = {
    "space": _is_text,
    "space_digest": _is_text,
    "metric": _is_text,
    "dataset": _is_text,
    "seeds": _list_of(_is_count),
    "command": _is_text,
    "band_macs": _is_count,
    "versions": _dict_of(_is_text),
    "networks": lambda value: isinstance(value, list) and bool(value),
}
_NETWORK: dict[str, Callable[[Any], bool]] = {
    "path": _is_text,
    "choices": _list_of(_is_count),
    "macs": _is_count,
    "params": _is_count,
    "scores": lambda value: _list_of(_is_number)(value) and bool(value),
    "band": lambda value: isinstance(value, bool),
    "supernet": lambda value: value is None or _is_number(value),
    "others": _dict_of(_is_number),
}
