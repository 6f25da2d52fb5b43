"""Expected times of forwards of the 300M backbone on a GPU, by a model: no measurement, no GPU.

    python benchmarks/model.py [--device A100 H100 H200] [--counts FILE] [--json]

Launches, and the bytes and multiply-adds of each, are counted by ``benchmarks/launches.py``, which
needs g++ on x86-64 and compiles for minutes; ``--counts`` takes what it printed with ``--json``.
The rest is ``benchmarks/device_model.py``: 16-bit maps, published bandwidth and tensor rate, and a
fixed time for each launch.

    ours           the operators
    eager          the modules, without autocast
    torch.compile  the same, everything elementwise between two convolutions one launch, at best

"graph": all launches from a CUDA graph. "calls": from Python, the later of host and device.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from device_model import DEVICES, Device, Kernel, call_ms, device_ms

SIZES = ("320x480", "800x1216")
BATCHES = (1, 2, 16)
WAYS = ("ours", "eager", "torch.compile")

Counts = Mapping[str, Mapping[str, Sequence[Sequence[float]]]]
"""Rows of :class:`Kernel` by way and forward, the field "kernels" of launches.py."""


def kernels_of(counts: Counts, way: str, forward: str) -> list[Kernel]:
    """Launches of a forward.

    Raises:
        KeyError: the counts have none of that way or forward.
    """
    return [Kernel(int(launches), *rest) for launches, *rest in counts[way][forward]]


def pixels_of(size: str, batch: int) -> int:
    h, w = map(int, size.split("x"))
    return batch * h * w


def expected(counts: Counts, device: Device) -> list[dict]:
    """One record for each forward, size and batch: milliseconds of every way."""
    found = []
    for forward in counts["ours"]:
        for size in SIZES:
            for batch in BATCHES:
                pixels = pixels_of(size, batch)
                record: dict = {"forward": forward, "size": size, "batch": batch}
                for way in WAYS:
                    kernels = kernels_of(counts, way, forward)
                    record[way] = {
                        "launches": sum(kernel.launches for kernel in kernels),
                        "graph_ms": round(device_ms(kernels, device, pixels), 3),
                        "calls_ms": round(call_ms(kernels, device, pixels), 3),
                    }
                found.append(record)
    return found


def table(records: Sequence[dict], device: Device) -> str:
    """The records as markdown; ratios are to ours."""
    lines = [
        f"{device.name}, a model and no measurement: {device.bandwidth / 1e12:.2f} TB/s, "
        f"{device.flops / 1e12:.0f} TFLOP/s, {device.graph_us:.1f} us a launch in a graph, "
        f"{device.launch_us:.1f} us from Python ({device.source})",
        "",
        "| forward | images | ours, graph, ms | eager | torch.compile | ours, calls, ms | eager "
        "| torch.compile |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for record in records:
        cells = [record["forward"], f"{record['batch']} of {record['size']}"]
        for field in ("graph_ms", "calls_ms"):
            ours = record["ours"][field]
            cells.append(f"{ours:.2f}")
            cells += [
                f"{record[way][field]:.2f} ({record[way][field] / ours:.1f}x)" for way in WAYS[1:]
            ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", nargs="+", default=list(DEVICES), choices=list(DEVICES))
    parser.add_argument("--counts", type=Path, help="what launches.py --json printed")
    parser.add_argument("--json", action="store_true", help="one JSON object")
    args = parser.parse_args()
    if args.counts:
        counts = json.loads(args.counts.read_text(encoding="utf-8"))["kernels"]
    else:
        from launches import found  # torch, and the emulator's library

        counts = found()["kernels"]
    rows = {name: expected(counts, DEVICES[name]) for name in args.device}
    if args.json:
        print(json.dumps({"model": rows}))
        return
    print("\n\n".join(table(records, DEVICES[name]) for name, records in rows.items()))


if __name__ == "__main__":
    main()
