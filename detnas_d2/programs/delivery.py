"""What a search ends with for other programs: its detector exported, and how long that takes here.

A budget in milliseconds is kept by a table while a search runs. Whether the trained detector keeps
it, as it will run, is measured at the end.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping, Sequence
from typing import Any

from detnas_d2.engine.runtimes import PYTORCH, RUNTIMES
from detnas_d2.programs import export, latency

EXPORT_FOLDER = "exported"


def deliver(
    detectors: Mapping[str, tuple[str, Sequence[str]]],
    format: str,
    budget: float | None = None,
    budget_of: str = PYTORCH,
) -> list[dict[str, Any]]:
    """Exports detectors, and measures them in turns with one image, the first test image.

    Args:
        detectors: folder of the file -> config, and KEY, VALUE overrides with the weights.
        format: one of :data:`detnas_d2.engine.export.FORMATS`.
        budget: milliseconds; None: nothing was asked for.
        budget_of: the runtime that the search kept it in. If that is one that runs the file, the
            budget is the file's, and PyTorch is not compared with it.

    Returns:
        Of each "export" (see :func:`detnas_d2.programs.export.run`), "latency" (of
        :func:`detnas_d2.programs.latency.measure`, of the runtimes that run the file, and of
        PyTorch), "budget_ms", "compared": the runtimes that are compared with it, and
        "over_budget": those of them that take longer.
    """
    exported = [
        export.run(
            Namespace(
                config_file=config,
                format=format,
                part="model",
                sample_image="",
                run_eval=False,
                output=output,
                tolerance=export.TOLERANCE,
                opts=list(opts),
            )
        )
        for output, (config, opts) in detectors.items()
    ]
    runtimes = None if format == "onnx" else (PYTORCH,)
    measured = latency.measure(list(detectors.values()), latency.Asked(runtimes))
    for (config, _), own in zip(detectors.values(), measured, strict=True):
        latency.keep(config, own)
    return [
        _judged(file, own, budget, budget_of) for file, own in zip(exported, measured, strict=True)
    ]


def _judged(
    exported: dict[str, Any], measured: dict[str, Any], budget: float | None, budget_of: str
) -> dict[str, Any]:
    """What :func:`deliver` tells of a detector."""
    found, compared = measured["runtimes"], []
    if budget is not None:
        compared = [name for name in found if budget_of == PYTORCH or name != PYTORCH]
    return {
        "export": exported,
        "latency": measured,
        "budget_ms": budget,
        "compared": compared,
        "over_budget": [name for name in compared if found[name]["milliseconds"] > budget],
    }


def lines(delivered: Mapping[str, Any]) -> list[str]:
    """What :func:`deliver` found of a detector, for people."""
    measured, budget = delivered["latency"], delivered["budget_ms"]
    threads = measured["threads"]
    told = [f"exported: {delivered['export']['file']}"]
    for name, found in measured["runtimes"].items():
        title = f"{RUNTIMES[name].title} {found['version']}".strip()
        where = f"{threads} thread{'s' * (threads != 1)}" if found["device"] == "cpu" else "GPU"
        text = f"measured {found['milliseconds']:.1f} ms ({title}, {where})"
        if name in delivered["compared"]:
            text = f"budget {budget:g} ms, {text}"
            if name in delivered["over_budget"]:
                share = found["milliseconds"] / budget - 1
                text += f": ABOVE THE BUDGET by {share:.0%}"
        told.append(text)
    told.append(f"with {latency.conditions_text(measured)}")
    return told + [f"not measured: {lack}" for lack in measured["not_measured"].values()]
