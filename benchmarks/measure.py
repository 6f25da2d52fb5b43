"""Interleaved timing of alternatives, shared by the benchmarks of operators and backbones.

Every repetition runs each alternative once, so that whatever else the machine does hits all of
them; the figure of an alternative is the lower quartile of its times. Large tensors are kept in
the allocator (see ``keep_memory``): mapping them again would cost page faults that hide the work.
On a CPU that has other work to do ``--processor-time`` counts what this process had of it.

On a GPU there are two numbers. "ms" is what a call takes from an idle device, Python and launches
included. "device_ms" is its work on the device alone: the device spins while the call is queued.
Beside it "model_ms" is what ``benchmarks/device_model.py`` expects by the bandwidth, the rate and
the time of a launch that were measured before: a model, not a measurement.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import device_model
import torch

from detnas_d2 import ops
from detnas_d2.ops import build_info
from detnas_d2.utils.cuda_graphs import CudaGraphs
from detnas_d2.utils.timing import in_turns, milliseconds

# glibc: take memory from the heap and never give it back.
KEEP = {"MALLOC_MMAP_THRESHOLD_": "4294967296", "MALLOC_TRIM_THRESHOLD_": "17179869184"}


def keep_memory(wanted: bool) -> None:
    """Restarts the script with an allocator that keeps its memory, unless it already has one."""
    if wanted and any(os.environ.get(k) != v for k, v in KEEP.items()):
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **KEEP})


def parser(description: str) -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(description=description)
    p.add_argument("--quick", action="store_true", help="few cases and repetitions")
    p.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    p.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    p.add_argument(
        "--processor-time", action="store_true", help="on a CPU: of all threads, not by the clock"
    )
    p.add_argument("--page-faults", action="store_true", help="glibc's default allocator")
    p.add_argument("--compile", action="store_true", help="torch.compile as a baseline, too")
    p.add_argument("--counts", type=Path, help="of launches.py --json: on a GPU, for the model")
    p.add_argument("--output", type=Path, help="append the JSON lines to this file, too")
    return p


def machine(device: str) -> dict[str, str]:
    """The machine, without its name."""
    model = platform.processor()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    described = {
        "cpu": model,
        "cores": str(os.cpu_count()),
        "capability": torch.ops.detnas_d2.cpu_capability(),
        "torch": torch.__version__,
        "library": build_info(),
    }
    if device == "cuda":
        described["gpu"] = torch.cuda.get_device_name()
    return described


class Report:
    """Prints JSON lines, first the machine and the command, and keeps them in a file if asked."""

    def __init__(self, bench: str, args: argparse.Namespace) -> None:
        self.bench, self.args = bench, args
        path = getattr(args, "counts", None) if args.device == "cuda" else None
        self.counts = json.loads(path.read_text(encoding="utf-8")) if path else None
        self.device: device_model.Device | None = None
        command = " ".join([Path(sys.argv[0]).name, *map(_without_path, sys.argv[1:])])
        self.write({"machine": machine(args.device), "command": f"benchmarks/{command}"})

    def write(self, record: dict) -> None:
        line = json.dumps(record)
        print(line, flush=True)
        if self.args.output:
            with self.args.output.open("a", encoding="utf-8") as file:
                file.write(line + "\n")

    def roofline(self, threads: int) -> dict[str, float]:
        """What the machine can do, written as a record; on a GPU the model's device, too."""
        limits = roofline(self.args.device, threads)
        self.write(limits)
        if self.args.device == "cuda":
            self.device = device_model.measured(torch.cuda.get_device_name(), limits)
        return limits

    def failed(self, case: str, error: Exception) -> None:
        """Writes that a case could not be measured."""
        self.write({"bench": self.bench, "case": case, "failed": str(error).splitlines()[0]})

    def compare(
        self,
        case: str,
        threads: int,
        ours: Callable[[], object],
        baselines: dict[str, Callable[[], object]],
        repetitions: int,
        model: Mapping[str, float] | None = None,
        **extra: object,
    ) -> None:
        """One line per baseline, and one for the best of them.

        Args:
            model: expected milliseconds on the device, of "ours" and of some baselines.
            extra: further fields. copy_ms: what a copy of as many bytes takes; the field is the
                share of the copy's bandwidth that ``ours`` reaches.
        """
        functions = [ours, *baselines.values()]
        clock = time.process_time if self.args.processor_time else time.perf_counter
        times, faults = interleaved(functions, repetitions, self.args.device, clock)
        cuda = self.args.device == "cuda"
        device = device_times(functions, repetitions) if cuda else times
        share = extra.pop("copy_ms", None)
        if share is not None:
            extra["share_of_copy_bandwidth"] = round(share / device[0], 3)
        names = list(baselines)
        best = min(names, key=lambda name: device[1 + names.index(name)])
        for name, label in [*((n, n) for n in names), (best, f"best ({best})")]:
            i = 1 + names.index(name)
            record = {
                "bench": self.bench,
                "case": case,
                "threads": threads,
                "baseline": label,
                "ratio": round(times[i] / times[0], 2),
                "ours_ms": round(times[0], 4),
                "baseline_ms": round(times[i], 4),
                "faults": [faults[0], faults[i]],
                **extra,
            }
            if cuda:
                record |= {
                    "device_ratio": round(device[i] / device[0], 2),
                    "ours_device_ms": round(device[0], 4),
                    "baseline_device_ms": round(device[i], 4),
                }
            for field, way in (("ours_model_ms", "ours"), ("baseline_model_ms", name)):
                if model is not None and way in model:
                    record[field] = round(model[way], 4)
            self.write(record)


