"""The cycles of a job, in closed form: what the engine takes when no stream makes it wait.

Card. A pass is issued in one piece, slots of a group × groups × rows; passes follow each other without a gap where the
next one is loaded by then, and rows of the first pass wait for the pixels that they need. Exact: equal to the simulated
count in every case that is tested (docs/fpga.md, "Cycles").
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from secateurs.fpga.engine import Engine
from secateurs.fpga.layers import IntegerLayer
from secateurs.fpga.packing import Job, jobs

TO_SUM, TO_RESULT = 8, 19
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
    def of(cls, job: Job) -> Shape:
        """Of a job."""
        loads = tuple(
            Load(job.lead(one) + one.entries, len(one.filters), one.steps(job.engine)) for one in job.passes
        )
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


def job_cycles(job: Job) -> int:
    """Of one job."""
    return Shape.of(job).cycles()


def layer_cycles(layer: IntegerLayer, engine: Engine) -> int:
    """Of a layer, its jobs one after another."""
    return sum(job_cycles(job) for job in jobs(layer, engine))


def useful(jobs_: Sequence[Job]) -> float:
    """Share of products of multipliers and cycles that are a weight times a pixel."""
    done = sum(one.entries * len(one.filters) * job.rows for job in jobs_ for one in job.passes)
    width, engine = jobs_[0].layer.output_hw[1], jobs_[0].engine
    return done * width / (engine.p * engine.q * sum(map(job_cycles, jobs_)))


def streaming(job: Job) -> float:
    """Share of slots, from the first to the last, in which an element is walked, where nothing has to wait."""
    slots = sum(job.lead(one) + one.entries for one in job.passes)
    return sum(one.entries for one in job.passes) / slots
