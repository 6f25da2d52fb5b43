"""Measured latency of every (layer, operation), as an additive table on disk."""

from __future__ import annotations

import json
import platform
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from detnas_d2.layers import ConvNormAct, NormFactory, ShuffleBlock, get_norm
from detnas_d2.layers.folded_norm import eval_block, eval_layer
from detnas_d2.layers.fused_shuffle import fused_forward
from detnas_d2.ops.autotune import AutotuneCache
from detnas_d2.search_space.additive import AdditiveTable
from detnas_d2.search_space.hit_costs import ROI_SIZE, is_region_layer, layer_sizes
from detnas_d2.search_space.hit_network import rules_of
from detnas_d2.search_space.hit_space import GenotypeSpace, HitSpace
from detnas_d2.search_space.operations import build_operation
from detnas_d2.search_space.shuffle_ops import build_block
from detnas_d2.search_space.space import LayerSpec, PathSpace, SearchSpace, space_digest
from detnas_d2.utils.timing import in_turns, milliseconds

Prepare = Callable[[nn.Module, Tensor], Callable[[], object]]
"""Makes of a module in eval mode and its input what is measured."""


@dataclass(frozen=True)
class LatencyTable(AdditiveTable[float]):
    """Milliseconds of networks, additive over layers.

    Args:
        space: name of the search space.
        input_size: (height, width) of the image that backbones see.
        batch_size: images per measurement; milliseconds are of the whole batch.
        device: where it was measured, for people to read.
        layers: digest of the space's layers; "" in tables of before there were digests.
        detector: of a table of whole detectors: runtime, machine, how it was fitted and checked;
            None: it is of a backbone's body.
    """

    space: str
    input_size: tuple[int, int]
    batch_size: int
    device: str
    layers: str = ""
    detector: dict[str, Any] | None = None

    def scaled(self, factor: float, rest: float) -> LatencyTable:
        """``rest`` and ``factor`` times this one."""
        rows = tuple(tuple(factor * value for value in row) for row in self.entries)
        return replace(self, base=rest + factor * self.base, entries=rows)

    @property
    def check(self) -> dict[str, Any] | None:
        """How a table of whole detectors was checked, None if it was not."""
        return (self.detector or {}).get("check")

    @property
    def about(self) -> str:
        """What it is of, in words."""
        if self.detector is None:
            return f"of backbones without neck and head, measured on {self.device}"
        check = self.check
        told = f"of whole detectors in {self.detector['runtime']}, measured on {self.device}"
        if not check:
            return f"{told}, not checked"
        return (
            f"{told}; {len(check['detectors'])} detectors rank as it says with tau "
            f"{check['tau']:.2f}, its error is {check['median_error']:.1%}"
        )

    def to_json(self) -> str:
        told = asdict(self)
        if self.detector is None:  # as such tables always were: searches compare them
            del told["detector"]
        return json.dumps(told, indent=1, allow_nan=False)

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
                detector=data.get("detector"),
            )
        except KeyError as error:
            raise ValueError(f"latency table without key {error}") from None
        if not isinstance(table.detector, (dict, type(None))):
            raise ValueError("latency table whose detector is no mapping")
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


def check_text(check: Mapping[str, Any]) -> str:
    """How a table was checked, in words: "32 other detectors: rank correlation ..."."""
    measured = [detector["measured"] for detector in check["detectors"]]
    return (
        f"{len(measured)} other detectors: rank correlation tau {check['tau']:.2f} (of two "
        f"measurements of them: {check['tau_of_two_rounds']:.2f}), error "
        f"{check['median_error']:.1%} in the median, {check['largest_error']:.1%} at most; "
        f"they take {min(measured):.2f} to {max(measured):.2f} ms"
    )


