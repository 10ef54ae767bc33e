"""Measured times of the sparse convolution, per layer shape, channels, filters and kept elements; nothing twice."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from secateurs.elements import native
from secateurs.elements.operator import call_arguments, channels_last, geometry
from secateurs.elements.packing import pack
from secateurs.elements.patterns import PatternChoice, choose
from secateurs.elements.selection import DEFAULT_BLOCK
from secateurs.latency.lock import measuring
from secateurs.latency.store import Store, digest
from secateurs.network import LayerSpec
from secateurs.progress import Progress, silent
from secateurs.provenance import store_key

if TYPE_CHECKING:
    from secateurs.latency.targets._base import KnownLatency

_ROUNDS, _RUNS, _TURN_MS = 5, 3, 0.5
"""Rounds over all points, and runs of a point in each: at least so many, and about so long."""
_AT_ONCE = 96
"""Points that are prepared and measured together."""


@dataclass(frozen=True)
class ConvShape:
    """A convolution apart from its widths. ``padding``: top, left, bottom, right."""

    kernel: tuple[int, int]
    stride: tuple[int, int]
    dilation: tuple[int, int]
    padding: tuple[int, int, int, int]
    input_hw: tuple[int, int]

    @classmethod
    def of(cls, layer: LayerSpec, module: torch.nn.Module) -> ConvShape:
        """The shape of a convolution of a traced network; a 1-D one is of height 1."""
        assert isinstance(module, (torch.nn.Conv1d, torch.nn.Conv2d))

        def pair(values: Sequence[int], lead: int) -> tuple[int, int]:
            padded = [lead] * (2 - len(values)) + [int(v) for v in values]
            return padded[0], padded[1]

        kernel, stride = pair(module.kernel_size, 1), pair(module.stride, 1)
        dilation, inside, outside = pair(module.dilation, 1), pair(layer.input_hw, 1), pair(layer.output_hw, 1)
        # What the output's size tells of the padding, however it is written.
        total = [
            max(0, (o - 1) * s + d * (k - 1) + 1 - i)
            for o, s, d, k, i in zip(outside, stride, dilation, kernel, inside, strict=True)
        ]
        padding = (total[0] // 2, total[1] // 2, total[0] - total[0] // 2, total[1] - total[1] // 2)
        return cls(kernel, stride, dilation, padding, inside)

    @property
    def positions(self) -> int:
        """Of the kernel."""
        return self.kernel[0] * self.kernel[1]

    def __str__(self) -> str:
        parts = [f"k{self.kernel[0]}x{self.kernel[1]}", f"s{self.stride[0]}x{self.stride[1]}"]
        parts += [f"d{self.dilation[0]}x{self.dilation[1]}", "p" + ".".join(map(str, self.padding))]
        return "-".join([*parts, f"{self.input_hw[0]}x{self.input_hw[1]}"])


@dataclass(frozen=True)
class KernelPoint:
    """What is timed: a shape with ``channels`` and ``filters`` that keeps ``count`` positions on average."""

    shape: ConvShape
    channels: int
    filters: int
    count: float

    @property
    def signature(self) -> str:
        """The row's name in the store."""
        sides = f"c{self.channels}-f{self.filters}"
        return store_key("sparse-conv", self.shape, sides, f"n{self.count:g}", f"b{DEFAULT_BLOCK}")


class KernelTimes:
    """Times in ms at batch 1 of the kernels that this process would run, from the store where they are known.

    A time is the median over rounds of the fastest run of a round, with bias and ReLU, on memory that is there already,
    as in a network; points take turns, so that clock drift hits all alike.

    Args:
        store: where rows are kept (None: nowhere).
        threads: of the kernels.
        progress: shows points.
    """

    def __init__(self, store: Store | None = None, *, threads: int = 1, progress: Progress = silent) -> None:
        self.store, self.threads, self.progress = store, threads, progress
        self._known: dict[KernelPoint, float] = {}

    @property
    def fingerprint(self) -> dict[str, Any]:
        """What the times depend on: device, instruction set, the very library, threads."""
        from secateurs.latency.targets.torch_sparse import TorchSparseCpu

        library = native.require()
        facts = TorchSparseCpu().fingerprint(self.threads)
        return {**facts, "isa": library.isa, "library": digest(library.path.read_bytes())}

    def ms(self, points: Sequence[KernelPoint]) -> np.ndarray:
        """Times [points]; measures what is not known.

        Raises:
            TargetUnavailableError: the compiled kernels are missing.
        """
        missing = [point for point in dict.fromkeys(points) if point not in self._known]
        if missing and self.store is not None:
            held = self.store.find(self.fingerprint, "sparse-conv/1/")
            rows = {point: held.get(point.signature) for point in missing}
            self._known.update({point: float(row["ms"]) for point, row in rows.items() if row is not None})
            missing = [point for point in missing if point not in self._known]
        if missing:
            with self.progress.task("time the sparse kernels", len(missing)) as task:
                for start in range(0, len(missing), _AT_ONCE):
                    chunk = missing[start : start + _AT_ONCE]
                    found = dict(zip(chunk, self._measure(chunk), strict=True))
                    self._known.update(found)
                    if self.store is not None:
                        rows_found = {point.signature: {"ms": ms} for point, ms in found.items()}
                        self.store.put(self.fingerprint, rows_found)
                    task.advance(len(chunk))
        return np.array([self._known[point] for point in points])

    def _measure(self, points: Sequence[KernelPoint]) -> list[float]:
        calls = [_Call(point, self.threads) for point in points]
        runs = [max(_RUNS, min(50, round(_TURN_MS / max(1e-4, call.turn(2))))) for call in calls]
        with measuring(self.progress):
            rounds = [[call.turn(count) for call, count in zip(calls, runs, strict=True)] for _ in range(_ROUNDS)]
        return [float(ms) for ms in np.median(np.array(rounds), axis=0)]


