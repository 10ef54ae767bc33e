"""Whether a network that should be trained answers better than chance, and if not, why that may be."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from torch import Tensor

from secateurs.data.accuracy import Scored, evaluate
from secateurs.data.images import Data, Images, Source, gives_pixels
from secateurs.data.samples import Samples
from secateurs.errors import DataError
from secateurs.models.loaded import Loaded
from secateurs.models.preprocessing import CENTERED, IMAGENET, RAW, Preprocessing
from secateurs.progress import Progress, silent

_ERRORS = 2.0
"""So many standard errors above chance count as better."""
_SURE = 0.01
"""Chance is only called so where a network half-way between it and perfect would do so badly this rarely."""
_TRIED = 512
"""Images that other ways of feeding them are tried on."""
_CLEARLY = 0.05


@dataclass(frozen=True)
class Chance:
    """``expected``: accuracy of answers as frequent as the network's that know nothing of the images; ``error``: its
    standard error; ``better``: the network is above that; ``telling``: there are images enough to say so if not;
    ``reordered``: accuracy if the network's classes were named as suits the labels best."""

    accuracy: float
    expected: float
    error: float
    better: bool
    telling: bool
    reordered: float


def judge(found: Scored) -> Chance:
    """How far above chance a network is on labelled images.

    Chance is what the network's own answers would score if they had nothing to do with the labels: also right where one
    class is frequent, or where the network always gives the same answer.
    """
    from scipy.optimize import linear_sum_assignment
    from scipy.stats import binom

    predicted, labels = found.predicted.numpy(), found.labels.numpy()
    size = int(max(predicted.max(), labels.max())) + 1
    table = np.zeros((size, size))
    np.add.at(table, (predicted, labels), 1.0)
    expected = float((table.sum(0) / len(labels)) @ (table.sum(1) / len(labels)))
    error = float(np.sqrt(expected * (1 - expected) / len(labels)))
    half_way = expected + (1 - expected) / 2
    rarely = float(binom.cdf(round(found.value * len(labels)), len(labels), half_way)) < _SURE
    best = table[linear_sum_assignment(table, maximize=True)].sum() / len(labels)
    better = found.top1 > expected + _ERRORS * error
    return Chance(found.top1, expected, error, better, rarely, float(best))


def check_trained(loaded: Loaded, data: Data, found: Scored, *, allow: bool = False) -> tuple[str, ...]:
    """Notes for the user on how the dense network does on the test images.

    Args:
        loaded: the network.
        data: ``test`` is what it was evaluated on.
        found: by :func:`~secateurs.data.accuracy.evaluate`.
        allow: go on where it is at chance.

    Raises:
        DataError: it is at chance, and neither is that allowed nor are its weights known to be random.
    """
    if found.answers is None or isinstance(data.test, Samples):  # what chance is, is known of classes only
        return ()
    chance = judge(found)
    level = f"{chance.expected:.1%} ± {_ERRORS * chance.error:.1%}"
    if chance.better:
        return _order(chance, data, found)
    if not chance.telling:
        return (
            f"{found.images} test images are too few to tell whether the dense network ({chance.accuracy:.2%}) is "
            f"better than chance ({level}).",
        )
    said = f"The dense network is at chance: {chance.accuracy:.2%} of {found.images} test images, chance is {level}."
    if allow or loaded.random:
        return (f"{said} Accuracies of this run say nothing.",)
    raise DataError(
        f"{said} {_tried(loaded, data, chance)}Likely reasons: {'; '.join(_reasons(loaded, data, chance, found))}. To "
        f"prune it all the same: --allow-chance (allow_chance=True)."
    )


def look(loaded: Loaded, data: Data, *, allow: bool = False, progress: Progress = silent) -> tuple[str, ...]:
    """:func:`check_trained` on some of the test images, where nothing else needs all of them."""
    if isinstance(data.test, Samples):
        return ()
    some = replace(data, test=_some(data.test))
    found = evaluate(loaded.module, some.test, data.task, progress=progress)
    return check_trained(loaded, some, found, allow=allow)


