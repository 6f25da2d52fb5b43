"""Screening on synthetic data with a known best operation."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from detnas_d2.modeling.hit import RelaxedLayers
from detnas_d2.search.gradient.objective import column_sparsity, scores
from detnas_d2.search.gradient.screening import RemovalSchedule, Screening
from detnas_d2.search_space import LayerSpec

# What a "detector part" of the synthetic task can do to a signal (N, 4, H, W).
OPERATIONS = {
    "identity": lambda x: x,
    "shift": lambda x: x.roll(1, 3),
    "blur": lambda x: F.avg_pool2d(x, 3, 1, 1),
    "negate": lambda x: -x,
    "swap": lambda x: x.flip(1),
    "zero": torch.zeros_like,
}
OPS = tuple(OPERATIONS)


class Lambda(nn.Module):
    def __init__(self, op):
        super().__init__()
        self.op = op

    def forward(self, x):
        return OPERATIONS[self.op](x)


def part(depth=3):
    specs = [LayerSpec(i, 0, 4, 4, 1, 1, OPS) for i in range(depth)]
    return RelaxedLayers("backbone", specs, lambda layer, op: Lambda(op))


def screen(best, mu, *, keep=2, steps=150, seed=0, depth=3, share=0.6):
    """Screens a part whose layers want ``share`` of ``best``, and each something else too."""
    torch.manual_seed(seed)
    others = [op for op in OPS if op != best]
    layers = part(depth)
    screening = Screening(layers, RemovalSchedule(len(OPS), keep, steps // 2, steps))
    optimizer = torch.optim.Adam([layers.alpha], lr=0.02)
    for step in range(steps):
        screening.record(step)
        screening.remove(step)
        loss = mu * column_sparsity(layers.probabilities())
        for index in range(len(layers)):
            x = torch.randn(8, 4, 6, 6)
            target = share * OPERATIONS[best](x) + (1 - share) * OPERATIONS[others[index]](x)
            noise = 0.3 * torch.randn_like(target)
            loss = loss + F.mse_loss(layers(index, x), target + noise)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    screening.remove(steps)
    return screening


@pytest.mark.parametrize("best", ["identity", "shift", "blur"])
def test_recovers_the_known_best_operation(best):
    screening = screen(best, mu=0.1)
    assert screening.kept[0] == best
    assert len(screening.kept) == 2
    report = screening.report()
    assert len(report["removed"]) == 4
    assert all(len(report["scores"][op]) == 150 for op in screening.kept)


def spread(mu, seed):
    """Standard deviation of the scores where each layer prefers an operation of its own."""
    options = {"keep": len(OPS), "steps": 160, "depth": 5, "share": 0.4}
    screening = screen("shift", mu, seed=seed, **options)
    return float(torch.tensor(list(scores(screening.layers).values())).std())


def test_sparsity_spreads_the_scores():
    """Figure 4 of the paper, qualitatively: the larger mu, the larger the spread.

    The task's loss is not scaled down beside the term.
    """
    none, little, full = ([spread(mu, seed) for seed in (0, 1)] for mu in (0.0, 0.01, 0.1))
    noise = max(abs(a - b) for a, b in (none, little, full))
    assert sum(none) < sum(little) < sum(full)
    assert min(full) > max(none) + 5 * noise and min(full) > 1.15 * max(none)


def test_schedule():
    schedule = RemovalSchedule(32, 8, 100, 340)
    counts = [schedule.remaining(i) for i in range(400)]
    assert counts[:100] == [32] * 100 and counts[340:] == [8] * 60
    assert counts == sorted(counts, reverse=True)
    assert {a - b for a, b in zip(counts, counts[1:], strict=False)} == {0, 1}
    assert RemovalSchedule(4, 4, 0, 0).remaining(7) == 4
    for bad in ((4, 5, 0, 1), (4, 0, 0, 1), (4, 2, 3, 1)):
        with pytest.raises(ValueError, match="cannot keep|expected 0"):
            RemovalSchedule(*bad)


def test_state_round_trip_and_ties():
    screening = Screening(part(), RemovalSchedule(len(OPS), 3, 0, 0))
    screening.record(0)
    # Equal scores: the last in the table goes first.
    assert screening.remove(0) == ["zero", "swap", "negate"]
    other = Screening(part(), screening.schedule)
    other.load_state_dict(screening.state_dict())
    other.layers.load_state_dict(screening.layers.state_dict())
    assert other.report() == screening.report()
    with pytest.raises(ValueError, match="other operations"):
        other.load_state_dict({"history": {"a": []}, "iterations": [], "removed": {}})
