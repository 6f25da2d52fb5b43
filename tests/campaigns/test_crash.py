"""A slice of the kill campaign: a one-stage detector's supernet and search, killed three times."""

from __future__ import annotations

from pathlib import Path

import torch

from tests.campaigns.crash import Campaign
from tests.campaigns.outcome import differences, outcome


def test_killed_pipeline_ends_as_the_whole_one(tmp_path: Path) -> None:
    campaign = Campaign(tmp_path, "slice")
    campaign.clear()
    # Before the supernet's last weights are in place, and in the search's first line.
    final = next(i for i, what in enumerate(campaign.operations, 1) if "model_final" in what)
    line = campaign.operations.index("half a line") + 1
    for last in (final, line - final):
        killed = campaign.kill_at(last)
        assert killed["code"] == -9, killed
    row = campaign.finish()
    assert row["ok"], row
    weights = campaign.runs / "supernet" / "model_final.pth"
    state = torch.load(weights, weights_only=True)
    torch.nn.init.zeros_(next(iter(state["model"].values())))
    torch.save(state, weights)
    assert len(differences(campaign.expected, outcome(campaign.runs))) == 1
