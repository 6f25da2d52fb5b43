"""The converter against a plain-torch detector that speaks the released names."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from detectron2.config import get_cfg
from detectron2.modeling import build_model

import detnas_d2.modeling.hit  # noqa: F401
from detnas_d2.config.hit_config import add_hit_detector_config
from detnas_d2.modeling import WeightsError
from detnas_d2.modeling.hit.released import convert_released_hit

ROOT = Path(__file__).parents[3]
RPN = {
    "rpn_head.rpn_conv": ((256, 256, 3, 3), (256,)),
    "rpn_head.rpn_cls": ((3, 256, 1, 1), (3,)),
    "rpn_head.rpn_reg": ((12, 256, 1, 1), (12,)),
}


def released_shapes():
    """Released key -> shape, from the list beside this file (RPN: mmdetection's own)."""
    shapes = {}
    for line in (Path(__file__).parent / "released_keys.txt").read_text().splitlines():
        if line.startswith("#"):
            continue
        name, *sizes = line.split()
        sizes = [tuple(int(n) for n in size.split("x")) for size in sizes]
        shapes.update(zip((f"{name}.weight", f"{name}.bias"), sizes, strict=False))
        if name.endswith(".bn"):
            for leaf in ("bias", "running_mean", "running_var"):
                shapes[f"{name}.{leaf}"] = sizes[0]
            shapes[f"{name}.num_batches_tracked"] = ()
    for name, (weight, bias) in RPN.items():
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = weight, bias
    return shapes


@pytest.fixture(scope="module")
def state():
    generator = torch.Generator().manual_seed(0)
    state = {}
    for key, shape in released_shapes().items():
        if key.endswith("num_batches_tracked"):
            state[key] = torch.tensor(7)
        elif key.endswith("running_var"):
            state[key] = 0.5 + torch.rand(shape, generator=generator)
        elif key.endswith("weight") and len(shape) > 1:
            fan_in = shape[1] * (shape[2] * shape[3] if len(shape) == 4 else 1)
            state[key] = torch.randn(shape, generator=generator) * (2 / fan_in) ** 0.5
        else:
            state[key] = torch.randn(shape, generator=generator) * 0.2 + ("weight" in key)
    return state


@pytest.fixture(scope="module")
def model():
    cfg = get_cfg()
    add_hit_detector_config(cfg)
    cfg.merge_from_file(str(ROOT / "configs/HitDetector/released/coco.yaml"))
    cfg.MODEL.DEVICE = "cpu"
    return build_model(cfg).eval()


class Plain:
    """The released forward pass in torch functions on the released state dict."""

    def __init__(self, state):
        self.state = state

    def conv(self, name, x, *, stride=1, dilation=1, relu=True):
        weight = self.state[f"{name}.conv.weight"]
        x = F.conv2d(
            x,
            weight,
            self.state.get(f"{name}.conv.bias"),
            stride,
            weight.shape[2] // 2 * dilation,
            dilation,
            x.shape[1] // weight.shape[1],
        )
        mean, var, scale, shift = (
            self.state[f"{name}.bn.{leaf}"]
            for leaf in ("running_mean", "running_var", "weight", "bias")
        )
        x = F.batch_norm(x, mean, var, scale, shift, eps=1e-5)
        return x.relu() if relu else x

    def ir(self, name, x, stride=1, dilation=1):
        y = self.conv(f"{name}.conv1", x)
        y = self.conv(f"{name}.conv2", y, stride=stride, dilation=dilation)
        y = self.conv(f"{name}.conv3", y, relu=False)
        return x + y if stride == 1 and x.shape == y.shape else y

    def sd(self, name, x, dilation):
        y = self.conv(f"{name}.conv1", x, dilation=dilation)
        y = self.conv(f"{name}.conv2", y, relu=False)
        return x + y if x.shape == y.shape else y

    def backbone(self, x):
        x = self.conv("backbone.layers.0", x, stride=2)
        outputs = []
        for i in range(1, 22):
            stride = 2 if i in (1, 5, 9, 17) else 1
            dilation = 2 if i in (3, 11, 14, 16, 19) else 1
            x = self.ir(f"backbone.layers.{i}", x, stride, dilation)
            if i in (4, 8, 16):
                outputs.append(x)
        return [*outputs, self.conv("backbone.layers.22", x)]

    def neck(self, features):
        cell = "neck.SearchNeck.cells.{}".format
        dilations = (3, 3, 2, 3, 3, 3, 3, 3)
        p = [self.sd(cell(i), f, dilations[i]) for i, f in enumerate(features)]
        for i in (2, 1, 0):
            p[i] = p[i] + p[i + 1].repeat_interleave(2, 2).repeat_interleave(2, 3)
        p = [self.sd(cell(4 + i), x, dilations[4 + i]) for i, x in enumerate(p)]
        n = [p[0]]
        for i in range(3):
            weight, bias = (self.state[f"neck.pa_convs.{i}.conv.{k}"] for k in ("weight", "bias"))
            n.append(F.conv2d(F.max_pool2d(n[-1], 2) + p[i + 1], weight, bias, padding=1))
        return [*n, n[-1][:, :, ::2, ::2]]

    def head(self, x):
        for i in range(4):
            x = self.ir(f"bbox_head.SearchHead.cells.{i}", x)
        x = self.linear("shared_fcs.0", x.flatten(1)).relu()
        return self.linear("fc_cls", x), self.linear("fc_reg", x)

    def linear(self, name, x):
        weight, bias = (self.state[f"bbox_head.{name}.{leaf}"] for leaf in ("weight", "bias"))
        return F.linear(x, weight, bias)


@torch.no_grad()
def test_converted_network_computes_what_the_released_one_does(state, model):
    model.load_state_dict(convert_released_hit(state, model), strict=True)
    plain = Plain(state)
    image = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(1))
    expected = plain.neck(plain.backbone(image))
    features = model.backbone(image)
    assert list(features) == ["p2", "p3", "p4", "p5", "p6"]
    for found, reference in zip(features.values(), expected, strict=True):
        scale = reference.std()
        torch.testing.assert_close(found / scale, reference / scale, rtol=1e-4, atol=1e-4)

    regions = torch.randn(3, 256, 7, 7, generator=torch.Generator().manual_seed(2))
    cls, reg = plain.head(regions)
    scores, deltas = model.roi_heads.box_predictor(model.roi_heads.box_head(regions))
    torch.testing.assert_close(scores, torch.cat((cls[:, 1:], cls[:, :1]), 1), rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(deltas, reg[:, 4:], rtol=1e-4, atol=1e-3)


def test_released_names_are_complete(state, model):
    assert len(convert_released_hit(state, model)) == len(state) == 391 + 102 + 78 + 6
    wrapped = {f"module.{key}": value for key, value in state.items()}
    assert convert_released_hit(wrapped, model).keys() == model.state_dict().keys()


def test_bare_backbone(state, model):
    prefix = "backbone."
    inner = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
    backbone = model.backbone.bottom_up
    assert convert_released_hit(inner, backbone).keys() == backbone.state_dict().keys()


def test_anything_else_is_refused(state, model):
    name = "neck.SearchNeck.cells.2.conv1.conv.weight"
    missing = {k: v for k, v in state.items() if k != name}
    with pytest.raises(WeightsError, match=f"missing {name}"):
        convert_released_hit(missing, model)
    with pytest.raises(WeightsError, match="unexpected backbone.fc.weight"):
        convert_released_hit({**state, "backbone.fc.weight": torch.zeros(1)}, model)
    with pytest.raises(WeightsError, match="expected .*1, 5, 5"):
        convert_released_hit({**state, name: torch.zeros(256, 1, 3, 3)}, model)
