"""Pixels reach a network as it was trained, or not at all: who does not know how is told so."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from torch import nn
from torch.utils.data import Dataset

import secateurs as sc
from secateurs import models
from secateurs.data import Named, from_loaders, given, open_data
from secateurs.data.sizes import input_shape
from secateurs.errors import DataError
from secateurs.models import Loaded, Preprocessing, own

FACTORY = """
import torch
from torch import nn
def make(channels=3, classes=3):
    convolution = nn.Conv2d(channels, 4, 3, padding=1)
    return nn.Sequential(convolution, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, classes))
def grey():
    return make(1)
class Timm(nn.Module):
    pretrained_cfg = {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.2, 0.2), "input_size": (3, 20, 16)}
    def __init__(self):
        super().__init__()
        self.body = make()
    def forward(self, x):
        return self.body(x)
calls = 0
def floats():
    global calls
    calls += 1
    x, y = torch.randn(30, 3, 12, 10), torch.arange(30) % 3
    return torch.utils.data.TensorDataset(x, y), iter([(x, y)])
def once():
    x, y = torch.randn(30, 3, 12, 10), torch.arange(30) % 3
    return iter([(x[:20], y[:20]), (x[20:], y[20:])]), [(x, y)]
def pixels():
    x, y = torch.randint(0, 256, (30, 14, 9, 3), dtype=torch.uint8), torch.arange(30) % 3
    return [(x, y)], [(x, y)]
"""


def picture(size: tuple[int, int] = (12, 8), mode: str = "RGB") -> Image.Image:
    return Image.new(mode, size, 90 if mode == "L" else (90, 90, 90))


def encoded(image: Image.Image) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "png")
    return stream.getvalue()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Image folders, parquet files and factories of three classes."""
    root = tmp_path_factory.mktemp("pixels")
    (root / "mine.py").write_text(FACTORY)
    for kind in ("same", "grey", "mixed"):
        for part in ("train", "test"):
            for label in range(3):
                folder = root / kind / part / f"class{label}"
                folder.mkdir(parents=True)
                for number in range(10):
                    size = (12 + number % 2, 8) if kind == "mixed" else (12, 8)
                    picture(size, "L" if kind == "grey" else "RGB").save(folder / f"{number}.png")
    images = [encoded(picture())] * 30
    pq.write_table(pa.table({"image": [{"bytes": one} for one in images], "label": [0, 1, 2] * 10}), root / "a.parquet")
    return root


class Pictures(Dataset[tuple[Image.Image, int]]):
    def __len__(self) -> int:
        return 30

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return picture(), index % 3


def module(channels: int = 3, classes: int = 3) -> nn.Module:
    return nn.Sequential(nn.Conv2d(channels, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, classes))


def unknown() -> Loaded:
    return own(module(), torch.randn(1, 3, 8, 12))


def sources(place: Path) -> dict[str, object]:
    pixels = (torch.zeros(30, 3, 8, 12, dtype=torch.uint8), torch.arange(30) % 3)
    return {
        "imagefolder": f"imagefolder:{place}/same",
        "parquet": f"parquet:{place}/a.parquet,{place}/a.parquet",
        "factory": f"{place}/mine.py:pixels",
        "pictures": (Pictures(), Pictures()),
        "batches": ([pixels], [pixels]),
    }


@pytest.mark.parametrize("kind", ["imagefolder", "parquet", "factory", "pictures", "batches"])
def test_images_are_not_fed_by_guess(place: Path, kind: str) -> None:
    data = sources(place)[kind]
    with pytest.raises(
        DataError, match=r"does not say how pixels reach it.*--normalize.*imagenet.*pixel / 255.*MEAN/STD"
    ):
        given(data, unknown())  # type: ignore[arg-type]
    loaded = own(module(), torch.randn(1, 3, 8, 12), "0.5/0.25")
    test = given(data, loaded, normalize="0.5/0.25").test  # type: ignore[arg-type]
    inputs, held = test.batch(np.array([0]))[0], test.source.fetch(np.array([0]))
    assert torch.allclose(inputs[0, 0], (held[0, :, :, 0] / 255 - 0.5) / 0.25, atol=1e-6)


@pytest.mark.parametrize("kind", ["imagefolder", "parquet"])
def test_the_main_job_and_plans_want_it_too(place: Path, kind: str) -> None:
    network, example = module().eval(), torch.randn(1, 3, 8, 12)
    data = str(sources(place)[kind])
    with pytest.raises(DataError, match="does not say how pixels reach it"):
        sc.prune(network, example, data=data, latency="60%")
    graph = sc.trace(network, example)
    with pytest.raises(DataError, match="does not say how pixels reach it"):
        sc.plan(graph, macs="60%", data=data)
    made = sc.plan(graph, macs="60%", data=data, normalize="imagenet", criterion="taylor", allow_chance=True)
    assert sum(made.widths().values()) < 4
    with pytest.raises(sc.PlanError, match="ready batches"):
        sc.plan(graph, macs="60%", data=[(example, torch.zeros(1).long())], normalize="imagenet")


