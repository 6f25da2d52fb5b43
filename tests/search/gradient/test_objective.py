import math

import pytest
import torch
from torch import nn

from detnas_d2.layers import get_norm
from detnas_d2.modeling.hit import RelaxedLayers
from detnas_d2.modeling.searchable_layers import operation_builder
from detnas_d2.search.gradient.objective import SPARSITY_TERMS, ExpectedCost, column_norms, scores
from detnas_d2.search_space.hit_costs import layer_costs
from detnas_d2.search_space.hit_network import get_hit_network

OPS = ("skip", "ir_k3_e3_d1", "conv_k3", "sep_k5_d2", "ir_k7_e6")
NETWORK = get_hit_network("hit_tiny")


def relaxed(part, seed=0):
    build = operation_builder(part, lambda c: get_norm("BN", c))
    layers = RelaxedLayers(part, NETWORK.layers(part, OPS), build).double()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        layers.alpha.normal_(generator=generator)
    return layers


def softmax(row, alive):
    exps = {i: math.exp(row[i]) for i in alive}
    return {i: e / sum(exps.values()) for i, e in exps.items()}


def finite_differences(function, alpha, eps=1e-6):
    grad = torch.zeros_like(alpha)
    with torch.no_grad():
        for index in range(alpha.numel()):
            flat = alpha.view(-1)
            old = flat[index].item()
            values = []
            for sign in (1, -1):
                flat[index] = old + sign * eps
                values.append(function())
            flat[index] = old
            grad.view(-1)[index] = (values[0] - values[1]) / (2 * eps)
    return grad


NAIVE = {"min": min, "sparse": lambda norms: sum(math.sqrt(norm) for norm in norms)}


@pytest.mark.parametrize("term", SPARSITY_TERMS)
@pytest.mark.parametrize("removed", [(), ("conv_k3", "skip")])
def test_eq_4_and_its_gradient(term, removed):
    layers = relaxed("neck")
    for op in removed:
        layers.remove(op)

    def naive():
        rows = [softmax(row.tolist(), layers.active) for row in layers.alpha]
        return NAIVE[term]([math.sqrt(sum(r[i] ** 2 for r in rows)) for i in layers.active])

    value = SPARSITY_TERMS[term](layers.probabilities())
    value.backward()
    assert value.item() == pytest.approx(naive(), rel=1e-12)
    torch.testing.assert_close(
        layers.alpha.grad, finite_differences(naive, layers.alpha), rtol=1e-6, atol=1e-8
    )


def test_sparsity_is_smallest_where_one_operation_is_left():
    """A sum of norms would be the same for every matrix of equal rows."""
    one, two, uniform = torch.zeros(4, 5), torch.zeros(4, 5), torch.full((4, 5), 0.2)
    one[:, 2], two[:, 1:3] = 1, 0.5
    disagree = torch.eye(5)[:4]
    assert [float(column_norms(p).sum()) for p in (one, two, uniform)] == pytest.approx([2, 2, 2])
    sparse, smallest = SPARSITY_TERMS["sparse"], SPARSITY_TERMS["min"]
    assert sparse(one) == pytest.approx(2**0.5) and sparse(two) == pytest.approx(2)
    assert sparse(one) < sparse(two) < sparse(uniform) < 5**0.5 * 2**0.5 + 1e-6
    assert sparse(disagree) == pytest.approx(4)
    assert smallest(uniform) == pytest.approx(0.4) and smallest(one) == 2


def test_sparsity_pushes_equal_operations_apart():
    """From almost uniform scores, by the term alone, one operation is left in all layers."""
    generator = torch.Generator().manual_seed(3)
    alpha = torch.nn.Parameter(1e-3 * torch.randn(4, 6, generator=generator))
    optimizer = torch.optim.Adam([alpha], lr=0.05)
    for _ in range(400):
        optimizer.zero_grad()
        SPARSITY_TERMS["sparse"](alpha.softmax(1)).backward()
        optimizer.step()
    means = alpha.softmax(1).mean(0).sort(descending=True).values
    assert means[0] > 0.9


def test_eq_7_and_its_gradient():
    parts = {part: relaxed(part, seed) for seed, part in enumerate(("backbone", "neck", "head"))}
    size, proposals = (64, 96), 10
    cost = ExpectedCost(parts, input_size=size, proposals=proposals)

    def naive():
        total = 0.0
        for part, layers in parts.items():
            for row, layer in zip(layers.alpha, layers.layers, strict=True):
                p = softmax(row.tolist(), range(len(OPS)))
                costs = layer_costs(part, layer, input_size=size, proposals=proposals)
                total += sum(p[i] * c.macs / 1e9 for i, c in enumerate(costs))
        return total

    value = cost()
    value.backward()
    assert value.item() == pytest.approx(naive(), rel=1e-6)
    for layers in parts.values():
        expected = finite_differences(naive, layers.alpha)
        torch.testing.assert_close(layers.alpha.grad, expected, rtol=1e-4, atol=1e-9)


def test_regions_of_another_size():
    head = relaxed("head", 2)
    wide, narrow = (
        ExpectedCost({"head": head}, input_size=(64, 64), proposals=10, region=side)
        for side in (10, 5)
    )
    assert wide().item() == pytest.approx(4 * narrow().item(), rel=1e-6)


def test_expected_cost_of_a_certain_choice_is_the_decoded_cost():
    layers = relaxed("head")
    with torch.no_grad():
        layers.alpha.zero_()
        layers.alpha[0, 1] = layers.alpha[1, 4] = 200
    cost = ExpectedCost({"head": layers}, input_size=(64, 64), proposals=7)
    assert layers.decode() == ("ir_k3_e3_d1", "ir_k7_e6")
    assert cost().item() == pytest.approx(cost.decoded_gmacs(), rel=1e-6)
    assert layers.entropy().item() == pytest.approx(0, abs=1e-12)


def test_eq_5_against_a_naive_sum():
    layers = relaxed("neck")
    layers.remove("conv_k3")
    x = torch.randn(2, NETWORK.feature_channels[0], 6, 5, dtype=torch.float64, requires_grad=True)
    out = layers(0, x)
    grad = torch.randn_like(out)
    parameters = [p for p in layers.parameters() if p.requires_grad]
    found = torch.autograd.grad(out, [x, *parameters], grad, allow_unused=True)
    exps = {i: layers.alpha[0, i].exp() for i in layers.active}
    total = sum(exps.values())
    candidates = layers.blocks[0].candidates
    naive = sum(exps[i] / total * candidates[OPS[i]](x) for i in layers.active)
    expected = torch.autograd.grad(naive, [x, *parameters], grad, allow_unused=True)
    torch.testing.assert_close(out, naive, rtol=1e-12, atol=1e-12)
    for a, b in zip(found, expected, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


def test_removed_operations_survive_the_state_dict():
    layers = relaxed("head")
    layers.remove("skip")
    fresh = relaxed("head", seed=5)
    fresh.load_state_dict(layers.state_dict())
    assert fresh.active_ops == layers.active_ops == OPS[1:]
    assert scores(fresh).keys() == set(OPS[1:])
    assert sum(scores(fresh).values()) == pytest.approx(1)
    with pytest.raises(ValueError, match="skip"):
        fresh.remove("skip")
    x = torch.randn(1, NETWORK.neck_channels, 7, 7, dtype=torch.float64)
    assert not torch.equal(fresh.eval()(0, x), nn.Identity()(x))
