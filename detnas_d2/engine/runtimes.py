"""What runs a detector: PyTorch, or a runtime that takes its ONNX file."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from detnas_d2.utils.errors import InputError

Runner = Callable[[Tensor], tuple[Tensor, ...]]

PYTORCH, ONNXRUNTIME, OPENVINO, TENSORRT = "pytorch", "onnxruntime", "openvino", "tensorrt"
_TENSORRT_PROVIDER = "TensorrtExecutionProvider"


@dataclass(frozen=True)
class Runtime:
    """A runtime.

    Args:
        title: its name for people.
        package: that has its version.
        needs: packages without which it does not run an ONNX file that this project writes.
    """

    title: str
    package: str
    needs: tuple[str, ...] = ()


RUNTIMES = {
    PYTORCH: Runtime("PyTorch", "torch"),
    ONNXRUNTIME: Runtime("ONNX Runtime", "onnxruntime", ("onnx", "onnxruntime")),
    OPENVINO: Runtime("OpenVINO", "openvino", ("onnx", "onnxruntime", "openvino")),
    TENSORRT: Runtime("TensorRT", "onnxruntime-gpu", ("onnx", "onnxruntime")),
}


def missing(runtime: str) -> str:
    """What a runtime lacks here and how to install it, in a line; "" if it can be used."""
    found = RUNTIMES[runtime]
    absent = [name for name in found.needs if importlib.util.find_spec(name) is None]
    if absent:
        return f"{found.title} needs packages that are missing: pip install {' '.join(absent)}"
    if runtime == TENSORRT:
        import onnxruntime

        if _TENSORRT_PROVIDER not in onnxruntime.get_available_providers():
            return (
                "TensorRT is used through ONNX Runtime, which has no TensorrtExecutionProvider "
                "here: pip install onnxruntime-gpu tensorrt, where there is an NVIDIA GPU"
            )
    return ""


def installed() -> tuple[str, ...]:
    """The runtimes that can be used here."""
    return tuple(name for name in RUNTIMES if not missing(name))


def version_of(runtime: str) -> str:
    """The runtime's version; "" where its package does not tell."""
    try:
        return importlib.metadata.version(RUNTIMES[runtime].package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def load_onnx(
    file: str, runtime: str = ONNXRUNTIME, *, threads: int = 0, shape: tuple[int, ...] = ()
) -> Runner:
    """A function from an input tensor to the output tensors of an ONNX file with one input.

    Args:
        threads: on the CPU; 0: as many as the runtime takes.
        shape: of the inputs, which OpenVINO needs: others are refused then.

    Raises:
        InputError: the runtime is missing, or does not take the file.
    """
    lack = missing(runtime)
    if lack:
        raise InputError(lack)
    if runtime == OPENVINO:
        return _openvino(file, threads, shape)
    return _onnxruntime(file, threads, _TENSORRT_PROVIDER if runtime == TENSORRT else "")


def _onnxruntime(file: str, threads: int, accelerator: str) -> Runner:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    options.intra_op_num_threads = threads
    # Threads that wait for more work take the processor from what runs next.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    providers = [*([accelerator] if accelerator else []), "CPUExecutionProvider"]
    session = onnxruntime.InferenceSession(file, options, providers=providers)
    if accelerator not in ("", session.get_providers()[0]):
        raise InputError(f"{accelerator} does not start: ONNX Runtime fell back to the CPU")
    (name,) = (value.name for value in session.get_inputs())

    def run(image: Tensor) -> tuple[Tensor, ...]:
        values = session.run(None, {name: image.cpu().numpy()})
        return tuple(torch.from_numpy(value) for value in values)

    return run


def _openvino(file: str, threads: int, shape: tuple[int, ...]) -> Runner:
    import openvino

    core = openvino.Core()
    model = core.read_model(file)
    # With free sizes OpenVINO 2026.4 pads images wrongly: a ReduceMax over sizes goes astray.
    model.reshape(list(shape))
    settings = {
        "INFERENCE_PRECISION_HINT": "f32",
        "PERFORMANCE_HINT": "LATENCY",
        "ENABLE_CPU_PINNING": False,  # nobody else's threads are pinned
        **({"INFERENCE_NUM_THREADS": threads} if threads else {}),
    }
    request = core.compile_model(model, "CPU", settings).create_infer_request()

    def run(image: Tensor) -> tuple[Tensor, ...]:
        found = request.infer([image.cpu().numpy()])
        return tuple(torch.from_numpy(value.copy()) for value in found.to_tuple())

    return run
