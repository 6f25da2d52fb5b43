from detnas_d2.modeling.hit.backbone import HitBackbone
from detnas_d2.modeling.hit.box_head import HitBoxHead
from detnas_d2.modeling.hit.neck import HitPAFPN
from detnas_d2.modeling.hit.replacement import INFLUENCES
from detnas_d2.modeling.hit.retinanet import HitRetinaNet, HitRetinaNetHead
from detnas_d2.modeling.hit.supernet import HitSupernet
from detnas_d2.modeling.searchable_layers import (
    ChoiceLayers,
    FixedLayers,
    PartLayers,
    RelaxedLayers,
    relaxed_parts,
)

__all__ = [
    "INFLUENCES",
    "ChoiceLayers",
    "FixedLayers",
    "HitBackbone",
    "HitBoxHead",
    "HitPAFPN",
    "HitRetinaNet",
    "HitRetinaNetHead",
    "HitSupernet",
    "PartLayers",
    "RelaxedLayers",
    "relaxed_parts",
]
