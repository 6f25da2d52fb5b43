"""Images that are read once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from detectron2.data import detection_utils
from PIL import Image

from detnas_d2.data.loaders.image_memory import images_read_once


def test_files_are_read_once_as_far_as_there_is_room(tmp_path: Path) -> None:
    random, read = np.random.RandomState(0), detection_utils.read_image
    files = [str(tmp_path / f"{i}.png") for i in range(2)]
    for file in files:
        Image.fromarray(random.randint(0, 255, (4, 6, 3), dtype=np.uint8)).save(file)
    first, second = (read(file, format="BGR") for file in files)
    with images_read_once(limit=first.nbytes + 1):
        got = detection_utils.read_image(files[0], format="BGR")
        assert (got == first).all()
        got[:] = 0  # a copy: others are not altered
        assert (detection_utils.read_image(files[1], format="BGR") == second).all()
        for file in files:
            Image.fromarray(np.zeros((4, 6, 3), np.uint8)).save(file)
        assert (detection_utils.read_image(files[0], format="BGR") == first).all()
        assert not detection_utils.read_image(files[1], format="BGR").any()
    assert detection_utils.read_image is read
