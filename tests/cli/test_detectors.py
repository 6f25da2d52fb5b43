"""What ``detnas predict`` and ``detnas export`` take for the detector, and what they do with it."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from detnas_d2.cli.detectors import Detector, find_detector
from detnas_d2.cli.main import main
from detnas_d2.config.tools import load_config, short_yaml
from detnas_d2.pipeline import latency_record
from detnas_d2.pipeline.export_record import EXPORTS_FILE, read_exports
from detnas_d2.pipeline.latency_record import read_latency
from detnas_d2.utils.errors import InputError
from tests.catalogs import own_names


def test_trained_before_found_before_nothing(tmp_path: Path) -> None:
    def write(*names: str) -> None:
        for name in names:
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).write_text("x")

    write("notes.txt", "searched/config.yaml")  # begun
    with pytest.raises(InputError, match="no trained detector; expected config.yaml and model_f"):
        find_detector(str(tmp_path))
    write("search/best_inherited.yaml", "search/best_inherited.pth")
    search = str(tmp_path / "search")
    inherited = Detector(
        f"{search}/best_inherited.yaml", ("MODEL.WEIGHTS", f"{search}/best_inherited.pth")
    )
    assert find_detector(str(tmp_path)) == find_detector(search) == inherited
    write("searched/model_final.pth")
    searched = str(tmp_path / "searched")
    trained = Detector(f"{searched}/config.yaml", ("MODEL.WEIGHTS", f"{searched}/model_final.pth"))
    assert find_detector(str(tmp_path)) == find_detector(searched) == trained
    config = f"{searched}/config.yaml"
    assert find_detector(config) == Detector(config)


def test_predict_tells_the_detections_and_draws_them(
    run_folder: Path, photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["predict", str(run_folder), str(photo), "--output", str(tmp_path / "out")]
    main([*words, "--score", "0", "--json"])
    result = json.loads(capsys.readouterr().out)
    (image,) = result["images"]
    assert image["file"] == str(photo) and image["picture"] == str(tmp_path / "out" / "photo.png")
    assert len(image["detections"]) > 0
    for found in image["detections"]:
        x1, y1, x2, y2 = found["box"]
        assert 0 <= x1 < x2 <= 80 and 0 <= y1 < y2 <= 60
        assert 0 <= found["score"] <= 1 and found["class"] in (0, 1, 2)
    with Image.open(image["picture"]) as picture:
        assert picture.size == (80, 60)
    main([*words, "--score", "1"])
    assert capsys.readouterr().out == f"{image['picture']}: 0 detections\n"


@pytest.mark.parametrize("told_as", ["json", "text"])
def test_predict_tells_what_it_found_besides_what_it_could_not_read(
    run_folder: Path,
    photo: Path,
    tmp_path: Path,
    told_as: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "broken.jpg").write_bytes(b"")
    words = ["predict", str(run_folder), str(tmp_path / "broken.jpg"), str(photo)]
    words += ["--output", str(tmp_path / "out"), "--score", "1"]
    with pytest.raises(InputError, match="^1 of 2 files could not be read$"):
        main([*words, *(["--json"] if told_as == "json" else [])])
    shown = capsys.readouterr()
    assert f"skipped {tmp_path / 'broken.jpg'}: the file is empty" in shown.err
    if told_as == "text":
        assert shown.out.endswith("photo.png: 0 detections\n")
        return
    result = json.loads(shown.out)
    assert [image["file"] for image in result["images"]] == [str(photo)]
    assert result["error"] == "1 of 2 files could not be read"


def test_pictures_of_images_without_an_extension(
    run_folder: Path, photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "noext").write_bytes(photo.read_bytes())
    words = ["predict", str(run_folder), str(tmp_path / "noext"), "--score", "1"]
    main([*words, "--output", str(tmp_path / "out")])
    assert capsys.readouterr().out == f"{tmp_path / 'out' / 'noext.png'}: 0 detections\n"
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match=r"notes\.txt: a file that is no image; expected a folder"):
        main([*words, "--output", str(tmp_path / "notes.txt")])
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_export_writes_a_file_that_agrees(
    run_folder: Path, photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["export", str(run_folder), "--image", str(photo), "--output", str(tmp_path / "out")]
    main([*words, "--part", "backbone", "--json"])
    result = json.loads(capsys.readouterr().out)
    assert result["file"] == str(tmp_path / "out" / "model.ts") and Path(result["file"]).exists()
    assert result["outputs"] and max(result["differences"]) <= result["tolerance"] == 1e-4
    with pytest.raises(InputError, match="^--evaluate needs --part model"):
        main([*words, "--part", "backbone", "--evaluate"])
    with pytest.raises(InputError, match="--output .*photo.*: a file; expected a folder"):
        main(["export", str(run_folder), "--output", str(photo)])


def test_export_keeps_an_evaluation_for_the_page(
    run_folder: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    truth = images / "test" / "_annotations.coco.json"
    content = json.loads(truth.read_text())
    content["categories"].append({"id": 3, "name": "none"})  # the detector has three classes
    truth.write_text(json.dumps(content))
    config = run_folder / "searched" / "config.yaml"
    cfg = load_config(str(config))
    cfg.DATASETS.REGISTER = [
        {
            "NAME": "lights",
            "FORMAT": "coco",
            "IMAGES": str(images / "test"),
            "ANNOTATIONS": str(truth),
        }
    ]
    cfg.DATASETS.TRAIN = cfg.DATASETS.TEST = ("lights",)
    config.write_text(short_yaml(cfg))
    words = ["export", str(run_folder), "--output", str(tmp_path / "out"), "--format", "onnx"]
    with own_names():
        main([*words, "--evaluate", "--json"])
    result = json.loads(capsys.readouterr().out)
    assert result["kept"] == str(run_folder / "searched" / EXPORTS_FILE)
    (record,) = read_exports(str(run_folder / "searched"))
    assert (record.format, record.file, record.dataset) == ("onnx", "model.onnx", "lights")
    told = {key: value for key, value in result["results"]["bbox"].items() if value is not None}
    assert record.exported == {f"bbox/{key}": value for key, value in told.items()}
    assert "bbox/AP" in record.eager and record.weights == "model_final.pth"
    # A config alone may lie anywhere.
    cfg.MODEL.WEIGHTS = str(config.with_name("model_final.pth"))
    config.write_text(short_yaml(cfg))
    with own_names():
        main(["export", str(config), *words[2:], "--evaluate", "--json"])
    assert json.loads(capsys.readouterr().out)["kept"] == ""


def test_latency_is_measured_on_this_machine(
    run_folder: Path, photo: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["latency", str(run_folder), "--image", str(photo), "--runs", "3"]
    threads = torch.get_num_threads()
    main([*words, "--runtime", "pytorch,onnxruntime", "--threads", "1", "--json"])
    result = json.loads(capsys.readouterr().out)
    assert list(result["runtimes"]) == ["pytorch", "onnxruntime"] and result["not_measured"] == {}
    for told in result["runtimes"].values():
        assert 0 < told["low"] <= told["milliseconds"] <= told["high"]
        assert min(told["before"], told["network"], told["after"]) > 0
        assert told["network"] < told["high"] and told["difference"] < 1e-4
        assert told["device"] == "cpu" and told["version"]
    assert result["parts"]["backbone"] > 0 and min(result["parts"].values()) >= 0
    assert (result["threads"], result["runs"], result["warm_up"]) == (1, 3, 3)
    assert len(result["cpus"]) >= 1
    # As it is tested: the shorter side 64.
    assert (result["picture"], result["height"], result["width"]) == ([60, 80], 64, 85)
    assert torch.get_num_threads() == threads
    # It is kept beside the detector, as long as that is the same.
    folder = run_folder / "searched"
    assert result["kept"] == str(folder / "measured_latency.json")
    record = read_latency(str(folder))
    assert record is not None and record.first == "pytorch"
    assert record.milliseconds == result["runtimes"]["pytorch"]["milliseconds"]
    assert (record.batch, record.parts) == (1, result["parts"])
    assert record.conditions.startswith("one image of 64 x 85 pixels in PyTorch on ")
    assert record.conditions.endswith(", 1 thread") and "PyTorch" in record.versions
    assert record.conditions_of("onnxruntime") == record.conditions.replace(
        "PyTorch", "ONNX Runtime"
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--runs", "1"], "--runs 1: expected 2 or more"),
        (
            ["--runtime", "pytorch,tflite"],
            "--runtime tflite: expected some of pytorch, onnxruntime,",
        ),
        (["--size", "64"], "--size 64: expected HEIGHTxWIDTH in pixels"),
        (["--size", "64x64", "--image", "a.png"], "--image and --size: expected one of them"),
    ],
)
def test_options_of_latency(run_folder: Path, words: list[str], message: str) -> None:
    with pytest.raises(InputError, match=f"^{message}"):
        main(["latency", str(run_folder), *words])


def test_the_members_of_a_front(run_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = run_folder / "searched"
    cfg = load_config(str(folder / "config.yaml"))
    cfg.MODEL.WEIGHTS = str(folder / "model_final.pth")
    front = run_folder / "front.yaml"
    front.write_text(
        "members:\n- {fitness: 1.5, macs: 100, path: a}\n- {fitness: 2.5, macs: 200, path: b}\n"
    )
    words = ["latency", str(front), "--size", "48x64", "--runs", "2", "--runtime", "pytorch"]
    with pytest.raises(InputError, match=r"front/1\.yaml: missing, .*front\.yaml; resume the"):
        main(words)
    (run_folder / "front").mkdir()
    for number in (1, 2):
        (run_folder / "front" / f"{number}.yaml").write_text(short_yaml(cfg))
    main(words)
    told = capsys.readouterr().out.splitlines()
    assert "one image of 48 x 64 pixels, seen as 64 x 85;" in told[0]
    assert told[1].split()[:3] == ["number", "fitness", "macs"] and "PyTorch, ms" in told[1]
    assert [line.split()[:3] for line in told[2:]] == [["1", "1.50", "100"], ["2", "2.50", "200"]]
    front.write_text("members: []\n")
    with pytest.raises(InputError, match=r"front\.yaml: members: expected the front"):
        main(words)


def test_a_latency_that_cannot_be_kept_is_told(
    run_folder: Path, photo: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    def refuse(file: str, *args: object, **options: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", file)

    monkeypatch.setattr(latency_record, "write_json", refuse)
    words = ["--image", str(photo), "--runs", "2", "--runtime", "pytorch"]
    main(["latency", str(run_folder), *words])
    told = capsys.readouterr()
    assert "one image of 60 x 80 pixels, seen as 64 x 85; threads: " in told.out
    assert "kept in" not in told.out
    (note,) = [line for line in told.err.splitlines() if line.startswith("note: ")]
    assert note.startswith("note: not kept for the report: ") and note.endswith("denied")
    # A config alone may lie where nothing is to be written.
    weights = str(run_folder / "searched" / "model_final.pth")
    cfg = load_config(str(run_folder / "searched" / "config.yaml"), ["MODEL.WEIGHTS", weights])
    config = run_folder / "other.yaml"
    config.write_text(short_yaml(cfg))
    main(["latency", str(config), *words])
    assert "note: " not in capsys.readouterr().err
    assert not (run_folder / "measured_latency.json").exists()
