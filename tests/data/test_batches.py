from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from secateurs import models
from secateurs.data import Augmentation, Data, Images, accuracy, evaluate, from_loaders, open_data
from secateurs.data.datasets import TensorSource
from secateurs.data.samples import wrap_samples
from secateurs.errors import DataError
from secateurs.models import Loaded, Preprocessing


class Pixels:
    def __init__(self, pixels: Tensor, labels: np.ndarray) -> None:
        self.pixels, self.labels = pixels, labels

    def fetch(self, rows: np.ndarray) -> Tensor:
        return self.pixels[torch.from_numpy(rows)]


def _images(count: int = 10, augmentation: Augmentation | None = None) -> Images:
    pixels = torch.arange(count, dtype=torch.uint8)[:, None, None, None].expand(count, 6, 6, 1).contiguous()
    source = Pixels(pixels, np.arange(count, dtype=np.int64) % 3)
    return Images(source, np.arange(count), Preprocessing(scale=1.0), augmentation or Augmentation())


def _seen(images: Images, seed: int) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return [int(x) for inputs, _ in images.batches(4, shuffle=True, generator=generator) for x in inputs[:, 0, 0, 0]]


def test_shuffling_follows_the_generator() -> None:
    images = _images()
    assert _seen(images, 1) == _seen(images, 1) != _seen(images, 2)
    assert sorted(_seen(images, 1)) == list(range(10))


def test_last_batch_can_be_dropped() -> None:
    assert [len(labels) for _, labels in _images().batches(4)] == [4, 4, 2]
    assert [len(labels) for _, labels in _images().batches(4, drop_last=True)] == [4, 4]
    # but never the only one
    assert [len(labels) for _, labels in _images(3).batches(4, drop_last=True)] == [3]


def test_selecting() -> None:
    assert _images().take(3).labels.tolist() == [0, 1, 2]
    assert _images().select([4, 2]).rows.tolist() == [4, 2]
    assert len(_images().take(99)) == 10


def test_crops_are_shifted_copies() -> None:
    pixels = torch.randint(0, 256, (64, 7, 5, 3), dtype=torch.uint8)
    out = Augmentation(pad=2).apply(pixels, torch.Generator().manual_seed(0))
    padded = torch.nn.functional.pad(pixels, (0, 0, 2, 2, 2, 2))
    offsets = set()
    for image in range(64):
        found = [
            (top, left)
            for top in range(5)
            for left in range(5)
            if torch.equal(padded[image, top : top + 7, left : left + 5], out[image])
        ]
        assert found
        offsets.add(found[0])
    assert len(offsets) > 15


def test_flips_mirror_half_of_the_images() -> None:
    pixels = torch.randint(0, 256, (200, 4, 6, 3), dtype=torch.uint8)
    out = Augmentation(flip=True).apply(pixels, torch.Generator().manual_seed(0))
    same = (out == pixels).flatten(1).all(1)
    mirrored = (out == pixels.flip(2)).flatten(1).all(1)
    assert bool((same | mirrored).all())
    assert 60 < int(mirrored.sum()) < 140


def test_augmentation_follows_the_generator() -> None:
    images = _images(8, Augmentation(pad=1, flip=True))
    first, second = (
        torch.cat([x for x, _ in images.batches(3, augment=True, generator=torch.Generator().manual_seed(4))])
        for _ in range(2)
    )
    assert torch.equal(first, second)
    plain = torch.cat([x for x, _ in images.batches(3)])
    assert not torch.equal(first, plain)


