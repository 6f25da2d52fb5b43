"""Architectures of a config, both families: spaces, costs, paths and genotypes, and back."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import replace
from itertools import chain
from typing import Any

from detectron2.config import CfgNode
from torch import nn

from detnas_d2.analysis.complexity import analyze_model, padded_size
from detnas_d2.config.resolutions import cost_input, set_resolution
from detnas_d2.modeling.detnas.build import DECODED_BACKBONES
from detnas_d2.modeling.detnas.relaxed import RELAXED_DETNAS, RelaxedShuffleNet
from detnas_d2.modeling.hit.build import (
    at_neck_channels,
    candidate_ops,
    hit_network,
    part_specs,
    searched_channels,
    without_memory,
)
from detnas_d2.search.gradient.objective import decode_parts
from detnas_d2.search_space import CostTable, build_cost_table, space_of
from detnas_d2.search_space.candidates import ConditionalCosts, Costs
from detnas_d2.search_space.counting import Cost
from detnas_d2.search_space.elastic_space import ElasticHitSpace
from detnas_d2.search_space.genotype import Genotype
from detnas_d2.search_space.hit_costs import part_cost_table
from detnas_d2.search_space.hit_network import PARTS, get_hit_network
from detnas_d2.search_space.hit_space import GenotypeSpace, HitSpace
from detnas_d2.search_space.space import Path, PathSpace, SearchSpace
from detnas_d2.utils.errors import InputError


def is_relaxed(cfg: CfgNode) -> bool:
    """Whether the config describes a model with relaxed parts, which is searched by gradient."""
    if RELAXED_DETNAS in (cfg.MODEL.BACKBONE.NAME, cfg.MODEL.HIT.BOTTOM_UP):
        return True
    return bool(cfg.MODEL.HIT.SEARCHABLE_PARTS) and cfg.MODEL.HIT.STRATEGY == "gradient"


def is_sampled(cfg: CfgNode) -> bool:
    """Whether the config describes a Hit-Detector of which one path runs at a time."""
    return bool(cfg.MODEL.HIT.SEARCHABLE_PARTS) and cfg.MODEL.HIT.STRATEGY == "sampling"


def searched_space(cfg: CfgNode) -> PathSpace:
    """The sub-spaces of ``MODEL.HIT.SEARCHABLE_PARTS`` where they are sampled, with the channels of
    ``MODEL.HIT.NECK_CHANNELS`` where there are several; else DetNAS's.
    """
    channels = searched_channels(cfg)
    if not is_sampled(cfg):
        return space_of(cfg)
    parts = [part for part in PARTS if part in cfg.MODEL.HIT.SEARCHABLE_PARTS]
    specs = part_specs(cfg)
    space = HitSpace(hit_network(cfg), tuple((part, specs[part]) for part in parts))
    return ElasticHitSpace(space, channels) if channels else space


def space_costs(cfg: CfgNode, space: PathSpace, resolution: int | None = None) -> Costs:
    """Costs of a space's paths at ``SEARCH.MAX_MACS_INPUT``, which follows a resolution. Detectors
    that ``cfg`` describes see it padded as an image is.

    Raises:
        InputError: ``cfg`` is not the config of the detectors of a space whose costs are theirs.
    """
    size = cost_input(cfg, resolution)
    if isinstance(space, HitSpace):
        if is_sampled(cfg):  # else it is of a model without config
            size, region = padded_size(_example(cfg, space), size), region_size(cfg)
            return space.cost_table(size, cfg.HIT_SEARCH.COST_PROPOSALS, region)
        return space.cost_table(size, cfg.HIT_SEARCH.COST_PROPOSALS)
    if isinstance(space, ElasticHitSpace):
        if searched_channels(cfg) != space.neck_channels:
            raise InputError(
                f"space {space.name!r}: its costs are of whole detectors; expected the config of "
                f"one, with MODEL.HIT.NECK_CHANNELS {list(space.neck_channels)}"
            )
        tables = (
            _whole_costs(at_neck_channels(cfg, channels), space.at(channels), size)
            for channels in space.neck_channels
        )
        return ConditionalCosts(tuple(tables), space.gene)
    assert isinstance(space, SearchSpace)
    return build_cost_table(space, size)


def _example(cfg: CfgNode, space: HitSpace) -> nn.Module:
    """A detector of a space, without memory."""
    return without_memory(network_config(cfg, space.first_path())).eval()


def _whole_costs(cfg: CfgNode, space: HitSpace, size: tuple[int, int]) -> CostTable:
    """Costs of whole detectors, of which the channels of the neck are given.

    Besides the searched layers much depends on those: the rest of the neck, the proposal generator,
    the head's fully connected layer.
    """
    path, proposals = space.first_path(), cfg.HIT_SEARCH.COST_PROPOSALS
    model = _example(cfg, space)
    size = padded_size(model, size)
    detections = min(proposals, cfg.TEST.DETECTIONS_PER_IMAGE)
    costs = analyze_model(model, input_size=size, proposals=proposals, detections=detections)
    table = space.cost_table(size, proposals, region_size(cfg))
    return replace(table, base=costs["total"] - table.cost(path.choices))


def region_size(cfg: CfgNode) -> int:
    """Height and width of the regions that the layers of a two-stage head see."""
    return cfg.MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION


def counted_region(cfg: CfgNode) -> int:
    """That a search by gradient counts costs for, and what is compared with it."""
    return cfg.HIT_SEARCH.COST_REGION or region_size(cfg)


def decode_backbones(cfg: CfgNode) -> None:
    """Names the decoded backbone where ``cfg`` names a supernet or a relaxed one, in place."""
    for node, key in ((cfg.MODEL.BACKBONE, "NAME"), (cfg.MODEL.HIT, "BOTTOM_UP")):
        node[key] = DECODED_BACKBONES.get(node[key], node[key])


def searchable_backbone(cfg: CfgNode) -> str:
    """Name of the supernet or relaxed backbone of ``cfg``, "" if it has none."""
    names = (cfg.MODEL.BACKBONE.NAME, cfg.MODEL.HIT.BOTTOM_UP)
    return next((name for name in names if name in DECODED_BACKBONES), "")


def has_detnas_backbone(cfg: CfgNode) -> bool:
    """Whether ``cfg`` names a backbone of DetNAS, a searched one or a decoded one."""
    names = {*DECODED_BACKBONES, *DECODED_BACKBONES.values()}
    return bool(names & {cfg.MODEL.BACKBONE.NAME, cfg.MODEL.HIT.BOTTOM_UP})


def fix_path(cfg: CfgNode, space: PathSpace, text: str) -> None:
    """Makes ``cfg`` the config of the network of one path, and of its images, in place."""
    path = space.path(text)
    if path.resolution is not None:
        set_resolution(cfg, path.resolution)
    if not isinstance(space, GenotypeSpace):
        cfg.MODEL.DETNAS.PATH = str(path.at(None))
        return
    genotype = space.genotype(path)
    # The frame belongs to it: operations alone would fit another frame of the same depths too.
    cfg.MODEL.HIT.NETWORK = genotype.network.name
    cfg.MODEL.HIT.SEARCHABLE_PARTS = []
    if genotype.neck_channels:
        cfg.MODEL.HIT.NECK_CHANNELS = [genotype.neck_channels]
    for part in genotype.parts:
        cfg.MODEL.HIT.GENOTYPE[part.upper()] = genotype.part_text(part)


def network_config(cfg: CfgNode, path: Path) -> CfgNode:
    """The config of the detector with a path."""
    cfg = cfg.clone()
    cfg.defrost()
    fix_path(cfg, path.space, str(path))
    decode_backbones(cfg)
    return cfg


def genotype_of(cfg: CfgNode) -> Genotype:
    """The genotype that ``cfg.MODEL.HIT`` gives its fixed parts."""
    return _genotype(cfg, {part: cfg.MODEL.HIT.GENOTYPE[part.upper()] for part in PARTS})


def architectures_of(cfg: CfgNode) -> list[Path | Genotype]:
    """What ``cfg`` fixes of both families: DetNAS's path, the genotype of Hit-Detector's parts.

    Empty for a supernet, a relaxed detector and a hand-made one.
    """
    found: list[Path | Genotype] = []
    if cfg.MODEL.DETNAS.PATH and not searchable_backbone(cfg):
        found.append(space_of(cfg).path(cfg.MODEL.DETNAS.PATH))
    genotype = genotype_of(cfg)
    if genotype.parts:
        found.append(genotype)
    return found


def decoded(cfg: CfgNode, model: nn.Module) -> tuple[Genotype, dict[str, Any]]:
    """Genotype that a relaxed model's architecture parameters choose.

    Returns:
        the genotype of its parts, and KEY: VALUE that make ``cfg`` the config of that network; a
        DetNAS backbone is no part, its path is among the keys.
    """
    parts, backbone = decode_parts(model), _relaxed_detnas(model)
    path = ""
    if backbone is not None:
        path = str(backbone.space.path(parts.pop("backbone")))
    genotype = _genotype(cfg, parts)
    return genotype, _decoded_keys(cfg, genotype, path)


def decoded_example(cfg: CfgNode, model: nn.Module) -> list[Any]:
    """KEY, VALUE of a network that a gradient search over ``cfg`` might find."""
    searched, specs = set(cfg.MODEL.HIT.SEARCHABLE_PARTS), part_specs(cfg)
    parts = {part: tuple(layer.ops[0] for layer in specs[part]) for part in searched & set(specs)}
    backbone = _relaxed_detnas(model)
    path = str(backbone.space.first_path()) if backbone is not None else ""
    return list(chain(*_decoded_keys(cfg, _genotype(cfg, parts), path).items()))


def _genotype(cfg: CfgNode, parts: Mapping[str, Any]) -> Genotype:
    channels = tuple(cfg.MODEL.HIT.NECK_CHANNELS)
    return Genotype(
        get_hit_network(cfg.MODEL.HIT.NETWORK),
        **parts,
        levels=len(cfg.MODEL.FPN.IN_FEATURES),
        neck_channels=channels[0] if len(channels) == 1 else 0,
    )


def _relaxed_detnas(model: nn.Module) -> RelaxedShuffleNet | None:
    return next((m for m in model.modules() if isinstance(m, RelaxedShuffleNet)), None)


def _decoded_keys(cfg: CfgNode, genotype: Genotype, path: str) -> dict[str, Any]:
    keys: dict[str, Any] = {
        "MODEL.HIT.NETWORK": cfg.MODEL.HIT.NETWORK,
        **({"MODEL.HIT.NECK_CHANNELS": [channels]} if (channels := genotype.neck_channels) else {}),
        "MODEL.HIT.SEARCHABLE_PARTS": [],
        **{f"MODEL.HIT.GENOTYPE.{p.upper()}": genotype.part_text(p) for p in genotype.parts},
    }
    if path:
        bare = cfg.MODEL.BACKBONE.NAME == RELAXED_DETNAS
        key = "MODEL.BACKBONE.NAME" if bare else "MODEL.HIT.BOTTOM_UP"
        keys |= {"MODEL.DETNAS.PATH": path, key: DECODED_BACKBONES[RELAXED_DETNAS]}
    return keys


def _part_costs(
    cfg: CfgNode, candidates: Mapping[str, tuple[str, ...]]
) -> dict[str, list[dict[str, Cost]]]:
    """Part -> operation -> cost of every layer, for ``candidates`` in each layer of a part."""
    size, proposals = tuple(cfg.HIT_SEARCH.COST_INPUT), cfg.HIT_SEARCH.COST_PROPOSALS
    specs, costs = part_specs(cfg), {}
    for part, names in candidates.items():
        layers = [replace(layer, ops=names) for layer in specs[part]]
        table = part_cost_table(
            part, layers, input_size=size, proposals=proposals, region=counted_region(cfg)
        )
        costs[part] = [dict(zip(names, row, strict=True)) for row in table.entries]
    return costs


def genotype_cost(cfg: CfgNode) -> Cost:
    """Cost of the searchable layers of :func:`genotype_of`, at ``HIT_SEARCH.COST_INPUT``.

    Raises:
        GenotypeError: a part of the model has no genotype.
    """
    parts = genotype_of(cfg).parts
    costs = _part_costs(cfg, {part: tuple(dict.fromkeys(ops)) for part, ops in parts.items()})
    chosen = (costs[p][layer][op] for p, ops in parts.items() for layer, op in enumerate(ops))
    return sum(chosen, Cost())


def random_genotype(
    cfg: CfgNode, seed: int, reference: Mapping[str, tuple[str, ...]], *, draws: int = 5000
) -> Genotype:
    """A random genotype of the sub-spaces of ``cfg`` that costs what ``reference`` costs.

    Of ``draws`` uniform draws the one whose multiply-adds (``HIT_SEARCH.COST_INPUT``) are closest
    to the reference's: what a search has to beat.

    Args:
        reference: part -> operations; these parts are drawn.
    """
    candidates = {part: candidate_ops(cfg, part) for part in reference}
    names = {
        part: tuple(dict.fromkeys((*candidates[part], *ops))) for part, ops in reference.items()
    }
    costs = _part_costs(cfg, names)

    def macs(parts: Mapping[str, tuple[str, ...]]) -> int:
        return sum(
            costs[part][layer][op].macs
            for part, ops in parts.items()
            for layer, op in enumerate(ops)
        )

    wanted = macs(reference)
    rng = random.Random(f"genotype/{seed}")
    best: tuple[int, dict[str, tuple[str, ...]]] | None = None
    for _ in range(draws):
        drawn = {
            part: tuple(rng.choice(candidates[part]) for _ in ops)
            for part, ops in reference.items()
        }
        distance = abs(macs(drawn) - wanted)
        if best is None or distance < best[0]:
            best = (distance, drawn)
    assert best is not None
    return _genotype(cfg, best[1])
