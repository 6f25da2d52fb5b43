"""Elements of SVG: shapes, text that fits, a document that follows light and dark."""

from __future__ import annotations

import hashlib
import re
from xml.etree import ElementTree
from xml.etree.ElementTree import Element, SubElement

NAMESPACE = "http://www.w3.org/2000/svg"
PAPER, INK, FAINT, LINE, EDGE = "#ffffff", "#1f2328", "#59636e", "#8b949e", "#3d444d"
FIXED = "#eef0f3"
# Attributes have the colours of light mode, which programs without style sheets show. Inside a page
# the rules are those of the whole page, so all are of this project's own classes.
STYLE = (
    ".detnas{max-width:100%;height:auto}"
    "@media (prefers-color-scheme:dark){"
    ".detnas-paper{fill:#0d1117}.detnas-ink{fill:#f0f6fc}.detnas-faint{fill:#a9b3be}"
    ".detnas-line{stroke:#848d97}.detnas-tip{fill:#848d97}"
    ".detnas-gap{stroke:#848d97}.detnas-fixed{fill:#2a313c;stroke:#848d97}}"
)
# What XML cannot hold: control characters and lone surrogates (of file names that are not UTF-8).
_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_ADVANCE = 0.55  # mean width of a character of a sans-serif font, in font sizes
_SCALE = 1.4  # size where there is room, over the units of the drawing


def clean(text: str) -> str:
    """``text`` without characters that XML cannot hold, on one line."""
    return " ".join(_NOT_XML.sub("\N{REPLACEMENT CHARACTER}", text).split())


def number(value: float) -> str:
    """Short text of a coordinate, the same on every machine."""
    return f"{value:.1f}".removesuffix(".0")


def width_of(text: str, size: float) -> float:
    """About the width of a text."""
    return len(text) * size * _ADVANCE


def fitted(text: str, size: float, width: float) -> str:
    """``text``, cut to about ``width``."""
    room = max(int(width / (size * _ADVANCE)), 1)
    return text if len(text) <= room else text[: room - 1].rstrip() + "…"


def wrapped(text: str, size: float, width: float) -> list[str]:
    """Lines of about ``width`` at most, broken after commas; a part that is longer is cut."""
    lines: list[str] = []
    for part in text.split(", "):
        longer = f"{lines[-1]}, {part}" if lines else part
        if lines and width_of(longer, size) <= width:
            lines[-1] = longer
        else:
            lines = [*lines[:-1], f"{lines[-1]},", part] if lines else [part]
    return [fitted(line, size, width) for line in lines]


def add_text(
    parent: Element,
    x: float,
    y: float,
    text: str,
    size: float,
    *,
    tone: str = "ink",
    anchor: str = "start",
    bold: bool = False,
    upright: bool = False,
) -> Element:
    """A line of text with its baseline at ``y``.

    Args:
        tone: "ink" or "faint", which follow light and dark, or "box" for text on a colour.
        upright: from below upwards, with the baseline at ``x``.
    """
    attributes = {"x": number(x), "y": number(y), "font-size": number(size), "text-anchor": anchor}
    if tone == "box":
        attributes["fill"] = "#16191d"
    else:
        attributes |= {"class": f"detnas-{tone}", "fill": FAINT if tone == "faint" else INK}
    if bold:
        attributes["font-weight"] = "600"
    if upright:
        attributes["transform"] = f"rotate(-90 {number(x)} {number(y)})"
    element = SubElement(parent, "text", attributes)
    element.text = clean(text)
    return element


def add_line(parent: Element, points: str, *, tip: str = "") -> None:
    """A line through ``points`` (a path's data), with an arrow tip where ``tip`` says."""
    attributes = {"class": "detnas-line", "d": points, "stroke": LINE, "fill": "none"}
    SubElement(parent, "path", {**attributes, "stroke-width": "1.2"})
    if tip:
        SubElement(parent, "path", {"class": "detnas-tip", "d": tip, "fill": LINE})


def arrow_tip(x: float, y: float, direction: str) -> str:
    """Path data of a tip that ends at (x, y): "left", "right" or "down"."""
    if direction == "down":
        return f"M{number(x - 3)} {number(y - 5)}h6L{number(x)} {number(y)}z"
    back = 5 if direction == "left" else -5
    return f"M{number(x + back)} {number(y - 3)}v6L{number(x)} {number(y)}z"


def add_box(
    parent: Element,
    x: float,
    y: float,
    width: float,
    height: float,
    *,
    colour: str,
    css: str,
    stroke: str = EDGE,
    dashes: str = "",
    radius: float = 2.5,
) -> Element:
    """A rectangle; ``css`` are its classes."""
    attributes = {
        "class": css,
        "x": number(x),
        "y": number(y),
        "width": number(width),
        "height": number(height),
        "rx": number(radius),
        "fill": colour,
        "stroke": stroke,
        "stroke-width": "0.8",
    }
    if dashes:
        attributes["stroke-dasharray"] = dashes
    return SubElement(parent, "rect", attributes)


def document(content: list[Element], width: float, height: float, title: str, about: str) -> str:
    """The text of a picture: the elements on paper, with a title and a description.

    It is at most as wide as its place, e.g. a telephone. Equal pictures are equal texts.

    Args:
        width, height: in the units of the elements.
    """
    seed = "\n".join([title, about, *(ElementTree.tostring(e, "unicode") for e in content)])
    name = f"detnas-{hashlib.sha256(seed.encode('utf-8', 'replace')).hexdigest()[:10]}"
    root = Element(
        "svg",
        {
            "xmlns": NAMESPACE,
            "class": "detnas",
            "role": "img",
            "width": number(width * _SCALE),
            "height": number(height * _SCALE),
            "viewBox": f"0 0 {number(width)} {number(height)}",
            "aria-labelledby": f"{name}-title {name}-desc",
            "font-family": "system-ui, 'Segoe UI', 'Helvetica Neue', Arial, sans-serif",
        },
    )
    SubElement(root, "title", {"id": f"{name}-title"}).text = clean(title)
    SubElement(root, "desc", {"id": f"{name}-desc"}).text = clean(about)
    SubElement(root, "style").text = STYLE
    add_box(root, 0, 0, width, height, colour=PAPER, css="detnas-paper", stroke="none", radius=6)
    root.extend(content)
    return ElementTree.tostring(root, "unicode") + "\n"
