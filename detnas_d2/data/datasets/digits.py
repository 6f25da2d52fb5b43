"""Draws the demo's images from the handwritten digits that scikit-learn ships.

Digit shorthand: ink is float32[h, w] in [0, 1]; images are float32[H, W, 3] or uint8, RGB, 0-255.
All randomness comes from the ``numpy.random.RandomState`` passed in, whose streams NumPy keeps.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.random import RandomState
from PIL import Image, ImageDraw, ImageFilter

NUM_CLASSES = 10
# Sides of the 8 x 8 originals in a scene, as shares of the scene's side: 16 to 44 of 128 pixels.
_SMALLEST, _LARGEST = 16 / 128, 44 / 128
# Largest share of the smaller of two boxes that the other may cover.
_OVERLAP = 0.15
_INK_EDGE = 0.25
_PLACE_ATTEMPTS = 40
# Digits per part of the 1,797; the parts share none.
_PARTS = {"train": (0, 1197), "val": (1197, 1497), "test": (1497, 1797)}


@dataclass(frozen=True)
class Digits:
    """``images`` float32[n, 8, 8] in [0, 1], ``labels`` int64[n] in [0, 10)."""

    images: np.ndarray
    labels: np.ndarray


def load_digits(part: str) -> Digits:
    """The digits of "train", "val" or "test": disjoint, the same on every machine.

    Raises:
        ImportError: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits as load
    except ImportError as error:
        raise ImportError(
            "the digits demo takes its images from scikit-learn: pip install scikit-learn"
        ) from error
    data = load()
    start, stop = _PARTS[part]
    chosen = RandomState(0).permutation(len(data.target))[start:stop]
    return Digits((data.images[chosen] / 16).astype(np.float32), data.target[chosen])


