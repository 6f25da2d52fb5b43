"""Config keys of Hit-Detector models."""

from __future__ import annotations

from detectron2.config import CfgNode as CN

from detnas_d2.config.detnas_config import add_detnas_config
from detnas_d2.config.hit_search_config import add_hit_search_config


def add_hit_detector_config(cfg: CN) -> None:
    """Adds the keys of Hit-Detector and, below them, those of DetNAS to a config, in place."""
    add_detnas_config(cfg)
    _add_model_config(cfg)
    add_hit_search_config(cfg)


def _add_model_config(cfg: CN) -> None:
    cfg.MODEL.HIT = CN()
    # Frame (depths and channels): hit (released), hit_paper, hit_half, hit_tiny, hit_tiny_half.
    cfg.MODEL.HIT.NETWORK = "hit"
    # Channels of neck and head. []: the frame's. One number, e.g. [128]: those. Several, rising:
    # with STRATEGY sampling one of them is searched with each path. The supernet has the most, a
    # path with fewer the first channels of its layers; costs are then those of whole detectors.
    cfg.MODEL.HIT.NECK_CHANNELS = []
    # Norm of all three parts: BN, SyncBN (BN in a single process), FrozenBN, GN.
    cfg.MODEL.HIT.NORM = "SyncBN"
    # Features of the bare backbone; backbones with a neck take MODEL.FPN.IN_FEATURES.
    cfg.MODEL.HIT.OUT_FEATURES = ["stage1", "stage2", "stage3", "stage4"]
    # Registry name of the backbone under the Hit neck (build_hit_pafpn_backbone and others).
    cfg.MODEL.HIT.BOTTOM_UP = "build_hit_backbone"
    # Parts whose layers hold all candidates: some of backbone, neck, head. The others are fixed.
    cfg.MODEL.HIT.SEARCHABLE_PARTS = []
    # How they are searched: gradient (all candidates summed, section 3.3) or sampling (one
    # candidate at a time, for evolution as in DetNAS).
    cfg.MODEL.HIT.STRATEGY = "gradient"
    # Recompute the candidates of a mixed layer in the backward pass, one at a time: a fraction of
    # the memory for about a fifth more time.
    cfg.MODEL.HIT.RECOMPUTE = True
    # Run the inverted residuals and separable convolutions of mixed layers through the operators
    # of csrc/ in training. The same but for rounding. Candidates that do not fit (others, grouped
    # ones, other norms than BN, mixed precision) run their modules.
    #   "auto", "measured", "on", "off": as MODEL.DETNAS.FUSED_OPS, kinds and sizes of candidates
    #     being what is tried out. "cpu": on CPUs alone.
    cfg.MODEL.HIT.FUSED_OPS = "auto"
    # Operations of the fixed parts, as names, "/" between stages or pyramid steps.
    cfg.MODEL.HIT.GENOTYPE = CN()
    cfg.MODEL.HIT.GENOTYPE.BACKBONE = ""
    cfg.MODEL.HIT.GENOTYPE.NECK = ""
    cfg.MODEL.HIT.GENOTYPE.HEAD = ""
    # Candidates of the searchable parts, as names; empty: all 32 operations.
    cfg.MODEL.HIT.OPS = CN()
    cfg.MODEL.HIT.OPS.BACKBONE = []
    cfg.MODEL.HIT.OPS.NECK = []
    cfg.MODEL.HIT.OPS.HEAD = []
    # One layer of a hand-made detector replaced by an operation (Figure 3): the part, one of its 12
    # operations, and the layer of the part from 0 on; -1: a random one, by SEED.
    cfg.MODEL.HIT.REPLACED = CN()
    cfg.MODEL.HIT.REPLACED.PART = "backbone"
    cfg.MODEL.HIT.REPLACED.OP = "conv_k3"
    cfg.MODEL.HIT.REPLACED.LAYER = -1
    # A part whose candidates all searchable parts have (Table 4: one sub-space); "": each its own.
    cfg.MODEL.HIT.SHARED_OPS = ""
