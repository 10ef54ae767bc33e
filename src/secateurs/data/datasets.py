"""PyTorch data sets and loaders of the user's own."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from secateurs.data.decoding import Sizing
from secateurs.errors import DataError, why

_COMPARED = 8
"""Items whose labels are compared with a data set's own list of them."""


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
        items = [item_of(self.dataset, int(row), self.name, self._input_of) for row in rows]
        try:
            return torch.stack(items)
        except RuntimeError as error:
            forms = sorted({str(tuple(item.shape)) for item in items})
            raise DataError(
                f"The {self.name} data gives inputs of different shapes ({', '.join(forms[:4])}). Resize them to one."
            ) from error

    def _input_of(self, item: Any) -> Tensor:
        value = item[0]
        if isinstance(value, Image.Image):
            return torch.from_numpy(self.sizing.shape(value).copy())
        tensor = torch.as_tensor(value)
        if tensor.dtype == torch.uint8:
            return torch.from_numpy(self.sizing.shape(Image.fromarray(_height_width_channels(tensor))).copy())
        return ready(tensor, f"The {self.name} data")


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
    if hasattr(given, "__getitem__") and hasattr(given, "__len__") and not is_batches(given):
        if next(guarded((len(given) for _ in range(1)), name)) == 0:
            raise DataError(f"The {name} data is empty. Return data with images.")
        _require_as_many(given, name)
        return DatasetSource(given, _labels_of(given, name), sizing, name)
    if isinstance(given, Iterable):
        read = _read_all(given, name)
        if read.inputs.dtype != torch.uint8:
            return read
        held = torch.utils.data.TensorDataset(read.inputs, torch.from_numpy(read.labels))
        return DatasetSource(held, read.labels, sizing, name)
    raise DataError(
        f"The {name} data is {type(given).__name__}. Return a DataLoader, a map-style data set or a list of batches."
    )


def is_batches(given: Any) -> bool:
    """Whether a list or tuple holds batches (as many labels as inputs) and not single items."""
    if not isinstance(given, (list, tuple)) or not given:
        return False
    first = given[0]
    pair = isinstance(first, (list, tuple)) and len(first) == 2
    return pair and _count(first[1]) is not None and _count(first[0]) == _count(first[1])


def _require_as_many(given: Any, name: str) -> None:
    """Nothing, if a list's first entry is no batch whose images and labels differ in number.

    Raises:
        DataError: it is one.
    """
    first = given[0] if isinstance(given, (list, tuple)) else None
    if not isinstance(first, (list, tuple)) or len(first) != 2 or getattr(first[0], "ndim", 0) < 4:
        return
    inputs, labels = _count(first[0]), _count(first[1])
    if labels is not None and inputs != labels:
        raise DataError(f"Batch 0 of the {name} data has {inputs} inputs and {labels} labels. Yield as many of both.")


def _count(values: Any) -> int | None:
    """How many there are in a list or along the first dimension; None for a single value."""
    if isinstance(values, (list, tuple)) or getattr(values, "ndim", 0) > 0:
        return len(values)
    return None


def _labels_of(dataset: Any, name: str) -> np.ndarray:
    """All labels: the data set's own list where it has one (torchvision's ``targets``), else by reading every item."""
    targets = getattr(dataset, "targets", getattr(dataset, "labels", None))
    if targets is None and isinstance(dataset, torch.utils.data.TensorDataset):
        targets = dataset.tensors[1]
    if targets is None or len(targets) != len(dataset) or not _are_those(targets, dataset, name):
        targets = []
        for row in range(len(dataset)):
            item = item_of(dataset, row, name)
            if not isinstance(item, (list, tuple)) or len(item) < 2:
                raise DataError(f"Item {row} of the {name} data is no (input, label) pair. Return pairs.")
            targets.append(item[1])
    return _whole(targets, f"The {name} data")


def item_of(dataset: Any, row: int, name: str, taken: Callable[[Any], Any] = lambda item: item) -> Any:
    """What is ``taken`` of an item of a data set; what the user's code raises is told as such."""
    try:
        return taken(dataset[row])
    except DataError:
        raise
    except (Exception, SystemExit) as error:
        raise DataError(f"Item {row} of the {name} data raised {why(error)}. Repair the data set.") from error


def _are_those(targets: Any, dataset: Any, name: str) -> bool:
    """Whether a data set's own list has the labels that some of its items have: transforms may change them."""
    for row in np.unique(np.linspace(0, len(dataset) - 1, _COMPARED).astype(int)).tolist():
        item = item_of(dataset, row, name)
        try:
            if int(item[1]) != int(targets[row]):
                return False
        except (TypeError, ValueError, IndexError, RuntimeError):
            return False
    return True


