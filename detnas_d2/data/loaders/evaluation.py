"""The loader of evaluation batches."""

from __future__ import annotations

from detectron2.config import CfgNode
from detectron2.data import DatasetFromList, get_detection_dataset_dicts
from detectron2.data.samplers import InferenceSampler
from torch.utils.data import DataLoader

from detnas_d2.data.loaders.samples import NamingMapDataset
from detnas_d2.data.loaders.train import is_classification, mapper_and_collate, own_generator


def build_eval_loader(cfg: CfgNode, dataset_name: str, batch_size: int) -> DataLoader:
    """Every image once, in order, list[dict] per batch; each rank gets one part of the images.

    Like Detectron2's test loader, with a batch size (Detectron2 0.6 has none) and for
    classification as well.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be positive, got {batch_size}")
    dataset_dicts = get_detection_dataset_dicts(dataset_name, filter_empty=False)
    mapper, collate = mapper_and_collate(cfg, dataset_name, is_train=False)
    return DataLoader(
        NamingMapDataset(DatasetFromList(dataset_dicts, copy=False), mapper),
        batch_size=batch_size,
        sampler=InferenceSampler(len(dataset_dicts)),
        num_workers=cfg.DATALOADER.NUM_WORKERS,
        collate_fn=collate,
        generator=own_generator(),
    )


def build_test_loader(cfg: CfgNode, dataset_name: str) -> DataLoader:
    """:func:`build_eval_loader` with the batch size of the config.

    TEST.BATCH_SIZE for detection, by default one image as in Detectron2;
    INPUT.CLASSIFICATION.TEST_BATCH_SIZE for classification.
    """
    if is_classification(dataset_name):
        size = cfg.INPUT.CLASSIFICATION.TEST_BATCH_SIZE
    else:
        size = cfg.TEST.BATCH_SIZE
    return build_eval_loader(cfg, dataset_name, size)
