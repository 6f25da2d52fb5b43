from detnas_d2.config.detnas_config import add_detnas_config

__all__ = ["add_detnas_config"]
