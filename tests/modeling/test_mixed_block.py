import copy

import pytest
import torch
from torch import nn

from detnas_d2.layers import get_norm
from detnas_d2.modeling.mixed_block import MixedBlock
from detnas_d2.search_space.hit_network import rules_of
from detnas_d2.search_space.operations import build_operation

OPS = ("skip", "ir_k3_e3_d2", "ir_k5_e1_g2", "sep_k5_d3", "conv_k1", "ir_k7_e3")


def mixed(recompute, channels=8, norm="BN"):
    torch.manual_seed(0)
    return MixedBlock(
        OPS,
        lambda op: build_operation(
            op,
            channels,
            channels,
            stride=1,
            norm=lambda c: get_norm(norm, c),
            rules=rules_of("neck"),
        ),
        recompute=recompute,
    )


def naive(block, x, weights, active=None):
    active = range(len(OPS)) if active is None else active
    return sum(weights[i] * block.candidates[OPS[i]](x) for i in active)


def run(block, function, active=None, requires_x=True):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(3, 8, 6, 5, dtype=torch.float64, generator=generator)
    x.requires_grad_(requires_x)
    alpha = torch.randn(len(OPS), dtype=torch.float64, generator=generator, requires_grad=True)
    grad = torch.randn(3, 8, 6, 5, dtype=torch.float64, generator=generator)
    out = function(x, alpha.softmax(0), active)
    out.backward(grad)
    grads = {name: p.grad for name, p in block.named_parameters()}
    return out.detach(), {"x": x.grad, "alpha": alpha.grad, **grads}, dict(block.named_buffers())


@pytest.mark.parametrize("active", [None, (1, 3, 4)])
@pytest.mark.parametrize("training", [True, False])
def test_equals_the_naive_sum_in_output_gradients_and_statistics(active, training):
    reference = mixed(False).double().train(training)
    block = mixed(True).double().train(training)
    expected = run(reference, lambda x, w, a: naive(reference, x, w, a), active)
    found = run(block, block, active)
    torch.testing.assert_close(found[0], expected[0], rtol=1e-12, atol=1e-12)
    assert found[1].keys() == expected[1].keys()
    for name, grad in expected[1].items():
        if grad is None:
            assert found[1][name] is None, name
        else:
            torch.testing.assert_close(found[1][name], grad, rtol=1e-10, atol=1e-12, msg=name)
    for name, buffer in expected[2].items():
        assert torch.equal(found[2][name], buffer), name
    assert all(m.track_running_stats for m in block.modules() if isinstance(m, nn.BatchNorm2d))


def test_statistics_move_once_and_inactive_candidates_not_at_all():
    block = mixed(True).double()
    run(block, block, (1, 3))
    batches = {
        op: {int(b) for n, b in block.candidates[op].named_buffers() if "num_batches" in n}
        for op in OPS
    }
    assert batches["ir_k3_e3_d2"] == batches["sep_k5_d3"] == {1}
    assert batches["ir_k7_e3"] == batches["conv_k1"] == {0}


def test_input_without_gradient_and_frozen_parameters():
    block = mixed(True).double()
    for p in block.candidates["conv_k1"].parameters():
        p.requires_grad_(False)
    _, grads, _ = run(block, block, requires_x=False)
    assert grads["x"] is None and grads["alpha"].abs().sum() > 0
    assert grads["candidates.conv_k1.conv.weight"] is None
    assert grads["candidates.ir_k7_e3.expand.conv.weight"].abs().sum() > 0


def test_recomputation_runs_in_the_precision_of_the_forward_pass():
    blocks = [mixed(recompute, norm="GN") for recompute in (False, True)]
    x = torch.randn(2, 8, 6, 6)
    found = []
    for block in blocks:
        weights = torch.full((len(OPS),), 1 / len(OPS), requires_grad=True)
        with torch.autocast("cpu", torch.bfloat16):
            out = block(x, weights)
        out.float().square().sum().backward()
        found.append((out, weights.grad, block.candidates["conv_k1"].conv.weight.grad))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=0.05, atol=0.05)


def test_saves_the_input_alone_for_the_backward_pass():
    def saved_bytes(block):
        seen = {}

        def pack(tensor):
            seen[tensor.data_ptr()] = tensor.numel() * tensor.element_size()
            return tensor

        x = torch.randn(2, 8, 16, 16, requires_grad=True)
        weights = torch.full((len(OPS),), 1 / len(OPS), requires_grad=True)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            out = block(x, weights)
        own = {p.data_ptr() for p in block.parameters()}
        out.sum().backward()
        return sum(size for pointer, size in seen.items() if pointer not in own)

    recomputed, kept = saved_bytes(mixed(True)), saved_bytes(copy.deepcopy(mixed(False)))
    assert recomputed <= 1.1 * 2 * 8 * 16 * 16 * 4
    assert kept > 20 * recomputed


def test_no_gradients_no_graph():
    block = mixed(True)
    with torch.no_grad():
        out = block(torch.randn(1, 8, 4, 4), torch.ones(len(OPS)))
    assert not out.requires_grad


def test_gradient_of_the_weights_does_not_overflow_in_half_precision():
    block = MixedBlock(("skip",), lambda op: nn.Identity())
    weights = torch.ones(1, requires_grad=True)
    block(torch.ones(1, 8, 100, 100, dtype=torch.float16), weights).sum().backward()
    assert weights.grad.item() == 80000
