"""The architecture to use, and one that nobody searched, drawn."""

from __future__ import annotations

from markupsafe import Markup

from detnas_d2.drawing.architectures import in_words
from detnas_d2.drawing.pictures import draw_side_by_side
from detnas_d2.engine.architectures import architectures_of, searched_space
from detnas_d2.report.found import Found, FoundStage
from detnas_d2.report.networks import Winner, cost_of


def drawings_of(found: Found, winner: Winner | None, other: FoundStage | None) -> list[Markup]:
    """SVG of the winner and of a network of ``other``, those that can be drawn.

    Raises:
        InputError: a config, or a path that is not of its space.
    """
    drawings = []
    if winner is not None and winner.row is None and winner.record is not None:
        path = searched_space(winner.stage.config).path(winner.record.path)
        drawings.append(draw_side_by_side([(winner.stage.title, path)]))
    for stage in (winner.stage if winner is not None and winner.row is not None else None, other):
        parts = architectures_of(stage.config) if stage is not None else []
        if stage is not None and parts:
            cost = cost_of(found, stage) if len(parts) == 1 else None
            text = in_words(cost) if cost is not None else ""
            drawings.append(draw_side_by_side([(stage.title, part, text) for part in parts]))
    return [Markup(drawing) for drawing in drawings]
