"""The architecture to use, and one that nobody searched, drawn."""

from __future__ import annotations

from markupsafe import Markup

from detnas_d2.drawing.pictures import Architecture, draw_side_by_side
from detnas_d2.engine.architectures import genotype_of, searched_space
from detnas_d2.report.found import Found, FoundStage
from detnas_d2.report.networks import Winner, cost_of, cost_text
from detnas_d2.search_space import space_of


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
        drawn = architecture_of(stage) if stage is not None else None
        if stage is not None and drawn is not None:
            cost = cost_of(found, stage)
            text = cost_text(cost.macs, cost.params) if cost is not None else ""
            drawings.append(draw_side_by_side([(stage.title, drawn, text)]))
    return [Markup(drawing) for drawing in drawings]


def architecture_of(stage: FoundStage) -> Architecture | None:
    """Genotype or path of the stage's network; None of one of another kind."""
    cfg = stage.config
    genotype = genotype_of(cfg)
    if genotype.parts:
        return genotype
    return space_of(cfg).path(stage.architecture) if stage.architecture else None
