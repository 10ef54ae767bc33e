"""A tiny fine-tuning job with everything random in it; run as a program it can die in the middle.

python small_job.py FOLDER STEP every-step|every-epoch      killed at STEP
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from types import TracebackType

import numpy as np
import torch
from torch import Tensor, nn

from secateurs.data import Augmentation, Data, Images
from secateurs.models import Preprocessing
from secateurs.progress import Task
from secateurs.recover import finetune as loop
from secateurs.recover.recipe import Recipe

RECIPE = Recipe(epochs=3, lr=0.05, batch=16, precision="fp32", layout="contiguous", ema=0.9, seed=7)


class Noise:
    """Random images whose class is visible in one corner."""

    def __init__(self, count: int) -> None:
        generator = np.random.default_rng(0)
        self.labels = generator.integers(0, 3, count)
        pixels = generator.integers(0, 256, (count, 8, 8, 3), dtype=np.uint8)
        pixels[:, :6, :6, 0] = (self.labels * 120)[:, None, None]
        self.pixels = torch.from_numpy(pixels)

    def fetch(self, rows: np.ndarray) -> Tensor:
        return self.pixels[torch.from_numpy(rows)]


def data() -> Data:
    source = Noise(120)

    def images(first: int, last: int, name: str) -> Images:
        return Images(source, np.arange(first, last), Preprocessing(), Augmentation(pad=1, flip=True), name)

    return Data(
        images(0, 80, "train"), images(0, 40, "calibration"), images(80, 100, "validation"), images(100, 120, "t")
    )


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.2), nn.Flatten(), nn.Linear(288, 3)
    )


class Killer:
    """Progress that ends the process without any warning at one step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def task(self, name: str, total: int | None = None) -> Task:
        return self

    def say(self, message: str) -> None:
        pass

    def advance(self, steps: int = 1, note: str = "") -> None:
        self.step -= steps
        if self.step == 0 and steps:
            os.kill(os.getpid(), signal.SIGKILL)

    def __enter__(self) -> Task:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass


def main(folder: Path, step: int, every_step: bool) -> None:
    torch.set_num_threads(1)
    if every_step:
        loop._SAVE_SECONDS = loop._SAVE_FACTOR = 0.0
    loop.finetune(
        network(), data(), RECIPE, teacher=network(1), checkpoint_dir=folder, resume=True, progress=Killer(step)
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3] == "every-step")
