from __future__ import annotations

import copy
import json
import random
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from detectron2.layers import Conv2d, ShapeSpec
from detectron2.modeling import build_model
from detectron2.modeling.meta_arch.retinanet import RetinaNetHead
from torch import Tensor, nn

from detnas_d2 import ops
from detnas_d2.layers import dense_conv, get_norm
from detnas_d2.layers.batch_norm_mode import use_batch_statistics
from detnas_d2.layers.dense_conv import Conv3x3, pays, use_conv3x3
from detnas_d2.layers.linear_of_maps import KeptMaps
from detnas_d2.layers.roi_pooler import LevelsPooler
from detnas_d2.modeling import use_operators
from detnas_d2.modeling.dense_convs import LevelsTogether
from detnas_d2.ops.autotune import AutotuneCache
from detnas_d2.search_space import SPACES
from tests.helpers import detector_config

SHAPE = (1, 64, 23, 24)  # 36 tiles
RIGHT, PACKED = ops.conv3x3, ops.conv3x3_packed


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple]:
    """Arguments of the operator's calls, the same for each map of packed weights."""
    found: list[tuple] = []

    def conv3x3(*args: object) -> object:
        found.append(args)
        return RIGHT(*args)

    def packed(xs: list[Tensor], weight: Tensor, _: Tensor, *args: object) -> object:
        found.extend((x, weight, *args) for x in xs)
        return PACKED(xs, weight, _, *args)

    monkeypatch.setattr(ops, "conv3x3", conv3x3)
    monkeypatch.setattr(ops, "conv3x3_packed", packed)
    return found


def conv(norm: str = "", activation: object = None, **options: object) -> Conv2d:
    made = Conv2d(
        64, 64, 3, padding=1, norm=get_norm(norm, 64) if norm else None, activation=activation,
        **options,
    )  # fmt: skip
    for t in made.buffers():
        if t.is_floating_point():
            nn.init.uniform_(t, 0.5, 1.5)
    return made.eval()


def fused(module: nn.Module, mode: str = "on", cache: AutotuneCache | None = None) -> nn.Module:
    module = copy.deepcopy(module)
    use_conv3x3(module.modules(), mode, cache or AutotuneCache())
    return module


@pytest.mark.parametrize("norm", ["", "BN", "SyncBN", "FrozenBN", "GN"])
@pytest.mark.parametrize("activation", [None, F.relu, nn.ReLU(), F.gelu])
def test_agrees_with_detectron2s(norm: str, activation: object, calls: list) -> None:
    torch.manual_seed(0)
    module, x = conv(norm, activation, bias=norm != "BN"), torch.randn(SHAPE)
    own = fused(module)
    assert isinstance(own, Conv3x3)
    with torch.no_grad():
        torch.testing.assert_close(own(x), module(x), rtol=1e-4, atol=1e-5)
    assert len(calls) == 1
    last = norm in ("", "BN", "SyncBN") and activation not in (None, F.gelu)
    assert calls[0][3:] == ((last,) if norm in ("", "BN", "SyncBN") else ())  # ReLU on the way out
    copied = copy.deepcopy(own)
    assert list(copied.state_dict()) == list(module.state_dict())
    with torch.no_grad():
        assert torch.equal(copied(x), own(x))


def test_torchs_convolutions_and_shared_modules_stay_where_they_are(calls: list) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(64, 64, 3, padding=1), nn.ReLU(), nn.Conv2d(64, 70, 3, padding=1))
    own = copy.deepcopy(net)
    inner = own[0]
    use_conv3x3(own.modules(), "on", AutotuneCache())
    assert own[0] is inner and isinstance(inner, Conv3x3)
    with torch.no_grad():
        x = torch.randn(SHAPE)
        torch.testing.assert_close(own(x), net(x), rtol=1e-4, atol=1e-5)
    assert len(calls) == 2


def test_what_is_no_plain_3x3_convolution_stays(calls: list) -> None:
    class Special(Conv2d):
        pass

    others = [
        nn.Conv2d(64, 64, 1), nn.Conv2d(64, 64, 5, padding=2), nn.Conv2d(64, 64, 3),
        nn.Conv2d(64, 64, 3, padding=1, stride=2), nn.Conv2d(64, 64, 3, padding=1, groups=2),
        nn.Conv2d(64, 64, 3, padding=1, dilation=2), nn.Conv2d(64, 64, 3, padding="same"),
        nn.Conv2d(64, 64, 3, padding=1, padding_mode="reflect"), Special(64, 64, 3, padding=1),
        nn.Conv3d(64, 64, 3, padding=1), nn.ConvTranspose2d(64, 64, 3, padding=1),
    ]  # fmt: skip
    kinds = [type(module) for module in others]
    use_conv3x3(others, "on", AutotuneCache())
    assert [type(module) for module in others] == kinds
    assert type(fused(conv(), "off")) is Conv2d


