"""Layers to the engine's streams: settings, masks of the elements that stay, weights; and what each of these takes.

docs/fpga.md has the format. A job is a layer, or as many of its rows as the line buffer holds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from secateurs.errors import PlanError
from secateurs.fpga.engine import SETTINGS, Engine
from secateurs.fpga.layers import ADD_BITS, IntegerLayer
from secateurs.fpga.tiling import check_rows, pitch, row_words, tiles

_REUSED = 64
"""Indexes are used again where that costs at most one in so many elements more."""


@dataclass(frozen=True)
class Pass:
    """A block of filters: ``filters`` their numbers; ``kept`` bool [channels, kh, kw]; ``fresh``: it brings masks."""

    filters: tuple[int, ...]
    kept: np.ndarray
    fresh: bool

    @property
    def entries(self) -> int:
        """Elements that are walked."""
        return int(self.kept.sum())

    def steps(self, engine: Engine) -> int:
        """Cycles that its loading takes once its half of the buffer is free."""
        head = 1 + 2 * len(self.filters)
        if not self.fresh:
            return head + self.entries
        rows = self.kept.reshape(-1, self.kept.shape[-1]).sum(1)
        return head + mask_words(engine, self.kept.shape) + int(np.maximum(rows, 1).sum())

    def words(self, engine: Engine) -> int:
        """Words of s_cfg that it takes."""
        masks = mask_words(engine, self.kept.shape) if self.fresh else 0
        return 1 + 2 * len(self.filters) + masks + self.entries


def mask_words(engine: Engine, shape: Sequence[int]) -> int:
    """Words that hold the masks of [channels, kh, kw]."""
    channels, rows, columns = shape
    return -(-channels * rows // (8 * engine.p // columns))


def passes(layer: IntegerLayer, engine: Engine, kept: np.ndarray | None = None) -> tuple[Pass, ...]:
    """The blocks of a layer's filters with the elements of which any filter has a weight.

    ``kept`` bool, shaped like the weight: these instead (a dense layer is all True).
    """
    stays = layer.weight != 0 if kept is None else kept
    order = layer.order or tuple(range(len(layer.weight)))
    found: list[Pass] = []
    for start in range(0, len(order), engine.p):
        filters = order[start : start + engine.p]
        own = np.asarray(stays[list(filters)].any(axis=0), dtype=bool)
        if not own.any():
            own[0, 0, 0] = True  # a block without elements still writes its biases
        if found and not (own & ~found[-1].kept).any() and _near(own, found[-1].kept):
            found.append(Pass(filters, found[-1].kept, False))
        else:
            found.append(Pass(filters, own, True))
    return tuple(found)


def _near(own: np.ndarray, other: np.ndarray) -> bool:
    return int(other.sum() - own.sum()) * _REUSED <= int(own.sum())


@dataclass(frozen=True)
class EngineJob:
    """Rows of a layer that the engine computes at once.

    ``first``, ``rows``: of the output; ``top``: rows of padding above; ``taken``: (first, count) of the input's rows.
    """

    layer: IntegerLayer
    engine: Engine
    passes: tuple[Pass, ...]
    first: int
    rows: int
    top: int
    taken: tuple[int, int]

    @property
    def groups(self) -> int:
        """Of output columns."""
        return -(-self.layer.output_hw[1] // self.engine.q)

    @property
    def row_words(self) -> int:
        """Words of the input in a row."""
        return row_words(self.layer.geometry, self.engine)

    @property
    def settings(self) -> int:
        """Words in front of the passes."""
        rows, columns = self.layer.weight.shape[2:]
        return SETTINGS + 2 * columns + rows

    @property
    def least(self) -> int:
        """Slots that a group takes at least, so that results are away before the next ones come."""
        return min(self.engine.p, len(self.layer.weight))

    @property
    def rows_needed(self) -> int:
        """Rows of the input that the first row of the output needs."""
        return self.layer.weight.shape[2] - self.top

    def lead(self, one: Pass) -> int:
        """Empty slots in front of a group's elements."""
        return max(0, self.least - one.entries)


