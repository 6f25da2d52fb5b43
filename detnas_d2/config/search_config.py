"""Config keys of the sample-based search (DetNAS)."""

from __future__ import annotations

from detectron2.config import CfgNode as CN


def add_search_config(cfg: CN) -> None:
    """Adds ``cfg.SEARCH`` to a Detectron2 config, in place."""
    cfg.SEARCH = CN()
    # How candidates are proposed: "evolution", "random" (the baseline DetNAS compares with),
    # "regularized" (aging evolution, Real et al., arXiv 1802.01548) or "predictor" (the best by a
    # regression of fitness on choices; needs scikit-learn).
    cfg.SEARCH.STRATEGY = "evolution"
    # What is searched for: "fitness", which is maximised, or with it one or two costs of "macs",
    # "params" and "latency_ms" (as the limits below count them), "memory_bytes" (of the maps that
    # are there at once, of one image of MAX_MACS_INPUT) and "file_bytes" (of the weights in an
    # exported file), both of what is searched. Costs are minimised. With them,
    # STRATEGY "evolution" is NSGA-II and "random" its baseline; the others have one objective. The
    # search then writes its front, and best.yaml holds the member that it recommends.
    cfg.SEARCH.OBJECTIVES = ["fitness"]
    # Of the first cost of OBJECTIVES: the fittest member within each budget is recommended, the
    # one for the first is best.yaml. []: the knee of the front.
    cfg.SEARCH.BUDGETS = []
    # Derives, together with the number of the generation, every random draw of the proposals.
    cfg.SEARCH.SEED = 0
    # Draws per wanted candidate before the search gives up on finding a new feasible one.
    cfg.SEARCH.ATTEMPTS = 1000
    # The search stops when more candidates than this have failed (out of memory, NaN fitness).
    cfg.SEARCH.MAX_FAILURES = 10
    _add_evolution(cfg.SEARCH)
    _add_other_strategies(cfg.SEARCH)
    # Shortest sides of the images, rising, e.g. [96, 128, 160], of which one is searched with each
    # path, and which a supernet that is to be searched so must have been trained with (this key in
    # its config too); INPUT.MIN_SIZE_TEST is one of them, and the other sizes of the config, of
    # INPUT and MAX_MACS_INPUT, are for it. []: all images are of the config's size.
    cfg.SEARCH.RESOLUTIONS = []
    _add_limits(cfg.SEARCH)
    _add_evaluation(cfg.SEARCH)
    # Config file that the written best.yaml completes with the best path, relative to this
    # config's file. "": this config, with a searched backbone in place of the supernet.
    cfg.SEARCH.RETRAIN_CONFIG = ""


def _add_evolution(node: CN) -> None:
    # "paper": DetNAS Algorithm 2 (50 x 20, parents are the top 10 of the generation, half
    # crossover, half mutation). "release": the authors' code (50 x 20, top 10 of the history, 20
    # mutation, 20 crossover, 10 random).
    node.PRESET = "paper"
    # Overrides of the preset. 0: the preset's. A population other than the preset's scales
    # PARENTS, MUTATION, CROSSOVER and RANDOM, unless they are set too.
    # PRESET, POPULATION and GENERATIONS are of all strategies, PARENTS of "predictor" too.
    node.POPULATION = 0  # candidates per generation; for "random": candidates per batch
    node.GENERATIONS = 0  # the random first one included
    node.PARENTS = 0  # how many of the fittest have children
    # -1: the preset's.
    node.MUTATION = -1  # children by mutation per generation
    node.CROSSOVER = -1  # children by crossover per generation
    node.RANDOM = -1  # random candidates per generation
    node.MUTATION_PROB = -1.0  # probability per layer that its op is drawn again
    # Candidates that STRATEGY "random" evaluates. 0: as many as the evolution would.
    node.NUM_SAMPLES = 0


def _add_other_strategies(node: CN) -> None:
    # Of STRATEGY "regularized". The children of a generation are proposed together.
    node.REGULARIZED = CN()
    # Candidates alive, the last ones proposed: the first so many are random, afterwards the oldest
    # dies for every child. 0: twice POPULATION (the paper's 100 for a POPULATION of 50).
    node.REGULARIZED.ALIVE = 0
    # Candidates drawn in a tournament, whose fittest has the child. 0: a quarter of ALIVE, two at
    # least (the paper's 25 of 100).
    node.REGULARIZED.SAMPLE = 0
    # Of STRATEGY "predictor".
    node.PREDICTOR = CN()
    # Paths that the regression looks at for each candidate proposed.
    node.PREDICTOR.POOL = 6
    # Share of each generation that is drawn at random, rounded down.
    node.PREDICTOR.RANDOM_SHARE = 0.1


def _add_limits(node: CN) -> None:
    # Limits of a candidate; 0: none. The papers' "300M FLOPs" is MAX_MACS 300000000: multiply-adds
    # of the backbone body (without last convolution and classifier) at MAX_MACS_INPUT.
    node.MAX_MACS = 0
    node.MIN_MACS = 0
    # Height and width of the image, pixels.
    node.MAX_MACS_INPUT = [224, 224]
    # Parameters of the backbone body.
    node.MAX_PARAMS = 0
    # Milliseconds by LATENCY_TABLE.
    node.MAX_LATENCY_MS = 0.0
    # File of measured milliseconds per layer and op. "": measured at the start of the search if
    # latency is limited. With RESOLUTIONS its name has {resolution} in it, one file for each.
    node.LATENCY_TABLE = ""


def _add_evaluation(node: CN) -> None:
    # What is maximised, a key "task/metric" of the evaluator's results. "": bbox/AP for COCO,
    # bbox/AP50 for VOC datasets, classification/top1 for classification ones.
    node.METRIC = ""
    # Candidates evaluated together. More share more work; a killed search loses this many.
    node.CHUNK = 25
    # Processes per rank that score finished candidates while others infer. 0: in the same process.
    node.SCORING_WORKERS = 2
    # Candidates on a GPU, where launching their many small kernels can take longer than running
    # them. "auto": DetNAS backbones are replayed from CUDA graphs for sizes of images that come
    # again, if on this GPU a replay had the bits of the call and was faster; the choice is kept
    # with those of MODEL.DETNAS.FUSED_OPS. "off": never. Results are the same to the bit.
    node.CUDA_GRAPHS = "auto"
    # Decoded and resized images kept in a file in OUTPUT_DIR, GiB at most: a search then decodes
    # each image once. Those beyond are decoded each time. 0: no file. 5,000 images of 800 x 1333
    # take 15 GiB.
    node.IMAGE_CACHE_GIB = 8.0
    # Name of the dataset candidates are scored on; must be carved from training data, never the
    # test split. "": the first of DATASETS.TEST.
    node.VAL = ""
    # Images from which every candidate's BatchNorm statistics are computed.
    node.CALIBRATION = CN()
    # Name of the dataset they come from. "": the first of DATASETS.TRAIN.
    node.CALIBRATION.DATASET = ""
    # Released: 500 iterations of a total batch of 8.
    node.CALIBRATION.IMAGES = 4000
    # Images per batch over all processes.
    node.CALIBRATION.BATCH_SIZE = 8
    # Chooses the images; the same ones for every candidate.
    node.CALIBRATION.SEED = 0
    # Batches of one size, in a row, that a DetNAS backbone takes in one forward pass at most, with
    # the statistics of batch by batch, to the bit. 0: on a GPU as many as have 2**23 pixels (2 GiB
    # of activations), on a CPU one. 1: batch by batch.
    node.CALIBRATION.TOGETHER = 0