def test_falls_back_to_detectron2s(calls: list) -> None:
    torch.manual_seed(0)
    module, x = conv("BN", F.relu), torch.randn(SHAPE)
    own = fused(module)

    def same(x: Tensor) -> None:
        assert torch.equal(own(x), module(x))

    same(x)  # gradients are recorded
    own(x).sum().backward()
    assert own.weight.grad is not None
    with torch.no_grad():
        same(x[..., :4, :4])
        same(x[:0])
        same(torch.randn(512, 64, 1, 1))
        with torch.autocast("cpu", torch.bfloat16):
            same(x)
        traced = torch.jit.trace(own, x, check_trace=False)
        assert torch.equal(traced(x), module(x))
        torch.func.vmap(own)(x[None])
        assert own.to("meta")(x.to("meta")).is_meta
    assert not calls
    own = fused(module.double())
    with torch.no_grad():
        same(x.double())
    own = fused(module.float())
    use_conv3x3([own], "off", own.autotune)
    with torch.no_grad():
        same(x)
    assert not calls


def test_recalibration_sees_the_statistics_of_the_modules(calls: list) -> None:
    torch.manual_seed(0)
    module, x = conv("BN", F.relu, bias=False), torch.randn(SHAPE)
    found = []
    for each in (fused(module), module):
        stats: list = []
        net = nn.Sequential(each)
        with torch.no_grad(), use_batch_statistics(net, lambda _, s, stats=stats: stats.append(s)):
            y = net(x)
        found.append((y, *stats[0]))
    ((*_, want_stats),) = calls
    assert want_stats
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_auto_keeps_what_it_measured(tmp_path: Path, calls: list) -> None:
    path = tmp_path / "fused_ops.json"
    own, x = fused(conv(), "auto", AutotuneCache(path)), torch.randn(SHAPE)
    state = torch.get_rng_state()
    with torch.no_grad():
        first = own(x)
        assert torch.equal(own(x[..., :20]), own(x[..., :20]))
    assert torch.equal(torch.get_rng_state(), state)
    (key,) = entries = json.loads(path.read_text())
    assert key == f"conv3x3 64 to 64 channels, 32 tiles, {torch.get_num_threads()} threads"
    assert {"ops_ms", "modules_ms"} <= set(entries[key])
    for use in ("ops", "modules"):
        entries[key]["use"] = use
        path.write_text(json.dumps(entries))
        again = fused(own, "measured", AutotuneCache(path))
        calls.clear()
        with torch.no_grad():
            torch.testing.assert_close(again(x), first, rtol=1e-4, atol=1e-5)
        assert len(calls) == (use == "ops")


