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
# Folders of images and of annotations; of "xml" both are one, with all files in it.
LAYOUTS = {
    "yolo": ("images", "labels"),
    "voc": ("JPEGImages", "Annotations"),
    "voc-without-lists": ("images", "labels"),
    "xml": ("cells", "cells"),
    "coco": ("images", ""),
    "roboflow": ("train", "train"),
    "csv": ("images", ""),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--boxes", type=int, default=5, help="in each image")
    parser.add_argument("--format", choices=LAYOUTS, default="yolo")
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
    pictures, annotations = (data / name for name in LAYOUTS[format])
    start = "" if format == "xml" else "{:03d}/"
    names = [start.format(i // PER_FOLDER) + f"{i:07d}" for i in range(number)]
    found = {name: [box(i, k) for k in range(boxes)] for i, name in enumerate(names)}
    for folder in {os.path.dirname(name) for name in names}:
        for place in (pictures, annotations):
            (place / folder).mkdir(parents=True, exist_ok=True)
    for i, name in enumerate(names):
        if i % 50_000 == 0:  # a file has 65,000 links at most
            source = data.with_suffix(f".{i}.jpg")
            Image.new("RGB", SIZE, (90, 120, 30)).save(source)
        os.link(source, pictures / f"{name}.jpg")
    WRITERS[format](data, annotations, found)


def box(image: int, number: int) -> tuple[int, int, int, int, int]:
    """Class and edges, from 0, the last outside."""
    left, top = (7 * image + 11 * number) % 30, (5 * image + 3 * number) % 20
    return image % len(CLASSES), left, top, left + 10 + image % 20, top + 8 + number


def write_yolo(data: Path, labels: Path, found: dict) -> None:
    for name, boxes in found.items():
        lines = [
            f"{c} {(a + b) / 2 / SIZE[0]} {(t + d) / 2 / SIZE[1]} {(b - a) / SIZE[0]} "
            f"{(d - t) / SIZE[1]}\n"
            for c, a, t, b, d in boxes
        ]
        (labels / f"{name}.txt").write_text("".join(lines))
    (data / "data.yaml").write_text(f"train: images\nnames: [{', '.join(CLASSES)}]\n")


def write_xml(data: Path, annotations: Path, found: dict) -> None:
    for name, boxes in found.items():
        objects = "".join(
            f"<object><name>{CLASSES[c]}</name><pose>Unspecified</pose><truncated>0</truncated>"
            f"<difficult>0</difficult><bndbox><xmin>{a + 1}</xmin><ymin>{t + 1}</ymin>"
            f"<xmax>{b}</xmax><ymax>{d}</ymax></bndbox></object>\n"
            for c, a, t, b, d in boxes
        )
        text = f"<size><width>{SIZE[0]}</width><height>{SIZE[1]}</height><depth>3</depth></size>"
        (annotations / f"{name}.xml").write_text(f"<annotation>{text}{objects}</annotation>")


def write_voc(data: Path, annotations: Path, found: dict) -> None:
    write_xml(data, annotations, found)
    lists = data / "ImageSets" / "Main"
    lists.mkdir(parents=True)
    (lists / "trainval.txt").write_text("".join(f"{name}\n" for name in found))


def write_coco(data: Path, annotations: Path, found: dict) -> None:
    images = [
        {"id": i, "file_name": f"{name}.jpg", "width": SIZE[0], "height": SIZE[1]}
        for i, name in enumerate(found)
    ]
    rows = [(i, b) for i, boxes in enumerate(found.values()) for b in boxes]
    boxes = [
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
    content = {"images": images, "annotations": boxes, "categories": categories}
    name = "labels.json" if annotations == data else "_annotations.coco.json"
    (annotations / name).write_text(json.dumps(content))


def write_csv(data: Path, annotations: Path, found: dict) -> None:
    lines = ["filename,width,height,class,xmin,ymin,xmax,ymax"]
    lines += [
        f"{name}.jpg,{SIZE[0]},{SIZE[1]},{CLASSES[c]},{a},{t},{b},{d}"
        for name, boxes in found.items()
        for c, a, t, b, d in boxes
    ]
    (data / "labels.csv").write_text("\n".join(lines))


WRITERS = {
    "yolo": write_yolo,
    "voc": write_voc,
    "voc-without-lists": write_xml,
    "xml": write_xml,
    "coco": write_coco,
    "roboflow": write_coco,
    "csv": write_csv,
}

if __name__ == "__main__":
    main()
