"""Every public operator: one graph under torch.compile and torch.export, FLOPs, opcheck."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from detnas_d2 import ops
from detnas_d2.ops import has_extension, reference
from tests.ops import bad_arguments as made
from tests.ops.compare import tensors
from tests.ops.test_derivatives import NAMES
from tests.ops.test_shuffle_block_stats import arguments

pytestmark = pytest.mark.skipif(not has_extension(), reason="the operators are not built")

ROOT = Path(__file__).resolve().parents[2]
NO_OPERATORS = {"BNStats", "build_info", "has_extension"}
MADE_OF_PYTORCHS = {"bn_stats_merge"}
WITHOUT_PRODUCTS = {
    "bn_fold", "bn_stats", "bn_stats_fold", "mixed_sum", "pack_conv3x3", "pack_shuffle_block",
    "roi_align", "shuffle_concat",
}  # fmt: skip
TWO_FORMS = {"shuffle_block_training": "shuffle_block_stats"}  # the operators it is made of apart


def calls() -> dict[str, tuple[Callable, list[Tensor]]]:
    """Functions of tensors alone, of operators that tests/ops/test_derivatives.py has not."""
    x, weight, bias = *made.maps(made.X, (made.OUT, made.C, 3, 3)), made.vectors(made.OUT)[0]
    (a, b), boxes, *rest = made.regions()
    left, right, *of_stats = arguments((2, 8, 9, 7), 5, 1, 2)
    whole, _, *pending = arguments((2, 8, 9, 7), 0, 2, 0, pending=True)
    _, weights, biases, *block = made.block(5, 2)

    def merged(y: Tensor, z: Tensor) -> object:
        return ops.bn_stats_merge(ops.bn_stats(y), ops.bn_stats(z))

    def packed(y: Tensor) -> object:
        kept = ops.pack_shuffle_block(weights, *block[:2])
        return ops.shuffle_block(y, weights, biases, *block, kept, out_method=1)

    def packed_conv(y: Tensor, w: Tensor) -> object:
        return ops.conv3x3_packed([y, y[:1]], w, ops.pack_conv3x3(w))

    return {
        "bn_stats_merge": (merged, [x, left[:, :1].expand(-1, made.C, -1, -1)]),
        "conv3x3": (lambda *t: ops.conv3x3(*t, True), [x, weight, bias]),
        "conv3x3_packed": (packed_conv, [x, weight]),
        "pack_conv3x3": (ops.pack_conv3x3, [weight]),
        "pack_shuffle_block": (packed, [x]),
        "roi_align": (lambda y, z, r: ops.roi_align([y, z], r, *rest), [a, b, boxes]),
        "shuffle_block": (lambda y: ops.shuffle_block(y, weights, biases, *block), [x]),
        "shuffle_block_stats": (
            lambda *t: ops.shuffle_block_stats(*t, *of_stats), [left, right],
        ),
        "shuffle_block_training": (
            lambda y: ops.shuffle_block_training(y, None, *pending), [whole],
        ),
        "shuffle_block_training of halves": (
            lambda *t: ops.shuffle_block_training(*t, *of_stats), [left, right],
        ),
    }  # fmt: skip


CALLS = list(calls())


def test_all_are_known() -> None:
    named = {name.split()[0] for name in (*NAMES, *CALLS)}
    assert named == set(ops.__all__) - NO_OPERATORS
    for name in named:
        text = getattr(ops, name).__doc__
        assert all(f"\n    {part}:" in text for part in ("Args", "Returns", "Raises")), name


@pytest.fixture(autouse=True)
def forgotten() -> None:
    torch._dynamo.reset()
    torch.manual_seed(0)


def test_without_the_library_references_run_or_a_line_says_why() -> None:
    program = (
        "import sys; sys.modules['detnas_d2._C'] = None\n"  # makes the import fail
        "from detnas_d2 import ops\n"
        "from tests.ops.test_derivatives import cases\n"
        "from tests.ops.test_public import calls\n"
        "assert not ops.has_extension()\n"
        "for name, (f, at) in {**calls(), **cases(ops)}.items():\n"
        "    try:\n"
        "        f(*at)\n"
        "    except RuntimeError as error:\n"
        "        print(error)\n"
    )
    command = [sys.executable, "-W", "ignore", "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0 and not done.stderr, done.stderr
    why = "needs the compiled library: detnas_d2._C is not available"
    packs = ("pack_conv3x3", "pack_conv3x3", "pack_shuffle_block")
    assert done.stdout.splitlines() == [f"{op}: {why}" for op in packs]


@pytest.mark.parametrize("name", CALLS)
def test_one_graph_compiled_and_exported(name: str) -> None:
    f, at = calls()[name]

    class Called(torch.nn.Module):
        def forward(self, *at: Tensor) -> object:
            return f(*at)

    compiled = torch.compile(f, backend="aot_eager", fullgraph=True)
    exported = torch.export.export(Called(), tuple(at)).module()
    for made_of in (compiled, exported):
        torch.testing.assert_close(list(tensors(made_of(*at))), list(tensors(f(*at))))


@pytest.mark.parametrize("stride", [1, 2])
def test_gradients_of_compiled_training_blocks(stride: int) -> None:
    """Compiled, the operators of a block have nodes of autograd of their own."""
    *args, method = arguments((2, 8, 9, 7), 3, stride, 2, pending=stride == 2)
    args = [*args, method]
    leaves = [t.requires_grad_() for t in tensors(args)]

    def run(leaves: list[Tensor]) -> tuple[list[Tensor], bool]:
        out, stats = ops.shuffle_block_training(*args)
        return list(tensors(out)), any(t.requires_grad for t in tensors(stats))

    results = []
    for call in (run, torch.compile(run, backend="aot_eager", fullgraph=True)):
        outs, recorded = call(leaves)
        assert not recorded
        grads = torch.autograd.grad(sum(o.square().sum() for o in outs), leaves)
        results.append([*outs, *grads])
    torch.testing.assert_close(*results)


def test_all_that_multiply_count_their_operations() -> None:
    registered = FlopCounterMode(display=False).flop_registry
    for name in set(ops.__all__) - NO_OPERATORS - MADE_OF_PYTORCHS - WITHOUT_PRODUCTS:
        op = getattr(torch.ops.detnas_d2, TWO_FORMS.get(name, name))
        assert op in registered, name
    counts = []
    for call in (ops.shuffle_block_training, reference.shuffle_block_stats):
        with FlopCounterMode(display=False) as counter:
            call(*arguments((2, 8, 9, 7), 5, 2, 2))
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1] > 0


def test_opcheck_of_gradients() -> None:
    """Of the others it is beside their other tests."""
    backward = {op: f for op, f, _ in made.CASES if op.endswith("_backward")}
    assert len(backward) == 8
    for op, arguments_of in backward.items():
        torch.library.opcheck(getattr(torch.ops.detnas_d2, op).default, tuple(arguments_of()))
