"""The pyramid and the head of a Hit-Detector, the operation of a layer in its box."""

from __future__ import annotations

from collections.abc import Sequence
from xml.etree.ElementTree import Element, SubElement

from detnas_d2.drawing.looks import look_of
from detnas_d2.drawing.row import Drawn
from detnas_d2.drawing.svg import LINE, PAPER, add_box, add_line, add_text, arrow_tip, number

BOX, COLUMN = 78.0, 86.0
"""Width of a box, and the least between the middles of two columns."""
_HIGH, _MERGE, _RADIUS = 20.0, 30.0, 6.0
_NAMES = 16.0


def draw_pyramid(
    ops: Sequence[str],
    names: Sequence[str],
    columns: Sequence[float],
    same_channels: Sequence[bool],
) -> Drawn:
    """A column for each level, the finest on the left: first layers, top-down sums, second layers,
    bottom-up sums.

    Args:
        ops: of the first layers, then of the second ones.
        names: numbers of the levels, e.g. "2".
        columns: middle of each column.
        same_channels: whether a level enters with the pyramid's channels.
    """
    group, levels = Element("g"), len(names)
    first, top_down = _NAMES, _NAMES + _HIGH + _MERGE / 2
    second = first + _HIGH + _MERGE
    bottom_up = second + _HIGH + _MERGE / 2
    end = bottom_up + _RADIUS + 8
    for x, name in zip(columns, names, strict=True):
        add_line(
            group, f"M{number(x)} {number(first)}V{number(end)}", tip=arrow_tip(x, end, "down")
        )
        add_text(group, x + 5, first - 5, f"C{name}", 11, tone="faint")
        add_text(group, x, end + 13, f"P{name}", 11, anchor="middle", bold=True)
    for left, right in zip(columns, columns[1:], strict=False):
        _merge(group, right, left, top_down)
        _merge(group, left, right, bottom_up)
    for step, y in enumerate((first, second)):
        for level, x in enumerate(columns):
            op, same = ops[step * levels + level], step > 0 or same_channels[level]
            tip = f"neck, layer {step * levels + level}: {op}, level {names[level]}"
            draw_operation(group, op, x, y, tip, same_shape=same)
    return Drawn(group, max(columns) + BOX / 2, end + 16)


def _merge(parent: Element, source: float, target: float, y: float) -> None:
    """A sum at ``target`` of what comes along from ``source``."""
    direction = "left" if target < source else "right"
    side = _RADIUS if target < source else -_RADIUS
    x = target + side
    add_line(parent, f"M{number(source)} {number(y)}H{number(x)}", tip=arrow_tip(x, y, direction))
    plus = {"class": "detnas-line detnas-paper", "stroke": LINE, "fill": PAPER}
    circle = {"cx": number(target), "cy": number(y), "r": number(_RADIUS)}
    SubElement(parent, "circle", {**plus, **circle})
    add_text(parent, target, y + 4, "+", 11, anchor="middle")


def draw_head(ops: Sequence[str], end: str, before: str) -> Drawn:
    """The layers of the head one after the other.

    Args:
        end: what follows them; before: what they see.
    """
    group, x, middle = Element("g"), 62.0, _HIGH / 2
    add_text(group, 0, middle + 4, before, 11, tone="faint")
    for layer, op in enumerate(ops):
        add_line(
            group,
            f"M{number(x - 10)} {number(middle)}H{number(x)}",
            tip=arrow_tip(x, middle, "right"),
        )
        draw_operation(group, op, x + BOX / 2, 0, f"head, layer {layer}: {op}")
        x += BOX + 10
    add_line(
        group, f"M{number(x - 10)} {number(middle)}H{number(x)}", tip=arrow_tip(x, middle, "right")
    )
    add_text(group, x + 4, middle + 4, end, 11, tone="faint")
    return Drawn(group, x + 46, _HIGH)


def draw_operation(
    parent: Element, op: str, x: float, y: float, tip: str, *, same_shape: bool = True
) -> None:
    """The box of an operation, its middle at ``x``, its upper edge at ``y``."""
    look = look_of(op, same_shape=same_shape)
    group = SubElement(parent, "g")
    SubElement(group, "title").text = f"{tip}, {look.words}"
    if look.is_skip:
        css = "detnas-block detnas-skip detnas-gap detnas-paper"
        add_box(group, x - BOX / 2, y, BOX, _HIGH, colour=PAPER, css=css, dashes="3 3")
    else:
        css = f"detnas-block detnas-k{look.kernel}"
        add_box(group, x - BOX / 2, y, BOX, _HIGH, colour=look.colour, css=css)
    tone = "faint" if look.is_skip else "box"
    add_text(group, x, y + 14, look.label, 11, anchor="middle", tone=tone)
