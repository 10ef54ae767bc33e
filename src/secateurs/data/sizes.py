"""Which input a network takes, by the images of its data."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader

from secateurs.data.datasets import guarded, is_batches
from secateurs.data.decoding import Sizing, opened
from secateurs.data.files.pictures import images_in
from secateurs.data.files.sound import longest
from secateurs.data.files.table import images_of_table, numbers_per_row, table_has_images
from secateurs.data.imagefolder import class_names, find_parts, open_folder
from secateurs.data.named import Named
from secateurs.data.parquet import sample
from secateurs.errors import DataError

_LOOKED_AT = 64
_GIVE = "Give the size that the network was trained for: --input 1,3,HEIGHT,WIDTH."


def input_shape(data: Named, module: nn.Module) -> tuple[int, ...]:
    """(channels, height, width) of the data's images; the channels are those of the network's first convolution where
    images can be brought to it. Of other data the shape of one input.

    Raises:
        DataError: the images have several sizes, or the data gives no images.
    """
    if data.kind == "audio":
        first = next((layer for layer in module.modules() if isinstance(layer, (nn.Conv1d, nn.Linear))), None)
        samples = longest(Path(data.where), data.options)
        return (1, samples) if isinstance(first, nn.Conv1d) and first.in_channels == 1 else (samples,)
    if data.kind == "csv" and not table_has_images(data.options):
        return (numbers_per_row(data.where, data.options),)
    forms = list(_forms(data))
    sizes = sorted({(form.height, form.width) for form in forms})
    if len(sizes) > 1:
        listed = ", ".join(f"{height}x{width}" for height, width in sizes[:3])
        raise DataError(
            f"The images of {data.name} have several sizes ({listed} ...), so none can be taken from them. {_GIVE}"
        )
    if not sizes:
        raise DataError(f"No image of {data.name} can be read, so its size is not known. {_GIVE}")
    wanted = next((layer.in_channels for layer in module.modules() if isinstance(layer, nn.Conv2d)), None)
    convertible = wanted in (1, 3) and not any(form.ready for form in forms)
    return wanted if wanted is not None and convertible else max(form.channels for form in forms), *sizes[0]


class _Form(NamedTuple):
    """Of one image; ``ready``: a float input, which is taken as it is."""

    channels: int
    height: int
    width: int
    ready: bool = False


def _forms(data: Named) -> Iterator[_Form]:
    """Of some images."""
    if data.kind == "digits":
        yield _Form(1, 8, 8)
    elif data.kind == "factory":
        yield from _of_loader(data.made[0])
    else:
        yield from filter(None, map(_header, _encoded(data)))


def _encoded(data: Named) -> Iterable[bytes | Path]:
    """Some encoded images of the training part."""
    if data.kind in ("coco", "yolo", "segmentation"):
        folder = Path(data.where) if data.kind != "yolo" else Path(data.where).parent
        masks = ("masks", "labels", "annotations")
        found = [path for path in images_in(folder) if not set(path.relative_to(folder).parts) & set(masks)]
        return found[:: max(1, len(found) // _LOOKED_AT)]
    if data.kind == "csv":
        return images_of_table(data.where, data.options)[:_LOOKED_AT]
    if data.kind == "parquet":
        first, most = Path(data.where.partition(",")[0]), int(data.options.get("unpack", 0)) << 30
        return sample(first, _LOOKED_AT, data.options.get("image"), most)
    train, _ = find_parts(Path(data.where))
    listing = data.options.get("classes")
    names = class_names(train, None if listing is None else Path(listing))
    items = open_folder(train, Sizing(1, 1, 3, "crop"), names).items
    return [items[round(place * (len(items) - 1) / (_LOOKED_AT - 1))] for place in range(_LOOKED_AT)]


def _header(item: bytes | Path) -> _Form | None:
    try:
        with opened(item) as image:
            return _of_image(image)
    except Exception:  # broken images are told when they are read
        return None


def _of_image(image: Image.Image) -> _Form:
    return _Form(1 if image.mode in ("1", "L", "I", "F", "I;16") else 3, image.height, image.width)


def _of_loader(given: Any) -> Iterator[_Form]:
    """Of ready inputs the first; of pixels, which may differ in size, some."""
    if isinstance(given, DataLoader) and hasattr(given.dataset, "__getitem__"):
        given = given.dataset
    if hasattr(given, "__getitem__") and hasattr(given, "__len__") and not is_batches(given):
        inputs: Iterable[Any] = (given[row][0] for row in range(len(given)))
    else:
        inputs = (image for batch in given for image in batch[0])
    for value in islice(guarded(inputs, "training"), _LOOKED_AT):
        if isinstance(value, Image.Image):
            yield _of_image(value)
            continue
        image = torch.as_tensor(value)
        if image.ndim not in (2, 3):
            raise DataError(
                f"The data gives inputs of shape {tuple(image.shape)}, not images [channels, height, width]. {_GIVE}"
            )
        yield _of_tensor(image)
        if image.dtype != torch.uint8:
            return


def _of_tensor(image: Tensor) -> _Form:
    """Pixels may have either order of the dimensions."""
    first, second, third = (1, *image.shape) if image.ndim == 2 else image.shape
    if image.dtype != torch.uint8:
        return _Form(first, second, third, ready=True)
    return _Form(third, first, second) if first not in (1, 3) and third in (1, 3) else _Form(first, second, third)
