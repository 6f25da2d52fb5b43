"""The report on a truth set: text, numbers and a figure."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from detnas_d2.analysis.rank_statistics import Interval
from detnas_d2.pipeline.certificate import MACS, SUPERNET, Certificate, Ranker
from detnas_d2.search.cost_draws import BAND
from detnas_d2.search.truth import TruthSet
from detnas_d2.utils.figures import new_figure, save_figure

_VERDICTS = {
    "below the floor": "Do not choose networks by this supernet",
    "floor": "The supernet knows something, too little to choose networks by it alone",
    "credible": "The supernet ranks as plain one-shot supernets do, so train several of its best",
    "strong": "The supernet ranks well, so train its best few",
    "goal": "The supernet can be trusted, its best network is worth training",
}


def verdict(certificate: Certificate) -> str:
    """One sentence for a user."""
    own = certificate.ranker(SUPERNET)
    base = f"{certificate.networks} networks x {certificate.seeds} trainings"
    if own is None:
        return f"No supernet was evaluated on the {base}: give --supernet FILE."
    return (
        f"{_VERDICTS[certificate.level]}: tau {own.tau} over {base}, where a perfect ranking would "
        f"reach {_two(certificate.ceiling)} ({certificate.level})."
    )


def markdown(certificate: Certificate, truth: TruthSet) -> str:
    """The report as text."""
    c, spread, metric = certificate, certificate.spread, certificate.metric
    lines = [
        verdict(c),
        "",
        f"Truth: {metric} on {truth.dataset} of {c.networks} networks of space {truth.space} over "
        f"the range of their costs, and {c.band} within {BAND:.0%} of "
        f"{truth.band_macs / 1e6:.1f}M multiply-adds, {c.seeds} trainings each"
        f"{f'; {c.left_out} more lack a training or a score' if c.left_out else ''}.",
        "",
        f"Networks differ by {spread.between:.2f}, trainings of one by {_two(spread.within)} "
        f"(standard deviations). A perfect ranker would reach a tau of {_two(c.ceiling)} by these "
        f"components, {_two(c.split_ceiling)} by how halves of the trainings agree.",
        "",
        "| ranked by | tau-b | tau less that of multiply-adds | sparse tau | Spearman | "
        "regret of top 1 | of top 3 | tau in the band |",
        "|---|---|---|---|---|---|---|---|",
        *(_row(ranker, c.deviation) for ranker in c.rankers),
        "",
        "Intervals are 95 %, bootstrapped over networks and their trainings. Sparse tau takes "
        "truth in whole deviations of a training. Regret: the best network's "
        f"{metric} less that of the best among the highest ranked, in brackets in standard "
        "deviations of the networks. Multiply-adds count in the direction that ranks better.",
        "",
    ]
    own = c.ranker(SUPERNET)
    if own is not None:
        lines += [
            f"Supernet and search cost what {c.best_of} trainings cost. The best of "
            f"{min(c.best_of, c.networks)} random networks, chosen by one training, has "
            f"{c.best_of_truth:.2f} {metric} on average; the network that the supernet ranks "
            f"highest of {c.networks} has {c.chosen_truth:.2f}.",
            "",
            "| level | condition | met |",
            "|---|---|---|",
        ]
        for level, conditions in c.conditions().items():
            lines += [f"| {level} | {text} | {_yes(met)} |" for text, met in conditions.items()]
        lines.append("")
    versions = ", ".join(f"{name} {version}" for name, version in truth.versions.items())
    return "\n".join([*lines, f"Truth set made by `{truth.command}` with {versions}.", ""])


def _row(ranker: Ranker, deviation: float) -> str:
    regrets = [
        f"{value:.2f} ({value / deviation:.2f})" if deviation else f"{value:.2f}"
        for value in ranker.regrets.values()
    ]
    band = "" if ranker.band_tau is None else str(ranker.band_tau)
    cells = [
        ranker.name,
        str(ranker.tau),
        str(ranker.above_macs),
        _two(ranker.sparse_tau),
        _two(ranker.spearman),
        *regrets,
        band,
    ]
    return f"| {' | '.join(cells)} |"


def _two(value: float) -> str:
    return "unknown" if math.isnan(value) else f"{value:.2f}"


def _yes(met: bool) -> str:
    return "yes" if met else "no"


def numbers(certificate: Certificate, truth: TruthSet) -> dict[str, Any]:
    """The report as JSON values."""
    c = certificate
    return {
        "level": c.level if c.conditions() else None,
        "metric": c.metric,
        "dataset": truth.dataset,
        "space": truth.space,
        "networks": c.networks,
        "band_networks": c.band,
        "seeds": c.seeds,
        "left_out": c.left_out,
        "between": c.spread.between,
        "within": c.spread.within,
        "deviation": c.deviation,
        "ceiling": c.ceiling,
        "split_ceiling": c.split_ceiling,
        "best_of": c.best_of,
        "best_of_truth": c.best_of_truth,
        "chosen_truth": c.chosen_truth,
        "rankers": {ranker.name: _of_ranker(ranker) for ranker in c.rankers},
        "conditions": c.conditions(),
    }


def _of_ranker(ranker: Ranker) -> dict[str, Any]:
    return {
        "tau": _triple(ranker.tau),
        "above_macs": _triple(ranker.above_macs),
        "sparse_tau": ranker.sparse_tau,
        "spearman": ranker.spearman,
        "regrets": {str(top): value for top, value in ranker.regrets.items()},
        "band_tau": None if ranker.band_tau is None else _triple(ranker.band_tau),
    }


def _triple(found: Interval) -> list[float]:
    return [found.value, found.low, found.high]


def record(certificate: Certificate) -> dict[str, Any]:
    """A few numbers by which supernets of one space are compared."""
    own = certificate.ranker(SUPERNET)
    macs = certificate.ranker(MACS)
    assert macs is not None
    return {
        "tau": own and own.tau.value,
        "tau_low": own and own.tau.low,
        "tau_high": own and own.tau.high,
        "ceiling": certificate.ceiling,
        "band_tau": own and own.band_tau and own.band_tau.value,
        "macs_tau": macs.tau.value,
        "networks": certificate.networks,
        "seeds": certificate.seeds,
        "level": certificate.level if own else None,
    }


def draw(certificate: Certificate, truth: TruthSet, file: str) -> None:
    """Truth over fitness, and the taus of all rankers with their intervals and the ceiling."""
    figure, (left, right) = new_figure(2)
    balanced = truth.balanced()
    told = [n for n in balanced.networks if n.supernet is not None] or list(balanced.networks)
    by_fitness = told[0].supernet is not None
    error = certificate.spread.within / math.sqrt(certificate.seeds)
    for band, marker in ((False, "o"), (True, "^")):
        part = [network for network in told if network.band == band]
        across = [network.supernet if by_fitness else network.macs / 1e6 for network in part]
        up = [network.truth for network in part]
        if math.isfinite(error):
            left.errorbar(across, up, error, fmt="none", ecolor="lightgray", zorder=1)
        name = "one cost" if band else "range of costs"
        colors = [network.macs / 1e6 for network in part]
        bounds = {"vmin": min(n.macs for n in told) / 1e6, "vmax": max(n.macs for n in told) / 1e6}
        points = left.scatter(
            across, up, s=16, c=colors, marker=marker, label=name, zorder=2, **bounds
        )
    axis = "supernet fitness" if by_fitness else "multiply-adds, millions"
    left.set(xlabel=axis, ylabel=f"trained alone, {certificate.metric}")
    left.legend(fontsize="small")
    figure.colorbar(points, ax=left, label="multiply-adds, millions")
    rankers = [r for r in certificate.rankers if math.isfinite(r.tau.value)][::-1]
    places = np.arange(len(rankers))
    taus = np.array([[r.tau.value, r.tau.low, r.tau.high] for r in rankers]).T
    right.barh(places, taus[0], color="tab:blue", alpha=0.6)
    lengths = np.maximum([taus[0] - taus[1], taus[2] - taus[0]], 0)  # rounded
    right.errorbar(taus[0], places, xerr=lengths, fmt="k.")
    if math.isfinite(certificate.ceiling):
        right.axvline(certificate.ceiling, color="tab:red", label="ceiling")
        right.legend(fontsize="small")
    right.set_yticks(places, [ranker.name for ranker in rankers], fontsize="small")
    right.set(xlabel="Kendall's tau-b")
    figure.set_size_inches(12, 4)
    save_figure(figure, file)
