"""Image sizes that are searched with the paths (``SEARCH.RESOLUTIONS``), and configs of one size.

A resolution is the shortest side of the images in evaluation. All that is in pixels follows it in
proportion: the longest side, the sizes of training, the image that costs are counted for. So a
config at the resolution that it has already is that config.
"""

from __future__ import annotations

from detectron2.config import CfgNode

from detnas_d2.utils.errors import InputError

KEY = "SEARCH.RESOLUTIONS"


def resolutions_of(cfg: CfgNode) -> tuple[int, ...]:
    """``SEARCH.RESOLUTIONS``; empty: a path is all that is searched.

    Raises:
        InputError: images cannot be resized to them, naming the key that is in the way.
    """
    found = tuple(cfg.SEARCH.RESOLUTIONS)
    if not found:
        return ()
    if cfg.MODEL.META_ARCHITECTURE == "ImageClassifier":
        raise InputError(
            f"{KEY} {list(found)}: MODEL.META_ARCHITECTURE is ImageClassifier, whose images are "
            "crops (INPUT.CLASSIFICATION); expected a detector, or []"
        )
    check_resizable(cfg, f"{KEY} {list(found)}")
    if cfg.INPUT.MIN_SIZE_TEST not in found:
        raise InputError(
            f"{KEY} {list(found)}: INPUT.MIN_SIZE_TEST {cfg.INPUT.MIN_SIZE_TEST}, which the other "
            "sizes of the config are for, is none of them"
        )
    return found


def check_resizable(cfg: CfgNode, what: str) -> None:
    """Whether a config can be made one of another resolution.

    Args:
        what: asks for it, for the error.

    Raises:
        InputError: naming the key that is in the way.
    """
    if cfg.INPUT.MIN_SIZE_TEST < 1:
        raise InputError(
            f"{what}: INPUT.MIN_SIZE_TEST is {cfg.INPUT.MIN_SIZE_TEST}, images keep their size; "
            "expected their shortest side"
        )
    if cfg.INPUT.CROP.ENABLED and cfg.INPUT.CROP.TYPE not in ("relative", "relative_range"):
        raise InputError(
            f"{what}: INPUT.CROP.TYPE is {cfg.INPUT.CROP.TYPE!r}, a size in pixels; expected "
            "'relative' or 'relative_range'"
        )


def scaled(size: int, resolution: int, base: int) -> int:
    """A size in pixels that is for the resolution ``base``, for another one; half goes up."""
    return max(1, (2 * size * resolution + base) // (2 * base))


def set_resolution(cfg: CfgNode, resolution: int) -> None:
    """Makes ``cfg`` one of images of this resolution alone, in place."""
    base, images = cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT
    images.MIN_SIZE_TRAIN = tuple(scaled(side, resolution, base) for side in images.MIN_SIZE_TRAIN)
    images.MAX_SIZE_TRAIN = scaled(images.MAX_SIZE_TRAIN, resolution, base)
    images.MAX_SIZE_TEST = scaled(images.MAX_SIZE_TEST, resolution, base)
    images.MIN_SIZE_TEST = resolution
    cfg.SEARCH.RESOLUTIONS = []


def at_own_resolution(cfg: CfgNode) -> CfgNode:
    """A copy that searches paths alone, for images as large as the config has them."""
    return at_resolution(cfg, cfg.INPUT.MIN_SIZE_TEST) if cfg.SEARCH.RESOLUTIONS else cfg.clone()


def at_resolution(cfg: CfgNode, resolution: int) -> CfgNode:
    """A copy, by :func:`set_resolution`."""
    cfg = cfg.clone()
    cfg.defrost()
    set_resolution(cfg, resolution)
    return cfg


def cost_input(cfg: CfgNode, resolution: int | None = None) -> tuple[int, int]:
    """Height and width of the image that costs are counted for: ``SEARCH.MAX_MACS_INPUT``, at
    another resolution than that of ``cfg`` in proportion.
    """
    height, width = cfg.SEARCH.MAX_MACS_INPUT
    if resolution is None:
        return height, width
    base = cfg.INPUT.MIN_SIZE_TEST
    return scaled(height, resolution, base), scaled(width, resolution, base)
