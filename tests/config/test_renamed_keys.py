"""Keys of the last release are read under their new names."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from detnas_d2.config.merging import merge_file, merge_overrides
from detnas_d2.config.reading import ConfigError
from detnas_d2.config.renamed import RENAMED
from detnas_d2.config.tools import base_config, flatten

OLD, NEW = "MODEL.HIT.SEARCHED_PARTS", "MODEL.HIT.SEARCHABLE_PARTS"


def test_renamed_keys_exist_under_the_new_name_alone() -> None:
    keys = flatten(base_config())
    assert all(new in keys and old not in keys for old, new in RENAMED.items())


def test_old_name_in_a_file_and_on_the_command_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    base, file = tmp_path / "base.yaml", tmp_path / "old.yaml"
    base.write_text("MODEL:\n  HIT:\n    SEARCHABLE_PARTS: [backbone]\n")
    file.write_text("_BASE_: base.yaml\nMODEL:\n  HIT:\n    SEARCHED_PARTS: [neck]\n")
    cfg = base_config()
    with caplog.at_level(logging.WARNING):
        merge_file(cfg, str(file))
        assert cfg.MODEL.HIT.SEARCHABLE_PARTS == ["neck"]
        assert merge_overrides(cfg, [OLD, "['head']"]) == [NEW]
    assert cfg.MODEL.HIT.SEARCHABLE_PARTS == ["head"]
    told = [text for text in caplog.messages if f"{OLD} is called {NEW} now" in text]
    assert [text.rpartition("/")[2].partition(": ")[0] for text in told] == [
        "old.yaml:4",
        "command line",
    ]


def test_wrong_value_under_the_old_name_is_told_with_its_line(tmp_path: Path) -> None:
    file = tmp_path / "old.yaml"
    file.write_text("MODEL:\n  HIT:\n    SEARCHED_PARTS: 3\n")
    with pytest.raises(ConfigError, match=r"old\.yaml:3: MODEL\.HIT\.SEARCHABLE_PARTS is 3"):
        merge_file(base_config(), str(file))
