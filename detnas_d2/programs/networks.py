"""Networks that a command line names: configs, output folders, texts of paths and genotypes."""

from __future__ import annotations

import os
from dataclasses import dataclass

from detectron2.config import CfgNode

from detnas_d2.config.tools import load_config
from detnas_d2.engine.architectures import (
    architectures_of,
    network_config,
    searched_space,
)
from detnas_d2.engine.plan import BEST_FILE
from detnas_d2.modeling.hit.build import hit_network
from detnas_d2.search import History
from detnas_d2.search.front_file import best_of
from detnas_d2.search.history import RECORDS_FILE
from detnas_d2.search_space.genotype import Genotype
from detnas_d2.search_space.hit_network import PARTS
from detnas_d2.search_space.space import Path, PathError
from detnas_d2.utils.errors import InputError

CONFIG_FILE = "config.yaml"


@dataclass(frozen=True)
class NamedNetwork:
    """A network and what it is called.

    Args:
        architecture: its path or genotype.
        cfg: of the whole detector, None where only the architecture was named.
    """

    title: str
    architecture: Path | Genotype
    cfg: CfgNode | None = None


def read_networks(text: str, frame: CfgNode | None) -> list[NamedNetwork]:
    """The networks of one argument, ``SOURCE`` or ``TITLE=SOURCE``.

    A detector with a DetNAS backbone and parts of a Hit-Detector is two: backbone, and the rest.

    Args:
        text: SOURCE is a config, the output folder of a search or a training, the text of a path
            (an operation alone: everywhere) or of a genotype.
        frame: the config whose space or frame such texts are of.

    Raises:
        InputError: nothing of these, or a detector without a path and a genotype.
    """
    title, equals, source = text.partition("=")
    if not equals or os.path.exists(text):
        title, source = "", text
    source = source.strip()
    if os.path.isdir(source):
        return of_config(_config_of_folder(source), title or short_name(source), source)
    if os.path.isfile(source):
        return of_config(load_config(source), title or short_name(source), source)
    if source.endswith((".yaml", ".yml")) or not source:
        raise InputError(f"{source or text}: no such config")
    return [_parsed(source, title or source, frame)]


def of_config(cfg: CfgNode, title: str, place: str) -> list[NamedNetwork]:
    """The networks of a config, see :func:`read_networks`.

    Args:
        place: where the config is from, for an error.
    """
    found = architectures_of(cfg)
    if not found:
        raise InputError(
            f"{place}: neither a path (MODEL.DETNAS.PATH) nor a genotype (MODEL.HIT.GENOTYPE) to "
            "draw; of a search take its output folder, of a supernet a text with --network"
        )
    if len(found) == 1:
        return [NamedNetwork(title, found[0], cfg)]
    names = (f"{title}, backbone", f"{title}, neck and head")
    return [NamedNetwork(*pair, cfg) for pair in zip(names, found, strict=True)]


def short_name(source: str) -> str:
    """The last two parts of a file's or folder's name."""
    whole = os.path.abspath(source)
    parent, name = os.path.basename(os.path.dirname(whole)), os.path.basename(whole)
    return os.path.join(parent, os.path.splitext(name)[0] if os.path.isfile(source) else name)


def _config_of_folder(folder: str) -> CfgNode:
    """The config of what a search found, so far if it runs; else of what was trained there."""
    best, config = os.path.join(folder, BEST_FILE), os.path.join(folder, CONFIG_FILE)
    if os.path.isfile(best):
        return load_config(best)
    if not os.path.isfile(config):
        raise InputError(
            f"{folder}: no {BEST_FILE} and no {CONFIG_FILE}: expected the output folder of a "
            "search or a training"
        )
    cfg = load_config(config)
    if os.path.isfile(os.path.join(folder, RECORDS_FILE)):
        best_record = best_of(folder, History.read(folder))
        if best_record is None:
            raise InputError(f"{folder}: no candidate has a fitness yet")
        return network_config(cfg, searched_space(cfg).path(best_record.path))
    return cfg


def _parsed(text: str, title: str, frame: CfgNode | None) -> NamedNetwork:
    if frame is None:
        raise InputError(
            f"{text!r}: no such file or folder; for the text of a path or a genotype name a config "
            "of its space with --config-file"
        )
    if any(piece.partition(":")[0].strip() in PARTS for piece in text.split(";")):
        network = hit_network(frame)
        levels = len(frame.MODEL.FPN.IN_FEATURES)
        return NamedNetwork(title, Genotype.from_text(network, text, levels=levels))
    space = searched_space(frame)
    try:
        path = space.path(text) if len(text.split()) > 1 else space.uniform_path(text)
    except PathError as error:
        raise InputError(f"{text!r}: no such file or folder, and as a path: {error}") from None
    return NamedNetwork(title, path, network_config(frame, path))
