"""Plain JPEG files are told from their bytes as Pillow tells them."""

from __future__ import annotations

import random
import warnings
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from detnas_d2.data.checks import image_check
from detnas_d2.data.checks.image_check import ImageHeader, read_header
from detnas_d2.data.checks.jpeg_header import HEAD, plain_jpeg

TURNED = Image.Exif()
TURNED[0x0112] = 6


def write(path: Path, mode: str = "RGB", **options: Any) -> bytes:
    noise = Image.effect_noise((72, 40), 60)
    noise.convert(mode).save(path, "JPEG", **options)
    return path.read_bytes()


@pytest.fixture
def by_pillow(monkeypatch: pytest.MonkeyPatch):
    """``read_header`` without the short way."""

    def read(path: Path) -> ImageHeader:
        with monkeypatch.context() as patch:
            patch.setattr(image_check, "plain_jpeg", lambda head: None)
            return read_header(str(path))

    return read


PLAIN: list[tuple[str, dict[str, Any]]] = [
    ("RGB", {}),
    ("L", {}),
    ("RGB", {"progressive": True, "quality": 30}),
    ("RGB", {"optimize": True, "subsampling": 0, "dpi": (300, 300), "comment": b"x" * 50}),
    ("RGB", {"restart_marker_blocks": 2}),
]
NOT_PLAIN: list[tuple[str, dict[str, Any]]] = [
    ("RGB", {"exif": TURNED}),
    ("RGB", {"icc_profile": b"p" * 200}),
    ("CMYK", {}),  # with Adobe's segment
    ("RGB", {"comment": b"x" * HEAD}),
]


@pytest.mark.parametrize(("mode", "options"), [*PLAIN, *NOT_PLAIN])
def test_files_as_they_are_written(tmp_path: Path, by_pillow, mode: str, options: dict) -> None:
    data = write(tmp_path / "a.jpg", mode, **options)
    plain = plain_jpeg(data[:HEAD])
    assert (plain is not None) == ((mode, options) in PLAIN)
    assert plain is None or plain[:2] == (72, 40)
    header = read_header(str(tmp_path / "a.jpg"))
    assert header == by_pillow(tmp_path / "a.jpg") and not header.kind
    assert (header.width, header.height) == ((40, 72) if "exif" in options else (72, 40))


@pytest.mark.parametrize("seed", range(6))
def test_files_with_any_byte_changed(tmp_path: Path, by_pillow, seed: int) -> None:
    rng = random.Random(seed)
    mode, options = PLAIN[seed % len(PLAIN)]
    data, path, plain = write(tmp_path / "a.jpg", mode, **options), tmp_path / "b.jpg", 0
    for _ in range(150):
        changed = bytearray(data)
        for _ in range(rng.randint(1, 2)):
            changed[rng.randrange(700)] = rng.choice((0, 1, 8, 0xD9, 0xFF, rng.randrange(256)))
        del changed[rng.choice((len(changed), rng.randrange(len(changed)))) :]
        path.write_bytes(changed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of sizes that nobody can have meant
            assert read_header(str(path)) == by_pillow(path), changed[:700].hex()
        plain += plain_jpeg(bytes(changed[:HEAD])) is not None
    assert plain > 20


def test_pictures_too_large_for_pillow_are_told_by_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "a.jpg")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    header = read_header(str(tmp_path / "a.jpg"))
    assert header.kind == "unreadable_image" and "DecompressionBomb" in header.message
