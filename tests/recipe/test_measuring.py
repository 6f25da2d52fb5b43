from pathlib import Path

import pytest

from detnas_d2.config.tools import load_config
from detnas_d2.engine.proposals import Proposals
from detnas_d2.recipe.measuring import costly_path

DEMO = str(Path(__file__).parents[2] / "configs" / "DetNAS" / "demo" / "search.yaml")


@pytest.mark.parametrize("limit", [0, 30_000_000])
def test_speeds_are_those_of_a_network_that_uses_up_the_limits(limit: int) -> None:
    search = load_config(DEMO, ["SEARCH.MAX_MACS", limit])
    proposals = Proposals.from_config(search)
    macs = proposals.costs.macs
    path = costly_path(search)
    assert proposals.constraint(path.choices)
    most = limit or macs.most_expensive()
    assert 0.6 * most < macs.total(path.choices) <= most
    assert costly_path(search) == path
