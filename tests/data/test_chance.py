"""A dense network at chance stops the run with the likely reasons; one that is better never does."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from secateurs.data import Data, Images, check_trained, evaluate, look
from secateurs.data.chance import judge
from secateurs.errors import DataError
from secateurs.models import Loaded, Preprocessing


class Marked:
    """Images whose first pixel is the label, in the red channel."""

    def __init__(self, labels: np.ndarray, channel: int = 0) -> None:
        self.labels, self.channel = labels.astype(np.int64), channel

    def fetch(self, rows: np.ndarray) -> Tensor:
        pixels = torch.full((len(rows), 4, 4, 3), 7, dtype=torch.uint8)
        pixels[:, 0, 0, self.channel] = torch.from_numpy(10 * self.labels[rows]).byte()
        return pixels


class Reads(nn.Module):
    """Answers with the label that the first red pixel holds, as it is after ``preprocessing``."""

    def __init__(self, classes: int, preprocessing: Preprocessing, order: list[int] | None = None) -> None:
        super().__init__()
        self.told, self.order = preprocessing, order or list(range(classes))
        self.anchor = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        mean, std, scale = self.told.mean[0], self.told.std[0], self.told.scale
        pixel = (x[:, 0, 0, 0] * std + mean) * scale
        label = (pixel / 10).round()
        good = (pixel / 10 - label).abs() < 0.01
        answer = torch.where(good, label, 0).long().clamp(0, len(self.order) - 1)
        return nn.functional.one_hot(torch.tensor(self.order)[answer], len(self.order)).float()


def data_of(labels: np.ndarray, preprocessing: Preprocessing, channel: int = 0) -> Data:
    source = Marked(labels, channel)
    images = Images(source, np.arange(len(labels)), preprocessing, name="test")
    return Data(images, images, images, images, name="imagefolder:x")


def loaded_of(module: nn.Module, classes: int, **more: object) -> Loaded:
    loaded = Loaded(module, "net", (3, 4, 4), Preprocessing(), (classes,), {"weights": "w.safetensors"})
    return replace(loaded, **more)  # type: ignore[arg-type]


HALF = Preprocessing((0.5,), (0.5,))
SIX = np.arange(300) % 6


def checked(module: nn.Module, data: Data, classes: int, **more: object) -> tuple[str, ...]:
    found = evaluate(module, data.test, data.task)
    allow = bool(more.pop("allow", False))
    return check_trained(loaded_of(module, classes, **more), data, found, allow=allow)


def test_a_network_that_works_is_left_alone() -> None:
    assert checked(Reads(6, HALF), data_of(SIX, HALF), 6) == ()
    assert look(loaded_of(Reads(6, HALF), 6), data_of(np.arange(3000) % 6, HALF)) == ()


def test_the_wrong_normalisation_is_found() -> None:
    with pytest.raises(DataError) as caught:
        checked(Reads(6, HALF), data_of(SIX, Preprocessing()), 6)
    message = str(caught.value)
    assert "at chance: 16.67% of 300 test images, chance is 16.7%" in message
    assert "With --normalize 0.5/0.5 it would be 100.00% of them" in message
    assert "normalisation (now pixel / 255" in message
    assert "--allow-chance (allow_chance=True)" in message
    assert "w.safetensors" in message


def test_reversed_channels_are_found() -> None:
    with pytest.raises(DataError, match=r"With the channels in reverse order \(BGR\) it would be 100\.00%"):
        checked(Reads(6, HALF), data_of(SIX, HALF, channel=2), 6)


def test_another_order_of_the_classes_is_found() -> None:
    with pytest.raises(DataError, match=r"reasons: the order of the classes \(its outputs named as suits .* 100\.00%"):
        checked(Reads(6, HALF, [3, 4, 5, 0, 1, 2]), data_of(SIX, HALF), 6)
    [note] = checked(Reads(6, HALF, [0, 1, 2, 3, 5, 4]), data_of(SIX, HALF), 6)
    assert "66.67%" in note
    assert "another order" in note


def test_answers_outside_the_data_are_told() -> None:
    with pytest.raises(DataError, match=r"6 of the network's 9 outputs, and 100% of its answers are others"):
        checked(Reads(9, HALF, [8] * 9), data_of(SIX, HALF), 9)


def test_going_on_is_said() -> None:
    wrong = data_of(SIX, Preprocessing())
    for more in ({"allow": True}, {"random": True}):
        [note] = checked(Reads(6, HALF), wrong, 6, **more)
        assert "at chance" in note
        assert "say nothing" in note


def test_few_images_decide_nothing() -> None:
    for count in (1, 2, 3, 4, 5):
        for seed in range(20):
            labels = np.random.default_rng(seed).integers(0, 6, count)
            notes = checked(Reads(6, HALF), data_of(labels, HALF), 6)
            assert all("too few" in note for note in notes)
            assert all("too few" in note for note in checked(Reads(6, HALF), data_of(labels, Preprocessing()), 6))


def answers(labels: np.ndarray, right: float, classes: int, seed: int) -> Data:
    """Images whose first pixel is the right label with this probability, else any."""
    rng = np.random.default_rng(seed)
    shown = np.where(rng.random(len(labels)) < right, labels, rng.integers(0, classes, len(labels)))
    data = data_of(shown, HALF)
    source = data.test.source
    source.labels = labels.astype(np.int64)
    fixed = Marked(shown)
    fixed_fetch = fixed.fetch
    source.fetch = fixed_fetch  # type: ignore[method-assign]
    return data


@pytest.mark.parametrize(("classes", "count"), [(2, 20), (2, 100), (2, 1000), (6, 30), (10, 100), (100, 1000)])
def test_chance_is_called_as_rarely_as_it_should_be(classes: int, count: int) -> None:
    """No network that is half-way to perfect is stopped; one that guesses is not called better than it is."""
    better, stopped = 0, 0
    for seed in range(60):
        labels = np.random.default_rng(1000 + seed).integers(0, classes, count)
        half = judge(evaluate(Reads(classes, HALF), answers(labels, 0.6, classes, seed).test))
        stopped += not half.better and half.telling
        none = judge(evaluate(Reads(classes, HALF), answers(labels, 0.0, classes, seed).test))
        better += none.better
    assert stopped <= 1
    assert better <= 8  # 2.3 % of 60, and three standard deviations


def test_a_frequent_class_is_no_merit() -> None:
    """Nine in ten images are of one class: always saying so is chance, and finding half of the others is not."""
    labels = (np.arange(1000) % 10 == 0).astype(int)
    always = judge(evaluate(Reads(2, HALF, [0, 0]), data_of(labels, HALF).test))
    assert always.accuracy == pytest.approx(0.9)
    assert not always.better
    shown = np.where(np.arange(1000) % 20 == 0, 1, 0)
    data = data_of(shown, HALF)
    fetch = Marked(shown).fetch
    data.test.source.labels = labels.astype(np.int64)
    data.test.source.fetch = fetch  # type: ignore[method-assign]
    assert judge(evaluate(Reads(2, HALF), data.test)).better


def test_one_class_alone_stops_nothing() -> None:
    assert not judge(evaluate(Reads(2, HALF), data_of(np.zeros(500, dtype=int), HALF).test)).telling
