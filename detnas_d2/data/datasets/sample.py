"""Samples of datasets: some of the images, chosen by a seed, as a dataset of its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from detectron2.data import DatasetCatalog, MetadataCatalog

from detnas_d2.data.datasets.catalog import source_of_metadata
from detnas_d2.data.datasets.cuts import choose
from detnas_d2.data.datasets.splits import register_parts

_SAMPLE = "sample"


@dataclass(frozen=True)
class Sample:
    """``size`` images; a larger sample holds a smaller one of the same seed."""

    folder: ClassVar[str] = "samples"
    size: int
    seed: int = 0

    def cut(self, source: str, keys: list[str]) -> dict[str, set[str]]:
        """Keys of the sample."""
        return {_SAMPLE: choose(keys, self.size, self.seed)}


def register_sample(parent: str, size: int, seed: int, cache_dir: str) -> str:
    """Registers ``size`` images of a registered dataset; returns the name, ``parent``'s own if it
    has no more.

    A dataset in a known format has files of its own below ``cache_dir``; of others the dicts are
    sampled, and evaluators that need COCO's file make it of them. PASCAL VOC's data that were
    registered by hand without classes are taken whole. All processes must call this.
    """
    dicts = DatasetCatalog.get(parent)
    metadata = MetadataCatalog.get(parent).as_dict()
    source = source_of_metadata(parent)
    if size >= len(dicts) or (source is None and metadata.get("evaluator_type") == "pascal_voc"):
        return parent
    name = f"{parent}@{size}"
    if source is not None:
        register_parts(parent, Sample(size, seed), {_SAMPLE: name}, cache_dir)
        return name
    chosen = choose((str(place) for place in range(len(dicts))), size, seed)
    part = [dicts[int(place)] for place in sorted(chosen, key=int)]
    for catalog in (DatasetCatalog, MetadataCatalog):
        if name in catalog:
            catalog.remove(name)
    DatasetCatalog.register(name, lambda: part)
    own = {key: value for key, value in metadata.items() if key not in ("name", "json_file")}
    MetadataCatalog.get(name).set(**own)
    return name
