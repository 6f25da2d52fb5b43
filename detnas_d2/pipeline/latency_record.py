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
from detnas_d2.pipeline.manifest import machine, versions
from detnas_d2.pipeline.state import read_json
from detnas_d2.utils.io import digest, write_json

LATENCY_FILE = "measured_latency.json"
VERSION = 1


@dataclass(frozen=True)
class LatencyRecord:
    """A measurement.

    Attributes:
        milliseconds: median over ``runs``, of a batch of ``batch`` images of ``height`` x ``width``
            pixels, from images to detections; ``low`` and ``high``: quartiles.
        body: the same of the backbone without its neck.
        device: of torch; ``threads`` counts on a CPU alone.
        machine, versions: as in a pipeline's manifest.
        time: when, in ISO 8601.
        config: the config's file in the folder; ``network``: digest of what of it counts.
    """

    milliseconds: float
    low: float
    high: float
    body: float
    runs: int
    batch: int
    height: int
    width: int
    device: str
    threads: int
    machine: dict[str, Any]
    versions: dict[str, str]
    time: str
    config: str
    network: str

    @property
    def conditions(self) -> str:
        """Where and of what, in words: latencies with the same text can be compared."""
        kind, _, number = self.device.partition(":")
        if kind == "cpu":
            threads = f"{self.threads} thread{'s' if self.threads > 1 else ''}"
            place = f"{self.machine['processor']}, {threads}"
        else:
            place = self.machine["gpus"][int(number or 0)]
        images = "one image" if self.batch == 1 else f"{self.batch} images"
        return f"{images} of {self.height} x {self.width} pixels on {place}"


def keep_latency(config: str, measured: Mapping[str, Any]) -> str:
    """Writes the record of a detector next to its config; returns the file.

    Args:
        measured: the attributes of :class:`LatencyRecord` that the measurement tells.

    Raises:
        OSError: the folder cannot be written to.
    """
    folder, name = os.path.split(config)
    record = LatencyRecord(
        **measured,
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
        record = LatencyRecord(**told)
        numbers = record.milliseconds, record.low, record.high, record.body
        whole = all(map(math.isfinite, numbers)) and record.conditions
        same = network_digest(load_config(os.path.join(folder, record.config))) == record.network
    except (LookupError, TypeError, ValueError):  # an InputError is one
        return None
    return record if whole and same else None


def network_digest(cfg: CfgNode) -> str:
    """Of the keys that decide a detector's latency: all of MODEL but weights and device, the sizes
    of images, and how many detections are kept.
    """
    model = cfg.MODEL.clone()
    model.defrost()
    model.WEIGHTS = model.DEVICE = ""
    kept = cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST, cfg.TEST.DETECTIONS_PER_IMAGE
    return digest([model, kept])
