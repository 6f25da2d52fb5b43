"""Config keys of the gradient-based search and of the screening (Hit-Detector)."""

from __future__ import annotations

from detectron2.config import CfgNode as CN


def add_hit_search_config(cfg: CN) -> None:
    """Adds ``cfg.HIT_SEARCH`` to a Detectron2 config, in place."""
    cfg.HIT_SEARCH = CN()
    # Datasets that the architecture parameters learn from; disjoint from DATASETS.TRAIN, which
    # the weights learn from (section 3.4; halves of the training set).
    cfg.HIT_SEARCH.ARCH_TRAIN = ()
    # Iteration from which the architecture parameters learn; -1: never (pre-training).
    cfg.HIT_SEARCH.ARCH_START_ITER = -1
    # Adam's learning rate for them (section 4.1). They have no weight decay.
    cfg.HIT_SEARCH.ARCH_LR = 4e-4
    cfg.HIT_SEARCH.ARCH_BETAS = (0.9, 0.999)
    # lambda of eq. 6: loss per COST_UNIT expected multiply-adds of the searchable layers. The value
    # is the paper's (section 4.2).
    cfg.HIT_SEARCH.COST_WEIGHT = 0.01
    # The paper does not name the unit; this one is the project's. With 1e9 an inverted residual of
    # expansion 6 in the head would have to lower the loss by 0.2 more than one of expansion 3, and
    # the released head has 6 throughout; with 1e10 it is 0.02.
    cfg.HIT_SEARCH.COST_UNIT = 1e10
    # Image (height, width) and regions per image that multiply-adds are counted for.
    cfg.HIT_SEARCH.COST_INPUT = [800, 1216]
    cfg.HIT_SEARCH.COST_PROPOSALS = 1000
    # Height and width of a region that a search by gradient counts them for, and random genotypes
    # that cost as much; 0: ROI_BOX_HEAD.POOLER_RESOLUTION, as always for searches by sampling.
    cfg.HIT_SEARCH.COST_REGION = 0
    # Config file of the searched network for best.yaml, relative to this config's file; "": this
    # config with the decoded parts fixed, which trains on its DATASETS.TRAIN (one half).
    cfg.HIT_SEARCH.RETRAIN_CONFIG = ""

    cfg.HIT_SEARCH.SCREENING = CN()
    # Screen the operations of the one searchable part.
    cfg.HIT_SEARCH.SCREENING.ENABLED = False
    # mu of eq. 4 (section 4.2).
    cfg.HIT_SEARCH.SCREENING.GROUP_SPARSITY = 0.1
    # Its term on the matrix of probabilities: "sparse", the sum over operations of the square root
    # of their column's norm; "min", the smallest norm, which takes the min that
    # eq. 4 prints for one over the columns.
    cfg.HIT_SEARCH.SCREENING.SPARSITY_TERM = "sparse"
    # Operations to keep (N = 8 of 32).
    cfg.HIT_SEARCH.SCREENING.KEEP = 8
    # Iterations between which operations are removed one after the other:
    # ARCH_START_ITER < REMOVE_START <= REMOVE_END <= SOLVER.MAX_ITER.
    cfg.HIT_SEARCH.SCREENING.REMOVE_START = 0
    cfg.HIT_SEARCH.SCREENING.REMOVE_END = 0
    # Iterations between two records of the scores.
    cfg.HIT_SEARCH.SCREENING.RECORD_PERIOD = 20