def _order(chance: Chance, data: Data, found: Scored) -> tuple[str, ...]:
    """A note where the network's classes seem to be named in another order than the labels."""
    spread = np.sqrt(chance.accuracy * (1 - chance.accuracy) / found.images)
    if chance.reordered - chance.accuracy < max(_CLEARLY, 3 * spread):
        return ()
    return (
        f"Some classes of {data.name} seem to stand in another order than the network's: {chance.accuracy:.2%} of the "
        f"test images are right, {chance.reordered:.2%} if its outputs were named as suits them best. Give "
        f"imagefolder:DIR?classes=FILE with the network's own names, a line each.",
    )


def _reasons(loaded: Loaded, data: Data, chance: Chance, found: Scored) -> Iterator[str]:
    """Why a network that was trained may be at chance, the most likely first."""
    reordered = chance.reordered > chance.expected + (1 - chance.expected) / 2 and found.images >= 5 * found.classes
    if reordered:
        yield (
            f"the order of the classes (its outputs named as suits the labels best, {chance.reordered:.2%} are right: "
            f"?classes=FILE behind an imagefolder gives the network's own names, a line each)"
        )
    if gives_pixels(_labelled(data).source):
        yield f"the normalisation (now {_labelled(data).preprocessing.text}: --normalize)"
    else:
        yield "the normalisation (the data's inputs are floats, taken as they are)"
    if not reordered:
        yield "the order of the classes"
    present = np.unique(_labelled(data).labels)
    if data.classes is None and loaded.classes is not None and len(present) < loaded.classes:
        absent = float(np.isin(found.predicted.numpy(), present, invert=True).mean())
        yield (
            f"the classes themselves (the labels are {len(present)} of the network's {loaded.classes} outputs, and "
            f"{absent:.0%} of its answers are others: --classes present leaves those out)"
        )
    yield "the layout or the order of the channels (RGB, channels first)"
    weights = loaded.source.get("weights")
    yield f"the weights ({weights})" if weights else "the weights (no file was given, so they are the model's own)"


def _tried(loaded: Loaded, data: Data, chance: Chance) -> str:
    """What other ways of feeding the same pixels score, the best one in a sentence; nothing where none helps."""
    images = _some(_labelled(data))
    if not gives_pixels(images.source):
        return ""
    scores: dict[str, float] = {}
    for name, fed in _fed_otherwise(images, loaded.input_shape[0]):
        try:
            scores[name] = evaluate(loaded.module, fed, data.task).value
        except DataError:
            continue
    name, best = max(scores.items(), key=lambda item: item[1], default=("", 0.0))
    if best <= chance.expected + 3 * _ERRORS * chance.error:
        return ""
    of_them = "of them" if len(images) == len(data.test) else f"of {len(images)} of them"
    return f"With {name} it would be {best:.2%} {of_them}. "


def _labelled(data: Data) -> Images:
    """The test images."""
    assert isinstance(data.test, Images)
    return data.test


def _some(images: Images) -> Images:
    """Images from everywhere: a test set often stands in the order of its classes."""
    return images.select(np.unique(np.linspace(0, len(images) - 1, min(_TRIED, len(images))).astype(np.int64)))


def _fed_otherwise(images: Images, channels: int) -> Iterator[tuple[str, Images]]:
    """The same images under other usual preprocessing, and with the channels reversed."""
    half = Preprocessing((0.5,), (0.5,))
    for name, one in (
        ("imagenet", IMAGENET),
        ("none", Preprocessing()),
        ("0.5/0.5", half),
        ("centered", CENTERED),
        ("0-255", RAW),
    ):
        fitting = one.for_channels(channels)
        if fitting == images.preprocessing:
            continue
        yield f"--normalize {name}", replace(images, preprocessing=fitting)
    if channels == 3:
        yield "the channels in reverse order (BGR)", replace(images, source=_Reversed(images.source))


class _Reversed:
    """Pixels with their channels in reverse order."""

    def __init__(self, source: Source) -> None:
        self.source, self.labels = source, source.labels

    def fetch(self, rows: np.ndarray) -> Tensor:
        """uint8 [rows, H, W, channels]."""
        return self.source.fetch(rows).flip(-1)
