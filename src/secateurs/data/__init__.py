"""Labelled images: opening, splitting, batches, augmentation and accuracy."""

from __future__ import annotations

from secateurs.data.accuracy import Evaluation, accuracy, evaluate
from secateurs.data.augmentation import Augmentation
from secateurs.data.images import Batch, Data, Images, Source
from secateurs.data.opening import from_loaders, open_data

__all__ = [
    "Augmentation",
    "Batch",
    "Data",
    "Evaluation",
    "Images",
    "Source",
    "accuracy",
    "evaluate",
    "from_loaders",
    "open_data",
]
