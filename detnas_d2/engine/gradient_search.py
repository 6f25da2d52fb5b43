"""Screening and search of a Hit-Detector: what runs, and what is written at the end."""

from __future__ import annotations

import logging
import os
import random
from collections.abc import Mapping
from dataclasses import replace

import torch
import yaml
from detectron2.config import CfgNode
from detectron2.engine import HookBase
from detectron2.utils import comm
from torch import nn

from detnas_d2.config.merging import merge_file
from detnas_d2.config.tools import base_config, load_config, short_yaml
from detnas_d2.data.datasets.splits import overlap
from detnas_d2.engine.bilevel_trainer import GradientSearchTrainer, is_relaxed
from detnas_d2.engine.training import evaluate, train
from detnas_d2.modeling.detnas.relaxed import RELAXED_DETNAS, RelaxedShuffleNet
from detnas_d2.modeling.hit.build import candidate_ops, part_specs
from detnas_d2.search.gradient.objective import decode_parts
from detnas_d2.search_space.costs import Cost
from detnas_d2.search_space.genotype import Genotype
from detnas_d2.search_space.hit_costs import part_cost_table
from detnas_d2.search_space.hit_network import PARTS, get_hit_network
from detnas_d2.utils.errors import InputError
from detnas_d2.utils.io import write_text

logger = logging.getLogger("detnas_d2.search")

SUB_SPACE_FILE = "sub_space.yaml"
SCREENING_FILE = "screening.yaml"
GENOTYPE_FILE = "genotype.yaml"
BEST_FILE = "best.yaml"
PROGRESS_PERIOD = 100
"""Iterations between two lines about the current genotype."""


class GenotypeProgress(HookBase):
    """Logs the entropy of each part's choices, the cost and the current genotype.

    Only once architecture parameters learn: until then all choices are equal.
    """

    @torch.no_grad()
    def after_step(self) -> None:
        step, iteration = self.trainer._trainer, self.trainer.iter
        due = (iteration + 1) % PROGRESS_PERIOD == 0 and step.learns_architecture(iteration)
        if not due or not comm.is_main_process():
            return
        texts = [
            f"{name} (entropy {float(layers.entropy()):.3f}): {' '.join(layers.decode())}"
            for name, layers in step.parts.items()
        ]
        logger.info(
            "Iteration %d: expected %.3f, decoded %.3f GMACs; %s",
            iteration + 1,
            float(step.cost()),
            step.cost.decoded_gmacs(),
            "; ".join(texts),
        )


def train_relaxed(cfg: CfgNode, *, resume: bool) -> GradientSearchTrainer:
    """Runs or resumes the training of a relaxed model; returns its trainer, finished."""
    trainer = GradientSearchTrainer(cfg)
    trainer.register_hooks([GenotypeProgress()])
    trainer.resume_or_load(resume=resume)
    trainer.train()
    return trainer


def screen(cfg: CfgNode, *, resume: bool) -> list[str]:
    """Screens the operations of the one searched part; returns those kept, best first.

    Writes ``screening.yaml`` (every operation's scores over time) and ``sub_space.yaml``, a
    config fragment with the part's ``MODEL.HIT.OPS``.

    Raises:
        ValueError: ``HIT_SEARCH.SCREENING.ENABLED`` is not set.
    """
    check_screening(cfg)
    screening = train_relaxed(cfg, resume=resume)._trainer.screening
    report = screening.report()
    if comm.is_main_process():
        order = screening.layers.ops
        kept = sorted(report["kept"], key=order.index)
        fragment = {"MODEL": {"HIT": {"OPS": {report["part"].upper(): kept}}}, "VERSION": 2}
        _write_yaml(os.path.join(cfg.OUTPUT_DIR, SCREENING_FILE), report)
        _write_yaml(os.path.join(cfg.OUTPUT_DIR, SUB_SPACE_FILE), fragment)
        logger.info("Screening of the %s keeps %s.", report["part"], ", ".join(report["kept"]))
    comm.synchronize()
    return report["kept"]


def gradient_search(cfg: CfgNode, *, resume: bool, config_dir: str = "") -> Genotype:
    """Searches all relaxed parts together; returns the decoded genotype.

    Writes ``genotype.yaml``, a config fragment with the genotype, and ``best.yaml``, a whole
    config for ``train_net.py``: ``HIT_SEARCH.RETRAIN_CONFIG`` (relative to ``config_dir``) or the
    search's own with the searched parts fixed.

    Raises:
        ValueError: architecture parameters never learn (``HIT_SEARCH.ARCH_START_ITER``).
    """
    check_gradient_search(cfg)
    retrain = hit_retrain_config(cfg, config_dir)
    for name in retrain.DATASETS.TEST:
        if any(overlap(name, used) for used in (*cfg.DATASETS.TRAIN, *cfg.HIT_SEARCH.ARCH_TRAIN)):
            logger.warning(
                "The search learns from images of %r, the test set: the searched network's "
                "results are biased",
                name,
            )
    step = train_relaxed(cfg, resume=resume)._trainer
    genotype = decode(cfg, step.model)
    if comm.is_main_process():
        fragment = os.path.join(cfg.OUTPUT_DIR, GENOTYPE_FILE)
        _write_yaml(fragment, _decoded_config(cfg, step.model, genotype))
        merge_file(retrain, fragment)
        comment = (
            f"# Decoded from a gradient search: {step.cost.decoded_gmacs():.3f} GMACs in the "
            "searched layers.\n"
        )
        target = os.path.join(cfg.OUTPUT_DIR, BEST_FILE)
        write_text(target, comment + short_yaml(retrain))
        logger.info("Genotype: %s; written to %s", genotype, target)
    comm.synchronize()
    return genotype


