"""Labelled images: opening, splitting, batches, augmentation and accuracy."""

from __future__ import annotations

from secateurs.data.accuracy import Scored, accuracy, evaluate
from secateurs.data.augmentation import Augmentation
from secateurs.data.chance import check_trained, look
from secateurs.data.images import Batch, Data, Images, Source
from secateurs.data.named import Named
from secateurs.data.opening import from_loaders, given, open_data, with_unused_told

__all__ = [
    "Augmentation",
    "Batch",
    "Data",
    "Images",
    "Named",
    "Scored",
    "Source",
    "accuracy",
    "check_trained",
    "evaluate",
    "from_loaders",
    "given",
    "look",
    "open_data",
    "with_unused_told",
]
