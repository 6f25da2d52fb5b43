"""Files of matplotlib's figures."""

from __future__ import annotations

from pathlib import Path

import pytest

from detnas_d2.utils import figures
from detnas_d2.utils.errors import InputError


def saved(file: Path) -> bytes:
    figure, (left, right) = figures.new_figure(2)
    left.plot([0, 1], [1, 2], label="a")
    right.set(title="b")
    figure.legend()
    figures.save_figure(figure, str(file))
    return file.read_bytes()


@pytest.mark.parametrize("name", ["a.svg", "a.png", "a.PDF"])
def test_equal_figures_are_equal_files(tmp_path: Path, name: str) -> None:
    first, second = saved(tmp_path / name), saved(tmp_path / "again" / name)
    assert first == second and len(first) > 1000
    assert [file.name for file in tmp_path.iterdir() if file.is_file()] == [name]


def test_texts_of_an_svg_are_texts(tmp_path: Path) -> None:
    assert b">b</text>" in saved(tmp_path / "a.svg")


def test_number_of_axes() -> None:
    assert [len(figures.new_figure(n, columns=3)[1]) for n in (1, 3, 5)] == [1, 3, 5]


def test_what_cannot_be_written(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("figure", "figure.doc"):
        with pytest.raises(InputError, match=f"{name}: expected .* one of .svg, .png, .pdf"):
            figures.check_figure(name)
    monkeypatch.setattr(figures, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="need matplotlib: pip install matplotlib"):
        figures.check_figure("a.svg")
