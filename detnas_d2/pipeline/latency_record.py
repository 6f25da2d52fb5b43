"""What ``detnas latency`` measured of a detector, kept in the folder of its stage.

Latencies are of one machine and of one network: the record tells both, and is not read any more
once the folder's config builds another network.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from typing import Any

from detectron2.config import CfgNode

from detnas_d2.config.tools import load_config
from detnas_d2.engine.latency import Latency
from detnas_d2.engine.runtimes import PYTORCH, RUNTIMES
from detnas_d2.pipeline.manifest import machine, versions
from detnas_d2.pipeline.state import read_json
from detnas_d2.utils.io import digest, write_json

LATENCY_FILE = "measured_latency.json"
VERSION = 2


@dataclass(frozen=True)
class RuntimeLatency(Latency):
    """A measurement in one runtime.

    Attributes:
        device: of the network, as torch names it.
        version: of the runtime.
        difference: of its detections from those of PyTorch.
    """

    device: str
    version: str
    difference: float


@dataclass(frozen=True)
class LatencyRecord:
    """Measurements of a network, in turns.

    Attributes:
        runtimes: name of the runtime -> what was measured, one at least.
        parts: milliseconds of backbone, neck and head in PyTorch; None where that was not measured.
        picture: height and width of the image; ``height`` and ``width``: of what the network sees.
        batch: images.
        runs: that count, after ``warm_up`` others.
        threads: on a CPU; ``cpus``: numbers of those that could be used.
        machine, versions: as in a pipeline's manifest.
        time: when, in ISO 8601.
        config: the config's file in the folder; ``network``: digest of what of it counts.
    """

    runtimes: dict[str, RuntimeLatency]
    parts: dict[str, float] | None
    picture: list[int]
    height: int
    width: int
    batch: int
    runs: int
    warm_up: int
    threads: int
    cpus: list[int]
    machine: dict[str, Any]
    versions: dict[str, str]
    time: str
    config: str
    network: str

    @property
    def first(self) -> str:
        """The runtime that networks are compared in: PyTorch, else the first one measured."""
        return next(iter(sorted(self.runtimes, key=lambda name: name != PYTORCH)))

    @property
    def milliseconds(self) -> float:
        """In the first runtime."""
        return self.runtimes[self.first].milliseconds

    @property
    def conditions(self) -> str:
        """Those of the first runtime: latencies with the same text can be compared."""
        return self.conditions_of(self.first)

    def conditions_of(self, runtime: str) -> str:
        """Where and of what, in words."""
        kind, _, number = self.runtimes[runtime].device.partition(":")
        if kind == "cpu":
            threads = f"{self.threads} thread{'s' if self.threads > 1 else ''}"
            place = f"{self.machine['processor']}, {threads}"
        else:
            place = self.machine["gpus"][int(number or 0)]
        images = "one image" if self.batch == 1 else f"{self.batch} images"
        size = f"{self.height} x {self.width} pixels"
        return f"{images} of {size} in {RUNTIMES[runtime].title} on {place}"


def keep_latency(config: str, measured: Mapping[str, Any]) -> str:
    """Writes the record of a detector next to its config; returns the file.

    Args:
        measured: the attributes of :class:`LatencyRecord` that the measurement tells, ``runtimes``
            as mappings.

    Raises:
        OSError: the folder cannot be written to.
    """
    folder, name = os.path.split(config)
    record = LatencyRecord(
        **{key: value for key, value in measured.items() if key != "runtimes"},
        runtimes={name: RuntimeLatency(**own) for name, own in measured["runtimes"].items()},
        machine=machine(),
        versions=versions(),
        time=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        config=name,
        network=network_digest(load_config(config)),
    )
    file = os.path.join(folder, LATENCY_FILE)
    write_json(file, {"version": VERSION, **asdict(record)}, indent=1)
    return file


def read_latency(folder: str) -> LatencyRecord | None:
    """The record in a folder; None without a whole one, and where the config that it names builds
    another network now.
    """
    told = read_json(folder, LATENCY_FILE)
    if told.pop("version", None) != VERSION:
        return None
    try:
        measured = {name: RuntimeLatency(**own) for name, own in told.pop("runtimes").items()}
        record = LatencyRecord(measured, **told)
        numbers = [v for own in measured.values() for v in (own.milliseconds, own.low, own.high)]
        whole = all(map(math.isfinite, numbers)) and all(map(record.conditions_of, measured))
        same = network_digest(load_config(os.path.join(folder, record.config))) == record.network
    except (AttributeError, LookupError, StopIteration, TypeError, ValueError):
        return None
    return record if measured and whole and same else None


def network_digest(cfg: CfgNode) -> str:
    """Of the keys that decide a detector's latency: all of MODEL but weights and device, the sizes
    of images, and how many detections are kept.
    """
    model = cfg.MODEL.clone()
    model.defrost()
    model.WEIGHTS = model.DEVICE = ""
    kept = cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST, cfg.TEST.DETECTIONS_PER_IMAGE
    return digest([model, kept])
