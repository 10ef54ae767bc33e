"""Files that somebody made wrong on purpose: a message, little memory, nothing run and nothing replaced."""

from __future__ import annotations

import contextlib
import os
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

import secateurs as sc
from secateurs.data.decoding import Sizing
from secateurs.data.imagefolder import class_names, open_folder
from secateurs.data.parquet import open_parquet, sample
from secateurs.data.parquet_pages import pages
from secateurs.files import write_atomic
from secateurs.jobs.run_folder import RunFolder
from secateurs.latency.stored_rows import read_lines
from secateurs.models import load
from secateurs.models.weights import save_weights
from secateurs.report import Record
from secateurs.report.front_record import Front


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


def _zeros(path: Path, size: int, groups: int) -> None:
    table = pa.table({"jpeg": pa.array([bytes(size)]), "label": [0]})
    with pq.ParquetWriter(path, table.schema, compression="zstd", use_dictionary=False) as writer:
        for _ in range(groups):
            writer.write_table(table)


def test_a_parquet_file_is_refused_before_it_is_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _zeros(tmp_path / "bomb.parquet", 40 << 20, 8)
    assert (tmp_path / "bomb.parquet").stat().st_size < 100_000
    with monkeypatch.context() as patched:
        patched.setattr(pq.ParquetFile, "iter_batches", lambda *given, **more: pytest.fail("it was unpacked"))
        with pytest.raises(sc.DataError, match=r"repeats its images.*\?unpack=N"):
            open_parquet(tmp_path / "bomb.parquet", Sizing(8, 8))
        with pytest.raises(sc.DataError, match="repeats its images"):
            sample(tmp_path / "bomb.parquet", 64)
    assert len(open_parquet(tmp_path / "bomb.parquet", Sizing(8, 8), most=1 << 30)) == 8


def test_many_rows_of_nothing_count_too(tmp_path: Path) -> None:
    count = 3_000_000
    nothing = pa.DictionaryArray.from_arrays(pa.array(np.zeros(count, np.int32)), pa.array([b""])).cast(pa.binary())
    pq.write_table(pa.table({"jpeg": nothing, "label": np.zeros(count, np.int8)}), tmp_path / "rows.parquet")
    with pytest.raises(sc.DataError, match="repeats its images"):
        open_parquet(tmp_path / "rows.parquet", Sizing(8, 8))


