"""Recalibrated statistics against two-pass statistics of everything a BatchNorm saw."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_model
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.roi_heads import FastRCNNOutputLayers
from torch import Tensor, nn

from detnas_d2.evaluation.box_head_calibration import up_to_last_norm
from detnas_d2.evaluation.moments import Moments
from detnas_d2.evaluation.recalibration import (
    BNStatistics,
    merge_over_ranks,
    override_bn_stats,
    recalibrate,
)
from detnas_d2.layers import get_norm
from detnas_d2.layers.batch_norm_mode import batch_norms
from detnas_d2.modeling import Supernet, activate
from detnas_d2.search_space import SPACES, Path
from tests.helpers import changed, detector_config, snapshot, training_batch

TINY = SPACES["detnas_tiny"]
SIZES = (((64, 96), (80, 64)), ((33, 47),), ((65, 50), (40, 71), (49, 32)))


def path(seed: int) -> Path:
    return TINY.random_path(random.Random(seed))


def batches(sizes: tuple = SIZES) -> list[tuple[int, list[dict]]]:
    generator = torch.Generator().manual_seed(5)
    return [(i, training_batch(sizes=s, generator=generator)) for i, s in enumerate(sizes)]


def detector(kind: str = "faster", norm: str = "", box_norm: str = "", **keys: str) -> nn.Module:
    torch.manual_seed(0)
    cfg = detector_config(kind)
    cfg.MODEL.FPN.NORM, cfg.MODEL.ROI_BOX_HEAD.NORM = norm, box_norm
    cfg.MODEL.DETNAS.NORM = keys.get("backbone_norm", "BN")
    model = build_model(cfg)
    with torch.no_grad():
        for module in batch_norms(model).values():  # buffers that are not those of a new model
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
            module.num_batches_tracked.fill_(7)
    return model


@contextmanager
def recorded_inputs(model: nn.Module) -> Iterator[dict[str, list[Tensor]]]:
    """What every BatchNorm is called with, by module name, in float64."""
    inputs: dict[str, list[Tensor]] = defaultdict(list)

    def hook_for(name: str):
        def hook(module: nn.Module, args: tuple[Tensor]) -> None:
            x = args[0].detach().double()
            inputs[name].append(x.transpose(0, 1).reshape(x.size(1), -1))

        return hook

    norms = batch_norms(model).items()
    handles = [module.register_forward_pre_hook(hook_for(name)) for name, module in norms]
    try:
        yield inputs
    finally:
        for handle in handles:
            handle.remove()


def check(statistics: BNStatistics, inputs: dict[str, list[Tensor]]) -> None:
    assert statistics.moments.keys() == inputs.keys()
    for name, parts in inputs.items():
        pooled, moments = torch.cat(parts, dim=1), statistics.moments[name]
        assert moments.count == pooled.size(1)
        mean, std = pooled.mean(1), pooled.std(1, correction=0)
        deviations = (pooled - mean[:, None]).square().sum(1)
        # A batch's mean is rounded to float32 before batches are merged in float64.
        error = mean.abs() * torch.finfo(torch.float32).eps + 1e-6 * std + 1e-12
        assert ((moments.mean - mean).abs() <= error).all()
        slack = moments.count * (2 * std + error) * error + 1e-5 * deviations
        assert ((moments.m2 - deviations).abs() <= slack).all()
        assert moments.count > 1 or (moments.m2 == 0).all()
        unbiased = moments.m2 / max(moments.count - 1, 1)
        torch.testing.assert_close(moments.variance, unbiased, rtol=1e-12, atol=0)


def test_statistics_are_pooled_over_batches_and_nothing_else_changes() -> None:
    model = detector()
    model.train()
    model.backbone.bottom_up.stem.eval()
    modes = [module.training for module in model.modules()]
    before, random_state = snapshot(model), torch.get_rng_state()
    with recorded_inputs(model) as inputs, activate(model, path(1)):
        statistics = recalibrate(model, batches())
    check(statistics, inputs)
    assert changed(model, before) == set()
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), random_state)
    assert not any(module._forward_pre_hooks for module in model.modules())
    active = {f"backbone.bottom_up.blocks.{i}.candidates.{op}." for i, op in enumerate(path(1).ops)}
    for name in batch_norms(model):
        on_path = ".blocks." not in name or any(name.startswith(prefix) for prefix in active)
        assert (name in statistics.moments) == on_path


def test_only_the_backbone_runs_where_nothing_else_has_batch_norm() -> None:
    model = detector()

    def fail(*args: object) -> None:
        raise AssertionError("the neck or the head was run")

    for name, module in model.named_modules():
        if name and not name.startswith("backbone.bottom_up") and name != "backbone":
            module.register_forward_pre_hook(fail)
    model.backbone.register_forward_pre_hook(fail)
    with activate(model, path(1)):
        without_truth = [(i, [{"image": x["image"]} for x in batch]) for i, batch in batches()]
        assert recalibrate(model, without_truth).moments


def test_batch_norm_in_the_neck_runs_the_neck() -> None:
    model = detector("retinanet", norm="BN")
    with recorded_inputs(model) as inputs, activate(model, path(2)):
        statistics = recalibrate(model, batches(SIZES[:2]))
    check(statistics, inputs)
    assert "backbone.fpn_lateral5.norm" in statistics.moments


def test_batch_norm_in_neck_and_head_runs_the_whole_detector() -> None:
    model = detector(norm="SyncBN", box_norm="BN")
    model.eval()
    before = snapshot(model)
    with recorded_inputs(model) as inputs, activate(model, path(2)):
        statistics = recalibrate(model, batches(), seed=3)
        # Proposals are sampled anew in every forward: by the seed and the batch's number alone.
        torch.manual_seed(99)
        again = recalibrate(model, batches(), seed=3)
        shifted = [(number + 1, batch) for number, batch in batches()]
        other = recalibrate(model, shifted, seed=3)
    assert "roi_heads.box_head.conv1.norm" in statistics.moments
    check(statistics, {name: parts[: len(SIZES)] for name, parts in inputs.items()})
    assert changed(model, before) == set() and not model.training
    head = "roi_heads.box_head.conv1.norm"
    for name, moments in statistics.moments.items():
        assert torch.equal(moments.mean, again.moments[name].mean)
        assert torch.equal(moments.m2, again.moments[name].m2)
    assert not torch.equal(statistics.moments[head].mean, other.moments[head].mean)


def test_order_of_candidates_does_not_matter() -> None:
    model = detector("retinanet")
    results = []
    for order in ((1, 2), (2, 1)):
        found = {}
        for seed in order:
            with activate(model, path(seed)):
                found[seed] = recalibrate(model, batches(SIZES[:2]))
                with override_bn_stats(model, found[seed]), torch.no_grad():
                    model.eval()(training_batch(sizes=((40, 56),)))
        results.append(found)
    for seed in (1, 2):
        first, second = (result[seed].moments for result in results)
        assert first.keys() == second.keys()
        for name in first:
            assert torch.equal(first[name].mean, second[name].mean)
            assert torch.equal(first[name].m2, second[name].m2)


class SharedNorm(nn.Module):
    """One BatchNorm for all levels of a pyramid."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, levels: list[Tensor]) -> list[Tensor]:
        return [self.norm(level) for level in levels]


