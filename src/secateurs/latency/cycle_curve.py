"""The time of a layer on the FPGA engine as a function of its widths: a curve that is a formula."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from secateurs.fpga.choosing import milliseconds
from secateurs.fpga.cycles import expected_bytes, expected_cycles
from secateurs.fpga.devices import Device
from secateurs.fpga.engine import Engine
from secateurs.fpga.layers import LayerShape

_NO_POINTS = np.zeros((0, 3))


@dataclass(frozen=True)
class CycleCurve:
    """Time of a layer by its channels, exactly; a :class:`~secateurs.latency.regression.Curve` without an error."""

    geometry: LayerShape
    engine: Engine
    device: Device
    points: np.ndarray = field(default_factory=lambda: _NO_POINTS, compare=False)

    def predict(self, inputs: np.ndarray, outputs: np.ndarray) -> np.ndarray:
        """Times [...] in ms for channel counts that broadcast together; a side that does not count is 0."""
        rows, columns = np.broadcast_arrays(np.asarray(inputs, np.int64), np.asarray(outputs, np.int64))
        pairs, back = np.unique(np.stack([rows.ravel(), columns.ravel()]), axis=1, return_inverse=True)
        times = np.array([self.ms(int(channels), int(filters)) for channels, filters in pairs.T])
        return times[back.ravel()].reshape(rows.shape)

    def ms(self, channels: int, filters: int, entries: int | None = None) -> float:
        """At these channels; ``entries``: elements of a block of filters that stay."""
        return layer_ms(_at(self.geometry, channels, filters), self.engine, self.device, entries)

    def to_raw(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {"cycles": {name: asdict(getattr(self, name)) for name in ("geometry", "engine", "device")}}

    @classmethod
    def from_raw(cls, raw: Mapping[str, Any]) -> CycleCurve:
        """Read :meth:`to_raw`'s result."""
        parts = raw["cycles"]
        pairs: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in parts["geometry"].items()
        }
        device: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in parts["device"].items()
        }
        return cls(LayerShape(**pairs), Engine(**parts["engine"]), Device(**device))


def layer_ms(geometry: LayerShape, engine: Engine, device: Device, entries: int | None = None) -> float:
    return milliseconds(expected_cycles(geometry, engine, entries), expected_bytes(geometry, engine, entries), device)


def _at(geometry: LayerShape, channels: int, filters: int) -> LayerShape:
    """The same layer of other widths; of a depthwise one the filters count."""
    if geometry.groups == 1:
        return replace(geometry, channels=max(1, channels), filters=max(1, filters))
    if geometry.groups == geometry.channels == geometry.filters:
        return replace(geometry, channels=filters, filters=filters, groups=filters)
    each = geometry.channels // geometry.groups
    return replace(geometry, channels=channels, filters=filters, groups=max(1, channels // each))
