"""Random odd cases of every operator against its reference. Run by sanitized.py.

Usage: fuzz.py LIBRARY [cases [seed]]: LIBRARY takes the place of detnas_d2._C.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import random
import sys
import time
from collections.abc import Iterator

import torch
from torch import Tensor

CHANNELS = (1, 2, 3, 5, 7, 8, 9, 15, 16, 17, 24, 31, 32, 33, 47, 48, 65)
SIZES = (1, 1, 2, 3, 4, 5, 7, 8, 9, 13, 17)


def load(library: str) -> None:
    loader = importlib.machinery.ExtensionFileLoader("detnas_d2._C", library)
    spec = importlib.util.spec_from_loader("detnas_d2._C", loader)
    sys.modules["detnas_d2._C"] = importlib.util.module_from_spec(spec)


class Cases:
    """Arguments of the operators, drawn from one generator."""

    def __init__(self, seed: int) -> None:
        self.r = random.Random(seed)

    def shape(self, even: bool = False) -> tuple[int, int, int, int]:
        c = 1728 if self.r.random() < 0.02 else self.r.choice(CHANNELS)
        small = c > 100
        h, w = (self.r.choice(SIZES[:4] if small else SIZES) for _ in range(2))
        return self.r.choice((1, 1, 2, 3)), c + (c % 2 if even else 0), h, w

    def map(self, shape: tuple, dtype: torch.dtype) -> Tensor:
        return self.r.choice(layouts(shape, dtype))

    def affine(self, c: int, dtype: torch.dtype) -> tuple:
        if self.r.random() < 0.3:
            return None, None, self.r.random() < 0.5
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        scale = torch.randn(c, dtype=wide)
        return scale, torch.randn(c, dtype=wide), self.r.random() < 0.5

    def epilogue(self, c: int, dtype: torch.dtype) -> tuple:
        kind = self.r.choice(("stats", "relu", "plain"))
        bias = torch.randn(c).to(dtype) if self.r.random() < 0.5 else None
        return bias, kind == "relu", kind == "stats"

    def bn_stats(self, dtype: torch.dtype) -> tuple:
        shape = self.shape()
        x = self.map(shape, dtype)
        if self.r.random() < 0.3:  # several maps, some of them empty
            x = [x] + [self.map((n, *shape[1:3], 5), dtype) for n in self.r.choices((0, 1, 2), k=3)]
        return x, *self.affine(shape[1], dtype)

    def pointwise_conv(self, dtype: torch.dtype) -> tuple:
        groups = self.r.choice((1, 1, 1, 2))
        n, c, h, w = self.shape()
        c, out = c * groups, self.r.choice(CHANNELS) * groups
        x, weight = self.map((n, c, h, w), dtype), torch.randn(out, c // groups, 1, 1).to(dtype)
        return x, weight, *self.affine(c, dtype), *self.epilogue(out, dtype), groups

    def depthwise_conv(self, dtype: torch.dtype) -> tuple:
        shape, k = self.shape(), self.r.choice((3, 5, 7))
        x, weight = self.map(shape, dtype), torch.randn(shape[1], 1, k, k).to(dtype)
        options = (*self.affine(shape[1], dtype), *self.epilogue(shape[1], dtype))
        return x, weight, *options, self.r.choice((1, 2)), self.r.choice((1, 2, 3))

    def conv3x3(self, dtype: torch.dtype) -> tuple:
        shape, out = self.shape(), self.r.choice(CHANNELS)
        weight = torch.randn(out, shape[1], 3, 3).to(dtype)
        return self.map(shape, dtype), weight, *self.epilogue(out, dtype)

    def roi_align(self, dtype: torch.dtype) -> tuple:
        dtype = dtype if dtype == torch.float64 else torch.float32  # places of samples are rounded
        n, c, h, w = self.shape()
        xs = [self.map((n, c, *size), dtype) for size in ((h, w), (self.r.choice(SIZES), w))]
        count = self.r.choice((0, 1, 5))
        first = torch.rand(count, 2, dtype=dtype) * 24 - 5
        extent = torch.rand(count, 2, dtype=dtype) * self.r.choice((0, 3, 30))
        boxes = torch.cat([torch.randint(0, n, (count, 1)).to(dtype), first, first + extent], dim=1)
        levels = [self.r.choice((0, 1)) for _ in range(count)]
        options = self.r.choice((1, 2, 7)), self.r.choice((0, 1, 2, 5)), self.r.random() < 0.5
        return xs, boxes, levels, [1.0, 0.5], *options

    def norm(self, c: int) -> tuple:
        """eps far above the variances' rounding; weight and bias, or none."""
        some = self.r.random() < 0.8
        return *((torch.rand(c) + 0.5, torch.randn(c)) if some else (None, None)), 0.1

    def bn_stats_fold(self, dtype: torch.dtype) -> tuple:
        shape = self.shape()
        return self.map(shape, dtype), *self.affine(shape[1], dtype), *self.norm(shape[1])

    def pointwise_conv_bn(self, dtype: torch.dtype) -> tuple:
        x, weight, scale, shift, relu, bias, _, _, groups = self.pointwise_conv(dtype)
        return x, weight, scale, shift, relu, bias, groups, *self.norm(len(weight))

    def depthwise_conv_bn(self, dtype: torch.dtype) -> tuple:
        x, weight, scale, shift, relu, bias, _, _, *geometry = self.depthwise_conv(dtype)
        return x, weight, scale, shift, relu, bias, *geometry, *self.norm(len(weight))

    def shuffle_concat(self, dtype: torch.dtype) -> tuple:
        shape, method = self.shape(), self.r.choice((0, 1, 2))
        other = (shape[0], shape[1] + 2 * self.r.choice((0, 0, 1, 5)), *shape[2:])
        left, right = self.map(shape, dtype), self.map(other, dtype)
        a, b = self.affine(shape[1], dtype), self.affine(other[1], dtype)
        return left, right, *a[:2], *b[:2], a[2], b[2], method, self.r.random() < 0.5

    def mixed_sum(self, dtype: torch.dtype) -> tuple:
        shape, n = self.shape(), self.r.choice((1, 2, 8, 9, 19))
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        vectors = [torch.randn(shape[1], dtype=wide) for _ in range(2 * n)]
        residual = self.map(shape, dtype) if self.r.random() < 0.5 else None
        maps = [self.map(shape, dtype) for _ in range(n)]
        return maps, vectors[:n], vectors[n:], torch.randn(n, dtype=wide), residual

    def shuffle_block(self, dtype: torch.dtype) -> tuple:
        shape, k, stride = self.shape(even=True), self.r.choice((0, 3, 5, 7)), self.r.choice((1, 2))
        weights, biases = block(shape[1], k, stride)
        weights, biases = [w.to(dtype) for w in weights], [b.to(dtype) for b in biases]
        return self.map(shape, dtype), weights, biases, k, stride, self.r.choice((1, 2))

    def packed_block(self, dtype: torch.dtype) -> tuple:
        x, weights, biases, k, stride, method = self.shuffle_block(dtype)
        right, half = None, x.shape[1] // 2
        if stride == 1 and self.r.random() < 0.7:
            x, right = x[:, :half], self.map((x.shape[0], half, *x.shape[2:]), dtype)
        return x, right, weights, biases, k, stride, method, self.r.choice((0, 1, 2))

    def shuffle_block_stats(self, dtype: torch.dtype) -> tuple:
        # Rounding to few bits between layers, or a division by a tiny variance, would be seen.
        dtype, eps = (dtype if dtype == torch.float64 else torch.float32), 0.1
        shape, k, stride = self.shape(even=True), self.r.choice((0, 3, 5, 7)), self.r.choice((1, 2))
        c = shape[1]
        weights, betas = block(c, k, stride)
        x, affine = self.map(shape, dtype), (None, None, False)
        halves = (x[:, : c // 2], x[:, c // 2 :])
        if stride == 2:
            halves, affine = (x, None), self.affine(c, dtype)
        gammas = [torch.rand(len(b)) + 0.5 for b in betas]
        weights = [w.to(dtype) for w in weights]
        rest = (gammas, betas, [eps] * len(weights), k, stride, self.r.choice((0, 1, 2)))
        return *halves, *affine, weights, *rest

    def blocks_stats(self, dtype: torch.dtype) -> tuple:
        dtype = dtype if dtype == torch.float64 else torch.float32
        shape, count = self.shape(even=True), self.r.choice((1, 2, 3))
        batches = self.r.choice((1, 1, 2))
        strides = [self.r.choice((1, 2)) for _ in range(count)]
        kinds = (self.r.choices((0, 3, 5, 7), k=count), strides, self.r.choices((1, 2), k=count))
        packs = takes_packed(torch.ones(1)) and self.r.random() < 0.5
        blocks = drawn(shape[1], kinds, dtype, packs)
        ends = [n for n in range(1, count) if self.r.random() < 0.3] + [count]
        x = self.map((batches * shape[0], *shape[1:]), dtype)
        affine = self.affine(shape[1], dtype) if batches == 1 else (None, None, True)
        return x, *affine, blocks, ends, batches


DIFFERENTIABLE = ("pointwise_conv", "depthwise_conv", "shuffle_concat", "mixed_sum")
WITH_NORM = {"bn_stats_fold": 4, "pointwise_conv_bn": 7, "depthwise_conv_bn": 8}  # where it begins


def run(name: str, cases: Cases, dtype: torch.dtype, tolerance: float) -> None:
    args = getattr(cases, name)(dtype)
    if name == "packed_block":
        threads = torch.get_num_threads()
        for count in (threads, 4):  # four share the rows of most maps, or the layers
            torch.set_num_threads(count)
            check_values(packed_call, packed_reference, args, 5 * tolerance)
        torch.set_num_threads(threads)
        return
    if name == "blocks_stats":
        check_bits(args)
        return
    op, ref = getattr(ops, name), getattr(reference, name)
    if name in WITH_NORM:
        check_folded(name, args)
        return
    check_values(op, ref, args, 5 * tolerance)
    # Of few bits, what the ReLU of an output sees may lie on the other side of zero.
    flips = tolerance > 1e-4 and name.endswith("_conv") and args[6]
    if name in DIFFERENTIABLE and not flips:
        noise = TF32_NOISE if tolerance == TF32 and name == "pointwise_conv" else 0.0
        exact = TOLERANCE[dtype] if tolerance == TF32 else tolerance
        check_gradients(op, ref, args, dtype, 10 * exact, noise)


def check_folded(name: str, args: tuple) -> None:
    """The operator with its BatchNorm is the one without and bn_fold after it, to the bit."""
    first = WITH_NORM[name]
    own, norm = list(args[:first]), args[first:]
    if name != "bn_stats_fold":  # out_relu, want_stats
        own[6:6] = [False, True]
    found = getattr(ops, name.removesuffix("_bn").removesuffix("_fold"))(*own)
    stats = found if name == "bn_stats_fold" else found[1]
    expected = [*tensors(found), *ops.bn_fold(stats, *norm)]
    for _ in range(2):  # the emulator's blocks come in another order each time
        for i, (a, e) in enumerate(zip(tensors(getattr(ops, name)(*args)), expected, strict=True)):
            assert torch.equal(a.nan_to_num(), e.nan_to_num()), f"{name}: output {i} differs"


CPU_DTYPES = (torch.float32,) * 4 + (torch.float64, torch.bfloat16)
CUDA_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
TF32 = 1e-3  # of values: products of 10 bits of mantissa
TF32_NOISE = 2.0**-11  # of their operands


def variants() -> Iterator[tuple[str, tuple[torch.dtype, ...], dict[torch.dtype, float]]]:
    """Chooses one variant of the library's kernels after the other; its dtypes and tolerances."""
    if not hasattr(torch.ops.detnas_d2, "set_cpu_capability"):
        torch.backends.cudnn.allow_tf32 = False
        yield "emulated CUDA", CUDA_DTYPES, TOLERANCE
        torch.backends.cudnn.allow_tf32 = True
        yield "emulated CUDA with TF32", (torch.float32,), {torch.float32: TF32}
        return
    for name in ("default", "avx2", "avx512"):
        try:
            torch.ops.detnas_d2.set_cpu_capability(name)
        except RuntimeError:
            print(f"{name}: not available on this machine")
            continue
        yield name, CPU_DTYPES, TOLERANCE


def run_batches(seed: int, number: int, dtypes: tuple[torch.dtype, ...]) -> None:
    """Several batches of a random shape in one call, by random numbers of their own."""
    cases = Cases(1000 * seed + number)
    n, c, h, w = cases.shape(even=True)
    together, layout = cases.r.choice((2, 3, 4)), cases.r.randrange(5)

    def place(x: Tensor) -> Tensor:
        return layouts(tuple(x.shape), x.dtype)[layout].copy_(x)

    batches.check((together * n, c, h, w), together, cases.r.choice(dtypes), place)


def main() -> None:
    count = int(sys.argv[2]) if len(sys.argv) > 2 else 40
    seed = int(sys.argv[3]) if len(sys.argv) > 3 else 0
    names = [n for n in vars(Cases) if n in ops.__all__] + ["packed_block", "blocks_stats"]
    if not has_cpu_kernel("roi_align"):  # CUDA's operators for the host
        names.remove("blocks_stats")
        names.remove("roi_align")
    start, total = time.perf_counter(), 0
    for name, dtypes, tolerance in variants():
        # Chains draw by themselves, so that the others' cases stay what they were.
        alone, of_chains = Cases(seed), Cases(seed)
        for i in range(count):
            for op in names:
                cases = alone if op in ops.__all__ else of_chains
                torch.manual_seed(i)
                dtype = cases.r.choice(dtypes)
                state = cases.r.getstate()
                try:
                    run(op, cases, dtype, tolerance[dtype])
                except AssertionError as error:
                    cases.r.setstate(state)
                    shapes = [getattr(a, "shape", a) for a in getattr(cases, op)(dtype)]
                    raise SystemExit(f"{name} {op} {dtype} case {i} {shapes}: {error}") from error
                total += 1
            if i % 3:  # every operator twelve times: slow on the emulator
                continue
            try:
                run_batches(seed, i, dtypes)
            except AssertionError as error:
                raise SystemExit(f"{name}, batches, case {i}: {error}") from error
    print(f"{total} cases of {len(names)} operators: ok, {time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    load(sys.argv[1])
    from detnas_d2 import ops
    from detnas_d2.ops import reference
    from detnas_d2.ops.extension import has_cpu_kernel
    from detnas_d2.ops.shuffle_block import takes_packed
    from tests.ops import batches
    from tests.ops.compare import TOLERANCE, check_gradients, check_values, layouts, tensors
    from tests.ops.test_shuffle import block, packed_call, packed_reference
    from tests.ops.test_shuffle_blocks_stats import check_bits, drawn

    assert ops.build_info().startswith("detnas_d2 sanitized"), ops.build_info()
    main()
