"""What a picture tells of a path or a genotype, and its drawing without title and legend."""

from __future__ import annotations

from dataclasses import dataclass
from xml.etree.ElementTree import Element, SubElement

from detnas_d2.drawing.looks import Look, look_in, look_of
from detnas_d2.drawing.row import Drawn, draw_row, stages_of
from detnas_d2.drawing.svg import add_line, add_text, number
from detnas_d2.drawing.trinity import BOX, COLUMN, draw_head, draw_pyramid
from detnas_d2.search_space.costs import build_cost_table
from detnas_d2.search_space.counting import Cost
from detnas_d2.search_space.genotype import Genotype
from detnas_d2.search_space.hit_costs import part_cost_table
from detnas_d2.search_space.hit_space import GenotypeSpace
from detnas_d2.search_space.space import LayerSpec, Path, SearchSpace
from detnas_d2.utils.errors import InputError


@dataclass(frozen=True)
class Network:
    """A network of a picture.

    Args:
        source: what is drawn.
        title: its heading, "" for none.
        name: what it is called where it has no title.
        text: its canonical text.
        cost: a line about its cost, "" for none.
        looks: of all its searched layers.
        has_fixed: whether operations that are not searched are drawn too.
    """

    source: Path | Genotype
    title: str
    name: str
    text: str
    cost: str
    looks: tuple[Look, ...]
    has_fixed: bool = False

    @property
    def about(self) -> str:
        """All of it in words."""
        parts = [f"{self.title or self.name}: {self.text}", *filter(None, [self.cost])]
        return "; ".join(parts)


def network_of(title: str, source: Path | Genotype, cost: str | None = None) -> Network:
    """The network of an entry of a picture.

    Raises:
        InputError: neither a path nor a genotype, or a genotype without operations.
    """
    resolution = source.resolution if isinstance(source, Path) else None
    if isinstance(source, Path) and isinstance(source.space, GenotypeSpace):
        source = source.space.genotype(source)
    has_fixed = False
    if isinstance(source, Path):
        space = backbone_space(source)
        looks = tuple(look_in(*pair) for pair in zip(space.layers, source.ops, strict=True))
        default = f"{in_words(build_cost_table(space).cost(source.choices))}, backbone at 224x224"
        name = f"network of {space.name}"
    elif isinstance(source, Genotype):
        if not source.parts:
            raise InputError("the genotype has no operations: nothing to draw")
        looks = _looks(source)
        found = searched_cost(source)
        default = f"{in_words(found)}, searched layers at 800x1216" if found else ""
        name = f"network of frame {source.network.name}"
        has_fixed = bool(source.backbone and (source.network.stem_ops or source.network.tail))
    else:
        raise InputError(f"cannot draw {type(source).__name__}: expected a path or a genotype")
    if resolution is not None:
        default = "; ".join([*filter(None, [default]), f"for images of shortest side {resolution}"])
    told = default if cost is None else cost
    return Network(source, title, name, str(source), told, looks, has_fixed)


def backbone_space(path: Path) -> SearchSpace:
    """The space of a DetNAS path."""
    assert isinstance(path.space, SearchSpace)
    return path.space


def in_words(cost: Cost) -> str:
    """E.g. "288.1M multiply-adds, 1.85M parameters"."""
    giga, mega = cost.macs / 1e9, cost.macs / 1e6
    macs = f"{mega:.1f}M" if giga < 1 else f"{giga:.2f}G" if giga < 10 else f"{giga:.1f}G"
    params = f"{cost.params / 1e6:.2f}M" if cost.params >= 1e5 else f"{cost.params / 1e3:.1f}k"
    return f"{macs} multiply-adds, {params} parameters"


def searched_cost(genotype: Genotype) -> Cost | None:
    """Cost of the searched layers of a two-stage detector on the frame's own backbone, for an
    800x1216 image and 1,000 regions; None for another one, whose shapes a genotype does not tell.
    """
    if "backbone" not in genotype.parts or genotype.levels != 4:
        return None
    total = Cost()
    for part, ops in genotype.parts.items():
        candidates = tuple(dict.fromkeys(ops))
        table = part_cost_table(part, genotype.network.layers(part, candidates))
        total += table.cost(candidates.index(op) for op in ops)
    return total


