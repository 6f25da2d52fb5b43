"""What a config says of a search, read once."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from detectron2.modeling import BACKBONE_REGISTRY

from detnas_d2.data import register_datasets
from detnas_d2.engine.architectures import decode_backbones, searchable_backbone
from detnas_d2.engine.plan import SearchPlan, retrain_config
from detnas_d2.engine.proposals import Proposals
from detnas_d2.modeling.detnas.build import DECODED_BACKBONES
from detnas_d2.search.constraints import Limits, UnsatisfiableLimit
from detnas_d2.search_space import SPACES, LatencyTable
from detnas_d2.utils.errors import InputError
from tests.engine.hit_runs import scene_config
from tests.engine.tiny_runs import Configs, write_config


def test_every_searchable_backbone_has_a_decoded_one() -> None:
    names = {name for name, _ in BACKBONE_REGISTRY if name.startswith("build_detnas_")}
    assert names == {*DECODED_BACKBONES, *DECODED_BACKBONES.values()}
    assert not {*DECODED_BACKBONES} & {*DECODED_BACKBONES.values()}


@pytest.mark.parametrize("name", DECODED_BACKBONES)
@pytest.mark.parametrize("key", ["MODEL.BACKBONE.NAME", "MODEL.HIT.BOTTOM_UP"])
def test_a_search_of_any_backbone_is_completed_by_its_decoded_one(
    configs: Configs, name: str, key: str
) -> None:
    cfg = configs("faster", "MODEL.BACKBONE.NAME", "build_hit_fpn_backbone", key, name)
    assert searchable_backbone(cfg) == name
    retrain = retrain_config(cfg, "")
    assert searchable_backbone(retrain) == "" and searchable_backbone(cfg) == name
    decode_backbones(cfg)
    assert retrain.MODEL.BACKBONE == cfg.MODEL.BACKBONE and retrain.MODEL.HIT == cfg.MODEL.HIT
    assert retrain.MODEL.WEIGHTS == "" and f"{cfg.OUTPUT_DIR}/best" == retrain.OUTPUT_DIR


@pytest.mark.parametrize("key", ["MODEL.BACKBONE.NAME", "MODEL.HIT.BOTTOM_UP"])
def test_retrain_config_of_a_searchable_backbone_is_refused(
    configs: Configs, key: str, tmp_path: Path
) -> None:
    retrain = configs("faster", "MODEL.BACKBONE.NAME", "build_hit_fpn_backbone")
    for name in DECODED_BACKBONES:
        retrain.merge_from_list([key, name])
        write_config(retrain, tmp_path / "retrain.yaml")
        cfg = configs("faster", "SEARCH.RETRAIN_CONFIG", "retrain.yaml")
        with pytest.raises(InputError, match=f"the backbone {name}, expected a decoded"):
            retrain_config(cfg, str(tmp_path))


def test_both_searches_complete_a_file_with_overrides(tmp_path: Path) -> None:
    (tmp_path / "retrain.yaml").write_text("SEED: 1\nVERSION: 2\n")
    relaxed = ("HIT_SEARCH.RETRAIN_CONFIG", "retrain.yaml")
    sampled = ("MODEL.HIT.STRATEGY", "sampling", "SEARCH.RETRAIN_CONFIG", "retrain.yaml")
    for opts in (relaxed, sampled):
        cfg = scene_config(tmp_path, "search.yaml", "out", *opts)
        found = retrain_config(cfg, str(tmp_path), ["SOLVER.MAX_ITER", 7])
        assert (found.SEED, found.SOLVER.MAX_ITER) == (1, 7)


def test_limits_are_checked_before_the_search(configs: Configs) -> None:
    def proposals(*opts: object) -> Proposals:
        opts = ("SEARCH.MAX_MACS_INPUT", [224, 224], *opts)
        return Proposals.from_config(configs.search(*opts), SPACES["detnas_small"])

    proposals("SEARCH.MAX_MACS", 365_472_575).check()
    with pytest.raises(UnsatisfiableLimit, match="SEARCH.MAX_MACS is 200000000, but the cheapest"):
        proposals("SEARCH.MAX_MACS", 200_000_000).check()
    waiting = proposals("SEARCH.MAX_LATENCY_MS", 11.0)
    waiting.check()  # nothing is measured yet
    table = LatencyTable(1.0, ((0.5,) * 4,) * 20, "detnas_small", (224, 224), 1, "cpu")
    assert waiting.constraint.limits.max_latency_ms is None
    known = replace(waiting, latencies=(table,))
    known.check()
    assert known.constraint.limits.max_latency_ms == 11.0 and known.constraint((0,) * 20)
    with pytest.raises(UnsatisfiableLimit, match=r"SEARCH.MAX_LATENCY_MS is 10.0, but"):
        replace(known, limits=Limits(max_latency_ms=10.0)).check()


def test_a_limit_that_excludes_nothing_is_told(configs: Configs) -> None:
    def warnings(most: int, least: int) -> list[str]:
        limits = ("SEARCH.MAX_MACS", most, "SEARCH.MIN_MACS", least)
        cfg = configs.search("SEARCH.MAX_MACS_INPUT", [224, 224], *limits)
        return Proposals.from_config(cfg, SPACES["detnas_small"]).warnings()

    assert warnings(365_472_575, 237_222_721) == []  # of 237 to 365 million
    first, second = warnings(365_472_576, 1)
    assert "SEARCH.MAX_MACS 3.65473e+08 excludes nothing: the paths of the space have " in first
    assert "2.37223e+08" in first and "SEARCH.MIN_MACS 1 excludes nothing" in second


def test_plan_does_not_change_with_its_config(configs: Configs) -> None:
    cfg = configs.search()
    register_datasets(cfg)
    plan = SearchPlan.from_config(cfg)
    before = plan.evaluation.fingerprint(), plan.proposals.searcher
    cfg.SEARCH.POPULATION = cfg.SEARCH.CALIBRATION.IMAGES = 7
    cfg.MODEL.RPN.NMS_THRESH = 0.1
    assert (plan.evaluation.fingerprint(), plan.proposals.searcher) == before
    path = str(plan.proposals.space.uniform_path("3x3"))
    assert plan.completed(path).MODEL.DETNAS.PATH == path != plan._retrain.MODEL.DETNAS.PATH


def test_latency_is_measured_in_spaces_of_detnas_alone(tmp_path: Path) -> None:
    sampled = ("MODEL.HIT.STRATEGY", "sampling", "SEARCH.MAX_LATENCY_MS", 1.0)
    cfg = scene_config(tmp_path, "search.yaml", "out", *sampled)
    with pytest.raises(InputError, match=r"^SEARCH\.MAX_LATENCY_MS: .*SEARCH\.LATENCY_TABLE$"):
        Proposals.from_config(cfg)
