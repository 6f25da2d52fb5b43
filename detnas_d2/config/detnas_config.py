"""Config keys of DetNAS models."""

from __future__ import annotations

from detectron2.config import CfgNode as CN

from detnas_d2.config.data_config import add_data_config
from detnas_d2.config.search_config import add_search_config


def add_detnas_config(cfg: CN) -> None:
    """Adds the keys of DetNAS models, data and search to a Detectron2 config, in place."""
    # One seed for weights, data order, augmentation, paths and proposal sampling.
    cfg.SEED = 0
    # "SGD" (Detectron2's, with SOLVER.MOMENTUM) or "AdamW"; both take BASE_LR and weight decays.
    cfg.SOLVER.OPTIMIZER = "SGD"
    # Of the periodic checkpoints (SOLVER.CHECKPOINT_PERIOD) the newest two are kept, and every n-th
    # for good; 0: the newest two alone.
    cfg.SOLVER.CHECKPOINT_KEEP_EVERY = 0
    _add_model_config(cfg)
    _add_supernet_config(cfg)
    add_data_config(cfg)
    add_search_config(cfg)


def _add_model_config(cfg: CN) -> None:
    cfg.MODEL.DETNAS = CN()
    # Search space: detnas_small (300M), detnas_large (1.3G), detnas_3.8G, shufflenetv2_40 (the
    # hand-made network's widths), detnas_demo (the demo), detnas_tiny, detnas_small_elastic and
    # detnas_large_elastic (with wider and skipped blocks), or one of SPACES.
    cfg.MODEL.DETNAS.SPACE = "detnas_small"
    # Search spaces of one's own, a list of mappings:
    #   {NAME: mine, STEM: 16, LAST: 1024, OPS: [3x3, 5x5_e2, skip],
    #    STAGES: [{CHANNELS: 64, DEPTH: 4}, {CHANNELS: 160, DEPTH: 4, OPS: [3x3, xception]}]}
    # STEM and CHANNELS: output channels of the stem and of a stage, even; LAST: of the last
    # convolution (LAST_CONV); DEPTH: blocks of a stage, the first of them of stride 2, so the
    # features stage1, stage2, ... have strides 4, 8, ...; OPS: the candidates of a stage, or once
    # those of all stages without their own. Operations: 3x3, 5x5, 7x7 and xception, which _e2 to
    # _e6 make wider (the middle channels of the main branch that often), skip (no block; not in the
    # first of a stage), and those of Hit-Detector's table, e.g. ir_k3_e3_d1, sep_k5_d1, conv_k3.
    cfg.MODEL.DETNAS.SPACES = []
    # Path of a searched backbone: op names or indices, "/" between stages. Unused by supernets.
    cfg.MODEL.DETNAS.PATH = ""
    # Norm of the backbone: BN, SyncBN (BN in a single process), FrozenBN, GN. The norms of neck
    # and box head are Detectron2's own keys MODEL.FPN.NORM and MODEL.ROI_BOX_HEAD.NORM.
    cfg.MODEL.DETNAS.NORM = "BN"
    # Weight of a new batch in running statistics, backbone, neck and box head. Released: 0.1 when
    # the supernet is trained, 0.01 when a searched network is.
    cfg.MODEL.DETNAS.NORM_MOMENTUM = 0.1
    # Channel shuffle: 1 interleaves halves and cuts (released search and ImageNet code), 2 takes
    # even and odd channels (released single-path detectors).
    cfg.MODEL.DETNAS.SHUFFLE_METHOD = 1
    # Initial weights: "default" (torch's; released detection code) or "imagenet" (normal, std
    # 1/fan-in channels, BN bias 1e-4; released classification code). The latter draws depthwise
    # kernels from N(0, 1), and a BatchNorm behind a kernel w divides its effective rate by |w|^2:
    # at small rates or in short runs such kernels hardly move.
    cfg.MODEL.DETNAS.INIT = "default"
    # Append the last 1x1 convolution of the space as feature "last". The classifier needs it.
    cfg.MODEL.DETNAS.LAST_CONV = False
    # Features of the bare backbone; FPN backbones take MODEL.FPN.IN_FEATURES.
    cfg.MODEL.DETNAS.OUT_FEATURES = ["stage1", "stage2", "stage3", "stage4"]
    # Run the backbone, and 3x3 convolutions of neck and heads, through the operators of csrc/
    # instead of their modules; the results are the same but for rounding. Modules that do not fit
    # (in the backbone other norms than BN, forward hooks) run themselves, and so do all under
    # autocast to bfloat16 on CPUs that multiply it themselves (AVX-512 BF16), since the operators
    # there compute in float32.
    #   "auto": on CPUs wherever they fit. On GPUs every kind and size of block is first tried out
    #     there: compared with its modules in float64, and timed. The operators run those that they
    #     are right and faster for; a warning names those that they are wrong for. What was found is
    #     kept in OUTPUT_DIR/fused_ops.json, for a resumed run rounds alike. Several machines use
    #     the modules, and so does training with SyncBN on several GPUs.
    #     3x3 convolutions of neck and heads run on CPUs alone, without gradients, and are tried
    #     out there.
    #   "measured": blocks are tried out on CPUs too. Which way is faster may differ from run to
    #     run, and with it the rounding.
    #   "on": wherever they fit, trying nothing. "off": nowhere.
    cfg.MODEL.DETNAS.FUSED_OPS = "auto"
    # Keep the biases of FPN and box-head convolutions that a norm follows. They change nothing
    # that the network can compute; the released detectors have them.
    cfg.MODEL.DETNAS.CONV_BIAS_BEFORE_NORM = False

    cfg.MODEL.CLASSIFIER = CN()
    cfg.MODEL.CLASSIFIER.NUM_CLASSES = 1000
    # Feature that is classified: "last" of DetNAS backbones, "stage4" of Hit-Detector's.
    cfg.MODEL.CLASSIFIER.IN_FEATURE = "last"
    # Probability of dropping a channel before pooling, in training.
    cfg.MODEL.CLASSIFIER.DROPOUT = 0.2
    # Probability mass spread over all classes in the training loss.
    cfg.MODEL.CLASSIFIER.LABEL_SMOOTHING = 0.1


