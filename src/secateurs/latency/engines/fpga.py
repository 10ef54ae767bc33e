"""Quantised ONNX files on the FPGA engine inside a worker process: times by cycles, results by the integer reference.

Both are what the simulated hardware gives, to the last bit and the last cycle. Needs secateurs and onnx.
"""

from __future__ import annotations

import base64
from typing import Any

import numpy as np
import onnx

from secateurs.fpga.choosing import deployed, moved_bytes
from secateurs.fpga.devices import Device
from secateurs.fpga.integers import outputs
from secateurs.fpga.reading import read

_AT_ONCE = 32
_held = 0


def describe() -> dict[str, Any]:
    """That times are cycles."""
    return {"runtime": "cycle model"}


def peak_bytes() -> int:
    """Bytes of the streams of all files that were loaded, as they lie in external memory."""
    return _held


class Session:
    """One network on the engine that is fastest for it."""

    def __init__(self, path: str, settings: dict[str, Any]) -> None:
        global _held
        self._network = read(onnx.load(path))
        device = {**settings["device"], "nextpnr": (), "lanes": tuple(settings["device"]["lanes"])}
        self._deployed = deployed(self._network, Device(**device))
        self._ms = sum(self._deployed.ms.values())
        _held += sum(moved_bytes(job) for parts in self._deployed.jobs.values() for job in parts)

    def run(self) -> None:
        """Nothing: the time is known."""

    def timed(self) -> float:
        """Milliseconds of one run."""
        return self._ms

    def infer(self, arrays: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Outputs of the integers for float inputs, all packed."""
        entry = arrays[0]
        samples = np.frombuffer(base64.b64decode(entry["data"]), dtype=entry["dtype"]).reshape(entry["shape"])
        parts = [outputs(self._network, samples[at : at + _AT_ONCE]) for at in range(0, len(samples), _AT_ONCE)]
        found = np.ascontiguousarray(np.concatenate(parts))
        data = base64.b64encode(found.tobytes()).decode()
        return [{"dtype": str(found.dtype), "shape": list(found.shape), "data": data}]


def load(path: str, settings: dict[str, Any]) -> Session:
    """The network at ``path``; settings: ``device``."""
    return Session(path, settings)
