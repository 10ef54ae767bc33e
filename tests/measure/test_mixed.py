"""Mixed files of one network: which layers they quantise, what they answer, and that nothing is measured twice."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from secateurs.export.onnx_layers import quantised_among
from secateurs.latency.store import Store
from secateurs.measure.mixed import FileAnswers, MixedFiles, drawn_mixes, mixed_ratios
from secateurs.structure import trace
from secateurs.testing.latency import FakeTarget

LAYERS = ("0", "2", "6")


def network() -> nn.Module:
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    return nn.Sequential(*layers, nn.Linear(8, 4)).eval()


IMAGES = torch.randn(20, 3, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def files() -> MixedFiles:
    return MixedFiles.of(trace(network(), IMAGES[:1]), [(IMAGES, None)], batch=3)


def test_layers_are_told_and_can_all_be_quantised(files: MixedFiles) -> None:
    assert tuple(files.layers.own) == LAYERS
    assert files.possible == set(LAYERS)


def test_one_file_quantises_one_layer_another_all_but_some(files: MixedFiles) -> None:
    assert quantised_among(files.layers, onnx.load_model_from_string(files.only("2"))) == {"2"}
    assert quantised_among(files.layers, onnx.load_model_from_string(files.file(["2"]))) == {"0", "6"}


def test_answers_are_those_of_the_network_up_to_rounding_and_for_any_number_of_samples(files: MixedFiles) -> None:
    expected = network()(IMAGES).detach().numpy()
    errors = []
    for content in (files.only("2"), files.file(())):
        (found,) = FileAnswers(content)([IMAGES.numpy()])
        assert found.shape == expected.shape
        errors.append(float(np.abs(found - expected).mean()))
    assert 0 < errors[0] < errors[1] < 0.1 * np.abs(expected).max()


def test_mixes_range_from_few_layers_to_all() -> None:
    names = [f"layer{number}" for number in range(12)]
    mixes = drawn_mixes(names, seed=0)
    assert mixes == drawn_mixes(names, seed=0)
    assert mixes != drawn_mixes(names, seed=1)
    assert all(mixes)
    assert mixes[-1] == frozenset(names)
    assert len(mixes[0]) < 6


def test_ratios_are_to_the_quantised_file_and_measured_once(files: MixedFiles, tmp_path: Path) -> None:
    def costs(content: bytes) -> dict[str, float]:
        floats = len(LAYERS) - len(quantised_among(files.layers, onnx.load_model_from_string(content)))
        return {"all": 1.0 + floats}

    target, store = FakeTarget(costs, 0.0, precision="int8"), Store(tmp_path / "store.sqlite3")
    mixes = [{"0"}, {"0", "2"}]
    assert mixed_ratios(files, mixes, target, "net", store=store) == pytest.approx([2.0, 3.0])
    loads = target.loads
    assert mixed_ratios(files, mixes, target, "net", store=store) == pytest.approx([2.0, 3.0])
    assert target.loads == loads
    assert mixed_ratios(files, [{"6"}], target, "net", store=store) == pytest.approx([2.0]), "other mixes are measured"
