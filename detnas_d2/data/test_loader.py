"""The loader of evaluation images."""

from __future__ import annotations

from detectron2.config import CfgNode
from detectron2.data import (
    DatasetFromList,
    MapDataset,
    build_detection_test_loader,
    get_detection_dataset_dicts,
)
from detectron2.data.samplers import InferenceSampler
from torch.utils.data import DataLoader

from detnas_d2.data.classification import ClassificationMapper
from detnas_d2.data.train_loader import is_classification, list_of_samples


def build_test_loader(cfg: CfgNode, dataset_name: str) -> DataLoader:
    """This rank's share of a data set, mapped for evaluation; batches are list[dict].

    Detection is Detectron2's loader (one image a batch); classification has
    INPUT.CLASSIFICATION.TEST_BATCH_SIZE images a batch.
    """
    if not is_classification(dataset_name):
        return build_detection_test_loader(cfg, dataset_name)
    dicts = get_detection_dataset_dicts([dataset_name], filter_empty=False)
    dataset = MapDataset(DatasetFromList(dicts, copy=False), ClassificationMapper(cfg, False))
    return DataLoader(
        dataset,
        sampler=InferenceSampler(len(dicts)),
        batch_size=cfg.INPUT.CLASSIFICATION.TEST_BATCH_SIZE,
        num_workers=cfg.DATALOADER.NUM_WORKERS,
        collate_fn=list_of_samples,
    )