class Fixed(nn.Module):
    """Gives the logits that it was told, in order."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits, self.place = logits, 0
        self.norm = nn.BatchNorm1d(2)

    def forward(self, x: Tensor) -> Tensor:
        assert not self.training
        self.place += len(x)
        return self.logits[self.place - len(x) : self.place]


def test_accuracy_and_loss() -> None:
    logits = torch.tensor([[3.0, 0, 0], [3, 0, 0], [0, 0, 3], [0, 3, 0]])
    module = Fixed(logits).train()
    module.norm.eval()
    result = evaluate(module, _images(4), batch=3)
    # labels are 0, 1, 2, 0
    assert result.top1 == 0.5
    assert result.correct.tolist() == [True, False, True, False]
    assert result.loss == pytest.approx(float(nn.functional.cross_entropy(logits, torch.tensor([0, 1, 2, 0]))))
    assert module.training
    assert not module.norm.training


def test_accuracy_among_some_classes() -> None:
    logits = torch.tensor([[1.0, 0, 9], [0, 1, 9], [1, 2, 9]])
    images = _images(3)
    assert accuracy(Fixed(logits), images) == pytest.approx(1 / 3)
    images = images.select([0, 1])
    assert accuracy(Fixed(logits), images, classes=(0, 1)) == 1.0
    with pytest.raises(DataError, match="Label 1 is not among the 2 classes"):
        accuracy(Fixed(logits), images, classes=(0, 2))


def test_accuracy_mistakes() -> None:
    with pytest.raises(DataError, match="NaN"):
        accuracy(Fixed(torch.full((4, 3), float("nan"))), _images(4))
    with pytest.raises(DataError, match=r"score per image and class \[batch, classes\]"):
        accuracy(Fixed(torch.zeros(4, 3, 2)), _images(4))
    with pytest.raises(DataError, match="no images"):
        accuracy(Fixed(torch.zeros(4, 3)), _images(4).take(0))


class Floats(Dataset[tuple[Tensor, int]]):
    def __init__(self, count: int, size: int = 8) -> None:
        self.count, self.size = count, size

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return torch.full((3, self.size, self.size), float(index)), index % 4


class Streamed(IterableDataset[tuple[Tensor, int]]):
    def __iter__(self):  # type: ignore[no-untyped-def]
        return iter([(torch.full((3, 8, 8), float(index)), index % 4) for index in range(20)])


@pytest.fixture(scope="module")
def loaded() -> Loaded:
    return models.load("cifar-resnet20?size=8", classes=4)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Floats(20),
        lambda: DataLoader(Floats(20), batch_size=7, shuffle=True),
        lambda: DataLoader(Streamed(), batch_size=7),
        lambda: [(torch.stack([Floats(20)[i][0] for i in range(20)]), torch.arange(20) % 4)],
        lambda: TensorDataset(torch.stack([Floats(20)[i][0] for i in range(20)]), torch.arange(20) % 4),
        lambda: [Floats(20)[i] for i in range(20)],
    ],
)
def test_own_data_of_every_kind(loaded: Loaded, make) -> None:  # type: ignore[no-untyped-def]
    data = from_loaders(make(), make(), loaded)
    assert isinstance(data, Data)
    assert len(data.train) + len(data.validation) == 20
    inputs, labels = next(data.test.batches(6, augment=True, generator=torch.Generator()))
    # ready floats are neither normalised nor augmented
    assert inputs[:, 0, 0, 0].tolist() == [0, 1, 2, 3, 4, 5]
    assert labels.tolist() == [0, 1, 2, 3, 0, 1]


def test_own_uint8_data_get_the_preprocessing(loaded: Loaded) -> None:
    pixels = [(np.full((8, 8, 3), index, dtype=np.uint8), index % 4) for index in range(20)]
    data = from_loaders(pixels, pixels, loaded)
    inputs, _ = data.test.batch(np.array([7]))
    assert torch.allclose(inputs[0, 0, 0, 0], torch.tensor((7 / 255 - loaded.mean[0]) / loaded.std[0]), atol=1e-6)


@pytest.mark.parametrize(
    ("given", "part"),
    [
        (3, "is int"),
        ([], "is empty"),
        ([torch.zeros(2, 3)], "pair"),
        (Floats(20, size=9), r"inputs of shape \(3, 9, 9\)"),
        ([(torch.zeros(3, 8, 8), 0.5)] * 4, "not one class index each"),
        ([(torch.zeros(3, 8, 8), 9)] * 4, "has label 9"),
    ],
)
def test_own_data_mistakes(loaded: Loaded, given: object, part: str) -> None:
    with pytest.raises(DataError, match=part):
        from_loaders(given, Floats(20), loaded)


def batches(*pairs: tuple[object, object]) -> list[tuple[object, object]]:
    return list(pairs)


def raising() -> Iterator[object]:
    yield torch.zeros(2, 3, 8, 8), torch.tensor([0, 1])
    raise RuntimeError("worker \x1b[1mdied\x1b[0m")


SIZED = torch.zeros(4, 3, 8, 8)


@pytest.mark.parametrize(
    ("given", "part"),
    [
        (
            batches((SIZED, torch.arange(4)), (torch.zeros(4, 3, 9, 8), torch.arange(4))),
            r"Batch 1 .*\(3, 9, 8\), batch 0",
        ),
        (batches(([SIZED[0], torch.zeros(3, 9, 9)], [0, 1])), r"Batch 0 .*shapes \(3, 8, 8\), \(3, 9, 9\)"),
        (batches((SIZED, torch.arange(4)), (SIZED, torch.arange(3))), "Batch 1 .* 4 inputs and 3 labels"),
        (batches((SIZED, torch.arange(4)), SIZED), "Batch 1 .* no \\(inputs, labels\\) pair"),
        (batches((SIZED, ["cat"] * 4)), "Batch 0 .* labels that are no numbers"),
        (batches((SIZED.long(), torch.arange(4))), "Batch 0 .* int64 inputs. Give pixels as uint8"),
        (
            batches((SIZED, torch.arange(4)), (SIZED.byte(), torch.arange(4))),
            "Batch 1 .* uint8 inputs, batch 0 float32",
        ),
        (batches((SIZED, torch.eye(4))), "one-hot: give the index"),
        (batches((SIZED, torch.rand(4, 4))), "several numbers per image"),
        (batches((SIZED, torch.tensor([0.5] * 4))), "class indices"),
        (raising(), "training data raised RuntimeError: worker died"),
        ([(SIZED[0], "cat")] * 4, "Give each class a number from 0 on"),
        ([(SIZED[0].long(), 0)] * 4, "int64 inputs"),
    ],
)
def test_batches_with_mistakes(loaded: Loaded, given: object, part: str) -> None:
    with pytest.raises(DataError, match=part) as caught:
        from_loaders(given, Floats(20), loaded)
    assert "Return whole numbers" not in str(caught.value)


@pytest.mark.parametrize("form", [torch.float64, torch.float16, torch.bfloat16])
def test_other_float_types_are_taken(loaded: Loaded, form: torch.dtype) -> None:
    for given in ([(torch.zeros(20, 3, 8, 8, dtype=form), torch.arange(20) % 4)], [(SIZED[0].to(form), 1)] * 20):
        inputs, _ = from_loaders(given, given, loaded).test.batch(np.array([0]))
        assert inputs.dtype == torch.float32


@pytest.mark.parametrize(
    "labels", [torch.arange(4)[:, None], [0, 1, 2, 3], np.arange(4, dtype=np.uint8), torch.tensor([True, False] * 2)]
)
def test_whole_numbers_in_any_form(loaded: Loaded, labels: object) -> None:
    data = from_loaders([(SIZED, labels)], Floats(20), loaded)
    assert data.train.source.labels.dtype == np.int64
    assert len(data.train) + len(data.validation) == 4


@pytest.mark.parametrize("last", [False, True])
def test_batches_of_pixels_get_the_preprocessing(loaded: Loaded, last: bool) -> None:
    """Whatever order their dimensions have, and whatever size."""
    pixels = torch.arange(20, dtype=torch.uint8)[:, None, None, None].expand(20, 3, 8, 8)
    pixels = pixels.permute(0, 2, 3, 1) if last else pixels
    data = from_loaders([(pixels, torch.arange(20) % 4)], [(pixels, torch.arange(20) % 4)], loaded)
    inputs, _ = data.test.batch(np.array([7]))
    assert inputs.shape == (1, 3, 8, 8)
    assert torch.allclose(inputs[0, 0, 0, 0], torch.tensor((7 / 255 - loaded.mean[0]) / loaded.std[0]), atol=1e-6)


def test_data_factory(tmp_path: Path, loaded: Loaded) -> None:
    (tmp_path / "mine.py").write_text(
        "import torch\n"
        "def make():\n    x = torch.randn(20, 3, 8, 8)\n    y = torch.arange(20) % 4\n"
        "    return torch.utils.data.TensorDataset(x, y), [(x, y)]\n"
        "def one():\n    return 1\n"
    )
    data = open_data(f"{tmp_path}/mine.py:make", loaded)
    assert len(data.test) == 20
    with pytest.raises(DataError, match="not two loaders"):
        open_data(f"{tmp_path}/mine.py:one", loaded)


def test_an_item_that_raises_is_named(loaded: Loaded) -> None:
    class Raises(Floats):
        targets = [0] * 20

        def __getitem__(self, index: int) -> tuple[Tensor, int]:
            if index == 6:
                raise OSError("disk gone")
            return super().__getitem__(index)

    with pytest.raises(DataError, match="Item 6 of the training data raised OSError: disk gone"):
        from_loaders(Raises(20), Floats(20), loaded)  # its own list of labels is not its items', so they are read
    Raises.targets = [int(Floats(20)[index][1]) for index in range(20)]
    data = from_loaders(Raises(20), Floats(20), loaded)
    with pytest.raises(DataError, match="Item 6 of the training data raised OSError: disk gone"):
        data.train.source.fetch(np.array([5, 6]))


@pytest.mark.parametrize("labelled", [True, False], ids=["labelled images", "samples of a task"])
def test_what_exits_is_named(loaded: Loaded, labelled: bool) -> None:
    """``sys.exit`` in an item or in what puts items together is an error like others: it must not end the program."""

    class Exits(Floats):
        targets = tuple(int(Floats(20)[index][1]) for index in range(20))

        def __getitem__(self, index: int) -> tuple[Tensor, int]:
            return sys.exit(0) if index == 6 else super().__getitem__(index)

    source = (
        from_loaders(Exits(20), Floats(20), loaded).train.source if labelled else wrap_samples(Exits(20), "training")
    )
    with pytest.raises(DataError, match="Item 6 of the training data raised SystemExit: 0"):
        source.fetch(np.array([5, 6]))
    together = wrap_samples(DataLoader(Floats(20), collate_fn=lambda items: sys.exit(0)), "training")
    with pytest.raises(DataError, match=r"Items 0 to 1 of the training data cannot be put together .SystemExit: 0"):
        together.fetch(np.array([0, 1]))


def test_tensor_source() -> None:
    source = TensorSource(torch.arange(6.0)[:, None], np.arange(6))
    assert source.fetch(np.array([4, 1])).flatten().tolist() == [4, 1]