@pytest.mark.parametrize("norm", ["BN", "SyncBN"])
def test_batch_norm_shared_by_levels_pools_them(norm: str) -> None:
    torch.manual_seed(1)
    model = SharedNorm(get_norm(norm, 4))
    nn.init.normal_(model.norm.weight)
    nn.init.normal_(model.norm.bias)
    levels = [[torch.randn(n, 4, s, s + 1) * s + 3 for s in (9, 5, 1)] for n in (2, 3)]
    with recorded_inputs(model) as inputs:
        statistics = recalibrate(model, enumerate(levels), forward=model)
    check(statistics, inputs)
    assert statistics.moments["norm"].count == 5 * (90 + 30 + 2)


def test_within_calibration_batches_normalise_themselves() -> None:
    torch.manual_seed(1)
    norm = get_norm("BN", 4)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    x = torch.randn(3, 4, 5, 7) * 2 + 1
    outputs = []
    recalibrate(nn.Sequential(norm), [(0, x)], forward=lambda x: outputs.append(norm(x)))
    torch.testing.assert_close(outputs[0], normalised(norm, x))


def normalised(norm: nn.BatchNorm2d, x: Tensor) -> Tensor:
    mean, var = x.mean((0, 2, 3), keepdim=True), x.var((0, 2, 3), keepdim=True, correction=0)
    y = (x - mean) / (var + norm.eps).sqrt()
    return y * norm.weight.view(1, -1, 1, 1) + norm.bias.view(1, -1, 1, 1)