def _add_supernet_config(cfg: CN) -> None:
    cfg.SUPERNET = CN()
    # Which paths an iteration of supernet training takes. One: "uniform" (paper), or "flops_bins"
    # (released ImageNet stage: a bin of FLOPS_BINS uniformly, then a random path in it). Several,
    # in as many times the time and the memory of one, with one optimizer step for the mean of their
    # gradients: "fair" (FairNAS: each operation of a layer once, so as many paths as operations),
    # or "sandwich" (BigNAS, for spaces with "skip", expansions or several MODEL.HIT.NECK_CHANNELS:
    # the most expensive path, the cheapest, SANDWICH_PATHS random ones, and distillation from the
    # first, DISTILL_WEIGHT).
    cfg.SUPERNET.PATH_SAMPLING = "uniform"
    # Random paths of an update of "sandwich".
    cfg.SUPERNET.SANDWICH_PATHS = 2
    # "sandwich": weight of what the most expensive path's outputs teach the others. A classifier's
    # soft labels take the place of the ground truth (cross-entropy times this); in a detector the
    # mean square of what the backbone's features differ by, in standard deviations of the teacher's
    # level, is added to the losses. 0: every path learns from the ground truth alone.
    cfg.SUPERNET.DISTILL_WEIGHT = 1.0
    # Edges of the bins, multiply-adds of the whole classifier (body, last convolution, linear
    # layer of MODEL.CLASSIFIER.NUM_CLASSES) at 3x224x224. As released, for the small space.
    cfg.SUPERNET.FLOPS_BINS = [
        290_000_000,
        300_000_000,
        310_000_000,
        320_000_000,
        330_000_000,
        340_000_000,
        350_000_000,
        360_000_000,
    ]
    _add_check_config(cfg.SUPERNET)


def _add_check_config(node: CN) -> None:
    """Of what tells at the end of a supernet's training whether it learned."""
    node.CHECK = CN()
    # Fixed paths that are scored as a search would score them, each with its own BatchNorm
    # statistics. Drawn from SEED: the same for every supernet of a space. 0: no check.
    node.CHECK.PATHS = 4
    # Dataset that they are scored on. "": the first of DATASETS.TEST.
    node.CHECK.VAL = ""
    # Images of it at most, chosen by SEED; and those of the first of DATASETS.TRAIN from which
    # BatchNorm statistics are computed.
    node.CHECK.IMAGES = 500
    node.CHECK.CALIBRATION_IMAGES = 256
    # Iterations between two points of the curves supernet/score_* in metrics.json and TensorBoard,
    # on a quarter of the images. -1: a tenth of SOLVER.MAX_ITER, at least 20, for which values are
    # written every 20 iterations; 0: only at the end.
    node.CHECK.PERIOD = -1
    # Updates of the first fixed path when it is trained alone, in OUTPUT_DIR/standalone, to
    # compare with. -1: as many as an operation of the supernet gets; 0: it is not trained.
    node.CHECK.STANDALONE = -1
    # Whether a supernet at chance level ends the run with an error (after all is saved).
    node.CHECK.REQUIRED = True