def test_a_wrong_operator_is_not_used(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def wrong(*args: object) -> tuple:
        y, stats = RIGHT(*args)
        return torch.cat([y[..., :-1], 0.9 * y[..., -1:]], dim=3), stats

    monkeypatch.setattr(ops, "conv3x3", wrong)
    module, x = conv(), torch.randn(SHAPE)
    own = fused(module, "auto")
    with torch.no_grad():
        assert torch.equal(own(x), module(x))
    assert "conv3x3 64 to 64 channels" in caplog.text and "operators are wrong" in caplog.text


def test_large_maps_are_tried_on_a_part() -> None:
    for shape in ((2000, 8, 7, 7), (1, 8, 500, 300), (64, 8, 9, 200), (1, 8, 4, 9000)):
        trial = dense_conv._trial(shape, 5)
        assert trial.check().agrees
        y = trial.operators()
        assert y.shape == trial.modules().shape
        assert dense_conv.tiles(y) <= 2300 and y.shape[3] == shape[3]


def test_pays_where_maps_fill_their_tiles() -> None:
    assert pays(torch.empty(1000, 256, 7, 7, device="meta"), 256)
    assert pays(torch.empty(1, 64, 80, 80, device="meta"), 64)
    for shape, out in (((1000, 256, 7, 7), 36), ((1000, 16, 7, 7), 256), ((1, 256, 8, 9), 256)):
        assert not pays(torch.empty(shape, device="meta"), out)
    for size in (2, 3, 5):
        assert not pays(torch.empty(5000, 256, size, size, device="meta"), 256)


@pytest.mark.parametrize("kind", ["faster", "mask", "retinanet"])
def test_necks_and_heads_of_detectors(
    kind: str, calls: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg = detector_config(kind)
    cfg.MODEL.BACKBONE.NAME = cfg.MODEL.BACKBONE.NAME.replace("_supernet", "")
    cfg.MODEL.DETNAS.PATH = str(SPACES["detnas_tiny"].random_path(random.Random(0)))
    cfg.MODEL.DETNAS.FUSED_OPS = "on"
    torch.manual_seed(0)
    model = build_model(cfg).eval()
    names = {name for name, module in model.named_modules() if type(module) is Conv3x3}
    assert not names
    own = use_operators(copy.deepcopy(model))
    names = {name for name, module in own.named_modules() if type(module) is Conv3x3}
    head = {
        "faster": {"proposal_generator.rpn_head.conv", "roi_heads.box_head.conv1"},
        "mask": {"proposal_generator.rpn_head.conv", "roi_heads.mask_head.mask_fcn1"},
        "retinanet": {"head.cls_subnet.0", "head.bbox_subnet.6", "head.cls_score"},
    }[kind]
    assert head | {"backbone.fpn_output3"} <= names
    assert not any("bottom_up" in name for name in names)
    kinds = [type(module) for module in own.modules()]
    ours = {"faster": {LevelsPooler, KeptMaps}, "retinanet": {LevelsTogether}}
    assert ours.get(kind, set()) <= set(kinds)
    own.backbone.bottom_up.fused_ops = "off"
    theirs = [type(module) for module in model.modules()]
    off = [type(module) for module in use_operators(own).modules()]
    assert all(a is b or a is Conv3x3 for a, b in zip(off, theirs, strict=True))
    own.backbone.bottom_up.fused_ops = "on"
    assert [type(module) for module in use_operators(own).modules()] == kinds
    monkeypatch.setattr(dense_conv, "pays", lambda x, out: True)
    image = {"image": torch.randint(0, 256, (3, 64, 96), dtype=torch.uint8)}
    with torch.no_grad():
        images = model.preprocess_image([image])
        expected, found = (m.backbone(images.tensor) for m in (model, own))
    assert len(calls) >= 3
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-3, atol=1e-4)
    with torch.no_grad():
        (result,) = own([image])
    assert len(calls) > 8 and "instances" in result


def test_weights_are_kept_while_their_values_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    packs: list[Tensor] = []
    pack = ops.pack_conv3x3
    monkeypatch.setattr(ops, "pack_conv3x3", lambda w: packs.append(w) or pack(w))
    torch.manual_seed(0)
    module, x = conv(), torch.randn(SHAPE)
    own = fused(module)
    with torch.no_grad():
        for _ in range(3):
            torch.testing.assert_close(own(x), module(x), rtol=1e-4, atol=1e-5)
        assert len(packs) == 1
        assert "_kept" in own.__dict__ and "_kept" not in copy.deepcopy(own).__dict__
        own.weight.data[3, 5] += 1
        module.weight.data[3, 5] += 1
        torch.testing.assert_close(own(x), module(x), rtol=1e-4, atol=1e-5)
    assert len(packs) == 2


def test_levels_of_retinanets_heads_run_together(calls: list) -> None:
    torch.manual_seed(0)
    sizes = ((1, 24, 31), (1, 12, 16), (1, 6, 8), (1, 3, 4), (1, 2, 2))
    features = [torch.randn(n, 64, h, w) for n, h, w in sizes]
    shapes = [ShapeSpec(channels=64)] * len(sizes)
    options = {"num_classes": 9, "num_anchors": 9, "conv_dims": [64, 64]}
    head = RetinaNetHead(input_shape=shapes, **options)
    own = copy.deepcopy(head)
    use_conv3x3(own.modules(), "on", AutotuneCache())
    apart = copy.deepcopy(own)
    own.__class__ = LevelsTogether
    with torch.no_grad():
        expected, found = head(features), own(features)
        # Two convolutions of either head and the scores have channels enough, on all levels.
        assert len(calls) == 5 * len(sizes)
        for one, other in zip(sum(found, []), sum(expected, []), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
        for level, pair in enumerate(zip(own(features), apart(features), strict=True)):
            if level == 0:  # which the operator runs alone too: to the bit
                assert torch.equal(pair[0][0], pair[1][0])
    # Hooks, norms and gradients have Detectron2's own forward.
    calls.clear()
    seen: list = []
    handle = own.cls_subnet[1].register_forward_hook(lambda *_: seen.append(1))
    with torch.no_grad():
        own(features)
    handle.remove()
    assert len(seen) == len(sizes)
    alone = len(calls)
    assert alone < 5 * len(sizes)
    logits, _ = own(features)
    assert logits[0].requires_grad and len(calls) == alone
    normed = RetinaNetHead(input_shape=shapes, norm="BN", **options).eval()
    changed = copy.deepcopy(normed)
    use_conv3x3(changed.modules(), "on", AutotuneCache())
    changed.__class__ = LevelsTogether
    with torch.no_grad():
        for one, other in zip(sum(changed(features), []), sum(normed(features), []), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
