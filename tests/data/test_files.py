"""Samples in files: images with boxes or masks, tables, recordings; what is wrong in them is named."""

from __future__ import annotations

import json
import wave
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import secateurs as sc
from secateurs import models
from secateurs.data import Data, Named, evaluate, open_data
from secateurs.data.sizes import input_shape
from secateurs.data.tasks import asked_task
from secateurs.errors import DataError
from secateurs.models import Loaded

NETWORKS = """
import torch
from torch import nn
import secateurs as sc

def images(outputs=4):
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 6, 3, 2, 1), nn.ReLU(), nn.Conv2d(6, outputs, 1))

def classes(outputs=3):
    return nn.Sequential(images(outputs), nn.AdaptiveAvgPool2d(1), nn.Flatten())

def numbers(inputs=3, outputs=2):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(inputs, 8), nn.ReLU(), nn.Linear(8, outputs))

def sound():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv1d(1, 4, 9, 4), nn.ReLU(), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(4, 2))

def detect():
    return sc.task("detection", loss=lambda outputs, batch: outputs.mean(), decode=lambda outputs, batch: [
        {"boxes": one["boxes"], "labels": one["labels"], "scores": torch.ones(len(one["labels"]))} for one in batch[1]
    ])

def no_task():
    return 3
"""


@pytest.fixture
def open_(tmp_path: Path) -> Callable[..., Data]:
    """Opens data for one of the networks above."""
    (tmp_path / "nets.py").write_text(NETWORKS)

    def opened(text: str, network: str = "images?size=16", task: Any = None, normalize: str | None = "none") -> Data:
        loaded = network_of(tmp_path, network, normalize)
        return open_data(text, loaded, task=asked_task(task, None, None))

    return opened


def network_of(folder: Path, name: str, normalize: str | None = "none", **shape: Any) -> Loaded:
    return models.load(f"{folder}/nets.py:{name}", normalize=normalize, **shape)


def picture(path: Path, width: int = 32, height: int = 16, value: int = 90) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (width, height), (value, 0, 0)).save(path)


def coco(folder: Path, part: str, count: int = 6, **change: Any) -> Path:
    """A part of COCO's form; ``change`` replaces the first annotation's entries."""
    for number in range(count):
        picture(folder / part / f"{number}.png")
    annotations = [
        {"id": 10 + n, "image_id": n, "category_id": 5 + n % 2, "bbox": [4, 2, 8, 6], "iscrowd": 0}
        for n in range(count)
    ]
    annotations[0].update(change)
    held = {
        "images": [{"id": number, "file_name": f"{number}.png"} for number in range(count)],
        "annotations": annotations,
        "categories": [{"id": 6, "name": "b"}, {"id": 5, "name": "a"}],
    }
    file = folder / "annotations" / f"instances_{part}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(held))
    return file


def test_coco(open_: Callable[..., Data], tmp_path: Path) -> None:
    coco(tmp_path / "c", "train2017")
    coco(tmp_path / "c", "val2017", 3)
    data = open_(f"coco:{tmp_path}/c", task=f"{tmp_path}/nets.py:detect")
    images, targets = data.test.batch(np.arange(2))
    assert images.shape == (2, 3, 16, 16)
    assert float(images[0, 0, 7, 15]) == pytest.approx(90 / 255)
    assert float(images[0, 0, 12, 15]) == pytest.approx(114 / 255)  # a letterbox: 32 x 16 at half its size, top left
    assert targets[0]["boxes"].tolist() == [[2.0, 1.0, 6.0, 4.0]]
    assert [int(one["labels"]) for one in targets] == [0, 1]
    assert (len(data.train) + len(data.validation), len(data.test)) == (6, 3)
    found = evaluate(network_of(tmp_path, "images?size=16").module, data.test, data.task)
    assert found.value == pytest.approx(1)
    numbered = open_(f"coco:{tmp_path}/c?labels=ids&fit=stretch&order=bgr", task=f"{tmp_path}/nets.py:detect")
    images, targets = numbered.test.batch(np.arange(2))
    assert [int(one["labels"]) for one in targets] == [5, 6]
    assert targets[0]["boxes"].tolist() == [[2.0, 2.0, 6.0, 8.0]]
    assert float(images[0, 2, 12, 15]) == pytest.approx(90 / 255)


