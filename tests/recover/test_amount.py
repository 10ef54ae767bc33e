"""How much is trained on few images, and at which rate and in which mode."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from secateurs.data import Data, Images, accuracy
from secateurs.data.augmentation import Augmentation
from secateurs.jobs.settings import Settings
from secateurs.models import Preprocessing
from secateurs.recover import precision
from secateurs.recover.amount import FEW_STEPS, default_batch, default_epochs, too_few
from secateurs.recover.finetune import default_rate, finetune
from secateurs.recover.precision import Mode, fastest_mode
from secateurs.recover.recipe import Recipe


@pytest.mark.parametrize(
    ("images", "batch", "epochs"),
    [(3, 8, 10), (50, 8, 10), (365, 8, 5), (405, 16, 8), (1078, 32, 7), (3000, 64, 5), (45_000, 128, 1)],
)
def test_batch_and_epochs_follow_the_images(images: int, batch: int, epochs: int) -> None:
    assert default_batch(images) == batch
    assert default_epochs(images, batch) == epochs
    settled = Settings(latency="60%").settled(images)
    assert settled.training == (epochs, batch)
    assert Settings.from_dict(settled.to_dict()) == settled == settled.settled(10)


def test_what_the_user_says_stays() -> None:
    assert Settings(latency="60%", train_batch=128).settled(405).training == (10, 128)
    assert Settings(latency="60%", epochs=1).settled(405).training == (1, 16)
    assert Settings(latency="60%", epochs=0).settled(405).training == (0, 16)


def test_few_steps_are_told() -> None:
    [note] = too_few(1, 405, 128)
    assert "only 3 steps (1 epoch of 405 images at batch 128)" in note
    assert "--train-batch" in note
    [one] = too_few(1, 5, 128)
    assert "only 1 step (" in one
    assert too_few(0, 405, 128) == ()
    assert too_few(FEW_STEPS, 128, 128) == ()
    for images in (240, 405, 1000, 50_000):
        settled = Settings(latency="60%").settled(images)
        assert too_few(settled.training[0], images, settled.training[1]) == ()


def test_a_few_steps_have_a_small_rate() -> None:
    rates = [default_rate(True, steps) for steps in (1, 3, 11, 22, 66, 139, 140, 220, 3500, 10_000)]
    assert rates == sorted(rates)
    assert rates[1] < 5e-4
    assert rates[5] == pytest.approx(rates[6], rel=0.02)
    assert rates[-1] == 0.05
    assert default_rate(False, 3) < 5e-5


class Coloured:
    """Digits 0 to 5 in noisy colours, 16 x 16."""

    def __init__(self) -> None:
        rng, digits = np.random.default_rng(0), load_digits()
        kept = digits.target < 6
        self.labels = digits.target[kept].astype(np.int64)
        shapes = np.kron(digits.images[kept] / 16, np.ones((1, 2, 2)))[..., None]
        ink, paper = (rng.uniform(*span, (len(shapes), 1, 1, 3)) for span in ((0.3, 1.0), (0.0, 0.5)))
        pixels = shapes * ink + (1 - shapes) * paper + rng.normal(0, 0.15, (*shapes.shape[:3], 3))
        self.pixels = torch.from_numpy((pixels.clip(0, 1) * 255).astype(np.uint8))

    def fetch(self, rows: np.ndarray) -> Tensor:
        return self.pixels[torch.from_numpy(rows)]


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm1 = nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16)
        self.body, self.norm2 = nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16)
        self.last, self.head = nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.Linear(32, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm1(self.stem(x)).relu()
        x = (x + self.norm2(self.body(x))).relu()
        return self.head(self.last(x).relu().mean((2, 3)))


def few_images() -> Data:
    """405 of them to train on."""
    source = Coloured()
    rows = np.random.default_rng(1).permutation(len(source.labels))

    def part(first: int, last: int, name: str) -> Images:
        return Images(source, rows[first:last], Preprocessing((0.5,), (0.25,)), Augmentation(2, True), name)

    return Data(
        part(0, 405, "train"), part(0, 100, "calibration"), part(405, 445, "validation"), part(445, 1083, "test")
    )


def test_an_epoch_on_few_images_does_no_harm() -> None:
    """405 images at batch 128 are three steps: at a rate of 0.01, as it was, they cost eleven points."""
    torch.manual_seed(0)
    data, network = few_images(), Small()
    finetune(network, data, Recipe(epochs=25, lr=0.05, batch=16, alpha=0.0, precision="fp32", augment=False))
    before = accuracy(network, data.test)
    assert before > 0.8
    for batch in (128, default_batch(405)):
        student = copy.deepcopy(network)
        finetune(student, data, Recipe(epochs=1, batch=batch, precision="fp32"), teacher=network)
        assert accuracy(student, data.test) > before - 0.03
    student = copy.deepcopy(network)
    finetune(student, data, Recipe(epochs=1, lr=0.01, batch=128, precision="fp32"), teacher=network)
    assert accuracy(student, data.test) < before - 0.05


def steps_counted(monkeypatch: pytest.MonkeyPatch, seconds: float) -> list[Mode]:
    """In which modes steps are tried, if one takes so long."""
    tried: list[Mode] = []

    def timed(student: object, teacher: object, inputs: object, mode: Mode, hopeless: float = 0.0) -> float:
        tried.append(mode)
        return seconds / len(tried)

    monkeypatch.setattr(precision, "_seconds", timed)
    return tried


@pytest.mark.parametrize(
    ("steps", "seconds", "count"), [(3, 10.0, 0), (39, 10.0, 0), (200, 0.02, 1), (200, 1.0, 4), (None, 0.001, 4)]
)
def test_formats_are_tried_only_where_training_is_long(
    monkeypatch: pytest.MonkeyPatch, steps: int | None, seconds: float, count: int
) -> None:
    tried = steps_counted(monkeypatch, seconds)
    found = fastest_mode(Small(), None, torch.randn(4, 3, 8, 8), steps=steps)
    assert len(tried) == count
    assert (found == Mode()) == (count < 4)


def test_a_given_format_is_kept_where_nothing_is_tried() -> None:
    assert fastest_mode(Small(), None, torch.randn(4, 3, 8, 8), precision="bf16", steps=5) == Mode("bf16")


def test_a_hopeless_mode_gets_one_step(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(np.cumsum([0, 1, 0, 1, 0, 1, *([0, 9] * 9)]).tolist())
    monkeypatch.setattr(precision.time, "perf_counter", lambda: next(clock))
    assert precision._seconds(Small(), None, torch.randn(4, 3, 8, 8), Mode()) == 1
    assert precision._seconds(Small(), None, torch.randn(4, 3, 8, 8), Mode(), 2.0) == 9
    assert next(clock) == 12  # one step alone was timed


def test_settings_refuse_what_cannot_be() -> None:
    with pytest.raises(Exception, match="train_batch is 0"):
        replace(Settings(latency="60%"), train_batch=0)