def draw_scene(
    digits: Digits, size: int, random: RandomState
) -> tuple[np.ndarray, list[tuple[list[float], int]]]:
    """A cluttered scene with five to eleven digits of different scale, fewer where they do not fit.

    Returns:
        the image uint8[size, size, 3], and (box, label) per digit; a box is [x, y, width, height]
        in pixels, tight around the ink.
    """
    canvas = _background(size, random, strokes=random.randint(1, 3 + size // 24))
    for _ in range(random.randint(1, 3)):
        _draw_distractor(canvas, digits, random)
    count = random.randint(5, 12)
    span = np.log(_LARGEST / _SMALLEST)
    sides = np.sort(size * _SMALLEST * np.exp(span * random.rand(count)))[::-1]
    objects: list[tuple[list[float], int]] = []
    for side in sides:
        index = random.randint(len(digits.labels))
        ink = _ink(digits.images[index], side, random)
        place = _free_place(ink.shape, size, [box for box, _ in objects], random)
        if place is not None:
            x, y = place
            _blend(canvas, ink, x, y, random, strength=random.uniform(0.8, 1.0))
            box = [float(x), float(y), float(ink.shape[1]), float(ink.shape[0])]
            objects.append((box, int(digits.labels[index])))
    return _finish(canvas, random), objects


def draw_patch(image: np.ndarray, size: int, random: RandomState) -> np.ndarray:
    """One digit, most of the image, on a little clutter: uint8[size, size, 3]."""
    canvas = _background(size, random, strokes=1)
    ink = _ink(image, size * random.uniform(0.75, 1.0), random)[:size, :size]
    x = random.randint(size - ink.shape[1] + 1)
    y = random.randint(size - ink.shape[0] + 1)
    _blend(canvas, ink, x, y, random, strength=random.uniform(0.8, 1.0))
    return _finish(canvas, random)


def _resize(values: np.ndarray, width: int, height: int) -> np.ndarray:
    image = Image.fromarray(np.ascontiguousarray(values, dtype=np.float32))
    return np.asarray(image.resize((width, height), Image.Resampling.BICUBIC))


def _ink(image: np.ndarray, side: float, random: RandomState) -> np.ndarray:
    """A digit scaled to about ``side`` pixels, slightly turned and stretched, cut to its ink."""
    stretch = random.uniform(0.85, 1.15)
    width, height = max(6, round(side * stretch)), max(6, round(side / stretch))
    ink = np.clip(_resize(np.pad(image, 1), width * 10 // 8, height * 10 // 8), 0, 1)
    turned = Image.fromarray(ink).rotate(random.uniform(-12, 12), Image.Resampling.BILINEAR)
    ink = np.clip(np.asarray(turned), 0, 1)
    rows, columns = np.where(ink > _INK_EDGE)
    return ink[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]


def _background(size: int, random: RandomState, *, strokes: int) -> np.ndarray:
    """A colour gradient with smooth and fine noise and line segments."""
    first, second = random.uniform(10, 140, (2, 3))
    if random.rand() < 0.5:  # half of the images are gray
        first[:], second[:] = first.mean(), second.mean()
    angle = random.uniform(0, 2 * np.pi)
    ramp = np.linspace(-0.5, 0.5, size)
    slope = np.cos(angle) * ramp[None, :] + np.sin(angle) * ramp[:, None]
    canvas = first + (slope[..., None] + 0.5) * (second - first)
    smooth = _resize(random.randn(6, 6), size, size) * random.uniform(0, 25)
    image = Image.fromarray(np.clip(canvas + smooth[..., None], 0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(image)
    for _ in range(strokes):
        ends = [int(v) for v in random.randint(0, size, 4)]
        colour = tuple(int(v) for v in random.randint(0, 220, 3))
        if random.rand() < 0.7:
            draw.line(ends, fill=colour, width=int(random.randint(1, 4)))
        else:
            x0, x1 = sorted(ends[0::2])
            y0, y1 = sorted(ends[1::2])
            start = int(random.randint(360))
            draw.arc([x0, y0, x1 + 4, y1 + 4], start, start + 200, fill=colour, width=2)
    return np.asarray(image).astype(np.float32)


def _draw_distractor(canvas: np.ndarray, digits: Digits, random: RandomState) -> None:
    """Strokes like a digit's that are none: a digit with its quarters exchanged crosswise."""
    image = np.roll(digits.images[random.randint(len(digits.labels))], (4, 4), axis=(0, 1))
    if random.rand() < 0.5:
        image[4:] = 0  # its upper half only
    size = canvas.shape[0]
    ink = _ink(image, size * random.uniform(_SMALLEST, _LARGEST), random)[:size, :size]
    x = random.randint(size - ink.shape[1] + 1)
    y = random.randint(size - ink.shape[0] + 1)
    _blend(canvas, ink, x, y, random, strength=random.uniform(0.3, 0.6))


def _free_place(
    shape: tuple[int, ...], size: int, boxes: list[list[float]], random: RandomState
) -> tuple[int, int] | None:
    """Upper left corner where a box of ``shape`` covers little of the others."""
    height, width = shape
    for _ in range(_PLACE_ATTEMPTS):
        x, y = random.randint(size - width + 1), random.randint(size - height + 1)
        for left, top, w, h in boxes:
            across = min(x + width, left + w) - max(x, left)
            down = min(y + height, top + h) - max(y, top)
            if max(across, 0) * max(down, 0) > _OVERLAP * min(width * height, w * h):
                break
        else:
            return int(x), int(y)
    return None


def _blend(
    canvas: np.ndarray, ink: np.ndarray, x: int, y: int, random: RandomState, strength: float
) -> None:
    """Paints ink at (x, y) in a colour brighter than what is below it."""
    part = canvas[y : y + ink.shape[0], x : x + ink.shape[1]]
    below = part.mean()
    colour = np.full(3, below + random.uniform(90, 140))
    if random.rand() < 0.6:
        tint = random.uniform(-60, 60, 3)
        colour = colour + tint - tint.mean()
    alpha = (strength * ink)[..., None]
    part[:] = part * (1 - alpha) + np.clip(colour, 0, 255) * alpha


def _finish(canvas: np.ndarray, random: RandomState) -> np.ndarray:
    """Fine noise, sometimes blur."""
    noisy = canvas + random.randn(*canvas.shape) * random.uniform(2, 12)
    image = Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8))
    if random.rand() < 0.3:
        image = image.filter(ImageFilter.GaussianBlur(random.uniform(0.3, 0.9)))
    return np.asarray(image)