def yolo(folder: Path, line: str = "1 0.25 0.5 0.25 0.5", count: int = 5) -> Path:
    for number in range(count):
        picture(folder / "images" / "train" / f"{number}.jpg")
        label = folder / "labels" / "train" / f"{number}.txt"
        label.parent.mkdir(parents=True, exist_ok=True)
        label.write_text(line if number == 0 else "0 0.5 0.5 1 1\n")
    file = folder / "data.yaml"
    file.write_text("train: images/train\nval: images/train\nnames: [cat, dog]\n")
    return file


def test_yolo(open_: Callable[..., Data], tmp_path: Path) -> None:
    file = yolo(tmp_path / "y")
    (tmp_path / "y" / "labels" / "train" / "4.txt").unlink()
    data = open_(f"yolo:{file}", task=f"{tmp_path}/nets.py:detect")
    _, targets = data.test.batch(np.array([0, 4]))
    assert targets[0]["boxes"].tolist() == [[2.0, 2.0, 6.0, 6.0]]
    assert targets[0]["labels"].tolist() == [1]
    assert targets[1]["boxes"].shape == (0, 4)
    assert "1 of 5 images of images/train have no file of boxes" in data.notes[0]
    polygon = open_(f"yolo:{yolo(tmp_path / 'z', '0 0.1 0.2 0.5 0.2 0.3 0.6')}", task=f"{tmp_path}/nets.py:detect")
    boxes = polygon.test.batch(np.array([0]))[1][0]["boxes"]
    assert torch.allclose(boxes, torch.tensor([[1.6, 1.6, 8.0, 4.8]]), atol=1e-4)


def masks(folder: Path, count: int = 6, size: tuple[int, int] = (32, 16), value: int = 2) -> Path:
    for number in range(count):
        picture(folder / "images" / f"{number}.jpg")
        (folder / "masks").mkdir(parents=True, exist_ok=True)
        mask = np.full((size[1] if number == 0 else 16, size[0] if number == 0 else 32), value, np.uint8)
        mask[:4] = 255
        Image.fromarray(mask).save(folder / "masks" / f"{number}.png")
    return folder


def test_segmentation(open_: Callable[..., Data], tmp_path: Path) -> None:
    data = open_(f"segmentation:{masks(tmp_path / 's')}")
    assert data.task.kind == "segmentation"
    images, targets = data.train.batch(np.arange(2))
    assert images.shape == (2, 3, 16, 16)
    assert targets.shape == (2, 16, 16)
    assert targets[0].unique().tolist() == [2, 255]
    assert "There is no test part" in data.notes[0]
    assert 0 <= evaluate(network_of(tmp_path, "images?size=16").module, data.test, data.task).value <= 1


def test_parts_of_segmentation(open_: Callable[..., Data], tmp_path: Path) -> None:
    for part, inner in (("train", "images/train"), ("val", "images/val")):
        made = masks(tmp_path / part, 3)
        for kind in ("images", "masks"):
            target = tmp_path / "s" / inner.replace("images", kind)
            target.parent.mkdir(parents=True, exist_ok=True)
            (made / kind).rename(target)
    data = open_(f"segmentation:{tmp_path}/s")
    assert (len(data.train) + len(data.validation), len(data.test)) == (3, 3)


def table(path: Path, head: str, *rows: str) -> Path:
    path.write_text("\n".join([head, *rows]) + "\n")
    return path


def test_tables_of_numbers(open_: Callable[..., Data], tmp_path: Path) -> None:
    rows = [f"{n},{n / 2},{-n},{n % 2}" for n in range(20)]
    file = table(tmp_path / "t.csv", "a,b,c,label", *rows)
    loaded = models.load(f"{tmp_path}/nets.py:numbers", input_shape=(3,))
    data = open_data(f"csv:{file}", loaded)
    assert data.task.kind == "classification"
    inputs, targets = data.test.batch(np.arange(3))
    assert inputs.shape == (3, 3)
    assert targets.dtype == torch.int64
    assert 0 <= evaluate(loaded.module, data.test, data.task).top1 <= 1
    data = open_data(f"csv:{file}?target=c&inputs=a,b,label", loaded, task=sc.task("regression"))
    inputs, targets = data.train.batch(np.arange(2))
    assert targets.dtype == torch.float32
    assert torch.equal(inputs[:, 0], -targets)
    words = table(
        tmp_path / "w.csv", "a;kind;part", *(f"{n};{'xy'[n % 2]};{'test' if n > 5 else 'train'}" for n in range(8))
    )
    data = open_data(
        f"csv:{words}?target=kind&split=part", models.load(f"{tmp_path}/nets.py:numbers?inputs=1", input_shape=(1,))
    )
    assert len(data.test) == 2
    assert data.test.batch(np.arange(2))[1].tolist() == [0, 1]


