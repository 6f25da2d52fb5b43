"""The operators as programs call them: empty and invalid values, autocast, torch.compile, streams,
graphs, whole backbones. Part of cuda_checks.py."""

from __future__ import annotations

import copy
import itertools
import random
from collections.abc import Callable, Iterable
from functools import partial

import torch
from torch import Tensor, nn

from detnas_d2 import ops
from detnas_d2.ops import reference
from tests.ops.compare import assert_near, channels_last

METHOD = 2


def network(x: Tensor, weight: Tensor, taps: Tensor, gamma: Tensor, beta: Tensor) -> list[Tensor]:
    """Convolutions with batch statistics, a shuffle and a mixed sum, as blocks chain them."""
    y, _, scale, shift = ops.pointwise_conv_bn(x, weight, gamma=gamma, beta=beta, eps=1e-3)
    z, stats = ops.depthwise_conv(y, taps, scale, shift, True, want_stats=True)
    scale, shift = ops.bn_fold(stats, gamma, beta, 1e-3)
    left, right = ops.shuffle_concat(x, z, None, None, scale, shift, False, True, METHOD, True)
    joint = ops.bn_fold(ops.bn_stats([left, right]), gamma, beta, 1e-3)
    _, *single = ops.bn_stats_fold(left, gamma=gamma, beta=beta, eps=1e-3)
    total = ops.mixed_sum(
        [left, right], [joint[0], single[0]], [joint[1], single[1]], gamma[:2], right
    )
    return [left, right, total]


def inputs(device: str, channels: int = 32) -> list[Tensor]:
    c = channels
    shapes = [(2, c, 24, 20), (c, c, 1, 1), (c, 1, 5, 5), (c,), (c,)]
    tensors = [torch.randn(s, device=device) for s in shapes]
    return [channels_last(tensors[0]), *tensors[1:]]


def with_gradients(arguments: list[Tensor]) -> list[Tensor]:
    leaves = [t.detach().requires_grad_() for t in arguments]
    outputs = network(*leaves)
    grads = torch.autograd.grad([t.square().mean() for t in outputs], leaves)
    return [*(t.detach() for t in outputs), *grads]


def check_empty(device: str) -> None:
    x, weight, taps, gamma, beta = inputs(device)
    for empty in (x[:0], x[:, :, :0]):
        leaves = [t.detach().requires_grad_() for t in (empty, gamma, beta)]
        stats = ops.bn_stats(*leaves, True)
        assert stats.count == 0 and not stats.mean.any() and not stats.m2.any()
        y, stats = ops.pointwise_conv(leaves[0], weight, want_stats=True)
        z, _ = ops.depthwise_conv(y, taps)
        halves = ops.shuffle_concat(leaves[0], z, *leaves[1:], None, None, True, False, 2, True)
        total = ops.mixed_sum([*halves], [gamma, gamma], [beta, beta], gamma[:2])
        assert y.shape == z.shape == total.shape == empty.shape and stats.count == 0
        for grad in torch.autograd.grad(total.sum(), leaves):
            assert not grad.any()
    assert ops.bn_stats([x, x[:0]]).count == ops.bn_stats(x).count


def check_invalid_values(device: str) -> None:
    """NaN and infinity stay in the channels that they came in."""
    for bad in (float("nan"), float("inf")):
        x, weight, taps, gamma, beta = inputs(device)
        x[1, 5, 7, 3] = bad
        hit = torch.arange(32, device=device) == 5
        for stats in (ops.bn_stats(x), ops.bn_stats([x.flip(0), x])):
            assert torch.equal(~stats.mean.isfinite(), hit), "mean"
            assert torch.equal(stats.m2.isnan(), hit), "m2"
        y, stats = ops.depthwise_conv(x, taps, want_stats=True)
        assert torch.equal((~y.isfinite()).any(0).any(-1).any(-1), hit), "depthwise_conv"
        assert torch.equal(~stats.mean.isfinite(), hit), "statistics of depthwise_conv"
        out = ops.shuffle_concat(x, x, gamma, beta, None, None, False, False, 1, False)
        assert (~out.isfinite()).sum() == 2, "shuffle_concat"
        total = ops.mixed_sum([x, x], [gamma, gamma], [beta, beta], gamma[:2])
        assert (~total.isfinite()).sum() == 1, "mixed_sum"


def check_invalid_gradients(device: str) -> None:
    """NaN and infinity reach the taps that meet them, none through the padding."""
    corners, geometry = ((0, 0), (-1, -1)), ((1, 1), (2, 1), (1, 3))
    for (row, column), options in itertools.product(corners, geometry):
        x, _, taps, *_ = inputs(device)
        x[0, 3, row, column], x[1, 5, row, column] = float("inf"), float("nan")

        def gradient(op: Callable, *leaves: Tensor, options: tuple = options) -> Tensor:
            y, _ = op(*leaves, None, None, False, None, False, False, *options)
            return torch.autograd.grad(y.sum(), leaves[1])[0].cpu()

        got = gradient(ops.depthwise_conv, x, taps.detach().requires_grad_())
        wide = x.cpu().double(), taps.cpu().double().requires_grad_()
        want = gradient(reference.depthwise_conv, *wide)
        assert torch.equal(got.isfinite(), want.isfinite()), f"taps, {row}, {options}"
        good = want.isfinite().all(-1).all(-1).all(-1)
        assert good.sum() == 30
        assert_near(got[good], want[good], 1e-4, "gradients of the other channels")