class _Call:
    """One convolution with random weights and patterns, ready to run."""

    def __init__(self, point: KernelPoint, threads: int) -> None:
        self._library, shape = native.require(), point.shape
        generator = torch.Generator().manual_seed(0)
        dims = (point.filters, point.channels, *shape.kernel)
        weight, score = torch.randn(dims, generator=generator), torch.rand(dims, generator=generator)
        keep = min(point.count, shape.positions)
        packed = pack(weight, block=DEFAULT_BLOCK, kept=choose(score, PatternChoice("block", keep, DEFAULT_BLOCK)))
        x = channels_last(torch.randn((1, point.channels, *shape.input_hw), generator=generator))
        call = geometry(shape.kernel, shape.stride, shape.padding, shape.dilation)
        arguments, out_shape = call_arguments(
            tuple(x.shape), x.stride(), None, point.filters, DEFAULT_BLOCK, tuple(call), "relu", threads
        )
        out = torch.empty(out_shape, memory_format=torch.channels_last)
        bias = torch.zeros(point.filters)
        self._held = (arguments, packed, x, bias, out)
        tensors: tuple[Tensor, ...] = (x, packed.weights, packed.masks, packed.starts, bias)
        self._pointers = (ctypes.addressof(arguments), *(t.data_ptr() for t in tensors), None, out.data_ptr())

    def turn(self, runs: int) -> float:
        """Milliseconds of the fastest of ``runs`` runs."""
        took = ctypes.c_double()
        status = self._library.handle.secateurs_time_conv_f32(*self._pointers, runs, ctypes.byref(took))
        assert status == 0, native.STATUS.get(status, status)
        return float(took.value)


@dataclass(frozen=True)
class LayerTimes:
    """Times of one layer shape over ``channels`` [a], ``filters`` [b] and ``counts`` [n]: ``table`` ms [a, b, n].

    Between measured widths it is linear in both.
    """

    channels: np.ndarray
    filters: np.ndarray
    counts: np.ndarray
    table: np.ndarray

    @classmethod
    def measured(
        cls,
        times: KernelTimes | KnownLatency,
        shape: ConvShape,
        channels: Sequence[int] | np.ndarray,
        filters: Sequence[int] | np.ndarray,
        counts: Sequence[int] | np.ndarray,
        positions: float = 1.0,
    ) -> LayerTimes:
        """The table of a shape at these widths and counts; ``positions``: of the kernel, that one count stands for."""
        axes = [np.asarray(axis, dtype=np.int64) for axis in (channels, filters, counts)]
        points = [
            KernelPoint(shape, int(c), int(f), int(n) * positions) for c in axes[0] for f in axes[1] for n in axes[2]
        ]
        table = times.ms(points).reshape([len(axis) for axis in axes])
        return cls(axes[0], axes[1], axes[2], table)

    def __call__(self, channels: np.ndarray, filters: np.ndarray, counts: np.ndarray) -> np.ndarray:
        """Times, of the broadcast shape; ``counts`` must be measured ones."""
        row, row_share = _place(self.channels, np.asarray(channels))
        col, col_share = _place(self.filters, np.asarray(filters))
        which = np.clip(np.searchsorted(self.counts, np.asarray(counts)), 0, len(self.counts) - 1)
        total: np.ndarray = np.zeros(())
        for down in (0, 1):
            for right in (0, 1):
                weight = np.abs(1 - down - row_share) * np.abs(1 - right - col_share)
                rows = np.minimum(row + down, len(self.channels) - 1)
                cols = np.minimum(col + right, len(self.filters) - 1)
                total = total + weight * self.table[rows, cols, which]
        return total


def _place(grid: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Index of the grid point at or below every value, and how far it is to the next, 0–1."""
    index = np.clip(np.searchsorted(grid, values, side="right") - 1, 0, max(0, len(grid) - 2))
    if len(grid) == 1:
        return index, np.zeros(values.shape)
    share = (values - grid[index]) / (grid[index + 1] - grid[index])
    return index, np.clip(share, 0.0, 1.0)


def break_even(sparse_ms: Mapping[int, float], dense_ms: float, positions: int) -> float:
    """Largest share of kept elements up to which the sparse kernel is faster than ``dense_ms``, 0 where it never is.

    Linear between the measured counts; ``sparse_ms``: by count of kept positions.
    """
    counts = np.array(sorted(sparse_ms), dtype=np.float64)
    ms = np.maximum.accumulate([sparse_ms[int(count)] for count in counts])
    slower = np.flatnonzero(ms >= dense_ms)
    if not len(slower):
        return 1.0
    first = int(slower[0])
    if first == 0:
        return 0.0
    share = (dense_ms - ms[first - 1]) / (ms[first] - ms[first - 1])
    return float((counts[first - 1] + share * (counts[first] - counts[first - 1])) / positions)
