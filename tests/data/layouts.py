"""Folders of labelled images as their producers write them, with two boxes in every image."""

from __future__ import annotations

import json
import os

from detectron2.data import DatasetCatalog, MetadataCatalog

BOXES = [("cat", (4, 6, 24, 26)), ("dog", (10, 2, 30, 22))]  # edges, from 0, the last outside
SIZE = (40, 30)


def images(folder, number, write_image, first=0, name="{}.jpg", size=SIZE):
    names = [name.format(i) for i in range(first, first + number)]
    for i, file in enumerate(names, start=first):
        write_image(folder / file, *size, seed=i)
    return names


def coco_data(names, prefix="", categories=("cat", "dog"), first=1, **more):
    """One box of each of BOXES in every image."""
    labels = {label: first + i for i, label in enumerate(categories)}
    data = {
        "info": {"description": "", "year": 2026},
        "licenses": [],
        "categories": [
            {"id": i, "name": label, "supercategory": ""} for label, i in labels.items()
        ],
        "images": [
            {"id": i, "file_name": prefix + file, "width": SIZE[0], "height": SIZE[1]}
            for i, file in enumerate(names)
        ],
        "annotations": [],
    }
    for image in data["images"]:
        for label, (x0, y0, x1, y1) in BOXES:
            data["annotations"].append(
                {
                    "id": len(data["annotations"]),
                    "image_id": image["id"],
                    "category_id": labels[label],
                    "bbox": [x0, y0, x1 - x0, y1 - y0],
                    "area": (x1 - x0) * (y1 - y0),
                    "iscrowd": 0,
                    "segmentation": [],
                }
            )
    return {**data, **more}


def write_json(path, data):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(data), encoding="utf-8")


def voc_xml(file):
    """As LabelImg writes it."""
    objects = "".join(
        f"""
	<object>
		<name>{label}</name>
		<pose>Unspecified</pose>
		<truncated>0</truncated>
		<difficult>0</difficult>
		<bndbox>
			<xmin>{x0 + 1}</xmin>
			<ymin>{y0 + 1}</ymin>
			<xmax>{x1}</xmax>
			<ymax>{y1}</ymax>
		</bndbox>
	</object>"""
        for label, (x0, y0, x1, y1) in BOXES
    )
    return f"""<annotation>
	<folder>x</folder>
	<filename>{file}</filename>
	<path>/home/me/x/{file}</path>
	<source>
		<database>Unknown</database>
	</source>
	<size>
		<width>{SIZE[0]}</width>
		<height>{SIZE[1]}</height>
		<depth>3</depth>
	</size>
	<segmented>0</segmented>{objects}
</annotation>
"""


def write_xml(folder, names):
    folder.mkdir(parents=True, exist_ok=True)
    for file in names:
        stem = os.path.splitext(file)[0]
        (folder / f"{stem}.xml").write_text(voc_xml(file), encoding="utf-8")


def yolo_lines(segments=False):
    lines = []
    for label, (x0, y0, x1, y1) in enumerate(box for _, box in BOXES):
        xs, ys = [x / SIZE[0] for x in (x0, x1)], [y / SIZE[1] for y in (y0, y1)]
        values = [sum(xs) / 2, sum(ys) / 2, xs[1] - xs[0], ys[1] - ys[0]]
        if segments:
            values = [
                xs[0],
                ys[0],
                xs[1],
                ys[0],
                xs[1],
                ys[1],
                xs[0],
                ys[1],
                (xs[0] + xs[1]) / 2,
                ys[0],
            ]
        lines.append(f"{label} {' '.join(f'{v:.6f}' for v in values)}\n")
    return "".join(lines)


def write_yolo(folder, names, write_image, first=0, **options):
    """``folder``: of the images; labels beside it."""
    made = images(folder, names, write_image, first)
    labels = folder.parent / folder.name.replace("images", "labels")
    if folder.name != "images":
        labels = folder.parent.parent / "labels" / folder.name
    labels.mkdir(parents=True, exist_ok=True)
    for file in made:
        (labels / file).with_suffix(".txt").write_text(yolo_lines(**options))


CSV_HEAD = "filename,width,height,class,xmin,ymin,xmax,ymax\n"


def csv_text(names):
    return CSV_HEAD + "".join(
        f"{file},{SIZE[0]},{SIZE[1]},{label},{','.join(map(str, box))}\n"
        for file in names
        for label, box in BOXES
    )


def roboflow(folder, split, number, write_image, first=0):
    names = images(folder / split, number, write_image, first, f"{{}}_jpg.rf.{first:032x}.jpg")
    data = coco_data(names, categories=("animals", "cat", "dog"), first=0)
    for category in data["categories"]:
        category["supercategory"] = "animals" if category["id"] else "none"
    data["info"] |= {"contributor": "", "url": "https://public.roboflow.com/object-detection/x"}
    write_json(folder / split / "_annotations.coco.json", data)
    return names


def voc(data, write_image, annotations="Annotations", pictures="JPEGImages", number=10):
    names = images(data / pictures, number, write_image, name="{:06d}.jpg")
    write_xml(data / annotations, names)
    return [os.path.splitext(name)[0] for name in names]


def write_lists(data, **lists):
    folder = data / "ImageSets" / "Main"
    folder.mkdir(parents=True)
    for name, ids in lists.items():
        (folder / f"{name}.txt").write_text("".join(f"{i}\n" for i in ids))


def boxes_of(name):
    """Image -> {(class, edges)} as training reads them."""
    classes = MetadataCatalog.get(name).thing_classes
    found = {}
    for record in DatasetCatalog.get(name):
        edges = []
        for item in record["annotations"]:
            x, y, a, b = item["bbox"]
            box = (x, y, a, b) if item["bbox_mode"] == 0 else (x, y, x + a, y + b)
            edges.append((classes[item["category_id"]], tuple(round(v, 3) for v in box)))
        found[os.path.basename(record["file_name"])] = sorted(edges)
    return found


def assert_same(found, train, test, val=0):
    """Numbers of images, and the boxes of each as they were written."""
    assert found.images[found.train] == train and found.images[found.test] == test
    assert bool(found.val) == bool(val) and (not val or found.images[found.val] == val)
    for name, number in ((found.train, train), (found.test, test)):
        boxes = boxes_of(name)
        assert len(boxes) == number
        assert all(item == sorted(BOXES) for item in boxes.values())
    assert found.classes == tuple(MetadataCatalog.get(found.train).thing_classes)
