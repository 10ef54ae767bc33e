"""Networks on the test images, and how two of them are compared, image by image."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor, nn

from secateurs.data import Data, Scored, evaluate
from secateurs.measure.bench import Bench
from secateurs.progress import Progress


@dataclass(frozen=True)
class Difference:
    """Of two accuracies on the same images: ``second - first``, its standard error (paired, as McNemar's test has it),
    and whether it is within two of them."""

    value: float
    error: float

    @property
    def tie(self) -> bool:
        """Whether the images do not tell the two apart."""
        return abs(self.value) <= 2 * self.error + 1e-12


def packed(correct: Tensor) -> str:
    """Which images were right, bool [images], as text for the run folder."""
    return bytes(np.packbits(correct.numpy())).hex()


def unpacked(text: str, images: int) -> np.ndarray:
    """What :func:`packed` was given."""
    return np.unpackbits(np.frombuffer(bytes.fromhex(text), dtype=np.uint8))[:images].astype(bool)


def difference(first: np.ndarray, second: np.ndarray) -> Difference:
    """How two networks differ on the same images, bool [images] each."""
    lost, won, count = int((first & ~second).sum()), int((second & ~first).sum()), len(first)
    variance = (lost + won) / count - ((won - lost) / count) ** 2
    return Difference((won - lost) / count, float(np.sqrt(max(0.0, variance) / count)))


def standard_error(accuracy: float, images: int) -> float:
    """Of an accuracy on so many images."""
    return float(np.sqrt(accuracy * (1 - accuracy) / images))


def deployed_on_test_images(bench: Bench, file: Path, data: Data, progress: Progress) -> Scored:
    """A file on the test images, as the target runs it.

    Raises:
        TargetError: the runtime refuses the file or fails.
    """
    with bench.running(file) as network:
        return evaluate(network, data.test, classes=data.classes, batch=max(64, bench.batch), progress=progress)


def on_test_images(module: nn.Module, data: Data, progress: Progress) -> Scored:
    """A network on the test images."""
    return evaluate(module, data.test, classes=data.classes, progress=progress)
