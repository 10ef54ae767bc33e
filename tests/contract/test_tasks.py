"""Every named task keeps the laws of tasks, and so does one whose batches and outputs are nests."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import secateurs as sc
from secateurs.data.tasks import NAMED
from secateurs.testing.tasks import TaskContract


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class Convolutions(nn.Sequential):
    """Images in, ``outputs`` maps out."""

    def __init__(self, outputs: int) -> None:
        torch.manual_seed(0)
        super().__init__(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, outputs, 1))


class OnImages(TaskContract):
    """Images of 8 x 8 pixels."""

    outputs = 4

    def network(self) -> nn.Module:
        return Convolutions(self.outputs)

    def example(self) -> Any:
        return torch.zeros(1, 3, 8, 8)

    def batches(self) -> list[Any]:
        return [(randn(6, 3, 8, 8, seed=seed), self.targets(seed)) for seed in (1, 2)]

    def targets(self, seed: int) -> Any:
        raise NotImplementedError


class Pooled(OnImages):
    """Numbers per image."""

    def network(self) -> nn.Module:
        return nn.Sequential(Convolutions(self.outputs), nn.AdaptiveAvgPool2d(1), nn.Flatten())


class TestClassification(Pooled):
    def task(self) -> sc.Task:
        return sc.task("classification")

    def targets(self, seed: int) -> Any:
        return torch.arange(6) % 4


class TestMultilabel(Pooled):
    def task(self) -> sc.Task:
        return sc.task("multilabel")

    def targets(self, seed: int) -> Any:
        return (randn(6, 4, seed=seed) > 0).long()


class TestSegmentation(OnImages):
    def task(self) -> sc.Task:
        return sc.task("segmentation", ignore=255)

    def targets(self, seed: int) -> Any:
        found = torch.randint(0, 4, (6, 8, 8), generator=torch.Generator().manual_seed(seed))
        found[:, 0] = 255
        return found


class TestPixelAccuracy(TestSegmentation):
    def task(self) -> sc.Task:
        return sc.task("segmentation?ignore=255&metric=pixel-accuracy")


class TestDetection(OnImages):
    """A box per image where the map is highest: enough to be one."""

    outputs = 2

    def task(self) -> sc.Task:
        return sc.task("detection", loss=self.loss, decode=self.decode)

    @staticmethod
    def loss(outputs: Tensor, batch: Any) -> Tensor:
        wanted = torch.stack([one["boxes"].mean() for one in batch[1]])
        return F.mse_loss(outputs.mean((1, 2, 3)), wanted)

    @staticmethod
    def decode(outputs: Tensor, batch: Any) -> list[dict[str, Tensor]]:
        found = []
        for scores in outputs:
            place = scores[0].flatten().argmax()
            y, x = place // 8, place % 8
            box = torch.stack([x, y, x + 3, y + 3]).float()[None]
            found.append({"boxes": box, "scores": scores[0].max()[None], "labels": torch.tensor([1])})
        return found

    def targets(self, seed: int) -> Any:
        corners = torch.randint(0, 5, (6, 2), generator=torch.Generator().manual_seed(seed)).float()
        return [{"boxes": torch.cat([c, c + 3])[None].repeat(2, 1), "labels": torch.tensor([1, 2])} for c in corners]


class TestKeypoints(Pooled):
    outputs = 6

    def task(self) -> sc.Task:
        return sc.task("keypoints", threshold=0.5)

    def targets(self, seed: int) -> Any:
        return torch.cat([randn(6, 3, 2, seed=seed), (torch.arange(18).reshape(6, 3, 1) % 4 > 0).float()], 2)


class TestRegression(Pooled):
    outputs = 1

    def task(self) -> sc.Task:
        return sc.task("regression", unit="m")

    def targets(self, seed: int) -> Any:
        return randn(6, seed=seed + 5)


class TestImageToImage(OnImages):
    outputs = 3

    def task(self) -> sc.Task:
        return sc.task("image-to-image")

    def targets(self, seed: int) -> Any:
        return randn(6, 3, 8, 8, seed=seed + 9)


class Tokens(nn.Module):
    """A tiny decoder without attention."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.head = nn.Embedding(11, 8), nn.Linear(8, 11)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:
        return {"logits": self.head(self.embed(input_ids) * attention_mask[..., None])}


