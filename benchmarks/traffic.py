"""What operators read, write and multiply, and what a compiler would fuse of it."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from device_model import Kernel
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

ALLOCATE = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"}
# Statistics of a batch, then what normalises with them: two passes over the input.
BATCH_NORMS = {
    "native_batch_norm", "_native_batch_norm_legit", "_batch_norm_with_update", "cudnn_batch_norm",
}  # fmt: skip
# Which a compiler calls as they are.
LIBRARY = {"convolution", "mm", "addmm", "bmm"}
# Of a product, for which the depthwise convolution in its launch is made once: those of the widest
# tile in csrc/cuda/separable_plan.cuh.
COLUMNS = 160


def tensors(value: object) -> list[Tensor]:
    """All tensors inside nested lists, tuples and dicts, in order. (Nothing here imports the
    operators: ``launches.py`` puts a library of its own in their place.)"""
    return [t for t in tree_leaves(value) if isinstance(t, Tensor)]


def of_torch(func: torch._ops.OpOverload, name: str, args: tuple) -> int:
    """Launches of one of torch's operators on CUDA."""
    returns = func._schema.returns
    view = any(r.alias_info is not None and not r.alias_info.is_write for r in returns)
    if view or name in ALLOCATE or name == "_unsafe_view":
        return 0
    if not name.startswith("_foreach_"):
        return 1
    # ATen/native/cuda/MultiTensorApply.cuh, for tensors of one chunk: of lists that a launch reads
    # and writes, the most tensors; fewer where every tensor has a number of its own.
    lists = sum(isinstance(a, (list, tuple)) and isinstance(a[0], Tensor) for a in args)
    lists += not name.endswith("_")
    numbers = any(isinstance(a, (list, tuple)) and not isinstance(a[0], Tensor) for a in args)
    most = ((96, 64, 48, 36) if numbers else (110, 64, 48, 36))[lists - 1]
    return -(-len(args[0]) // most)


def elements(found: Iterable[Tensor]) -> int:
    """Of all the tensors, each once; of an expanded one what there is in memory."""
    each = {id(t): t for t in found}.values()
    return sum(min(t.numel(), t.untyped_storage().nbytes() // t.element_size()) for t in each)


def multiply_adds(
    func: torch._ops.OpOverload, args: tuple, kwargs: dict, result: object
) -> tuple[int, int]:
    """By the formula that torch has for the operator, none without one; those of depthwise
    convolutions, which tensor cores do not help, by themselves, last."""
    formula = flop_registry.get(func._overloadpacket)
    count = 0 if formula is None else formula(*args, **kwargs, out_val=result) // 2
    name = func._schema.name.split("::")[1]
    grouped = name == "convolution" and args[8] > 1
    return (0, count) if grouped or "depthwise" in name else (count, 0)


@dataclass
class Node:
    """A launch, or several of one operator.

    Attributes:
        reads, writes: elements by memory.
        multiply_adds, vector_adds: on tensor cores, and on others.
        library: whether a compiler leaves it as it is.
    """

    name: str
    launches: int
    reads: dict[int, int]
    writes: dict[int, int]
    multiply_adds: int = 0
    vector_adds: int = 0
    library: bool = False

    @property
    def elements(self) -> int:
        return sum(self.reads.values()) + sum(self.writes.values())


class Trace(TorchDispatchMode):
    """The launches of torch's operators while it is on.

    Attributes:
        nodes: in their order; a BatchNorm with statistics of its batch is two.
    """

    def __init__(self) -> None:
        super().__init__()
        self.nodes: list[Node] = []
        self._held: list[object] = []  # memory must not come again under another meaning

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func._can_decompose():
            with self:
                return func.decompose(*args, **kwargs)
        result = func(*args, **kwargs)
        name = func._schema.name.split("::")[1]
        launches = of_torch(func, name, args)
        if launches:
            inputs, outputs = tensors((args, kwargs)), tensors(result)
            self._held += [inputs, outputs]
            if name in BATCH_NORMS and any(a is True for a in args):  # in training
                self._batch_norm(name, inputs, outputs)
            else:
                counts = multiply_adds(func, args, kwargs, result)
                self.nodes.append(node_of(name, launches, inputs, outputs, *counts))
        return result

    def _batch_norm(self, name: str, inputs: list[Tensor], outputs: list[Tensor]) -> None:
        vectors = [t for t in outputs if t.dim() == 1 and t.numel()]
        statistics = node_of(f"{name}, statistics", 1, inputs[:1], vectors)
        statistics.library = True  # a reduction is no part of what reads its result
        normalise = node_of(f"{name}, normalise", 1, [inputs[0], *vectors], outputs[:1])
        self.nodes += [statistics, normalise]


def node_of(
    name: str, launches: int, inputs: Iterable[Tensor], outputs: Iterable[Tensor], *counts: int
) -> Node:
    """The node of an operator with these tensors, and the multiply-adds of either kind."""
    node = Node(name, launches, _by_memory(inputs), _by_memory(outputs), *counts)
    node.library = name in LIBRARY
    return node


def block_launches(
    x: Tensor, right: Tensor | None, weights: Sequence[Tensor], biases: Sequence[Tensor],
    kernel: int, stride: int, out_method: int = 0,
) -> list[Node]:  # fmt: skip
    """Launches of a shuffle block in evaluation, which are inside one operator
    (csrc/cuda/shuffle_block_ops.cpp): every 1x1 convolution, with the depthwise convolution before
    it where channels are whole vectors, the last of a branch into the block's output, at stride 1
    together with the half that passes by. Without ``right`` a block of stride 1 parts its input
    first, of which the half that passes by already lies in a whole output. Depthwise convolutions
    that are made more than once are counted so."""
    n, c, h, w = x.shape
    main = 6 if kernel == 0 else 3
    within, outside = n * h * w, n * -(-h // stride) * -(-w // stride)
    found = []
    if stride == 1 and right is None:
        found.append(Node("halves", 1, {0: x.numel()}, {1: x.numel()}))
    if stride == 1:
        c = c // 2 if right is None else right.shape[1]
    for branch in (slice(main), slice(main, None)):
        pixels, size = within, c * within
        reads, taps = 0, 0  # of what is in the launch already
        for weight, bias in zip(weights[branch], biases[branch], strict=True):
            channels, _, k, _ = weight.shape
            if k > 1:  # the first of them has the stride
                pixels = outside
            reads, adds = reads + weight.numel() + bias.numel(), weight.numel() * pixels
            if k > 1 and channels * weight.element_size() % 16 == 0:
                taps = adds
                continue
            made = channels * pixels
            adds, taps = (0, adds) if k > 1 else (adds, taps * -(-channels // COLUMNS))
            found.append(Node("convolution", 1, {0: size + reads}, {1: made}, adds, taps))
            size, reads, taps = made, 0, 0
    if stride == 1 and (right is not None or out_method):
        passing = x.numel() if right is not None else x.numel() // 2
        found[-1].reads[2] = found[-1].writes[3] = passing
    return found


def _by_memory(found: Iterable[Tensor]) -> dict[int, int]:
    sizes: Counter[int] = Counter()
    for t in {id(t): t for t in found}.values():
        if t.numel():
            sizes[t.untyped_storage().data_ptr()] += elements([t])
    return dict(sizes)


def fused(nodes: Sequence[Node]) -> list[Node]:
    """What torch.compile launches of a trace, at best.

    Convolutions, products and reductions are launches of their own. Everything elementwise between
    two of them, concatenations included, is one launch: it reads what others have written, and
    writes what others read. Numbers of calls (``num_batches_tracked``) are left out.

    Args:
        nodes: of a trace whose outputs nothing reads are its results.
    """
    nodes = [n for n in nodes if max((*n.reads.values(), *n.writes.values()), default=0) > 1]
    depth: dict[int, int] = {}  # of memory: how many launches of their own came before
    writer: dict[int, int] = {}  # of memory: the node that wrote it last
    levels: list[int] = []  # of nodes
    parents = list(range(len(nodes)))

    def root(i: int) -> int:
        while parents[i] != i:
            i = parents[i]
        return i

    for i, node in enumerate(nodes):
        levels.append(max((depth.get(m, 0) for m in node.reads), default=0))
        for memory in () if node.library else node.reads:
            before = writer.get(memory)
            if before is not None and not nodes[before].library and levels[before] == levels[i]:
                parents[root(i)] = root(before)
        for memory in node.writes:
            writer[memory], depth[memory] = i, levels[i] + node.library
    groups: defaultdict[int, list[Node]] = defaultdict(list)
    for i, node in enumerate(nodes):
        groups[root(i)].append(node)
    results = {m for m, i in writer.items() if all(m not in n.reads for n in nodes[i + 1 :])}
    return [_together(group, nodes, results) for group in groups.values()]


def _together(group: list[Node], nodes: Sequence[Node], results: set[int]) -> Node:
    """The launch that a group of nodes is."""
    if group[0].library:
        return group[0]
    inside = set(map(id, group))
    wanted = results.union(*(node.reads for node in nodes if id(node) not in inside))
    reads: dict[int, int] = {}
    writes: dict[int, int] = {}
    for node in group:
        for memory, size in node.reads.items():
            if memory not in writes:
                reads[memory] = max(reads.get(memory, 0), size)
        writes |= node.writes
    kept = {m: size for m, size in writes.items() if m in wanted}
    return Node("fused", 1, reads, kept)


def lines(first: Sequence[Node], second: Sequence[Node], pixels: tuple[int, int]) -> list[Kernel]:
    """Launches as functions of pixels, from those of a forward pass for images of two sizes. Like
    launches are one entry.

    Args:
        pixels: of the images of either.

    Raises:
        ValueError: other launches at the other size.
    """
    if [n.launches for n in first] != [n.launches for n in second]:
        raise ValueError(f"expected the same launches for {pixels[0]} and {pixels[1]} pixels")
    found: Counter[Kernel] = Counter()
    p, q = pixels
    for a, b in zip(first, second, strict=True):
        slope = (b.elements - a.elements) / (q - p)
        rate = (b.multiply_adds - a.multiply_adds) / (q - p)
        vector = (b.vector_adds - a.vector_adds) / (q - p)
        found[Kernel(a.launches, a.elements - slope * p, slope, rate, vector)] += 1
    return [Kernel(k.launches * n, *(value * n for value in k[1:])) for k, n in found.items()]