def drawn(network: Network) -> Drawn:
    """Its drawing, without title and legend."""
    source = network.source
    if isinstance(source, Path):
        space = backbone_space(source)
        rows = zip(build_cost_table(space).entries, source.choices, strict=True)
        costs = [in_words(row[choice]) for row, choice in rows]
        return draw_row(stages_of(space.layers, source.ops, costs))
    return _draw_genotype(source)


def _draw_genotype(genotype: Genotype) -> Drawn:
    group, frame = Element("g"), genotype.network
    y, width = 0.0, 0.0
    columns = [BOX / 2 + level * COLUMN for level in range(genotype.levels)]
    layers = frame.backbone_layers(())
    if genotype.backbone:
        row = draw_row(
            stages_of(
                layers,
                genotype.backbone,
                [""] * len(layers),
                before=frame.stem_ops,
                after=frame.tail,
            )
        )
        group.append(row.element)
        y, width = row.height, row.width
        if genotype.neck:
            used = row.ends[-genotype.levels :]
            columns = _spread([x for x, _ in used], row.width)
            for (x, bottom), column in zip(used, columns, strict=True):
                x = column if abs(x - column) < 4 else x  # below the block all the same
                start, turn = f"M{number(x)} {number(bottom)}", number(y + 8)
                add_line(group, f"{start}V{turn}H{number(column)}V{number(y + 28)}")
            y += 12
        else:
            y += 14
    if genotype.neck:
        names = [str(n) for n in _levels(layers, genotype.levels)]
        pyramid = draw_pyramid(genotype.neck, names, columns, _enter_alike(genotype))
        _put(group, pyramid.element, 0, y)
        y, width = y + pyramid.height + 12, max(width, pyramid.width)
    if genotype.head:
        two_stage = genotype.levels == 4
        end = f"fc {frame.fc_channels}" if two_stage else "outputs"
        head = draw_head(genotype.head, end, "regions" if two_stage else "levels")
        _put(group, head.element, 0, y)
        y, width = y + head.height + 12, max(width, head.width)
    if genotype.neck_channels:
        told = f"neck and head of {genotype.neck_channels} channels"
        add_text(group, 0, y + 11, told, 11, tone="faint")
        y, width = y + 26, max(width, 7.0 * len(told))
    return Drawn(group, width, y - 12)


def _put(parent: Element, element: Element, x: float, y: float) -> None:
    SubElement(parent, "g", {"transform": f"translate({number(x)} {number(y)})"}).append(element)


def _looks(genotype: Genotype) -> tuple[Look, ...]:
    """Of all layers, part by part."""
    layers = genotype.network.backbone_layers(()) if genotype.backbone else ()
    looks = [look_in(*pair) for pair in zip(layers, genotype.backbone, strict=True)]
    same = [*_enter_alike(genotype), *[True] * genotype.levels] if genotype.neck else []
    pairs = zip(genotype.neck, same, strict=True)
    looks += [look_of(op, same_shape=alike) for op, alike in pairs]
    return (*looks, *map(look_of, genotype.head))


def _enter_alike(genotype: Genotype) -> list[bool]:
    """Whether each level enters the neck with its channels; not known of another backbone."""
    frame = genotype.network
    features = frame.feature_channels[-genotype.levels :]
    return [bool(genotype.backbone) and c == frame.neck_channels for c in features]


def _levels(layers: tuple[LayerSpec, ...], count: int) -> list[int]:
    """Numbers of the pyramid levels of a neck: of stride 2 to the power of them."""
    reductions = sorted({layer.reduction for layer in layers})[-count:]
    return [reduction.bit_length() - 1 for reduction in reductions]


def _spread(wanted: list[float], width: float) -> list[float]:
    """Middles of columns near ``wanted``, none over another or outside of ``width``."""
    columns = list(wanted)
    limit = max(width, len(columns) * COLUMN) - BOX / 2
    for i in reversed(range(len(columns))):
        columns[i] = min(columns[i], limit)
        limit = columns[i] - COLUMN
    least = BOX / 2
    for i, column in enumerate(columns):
        columns[i] = max(column, least)
        least = columns[i] + COLUMN
    return columns
