"""Pictures of one architecture or several: titles, costs, drawings, legend."""

from __future__ import annotations

from collections.abc import Iterable
from xml.etree.ElementTree import Element

from detnas_d2.drawing.architectures import Network, drawn, network_of
from detnas_d2.drawing.legend import draw_legend
from detnas_d2.drawing.svg import add_text, document, fitted, number, wrapped
from detnas_d2.search_space.genotype import Genotype
from detnas_d2.search_space.space import Path
from detnas_d2.utils.errors import InputError

_MARGIN, _BETWEEN = 12.0, 22.0
_LEAST = 340.0  # width, for titles and legend

Architecture = Path | Genotype
Entry = tuple[str, Architecture] | tuple[str, Architecture, str]


def draw_path(path: Path, title: str = "") -> str:
    """SVG of a path: a box for each block; the parts of a detector for a path of a Hit-Detector."""
    return draw_side_by_side([(title, path)])


def draw_genotype(genotype: Genotype, title: str = "") -> str:
    """SVG of a genotype: backbone row, pyramid and head, as far as it has them."""
    return draw_side_by_side([(title, genotype)])


def draw_side_by_side(entries: Iterable[Entry]) -> str:
    """SVG of several architectures in one picture, one above the other at the same scale.

    Args:
        entries: (title, path or genotype) or (title, path or genotype, lines about its cost); by
            default the text tells the cost of what is searched.

    Raises:
        InputError: nothing to draw.
    """
    networks = [network_of(*entry) for entry in entries]
    if not networks:
        raise InputError("nothing to draw: expected a path or a genotype")
    strips = [drawn(network) for network in networks]
    width = max(_LEAST, *(strip.width for strip in strips))
    content, y = [], _MARGIN
    for network, strip in zip(networks, strips, strict=True):
        head, height = _heading(network, width)
        place(head, _MARGIN, y)
        place(strip.element, _MARGIN, y + height)
        content += [head, strip.element]
        y += height + strip.height + _BETWEEN
    looks = [look for network in networks for look in network.looks]
    legend = draw_legend(looks, any(network.has_fixed for network in networks), width)
    place(legend.element, _MARGIN, y - 4)
    y += legend.height - 4 + _MARGIN
    titles = [network.title or network.name for network in networks]
    about = ". ".join(network.about for network in networks)
    return document([*content, legend.element], width + 2 * _MARGIN, y, ", ".join(titles), about)


def place(element: Element, x: float, y: float) -> None:
    """Moves an element that was drawn from the origin on."""
    element.set("transform", f"translate({number(x)} {number(y)})")


def _heading(network: Network, width: float) -> tuple[Element, float]:
    group, y = Element("g"), 0.0
    if network.title:
        y += 14
        text = fitted(" ".join(network.title.split()), 14, width)
        add_text(group, 0, y, text, 14, bold=True)
        y += 6
    for line in filter(None, network.cost.split("\n")):
        for text in wrapped(line, 11, width):
            y += 12
            add_text(group, 0, y, text, 11, tone="faint")
            y += 3
    y += 5 if network.cost else 0
    return group, y