def jobs(layer: IntegerLayer, engine: Engine, kept: np.ndarray | None = None) -> tuple[EngineJob, ...]:
    """The layer in pieces that the engine can hold; ``kept``: as in :func:`passes`.

    Raises:
        PlanError: it fits in no piece, or its sums do not fit.
    """
    blocks = passes(layer, engine, kept)
    _check(layer, engine, blocks)
    return tuple(
        EngineJob(layer, engine, blocks, one.first, one.rows, one.top, one.taken)
        for one in tiles(layer.geometry, engine)
    )


def _check(layer: IntegerLayer, engine: Engine, blocks: Sequence[Pass]) -> None:
    most = max(one.entries for one in blocks)
    check_rows(layer.name, layer.geometry, engine)
    if most > engine.elements:
        raise PlanError(
            f"Layer {layer.name} has {most} kernel elements in a block of {engine.p} filters, and the engine's weight "
            f"buffer holds {engine.elements}. Choose an engine with a larger one, or prune the layer."
        )
    largest = int((255 * np.abs(layer.weight.astype(np.int64))).reshape(len(layer.weight), -1).sum(1).max())
    biased = int(np.abs(folded_bias(layer)).max()) + largest
    if largest >= 1 << (engine.bits - 1) or biased >= 1 << 31:
        raise PlanError(
            f"Sums of layer {layer.name} reach {biased}, which {engine.bits} bits do not hold. Choose an engine of "
            f"wider sums, or prune the layer."
        )


def folded_bias(layer: IntegerLayer) -> np.ndarray:
    """Biases that take off the input's zero point: products are of bytes as they are."""
    weights = layer.weight.astype(np.int64).reshape(len(layer.weight), -1).sum(1)
    return np.asarray(layer.bias - layer.zero_in * weights)


# ---- words of s_cfg; what is not a weight is a 32-bit field in the low bytes of a word


def configuration(job: EngineJob) -> np.ndarray:
    """Words of s_cfg of a job, uint8 [words, p], lane 0 first."""
    parts = [_fields(_settings(job), job.engine)]
    for one in job.passes:
        parts += [_fields(_head(job, one), job.engine), _elements(job, one)]
    return np.concatenate(parts)


def _fields(values: Sequence[int], engine: Engine) -> np.ndarray:
    words = np.zeros((len(values), engine.p), dtype=np.uint8)
    numbers = np.array([value & 0xFFFFFFFF for value in values], dtype="<u4")
    words[:, :4] = numbers.view(np.uint8).reshape(-1, 4)
    return words


