"""Pictures of architectures: a box for each layer, its colour, texts that cannot break the file."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from xml.etree import ElementTree

import pytest

from detnas_d2.drawing import draw_genotype, draw_path, draw_side_by_side
from detnas_d2.drawing.looks import COLOURS
from detnas_d2.drawing.svg import width_of
from detnas_d2.search_space import get_space
from detnas_d2.search_space.genotype import Genotype
from detnas_d2.search_space.hit_network import get_hit_network
from detnas_d2.search_space.hit_space import HitSpace
from detnas_d2.utils.errors import InputError

SVG = "{http://www.w3.org/2000/svg}"
SMALL = get_space("detnas_small")
RELEASED = SMALL.path("2 1 2 0 / 2 1 1 2 / 3 3 1 3 0 0 3 1 / 3 1 3 2")  # 300M, FPN on COCO
HIT = Genotype(
    get_hit_network("hit"),
    "ir_k3_e3_d1 ir_k3_e3_d1 ir_k3_e3_d2 ir_k3_e3_d1 / "
    "ir_k5_e6_d1 ir_k5_e6_d1 ir_k3_e3_d1 ir_k3_e3_d1 / ir_k7_e6 ir_k5_e6_d1 ir_k5_e6_d2 "
    "ir_k5_e3_d1 ir_k5_e6_d1 ir_k5_e6_d2 ir_k5_e6_d1 ir_k5_e6_d2 / "
    "ir_k7_e6 ir_k5_e6_d1 ir_k5_e6_d2 ir_k5_e6_d1",
    "sep_k5_d3 sep_k5_d3 sep_k5_d2 sep_k3_d3 / sep_k3_d3 sep_k5_d3 sep_k5_d3 sep_k3_d3",
    "ir_k5_e6_d1 ir_k3_e6_d1 ir_k5_e6_d1 ir_k5_e6_d1",
)


def parsed(text: str) -> ElementTree.Element:
    root = ElementTree.fromstring(text)
    assert root.tag == f"{SVG}svg"
    return root


def blocks(text: str, css: str = "detnas-block") -> list[ElementTree.Element]:
    rects = parsed(text).iter(f"{SVG}rect")
    return [rect for rect in rects if css in rect.get("class", "").split()]


def texts(text: str) -> list[str]:
    return [element.text or "" for element in parsed(text).iter(f"{SVG}text")]


def test_path_has_a_box_for_each_block_in_the_colour_of_its_kernel() -> None:
    drawing = draw_path(RELEASED, "released")
    found = blocks(drawing)
    kernels = [{"xception": 3}.get(op) or int(op[0]) for op in RELEASED.ops]
    assert [rect.get("fill") for rect in found] == [COLOURS[kernel] for kernel in kernels]
    assert len({COLOURS[k] for k in (3, 5, 7)}) == 3
    # Xception blocks are the large ones of their stage, as in the paper.
    sizes = {
        (float(rect.get("width", 0)), op == "xception")
        for rect, op in zip(found, RELEASED.ops, strict=True)
    }
    assert sizes == {(15.0, False), (18.0, True)}
    assert [t for t in texts(drawing) if t in ("3", "5", "7", "X")] == [
        {"xception": "X"}.get(op, op[0]) for op in RELEASED.ops
    ] + ["X"]  # of the legend
    assert "288.1M multiply-adds, 1.85M parameters, backbone at 224x224" in texts(drawing)


def test_boxes_are_taller_the_deeper_and_do_not_overlap() -> None:
    found = blocks(draw_path(SMALL.uniform_path("5x5")))
    heights = [float(rect.get("height", 0)) for rect in found]
    depths = SMALL.stage_depths
    assert heights == sorted(heights) and sorted(Counter(heights).values()) == sorted(depths)
    boxes = [
        (float(r.get("x", 0)), float(r.get("width", 0)))
        for r in blocks(draw_path(SMALL.uniform_path("xception")))
    ]
    assert all(
        x + width < following for (x, width), (following, _) in zip(boxes, boxes[1:], strict=False)
    )


def placed(element: ElementTree.Element, dx: float = 0, dy: float = 0) -> Iterator[tuple]:
    """(left, top, right, bottom) of all boxes below an element, where they end up."""
    shift = element.get("transform", "")
    if shift.startswith("translate("):
        x, y = map(float, shift[10:-1].split())
        dx, dy = dx + x, dy + y
    if element.tag == f"{SVG}rect":
        x, y, width, height = (float(element.get(k, 0)) for k in ("x", "y", "width", "height"))
        yield dx + x, dy + y, dx + x + width, dy + y + height
    for child in element:
        yield from placed(child, dx, dy)


@pytest.mark.parametrize(
    "picture",
    [
        draw_path(get_space("detnas_large").uniform_path("xception")),
        draw_path(get_space("detnas_tiny").uniform_path("3x3")),
        draw_genotype(HIT),
        draw_genotype(Genotype(get_hit_network("fbnet_c"), "ir_k3_e6_d1 " * 21)),
    ],
)
def test_every_box_lies_on_the_paper(picture: str) -> None:
    root = parsed(picture)
    _, _, width, height = map(float, root.get("viewBox", "").split())
    assert width < 540 and height < 620  # readable when it is shrunk to a telephone
    boxes = [box for group in root.findall(f"{SVG}g") for box in placed(group)]
    assert all(0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height for x0, y0, x1, y1 in boxes)
    # None over another one.
    for i, (left, top, right, bottom) in enumerate(boxes):
        for x0, y0, x1, y1 in boxes[:i]:
            assert x1 <= left or right <= x0 or y1 <= top or bottom <= y0


def test_legend_of_a_narrow_picture_takes_more_lines() -> None:
    labels = texts(drawing := draw_genotype(Genotype(HIT.network, neck=HIT.neck)))
    assert {"sep separable", "k kernel, e expansion, d dilation"} <= set(labels)
    _, _, width, _ = map(float, parsed(drawing).get("viewBox", "").split())
    assert width < 380 and all(width_of(label, 11) < width for label in labels)


def test_skip_is_a_gap_and_expansions_are_told() -> None:
    elastic = get_space("detnas_small_elastic")
    deep = "3x3 7x7_e2 3x3 3x3 3x3 3x3 3x3 3x3"
    stages = ["3x3 skip 3x3_e2 3x3", "7x7 skip 3x3 3x3", deep, "3x3 5x5 3x3 skip"]
    path = elastic.path(" / ".join(stages))
    drawing = draw_path(path)
    assert len(blocks(drawing)) == 20
    gaps = blocks(drawing, "detnas-skip")
    assert [rect.get("fill") for rect in gaps] == ["none"] * 3
    assert all(rect.get("stroke-dasharray") for rect in gaps)
    assert texts(drawing).count("e2") == 2
    assert {"skipped", "e: times the middle channels"} <= set(texts(drawing))


def test_genotype_has_a_box_for_each_layer_with_its_operation() -> None:
    drawing = draw_genotype(HIT, "Hit-Detector")
    assert len(blocks(drawing)) == 20 + 8 + 4
    assert len(blocks(drawing, "detnas-fixed")) == 2 + 1  # the tail, and the legend
    labels = texts(drawing)
    assert labels.count("ir k5 e6") == 7 + 3 and labels.count("ir k5 e6 d2") == 4
    assert labels.count("sep k5 d3") == 4 and labels.count("sep k5 d2") == 1
    assert [t for t in labels if t[0] in "CP" and t[1:].isdigit()] == [
        *("C2", "P2", "C3", "P3", "C4", "P4", "C5", "P5")
    ]
    kernels = Counter(rect.get("fill") for rect in blocks(drawing))
    assert kernels == {COLOURS[3]: 6 + 3 + 1, COLOURS[5]: 12 + 5 + 3, COLOURS[7]: 2}
    assert "searched layers at 800x1216" in " ".join(labels)


@pytest.mark.parametrize(
    ("parts", "boxes"),
    [({"backbone": HIT.backbone}, 20), ({"neck": HIT.neck}, 8), ({"head": HIT.head}, 4)],
)
def test_part_alone(parts: dict, boxes: int) -> None:
    assert len(blocks(draw_genotype(Genotype(HIT.network, **parts)))) == boxes


def test_three_levels() -> None:
    neck = "sep_k5_d3 sep_k5_d3 sep_k5_d2 / sep_k3_d3 sep_k3_d3 skip"
    genotype = Genotype(HIT.network, HIT.backbone, neck, HIT.head, levels=3)
    labels = texts(draw_genotype(genotype))
    assert {"C3", "P5"} <= set(labels) and "P2" not in labels and "levels" in labels


def test_skip_that_changes_the_shape_is_a_convolution() -> None:
    genotype = Genotype(
        get_hit_network("hit_tiny"), "skip skip / skip skip / skip skip / skip skip"
    )
    drawing = draw_genotype(genotype)
    assert len(blocks(drawing, "detnas-k1")) == len(blocks(drawing, "detnas-skip")) == 4


def test_path_of_a_hit_space_is_drawn_as_its_genotype() -> None:
    space = HitSpace.of_network(HIT.network, [("neck", ("sep_k3_d3", "conv_k5_d1"))])
    path = space.path("0 1 0 1 / 1 1 0 0")
    assert draw_path(path, "t") == draw_genotype(space.genotype(path), "t")


def test_several_share_one_legend() -> None:
    drawing = draw_side_by_side(
        [("a", RELEASED), ("b", SMALL.uniform_path("3x3"), "12 ms"), ("c", HIT, "")]
    )
    assert len(blocks(drawing)) == 20 + 20 + 32
    labels = texts(drawing)
    assert [labels.count(text) for text in ("a", "b", "c", "3x3", "12 ms")] == [1] * 5
    assert sum("multiply-adds" in text for text in labels) == 1


def test_equal_pictures_are_equal_texts() -> None:
    rng = random.Random(3)
    path = get_space("detnas_large_elastic").random_path(rng)
    assert draw_path(path, "x") == draw_path(path, "x") != draw_path(path, "y")
    assert draw_genotype(HIT) == draw_genotype(HIT)


@pytest.mark.parametrize(
    "title",
    ["</svg><script>alert(1)</script>", 'a & b "c"', "nul \x00 \x1b[0m", "\udcff.svg", "Größe 猫"],
)
def test_titles_are_escaped(title: str) -> None:
    drawing = draw_path(RELEASED, title)
    drawing.encode("utf-8")
    root = parsed(drawing)
    assert not list(root.iter(f"{SVG}script")) and len(blocks(drawing)) == 20
    told = root.find(f"{SVG}title").text
    assert told == " ".join("".join(c if c.isprintable() else "\ufffd" for c in title).split())


def test_long_title_is_cut_where_it_is_drawn_only() -> None:
    drawing = draw_path(RELEASED, "long " * 100)
    assert max(map(len, texts(drawing))) < 100
    assert parsed(drawing).find(f"{SVG}title").text == ("long " * 100).strip()


def test_readers_and_screens() -> None:
    root = parsed(draw_path(RELEASED, "released"))
    title, about, style = root[0], root[1], root[2]
    assert (
        root.get("role") == "img"
        and root.get("aria-labelledby") == f"{title.get('id')} {about.get('id')}"
    )
    assert (
        about.text
        == f"released: {RELEASED}; 288.1M multiply-adds, 1.85M parameters, backbone at 224x224"
    )
    assert "prefers-color-scheme:dark" in style.text and "max-width:100%" in style.text
    # In a page the rules are the page's: none may touch anything else there.
    rules = style.text.replace("@media (prefers-color-scheme:dark){", "").rstrip("}")
    assert all(rule.startswith(".detnas") for rule in rules.split("}") if rule)


def test_nothing_to_draw() -> None:
    with pytest.raises(InputError, match="expected a path or a genotype"):
        draw_side_by_side([])
    with pytest.raises(InputError, match="no operations: nothing to draw"):
        draw_genotype(Genotype(HIT.network))
    with pytest.raises(InputError, match="cannot draw str: expected a path or a genotype"):
        draw_path("3x3 3x3")  # type: ignore[arg-type]


def test_costs_are_never_cut() -> None:
    lines = [
        "44.0M multiply-adds, 0.12M parameters, backbone at 224x224",
        "2.03G multiply-adds, 0.17M parameters, whole detector at 800x1200",
    ]
    path = get_space("detnas_demo").uniform_path("3x3")  # narrower than these
    drawn = [text for text in texts(draw_side_by_side([("a", path, "\n".join(lines))])) if text]
    told = " ".join(text for text in drawn if "ultiply" in text or "param" in text or "at " in text)
    assert told == " ".join(lines) and "…" not in told
    width = float(parsed(draw_side_by_side([("a", path)])).get("viewBox", "").split()[2])
    assert all(width_of(text, 11) <= width for text in drawn)
    released = texts(draw_side_by_side([("a", RELEASED, lines[1])]))
    assert lines[1] in released  # one line where there is room