def check_screening(cfg: CfgNode) -> None:
    """Raises InputError unless the config describes a screening."""
    if not cfg.HIT_SEARCH.SCREENING.ENABLED:
        raise InputError("HIT_SEARCH.SCREENING.ENABLED is False: nothing to screen")


def check_gradient_search(cfg: CfgNode) -> None:
    """Raises InputError if architecture parameters never learn."""
    if not 0 <= cfg.HIT_SEARCH.ARCH_START_ITER < cfg.SOLVER.MAX_ITER:
        raise InputError(
            f"HIT_SEARCH.ARCH_START_ITER {cfg.HIT_SEARCH.ARCH_START_ITER}: a search needs one "
            f"from 0 to SOLVER.MAX_ITER {cfg.SOLVER.MAX_ITER}"
        )


def decode(cfg: CfgNode, model: nn.Module) -> Genotype:
    """The genotype of a relaxed model's parts; a DetNAS backbone is none of them."""
    network = get_hit_network(cfg.MODEL.HIT.NETWORK)
    parts = decode_parts(model)
    if relaxed_detnas(model) is not None:
        del parts["backbone"]
    return Genotype(network, **parts, levels=len(cfg.MODEL.FPN.IN_FEATURES))


def relaxed_detnas(model: nn.Module) -> RelaxedShuffleNet | None:
    """The relaxed DetNAS backbone inside a model, or None."""
    return next((m for m in model.modules() if isinstance(m, RelaxedShuffleNet)), None)


def _decoded_config(cfg: CfgNode, model: nn.Module, genotype: Genotype) -> dict:
    """The keys that make a search's config that of the decoded network."""
    parts = {part.upper(): genotype.part_text(part) for part in genotype.parts}
    # The frame belongs to it: operations alone would fit another frame of the same depths too.
    hit = {"NETWORK": cfg.MODEL.HIT.NETWORK, "SEARCHED_PARTS": [], "GENOTYPE": parts}
    tree: dict = {"MODEL": {"HIT": hit}, "VERSION": 2}
    backbone = relaxed_detnas(model)
    if backbone is not None:
        tree["MODEL"]["DETNAS"] = {"PATH": str(backbone.space.path(backbone.blocks.decode()))}
        if cfg.MODEL.BACKBONE.NAME == RELAXED_DETNAS:
            tree["MODEL"]["BACKBONE"] = {"NAME": "build_detnas_backbone"}
        else:
            tree["MODEL"]["HIT"]["BOTTOM_UP"] = "build_detnas_backbone"
    return tree


def genotype_of(cfg: CfgNode) -> Genotype:
    """The genotype that ``cfg.MODEL.HIT`` gives its fixed parts."""
    network = get_hit_network(cfg.MODEL.HIT.NETWORK)
    texts = {part: cfg.MODEL.HIT.GENOTYPE[part.upper()] for part in PARTS}
    return Genotype(network, **texts, levels=len(cfg.MODEL.FPN.IN_FEATURES))


def _part_costs(
    cfg: CfgNode, candidates: Mapping[str, tuple[str, ...]]
) -> dict[str, list[dict[str, Cost]]]:
    """Part -> operation -> cost of every layer, for ``candidates`` in each layer of a part."""
    size, proposals = tuple(cfg.HIT_SEARCH.COST_INPUT), cfg.HIT_SEARCH.COST_PROPOSALS
    specs, costs = part_specs(cfg), {}
    for part, names in candidates.items():
        layers = [replace(layer, ops=names) for layer in specs[part]]
        table = part_cost_table(part, layers, input_size=size, proposals=proposals)
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
    network = get_hit_network(cfg.MODEL.HIT.NETWORK)
    return Genotype(network, **best[1], levels=len(cfg.MODEL.FPN.IN_FEATURES))


def hit_retrain_config(cfg: CfgNode, config_dir: str) -> CfgNode:
    """The config that ``best.yaml`` is made of: ``HIT_SEARCH.RETRAIN_CONFIG``, or the search's."""
    if cfg.HIT_SEARCH.RETRAIN_CONFIG:
        return load_config(os.path.join(config_dir, cfg.HIT_SEARCH.RETRAIN_CONFIG))
    retrain = cfg.clone()
    retrain.defrost()
    retrain.MODEL.WEIGHTS = ""
    retrain.MODEL.DEVICE = base_config().MODEL.DEVICE  # not that of this machine
    retrain.OUTPUT_DIR = os.path.join(cfg.OUTPUT_DIR, "best")
    return retrain


def _write_yaml(file: str, tree: dict) -> None:
    write_text(file, yaml.safe_dump(tree, sort_keys=False, width=100))


def hit_train(cfg: CfgNode, *, resume: bool, eval_only: bool = False) -> object:
    """Trains or evaluates; a relaxed model with its architecture parameters fixed.

    Raises:
        ValueError: a relaxed model is to be evaluated.
    """
    if not is_relaxed(cfg):
        return evaluate(cfg) if eval_only else train(cfg, resume=resume)
    if eval_only:
        raise InputError("MODEL.HIT.SEARCHED_PARTS: a relaxed network is decoded, not evaluated")
    if cfg.HIT_SEARCH.ARCH_START_ITER >= 0:
        raise InputError("HIT_SEARCH.ARCH_START_ITER is set: use search_net.py or screen_net.py")
    train_relaxed(cfg, resume=resume)
    return None