def test_digits_are_fed_with_a_word() -> None:
    ten = module(classes=10)
    assert any("pixel / 255" in note for note in open_data("digits", own(ten, torch.randn(1, 3, 8, 8))).notes)
    assert open_data("digits", own(ten, torch.randn(1, 3, 8, 8), "none")).notes == ()


def test_networks_that_say_it_need_no_option(place: Path) -> None:
    built_in = models.load("cifar-resnet20", classes=3).module
    assert own(built_in, torch.randn(1, 3, 8, 12)).preprocessing == models.load("cifar-resnet20").preprocessing
    assert own(built_in, torch.randn(1, 3, 8, 12)).pixels_told
    timm = models.load(f"{place}/mine.py:Timm")
    assert timm.preprocessing == Preprocessing((0.5, 0.4, 0.3), (0.2, 0.2, 0.2))
    assert timm.input_shape == (3, 20, 16)
    open_data(f"imagefolder:{place}/same", timm)
    asked = models.load(f"{place}/mine.py:make", input_shape=(3, 8, 12))
    assert not asked.pixels_told
    assert asked.notes == ()
    assert not models.rebuild(asked.source).pixels_told
    again = models.load(f"{place}/mine.py:make", input_shape=(3, 8, 12), normalize="none")
    assert models.rebuild(again.source).pixels_told


def test_a_choice_that_does_nothing_is_told(place: Path) -> None:
    floats = [(torch.randn(30, 3, 8, 12), torch.arange(30) % 3)]
    loaded = own(module(), torch.randn(1, 3, 8, 12), "imagenet")
    assert any("not applied" in note for note in given((floats, floats), loaded, normalize="imagenet").notes)
    opened = from_loaders(floats, floats, loaded)
    assert opened.notes == ()
    with pytest.raises(DataError, match="do nothing"):
        given(opened, loaded, normalize="imagenet")


def test_choices() -> None:
    for text in ("none", "0-1", "unit"):
        assert models.parse_normalize(text) == Preprocessing()
    assert models.parse_normalize("0-255") == Preprocessing(scale=1.0)
    assert models.parse_normalize("0-255").normalize(torch.full((1, 1, 1, 3), 9, dtype=torch.uint8)).unique() == 9
    assert own(module(), torch.randn(1, 3, 8, 12), Preprocessing((0.1,), (0.2,))).mean == (0.1,)
    for wrong in ("imagnet", "0.5", "0.5/0", "0.5,0.5/0.1,0.1", 3):
        with pytest.raises(DataError):
            own(module(), torch.randn(1, 3, 8, 12), wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("data", "shape", "grey"),
    [
        ("imagefolder:{}/same", (3, 8, 12), (1, 8, 12)),
        ("imagefolder:{}/grey", (3, 8, 12), (1, 8, 12)),
        ("parquet:{0}/a.parquet,{0}/a.parquet", (3, 8, 12), (1, 8, 12)),
        ("digits", (3, 8, 8), (1, 8, 8)),
        ("{}/mine.py:floats", (3, 12, 10), (3, 12, 10)),
        ("{}/mine.py:once", (3, 12, 10), (3, 12, 10)),
        ("{}/mine.py:pixels", (3, 14, 9), (1, 14, 9)),
    ],
)
def test_the_size_comes_from_the_data(
    place: Path, data: str, shape: tuple[int, int, int], grey: tuple[int, int, int]
) -> None:
    named = Named(data.format(place))
    assert input_shape(named, module()) == shape
    assert input_shape(named, module(1)) == grey
    assert input_shape(named, nn.Linear(3, 3))[1:] == shape[1:]
    made = f"{place}/mine.py:make?classes=10"
    loaded = models.load(made, otherwise=lambda made: input_shape(named, made), normalize="none")
    assert loaded.input_shape == shape
    assert len(open_data(named, loaded).train) > 0


def test_a_factory_of_data_is_called_once(place: Path) -> None:
    named = Named(f"{place}/mine.py:floats")
    module_of = models.load(f"{place}/mine.py:make", otherwise=lambda made: input_shape(named, made)).module
    data = open_data(named, own(module_of, torch.randn(1, 3, 12, 10)))
    assert len(data.test) == 30
    [mine] = [held for name, held in sys.modules.items() if getattr(held, "__file__", "") == str(place / "mine.py")]
    before = mine.calls
    assert before >= 1
    input_shape(named, module_of)
    assert mine.calls == before


def test_images_of_several_sizes_have_none(place: Path) -> None:
    with pytest.raises(DataError, match=r"several sizes \(8x12, 8x13.*--input"):
        input_shape(Named(f"imagefolder:{place}/mixed"), module())
    with pytest.raises(DataError, match="does not say its input size"):
        models.load(f"{place}/mine.py:make")
