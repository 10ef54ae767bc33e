"""A trained segmentation network on its own images: the metric is what its makers and the data folder say."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from espnet import camvid, trained

import secateurs as sc
from secateurs.data import evaluate, from_batches

DATA = Path(__file__).parents[3] / "shared" / "data"
pytestmark = pytest.mark.skipif(
    not (DATA / "espnet_camvid.safetensors").is_file(), reason=f"{DATA} with ESPNet's weights and CamVid is not here"
)


def test_espnet_on_camvid() -> None:
    module = trained(DATA)
    given = camvid(DATA / "camvid_val.parquet", [0, 30, 60, 90])
    task = sc.task("segmentation", ignore=11).fed(torch.zeros(1, 3, 360, 480), module)
    data = from_batches(given, given, task)
    found = evaluate(module, data.test, data.task)
    assert 0.5 < found.value < 0.85  # 69.8 % on all 101 images
    pixels = sc.task("segmentation", ignore=11, metric="pixel-accuracy").fed(torch.zeros(1, 3, 360, 480), module)
    right = evaluate(module, from_batches(given, given, pixels).test, pixels)
    assert 0.85 < right.value < 0.97  # 92.6 % on all of them
    assert len(found.parts) > 1
