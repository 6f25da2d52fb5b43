"""Samples of datasets, made by mappers; an image that cannot be read is named."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from detectron2.data import MapDataset

from detnas_d2.utils.errors import InputError

Mapper = Callable[[dict[str, Any]], dict[str, Any] | None]


class SampleError(InputError):
    """A sample that its mapper could not make; the text names its file, in one line.

    Loaders make the error of a worker again from the text of its traceback, which becomes a note.
    """

    def __init__(self, text: str) -> None:
        last = text.rstrip().rsplit("\n", 1)[-1]
        super().__init__(last.removeprefix(f"{__name__}.{type(self).__name__}: "))
        if last != text and hasattr(self, "add_note"):  # Python 3.11
            self.add_note(text)


def map_sample(mapper: Mapper, sample: dict[str, Any]) -> dict[str, Any] | None:
    """``mapper(sample)``.

    Raises:
        SampleError: naming the sample's file, or its image id, and what the mapper raised.
    """
    try:
        return mapper(sample)
    except Exception as error:  # Pillow's decoders raise many types
        place = sample.get("file_name") or f"image id {sample.get('image_id')!r}"
        text = f"{place}: {type(error).__name__}: {' '.join(str(error).split())}"
        if isinstance(error, (OSError, SyntaxError)):  # Pillow's, of files that it cannot decode
            text += "; DATASETS.DECODE_CHECK True finds all such files before a training"
        raise SampleError(text) from error


class NamingMapDataset(MapDataset):
    """Detectron2's dataset of samples made by a mapper, with the errors of :func:`map_sample`."""

    def __init__(self, dataset: Any, mapper: Mapper) -> None:
        super().__init__(dataset, _Naming(mapper))
        self.samples, self.mapper = dataset, mapper


class _Naming:
    def __init__(self, mapper: Mapper) -> None:
        self._mapper = mapper

    def __call__(self, sample: dict[str, Any]) -> dict[str, Any] | None:
        return map_sample(self._mapper, sample)
