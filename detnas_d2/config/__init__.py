from detnas_d2.config.detnas_config import add_detnas_config
from detnas_d2.config.hit_config import add_hit_detector_config

__all__ = ["add_detnas_config", "add_hit_detector_config"]
