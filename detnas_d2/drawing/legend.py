"""The legend of a picture: what its colours and letters mean."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from xml.etree.ElementTree import Element

from detnas_d2.drawing.looks import COLOURS, Look
from detnas_d2.drawing.row import Drawn
from detnas_d2.drawing.svg import FIXED, add_box, add_text, width_of

_LINE, _SIZE, _SWATCH = 19.0, 11.0, 13.0


def draw_legend(looks: Iterable[Look], has_fixed: bool, width: float) -> Drawn:
    """An entry for each kind of block that occurs, on as many lines as they need."""
    group, x, y = Element("g"), 0.0, 0.0
    for kind, text in _entries(list(looks), has_fixed):
        swatch = 0.0 if kind == "" else _SWATCH + 5
        needed = swatch + width_of(text, _SIZE)
        if x and x + needed > width:
            x, y = 0.0, y + _LINE
        if kind == "skip":
            css, colour = "detnas-gap", "none"
            add_box(group, x, y + 2, _SWATCH, 10, colour=colour, css=css, dashes="2 2")
        elif kind == "fixed":
            add_box(group, x, y, _SWATCH, 13, colour=FIXED, css="detnas-fixed")
        elif kind == "X":
            add_box(group, x, y - 2, _SWATCH + 3, 17, colour=COLOURS[3], css="detnas-key")
            swatch += 3
            add_text(group, x + 8, y + 10, "X", _SIZE, anchor="middle", tone="box")
        elif kind:
            add_box(group, x, y, _SWATCH, 13, colour=COLOURS[int(kind)], css="detnas-key")
        add_text(group, x + swatch, y + 10.5, text, _SIZE, tone="faint")
        x += swatch + width_of(text, _SIZE) + 12
    return Drawn(group, width, y + _LINE)


def _entries(looks: list[Look], has_fixed: bool) -> Iterator[tuple[str, str]]:
    """(swatch, text): swatches are kernels, "X", "skip", "fixed" and "" for none."""
    kernels = {look.kernel for look in looks if not (look.is_xception or look.is_skip)}
    for kernel in sorted(kernels):
        yield str(kernel), f"{kernel}x{kernel}"
    if any(look.is_xception for look in looks):
        yield "X", "Xception (3x3)"
    if any(look.is_skip for look in looks):
        yield "skip", "skipped"
    if has_fixed:
        yield "fixed", "not searched"
    if any(look.is_block and look.expansion > 1 for look in looks):
        yield "", "e: times the middle channels"
    kinds = {look.label.split()[0] for look in looks if not (look.is_block or look.is_skip)}
    words = {"ir": "ir inverted residual", "sep": "sep separable", "conv": "conv dense"}
    told = [words[kind] for kind in words if kind in kinds]
    for text in (*told, *(["k kernel, e expansion, d dilation"] if told else [])):
        yield "", text