def test_single_values_and_empty_inputs() -> None:
    model = nn.Sequential(nn.BatchNorm2d(3))
    nn.init.constant_(model[0].bias, 0.5)
    single = torch.tensor([1.0, 2, 3]).view(1, 3, 1, 1)
    outputs = []
    run = [torch.zeros(0, 3, 4, 4), single, torch.zeros(2, 3, 0, 5)]
    statistics = recalibrate(model, enumerate(run), forward=lambda x: outputs.append(model(x)))
    moments = statistics.moments["0"]
    assert moments.count == 1
    assert moments.mean.tolist() == [1, 2, 3] and moments.variance.tolist() == [0, 0, 0]
    assert [o.shape for o in outputs] == [x.shape for x in run]
    assert (outputs[1] == 0.5).all()
    recalibrate(model, enumerate([*run, single + 4]), forward=model)
    empty = recalibrate(model, [(0, run[0])], forward=model).moments["0"]
    assert (empty.count, empty.variance.tolist()) == (0, [0, 0, 0])
    with override_bn_stats(model, BNStatistics({"0": empty})):  # nothing is known: its own stay
        assert (model[0].running_mean == 0).all() and (model[0].running_var == 1).all()


def test_large_offset_with_tiny_variance() -> None:
    generator = torch.Generator().manual_seed(0)
    parts = [
        (4096 + torch.randn(2, 3, 9, n, generator=generator, dtype=torch.float64) / 64).float()
        for n in (5, 11, 2)
    ]
    model = nn.Sequential(nn.BatchNorm2d(3))
    with recorded_inputs(model) as inputs:
        statistics = recalibrate(model, enumerate(parts), forward=model)
    check(statistics, inputs)
    torch.testing.assert_close(
        statistics.moments["0"].variance, torch.full((3,), 64.0**-2).double(), rtol=0.3, atol=0
    )


def test_overridden_statistics_return() -> None:
    model = detector()
    model.eval()
    with activate(model, path(1)):
        statistics = recalibrate(model, batches())
        before = snapshot(model)
        buffers = {id(b) for b in model.buffers()}
        with pytest.raises(ZeroDivisionError), override_bn_stats(model, statistics):
            for name, moments in statistics.moments.items():
                module = model.get_submodule(name)
                torch.testing.assert_close(module.running_mean, moments.mean.float())
                torch.testing.assert_close(module.running_var, moments.variance.float())
            assert changed(model, before)
            raise ZeroDivisionError
    assert changed(model, before) == set()
    assert {id(b) for b in model.buffers()} == buffers


def test_override_refuses_statistics_of_another_model() -> None:
    model = nn.Sequential(nn.BatchNorm2d(2), nn.BatchNorm2d(2))
    before = snapshot(model)
    moments = Moments(18, torch.zeros(2).double(), torch.ones(2).double())
    with (
        pytest.raises(KeyError, match="'stem.norm', but the model has no such BatchNorm"),
        override_bn_stats(model, BNStatistics({"0": moments, "stem.norm": moments})),
    ):
        pass
    assert changed(model, before) == set()


