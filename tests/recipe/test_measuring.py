from pathlib import Path

import pytest

from detnas_d2.config.tools import load_config
from detnas_d2.engine.proposals import Proposals
from detnas_d2.recipe.measuring import some_paths

DEMO = str(Path(__file__).parents[2] / "configs" / "DetNAS" / "demo" / "search.yaml")


@pytest.mark.parametrize("limit", [0, 30_000_000])
def test_speeds_are_those_of_several_networks_within_the_limits(limit: int) -> None:
    search = load_config(DEMO, ["SEARCH.MAX_MACS", limit])
    proposals = Proposals.from_config(search)
    paths = some_paths(search)
    assert len(set(paths)) == 3 and paths == some_paths(search)
    assert all(proposals.constraint(path.choices) for path in paths)


def test_limits_that_no_path_keeps_leave_one_to_measure() -> None:
    search = load_config(DEMO, ["SEARCH.MAX_MACS", 1])
    assert some_paths(search) == [Proposals.from_config(search).space.first_path()]
