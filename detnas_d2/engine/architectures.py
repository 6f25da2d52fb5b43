"""Which space of paths a config searches by evolution, what its paths cost, how one is fixed."""

from __future__ import annotations

from detectron2.config import CfgNode

from detnas_d2.modeling.hit.build import part_specs
from detnas_d2.search_space import CostTable, build_cost_table, get_space
from detnas_d2.search_space.hit_network import PARTS, get_hit_network
from detnas_d2.search_space.hit_space import HitSpace
from detnas_d2.search_space.space import PathSpace


def searched_space(cfg: CfgNode) -> PathSpace:
    """The sub-spaces of ``MODEL.HIT.SEARCHED_PARTS`` where they are sampled, else DetNAS's."""
    node = cfg.MODEL.HIT
    if not node.SEARCHED_PARTS or node.STRATEGY != "sampling":
        return get_space(cfg.MODEL.DETNAS.SPACE)
    parts = [part for part in PARTS if part in node.SEARCHED_PARTS]
    specs = part_specs(cfg)
    return HitSpace(get_hit_network(node.NETWORK), tuple((part, specs[part]) for part in parts))


def space_costs(cfg: CfgNode, space: PathSpace) -> CostTable:
    """Costs of a space's paths at ``SEARCH.MAX_MACS_INPUT``."""
    size = tuple(cfg.SEARCH.MAX_MACS_INPUT)
    if isinstance(space, HitSpace):
        return space.cost_table(size, cfg.HIT_SEARCH.COST_PROPOSALS)
    return build_cost_table(space, size)


def fix_path(cfg: CfgNode, space: PathSpace, text: str) -> None:
    """Makes ``cfg`` the config of the network of one path, in place."""
    if not isinstance(space, HitSpace):
        cfg.MODEL.DETNAS.PATH = text
        return
    genotype = space.genotype(space.path(text))
    cfg.MODEL.HIT.SEARCHED_PARTS = []
    for part in genotype.parts:
        cfg.MODEL.HIT.GENOTYPE[part.upper()] = genotype.part_text(part)
