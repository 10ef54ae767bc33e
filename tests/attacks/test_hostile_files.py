"""Files that somebody made wrong on purpose: a message, little memory, nothing run and nothing replaced."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import save_file

import secateurs as sc
from secateurs.data.decoding import Sizing
from secateurs.data.imagefolder import open_folder
from secateurs.data.parquet import open_parquet
from secateurs.files import write_atomic
from secateurs.models import load


def test_weights_that_are_too_large_for_the_network(tmp_path: Path) -> None:
    state = load("digits-resnet?width=0.5", seed=1).module.state_dict()
    wide = {name: tensor.double() if tensor.is_floating_point() else tensor for name, tensor in state.items()}
    wide["conv1.weight"] = wide["conv1.weight"] + 1e300
    save_file(wide, tmp_path / "wide.safetensors")
    with pytest.raises(sc.DataError, match=r"do not fit into float32.*conv1\.weight would become infinite"):
        load("digits-resnet?width=0.5", weights=tmp_path / "wide.safetensors")


def _compressed(path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("w/data.pkl", b"x" * 100)
        with archive.open("w/data/0", "w") as file:
            for _ in range(100):
                file.write(bytes(1 << 20))


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda path: torch.save({0: torch.zeros(1)}, path), "has the key 0"),
        (lambda path: torch.save({"a": torch.zeros(3).to_sparse()}, path), "is sparse|cannot be read as plain"),
        (lambda path: torch.save({"a": torch.zeros(3, device="meta")}, path), "is without data"),
        (lambda path: torch.save({"a": torch.zeros(1).expand(10**9)}, path), "more than the file"),
        (lambda path: torch.save([torch.zeros(1)], path), "no state dict"),
        (lambda path: torch.save({"a": 3}, path), "no state dict"),
        (lambda path: path.mkdir(), "is a folder"),
        (os.mkfifo, "is a pipe"),
        (_compressed, "unpacks to"),
    ],
)
def test_weights_of_other_kinds(make: Callable[[Path], object], told: str, tmp_path: Path) -> None:
    make(tmp_path / "w.pth")
    with pytest.raises(sc.DataError, match=told):
        load("digits-resnet", weights=tmp_path / "w.pth")


def test_a_parquet_file_that_repeats_an_image(tmp_path: Path) -> None:
    images = pa.DictionaryArray.from_arrays(pa.array([0] * 300, pa.int32()), pa.array([bytes(1 << 20)]))
    pq.write_table(pa.table({"jpeg": images.cast(pa.binary()), "label": [0] * 300}), tmp_path / "bomb.parquet")
    assert (tmp_path / "bomb.parquet").stat().st_size < 1 << 21
    with pytest.raises(sc.DataError, match="repeats its images"):
        open_parquet(tmp_path / "bomb.parquet", Sizing(8, 8))
    structs = pa.array([{"path": "x"}], pa.struct([("path", pa.string())]))
    pq.write_table(pa.table({"jpeg": structs, "label": [0]}), tmp_path / "paths.parquet")
    with pytest.raises(sc.DataError, match="not encoded image bytes"):
        open_parquet(tmp_path / "paths.parquet", Sizing(8, 8))
    os.mkfifo(tmp_path / "pipe.parquet")
    with pytest.raises(sc.DataError, match="does not exist"):
        open_parquet(tmp_path / "pipe.parquet", Sizing(8, 8))


def test_a_pipe_among_images_is_not_waited_for(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    os.mkfifo(tmp_path / "a" / "x.jpg")
    with pytest.raises(sc.DataError, match="holds no images"):
        open_folder(tmp_path, Sizing(8, 8), ["a"])


@pytest.mark.parametrize("kind", ["pipe", "device", "folder"])
def test_what_is_no_file_is_not_replaced(kind: str, tmp_path: Path) -> None:
    path = Path("/dev/full") if kind == "device" else tmp_path / kind
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    before = path.stat().st_mode
    with pytest.raises(sc.DataError, match=f"is a {kind}, no regular file"):
        write_atomic(path, b"mine")
    assert path.stat().st_mode == before
    assert not list(tmp_path.glob(".*"))


def test_a_link_is_written_through(tmp_path: Path) -> None:
    (tmp_path / "real").write_text("before")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    write_atomic(tmp_path / "link", b"after")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_text() == "after"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "real"]
