"""Fine-tuning of a cut network on few images: batch, rate and epochs; one row each, means over seeds.

    python benchmarks/small_data.py --images 405

Data: scikit-learn's digits 0 to 5 in noisy colours, 16 x 16, made here. The network is trained on all training images
of them, cut to ``--macs`` of its multiply-adds and repaired, and then trained on ``--images`` of them, with the dense
network as its teacher. Rate ``default`` is what the package chooses.
"""

from __future__ import annotations

import argparse
import copy
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from result_rows import append
from sklearn.datasets import load_digits
from torch import Tensor, nn

import secateurs as sc
from secateurs.data import Augmentation, Data, Images, accuracy
from secateurs.models import Preprocessing
from secateurs.provenance import versions
from secateurs.recover.amount import default_batch, default_epochs
from secateurs.recover.finetune import finetune
from secateurs.recover.recipe import Recipe
from secateurs.recover.repair import repair

ROWS = Path(__file__).parent / "results" / "small_data.csv"
SEEDS = (0, 1, 2)
TRAIN, VALIDATION = 720, 80
"""Images of the dense network's training, and of validation; the others are the test."""


class Coloured:
    """Digits in random ink on random paper, with noise."""

    def __init__(self) -> None:
        rng, digits = np.random.default_rng(0), load_digits()
        kept = digits.target < 6
        self.labels = digits.target[kept].astype(np.int64)
        shapes = np.kron(digits.images[kept] / 16, np.ones((1, 2, 2)))[..., None]
        ink, paper = (rng.uniform(*span, (len(shapes), 1, 1, 3)) for span in ((0.3, 1.0), (0.0, 0.5)))
        pixels = shapes * ink + (1 - shapes) * paper + rng.normal(0, 0.4, (*shapes.shape[:3], 3))
        self.pixels = torch.from_numpy((pixels.clip(0, 1) * 255).astype(np.uint8))

    def fetch(self, rows: np.ndarray) -> Tensor:
        """uint8 [rows, 16, 16, 3]."""
        return self.pixels[torch.from_numpy(rows)]


class Block(nn.Module):
    """Two convolutions beside a shortcut."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels)
        self.conv2, self.bn2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        """[batch, channels, H, W] to the same."""
        return (x + self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))).relu()


def network() -> nn.Module:
    """Two residual blocks, 32 and 64 channels."""
    torch.manual_seed(0)
    stem = (nn.Conv2d(3, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU(), Block(32))
    tail = (nn.Conv2d(32, 64, 3, stride=2, padding=1), nn.ReLU(), Block(64), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return nn.Sequential(*stem, *tail, nn.Linear(64, 6))


def images() -> Data:
    """The four splits."""
    source = Coloured()
    rows = np.random.default_rng(1).permutation(len(source.labels))

    def part(first: int, last: int, name: str) -> Images:
        return Images(source, rows[first:last], Preprocessing((0.5,), (0.25,)), Augmentation(2, flip=True), name)

    ends = (0, TRAIN, TRAIN + VALIDATION, len(rows))
    train, validation, test = (
        part(*span, name) for *span, name in zip(ends, ends[1:], ("train", "val", "test"), strict=False)
    )
    return Data(train, train.take(TRAIN // 4), validation, test, name="coloured digits")


def main() -> None:
    """Appends the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=405)
    parser.add_argument("--macs", default="25%")
    given = parser.parse_args()
    torch.set_num_threads(1)
    data, dense = images(), network()
    finetune(dense, data, Recipe(epochs=25, lr=0.05, batch=16, alpha=0.0, precision="fp32", augment=False))
    few = data.train.take(given.images)
    data = replace(data, train=few, calibration=few.take(len(few) // 4))
    graph = sc.trace(dense, torch.randn(1, 3, 16, 16))
    plan = sc.plan(graph, macs=given.macs, criterion="fisher_obs", data=list(data.calibration.batches(64)))
    small = sc.apply(dense, plan, check=False).eval()
    repair(dense, small, plan, data)
    before = {"dense": accuracy(dense, data.test), "repaired": accuracy(small, data.test)}
    chosen = default_batch(len(few))
    for batch in sorted({chosen, 128}):
        for rate in (None, 0.001, 0.01, 0.03):
            for epochs in sorted({1, 3, default_epochs(len(few), batch)}):
                recipe = Recipe(epochs=epochs, lr=rate, batch=batch, precision="fp32", layout="contiguous")
                reached = [_trained(small, dense, data, replace(recipe, seed=seed)) for seed in SEEDS]
                row = {
                    "images": given.images,
                    "macs": given.macs,
                    "batch": batch,
                    "rate": "default" if rate is None else rate,
                    "epochs": epochs,
                    "steps": epochs * max(1, len(few) // batch),
                    **{f"accuracy_{name}": round(value, 4) for name, value in before.items()},
                    "accuracy": round(float(np.mean(reached)), 4),
                    "spread": round(float(np.std(reached)), 4),
                    "test_images": len(data.test),
                    "versions": json.dumps(versions()),
                }
                append(row, ROWS)
                print(f"batch {batch}, rate {row['rate']}, {epochs} epochs: {row['accuracy']:.2%}", flush=True)


def _trained(small: nn.Module, dense: nn.Module, data: Data, recipe: Recipe) -> float:
    student = copy.deepcopy(small)
    finetune(student, data, recipe, teacher=dense)
    return accuracy(student, data.test)


if __name__ == "__main__":
    main()
