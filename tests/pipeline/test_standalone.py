"""Candidates of a search trained by themselves."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import pytest

from detnas_d2.engine import prepare, search
from detnas_d2.search import History
from detnas_d2.utils.errors import InputError
from tests.engine.tiny_runs import Configs, write_config
from tests.pipeline.test_stability import ARGS, COMMAND


def test_candidates_are_trained_and_compared(
    configs: Configs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cfg = configs.search("SEARCH.GENERATIONS", 1)
    prepare(cfg, ARGS)
    search(cfg, resume=False)
    retrain = configs("faster", "MODEL.BACKBONE.NAME", "build_detnas_fpn_backbone")
    retrain.SOLVER.MAX_ITER, retrain.SOLVER.STEPS = 1, ()
    file = write_config(retrain, tmp_path / "retrain.yaml")
    out = tmp_path / "alone"
    main = runpy.run_path(COMMAND)["main"]
    command = ["standalone", "--search", cfg.OUTPUT_DIR, "--config-file", file, "--paths", "2"]
    main([*command, "--pretrain", file, "OUTPUT_DIR", str(out)])
    scores = json.loads((out / "scores.json").read_text())
    ranked = sorted(History.read(cfg.OUTPUT_DIR), key=lambda record: -record.fitness)
    assert list(scores) == [ranked[0].path, ranked[-1].path]
    for record in (ranked[0], ranked[-1]):
        done = json.loads((out / f"candidate_{record.index}" / "done.json").read_text())
        assert done["path"] == record.path
        assert done["results"]["bbox/AP"] == scores[record.path]
        assert (out / f"candidate_{record.index}_pretrain" / "model_final.pth").exists()
    assert f"{ranked[0].fitness:>10.3f}{scores[ranked[0].path]:>10.3f}" in capsys.readouterr().out
    main([*command, "--pretrain", file, "OUTPUT_DIR", str(out)])
    assert capsys.readouterr().out.count("done before") == 4
    main(["ranks", cfg.OUTPUT_DIR, "--standalone", str(out / "scores.json")])
    assert "2 networks" in capsys.readouterr().out


def test_overrides_are_needed(tmp_path: Path) -> None:
    main = runpy.run_path(COMMAND)["main"]
    with pytest.raises(InputError, match="needs --config-file and, among the overrides, OUTPUT"):
        main(["standalone", "--search", "gone", "--config-file", "retrain.yaml"])