def in_pytorch(module: nn.Module, x: Tensor, *, fused: bool = True) -> Callable[[], object]:
    """A block, or a stem, as a backbone runs it without gradients: through the operators where they
    take it. What a forward pass decides once for all blocks is not counted.
    """
    if not fused:
        return partial(module, x)
    x = x.contiguous(memory_format=torch.channels_last)
    stem = module if isinstance(module, ConvNormAct) else None
    blocks = [] if stem is not None else [module]
    autotune = AutotuneCache() if x.is_cuda else None
    whole = partial(fused_forward, stem, blocks, None, x, {len(blocks)}, autotune=autotune)
    if whole() is None:
        return partial(module, x)
    if autotune is not None:  # it has chosen, block by block
        return whole
    if stem is not None:
        return partial(eval_layer, stem, x)
    assert isinstance(module, ShuffleBlock)  # others run their modules
    return partial(eval_block, module, x)


@torch.no_grad()
def measure_latency(
    space: PathSpace,
    *,
    input_size: tuple[int, int],
    device: str = "cpu",
    batch_size: int = 1,
    repeats: int = 20,
    shuffle_method: int = 1,
    regions: int = 1000,
    region: int = ROI_SIZE,
    prepare: Prepare = in_pytorch,
) -> LatencyTable:
    """Measures every candidate block alone, in eval mode, float32.

    The table holds medians of ``repeats`` runs after a warm-up; the candidates of a layer are
    measured in turns, so that a slow moment of the machine falls on all of them. Of a Hit-Detector
    it has the searchable layers of all parts, and a base of 0.

    Args:
        regions: that layers of a two-stage head see; region: their height and width.
        prepare: of another runtime than PyTorch.
    """
    norm = partial(get_norm, "BN")
    medians = partial(_medians, device=device, repeats=repeats, prepare=prepare)
    base, entries = 0.0, []
    if isinstance(space, SearchSpace):
        stem = ConvNormAct(3, space.stem_channels, 3, norm=norm, stride=2, bias=True)
        base = medians([stem], [torch.rand(batch_size, 3, *input_size)])[0]
    for part, layer in searched_layers(space):
        blocks = layer_blocks(part, layer, norm, shuffle_method)
        of_regions = is_region_layer(part, layer)
        batch = regions * batch_size if of_regions else batch_size
        shapes = layer_sizes(part, layer, input_size, region)
        inputs = [torch.rand(batch, layer.in_channels, *shape) for shape in shapes]
        # The subnets of a one-stage head for classes and for boxes are alike.
        copies = 2 if part == "head" and not of_regions else 1
        entries.append(tuple(copies * value for value in medians(blocks, inputs)))
    name = torch.cuda.get_device_name(device) if device.startswith("cuda") else platform.machine()
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


def searched_layers(space: PathSpace) -> list[tuple[str, LayerSpec]]:
    """(part, layer) of all layers."""
    if isinstance(space, HitSpace):
        return [(part, layer) for part, layers in space.parts for layer in layers]
    if isinstance(space, GenotypeSpace):
        raise ValueError(f"space {space.name!r}: expected the space at one number of channels")
    return [("backbone", layer) for layer in space.layers]


def layer_blocks(
    part: str, layer: LayerSpec, norm: NormFactory, shuffle_method: int = 1
) -> list[nn.Module]:
    """The blocks of a layer's candidates."""
    if part == "backbone":
        return [build_block(layer, op, norm, shuffle_method) for op in layer.ops]
    channels = layer.in_channels, layer.out_channels
    make = partial(build_operation, stride=layer.stride, norm=norm, rules=rules_of(part))
    return [make(op, *channels) for op in layer.ops]


def _medians(
    modules: Sequence[nn.Module],
    inputs: Sequence[Tensor],
    *,
    device: str,
    repeats: int,
    prepare: Prepare,
) -> list[float]:
    """Of each module on all inputs, one after the other."""
    placed = [x.to(device) for x in inputs]
    prepared = [
        [prepare(module, x) for x in placed]
        for module in (module.to(device).eval() for module in modules)
    ]
    runs = [partial(_run_all, each) for each in prepared]
    warm_up = 2
    times = in_turns(partial(milliseconds, device=device), runs, repeats + warm_up)
    return [statistics.median(row[warm_up:]) for row in times]


def _run_all(runs: Sequence[Callable[[], object]]) -> None:
    for run in runs:
        run()
