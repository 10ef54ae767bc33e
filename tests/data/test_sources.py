from __future__ import annotations

import hashlib
import io
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from secateurs import models
from secateurs.data import open_data
from secateurs.data.decoding import EncodedImages, Sizing
from secateurs.errors import DataError
from secateurs.models import Loaded


@pytest.fixture(scope="module")
def loaded() -> Loaded:
    return models.load("cifar-resnet20?size=16", classes=4)


def _png(value: int, size: tuple[int, int] = (16, 16), mode: str = "RGB") -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, size, value if mode == "L" else (value, 255 - value, 7)).save(buffer, "PNG")
    return buffer.getvalue()


def _write(path: Path, count: int, *, labels: list[int] | None = None, images: list[bytes] | None = None) -> Path:
    table = {
        "jpeg": images or [_png(index) for index in range(count)],
        "label": pa.array(labels if labels is not None else [index % 4 for index in range(count)], pa.int64()),
    }
    pq.write_table(pa.table(table), path)
    return path


@pytest.fixture
def files(tmp_path: Path) -> str:
    return f"parquet:{_write(tmp_path / 'train.parquet', 40)},{_write(tmp_path / 'test.parquet', 12)}"


def test_splits_share_no_image_with_validation_or_test(files: str, loaded: Loaded) -> None:
    data = open_data(files, loaded)
    train, calibration, validation = (
        set(part.rows.tolist()) for part in (data.train, data.calibration, data.validation)
    )
    assert train | validation == set(range(40))
    assert not train & validation
    assert calibration <= train
    assert len(data.test) == 12
    assert data.test.source is not data.train.source


def test_splits_follow_the_seed(files: str, loaded: Loaded) -> None:
    rows = [open_data(files, loaded, seed=seed).validation.rows.tolist() for seed in (1, 1, 2)]
    assert rows[0] == rows[1] != rows[2]
    assert open_data(files, loaded, sizes=(5, 2)).calibration.rows.shape == (5,)


def test_values_and_order(files: str, loaded: Loaded) -> None:
    data = open_data(files, loaded)
    inputs, labels = next(data.test.batches(5))
    assert labels.tolist() == [0, 1, 2, 3, 0]
    pixels = torch.tensor([3, 252, 7]) / 255
    expected = (pixels - torch.tensor(loaded.mean)) / torch.tensor(loaded.std)
    assert inputs.shape == (5, 3, 16, 16)
    assert inputs.dtype == torch.float32
    assert torch.allclose(inputs[3, :, 4, 9], expected, atol=1e-6)


