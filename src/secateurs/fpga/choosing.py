"""The engine that runs a network fastest on a device: its lanes of filters and of pixels, and its buffers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from secateurs.errors import PlanError
from secateurs.fpga.cycles import expected_cycles, job_cycles, most_entries
from secateurs.fpga.devices import Device, blocks
from secateurs.fpga.engine import Engine
from secateurs.fpga.layers import IntegerNetwork, LayerShape
from secateurs.fpga.packing import EngineJob, jobs, passes
from secateurs.fpga.tiling import pitch

FILTERS, PIXELS = (4, 8, 16, 32, 64), tuple(range(2, 33, 2))
_LINES = 2048
"""The line buffer grows in such steps, what a block of RAM holds of a lane."""
_MOST_LINES = 32768


@dataclass(frozen=True)
class Placement:
    """A network on an engine: ``jobs`` of its layers by name, and their time."""

    engine: Engine
    device: Device
    jobs: Mapping[str, tuple[EngineJob, ...]]

    @property
    def cycles(self) -> dict[str, int]:
        """Of every layer."""
        return {name: sum(map(job_cycles, parts)) for name, parts in self.jobs.items()}

    @property
    def ms(self) -> dict[str, float]:
        """Of every layer, the slower of its cycles and its bytes."""
        return {
            name: milliseconds(cycles, sum(map(moved_bytes, self.jobs[name])), self.device)
            for name, cycles in self.cycles.items()
        }


def milliseconds(cycles: int, moved: int, device: Device) -> float:
    """Time of a layer: streams that outrun the external memory are as slow as it is."""
    return max(cycles / device.clock_mhz, moved / device.bandwidth_mb_s) / 1e3


def moved_bytes(job: EngineJob) -> int:
    """Bytes that a job takes from external memory and gives back."""
    engine = job.engine
    words = job.settings + sum(one.words(engine) for one in job.passes)
    filters = sum(len(one.filters) for one in job.passes)
    results = job.rows * job.groups * filters * (1 if job.layer.add is None else 2)
    return engine.p * words + engine.q * (job.row_words * job.taken[1] + results)


def deployed(network: IntegerNetwork, device: Device) -> Placement:
    """The network on the engine that is fastest for it.

    Raises:
        PlanError: it fits on none that the device holds.
    """
    layers = {layer.name: layer for layer in network.layers}
    shapes = {name: layer.geometry for name, layer in layers.items()}

    def entries(name: str, engine: Engine) -> int:
        if shapes[name].groups > 1:  # a wide weight of zeros, of which none is walked
            return most_entries(shapes[name], engine)
        return max(one.entries for one in passes(layers[name], engine))

    engines = fitting(shapes, device, entries)
    rated = sorted((sum(expected_cycles(shape, one) for shape in shapes.values()), i) for i, one in enumerate(engines))
    best: Placement | None = None
    least = float("inf")
    for _, index in rated[:_CLOSER]:
        one = engines[index]
        made = Placement(one, device, {name: jobs(layer, one) for name, layer in layers.items()})
        total = sum(made.ms.values())
        if total < least:
            best, least = made, total
    assert best is not None
    return best


_CLOSER = 3
"""Engines, best by the widths alone, that are rated by the elements that stay."""


def best_engine(shapes: Mapping[str, LayerShape], device: Device) -> Engine:
    """The fastest engine for a dense network of these layers.

    Raises:
        PlanError: it fits on none that the device holds.
    """
    engines = fitting(shapes, device, lambda name, engine: most_entries(shapes[name], engine))
    return min(engines, key=lambda one: sum(expected_cycles(shape, one) for shape in shapes.values()))


def fitting(
    shapes: Mapping[str, LayerShape], device: Device, entries: Callable[[str, Engine], int]
) -> Sequence[Engine]:
    """Every engine of the device that can run the layers, with buffers as large as they need.

    ``entries``: kernel elements that a layer has in a block of filters, at most.
    """
    found, reasons = [], []
    for p in FILTERS:
        for q in PIXELS:
            engine = Engine(p, q, 8, 8)
            if device.lanes not in ((), (p, q)):
                continue
            if engine.multipliers > device.multipliers:
                continue
            made = _sized(engine, shapes, device, max(entries(name, engine) for name in shapes))
            if isinstance(made, Engine):
                found.append(made)
            else:
                reasons.append(made)
    if not found:
        p, q = device.lanes or (FILTERS[0], PIXELS[0])
        least = Engine(p, q, 8, 8)
        what = min(reasons, default=(0, f"an engine of {least.name} lanes takes {least.multipliers} multipliers"))[1]
        raise PlanError(
            f"The network does not fit on {device.title} with {device.multipliers} multipliers and "
            f"{device.block_ram_blocks} blocks of RAM: {what}. Allow more, prune the network, or choose a larger one."
        )
    return found


def _sized(engine: Engine, shapes: Mapping[str, LayerShape], device: Device, most: int) -> Engine | tuple[int, str]:
    """The engine with buffers for these layers; else how many blocks it would take, and why that is too many."""
    elements = max(8, 1 << (most - 1).bit_length())
    needed, whole = 8, 8
    widest = next(iter(shapes))
    for name, shape in shapes.items():
        stored = pitch(shape, engine)
        rows = min(shape.kernel[0], shape.input_hw[0]) * stored
        if rows > needed:
            needed, widest = rows, name
        whole = max(whole, shape.input_hw[0] * stored)
    if needed > _MOST_LINES:
        return needed, f"layer {widest} needs {needed} words in the line buffer"
    lines = min(_rounded(whole), _MOST_LINES)
    while lines >= needed:
        made = replace(engine, lines=lines, elements=elements)
        if device.fits(made):
            return made
        if lines == _LINES or lines - _LINES < needed:
            break
        lines -= _LINES
    made = replace(engine, lines=_rounded(needed), elements=elements)
    if device.fits(made):
        return made
    return blocks(made), (
        f"the buffers of an engine of {engine.name} lanes take {blocks(made)} (layer {widest} has rows of "
        f"{needed} words, a block of filters has {most} elements)"
    )


def _rounded(lines: int) -> int:
    return -(-lines // _LINES) * _LINES
