"""CPU time of a worker of the classification loader, step by step, and how many workers GPUs need.

    python benchmarks/data_loader.py [--folder IMAGES] [--workers 1 2 4] [--gpu-rate 1000]

Without --folder, JPEG files of ImageNet's usual size and weight are drawn. Times are CPU time,
which other work on the machine changes little; --workers adds rates in wall time. Prints Markdown.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from detectron2.config import CfgNode
from PIL import Image
from torchvision import transforms as T
from torchvision.io import decode_jpeg, read_file

from detnas_d2.config.tools import load_config
from detnas_d2.data import (
    ClassificationMapper,
    SeededMapDataset,
    build_train_loader,
    register_datasets,
)
from detnas_d2.data.loaders.classification import read_rgb, rows_of_one_tensor, to_tensor
from detnas_d2.data.loaders.train import list_of_samples
from detnas_d2.modeling.classifier import as_batch

CONFIG = Path(__file__).parents[1] / "configs" / "DetNAS" / "imagenet" / "supernet.yaml"
NAMES = {
    T.RandomResizedCrop: "random crop, resized",
    T.ColorJitter: "colour jitter",
    T.RandomHorizontalFlip: "mirroring",
}


def main() -> None:
    args = parse()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        root = args.folder or draw_images(Path(folder), args.images, tuple(args.size))
        cfg = config(root, Path(folder))
        loader = build_train_loader(cfg, start_iter=0)
        dicts = [loader.dataset.samples[i] for i in range(len(loader.dataset))]
        sizes = [os.path.getsize(d["file_name"]) for d in dicts]
        print(f"{len(dicts)} images, {statistics.fmean(sizes) / 1024:.0f} KiB each on average\n")
        costs = sample_costs(cfg, dicts, args.repetitions)
        print_costs(costs)
        print("\n| decoding otherwise, ms per image | |\n|---|---|")
        for name, value in other_decoders(dicts, args.repetitions).items():
            print(f"| {name} | {value:.3f} |")
        per_worker = 1e3 / costs["sum"]
        receive = receiving_costs(cfg, loader.dataset)
        print("\n| the training process, ms per image | |\n|---|---|")
        for name, value in receive.items():
            print(f"| {name} | {value:.3f} |")
        for workers in args.workers:
            print(f"\n{workers} workers: {wall_rate(cfg, workers):.0f} images/s", end="")
        print(
            f"\n\nA worker makes {per_worker:.0f} images/s. 8 GPUs that train {args.gpu_rate:.0f} "
            f"images/s each keep {8 * args.gpu_rate / per_worker:.0f} cores busy with them: "
            f"DATALOADER.NUM_WORKERS {-(-args.gpu_rate // per_worker):.0f} for each GPU."
        )


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", help="image folder with one sub-folder for each class")
    parser.add_argument("--images", type=int, default=64, help="images to draw (default: 64)")
    parser.add_argument("--size", type=int, nargs=2, default=(500, 375), metavar=("W", "H"))
    parser.add_argument("--workers", type=int, nargs="+", default=[])
    parser.add_argument("--repetitions", type=int, default=5, help="passes over the images")
    parser.add_argument("--gpu-rate", type=float, default=1000.0, help="images/s of a GPU")
    return parser.parse_args()


def draw_images(folder: Path, count: int, size: tuple[int, int]) -> str:
    """JPEG files of coloured noise whose spectrum falls as that of photographs; about 130 KiB."""
    random = np.random.RandomState(0)
    width, height = size
    y, x = np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None]
    falloff = np.maximum(np.hypot(y, x), 1 / max(size)) ** 1.2

    def noise() -> np.ndarray:
        real, imaginary = random.randn(2, height, width // 2 + 1)
        plane = np.fft.irfft2((real + 1j * imaginary) / falloff, (height, width))
        return plane / plane.std()

    for number in range(count):
        light = noise()
        pixels = np.stack([118 + 55 * (light + 0.4 * noise()) for _ in range(3)], axis=2)
        target = folder / "images" / "abcd"[number % 4] / f"{number}.jpg"
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(target, quality=95)
    return str(folder / "images")


def config(root: str, scratch: Path) -> CfgNode:
    cfg = load_config(str(CONFIG))
    cfg.DATASETS.REGISTER = [{"NAME": "bench", "FORMAT": "image_folder", "ROOT": root}]
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = ("bench",), ()
    cfg.DATASETS.CACHE_DIR, cfg.DATALOADER.NUM_WORKERS = str(scratch / "cache"), 0
    cfg.SOLVER.IMS_PER_BATCH = 128  # a GPU's part of 1024
    register_datasets(cfg)
    return cfg


def sample_costs(cfg: CfgNode, dicts: list[dict], repetitions: int) -> dict[str, float]:
    """Milliseconds per image of each step of a worker, and their sum."""
    mapper = ClassificationMapper(cfg, True)
    seconds: dict[str, float] = {}

    def timed(name: str, work: Callable[..., object], *arguments: object) -> object:
        start = time.process_time()
        result = work(*arguments)
        seconds[name] = seconds.get(name, 0.0) + time.process_time() - start
        return result

    samples: list[dict] = []
    for _ in range(repetitions):
        samples = []
        for sample in dicts:
            image = timed("reading and decoding", read_rgb, sample["file_name"])
            for step in mapper.transform.transforms:
                image = timed(NAMES[type(step)], step, image)
            tensor = timed("conversion", to_tensor, image, cfg.INPUT.FORMAT)
            samples.append({**sample, "image": tensor})
        timed("batching", rows_of_one_tensor, samples)
    costs = {name: 1e3 * value / (repetitions * len(dicts)) for name, value in seconds.items()}
    return {**costs, "sum": sum(costs.values())}


def print_costs(costs: dict[str, float]) -> None:
    print("| a worker, ms per image | | share |\n|---|---|---|")
    for name, value in costs.items():
        print(f"| {name} | {value:.3f} | {100 * value / costs['sum']:.0f} % |")


def other_decoders(dicts: list[dict], repetitions: int) -> dict[str, float]:
    """Milliseconds per image of other ways to read and decode."""

    def at_half_size(file: str) -> None:
        with Image.open(file) as image:
            image.draft("RGB", (image.width // 2, image.height // 2))
            image.load()

    decoders = {
        "torchvision, the same pixels": lambda file: decode_jpeg(read_file(file)),
        "Pillow at half size, other pixels": at_half_size,
    }
    costs = {}
    for name, decode in decoders.items():
        start = time.process_time()
        for _ in range(repetitions):
            for sample in dicts:
                decode(sample["file_name"])
        costs[name] = 1e3 * (time.process_time() - start) / (repetitions * len(dicts))
    return costs


def receiving_costs(cfg: CfgNode, dataset: SeededMapDataset) -> dict[str, float]:
    """Milliseconds per image that the training process spends on taking over a batch."""
    size, rounds = cfg.SOLVER.IMS_PER_BATCH, 6
    costs = {}
    for name, collate in (
        ("taking over a batch as one tensor (as it is)", rows_of_one_tensor),
        ("taking over a tensor for each image", list_of_samples),
    ):
        keys = [[(0, i % len(dataset)) for i in range(size)]] * rounds
        batches = iter(
            torch.utils.data.DataLoader(
                dataset, batch_sampler=keys, num_workers=1, collate_fn=collate
            )
        )
        next(batches)
        start = time.process_time()
        for batch in batches:
            as_batch([sample["image"] for sample in batch]).clone()  # to the GPU, in training
        costs[name] = 1e3 * (time.process_time() - start) / (size * (rounds - 1))
    return costs


def wall_rate(cfg: CfgNode, workers: int, batches: int = 6) -> float:
    """Images/s of the training loader."""
    cfg = cfg.clone()
    cfg.DATALOADER.NUM_WORKERS = workers
    loader: Iterator = iter(build_train_loader(cfg, start_iter=0))
    for _ in range(max(workers, 1)):
        next(loader)
    start = time.perf_counter()
    for _ in range(batches):
        next(loader)
    return batches * cfg.SOLVER.IMS_PER_BATCH / (time.perf_counter() - start)


if __name__ == "__main__":
    main()
