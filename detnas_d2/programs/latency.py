"""Milliseconds of trained detectors in every runtime, measured in turns in one process."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

import torch
from detectron2.config import CfgNode
from tabulate import tabulate

from detnas_d2.command import text_of
from detnas_d2.config.reading import read_yaml
from detnas_d2.config.tools import load_config
from detnas_d2.config.values import COSTS
from detnas_d2.data import register_datasets
from detnas_d2.engine.defaults import fall_back_to_cpu
from detnas_d2.engine.export import Exported, ExportError, difference, export_network
from detnas_d2.engine.inference import load_trained
from detnas_d2.engine.latency import (
    WARM_UP,
    DetectorRun,
    PartsRun,
    Picture,
    exported_run,
    latency_of,
    parts_of,
    pytorch_run,
    timed_in_turns,
)
from detnas_d2.engine.runtimes import (
    ONNXRUNTIME,
    PYTORCH,
    RUNTIMES,
    load_onnx,
    missing,
    version_of,
)
from detnas_d2.pipeline.latency_record import keep_latency
from detnas_d2.utils.cpus import usable_cpus
from detnas_d2.utils.errors import InputError

TOLERANCE = 1e-3
"""Largest :func:`difference` of a runtime's detections from those of PyTorch."""


@dataclass(frozen=True)
class Asked:
    """A measurement.

    Args:
        runtimes: None: all that are installed.
        image: file; "": the first test image, unless ``size`` (height, width) asks for noise.
        repeats: runs that count.
        threads: of a CPU; 0: those that torch takes.
    """

    runtimes: tuple[str, ...] | None = None
    image: str = ""
    size: tuple[int, int] | None = None
    repeats: int = 30
    threads: int = 0

    def usable(self) -> tuple[tuple[str, ...], dict[str, str]]:
        """The runtimes to use, and what the others lack.

        Raises:
            InputError: one that was named is missing.
        """
        lacks = {name: lack for name in self.runtimes or RUNTIMES if (lack := missing(name))}
        if self.runtimes is not None and lacks:
            raise InputError(f"--runtime {next(iter(lacks))}: {next(iter(lacks.values()))}")
        return tuple(n for n in self.runtimes or RUNTIMES if n not in lacks), lacks


@dataclass
class _Prepared:
    """A detector that is ready to run: by runtime, and why in others it is not."""

    cfg: CfgNode
    model: Any
    picture: Picture
    runs: dict[str, DetectorRun] = field(default_factory=dict)
    differences: dict[str, float] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)

    @cached_property
    def all(self) -> list[DetectorRun | PartsRun]:
        """All that is measured; last the parts in PyTorch, where that is asked for."""
        parts = [PartsRun.of_model(self.model, self.picture)] if PYTORCH in self.runs else []
        return [*self.runs.values(), *parts]

    def result(
        self, rows: Sequence[Sequence[tuple[float, ...]]], asked: Asked, lacks: Mapping[str, str]
    ) -> dict[str, Any]:
        """What measurements of :attr:`all` tell."""
        image = self.picture.input()
        found = {name: latency_of(own) for name, own in zip(self.runs, rows, strict=False)}
        parts = asdict(parts_of(rows[-1], found[PYTORCH])) if PYTORCH in found else None
        return {
            "picture": list(self.picture.size),
            "height": image.shape[1],
            "width": image.shape[2],
            "batch": 1,
            "runs": asked.repeats,
            "warm_up": WARM_UP,
            "threads": torch.get_num_threads(),
            "cpus": usable_cpus(),
            "runtimes": {
                name: {
                    **asdict(latency),
                    "device": self.runs[name].device,
                    "version": version_of(name),
                    "difference": self.differences.get(name, 0.0),
                }
                for name, latency in found.items()
            },
            "parts": parts,
            "not_measured": {**self.refused, **lacks},
        }


def measure(detectors: Sequence[tuple[str, Sequence[str]]], asked: Asked) -> list[dict[str, Any]]:
    """Latencies of detectors, each a config file and KEY, VALUE overrides; all in turns.

    Raises:
        InputError: of the options, or a detector that cannot be loaded.
    """
    names, lacks = asked.usable()
    with threads_of(asked.threads), tempfile.TemporaryDirectory() as folder:
        prepared = [
            _prepare(file, opts, asked, names, os.path.join(folder, str(number)))
            for number, (file, opts) in enumerate(detectors)
        ]
        rows = iter(timed_in_turns([run for each in prepared for run in each.all], asked.repeats))
        return [
            {"detector": file, **each.result([next(rows) for _ in each.all], asked, lacks)}
            for (file, _), each in zip(detectors, prepared, strict=True)
        ]


@contextlib.contextmanager
def threads_of(count: int) -> Iterator[None]:
    """Within the block torch uses ``count`` threads; 0: as many as before."""
    before = torch.get_num_threads()
    try:
        if count:
            torch.set_num_threads(count)
        yield
    finally:
        torch.set_num_threads(before)


def _prepare(
    file: str, opts: Sequence[str], asked: Asked, names: Sequence[str], folder: str
) -> _Prepared:
    cfg = load_config(file, opts)
    fall_back_to_cpu(cfg)
    if not asked.image and asked.size is None:
        register_datasets(cfg)
    picture = Picture.of_config(cfg, asked.image, asked.size)
    model = load_trained(cfg)
    prepared = _Prepared(cfg, model, picture)
    eager = pytorch_run(model, picture)
    if PYTORCH in names:
        prepared.runs[PYTORCH] = eager
    others = [name for name in names if name != PYTORCH]
    if others:
        image = picture.input()
        try:
            exported = export_network(cfg, image, folder, format="onnx", tolerance=TOLERANCE)
        except ExportError as error:
            prepared.refused.update(
                (name, f"{RUNTIMES[name].title}: {text_of(error)}") for name in others
            )
            return prepared
        for name in others:
            _add_exported(prepared, name, exported, image.float())
    return prepared


