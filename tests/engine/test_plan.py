"""What a config says of a search, read once."""

from __future__ import annotations

from pathlib import Path

import pytest
from detectron2.modeling import BACKBONE_REGISTRY

from detnas_d2.engine.architectures import decode_backbones, searchable_backbone
from detnas_d2.engine.plan import retrain_config
from detnas_d2.modeling.detnas.build import DECODED_BACKBONES
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
