"""In-place distillation: what the first path of an update teaches the others."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage
from torch import Tensor, nn

from detnas_d2.engine import FeatureLesson, PathTrainer, SoftLabelLesson
from detnas_d2.engine.trainers.distillation import build_distillation
from detnas_d2.engine.trainers.iteration import iteration_seed, set_loss_normalizers
from detnas_d2.modeling import activate
from detnas_d2.search_space import SPACES
from tests.engine.test_trainer import endless
from tests.engine.tiny_runs import Configs

TINY = SPACES["detnas_tiny"]
TEACHER, STUDENT = TINY.path([0, 0, 0, 0, 0]), TINY.path([1, 1, 1, 1, 1])


def made(cfg: CfgNode) -> nn.Module:
    torch.manual_seed(1)
    return build_model(cfg)


def updated(
    model: nn.Module, batch: list[dict], *, paths: tuple = (TEACHER, STUDENT), **options: object
) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Gradients and metrics of an update of a copy of the model."""
    model = copy.deepcopy(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    step = PathTrainer(model, optimizer, path_sampler=lambda i: paths, seed=3, **options)
    step.set_data([batch])
    with EventStorage() as storage:
        step.iter = 0
        step.run_step()
        metrics = {name: value for name, (value, _) in storage.latest().items()}
    return {n: p.grad for n, p in model.named_parameters() if p.grad is not None}, metrics


def of_op(gradients: dict[str, Tensor], op: str) -> dict[str, Tensor]:
    return {name: g for name, g in gradients.items() if f".candidates.{op}." in name}


def same(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> bool:
    assert ours.keys() == theirs.keys() and ours
    return all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_classifier_learns_soft_labels(configs: Configs) -> None:
    model = made(configs("classifier", "MODEL.CLASSIFIER.DROPOUT", 0.0))
    batch = next(endless("classifier"))
    gradients, metrics = updated(model, batch, distillation=partial(SoftLabelLesson, weight=0.5))
    by_hand = copy.deepcopy(model)
    images = by_hand.preprocess_image(batch)
    with activate(by_hand, TEACHER):
        taught = by_hand.logits(images)
        loss = by_hand.losses(taught, batch)["loss_cls"]
    with activate(by_hand, STUDENT):
        learned = by_hand.logits(images)
    # Cross-entropy with the teacher's probabilities, which no gradient reaches.
    distilled = -0.5 * (taught.detach().softmax(1) * learned.log_softmax(1)).sum(1).mean()
    assert metrics["loss_cls"] == pytest.approx(loss.item())
    assert metrics["loss_distill"] == pytest.approx(distilled.item())
    assert metrics["total_loss"] == pytest.approx((loss + distilled).item())
    (loss + distilled).backward()
    for name, p in by_hand.named_parameters():
        if p.grad is not None:
            paths = 1 if ".candidates." in name else 2
            torch.testing.assert_close(gradients[name], p.grad / paths, rtol=1e-4, atol=1e-7)
    # Its own labels are nothing to the student.
    others = [{**sample, "label": (sample["label"] + 1) % 3} for sample in batch]
    again, _ = updated(model, others, distillation=partial(SoftLabelLesson, weight=0.5))
    assert not same(of_op(gradients, "3x3"), of_op(again, "3x3"))
    assert same(of_op(gradients, "5x5"), of_op(again, "5x5"))


def test_dropout_is_the_teachers(configs: Configs) -> None:
    model = made(configs("classifier", "MODEL.CLASSIFIER.DROPOUT", 0.5))
    batch, seen = next(endless("classifier")), []
    model.dropout.register_forward_hook(lambda m, x, y: seen.append((m.training, y.eq(0).any())))
    lesson = SoftLabelLesson(model, 1.0)
    for path in (TEACHER, STUDENT, STUDENT):
        with activate(model, path):
            lesson(batch)
    assert [training for training, _ in seen] == [True, False, False]
    assert model.dropout.training


@pytest.mark.parametrize("kind", ["faster", "retinanet"])
def test_a_detector_learns_features(kind: str, configs: Configs) -> None:
    model = made(configs(kind))
    batch = next(endless(kind))
    gradients, metrics = updated(model, batch, distillation=partial(FeatureLesson, weight=2.0))
    plain, without = updated(model, batch)
    assert same(of_op(gradients, "3x3"), of_op(plain, "3x3"))  # the teacher's
    by_hand, features, losses = copy.deepcopy(model), [], []
    by_hand.backbone.register_forward_hook(lambda m, x, y: features.append(y))
    for index, path in enumerate((TEACHER, STUDENT)):
        torch.manual_seed(iteration_seed(3, 0, 0, index))
        with activate(by_hand, path), EventStorage():
            losses.append(sum(by_hand(batch).values()))
        set_loss_normalizers(by_hand, {})
    taught, learned = features
    terms = []
    for level, feature in taught.items():
        teacher = feature.detach()
        difference = (learned[level] - teacher) / teacher.std(correction=0)
        terms.append(difference.square().mean())
    distilled = 2.0 * sum(terms) / len(terms)
    assert len(terms) == 5 and metrics["loss_distill"] == pytest.approx(distilled.item(), rel=1e-4)
    expected = without["total_loss"] + metrics["loss_distill"]
    assert metrics["total_loss"] == pytest.approx(expected, rel=1e-5)
    (losses[1] + distilled).backward()
    student = of_op({n: p.grad for n, p in by_hand.named_parameters() if p.grad is not None}, "5x5")
    assert of_op(gradients, "5x5").keys() == student.keys()
    for name, gradient in student.items():
        # Sums of many terms: an element near zero is only as exact as the largest.
        atol = 1e-5 * (1 + gradient.abs().max().item())
        torch.testing.assert_close(
            gradients[name], gradient, rtol=1e-3, atol=atol, msg=partial("{}: {}".format, name)
        )
    assert not same(of_op(gradients, "5x5"), of_op(plain, "5x5"))


def test_the_same_path_learns_nothing_from_itself(configs: Configs) -> None:
    """And features that do not vary divide by 1, not by 0."""
    model = made(configs("faster", "MODEL.FPN.NORM", "", "SOLVER.AMP.ENABLED", True))
    with torch.no_grad():
        for conv in (model.backbone.fpn_output5, model.backbone.fpn_lateral5):
            conv.weight.zero_()
    batch, amp = next(endless("faster")), {"amp": True}
    taught = partial(FeatureLesson, weight=1.0)
    _, metrics = updated(model, batch, paths=(TEACHER, TEACHER), distillation=taught, **amp)
    assert metrics["loss_distill"] == 0
    _, metrics = updated(model, batch, distillation=taught, **amp)
    assert 0 < metrics["loss_distill"] < 10


def test_distillation_by_config(configs: Configs) -> None:
    cfg = configs("faster")
    model = made(cfg)
    assert build_distillation(cfg, model) is None
    cfg.SUPERNET.PATH_SAMPLING = "sandwich"
    lesson = build_distillation(cfg, model)(model)
    assert type(lesson) is FeatureLesson and lesson.weight == 1.0
    classifier = made(configs("classifier"))
    assert type(build_distillation(cfg, classifier)(classifier)) is SoftLabelLesson
    with pytest.raises(ValueError, match=r"DISTILL_WEIGHT 1.0: Linear has no module `backbone`"):
        build_distillation(cfg, nn.Linear(1, 1))
    cfg.SUPERNET.DISTILL_WEIGHT = 0.0
    assert build_distillation(cfg, nn.Linear(1, 1)) is None


class Twice(nn.Module):
    """A model that runs its backbone more than once."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Linear(1, 1)

    def forward(self, data: Tensor) -> dict[str, Tensor]:
        return {"loss": self.backbone(self.backbone(data)).sum()}


def test_a_backbone_gives_features_once() -> None:
    with pytest.raises(ValueError, match="Twice ran its backbone 2 times; expected once"):
        FeatureLesson(Twice(), 1.0)(torch.ones(1))
