"""A table of latencies that a search reads elsewhere, made and checked on the target machine."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime, timezone
from typing import Any

import torch

from detnas_d2.config.tools import load_config
from detnas_d2.data import register_datasets
from detnas_d2.engine.defaults import fall_back_to_cpu
from detnas_d2.engine.latency import Picture
from detnas_d2.engine.latency_table import FITTED, Target, detector_table
from detnas_d2.engine.runtimes import PYTORCH, version_of
from detnas_d2.pipeline.manifest import machine, versions
from detnas_d2.programs.latency import Asked, threads_of
from detnas_d2.search_space.elastic_latency import ElasticLatency
from detnas_d2.search_space.latency import check_text
from detnas_d2.utils.cpus import usable_cpus
from detnas_d2.utils.errors import InputError
from detnas_d2.utils.io import write_text

_NOISY = 0.7  # tau of two measurements
_FIT = ("slope", "rest")
# Of a search, of a run of detnas search, of a pipeline.
_CONFIGS = ("config/search.yaml", "config.yaml", "search/config.yaml")


def config_of(place: str) -> str:
    """The config of the search in a folder, or the file itself.

    Raises:
        InputError: there is none.
    """
    files = [place, *(os.path.join(place, name) for name in _CONFIGS)]
    found = next(filter(os.path.isfile, files), None)
    if found is None:
        raise InputError(f"{place}: expected the config of a search, or a folder with one")
    return found


def run(config: str, file: str, asked: Asked, *, detectors: int) -> dict[str, Any]:
    """Writes the table of a search's detectors; returns what it says.

    Args:
        config: file of a search.
        detectors: to check the table with.

    Raises:
        InputError: of the options, or a config whose detectors have no such table.
    """
    names, _ = replace(asked, runtimes=asked.runtimes or (PYTORCH,)).usable()
    if len(names) != 1:
        raise InputError(f"--runtime {','.join(names)}: a table is of one runtime")
    cfg = load_config(config)
    fall_back_to_cpu(cfg)
    if not asked.image and asked.size is None:
        register_datasets(cfg)
    picture = Picture.of_config(cfg, asked.image, asked.size)
    with threads_of(asked.threads):
        target = Target(cfg, picture, names[0], asked.repeats, _tell)
        table = detector_table(target, fitted=FITTED, checked=detectors)
        about = {
            "config": os.path.basename(config),
            "version": version_of(names[0]),
            "threads": torch.get_num_threads(),
            "cpus": usable_cpus(),
            "machine": machine(),
            "versions": versions(),
            "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        }
        parts = table.tables if isinstance(table, ElasticLatency) else (table,)
        for part in parts:
            assert part.detector is not None
            part.detector.update(about)
    write_text(file, table.to_json() + "\n")
    ends = {"cheapest": table.cheapest(), "most_expensive": table.most_expensive()}
    told = {"table": file, "space": table.space, **ends, **(parts[-1].detector or {})}
    if isinstance(table, ElasticLatency):
        told["check"] = table.check
        told["neck_channels"] = [
            {"channels": channels, **{key: (part.detector or {})[key] for key in _FIT}}
            for channels, part in zip(table.neck_channels, parts, strict=True)
        ]
    return told


def _tell(line: str) -> None:
    print(f"measuring {line}", file=sys.stderr)


def _fit_text(result: Mapping[str, Any]) -> str:
    fits = result.get("neck_channels")
    if fits is None:
        return (
            f"{result['rest']:.2f} of them in every detector, blocks count {result['slope']:.2f} "
            f"times what they take alone (fitted to {result['fitted_to']} detectors)"
        )
    texts = (
        f"{fit['rest']:.2f} and blocks {fit['slope']:.2f} times at {fit['channels']} channels"
        for fit in fits
    )
    return (
        "of them in every detector, and how often blocks count what they take alone: "
        f"{'; '.join(texts)} (fitted to {result['fitted_to']} detectors each)"
    )


def text(result: Mapping[str, Any]) -> str:
    """What :func:`run` found, for people."""
    height, width = result["image"]
    lines = [
        f"{result['table']}: detectors of space {result['space']} in {result['runtime']} "
        f"{result['version']}, one image of {height} x {width} pixels, on "
        f"{result['machine']['processor']}, threads: {result['threads']}, on "
        f"{len(result['cpus'])} of {os.cpu_count()} CPUs",
        f"{result['cheapest']:.2f} to {result['most_expensive']:.2f} ms; {_fit_text(result)}",
    ]
    check = result.get("check")
    if check is None:
        lines.append("not checked (--detectors 30 checks it)")
    else:
        lines.append(f"check with {check_text(check)}")
        if check["tau_of_two_rounds"] < _NOISY:
            lines.append(
                "the two measurements hardly agree, so tau says little: make the table again while "
                "nothing else runs here, or with more --runs"
            )
    lines.append(f"a search reads it: SEARCH.LATENCY_TABLE {result['table']}")
    return "\n".join(lines)
