"""The image classifier of the pre-training stage."""

from __future__ import annotations

import random

import pytest
import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.modeling import build_model

from detnas_d2.modeling import ImageClassifier, activate
from detnas_d2.modeling.classifier import as_batch
from detnas_d2.search_space import SPACES
from tests.helpers import classification_batch, detector_config

PATH = SPACES["detnas_tiny"].random_path(random.Random(0))


def config(*, supernet: bool = True) -> CfgNode:
    cfg = detector_config()
    cfg.MODEL.META_ARCHITECTURE = "ImageClassifier"
    cfg.MODEL.BACKBONE.NAME = f"build_detnas_{'supernet_' if supernet else ''}backbone"
    cfg.MODEL.DETNAS.PATH = "" if supernet else str(PATH)
    cfg.MODEL.DETNAS.LAST_CONV = True
    cfg.MODEL.DETNAS.OUT_FEATURES = ["last"]
    cfg.MODEL.CLASSIFIER.NUM_CLASSES = 5
    cfg.MODEL.PIXEL_MEAN = [10.0, 20.0, 30.0]
    cfg.MODEL.PIXEL_STD = [2.0, 4.0, 8.0]
    return cfg


def test_parts_come_from_the_config() -> None:
    cfg = config()
    cfg.MODEL.CLASSIFIER.DROPOUT = 0.3
    cfg.MODEL.CLASSIFIER.LABEL_SMOOTHING = 0.25
    model = build_model(cfg)
    assert isinstance(model, ImageClassifier)
    assert (model.dropout.p, model.label_smoothing) == (0.3, 0.25)
    assert model.linear.weight.shape == (5, SPACES["detnas_tiny"].last_channels)
    assert not {"pixel_mean", "pixel_std"} & set(model.state_dict())
    image = torch.full((3, 2, 2), 50, dtype=torch.uint8)
    normalised = model.preprocess_image([{"image": image}] * 2)
    assert normalised.shape == (2, 3, 2, 2)
    assert normalised[1, :, 0, 0].tolist() == [20, 7.5, 2.5]


def test_loss_and_scores_of_a_path() -> None:
    torch.manual_seed(0)
    cfg = config()
    cfg.MODEL.CLASSIFIER.DROPOUT = 0.0
    cfg.MODEL.CLASSIFIER.LABEL_SMOOTHING = 0.2
    model = build_model(cfg)
    batch = classification_batch(32, [4, 0, 1])
    with activate(model, PATH):
        losses = model.train()(batch)
        losses["loss_cls"].backward()
        logits = model.logits(model.preprocess_image(batch)).log_softmax(1)
        with torch.no_grad():
            outputs = model.eval()(batch)
    nll = -logits[torch.arange(3), torch.tensor([4, 0, 1])].mean()
    torch.testing.assert_close(losses["loss_cls"], 0.8 * nll - 0.2 * logits.mean())
    assert list(losses) == ["loss_cls"] and model.linear.weight.grad.abs().sum() > 0
    assert [list(output) for output in outputs] == [["scores"]] * 3
    for output in outputs:
        assert output["scores"].shape == (5,)
        assert output["scores"].sum().item() == pytest.approx(1)


def test_dropout_drops_whole_channels_in_training_only() -> None:
    torch.manual_seed(0)
    cfg = config(supernet=False)
    cfg.MODEL.CLASSIFIER.DROPOUT = 0.5
    model = build_model(cfg)
    dropped = model.train().dropout(torch.ones(4, 64, 3, 3))
    assert set(dropped.unique().tolist()) == {0.0, 2.0}
    assert (dropped.flatten(2).amax(2) == dropped.flatten(2).amin(2)).all()
    features = model.eval().dropout(torch.ones(1, 4, 3, 3))
    assert (features == 1).all()


def test_inference_does_not_need_labels() -> None:
    model = build_model(config(supernet=False)).eval()
    images = [{"image": x["image"]} for x in classification_batch(33, [0, 1])]
    with torch.no_grad():
        together = model(images)
        alone = model(images[1:])
        expected = F.softmax(model.logits(model.preprocess_image(images)), dim=1)
    torch.testing.assert_close(together[1]["scores"], alone[0]["scores"])
    torch.testing.assert_close(together[0]["scores"], expected[0])


def test_a_missing_feature_names_the_keys_to_set() -> None:
    cfg = config()
    cfg.MODEL.DETNAS.OUT_FEATURES = ["stage3", "stage4"]
    with pytest.raises(ValueError, match=r"'last', the backbone gives stage3, stage4: set MODEL\."):
        build_model(cfg)
    cfg.MODEL.CLASSIFIER.IN_FEATURE = "stage4"
    assert build_model(cfg).linear.in_features == SPACES["detnas_tiny"].stage_channels[-1]


def test_rows_of_one_tensor_are_not_copied() -> None:
    whole = torch.arange(5 * 3 * 2 * 4).view(5, 3, 2, 4)
    batch = as_batch(list(whole[1:4]))
    assert torch.equal(batch, whole[1:4])
    assert batch.data_ptr() == whole[1].data_ptr()
    # Another order, a gap, copies, other strides: stacked.
    cases = [whole[[2, 1]], whole[::2], whole[1:3].clone(), whole.transpose(2, 3)[:2]]
    for images in ([whole[2], whole[1]], *map(list, cases)):
        assert torch.equal(as_batch(images), torch.stack(images))
    assert as_batch([whole[2], whole[1]]).data_ptr() != whole.data_ptr()
    with pytest.raises(RuntimeError, match="equal size"):
        as_batch([whole[0], whole[0, :2]])
