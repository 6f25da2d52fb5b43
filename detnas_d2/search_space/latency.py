"""Measured latency of every (layer, operation), as an additive table on disk."""

from __future__ import annotations

import json
import platform
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from detnas_d2.layers import ConvNormAct, get_norm
from detnas_d2.search_space.additive import AdditiveTable
from detnas_d2.search_space.shuffle_ops import build_block
from detnas_d2.search_space.space import PathSpace, SearchSpace, space_digest
from detnas_d2.utils.timing import in_turns, milliseconds


@dataclass(frozen=True)
class LatencyTable(AdditiveTable[float]):
    """Milliseconds of a backbone body, additive over layers.

    Args:
        space: name of the search space.
        input_size: (height, width) of the image.
        batch_size: images per measurement; milliseconds are of the whole batch.
        device: where it was measured, for people to read.
        layers: digest of the space's layers; "" in tables of before there were digests.
    """

    space: str
    input_size: tuple[int, int]
    batch_size: int
    device: str
    layers: str = ""

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=1)

    @staticmethod
    def from_json(text: str, space: PathSpace) -> LatencyTable:
        """The table in ``text``.

        Raises:
            ValueError: it is of another space or has another shape.
        """
        data: dict[str, Any] = json.loads(text)
        try:
            table = LatencyTable(
                base=float(data["base"]),
                entries=tuple(tuple(float(v) for v in row) for row in data["entries"]),
                space=data["space"],
                input_size=tuple(data["input_size"]),
                batch_size=int(data["batch_size"]),
                device=str(data["device"]),
                layers=str(data.get("layers", "")),
            )
        except KeyError as error:
            raise ValueError(f"latency table without key {error}") from None
        if table.space != space.name:
            raise ValueError(f"latency table of space {table.space!r}, expected {space.name!r}")
        if tuple(len(row) for row in table.entries) != space.cardinalities:
            raise ValueError(f"latency table does not have the shape of space {space.name!r}")
        if table.layers and table.layers != space_digest(space):
            raise ValueError(
                f"latency table of another space called {space.name!r}: its layers have other "
                "channels or operations; measure it again"
            )
        return table


@torch.no_grad()
def measure_latency(
    space: PathSpace,
    *,
    input_size: tuple[int, int],
    device: str = "cpu",
    batch_size: int = 1,
    repeats: int = 20,
    shuffle_method: int = 1,
) -> LatencyTable:
    """Measures every candidate block alone, in eval mode, float32.

    The table holds medians of ``repeats`` runs after a warm-up; the candidates of a layer are
    measured in turns, so that a slow moment of the machine falls on all of them.
    """
    assert isinstance(space, SearchSpace)
    norm = partial(get_norm, "BN")
    height, width = (-(-n // 2) for n in input_size)
    stem = ConvNormAct(3, space.stem_channels, 3, norm=norm, stride=2, bias=True)
    image = torch.rand(batch_size, 3, *input_size)
    base = _medians([stem], image, device, repeats)[0]
    entries = []
    for layer in space.layers:
        blocks = [build_block(layer, op, norm, shuffle_method) for op in layer.ops]
        x = torch.rand(batch_size, layer.in_channels, height, width)
        entries.append(tuple(_medians(blocks, x, device, repeats)))
        height, width = -(-height // layer.stride), -(-width // layer.stride)
    name = torch.cuda.get_device_name() if device.startswith("cuda") else platform.machine()
    threads = "" if device.startswith("cuda") else f", {torch.get_num_threads()} threads"
    return LatencyTable(
        base,
        tuple(entries),
        space.name,
        (input_size[0], input_size[1]),
        batch_size,
        f"{device} {name}{threads}",
        space_digest(space),
    )


def _medians(
    modules: Sequence[nn.Module], x: torch.Tensor, device: str, repeats: int
) -> list[float]:
    x = x.to(device)
    runs = [partial(module.to(device).eval(), x) for module in modules]
    warm_up = 2
    times = in_turns(partial(milliseconds, device=device), runs, repeats + warm_up)
    return [statistics.median(row[warm_up:]) for row in times]
