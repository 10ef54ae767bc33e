"""The cycles of a job, in closed form: what the engine takes when no stream makes it wait.

Card. A pass is issued in one piece, slots of a group × groups × rows; passes follow each other without a gap where the
next one is loaded by then, and rows of the first pass wait for the pixels that they need. Exact: equal to the simulated
count in every case that is tested (docs/fpga.md, "Cycles").
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from secateurs.fpga.engine import SETTINGS, Engine
from secateurs.fpga.layers import IntegerLayer, LayerShape
from secateurs.fpga.packing import EngineJob, jobs, mask_words
from secateurs.fpga.tiling import row_words, tiles

TO_SUM, TO_RESULT = 8, 21
"""Cycles from a group's last slot to its sums being away from the lanes, and to its first word of results."""


@dataclass(frozen=True)
class Load:
    """A pass as far as cycles go: ``slots`` of a group, ``filters``, ``steps`` of its loading."""

    slots: int
    filters: int
    steps: int


@dataclass(frozen=True)
class Shape:
    """A job as far as cycles go: words of settings and of an input row; rows of input and output, groups in a row;
    rows of input that the first row of output needs, and every further one; its passes."""

    settings: int
    row_words: int
    in_rows: int
    rows: int
    groups: int
    needed: int
    stride: int
    passes: tuple[Load, ...]

    @classmethod
    def of(cls, job: EngineJob) -> Shape:
        """Of a job."""
        loads = tuple(Load(job.lead(one) + one.entries, len(one.filters), one.steps(job.engine)) for one in job.passes)
        layer = job.layer
        return cls(
            job.settings, job.row_words, job.taken[1], job.rows, job.groups, job.rows_needed, layer.stride, loads
        )

    def cycles(self) -> int:
        """From the first word of settings to the last word of results, both counted."""
        loaded = self.settings + self.passes[0].steps - 1
        last = [self._first_pass(loaded + 1)]
        for index, one in enumerate(self.passes[1:], start=1):
            begin = loaded + 1
            if index > 1:  # its half of the buffers must be free
                begin = max(begin, last[index - 2] + TO_SUM + self.passes[index - 2].filters)
            loaded = begin + one.steps - 1
            start = max(last[-1], loaded) + 1
            last.append(start + self.rows * self.groups * one.slots - 1)
        return last[-1] + TO_RESULT + self.passes[-1].filters

    @property
    def first_slot(self) -> int:
        """The cycle in which the first element is walked."""
        pixels = self.settings + min(self.needed, self.in_rows) * self.row_words
        return max(self.settings + self.passes[0].steps, pixels)

    def _first_pass(self, start: int) -> int:
        """The cycle of its last slot: rows wait for pixels, which come a word a cycle behind the settings.

        The number of rows that are needed grows evenly until all are, so that one of three rows is the last to wait.
        """
        row = self.groups * self.passes[0].slots
        full = max(0, min(self.rows - 1, -(-(self.in_rows - self.needed) // self.stride)))
        begun = [start]
        for number in {0, max(0, full - 1), full, self.rows - 1}:
            here = min(self.needed + number * self.stride, self.in_rows)
            begun.append(self.settings + here * self.row_words - number * row)
        return max(begun) + self.rows * row - 1


def job_cycles(job: EngineJob) -> int:
    """Of one job."""
    return Shape.of(job).cycles()


def layer_cycles(layer: IntegerLayer, engine: Engine) -> int:
    """Of a layer, its jobs one after another."""
    return sum(job_cycles(job) for job in jobs(layer, engine))


@functools.lru_cache(maxsize=65536)
def expected_cycles(geometry: LayerShape, engine: Engine, entries: int | None = None) -> int:
    """Of a layer of which only the widths are known.

    ``entries``: kernel elements that stay in every block of filters (None: all, which makes the count exact); which
    they are decides how long masks take to read, so that a few cycles are missing or too many.
    """
    loads = tuple(_loads(geometry, engine, entries))
    settings = SETTINGS + 2 * geometry.kernel[1] + geometry.kernel[0]
    groups, total = -(-geometry.output_hw[1] // engine.q), 0
    for tile in tiles(geometry, engine):
        needed = geometry.kernel[0] - tile.top
        words = row_words(geometry, engine)
        total += Shape(settings, words, tile.taken[1], tile.rows, groups, needed, geometry.stride, loads).cycles()
    return total


@functools.lru_cache(maxsize=65536)
def expected_bytes(geometry: LayerShape, engine: Engine, entries: int | None = None) -> int:
    """Bytes that such a layer takes from external memory and gives back, what it adds not counted."""
    total = 0
    settings = SETTINGS + 2 * geometry.kernel[1] + geometry.kernel[0]
    steps = sum(load.steps for load in _loads(geometry, engine, entries))
    groups = -(-geometry.output_hw[1] // engine.q)
    for tile in tiles(geometry, engine):
        pixels = row_words(geometry, engine) * tile.taken[1] + tile.rows * groups * geometry.filters
        total += engine.p * (settings + steps) + engine.q * pixels
    return total


def _loads(geometry: LayerShape, engine: Engine, entries: int | None) -> Iterator[Load]:
    """Passes of a layer of which only the widths are known."""
    rows, columns = geometry.kernel
    each, inputs = geometry.filters // geometry.groups, geometry.channels // geometry.groups
    words, least = mask_words(engine, (geometry.channels, rows, columns)), min(engine.p, geometry.filters)
    before: range | None = None
    for start in range(0, geometry.filters, engine.p):
        filters = min(engine.p, geometry.filters - start)
        met = range(start // each, (start + filters - 1) // each + 1)  # groups of channels
        masks = len(met) * inputs * rows
        count = masks * columns if entries is None else max(1, entries)
        steps = 1 + 2 * filters
        if met == before and geometry.groups == 1:
            steps += count
        else:
            read = count if entries is None else max(count, masks)
            steps += words + read + geometry.channels * rows - masks
        before = met
        yield Load(max(count, least), filters, steps)


def most_entries(geometry: LayerShape, engine: Engine) -> int:
    """Kernel elements of a block of filters when none is pruned."""
    each, inputs = geometry.filters // geometry.groups, geometry.channels // geometry.groups
    spans = (
        (min(start + engine.p, geometry.filters) - 1) // each - start // each + 1
        for start in range(0, geometry.filters, engine.p)
    )
    return max(spans) * inputs * geometry.kernel[0] * geometry.kernel[1]


def useful(jobs_: Sequence[EngineJob]) -> float:
    """Share of products of multipliers and cycles that are a weight times a pixel."""
    done = sum(one.entries * len(one.filters) * job.rows for job in jobs_ for one in job.passes)
    width, engine = jobs_[0].layer.output_hw[1], jobs_[0].engine
    return done * width / (engine.p * engine.q * sum(map(job_cycles, jobs_)))


def streaming(job: EngineJob) -> float:
    """Share of cycles, from the first slot to the last, in which an element is walked."""
    shape = Shape.of(job)
    begin = shape.first_slot
    walked = sum(one.entries for one in job.passes) * job.rows * job.groups
    return walked / (shape.cycles() - TO_RESULT - len(job.passes[-1].filters) - begin + 1)