def _without_path(argument: str) -> str:
    return Path(argument).name if "/" in argument else argument


def interleaved(
    functions: list[Callable[[], object]],
    repetitions: int,
    device: str,
    clock: Callable[[], float] = time.perf_counter,
) -> tuple[list[float], list[int]]:
    """Milliseconds (lower quartile) and page faults per run of each function."""
    for f in functions:
        f()
        f()

    def sample(f: Callable[[], object]) -> tuple[float, int]:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        ms = once(f, device, clock)
        return ms, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    samples = in_turns(sample, functions, repetitions)
    faults = [sum(n for _, n in row) // repetitions for row in samples]
    return [lower_quartile([ms for ms, _ in row]) for row in samples], faults


def lower_quartile(values: list[float]) -> float:
    return sorted(values)[len(values) // 4]


def once(
    f: Callable[[], object], device: str, clock: Callable[[], float] = time.perf_counter
) -> float:
    """Milliseconds of a call; of work on a GPU by its own clock."""
    if device == "cuda":
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        f()
        end.record()
        end.synchronize()
        return start.elapsed_time(end)
    start = clock()
    f()
    return (clock() - start) * 1e3


def device_times(functions: list[Callable[[], object]], repetitions: int) -> list[float]:
    """Milliseconds on the GPU (lower quartile) of each function, without waiting for launches."""
    cycles = []
    for f in functions:
        f()
        torch.cuda.synchronize()
        start = time.perf_counter()
        f()
        queued = time.perf_counter() - start
        torch.cuda.synchronize()
        # Spin for longer than it takes to queue the call, at 2 GHz.
        cycles.append(int(2e9 * (2 * queued + 2e-4)))

    def behind_a_spin(alternative: tuple[Callable[[], object], int]) -> float:
        torch.cuda._sleep(alternative[1])
        return once(alternative[0], "cuda")

    alternatives = list(zip(functions, cycles, strict=True))
    return list(map(lower_quartile, in_turns(behind_a_spin, alternatives, repetitions)))


def fastest(functions: list[Callable[[], object]], repetitions: int, device: str) -> float:
    """Milliseconds of the fastest of the functions."""
    if device == "cuda":
        for f in functions:
            f()
        return min(device_times(functions, repetitions))
    return min(interleaved(functions, repetitions, device)[0])


def multiply_add_rate(device: str, dtype: torch.dtype = torch.float32) -> float:
    """Multiply-adds per millisecond of the fastest product at hand: of matrices, by PyTorch, or a
    1x1 convolution whose operands stay in the cache, by this library."""
    like = {"device": device, "dtype": dtype}
    x = torch.rand(1, 384, 21, 40, **like).contiguous(memory_format=torch.channels_last)
    n = 4096 if device == "cuda" else 1024
    weight, matrix = torch.rand(384, 384, 1, 1, **like), torch.rand(n, n, **like)
    with torch.no_grad():
        convolution = fastest([lambda: ops.pointwise_conv(x, weight)], 20, device)
        product = fastest([lambda: matrix @ matrix], 20, device)
    return max(x.numel() * 384 / convolution, n**3 / product)


def roofline(device: str, threads: int) -> dict[str, float]:
    """What the machine can do, as a record of a report."""
    limits = {
        "threads": threads,
        "copy_gb_per_s": round(copy_bandwidth(device) / 1e6, 1),
        "multiply_adds_g_per_s": round(multiply_add_rate(device) / 1e6, 1),
    }
    if device == "cuda":  # of tensor cores, which 1x1 convolutions run on
        rate = multiply_add_rate(device, torch.bfloat16)
        limits["bfloat16_multiply_adds_g_per_s"] = round(rate / 1e6, 1)
        limits |= launch_microseconds()
    return limits


def launch_microseconds(launches: int = 200) -> dict[str, float]:
    """Of a kernel with nothing to do that waits for the one before: called, and in a graph."""
    x = torch.zeros(1, device="cuda")

    def chain() -> None:
        for _ in range(launches):
            x.add_(1)

    ways = {"launch_us": chain, "graph_launch_us": graphed(chain)}
    times = in_turns(lambda f: milliseconds(f, "cuda"), list(ways.values()), 10)
    return {
        name: round(min(row) * 1e3 / launches, 3) for name, row in zip(ways, times, strict=True)
    }


_GRAPHS = CudaGraphs()


def graphed(function: Callable[[], object]) -> Callable[[], object]:
    """A function that replays what the function does on the GPU, from a CUDA graph."""

    def run() -> None:
        function()

    return _GRAPHS.capture(run, torch.device("cuda", torch.cuda.current_device()))


def copy_bandwidth(device: str) -> float:
    """Bytes per millisecond that a copy of a large tensor reads and writes."""
    source = torch.empty((256 if device == "cuda" else 64) * 2**20, device=device)
    target = torch.empty_like(source)
    ms = fastest([lambda: target.copy_(source)], 10, device)
    return 2 * source.numel() * source.element_size() / ms