class TestLanguageModel(TaskContract):
    def task(self) -> sc.Task:
        return sc.task("language-model")

    def network(self) -> nn.Module:
        return Tokens()

    def example(self) -> Any:
        return {"input_ids": torch.zeros(1, 5, dtype=torch.long), "attention_mask": torch.ones(1, 5)}

    def batches(self) -> list[Any]:
        found = []
        for seed in (1, 2):
            ids = torch.randint(0, 11, (4, 5), generator=torch.Generator().manual_seed(seed))
            found.append({"input_ids": ids, "attention_mask": torch.ones(4, 5)})
        return found


@dataclass
class Both:
    """Outputs of a network of one's own."""

    near: Tensor
    far: list[Tensor]


class Nested(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(4, 3)

    def forward(self, first: Tensor, second: Tensor) -> Both:
        return Both(self.layer(first), [self.layer(second), second.long()])

    def cost(self, outputs: Both) -> Tensor:
        return outputs.near.square().mean() + outputs.far[0].mean()


class TestNests(TaskContract):
    """Batches of named tuples and dicts, outputs a dataclass, a metric per sample, a loss of the network's own."""

    def task(self) -> sc.Task:
        module = Nested()
        return sc.Task(
            lambda outputs, batch: module.cost(outputs),
            lambda outputs, batch: (outputs.near - batch["wanted"]["value"]).abs().mean(1),
            name="error",
            better="lower",
            inputs=lambda batch: (batch["pair"][0], batch["pair"][1]),
        )

    def network(self) -> nn.Module:
        return Nested()

    def example(self) -> Any:
        return torch.zeros(1, 4), torch.zeros(1, 4)

    def batches(self) -> list[Any]:
        return [
            {"pair": (randn(5, 4, seed=seed), randn(5, 4, seed=seed + 3)), "wanted": {"value": randn(5, 3)}, "n": 5}
            for seed in (1, 2)
        ]


class Reader(Tokens):
    """A classifier of tokens whose answer is what Hugging Face's networks give."""

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Any:
        outputs = pytest.importorskip("transformers.modeling_outputs", exc_type=ImportError)
        mean = (self.embed(input_ids) * attention_mask[..., None]).mean(1)
        return outputs.SequenceClassifierOutput(logits=self.head(mean), hidden_states=(mean,))


class TestClassificationOfTokens(TestLanguageModel):
    """A batch that is a dict, an output that is a ModelOutput, and one label per sample."""

    def task(self) -> sc.Task:
        return sc.task("classification")

    def network(self) -> nn.Module:
        return Reader()

    def batches(self) -> list[Any]:
        return [{**batch, "labels": torch.arange(4) % 3} for batch in super().batches()]


class Spread:
    """A metric that wants all predictions at once, and can be put together from parts."""

    higher_is_better = False

    def __init__(self) -> None:
        self.seen: list[Tensor] = []

    def update(self, near: Tensor, wanted: Tensor) -> None:
        self.seen.append((near - wanted).flatten())

    def compute(self) -> Tensor:
        return torch.cat(self.seen).std()

    def reset(self) -> None:
        self.seen = []

    def merge_state(self, other: Spread) -> None:
        self.seen = [*self.seen, *other.seen]


class TestMetricOfAllPredictions(TestNests):
    def task(self) -> sc.Task:
        return replace(
            super().task(),
            metric=Spread(),
            better=None,
            compared=lambda outputs, batch: (outputs.near, batch["wanted"]["value"]),
        )


class TestFrames(TestClassification):
    """Classes of what is no image: frames of a recording."""

    def network(self) -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(20, 4))

    def example(self) -> Any:
        return torch.zeros(1, 5, 4)

    def batches(self) -> list[Any]:
        return [(randn(6, 5, 4, seed=seed), self.targets(seed)) for seed in (1, 2)]


def test_every_named_task_is_held_to_the_laws() -> None:
    held = {made.task(made()).kind for made in globals().values() if _is_contract(made)}  # type: ignore[attr-defined]
    assert held >= set(NAMED)


def _is_contract(made: object) -> bool:
    return isinstance(made, type) and issubclass(made, TaskContract) and made.__name__.startswith("Test")


pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
