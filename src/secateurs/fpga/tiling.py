"""How a layer's rows fill the line buffer, and in how many pieces it is computed."""

from __future__ import annotations

from dataclasses import dataclass

from secateurs.errors import PlanError
from secateurs.fpga.engine import Engine
from secateurs.fpga.layers import LayerShape


@dataclass(frozen=True)
class Tile:
    """``first``, ``rows``: of the output; ``top``: rows of padding above; ``taken``: (first, count) of the input's."""

    first: int
    rows: int
    top: int
    taken: tuple[int, int]


def row_words(geometry: LayerShape, engine: Engine) -> int:
    """Words of the input in a row."""
    return -(-geometry.input_hw[1] // engine.q) * geometry.channels


def pitch(geometry: LayerShape, engine: Engine) -> int:
    """Words of the line buffer that a row takes."""
    groups = -(-geometry.input_hw[1] // engine.q)
    return groups * geometry.channels if geometry.stride == 1 else 2 * -(-groups // 2) * geometry.channels


def check_rows(name: str, geometry: LayerShape, engine: Engine) -> None:
    """Nothing, if the line buffer holds the rows that one row of the output needs.

    Raises:
        PlanError: it does not.
    """
    rows = min(geometry.kernel[0], geometry.input_hw[0])
    if rows * pitch(geometry, engine) > engine.lines:
        raise PlanError(
            f"Layer {name} needs {rows} rows of {pitch(geometry, engine)} words of its input at once, and the engine's "
            f"line buffer holds {engine.lines} words. Choose an engine with a larger one, or prune the layer."
        )


def tiles(geometry: LayerShape, engine: Engine) -> tuple[Tile, ...]:
    """The layer in pieces, each of as many rows as the line buffer holds the input of."""
    height, rows_in, stride, kernel = geometry.output_hw[0], geometry.input_hw[0], geometry.stride, geometry.kernel[0]
    held = engine.lines // pitch(geometry, engine)
    most = height if held >= rows_in else max(1, (held - kernel) // stride + 1)
    found = []
    for first in range(0, height, most):
        rows = min(most, height - first)
        start = first * stride - geometry.padding[0]
        begin, end = max(0, start), min(rows_in, start + (rows - 1) * stride + kernel)
        found.append(Tile(first, rows, begin - start, (begin, end - begin)))
    return tuple(found)
