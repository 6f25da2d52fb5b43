from detectron2.engine import default_argument_parser

from detnas_d2.engine.checkpoint import DetNASCheckpointer
from detnas_d2.engine.gradient_search import BilevelStep, GradientSearchTrainer
from detnas_d2.engine.launching import run, run_alone
from detnas_d2.engine.models import search_model, train_model
from detnas_d2.engine.path_sampling import FlopsBinnedPathSampler, UniformPathSampler
from detnas_d2.engine.pipeline_run import run_pipeline
from detnas_d2.engine.search import search, search_main
from detnas_d2.engine.setup import prepare, setup
from detnas_d2.engine.train import evaluate, train, train_main
from detnas_d2.engine.trainer import PathTrainer, Trainer

__all__ = [
    "BilevelStep",
    "DetNASCheckpointer",
    "FlopsBinnedPathSampler",
    "GradientSearchTrainer",
    "PathTrainer",
    "Trainer",
    "UniformPathSampler",
    "default_argument_parser",
    "evaluate",
    "prepare",
    "run",
    "run_alone",
    "run_pipeline",
    "search",
    "search_main",
    "search_model",
    "setup",
    "train",
    "train_main",
    "train_model",
]
