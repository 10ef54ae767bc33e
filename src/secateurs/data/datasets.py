"""PyTorch data sets and loaders of the user's own."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from secateurs.data.decoding import Sizing
from secateurs.errors import DataError


class DatasetSource:
    """Rows of a map-style data set of (input, label) pairs.

    Float tensors are taken as they are: normalised and augmented by the user. PIL images and uint8 arrays are
    brought to the wanted size and get the model's preprocessing.
    """

    def __init__(self, dataset: Any, labels: np.ndarray, sizing: Sizing, name: str) -> None:
        self.dataset = dataset
        self.labels = labels
        self.sizing = Sizing(sizing.height, sizing.width, sizing.channels, "crop")
        self.name = name

    def fetch(self, rows: np.ndarray) -> Tensor:
        """uint8 [rows, H, W, channels] or float [rows, ...].

        Raises:
            DataError: the data set raised, or its items differ in kind or shape.
        """
        items = []
        for row in rows:
            try:
                items.append(self._input(self.dataset[int(row)][0]))
            except DataError:
                raise
            except Exception as error:
                raise DataError(
                    f"Item {int(row)} of the {self.name} data raised {type(error).__name__}: {error}. "
                    f"Repair the data set."
                ) from error
        try:
            return torch.stack(items)
        except RuntimeError as error:
            forms = sorted({str(tuple(item.shape)) for item in items})
            raise DataError(
                f"The {self.name} data gives inputs of different shapes ({', '.join(forms[:4])}). Resize them to one."
            ) from error

    def _input(self, value: Any) -> Tensor:
        if isinstance(value, Image.Image):
            return torch.from_numpy(self.sizing.shape(value).copy())
        tensor = torch.as_tensor(value)
        if tensor.dtype == torch.uint8:
            return torch.from_numpy(self.sizing.shape(Image.fromarray(_height_width_channels(tensor))).copy())
        return tensor.to(torch.get_default_dtype())


class TensorSource:
    """Rows of ready inputs and labels that are held in memory."""

    def __init__(self, inputs: Tensor, labels: np.ndarray) -> None:
        self.inputs = inputs
        self.labels = labels

    def fetch(self, rows: np.ndarray) -> Tensor:
        """The inputs at ``rows``."""
        return self.inputs[torch.from_numpy(np.asarray(rows, dtype=np.int64))]


def wrap(given: Any, sizing: Sizing, name: str) -> DatasetSource | TensorSource:
    """A source of rows from a loader, a map-style data set, or an iterable of batches.

    The loader's own batch size and order are not used. An iterable of batches is read into memory once.

    Raises:
        DataError: it is none of these, is empty, or its items are no (input, label) pairs.
    """
    if isinstance(given, DataLoader) and not isinstance(given.dataset, IterableDataset):
        given = given.dataset
    if hasattr(given, "__getitem__") and hasattr(given, "__len__") and not _is_batch_list(given):
        if len(given) == 0:
            raise DataError(f"The {name} data is empty. Return data with images.")
        return DatasetSource(given, _labels_of(given, name), sizing, name)
    if isinstance(given, Iterable):
        return _read_all(given, name)
    raise DataError(
        f"The {name} data is {type(given).__name__}. Return a DataLoader, a map-style data set or a list of batches."
    )


def _is_batch_list(given: Any) -> bool:
    """Whether a list or tuple holds batches (labels are tensors of one dimension) and not single items."""
    if not isinstance(given, (list, tuple)) or not given:
        return False
    first = given[0]
    return isinstance(first, (list, tuple)) and len(first) == 2 and getattr(first[1], "ndim", 0) == 1


def _labels_of(dataset: Any, name: str) -> np.ndarray:
    """All labels: the data set's own list where it has one (torchvision's ``targets``), else by reading every item."""
    targets = getattr(dataset, "targets", getattr(dataset, "labels", None))
    if targets is None and isinstance(dataset, torch.utils.data.TensorDataset):
        targets = dataset.tensors[1]
    if targets is None or len(targets) != len(dataset):
        targets = []
        for row in range(len(dataset)):
            item = dataset[row]
            if not isinstance(item, (list, tuple)) or len(item) < 2:
                raise DataError(f"Item {row} of the {name} data is no (input, label) pair. Return pairs.")
            targets.append(item[1])
    return _whole(targets, name)


def _read_all(batches: Iterable[Any], name: str) -> TensorSource:
    inputs, labels = [], []
    for batch in batches:
        if not isinstance(batch, (list, tuple)) or len(batch) != 2:
            raise DataError(f"A batch of the {name} data is no (inputs, labels) pair. Yield pairs.")
        inputs.append(torch.as_tensor(batch[0]))
        labels.append(torch.as_tensor(batch[1]))
    if not inputs:
        raise DataError(f"The {name} data is empty. Return data with images.")
    return TensorSource(torch.cat(inputs), _whole(torch.cat(labels), name))


def _whole(values: Any, name: str) -> np.ndarray:
    labels = np.asarray(values)
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        raise DataError(
            f"Labels of the {name} data are {labels.dtype} of shape {labels.shape}, not one class index each. "
            f"Return whole numbers."
        )
    return labels.astype(np.int64)


def _height_width_channels(tensor: Tensor) -> np.ndarray:
    """uint8 [H, W, 3] or [H, W] from an array in either channel order."""
    array = tensor.numpy()
    if array.ndim == 3 and array.shape[0] in (1, 3) and array.shape[2] not in (1, 3):
        array = array.transpose(1, 2, 0)
    return array[:, :, 0] if array.ndim == 3 and array.shape[2] == 1 else array