def test_tables_of_images(open_: Callable[..., Data], tmp_path: Path) -> None:
    for number in range(6):
        picture(tmp_path / "p" / f"{number}.png", value=number)
    file = table(tmp_path / "t.csv", "image,label", *(f"p/{n}.png,{n % 3}" for n in range(6)))
    data = open_(f"csv:{file}", "classes?size=16")
    images, targets = data.test.batch(np.arange(1))
    assert images.shape == (1, 3, 16, 16)
    assert int(targets[0]) == round(float(images[0, 0, 0, 0] * 255)) % 3


def sound(path: Path, rate: int = 100, length: int = 80, width: int = 2) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(width)
        file.setframerate(rate)
        high = {1: b"\xff", 2: b"\xff\x7f", 3: b"\xff\xff\x7f", 4: b"\xff\xff\xff\x7f"}[width]
        file.writeframes(high * length)


@pytest.mark.parametrize("width", [1, 2, 3, 4])
def test_recordings(width: int, open_: Callable[..., Data], tmp_path: Path) -> None:
    for number in range(10):
        sound(tmp_path / "a" / ("yes" if number % 2 else "no") / f"{number}.wav", width=width)
    named = Named(f"audio:{tmp_path}/a")
    loaded = models.load(f"{tmp_path}/nets.py:sound", otherwise=lambda module: input_shape(named, module))
    assert loaded.input_shape == (1, 80)
    data = open_data(named, loaded)
    inputs, targets = data.train.batch(np.arange(2))
    assert inputs.shape == (2, 1, 80)
    assert float(inputs.max()) == pytest.approx(1, abs=1e-2)
    assert set(targets.tolist()) <= {0, 1}
    assert "100 samples per second" in data.notes[0]


def test_broken_samples_are_named_or_left_out(open_: Callable[..., Data], tmp_path: Path) -> None:
    folder = masks(tmp_path / "s", 12)
    (folder / "images" / "3.jpg").write_bytes(b"no image")
    (folder / "masks" / "5.png").write_bytes(b"no mask")
    with pytest.raises(DataError, match=r"Image .*3\.jpg cannot be decoded|Mask .*5\.png cannot be decoded"):
        read_all(lambda: open_(f"segmentation:{folder}"))
    data = open_(f"segmentation:{folder}?broken=skip")
    assert len(data.train) + len(data.validation) + len(data.test) == 10
    assert any("broken and left out. The first:" in note for note in data.notes)
    for part in (data.train, data.validation, data.test):
        part.prepare()


def read_all(opened: Callable[[], Data]) -> None:
    """Opens data and reads every sample."""
    data = opened()
    for part in (data.train, data.validation, data.test):
        part.prepare()


