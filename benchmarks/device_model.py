"""A model of the time that kernels take on a GPU: from bytes, multiply-adds and launches.

No measurement. Every kernel takes what its bytes take at the device's bandwidth, or its
multiply-adds at the rate of its tensor cores, those of depthwise convolutions at that of the other
cores, whichever is most, and a fixed time between its launch and that of the next one, which waits
for it. Caches, occupancy and the shares of the peak rates that kernels reach are left out: times
are lower bounds for large maps, and estimates for small ones.

    device   kernels queued behind one another, or replayed from a CUDA graph
    host     called one by one from Python: the host takes its time for each, which the device waits
             for unless it has more to do
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple


class Kernel(NamedTuple):
    """Like launches of a forward pass, as functions of the number of pixels of its images.

    Attributes:
        launches: all together.
        elements, pixel_elements: of tensors that they read or write, fixed and for every pixel.
        multiply_adds: for every pixel, on tensor cores.
        vector_adds: the same of depthwise convolutions, which tensor cores do not help.
    """

    launches: int
    elements: float
    pixel_elements: float
    multiply_adds: float
    vector_adds: float = 0.0


@dataclass(frozen=True)
class Device:
    """What a model knows of a GPU.

    Attributes:
        bandwidth: bytes per second.
        flops: of tensor cores in bfloat16, dense, per second; a multiply-add is two.
        vector_flops: the same of the other cores in float32.
        graph_us: microseconds from a kernel's start to that of the next in a graph, if it does
            nothing.
        launch_us: the same where PyTorch calls it from Python.
        source: where the figures come from.
    """

    name: str
    bandwidth: float
    flops: float
    vector_flops: float
    graph_us: float
    launch_us: float
    source: str


_ASSUMED = "2.2 us a kernel in a graph and 6 us an operator from Python are assumptions"
DEVICES = {
    "A100": Device(
        "A100", 2.039e12, 312e12, 19.5e12, 2.2, 6.0,
        f"NVIDIA A100 Tensor Core GPU datasheet, 80 GB SXM; {_ASSUMED}",
    ),
    "H100": Device(
        "H100", 3.35e12, 989.5e12, 67e12, 2.2, 6.0,
        f"NVIDIA H100 Tensor Core GPU datasheet, SXM, half of the rate with sparsity; {_ASSUMED}",
    ),
    "H200": Device(
        "H200", 4.8e12, 989.5e12, 67e12, 2.2, 6.0,
        f"NVIDIA H200 Tensor Core GPU datasheet, SXM, half of the rate with sparsity; {_ASSUMED}",
    ),
}  # fmt: skip


def published(name: str) -> Device | None:
    """The device that a GPU's name ("NVIDIA H100 80GB HBM3") tells of; None for others."""
    return next((device for key, device in DEVICES.items() if key in name), None)


def measured(name: str, limits: Mapping[str, float]) -> Device:
    """The device by a record of ``measure.roofline``.

    Raises:
        KeyError: the record lacks a field; those of a CPU do.
    """
    return Device(
        name,
        limits["copy_gb_per_s"] * 1e9,
        2e9 * limits["bfloat16_multiply_adds_g_per_s"],
        2e9 * limits["multiply_adds_g_per_s"],
        limits["graph_launch_us"],
        limits["launch_us"],
        "measured: copy, matrix product, chain of small kernels",
    )


def kernel_ms(device: Device, size: float, multiply_adds: float, vector_adds: float = 0.0) -> float:
    """Milliseconds of work by bytes or multiply-adds of either kind, whichever takes longest; none
    for launches."""
    adds = max(multiply_adds / device.flops, vector_adds / device.vector_flops)
    return 1e3 * max(size / device.bandwidth, 2 * adds)


def device_ms(kernels: Iterable[Kernel], device: Device, pixels: int, itemsize: int = 2) -> float:
    """Milliseconds on the device: launches, and the work of each kernel.

    Args:
        pixels: of all images of the batch.
        itemsize: bytes of an element; 2 for 16 bits.
    """
    total = 0.0
    for kernel in kernels:
        size = itemsize * (kernel.elements + kernel.pixel_elements * pixels)
        total += kernel.launches * device.graph_us * 1e-3
        total += kernel_ms(device, size, kernel.multiply_adds * pixels, kernel.vector_adds * pixels)
    return total


def call_ms(kernels: Iterable[Kernel], device: Device, pixels: int, itemsize: int = 2) -> float:
    """Milliseconds of a call from Python: of the host or of the device, whichever is later."""
    kept = list(kernels)
    host = sum(kernel.launches for kernel in kept) * device.launch_us * 1e-3
    return max(host, device_ms(kept, device, pixels, itemsize))


def operator_ms(device: Device, launches: int, size: float, multiply_adds: float) -> float:
    """Milliseconds on the device of an operator that moves ``size`` bytes in all its launches."""
    return launches * device.graph_us * 1e-3 + kernel_ms(device, size, multiply_adds)
