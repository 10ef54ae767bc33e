"""Data and what it is for: opening, splitting, batches, augmentation, tasks and their metrics."""

from __future__ import annotations

from secateurs.data.accuracy import Scored, accuracy, evaluate
from secateurs.data.augmentation import Augmentation
from secateurs.data.chance import check_trained, look
from secateurs.data.images import Batch, Data, Images, Source
from secateurs.data.named import FILES, Named
from secateurs.data.opening import from_batches, from_loaders, given, open_data, with_unused_told
from secateurs.data.samples import Samples

__all__ = [
    "FILES",
    "Augmentation",
    "Batch",
    "Data",
    "Images",
    "Named",
    "Samples",
    "Scored",
    "Source",
    "accuracy",
    "check_trained",
    "evaluate",
    "from_batches",
    "from_loaders",
    "given",
    "look",
    "open_data",
    "with_unused_told",
]