@pytest.mark.parametrize("version", ["1.0", "2.0"])
@pytest.mark.parametrize("compression", ["none", "snappy", "zstd"])
def test_pages_say_what_they_unpack_to(version: str, compression: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    table = pa.table({"jpeg": [rng.bytes(900) for _ in range(90)], "label": list(range(90))})
    given = {"data_page_version": version, "compression": compression, "data_page_size": 9_000, "row_group_size": 40}
    pq.write_table(table, tmp_path / "x.parquet", write_statistics=False, **given)
    footer = pq.read_metadata(tmp_path / "x.parquet")
    columns = [footer.row_group(g).column(c) for g in range(footer.num_row_groups) for c in range(2)]
    told = sum(column.total_uncompressed_size for column in columns)
    found = list(pages(tmp_path / "x.parquet", ("jpeg", "label")))
    assert 90 * 900 < sum(found) < told < sum(found) + 100 * len(found)


def test_damaged_page_headers_are_a_message(tmp_path: Path) -> None:
    pq.write_table(pa.table({"jpeg": [b"x" * 50] * 9, "label": list(range(9))}), tmp_path / "x.parquet")
    content = bytearray((tmp_path / "x.parquet").read_bytes())
    refused = 0
    for byte in (0x00, 0x15, 0x19, 0x7F, 0x8C, 0xFF):
        for place in range(4, 24):
            changed = content.copy()
            changed[place] = byte
            (tmp_path / "y.parquet").write_bytes(changed)
            opened = None
            with contextlib.suppress(sc.DataError):
                opened = open_parquet(tmp_path / "y.parquet", Sizing(8, 8))
            assert opened is None or len(opened) == 9
            refused += opened is None
    assert refused > 20


def _image(path: Path, width: int, height: int) -> None:
    path.parent.mkdir(exist_ok=True)
    Image.new("1", (width, height)).save(path, "PNG")


@pytest.mark.parametrize(("size", "told"), [((12_000, 9_000), "12000 x 9000 pixels"), ((1, 60_000), "scaled to")])
def test_an_image_that_would_fill_the_memory(size: tuple[int, int], told: str, tmp_path: Path) -> None:
    _image(tmp_path / "a" / "x.png", *size)
    images = open_folder(tmp_path, Sizing(64, 64, 3, "crop"), ["a"])
    before = Image.MAX_IMAGE_PIXELS
    with pytest.raises(sc.DataError, match=told):
        images.fetch(np.array([0]))
    assert before == Image.MAX_IMAGE_PIXELS


def test_a_bound_of_pixels_can_be_raised(tmp_path: Path) -> None:
    _image(tmp_path / "a" / "x.png", 3_000, 2_000)
    for million, fits in ((5, False), (6, True)):
        images = open_folder(tmp_path, Sizing(8, 8, 1, "crop", million * 1_000_000), ["a"])
        assert (images.broken([0]) == []) is fits


def test_no_program_is_started_for_an_image(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.jpg").write_bytes(
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n"
    )
    with pytest.raises(sc.DataError, match="cannot be decoded"):
        open_folder(tmp_path, Sizing(8, 8), ["a"]).fetch(np.array([0]))


READERS: dict[str, Callable[[Path], object]] = {
    "plan": sc.Plan.load,
    "result.json": Record.load,
    "front.json": Front.load,
    "classes": lambda path: class_names(path.parent, path),
    "job.json": lambda path: RunFolder.resume(path.parent),
    "weights": lambda path: load("digits-resnet", weights=path),
    "factory": lambda path: load(f"{path}:make"),
    "rows": lambda path: list(read_lines(path)),
}


@pytest.mark.parametrize("kind", ["pipe", "large", "folder", "missing", "link to a device"])
@pytest.mark.parametrize("reader", READERS)
def test_what_is_read_is_a_file_of_bounded_size(
    reader: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / {"weights": "w.pth", "factory": "f.py"}.get(reader, "job.json")
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "link to a device":
        path.symlink_to("/dev/zero")
    elif kind == "large":
        monkeypatch.setenv("SECATEURS_READ_MB", "1")
        path.write_bytes(b"[" + b" " * (1 << 21))
    with pytest.raises((sc.SecateursError, OSError, ValueError)) as caught:
        READERS[reader](path)
    assert reader == "rows" or isinstance(caught.value, sc.SecateursError)


def test_a_safetensors_file_with_a_huge_header(tmp_path: Path) -> None:
    with open(tmp_path / "w.safetensors", "wb") as file:
        file.write((20 << 20).to_bytes(8, "little") + b"{")
        file.truncate(21 << 20)
    with pytest.raises(sc.DataError, match="header of 20 MB"):
        load("digits-resnet", weights=tmp_path / "w.safetensors")


def test_weights_are_written_as_safetensors_reads_them(tmp_path: Path) -> None:
    module = nn.Module()
    module.tied = module.first = nn.Parameter(torch.randn(3, 5))
    for number, kind in enumerate((torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool)):
        module.register_buffer(f"b{number}", torch.arange(6).reshape(2, 3).t().to(kind))
    module.register_buffer("nothing", torch.zeros(0, 4))
    module.register_buffer("scalar", torch.tensor(7))
    save_weights(module, tmp_path / "w.safetensors", {"format": "pt"})
    with safe_open(tmp_path / "w.safetensors", "pt") as file:
        held = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        assert file.metadata() == {"format": "pt"}
    assert held.keys() == module.state_dict().keys()
    for name, value in module.state_dict().items():
        assert torch.equal(held[name], value)
        assert held[name].dtype == value.dtype


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