def test_statistics_that_are_not_finite() -> None:
    model = detector()
    model.train()
    with torch.no_grad():
        model.backbone.bottom_up.stem.conv.weight[0, 0, 0, 0] = float("nan")
    with (
        activate(model, path(1)),
        pytest.raises(FloatingPointError, match=r"backbone\.bottom_up\.stem\.norm are not finite"),
    ):
        recalibrate(model, batches())
    assert model.training


def test_no_batch_is_an_error_and_a_failing_forward_restores_the_model() -> None:
    model = detector()
    model.train()
    before = snapshot(model)
    with activate(model, path(1)):
        with pytest.raises(ValueError, match="calibration dataset is empty"):
            recalibrate(model, [])
        with pytest.raises(KeyError):
            recalibrate(model, [(0, batches()[0][1]), (1, [{}])])
    assert changed(model, before) == set() and model.training
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_without_batch_norm_there_is_nothing_to_do() -> None:
    model = detector(backbone_norm="GN", box_norm="GN")
    with activate(model, path(1)):
        assert recalibrate(model, batches()).moments == {}


def test_classifier_and_bare_supernet() -> None:
    net = Supernet(
        TINY, norm=lambda c: get_norm("BN", c), shuffle_method=1, out_features=["stage4"]
    )
    images = [torch.rand(n, 3, 40, 33) for n in (2, 3)]
    with recorded_inputs(net) as inputs, net.active(path(3)):
        statistics = recalibrate(net, enumerate(images), forward=net)
    check(statistics, inputs)
    assert merge_over_ranks(statistics) is statistics


@pytest.mark.parametrize("convs, layers, stops", [(1, 1, True), (3, 2, True), (2, 0, False)])
def test_nothing_runs_behind_the_last_norm_of_a_box_head(
    convs: int, layers: int, stops: bool
) -> None:
    torch.manual_seed(0)
    cfg = detector_config()
    cfg.MODEL.ROI_BOX_HEAD.NUM_CONV, cfg.MODEL.ROI_BOX_HEAD.NUM_FC = convs, layers
    cfg.MODEL.FPN.NORM = "BN"
    model = build_model(cfg)
    if not layers:  # what follows is a pooled map, of as many features
        model.roi_heads.box_head.register_forward_hook(lambda _, inputs, y: y.flatten(1)[:, :16])
        model.roi_heads.box_predictor = FastRCNNOutputLayers(
            ShapeSpec(channels=16), box2box_transform=Box2BoxTransform((10, 10, 5, 5)),
            num_classes=3,
        )  # fmt: skip
    ended: list = []
    model.roi_heads.box_predictor.register_forward_hook(lambda *_: ended.append(1))
    with activate(model, path(1)):
        statistics = recalibrate(model, batches(), seed=3)
        assert (len(ended) == 0) == stops
        expected = recalibrate(model, batches(), seed=3, forward=model)
    assert len(ended) >= len(batches())
    assert statistics.moments.keys() == expected.moments.keys()
    assert f"roi_heads.box_head.conv{convs}.norm" in statistics.moments
    for name, moments in expected.moments.items():
        found = statistics.moments[name]
        assert moments.count == found.count > 0
        assert torch.equal(found.mean, moments.mean) and torch.equal(found.m2, moments.m2)
    assert not any(m._forward_pre_hooks for m in model.modules())


def test_models_with_norms_in_other_heads_run_whole() -> None:
    cfg = detector_config("mask")
    cfg.MODEL.ROI_MASK_HEAD.NORM = "BN"
    model = build_model(cfg)
    assert up_to_last_norm(model, batch_norms(model)) is None
    assert up_to_last_norm(model, ["roi_heads.box_head.conv1.norm"]) is not None
    assert up_to_last_norm(model, ["backbone.fpn_output2.norm"]) is None
    assert up_to_last_norm(detector("retinanet"), ["head.cls_subnet.1"]) is None
