"""Times ``detnas check`` on a folder of many images: the first time, and again.

    python benchmarks/check_data.py --images 100000 --format yolo

The images are hard links of one small file, each with an annotation of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from PIL import Image

SIZE = 64, 48
CLASSES = ("cat", "dog", "owl")
PER_FOLDER = 10_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--boxes", type=int, default=5, help="in each image")
    parser.add_argument("--format", choices=("yolo", "voc", "coco", "csv"), default="yolo")
    parser.add_argument("--folder", help="is made here and kept (default: a temporary one)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        data = Path(args.folder or temporary, f"{args.format}_{args.images}")
        if not data.exists():
            write(data, args.format, args.images, args.boxes)
        print(f"{args.format}, {args.images} images, {args.boxes} boxes in each")
        for when in ("first", "again", "again"):
            wall, cpu = timed(data, Path(temporary, "cache"))
            print(f"{when}: {wall:.2f} s, {cpu:.2f} s of processor time", flush=True)


def timed(data: Path, cache: Path) -> tuple[float, float]:
    """Seconds of one command: wall clock, and processor time."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", "detnas_d2", "check", "--data", str(data)],
        env={**os.environ, "XDG_CACHE_HOME": str(cache)},
        stdout=subprocess.DEVNULL,
        check=True,
    )
    wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def write(data: Path, format: str, number: int, boxes: int) -> None:
    """A folder of ``number`` images in one of the formats."""
    data.mkdir(parents=True)
    one = data.parent / "one.jpg"
    Image.new("RGB", SIZE, (90, 120, 30)).save(one)
    names = [f"{i // PER_FOLDER:03d}/{i:07d}" for i in range(number)]
    found = {name: [box(i, k) for k in range(boxes)] for i, name in enumerate(names)}
    for folder in {name.split("/")[0] for name in names}:
        for kind in ("images", "labels"):
            (data / kind / folder).mkdir(parents=True)
    for i, name in enumerate(names):
        if i % 50_000 == 0:  # a file has 65,000 links at most
            Image.open(one).save(data.parent / f"one{i}.jpg", quality="keep")
            source = data.parent / f"one{i}.jpg"
        os.link(source, data / "images" / f"{name}.jpg")
    WRITERS[format](data, found)


def box(image: int, number: int) -> tuple[int, int, int, int, int]:
    """Class and edges, from 0, the last outside."""
    left, top = (7 * image + 11 * number) % 30, (5 * image + 3 * number) % 20
    return image % len(CLASSES), left, top, left + 10 + image % 20, top + 8 + number


def write_yolo(data: Path, found: dict) -> None:
    for name, boxes in found.items():
        lines = [
            f"{c} {(a + b) / 2 / SIZE[0]} {(t + d) / 2 / SIZE[1]} {(b - a) / SIZE[0]} "
            f"{(d - t) / SIZE[1]}\n"
            for c, a, t, b, d in boxes
        ]
        (data / "labels" / f"{name}.txt").write_text("".join(lines))
    (data / "data.yaml").write_text(f"train: images\nnames: [{', '.join(CLASSES)}]\n")


def write_voc(data: Path, found: dict) -> None:
    for name, boxes in found.items():
        objects = "".join(
            f"<object><name>{CLASSES[c]}</name><pose>Unspecified</pose><truncated>0</truncated>"
            f"<difficult>0</difficult><bndbox><xmin>{a + 1}</xmin><ymin>{t + 1}</ymin>"
            f"<xmax>{b}</xmax><ymax>{d}</ymax></bndbox></object>\n"
            for c, a, t, b, d in boxes
        )
        text = f"<size><width>{SIZE[0]}</width><height>{SIZE[1]}</height><depth>3</depth></size>"
        (data / "labels" / f"{name}.xml").write_text(f"<annotation>{text}{objects}</annotation>")


def write_coco(data: Path, found: dict) -> None:
    images = [
        {"id": i, "file_name": f"{name}.jpg", "width": SIZE[0], "height": SIZE[1]}
        for i, name in enumerate(found)
    ]
    rows = [(i, b) for i, boxes in enumerate(found.values()) for b in boxes]
    annotations = [
        {
            "id": k,
            "image_id": i,
            "category_id": c + 1,
            "bbox": [x, y, b - x, d - y],
            "area": (b - x) * (d - y),
            "iscrowd": 0,
        }
        for k, (i, (c, x, y, b, d)) in enumerate(rows, start=1)
    ]
    categories = [{"id": i, "name": name} for i, name in enumerate(CLASSES, start=1)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (data / "labels.json").write_text(json.dumps(content))


def write_csv(data: Path, found: dict) -> None:
    lines = ["filename,width,height,class,xmin,ymin,xmax,ymax"]
    lines += [
        f"{name}.jpg,{SIZE[0]},{SIZE[1]},{CLASSES[c]},{a},{t},{b},{d}"
        for name, boxes in found.items()
        for c, a, t, b, d in boxes
    ]
    (data / "labels.csv").write_text("\n".join(lines))


WRITERS = {"yolo": write_yolo, "voc": write_voc, "coco": write_coco, "csv": write_csv}

if __name__ == "__main__":
    main()