def check_autocast(device: str) -> None:
    arguments = inputs(device)
    expected = with_gradients(arguments)
    with torch.autocast(device, torch.bfloat16):
        y, stats = ops.pointwise_conv(*arguments[:2], want_stats=True)
        assert y.dtype == torch.bfloat16 and stats.mean.dtype == torch.float32
        actual = with_gradients(arguments)
    for i, (a, e) in enumerate(zip(actual[:3], expected[:3], strict=True)):
        assert_near(a.cpu(), e.cpu(), 5e-2, f"autocast, result {i}")
    for a, e in zip(actual[3:], expected[3:], strict=True):
        assert a.isfinite().all() and a.dtype == e.dtype, "autocast, gradients"


def check_tf32(device: str) -> None:
    """float32 products with 10 bits of mantissa, where the user allows them."""
    arguments = inputs(device)
    previous = torch.backends.cudnn.allow_tf32
    try:
        torch.backends.cudnn.allow_tf32 = False
        expected = with_gradients(arguments)
        torch.backends.cudnn.allow_tf32 = True
        actual = with_gradients(arguments)
    finally:
        torch.backends.cudnn.allow_tf32 = previous
    for i, (a, e) in enumerate(zip(actual[:3], expected[:3], strict=True)):
        assert_near(a.cpu(), e.cpu(), 1e-2, f"TF32, result {i}")
    assert all(a.isfinite().all() for a in actual[3:]), "TF32, gradients"


def check_compile(device: str) -> None:
    arguments = inputs(device)
    backend = "inductor" if device == "cuda" else "aot_eager"
    compiled = torch.compile(network, fullgraph=True, backend=backend)
    leaves = [t.detach().requires_grad_() for t in arguments]
    outputs = compiled(*leaves)
    grads = torch.autograd.grad([t.square().mean() for t in outputs], leaves)
    for i, (a, e) in enumerate(zip([*outputs, *grads], with_gradients(arguments), strict=True)):
        assert_near(a.detach().cpu(), e.cpu(), 1e-3, f"torch.compile, result {i}")


def on_tensor_cores(arguments: list[Tensor]) -> list[Tensor]:
    """The arguments of network with maps and convolutions' weights of 16 bits."""
    return [t.half() for t in arguments[:3]] + arguments[3:]


def check_stream(half: bool) -> None:
    """Work is put on the current stream: it waits for what runs there, not for the default one."""
    arguments = on_tensor_cores(inputs("cuda")) if half else inputs("cuda")
    expected = with_gradients(arguments)
    x = torch.zeros_like(arguments[0])
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(100_000_000)
        x.copy_(arguments[0])
        actual = with_gradients([x, *arguments[1:]])
    stream.synchronize()
    for i, (a, e) in enumerate(zip(actual, expected, strict=True)):
        # Not equal to the last bit: of float32 the library's products need not be.
        assert_near(a.cpu(), e.cpu(), 1e-2 if half else 1e-4, f"second stream, result {i}")


def check_graph(half: bool) -> None:
    """A captured graph replays operators and gradients: none of them synchronises."""
    arguments = on_tensor_cores(inputs("cuda")) if half else inputs("cuda")

    def step() -> list[Tensor]:
        x, _, taps, *_ = arguments
        ys, _ = ops.mixed_depthwise([x, x], [taps, taps], want_stats=True)
        return [*with_gradients(arguments), *ys]

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    arguments[0].normal_()
    graph.replay()
    for i, (a, e) in enumerate(zip(captured, step(), strict=True)):
        assert_near(a.cpu(), e.cpu(), 1e-2 if half else 1e-4, f"graph, result {i}")


def check_graphs_at_once() -> None:
    """Two graphs of one stream beside its own work: none counts in another's tickets."""
    x, weight, taps, gamma, beta = on_tensor_cores(inputs("cuda"))
    x = channels_last(x.repeat(8, 1, 4, 4))  # of many blocks

    @torch.no_grad()
    def step() -> list[Tensor]:
        y, stats, *affine = ops.pointwise_conv_bn(x, weight, gamma=gamma, beta=beta)
        z, more, *rest = ops.depthwise_conv_bn(y, taps, *affine, True, gamma=gamma, beta=beta)
        return [*stats, *affine, *more, *rest, *ops.bn_stats(z)]

    first, second, third = (torch.cuda.Stream() for _ in range(3))
    first.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(first):
        expected = step()
    first.synchronize()
    graphs = [torch.cuda.CUDAGraph() for _ in range(2)]
    captured = []
    for graph in graphs:
        with torch.cuda.graph(graph, stream=first):
            captured.append(step())
    for _ in range(50):
        for stream, graph in zip((second, third), graphs, strict=True):
            with torch.cuda.stream(stream):
                graph.replay()
        with torch.cuda.stream(first):
            eager = step()
        torch.cuda.synchronize()
        for results in (*captured, eager):
            for i, (a, e) in enumerate(zip(results, expected, strict=True)):
                assert torch.equal(a, e), f"graphs at once, result {i} differs"


