"""scikit-learn's handwritten digits: real data that needs no download."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from secateurs.data.decoding import Sizing


class Digits:
    """1797 digits of 8x8 pixels (UCI, Alpaydin and Kaynak), scaled up bilinearly."""

    def __init__(self, sizing: Sizing) -> None:
        from sklearn.datasets import load_digits

        bundle = load_digits()
        self.labels = np.asarray(bundle.target, dtype=np.int64)
        small = np.round(bundle.images * (255 / 16)).astype(np.uint8)
        stretched = Sizing(sizing.height, sizing.width, sizing.channels, "stretch")
        self._pixels = torch.from_numpy(np.stack([stretched.shape(Image.fromarray(digit)) for digit in small]))

    def fetch(self, rows: np.ndarray) -> Tensor:
        """uint8 [rows, H, W, channels]."""
        return self._pixels[torch.from_numpy(np.asarray(rows, dtype=np.int64))]