def _wrong(kind: str, folder: Path) -> str:
    """Data with this mistake."""
    if kind in ("outside", "sides turned"):
        coco(folder / "c", "train", bbox=[20, 2, 18, 6] if kind == "outside" else [8, 6, -4, -4])
    elif kind == "no images":
        coco(folder / "c", "train")
        for path in (folder / "c" / "train").iterdir():
            path.unlink()
    elif kind in ("unknown image", "unknown category"):
        coco(folder / "c", "train", **({"image_id": 99} if kind == "unknown image" else {"category_id": 1}))
    elif kind == "no COCO":
        coco(folder / "c", "train").write_text('{"images": [{"name": 1}]}')
    elif kind == "no JSON":
        coco(folder / "c", "train").write_text("{")
    elif kind == "no annotations":
        (folder / "c").mkdir()
    if (folder / "c").exists():
        return f"coco:{folder}/c"
    lines = {
        "yolo outside": "0 0.9 0.5 0.4 0.5",
        "yolo class": "7 0.5 0.5 1 1",
        "yolo words": "cat 1 2 3 4",
        "yolo few": "0 1 2",
    }
    if kind in lines:
        return f"yolo:{yolo(folder / 'y', lines[kind])}"
    if kind == "yolo without boxes":
        file = yolo(folder / "y")
        for path in (folder / "y" / "labels" / "train").iterdir():
            path.unlink()
        return f"yolo:{file}"
    if kind == "mask of another size":
        return f"segmentation:{masks(folder / 's', size=(30, 16))}"
    if kind == "mask of other classes":
        return f"segmentation:{masks(folder / 's', value=9)}"
    made = masks(folder / "s")
    if kind == "image without mask":
        (made / "masks" / "2.png").unlink()
    elif kind == "coloured mask":
        picture(made / "masks" / "0.png")
    return f"segmentation:{made}"


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (
            "outside",
            r"Annotation 10 of .* has a box \[20.0, 2.0, 38.0, 8.0\].*not inside its image .*0\.png of 32 x 16",
        ),
        ("sides turned", r"Annotation 10 of .* has a box .*are the sides given in another order"),
        ("no images", r"names 6 images, and none of them is in .*images=DIR"),
        ("unknown image", r"Annotation 10 of .* is of image 99, which the file does not list"),
        ("unknown category", r"has category 1, which it does not list"),
        ("no COCO", r"is not of COCO's form"),
        ("no JSON", r"cannot be read"),
        ("no annotations", r"has no annotations"),
        ("yolo outside", r"Line 1 of .*0\.txt has a box .*not inside its image"),
        ("yolo class", r"Line 1 of .*0\.txt has class 7, and there are 2"),
        ("yolo words", r"Line 1 of .* which are no numbers"),
        ("yolo few", r"Line 1 of .* has 3 numbers"),
        ("yolo without boxes", r"None of the 5 images .* has a file of boxes"),
        ("mask of another size", r"Mask .*0\.png has 30 x 16 pixels, its image .*0\.jpg 32 x 16"),
        ("mask of other classes", r"has class 9, and the network has 4 outputs"),
        ("image without mask", r"1 of 6 images in .* have no mask in .*2\.jpg"),
        ("coloured mask", r"has colours .RGB., not class indices"),
    ],
)
def test_mistakes_are_one_paragraph(kind: str, message: str, open_: Callable[..., Data], tmp_path: Path) -> None:
    text, task = _wrong(kind, tmp_path), None if "mask" in kind else f"{tmp_path}/nets.py:detect"
    with pytest.raises(DataError, match=message) as caught:
        read_all(lambda: open_(text, task=task))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "network", "message"),
    [
        ("coco:{}/none", "images?size=16", "does not exist"),
        ("yolo:{}/none.yaml", "images?size=16", "does not exist"),
        ("segmentation:{}/none", "images?size=16", "does not exist"),
        ("segmentation:{}", "images?size=16", "has no images/ and masks/"),
        ("csv:{}/none.csv", "classes?size=16", "does not exist"),
        ("csv:{}/t.csv", "classes?size=16", "has no column of them: name it with .image=COLUMN"),
        ("csv:{}/t.csv?image=b&target=z", "classes?size=16", "has no column 'z'. It has a, b"),
        ("csv:{}/e.csv", "classes?size=16", "has no rows"),
        ("audio:{}", "images?size=16", "gives samples of a recording"),
        ("segmentation:{}?colour=1", "images?size=16", "has no option 'colour'"),
        ("segmentation:{}?ignore=no", "images?size=16", "must be a whole number"),
        ("coco:{}?fit=crop", "images?size=16", "must be one of letterbox, stretch"),
    ],
)
def test_wrong_texts(text: str, network: str, message: str, open_: Callable[..., Data], tmp_path: Path) -> None:
    table(tmp_path / "t.csv", "a,b", "1,2")
    table(tmp_path / "e.csv", "a,b")
    with pytest.raises(DataError, match=message):
        open_(text.format(tmp_path), network)


def test_what_only_the_user_knows_is_asked_for(open_: Callable[..., Data], tmp_path: Path) -> None:
    coco(tmp_path / "c", "train")
    with pytest.raises(DataError, match=r"--task file\.py:make"):
        open_(f"coco:{tmp_path}/c")
    with pytest.raises(DataError, match=r"returned int, not a secateurs\.Task"):
        open_(f"coco:{tmp_path}/c", task=f"{tmp_path}/nets.py:no_task")
    with pytest.raises(DataError, match="does not say how pixels reach it"):
        open_(f"coco:{tmp_path}/c", task=f"{tmp_path}/nets.py:detect", normalize=None)


@pytest.mark.parametrize("text", ["x", ""])
def test_a_cell_that_is_no_number_is_named(text: str, tmp_path: Path) -> None:
    (tmp_path / "nets.py").write_text(NETWORKS)
    file = table(tmp_path / "t.csv", "a,b,c,label", *(f"{n},1,{text if n == 3 else 2},{n % 2}" for n in range(10)))
    loaded = models.load(f"{tmp_path}/nets.py:numbers", input_shape=(3,))
    with pytest.raises(DataError, match=r"Line 5 of .*t\.csv has .* in column 'c', which is no number"):
        read_all(lambda: open_data(f"csv:{file}", loaded))
    kept = open_data(f"csv:{file}?broken=skip", loaded)
    assert len(kept.train) + len(kept.validation) + len(kept.test) == 9
