"""Figures by matplotlib as SVG that stands in a page: its text is the page's font, its colours are
the page's variables, so that one figure serves a light and a dark page.

Figures are drawn with stand-ins, colours that nothing else has, which :func:`svg` replaces.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from markupsafe import Markup

_SERIES = 10
SERIES = tuple(f"#0a0b{number:02x}" for number in range(_SERIES))
"""Stand-ins of ``--s0`` to ``--s9``."""
INK, LINE, GOOD = "#0a0c00", "#0a0c01", "#0a0c02"
_VARIABLES = {
    **{stand_in: f"var(--s{number})" for number, stand_in in enumerate(SERIES)},
    INK: "currentColor",
    LINE: "var(--line)",
    GOOD: "var(--good)",
}
_RC: Any = {
    "svg.fonttype": "none",
    "text.parse_math": False,  # a $ in the name of a class is a $
    "font.family": "sans-serif",
    "font.size": 12,
    "axes.labelsize": 12,
    "axes.titlesize": 12,
    "axes.unicode_minus": False,
    "legend.fontsize": 11,
    "legend.frameon": False,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": LINE,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "grid.color": LINE,
    "grid.linewidth": 0.6,
    "xtick.color": LINE,
    "ytick.color": LINE,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "lines.linewidth": 2,
}
_NO_METADATA = dict.fromkeys(("Date", "Creator", "Format", "Type"))
# XML has no place for these.
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")


@contextmanager
def style() -> Iterator[None]:
    """Settings of all figures; they are made and drawn within."""
    import matplotlib

    with matplotlib.rc_context(_RC):
        yield


def new_axes(count: int = 1, *, height: float = 3.4) -> tuple[Any, list[Any]]:
    """A figure of ``count`` axes side by side that can be read 330 pixels wide.

    Args:
        height: inches, of which 72 are as many pixels in a page.
    """
    from matplotlib.figure import Figure  # needs no display

    figure = Figure(figsize=(5.2, height), layout="constrained")
    return figure, list(figure.subplots(1, count, sharey=True, squeeze=False).flat)


def color(number: int) -> str:
    return SERIES[number % _SERIES]


def shown(text: object, length: int = 40) -> str:
    """A text of the user's for a figure: without control characters, cut to ``length``."""
    clean = _CONTROL.sub("\ufffd", str(text).replace("\n", " "))
    return clean if len(clean) <= length else f"{clean[: length - 1]}…"


def svg(figure: Any, name: str, description: str) -> Markup:
    """The figure as an SVG element.

    Args:
        name: of letters, unlike that of any other figure of the page.
        description: what a screen reader says in its place.
    """
    import matplotlib

    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", transparent=True, metadata=_NO_METADATA)
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    head, _, body = text.partition(">")
    box = re.search(r'viewBox="[^"]*"', head)
    assert box is not None
    width = float(box.group(0)[len('viewBox="') : -1].split()[2])
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    body = re.sub(r"<!--.*?-->\n?", "", body, flags=re.DOTALL)
    # A page has each id once; those of groups serve nobody.
    used = set(re.findall(r'(?:url\(|href=")#([^)"]+)', body))
    body = re.sub(
        r' id="([^"]*)"',
        lambda match: f' id="{name}-{match.group(1)}"' if match.group(1) in used else "",
        body,
    )
    body = re.sub(r'(url\(|href=")#', rf"\1#{name}-", body)
    body = re.sub(r"font: (?:[a-z0-9]+ )*?([0-9.]+px) [^;\"]*", r"font-size: \1", body)
    for stand_in, variable in _VARIABLES.items():
        body = body.replace(stand_in, variable)
    body = re.sub(r"\n\s*", "\n", body)
    title = Markup("<title>{}</title>").format(_CONTROL.sub("\ufffd", description))
    return Markup(
        f'<svg class="plot" role="img" style="max-width: {width * 1.15:.0f}px" {box.group(0)}>'
        f"{title}{body}"
    )


def bars_height(count: int, least: float = 1.6) -> float:
    """Inches of a figure of ``count`` horizontal bars."""
    return max(least, 0.9 + 0.26 * count)


def integer_axis(axis: Any) -> None:
    """Ticks at whole numbers alone."""
    axis.get_major_locator().set_params(integer=True)


def legend_below(figure: Any, axis: Any) -> None:
    """The legend of an axis, below all axes, where it hides nothing."""
    handles, labels = axis.get_legend_handles_labels()
    longest = max((len(label) for label in labels), default=0)
    columns = max(1, min(len(labels), 48 // (longest + 6)))
    figure.legend(handles, labels, loc="outside lower center", ncols=columns)
