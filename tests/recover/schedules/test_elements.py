"""Fine-tuning with a plan's kernel elements: zeros stay, the penalty comes first, a killed run ends the same."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from secateurs.data.datasets import TensorSource
from secateurs.data.images import Data, Images
from secateurs.elements.selection import patterns
from secateurs.models.preprocessing import Preprocessing
from secateurs.recover.finetune import finetune
from secateurs.recover.recipe import Recipe
from secateurs.recover.refit.least_squares import least_squares
from secateurs.recover.schedules.elements import ElementTraining
from secateurs.structure import apply, trace
from secateurs.structure.kernel_elements import masks_of

NAMES = ("2.weight",)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 24, 3, padding=1), nn.BatchNorm2d(24), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 4),
    )  # fmt: skip


@pytest.fixture(scope="module")
def data() -> Data:
    generator = torch.Generator().manual_seed(1)
    labels = np.arange(64) % 4
    pixels = torch.randn(64, 3, 8, 8, generator=generator) + torch.from_numpy(labels).view(-1, 1, 1, 1) * 0.5
    images = Images(TensorSource(pixels, labels), np.arange(64), Preprocessing())
    return Data(images, images.take(32), images.take(16), images.take(16), name="drawn")


def zeros(module: nn.Module, masks: dict[str, torch.Tensor]) -> float:
    return max(float(dict(module.named_parameters())[name].detach()[~mask].abs().max()) for name, mask in masks.items())


RECIPE = Recipe(epochs=2, batch=8, lr=0.05, precision="fp32", layout="contiguous")


def test_zeros_stay_zeros_and_the_rest_learns(data: Data) -> None:
    model = network()
    found = patterns(model, dict.fromkeys(NAMES, 4))
    student = copy.deepcopy(model)
    finetune(student, data, RECIPE, teacher=model, companion=ElementTraining(found))
    masks = masks_of(student, found)
    assert zeros(student, masks) == 0.0
    kept = masks["2.weight"]
    assert not torch.equal(student[2].weight[kept], model[2].weight[kept])


def test_the_penalty_comes_first_and_ends_in_zeros(data: Data) -> None:
    model = network()
    found = patterns(model, dict.fromkeys(NAMES, 4))
    masks = masks_of(model, found)
    seen = []

    class Watching(ElementTraining):
        def after_backward(self, student: nn.Module, step: int) -> None:
            seen.append(zeros(student, masks))

    finetune(student := copy.deepcopy(model), data, RECIPE, teacher=model, companion=Watching(found, 8))
    assert 0 < seen[7] < seen[0]
    assert seen[8:] == [0.0] * 8
    assert zeros(student, masks) == 0.0


@pytest.mark.parametrize("stop", [3, 12])
def test_a_killed_training_ends_the_same(data: Data, tmp_path: Path, stop: int) -> None:
    model = network()
    found = patterns(model, dict.fromkeys(NAMES, 4))

    class Killed(ElementTraining):
        def after_backward(self, student: nn.Module, step: int) -> None:
            if step == stop:
                raise KeyboardInterrupt

    whole = copy.deepcopy(model)
    finetune(whole, data, RECIPE, teacher=model, companion=ElementTraining(found, 10))
    with pytest.raises(KeyboardInterrupt):
        finetune(
            copy.deepcopy(model), data, RECIPE, teacher=model, companion=Killed(found, 10), checkpoint_dir=tmp_path
        )
    resumed = copy.deepcopy(model)
    finetune(
        resumed, data, RECIPE, teacher=model, companion=ElementTraining(found, 10), checkpoint_dir=tmp_path, resume=True
    )
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name


def test_least_squares_refits_what_stays(data: Data) -> None:
    model = network().eval()
    graph = trace(model, torch.randn(1, 3, 8, 8))
    found = patterns(model, dict.fromkeys(NAMES, 4))
    plan = graph.plan({}).model_copy(update={"elements": found})
    small = apply(model, plan).eval()
    done = least_squares(model, small, plan, [inputs for inputs, _ in data.train.batches(16)])
    before, after = done.errors["2.weight"]
    assert after < 0.8 * before
    assert zeros(small, masks_of(small, found)) == 0.0