def test_nothing_is_decoded_before_use(files: str, loaded: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    data = open_data(files, loaded)
    decoded: list[int] = []
    original = EncodedImages._decode
    monkeypatch.setattr(EncodedImages, "_decode", lambda self, row: (decoded.append(row), original(self, row))[1])
    list(data.calibration.batches(4))
    assert sorted(decoded) == sorted(data.calibration.rows.tolist())
    list(data.calibration.batches(4))
    assert len(decoded) == len(data.calibration)


def test_a_small_cache_gives_the_same_pixels() -> None:
    items = [_png(value) for value in range(20)]
    labels = np.zeros(20, dtype=np.int64)
    full, small = (EncodedImages(items, labels, Sizing(16, 16), str, cache_bytes=size) for size in (1 << 20, 3 * 768))
    rows = np.array([5, 1, 19, 5, 0, 2, 3, 4, 6, 7])
    for _ in range(2):
        assert torch.equal(full.fetch(rows), small.fetch(rows))
    assert full.fetch(rows)[:, 0, 0, 0].tolist() == rows.tolist()


def test_hugging_face_columns_and_folders_of_files(tmp_path: Path, loaded: Loaded) -> None:
    folder = tmp_path / "train"
    folder.mkdir()
    for part in range(2):
        images = [{"bytes": _png(10 * part + index), "path": None} for index in range(10)]
        pq.write_table(pa.table({"img": images, "fine_label": [1] * 10}), folder / f"{part}.parquet")
    data = open_data(f"parquet:{folder},{folder / '1.parquet'}?label=fine_label", loaded)
    assert len(data.train) + len(data.validation) == 20
    assert data.train.source.fetch(np.array([3, 13]))[:, 0, 0, 0].tolist() == [3, 13]
    assert data.test.source.fetch(np.array([3]))[0, 0, 0, 0] == 13


def test_grey_and_palette_images_become_rgb(tmp_path: Path, loaded: Loaded) -> None:
    images = [_png(9, mode="L")] * 12
    data = open_data(f"parquet:{_write(tmp_path / 'a', 12, images=images)},{tmp_path / 'a'}", loaded)
    assert data.test.source.fetch(np.array([0]))[0, 0, 0].tolist() == [9, 9, 9]


def test_grey_networks_get_one_channel(files: str) -> None:
    data = open_data(files, models.load("cifar-resnet20?channels=1&size=16"))
    assert next(data.test.batches(2))[0].shape == (2, 1, 16, 16)


def test_sizing_by_kind_of_file() -> None:
    squares = [_png(1, (24, 24))] * 4
    mixed = [_png(1, (24, 24)), _png(1, (30, 24))]
    for items, expected in ((squares, "stretch"), (mixed, "crop"), ([_png(1, (30, 24))] * 3, "crop")):
        source = EncodedImages(items, np.zeros(len(items), dtype=np.int64), Sizing(16, 16), str)
        assert source.sizing.fit == expected
        assert source.fetch(np.arange(len(items))).shape == (len(items), 16, 16, 3)


def test_centre_crop_takes_the_centre() -> None:
    image = Image.new("RGB", (36, 18))
    image.paste((255, 255, 255), (9, 0, 27, 18))
    pixels = Sizing(16, 16, 3, "crop").shape(image)
    assert pixels.shape == (16, 16, 3)
    assert pixels.min() == 255
    # the right size already: untouched
    exact = Image.fromarray(np.arange(768, dtype=np.uint8).reshape(16, 16, 3))
    assert np.array_equal(Sizing(16, 16, 3, "crop").shape(exact), np.asarray(exact))


@pytest.mark.parametrize("broken", [b"", b"no image", _png(3)[:-30]])
def test_a_broken_image_is_named(tmp_path: Path, loaded: Loaded, broken: bytes) -> None:
    images = [_png(index) for index in range(20)]
    images[13] = broken
    path = _write(tmp_path / "test.parquet", 20, images=images)
    good = _write(tmp_path / "train.parquet", 20)
    data = open_data(f"parquet:{good},{path}", loaded)
    with pytest.raises(DataError, match=r"Row 13 of .*test\.parquet cannot be decoded.*broken=skip"):
        data.test.prepare()
    with pytest.raises(DataError, match="Row 13"):
        list(data.test.batches(4))


def test_broken_images_can_be_left_out(tmp_path: Path, loaded: Loaded) -> None:
    images = [_png(index) for index in range(20)]
    images[13] = images[2] = b"no image"
    path = _write(tmp_path / "test.parquet", 20, images=images)
    data = open_data(f"parquet:{path},{path}?broken=skip", loaded)
    assert len(data.test) == 18
    assert 13 not in data.train.rows
    assert any("2 of 20 test images are broken" in note for note in data.notes)
    data.test.prepare()


@pytest.mark.parametrize("label", [4, -1, 1000])
def test_labels_out_of_range(tmp_path: Path, loaded: Loaded, label: int) -> None:
    labels = [0] * 20
    labels[7] = label
    path, good = _write(tmp_path / "test.parquet", 20, labels=labels), _write(tmp_path / "train.parquet", 20)
    for text in (f"parquet:{good},{path}", f"parquet:{path},{good}"):
        with pytest.raises(DataError, match=rf"Row 7 of .*test\.parquet has label {label}, .* labels must be 0 to 3"):
            open_data(text, loaded)


@pytest.mark.parametrize(
    ("columns", "part"),
    [
        ({"jpeg": [b"a"] * 3}, "no label column"),
        ({"label": [1] * 3}, "no image column"),
        ({"jpeg": [b"a"] * 3, "label": ["cat"] * 3}, "not whole numbers"),
        ({"jpeg": [1] * 3, "label": [1] * 3}, "not encoded image bytes"),
        ({"jpeg": [b"a", None, b"b"], "label": [1] * 3}, "Row 1 of .* has no jpeg"),
        ({"jpeg": [b"a"] * 3, "label": [1, 1, None]}, "Row 2 of .* has no label"),
        ({"jpeg": pa.array([], pa.binary()), "label": pa.array([], pa.int64())}, "no rows"),
    ],
)
def test_wrong_columns(tmp_path: Path, loaded: Loaded, columns: dict[str, list[object]], part: str) -> None:
    pq.write_table(pa.table(columns), tmp_path / "x.parquet")
    with pytest.raises(DataError, match=part):
        open_data(f"parquet:{tmp_path}/x.parquet,{tmp_path}/x.parquet", loaded)


def test_wrong_texts(tmp_path: Path, loaded: Loaded, files: str) -> None:
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 not really")
    for text, part in {
        "nope": "Unknown data 'nope'",
        "parquet:one": "names 1 files, not two",
        f"parquet:{tmp_path}/none.parquet,x": "does not exist",
        f"parquet:{tmp_path}/bad.parquet,x": "cannot be read",
        f"imagefolder:{tmp_path}/none": "does not exist",
        f"{files}?fit=squash": "must be one of crop, stretch, auto",
        f"{files}?colour=1": "has no option 'colour'",
        f"{files}?pad=wide": "number of pixels",
        f"{files}?image=nothing": "looked for 'nothing'",
        f"{tmp_path}/none.py:make": "does not exist",
    }.items():
        with pytest.raises(DataError, match=part):
            open_data(text, loaded)


def test_classes_present(tmp_path: Path, loaded: Loaded) -> None:
    train = _write(tmp_path / "train.parquet", 20, labels=[1, 3] * 10)
    test = _write(tmp_path / "test.parquet", 20, labels=[1] * 20)
    text = f"parquet:{train},{test}"
    assert open_data(text, loaded).classes is None
    assert open_data(text, loaded, classes="all").classes is None
    assert open_data(text, loaded, classes="present").classes == (1, 3)
    assert open_data(text, loaded, classes=[2, 0]).classes == (0, 2)
    for wrong in ("some", [4], [-1], []):
        with pytest.raises(DataError, match="lasses"):
            open_data(text, loaded, classes=wrong)
    every = _write(tmp_path / "every.parquet", 20, labels=[0, 1, 2, 3] * 5)
    assert open_data(f"parquet:{every},{test}", loaded, classes="present").classes is None
    one = _write(tmp_path / "one.parquet", 20, labels=[1] * 20)
    with pytest.raises(DataError, match="Only one class occurs"):
        open_data(f"parquet:{one},{test}", loaded, classes="present")


def _folder(root: Path, names: list[str], count: int) -> None:
    for place, name in enumerate(names):
        (root / name).mkdir(parents=True)
        for index in range(count):
            (root / name / f"{index}.png").write_bytes(_png(10 * place + index))


def test_imagefolder_with_parts(tmp_path: Path, loaded: Loaded) -> None:
    _folder(tmp_path / "train", ["ant", "bee", "cow", "dog"], 5)
    _folder(tmp_path / "val", ["bee", "cow"], 3)
    (tmp_path / "train" / "ant" / "notes.txt").write_text("no image")
    data = open_data(f"imagefolder:{tmp_path}", loaded)
    assert len(data.train) + len(data.validation) == 20
    assert data.test.labels.tolist() == [1, 1, 1, 2, 2, 2]
    assert data.notes == ()


def test_imagefolder_without_parts_holds_out_a_fifth_of_each_class(tmp_path: Path, loaded: Loaded) -> None:
    _folder(tmp_path, ["ant", "bee"], 10)
    first, second = (open_data(f"imagefolder:{tmp_path}", loaded, seed=seed) for seed in (0, 1))
    assert np.bincount(first.test.labels).tolist() == [2, 2]
    assert first.test.rows.tolist() == second.test.rows.tolist()
    assert not set(first.test.rows) & set(first.train.rows)
    assert "2 classes but the network has 4 outputs" in first.notes[0]


def test_imagefolder_with_a_class_list(tmp_path: Path, loaded: Loaded) -> None:
    _folder(tmp_path / "train", ["ant", "cow"], 5)
    _folder(tmp_path / "test", ["ant", "cow"], 2)
    (tmp_path / "names.txt").write_text("ant\nbee\ncow\ndog\n")
    data = open_data(f"imagefolder:{tmp_path}?classes={tmp_path}/names.txt", loaded)
    assert data.test.labels.tolist() == [0, 0, 2, 2]
    (tmp_path / "names.txt").write_text("ant\nbee\n")
    with pytest.raises(DataError, match="cow is not among the 2 known classes"):
        open_data(f"imagefolder:{tmp_path}?classes={tmp_path}/names.txt", loaded)


def test_imagefolder_mistakes(tmp_path: Path, loaded: Loaded) -> None:
    with pytest.raises(DataError, match="no sub-folders"):
        open_data(f"imagefolder:{tmp_path}", loaded)
    (tmp_path / "train" / "ant").mkdir(parents=True)
    with pytest.raises(DataError, match="train/ alone"):
        open_data(f"imagefolder:{tmp_path}", loaded)
    (tmp_path / "test" / "ant").mkdir(parents=True)
    with pytest.raises(DataError, match="holds no images"):
        open_data(f"imagefolder:{tmp_path}", loaded)
    _folder(tmp_path / "x", ["ant"], 8)
    (tmp_path / "x" / "ant" / "3.png").write_bytes(b"broken")
    data = open_data(f"imagefolder:{tmp_path}/x", loaded)
    with pytest.raises(DataError, match=r"Image .*3\.png cannot be decoded"):
        data.train.source.fetch(np.arange(8))


def test_digits() -> None:
    loaded = models.load("digits-resnet")
    data = open_data("digits", loaded)
    assert len(data.test) == 599
    assert len(data.train) + len(data.validation) == 1198
    assert not set(data.test.rows) & (set(data.train.rows) | set(data.validation.rows))
    assert set(np.unique(data.test.labels)) == set(range(10))
    # another seed moves validation, never the test set
    other = open_data("digits", loaded, seed=9)
    assert other.test.rows.tolist() == data.test.rows.tolist()
    assert other.validation.rows.tolist() != data.validation.rows.tolist()
    inputs, _ = data.test.batch(np.arange(4))
    assert inputs.shape == (4, 3, 32, 32)
    assert not data.train.augmentation.flip


def test_digits_need_an_image_network() -> None:
    with pytest.raises(DataError, match="takes 5 channels"):
        open_data("digits", models.load("cifar-resnet20?channels=5"))


def test_real_cifar_pixels() -> None:
    default = Path(__file__).resolve().parents[2].parent / "shared" / "data"
    folder = Path(os.environ.get("SECATEURS_DATA", default))
    if not (folder / "cifar10_jpeg_test.parquet").is_file():
        pytest.skip(f"no stored images in {folder}; set SECATEURS_DATA to their folder")
    path = folder / "cifar10_jpeg_test.parquet"
    data = open_data(f"parquet:{path},{path}", models.load("cifar-resnet20"))
    pixels = data.test.source.fetch(np.arange(10_000)).numpy()
    assert hashlib.sha256(pixels.tobytes()).hexdigest().startswith("5a6aa8185204d80b")