def _settings(job: EngineJob) -> list[int]:
    layer, engine = job.layer, job.engine
    _, channels, rows, columns = layer.weight.shape
    stored = pitch(layer.geometry, engine)
    words = [
        rows | columns << 4 | (layer.stride == 2) << 8 | (layer.add is not None) << 9 | len(job.passes) << 16,
        job.row_words | job.taken[1] << 16,
        job.groups | job.rows << 16,
        channels | (stored // 2 if layer.stride == 2 else 0) << 16,
        stored | (layer.stride * stored & 0xFFFF) << 16,
        layer.zero_in | layer.low << 8 | layer.high << 16 | layer.zero << 24,
        8 * engine.p // columns << 8 | (job.rows_needed & 0xFFFF) << 16,
        (-job.top * stored & 0xFFFF) | (-job.top & 0xFFFF) << 16,
        *_addition(layer),
    ]
    for column in range(columns):
        words += _column(job, column)
    return [*words, *(row * stored for row in range(rows))]


def _addition(layer: IntegerLayer) -> list[int]:
    add = layer.add
    if add is None:
        return [0] * 4
    if max(add.own, add.other) >= 1 << ADD_BITS:
        raise PlanError(
            f"Layer {layer.name} weighs what it adds by {max(add.own, add.other) / 2**24:.3g}, 8 at most can be "
            f"written. Calibrate the network with more samples."
        )
    return [add.own, add.other, add.zero_other | add.zero << 8, add.low | add.high << 8]


def _column(job: EngineJob, column: int) -> list[int]:
    """Two words of a column of the kernel: where its pixels lie in the line buffer, and which of them exist."""
    layer, q = job.layer, job.engine.q
    offset = column - layer.padding[1]
    odd = offset % 2 if layer.stride == 2 else 0
    shift = (offset - odd) // layer.stride
    word, inside = divmod(shift, q)
    turn = (inside + odd * q // 2) % q
    width = layer.input_hw[1]
    limit = width if layer.stride == 1 else (width + 1 - odd) // 2
    channels = layer.weight.shape[1]
    at = word * channels + odd * (pitch(layer.geometry, job.engine) // 2)
    return [(at & 0xFFFF) | turn << 16 | inside << 21, limit | (shift & 0xFFFF) << 16]


def _head(job: EngineJob, one: Pass) -> list[int]:
    layer = job.layer
    words = [one.entries | len(one.filters) << 16 | one.fresh << 24 | job.lead(one) << 25]
    bias = folded_bias(layer)
    for filter_ in one.filters:
        words += [int(bias[filter_]), int(layer.multiplier[filter_]) | int(layer.shift[filter_]) << 24]
    return words


def _elements(job: EngineJob, one: Pass) -> np.ndarray:
    """Weights of a pass, element by element, behind each word of masks those that it tells of."""
    p = job.engine.p
    channels, rows, columns = one.kept.shape
    weights = np.zeros((one.entries, p), dtype=np.uint8)
    weights[:, : len(one.filters)] = job.layer.weight[list(one.filters)][:, one.kept].T.view(np.uint8)
    if not one.fresh:
        return weights
    in_word = 8 * p // columns
    masks = one.kept.reshape(channels * rows, columns)
    counts, parts, done = masks.sum(1), [], 0
    for start in range(0, len(masks), in_word):
        part = masks[start : start + in_word]
        bits = np.zeros(8 * p, dtype=np.uint8)
        bits[: part.size] = part.ravel()
        count = int(counts[start : start + in_word].sum())
        parts += [np.packbits(bits, bitorder="little")[None], weights[done : done + count]]
        done += count
    return np.concatenate(parts)


# ---- words of pixels


def to_words(x: np.ndarray, q: int) -> np.ndarray:
    """Bytes [channels, H, W] as words [H * groups * channels, q]: rows, groups of columns, channels."""
    channels, height, width = x.shape
    padded = np.pad(x, ((0, 0), (0, 0), (0, -width % q)))
    return np.ascontiguousarray(padded.reshape(channels, height, -1, q).transpose(1, 2, 0, 3)).reshape(-1, q)


def pixels(job: EngineJob, x: np.ndarray) -> np.ndarray:
    """Words of s_pix of the layer's input [channels, H, W]."""
    first, count = job.taken
    return to_words(x[:, first : first + count], job.engine.q)


def results(job: EngineJob, y: np.ndarray) -> np.ndarray:
    """Bytes [filters, H, W] as words in the order of m_out; of what is added, those of s_res."""
    rows = y[:, job.first : job.first + job.rows]
    return np.concatenate([to_words(rows[list(one.filters)], job.engine.q) for one in job.passes])


def from_words(job: EngineJob, words: np.ndarray, y: np.ndarray) -> None:
    """Put a job's words of m_out [words, q] where they belong in ``y`` [filters, H, W]."""
    width, at = job.layer.output_hw[1], 0
    for one in job.passes:
        count = job.rows * job.groups * len(one.filters)
        part = words[at : at + count].reshape(job.rows, job.groups, len(one.filters), -1).transpose(2, 0, 1, 3)
        flat = part.reshape(len(one.filters), job.rows, -1)[:, :, :width]
        y[list(one.filters), job.first : job.first + job.rows] = flat
        at += count


@dataclass(frozen=True)
class Bits:
    """Of a layer's stream: weights, masks that say what stays, and the rest (settings, biases, multipliers)."""

    weights: int
    indexes: int
    others: int

    @classmethod
    def of(cls, job: EngineJob) -> Bits:
        """Of a job, filters that are not there not counted."""
        weights = sum(8 * one.entries * len(one.filters) for one in job.passes)
        words = sum(mask_words(job.engine, one.kept.shape) for one in job.passes if one.fresh)
        others = job.settings + sum(1 + 2 * len(one.filters) for one in job.passes)
        return cls(weights, 8 * job.engine.p * words, 32 * others)

    @property
    def overhead(self) -> float:
        """Bits of indexes per bit of weights."""
        return self.indexes / max(1, self.weights)
