from detectron2.engine import default_argument_parser

from detnas_d2.engine.checkpoint import DetNASCheckpointer
from detnas_d2.engine.commands import (
    gradient_search_main,
    screen_main,
    search_main,
    train_main,
)
from detnas_d2.engine.defaults import prepare, setup
from detnas_d2.engine.evolution_search import search
from detnas_d2.engine.launching import run, run_alone
from detnas_d2.engine.library import search_model, train_model
from detnas_d2.engine.trainers.bilevel_step import BilevelStep
from detnas_d2.engine.trainers.bilevel_trainer import GradientSearchTrainer
from detnas_d2.engine.trainers.distillation import FeatureLesson, SoftLabelLesson
from detnas_d2.engine.trainers.path_sampling import (
    FairPathSampler,
    FlopsBinnedPathSampler,
    SandwichPathSampler,
    UniformPathSampler,
)
from detnas_d2.engine.trainers.path_step import PathTrainer
from detnas_d2.engine.trainers.trainer import Trainer
from detnas_d2.engine.training import evaluate, train

__all__ = [
    "BilevelStep",
    "DetNASCheckpointer",
    "FairPathSampler",
    "FeatureLesson",
    "FlopsBinnedPathSampler",
    "GradientSearchTrainer",
    "PathTrainer",
    "SandwichPathSampler",
    "SoftLabelLesson",
    "Trainer",
    "UniformPathSampler",
    "default_argument_parser",
    "evaluate",
    "gradient_search_main",
    "prepare",
    "run",
    "run_alone",
    "screen_main",
    "search",
    "search_main",
    "search_model",
    "setup",
    "train",
    "train_main",
    "train_model",
]
