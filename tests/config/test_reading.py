"""Config files: plain values only, each mistake with file and line."""

from __future__ import annotations

from pathlib import Path

import pytest

from detnas_d2.config.reading import ConfigError, read_with_bases, read_yaml
from detnas_d2.config.tools import base_config, load_config

ROOT = Path(__file__).resolve().parents[2]
OUTSIDE = ("merge_from_file", "yaml.safe_load", "yaml.load", "unsafe_load")


def _write(folder: Path, text: str | bytes, name: str = "a.yaml") -> str:
    file = folder / name
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return str(file)


@pytest.mark.parametrize(
    "value",
    [
        "!!python/object/apply:os.system ['touch {mark}']",
        "!!python/object/new:os.system ['touch {mark}']",
        "!!python/name:os.system",
        "!!python/module:os",
        "!!python/tuple [1]",
        "!!binary aGVsbG8=",
        "!foo 3",
        "!!set {{1}}",
    ],
)
@pytest.mark.parametrize("base", [False, True])
def test_tags_are_refused_and_nothing_is_run(tmp_path: Path, value: str, base: bool) -> None:
    mark = tmp_path / "EXECUTED"
    file = _write(tmp_path, f"VERSION: 2\nSEED: {value.format(mark=mark)}\n")
    where = r"a\.yaml:2: SEED: the tag !"
    if base:
        file = _write(tmp_path, "_BASE_: a.yaml\n", "b.yaml")
    with pytest.raises(ConfigError, match=where):
        load_config(file)
    assert not mark.exists()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("SEED: 1\nSEED: 2\n", r"a\.yaml:2: the key SEED is there twice, also in line 1"),
        ("SOLVER:\n  STEPS: [1]\n  STEPS: [1]\n", r"a\.yaml:3: SOLVER: the key STEPS is"),
        ("MODEL: [unclosed\n", r"a\.yaml:2: not YAML"),
        ("MODEL:\n\tDEVICE: cpu\n", r"a\.yaml:2: not YAML"),
        ("5: 3\n", r"a\.yaml:1: the key '5' is not a text"),
        ("yes: 1\n", r"a\.yaml:1: the key 'yes' is not a text"),
        ("? [a, b]\n: 1\n", r"a\.yaml:1: the key .* is not a text"),
        ("SEED: 2001-01-01\n", r"a\.yaml:1: SEED: '2001-01-01' reads as a date"),
        (b"SEED: 1\n# caf\xe9\n", r"a\.yaml:2: not UTF-8"),
        ("SEED: 1\n".encode("utf-16"), r"a\.yaml:1: not UTF-8"),
        (b"SEED: 1\n\x00", r"a\.yaml: not YAML"),
        ("SEED: " + "[" * 3000 + "]" * 3000, r"a\.yaml: nested too deeply"),
        ("SEED: " + "x" * (1 << 20), r"a\.yaml: larger than 1 MiB"),
        ("A: &a {B: *a}\n", r"a\.yaml:1: A\.B: an alias \(\*\) of a node inside that node"),
        ("A: &a [1]\nB: *c\n", r"a\.yaml:2: not YAML"),
    ],
)
def test_what_is_not_plain_is_named(tmp_path: Path, text: str | bytes, expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        read_yaml(_write(tmp_path, text))


def test_aliases_are_bounded_but_used(tmp_path: Path) -> None:
    lines = ["A0: &a0 [x,x,x,x,x,x,x,x,x]"]
    lines += [f"A{i}: &a{i} [{','.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12)]
    with pytest.raises(ConfigError, match="aliases"):
        read_yaml(_write(tmp_path, "\n".join(lines)))
    good = "A: &a {X: 1}\nB: *a\nC:\n  <<: *a\n  Y: 2\n"
    assert read_yaml(_write(tmp_path, good)).data["C"] == {"X": 1, "Y": 2}


def test_bom_is_no_part_of_the_first_key(tmp_path: Path) -> None:
    assert read_yaml(_write(tmp_path, "\ufeffSEED: 3\n")).data == {"SEED": 3}


@pytest.mark.parametrize(
    ("base", "expected"),
    [
        ("a.yaml", r"a\.yaml:1: _BASE_ leads back to a file above it: a.yaml -> a.yaml"),
        ("b.yaml", r"b\.yaml:1: _BASE_ leads back to a file above it: a.yaml -> b.yaml -> a.yaml"),
        ("[c.yaml, b.yaml]", r"b\.yaml:1: _BASE_ leads back"),
        ("nothing.yaml", r"a\.yaml:1: _BASE_ is 'nothing.yaml': no such file"),
        ("5", r"a\.yaml:1: _BASE_ is 5: expected the name"),
        ("", r"a\.yaml:1: _BASE_ is None: expected the name"),
        ("http://127.0.0.1:1/x.yaml", r"a\.yaml:1: _BASE_ is .*local files only"),
        ("detectron2://x.yaml", r"a\.yaml:1: _BASE_ is .*local files only"),
        (".", r"a\.yaml:1: _BASE_ is '\.': no such file"),
    ],
)
def test_bases_are_local_files_without_cycles(tmp_path: Path, base: str, expected: str) -> None:
    _write(tmp_path, "_BASE_: a.yaml\n", "b.yaml")
    _write(tmp_path, "SEED: 1\n", "c.yaml")
    with pytest.raises(ConfigError, match=expected):
        read_with_bases(_write(tmp_path, f"_BASE_: {base}\nVERSION: 2\n"))


def test_bases_are_merged_in_order_and_each_key_has_its_place(tmp_path: Path) -> None:
    _write(tmp_path, "SOLVER: {MAX_ITER: 5, GAMMA: 0.5}\n", "c.yaml")
    _write(tmp_path, "SOLVER:\n  GAMMA: 0.25\n", "d.yaml")
    file = _write(tmp_path, "_BASE_: [c.yaml, d.yaml]\nSOLVER:\n  MAX_ITER: 7\nVERSION: 2\n")
    tree = read_with_bases(file)
    assert tree.data == {"SOLVER": {"MAX_ITER": 7, "GAMMA": 0.25}, "VERSION": 2}
    assert tree.place("SOLVER.GAMMA", "") == f"{tmp_path / 'd.yaml'}:2"
    assert tree.place("SOLVER.MAX_ITER", "") == f"{file}:3"


@pytest.mark.parametrize(
    "text", ["", "SOLVER: {STEPS: [3]}\n", "VERSION: 2\nMODEL: {FPN: {NORM: BN}}\n"]
)
def test_reads_what_detectron2_reads(tmp_path: Path, text: str) -> None:
    file = _write(tmp_path, "VERSION: 2\n" + text.replace("VERSION: 2\n", ""))
    theirs = base_config()
    theirs.merge_from_file(file)
    assert load_config(file) == theirs


def test_nothing_reads_yaml_another_way() -> None:
    sources = [*ROOT.glob("detnas_d2/**/*.py"), *ROOT.glob("projects/**/*.py")]
    sources += [*ROOT.glob("benchmarks/**/*.py"), *ROOT.glob("scripts/**/*.py")]
    found = [
        f"{file.relative_to(ROOT)}: {word}"
        for file in sources
        for word in OUTSIDE
        if f"{word}(" in file.read_text(encoding="utf-8")
    ]
    assert len(sources) > 100 and not found