def check_second_device() -> None:
    """Operators run where their arguments are, whichever device is current."""
    if torch.cuda.device_count() < 2:
        print("second device: left out, there is one")
        return
    for arguments in (inputs("cuda"), on_tensor_cores(inputs("cuda"))):
        expected = with_gradients(arguments)
        actual = with_gradients([t.to("cuda:1") for t in arguments])
        for i, (a, e) in enumerate(zip(actual, expected, strict=True)):
            assert a.device.index == 1, f"second device, result {i}: {a.device}"
            assert_near(a.cpu(), e.cpu(), 1e-2, f"second device, result {i}")


def check_determinism(device: str) -> None:
    """The library's own kernels give the same bits again."""
    x, weight, taps, gamma, beta = on_tensor_cores(inputs(device))

    def step() -> list[Tensor]:
        leaves = [t.detach().requires_grad_() for t in (x, weight, taps, gamma, beta)]
        y, stats = ops.pointwise_conv(*leaves[:2], *leaves[3:], True, want_stats=True)
        z, more = ops.depthwise_conv(y, leaves[2], want_stats=True)
        outputs = [y, z, *stats[1:], *more[1:]]
        return [*outputs, *torch.autograd.grad([t.float().mean() for t in outputs], leaves)]

    for i, (a, b) in enumerate(zip(step(), step(), strict=True)):
        assert torch.equal(a, b), f"second run, result {i} differs"


def check_backbone(device: str) -> None:
    """A backbone through the operators against its modules; nothing without Detectron2."""
    try:
        from detnas_d2.layers import get_norm
        from detnas_d2.modeling import DecodedBackbone
        from detnas_d2.search_space import SPACES
    except ImportError as error:
        print(f"backbone: left out ({error})")
        return
    space = SPACES["detnas_tiny"]
    ours = DecodedBackbone(
        space.random_path(random.Random(0)),
        norm=partial(get_norm, "BN"),
        shuffle_method=METHOD,
        out_features=["stage1", "stage2", "stage3", "stage4"],
        init="default",
    ).to(device)
    modules, exact = copy.deepcopy(ours), copy.deepcopy(ours).double()
    ours.fused_ops, modules.fused_ops, exact.fused_ops = "on", "off", "off"
    x = torch.rand(2, 3, 96, 64, device=device)
    results = [_train(net, x.to(next(net.parameters()).dtype)) for net in (ours, modules, exact)]
    for name, want in results[2].items():
        # Running means near zero are compared on the scale of deviations.
        scale = want.abs().max().clamp(min=1e-1 if "running_mean" in name else 1e-6)
        error, usual = ((results[i][name] - want).abs().max() / scale for i in (0, 1))
        assert error <= 1e-3 + 4 * usual, f"backbone, {name}: {error:.2g}, modules {usual:.2g}"
    with torch.no_grad():
        a, b = (net.eval()(x) for net in (ours, modules))
    for name in b:
        assert_near(a[name].cpu(), b[name].cpu(), 1e-3, f"backbone in evaluation, {name}")


def _train(net: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """Outputs, gradients and running statistics of a step, in float64."""
    outputs = net(x)
    generator = torch.Generator(x.device).manual_seed(0)
    grads = [
        torch.randn(t.shape, device=x.device, generator=generator).to(t.dtype)
        for t in outputs.values()
    ]
    torch.autograd.backward(list(outputs.values()), grads)
    found = {**outputs, **dict(net.named_buffers())}
    # A bias before a BatchNorm has no gradient but rounding.
    found |= {n: p.grad for n, p in net.named_parameters() if not n.endswith("conv.bias")}
    return {name: t.detach().double().cpu() for name, t in found.items()}


def report(what: str, cases: Iterable[Callable[[], object]]) -> int:
    """Runs the cases and prints what failed; how many did."""
    errors = []
    for case in cases:
        try:
            case()
        except Exception as error:  # of any kind: the other checks are worth running
            errors.append(f"{type(error).__name__}: {error}")
    print(f"{what}: {'; '.join(errors) or 'ok'}", flush=True)
    return len(errors)


def run(device: str, small: bool) -> int:
    """All of it; ``small``: without torch.compile and backbone, which a sanitizer makes slow.

    Returns:
        how many checks failed.
    """
    checks = [check_empty, check_invalid_values, check_invalid_gradients, check_determinism]
    checks += [check_autocast, check_tf32]
    if not small:
        checks += [check_compile, check_backbone]
    cases = {check.__name__: partial(check, device) for check in checks}
    if device == "cuda":
        for check, half in itertools.product((check_stream, check_graph), (False, True)):
            cases[check.__name__ + " of 16 bits" * half] = partial(check, half)
        cases["check_graphs_at_once"] = check_graphs_at_once
        cases["check_second_device"] = check_second_device
    return sum(report(name, [case]) for name, case in cases.items())