def _add_exported(prepared: _Prepared, name: str, exported: Exported, image: torch.Tensor) -> None:
    """The run of a file by a runtime, if that finds what PyTorch does."""
    threads, shape = torch.get_num_threads(), tuple(image.shape)
    runner = load_onnx(exported.file, name, threads=threads, shape=shape)
    found = exported.differences[0]
    if name != ONNXRUNTIME:  # what the file was compared with when it was written
        reference = load_onnx(exported.file)(image)
        found = max(found, difference(exported.outputs, reference, runner(image)))
    if found > TOLERANCE:
        prepared.refused[name] = (
            f"{RUNTIMES[name].title}: its detections differ by {found:.2g} from PyTorch's "
            f"(tolerance {TOLERANCE:g}), so its time means nothing"
        )
        return
    prepared.runs[name] = exported_run(exported, runner, prepared.picture)
    prepared.differences[name] = found


def front_members(file: str) -> list[dict[str, Any]]:
    """The members that ``front.yaml`` lists, each with ``config``: its file beside it.

    Raises:
        InputError: the file lists none, or a member has no checkpoint.
    """
    value = read_yaml(file).data
    members = value.get("members") if isinstance(value, dict) else None
    if (
        not isinstance(members, list)
        or not all(isinstance(m, dict) for m in members)
        or not members
    ):
        raise InputError(f"{file}: members: expected the front of a search of several objectives")
    folder = os.path.join(os.path.dirname(file), "front")
    told = []
    for number, member in enumerate(members, start=1):
        config = os.path.join(folder, f"{number}.yaml")
        if not os.path.isfile(config):
            raise InputError(
                f"{config}: missing, the network of member {number} of {file}; resume the search "
                "to write it"
            )
        told.append({**member, "number": number, "config": config})
    return told


def keep(config: str, result: Mapping[str, Any]) -> str:
    """The file that keeps a result for the report; "" and a note where that cannot be written."""
    told = {k: v for k, v in result.items() if k not in ("detector", "not_measured")}
    try:
        return keep_latency(config, told)
    except OSError as error:
        print(f"note: not kept for the report: {text_of(error)}", file=sys.stderr)
        return ""


def conditions_text(result: Mapping[str, Any]) -> str:
    """Of what and how, in a line."""
    height, width = result["picture"]
    seen = f"{result['height']} x {result['width']}"
    size = f"{height} x {width} pixels"
    size += "" if seen == f"{height} x {width}" else f", seen as {seen}"
    cpus = result["cpus"]
    return (
        f"one image of {size}; threads: {result['threads']}, on {len(cpus)} of "
        f"{os.cpu_count()} CPUs; {result['runs']} runs in turns after {result['warm_up']} others"
    )


def text(result: Mapping[str, Any]) -> str:
    """A result of :func:`measure`, for people."""
    rows = [
        (
            f"{RUNTIMES[name].title} {told['version']}".strip(),
            told["device"],
            f"{told['milliseconds']:.2f}",
            f"{told['low']:.2f} to {told['high']:.2f}",
            *(f"{told[piece]:.2f}" for piece in ("before", "network", "after")),
        )
        for name, told in result["runtimes"].items()
    ]
    head = ("runtime", "on", "ms", "quartiles", "before", "network", "after")
    lines = [f"{result['detector']}: {conditions_text(result)}"]
    lines += tabulate(rows, headers=head, disable_numparse=True, tablefmt="plain").splitlines()
    if result["parts"]:
        parts = result["parts"]
        lines.append(
            f"in PyTorch the backbone takes {parts['backbone']:.2f} ms, the neck "
            f"{parts['neck']:.2f}, the rest of the network {parts['head']:.2f}"
        )
    lines += [f"not measured: {lack}" for lack in result["not_measured"].values()]
    if result.get("kept"):
        lines.append(f"kept in {result['kept']} (detnas report shows it)")
    return "\n".join(lines)


def front_text(result: Mapping[str, Any]) -> str:
    """Results of a front's members, for people."""
    members = result["members"]
    names = list(members[0]["runtimes"])
    costs = [key for key in COSTS if key in members[0]]
    rows = [
        (
            member["number"],
            f"{member['fitness']:.2f}",
            *(f"{member[cost]:.4g}" for cost in costs),
            *(_cell(member["runtimes"].get(name)) for name in names),
        )
        for member in members
    ]
    head = ("number", "fitness", *costs, *(f"{RUNTIMES[name].title}, ms" for name in names))
    lines = [f"{result['front']}: {conditions_text(members[0])}; medians and quartiles"]
    lines += tabulate(rows, headers=head, disable_numparse=True, tablefmt="plain").splitlines()
    told = dict.fromkeys(lack for m in members for lack in m["not_measured"].values())
    return "\n".join([*lines, *(f"not measured: {lack}" for lack in told)])


def _cell(told: Mapping[str, Any] | None) -> str:
    if told is None:
        return "-"
    return f"{told['milliseconds']:.2f} ({told['low']:.2f} to {told['high']:.2f})"
