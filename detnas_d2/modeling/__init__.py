from detnas_d2.modeling.baselines.detnet import DetNet, DetNetFPN, DetNetROIHeads
from detnas_d2.modeling.baselines.nas_fpn import NASFPN
from detnas_d2.modeling.classifier import ImageClassifier
from detnas_d2.modeling.dense_convs import use_operators
from detnas_d2.modeling.detnas.backbone import (
    DecodedBackbone,
    ShuffleNetBackbone,
    Supernet,
)
from detnas_d2.modeling.detnas.box_head import DetNASConvFCHead
from detnas_d2.modeling.detnas.build import (
    backbone_from_config,
    decoded_backbone,
    norm_factory,
    supernet_backbone,
)
from detnas_d2.modeling.detnas.relaxed import RelaxedShuffleNet
from detnas_d2.modeling.detnas.rpn_head import DetNASRPNHead
from detnas_d2.modeling.hit import HitBackbone, HitBoxHead, HitPAFPN
from detnas_d2.modeling.prefix_walk import PrefixWalk
from detnas_d2.modeling.supernet import activate, find_supernet, running_through, walking
from detnas_d2.modeling.weights import adapt_state_dict, is_supernet
from detnas_d2.modeling.weights_fit import WeightsError

__all__ = [
    "DetNASConvFCHead",
    "DetNASRPNHead",
    "DetNet",
    "DetNetFPN",
    "DetNetROIHeads",
    "HitBackbone",
    "HitBoxHead",
    "HitPAFPN",
    "ImageClassifier",
    "NASFPN",
    "PrefixWalk",
    "RelaxedShuffleNet",
    "DecodedBackbone",
    "ShuffleNetBackbone",
    "Supernet",
    "WeightsError",
    "activate",
    "adapt_state_dict",
    "backbone_from_config",
    "find_supernet",
    "is_supernet",
    "norm_factory",
    "decoded_backbone",
    "running_through",
    "supernet_backbone",
    "use_operators",
    "walking",
]
