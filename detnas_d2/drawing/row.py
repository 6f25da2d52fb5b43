"""The blocks of a backbone in a row: a box for each, grouped by stage, taller the deeper."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from xml.etree.ElementTree import Element, SubElement

from detnas_d2.drawing.looks import Look, look_in
from detnas_d2.drawing.svg import FIXED, add_box, add_line, add_text, number, width_of
from detnas_d2.search_space.space import LayerSpec

PER_LINE = 24  # blocks of a line: more would be unreadable on a telephone
_PITCH, _BOX, _BIG = 20.0, 15.0, 18.0
_STAGE_GAP, _LINE_GAP, _LABELS = 10.0, 14.0, 28.0
_LOWEST, _TALLER, _XCEPTION = 34.0, 8.0, 9.0  # heights: of stage 1, per stage, of an Xception more
_GAP = 20.0  # height of what is skipped
_UPRIGHT = 74.0  # height that texts written upwards need


@dataclass(frozen=True)
class Cell:
    """A block of a stage.

    Args:
        tip: what a browser shows where the mouse is.
        is_fixed: of the frame, not searched.
    """

    look: Look
    tip: str
    is_fixed: bool = False


@dataclass(frozen=True)
class Stage:
    """A stage of the row: its cells, its name and what it is like."""

    cells: tuple[Cell, ...]
    name: str
    about: str


@dataclass(frozen=True)
class Drawn:
    """An element, drawn from the origin on, and its size.

    Args:
        ends: of a row, (x, y) below the last block of each stage.
    """

    element: Element
    width: float
    height: float
    ends: tuple[tuple[float, float], ...] = ()


def stages_of(
    layers: Sequence[LayerSpec],
    ops: Sequence[str],
    costs: Sequence[str],
    *,
    before: Sequence[tuple[str, int]] = (),
    after: Sequence[tuple[str, int]] = (),
) -> tuple[Stage, ...]:
    """The stages of a backbone.

    Args:
        layers: its searchable layers; ops: their operations; costs: text about the cost of each.
        before, after: (operation, output channels) that are fixed, in the first and last stage.
    """
    stages = []
    numbers = sorted({layer.stage for layer in layers})
    for stage in numbers:
        members = [
            entry for entry in zip(layers, ops, costs, strict=True) if entry[0].stage == stage
        ]
        cells = [_searched(layer, op, cost) for layer, op, cost in members]
        if stage == numbers[0]:
            cells = [*_fixed(before, members[0][0].in_channels, 2), *cells]
        channels = [layer.out_channels for layer, _, _ in members]
        if stage == numbers[-1]:
            cells += _fixed(after, channels[-1], 1)
            channels += [width for _, width in after]
        widths = "-".join(str(c) for c in sorted({min(channels), max(channels)}))
        about = f"{widths} ch, 1/{members[0][0].reduction}"
        stages.append(Stage(tuple(cells), f"stage {stage + 1}", about))
    return tuple(stages)


def _searched(layer: LayerSpec, op: str, cost: str) -> Cell:
    look = look_in(layer, op)
    place = f"layer {layer.index}: {op}, {look.words}; {layer.out_channels} channels"
    stride = ", stride 2" if layer.stride == 2 else ""
    return Cell(look, f"{place}{stride}{f', {cost}' if cost else ''}")


def _fixed(ops: Sequence[tuple[str, int]], channels: int, stride: int) -> list[Cell]:
    cells = []
    for op, width in ops:
        look = look_in(LayerSpec(0, 0, channels, width, stride, 1, (op,)), op)
        cells.append(Cell(look, f"fixed: {op}, {look.words}; {width} channels", is_fixed=True))
        channels = width
    return cells


def draw_row(stages: Sequence[Stage]) -> Drawn:
    """The boxes of all stages, on several lines where there are many.

    Boxes of ShuffleNetV2's blocks have the kernel's side in them, X for Xception, which is larger;
    where there are other operations, all have their names, written upwards.
    """
    upright = any(not (c.look.is_block or c.look.is_skip) for s in stages for c in s.cells)
    group, width, ends = Element("g"), 0.0, []
    y = 0.0
    for line in _lines(stages):
        heights = [_height(stages.index(stage), upright) for stage in line]
        middle = y + _LABELS + (max(heights) + (0 if upright else _XCEPTION)) / 2
        bottom = 2 * middle - y - _LABELS
        x = 0.0
        spans = []
        for stage in line:
            spans.append((x, max(len(stage.cells) * _PITCH, _label_width(stage))))
            x += spans[-1][1] + _STAGE_GAP
        add_line(group, f"M0 {number(middle)}H{number(x - _STAGE_GAP)}")
        for stage, height, (left, room) in zip(line, heights, spans, strict=True):
            centre = left + room / 2
            add_text(group, centre, y + 10, stage.name, 11, anchor="middle", bold=True)
            add_text(group, centre, y + 22, stage.about, 10, anchor="middle", tone="faint")
            first = centre - (len(stage.cells) - 1) * _PITCH / 2
            for position, cell in enumerate(stage.cells):
                _draw_cell(group, cell, first + position * _PITCH, middle, height, upright)
            last = first + (len(stage.cells) - 1) * _PITCH
            gap = stage.cells[-1].look.is_skip
            ends.append((last, middle + (_GAP if gap else height) / 2))
        width, y = max(width, x - _STAGE_GAP), bottom + _LINE_GAP
    return Drawn(group, width, y - _LINE_GAP, tuple(ends))


def _lines(stages: Sequence[Stage]) -> Iterator[list[Stage]]:
    line: list[Stage] = []
    for stage in stages:
        if line and sum(len(s.cells) for s in (*line, stage)) > PER_LINE:
            yield line
            line = []
        line.append(stage)
    yield line


def _height(depth: int, upright: bool) -> float:
    return (_UPRIGHT if upright else _LOWEST) + _TALLER * depth


def _label_width(stage: Stage) -> float:
    return max(width_of(stage.name, 11), width_of(stage.about, 10)) + 2


def _draw_cell(
    parent: Element, cell: Cell, x: float, y: float, height: float, upright: bool
) -> None:
    """A cell around (x, y)."""
    look = cell.look
    group = SubElement(parent, "g")
    SubElement(group, "title").text = cell.tip
    if look.is_skip:
        left, top = x - _BOX / 2, y - _GAP / 2
        css = "detnas-block detnas-skip detnas-gap"
        add_box(group, left, top, _BOX, _GAP, colour="none", css=css, dashes="2 2")
        return
    width = _BIG if look.is_xception else _BOX
    height += _XCEPTION if look.is_xception else 0
    css, colour = f"detnas-block detnas-k{look.kernel}", look.colour
    if look.is_xception:
        css += " detnas-xception"
    if cell.is_fixed:
        css, colour = "detnas-fixed", FIXED
    add_box(group, x - width / 2, y - height / 2, width, height, colour=colour, css=css)
    tone = "faint" if cell.is_fixed else "box"
    if upright:
        text = look.label if not look.is_block else look.name.replace("_", " ")
        add_text(group, x + 3.5, y, text, 10, anchor="middle", tone=tone, upright=True)
        return
    wider = look.expansion > 1
    add_text(group, x, y + (1 if wider else 4), look.label, 12, anchor="middle", tone=tone)
    if wider:
        add_text(group, x, y + 11, f"e{look.expansion}", 9, anchor="middle", tone=tone)