def _read_all(batches: Iterable[Any], name: str) -> TensorSource:
    inputs: list[Tensor] = []
    labels: list[np.ndarray] = []
    for number, batch in enumerate(guarded(batches, name)):
        place = f"Batch {number} of the {name} data"
        if not isinstance(batch, (list, tuple)) or len(batch) != 2:
            raise DataError(f"{place} is {type(batch).__name__}, no (inputs, labels) pair. Yield pairs.")
        inputs.append(_batched(batch[0], place))
        labels.append(_whole(_plain(batch[1], place), place))
        if len(inputs[-1]) != len(labels[-1]):
            raise DataError(
                f"{place} has {len(inputs[-1])} inputs and {len(labels[-1])} labels. Yield as many of both."
            )
        here, first = tuple(inputs[-1].shape[1:]), tuple(inputs[0].shape[1:])
        if here != first:
            raise DataError(
                f"{place} has inputs of shape {here}, batch 0 of {first}: all of them must have one size. Resize the "
                f"images to one, or give a folder of them: imagefolder:DIR brings them to the network's size."
            )
        if inputs[-1].dtype != inputs[0].dtype:
            raise DataError(
                f"{place} has {_kind(inputs[-1])} inputs, batch 0 {_kind(inputs[0])}. Yield one number type."
            )
    if not inputs:
        raise DataError(f"The {name} data is empty. Return data with images.")
    return TensorSource(torch.cat(inputs), np.concatenate(labels))


def guarded(batches: Iterable[Any], name: str) -> Iterator[Any]:
    """The batches; what the user's loader raises is told as such."""
    try:
        yield from batches
    except DataError:
        raise
    except (Exception, SystemExit) as error:
        raise DataError(f"The {name} data raised {why(error)}. Make the loader run alone.") from error


def _plain(values: Any, place: str) -> np.ndarray:
    """A batch's labels as an array."""
    try:
        return np.asarray(torch.as_tensor(values).cpu())
    except Exception as error:
        raise DataError(
            f"{place} has labels that are no numbers ({why(error)}). Yield one class index per image."
        ) from error


def _batched(values: Any, place: str) -> Tensor:
    """A batch's inputs as one tensor: float32, or uint8 pixels."""
    try:
        given = (
            torch.stack([torch.as_tensor(value) for value in values]) if isinstance(values, (list, tuple)) else values
        )
        tensor = torch.as_tensor(given).cpu()
    except Exception as error:
        forms = _forms(values)
        raise DataError(
            f"{place} has inputs that make no tensor together ({why(error) if forms is None else forms}). Resize the "
            f"images to one size and stack them: [batch, channels, height, width]."
        ) from error
    if tensor.ndim == 0:
        raise DataError(f"{place} has a single number as its inputs. Yield [batch, channels, height, width].")
    return ready(tensor, place)


def ready(tensor: Tensor, place: str) -> Tensor:
    """Inputs in the number type that networks take; uint8 pixels stay what they are.

    Raises:
        DataError: they are other whole numbers: neither pixels nor ready.
    """
    if tensor.dtype == torch.uint8:
        return tensor
    if not tensor.is_floating_point():
        raise DataError(
            f"{place} has {_kind(tensor)} inputs. Give pixels as uint8 (0-255), or inputs that are ready as floats."
        )
    return tensor.to(torch.get_default_dtype())


def _forms(values: Any) -> str | None:
    """``(3, 32, 32), (3, 24, 24)``: the shapes in a list that has several; None where it has not."""
    if not isinstance(values, (list, tuple)) or not all(isinstance(value, (Tensor, np.ndarray)) for value in values):
        return None
    shapes = sorted({str(tuple(value.shape)) for value in values})
    return f"shapes {', '.join(shapes[:4])}" if len(shapes) > 1 else None


def _kind(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _whole(values: Any, place: str) -> np.ndarray:
    """Class indices int64 [rows] from whole numbers or booleans, a row each."""
    try:
        labels = np.asarray(values)
    except Exception as error:
        raise DataError(f"{place} has labels of different forms ({why(error)}). Give one class index each.") from error
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim == 1 and (np.issubdtype(labels.dtype, np.integer) or labels.dtype == bool):
        return labels.astype(np.int64)
    raise DataError(
        f"{place} has labels of {labels.dtype} and shape {labels.shape}, not one class index each. {_mend(labels)}"
    )


def _mend(labels: np.ndarray) -> str:
    """What to do about labels that are no class indices."""
    numbers = np.issubdtype(labels.dtype, np.number) or labels.dtype == bool
    if labels.ndim == 2 and numbers:
        single = bool((np.count_nonzero(labels, axis=1) == 1).all())
        kind = "They are one-hot" if single else "They have several numbers per image"
        return f"{kind}: give the index of the class, such as labels.argmax(1)."
    if labels.ndim == 1 and numbers:
        return (
            "Give whole numbers, such as labels.long()."
            if _are_whole(labels)
            else "Networks are compared as classifiers: give class indices."
        )
    if labels.ndim == 1:
        return "Give each class a number from 0 on, and return that."
    return "Give one whole number per image."


def _are_whole(labels: np.ndarray) -> bool:
    return bool(np.isfinite(labels).all() and (labels == np.round(labels)).all())


def _height_width_channels(tensor: Tensor) -> np.ndarray:
    """uint8 [H, W, 3] or [H, W] from an array in either channel order."""
    array = tensor.numpy()
    if array.ndim == 3 and array.shape[0] in (1, 3) and array.shape[2] not in (1, 3):
        array = array.transpose(1, 2, 0)
    return array[:, :, 0] if array.ndim == 3 and array.shape[2] == 1 else array
