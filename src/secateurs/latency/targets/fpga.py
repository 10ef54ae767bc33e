"""The sparse convolution engine on an FPGA: cycles by the formula that the simulated hardware keeps."""

from __future__ import annotations

import importlib.metadata
import re
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from secateurs.errors import PlanError
from secateurs.latency.process import QUIET, WORKER_FILE, Worker
from secateurs.latency.targets._base import Target

NAME = "fpga"
OPTIONS = ("multipliers", "block-ram", "lanes")
_UNITS = {"": 1, "kbit": 1000, "Kbit": 1024, "Mbit": 1000**2}


@dataclass(frozen=True)
class Fpga(Target):
    """``fpga:DEVICE``: a device that comes along, or a file of one's own.

    ``?multipliers=128&block-ram=900kbit`` behind it allows only so much of it; ``lanes=16x8`` fixes the engine, which
    is else the fastest for each file. Times are of the engine, as often as the device's clock ticks; what arrives from
    outside and how it gets there is not in them.
    """

    device: str = "ecp5-85f"
    name: str = field(init=False)
    artifact: str = field(default="onnx", init=False)
    precision: str = field(default="int8", init=False)
    precisions: tuple[str, ...] = field(default=("int8",), init=False)
    profiles: bool = field(default=False, init=False)
    skips_pruned_elements: bool = field(default=True, init=False)
    runs_float: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", f"{NAME}:{self.device}")
        self.given_device()

    @property
    def mixes(self) -> bool:
        """Never: it computes with bytes only."""
        return False

    def given_device(self) -> Any:
        """The :class:`~secateurs.fpga.devices.Device`, as much of it as is allowed.

        Raises:
            PlanError: it is unknown, or an option is.
        """
        from secateurs.fpga.devices import open_device

        text, _, options = self.device.partition("?")
        given = dict(one.partition("=")[::2] for one in options.split("&") if one)
        wrong = sorted(set(given) - set(OPTIONS))
        if wrong:
            raise PlanError(f"Target {self.name}: option {wrong[0]!r} is unknown. There are {', '.join(OPTIONS)}.")
        limits = {name: amount(name, text) for name, text in given.items() if name != "lanes"}
        lanes = _lanes(given["lanes"]) if "lanes" in given else ()
        return open_device(text).limited(limits.get("multipliers"), limits.get("block-ram"), lanes)

    def available(self) -> str | None:
        """Always: its cycles follow from a formula; simulators and synthesis are asked for where they are used."""
        return None

    def fingerprint(self, threads: int) -> dict[str, str | int]:
        """Device and version of the engine; threads are none, but measurements are kept by them."""
        device = self.given_device()
        version = importlib.metadata.version("secateurs")
        return {
            "target": self.name,
            "device": f"{device.title}, {device.clock_mhz:g} MHz, {device.bandwidth_mb_s:g} MB/s",
            "limits": f"{device.multipliers} multipliers, {device.block_ram_bits} bits, lanes {device.lanes or 'free'}",
            "runtime": f"secateurs {version}, cycle model",
            "precision": self.precision,
            "threads": threads,
        }

    def start(self) -> Worker:
        """A new worker process."""
        engine = WORKER_FILE.parent / "engines" / "fpga.py"
        return Worker(self.name, [sys.executable, str(WORKER_FILE), str(engine)], environment=QUIET)

    def settings(self, *, threads: int, batch: int, profile: bool) -> dict[str, Any]:
        """The device."""
        device = self.given_device()
        return {
            "threads": threads,
            "batch": batch,
            "device": asdict(device) | {"nextpnr": [], "lanes": list(device.lanes)},
        }

    def formula(self, spec: Any, content: bytes, *, threads: int, batch: int) -> Any:
        """A :class:`~secateurs.latency.cycle_model.CycleFormula` of a network, by its quantised file."""
        import onnx

        from secateurs.fpga.reading import read
        from secateurs.latency.cycle_model import CycleFormula

        if batch != 1:
            raise PlanError(f"The engine computes one sample at a time, not {batch}. Leave --batch out.")
        network = read(onnx.load_model_from_string(content))
        return CycleFormula(spec, network, self.given_device(), self.fingerprint(threads), batch)


def amount(name: str, text: str) -> int:
    """How much of a device an option allows: ``128``, ``900kbit``.

    Raises:
        PlanError: it is not understood.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([A-Za-z]*)", text.strip(), re.ASCII)
    if match is None or match[2] not in (_UNITS if name == "block-ram" else {""}):
        example = "900kbit" if name == "block-ram" else "128"
        raise PlanError(f"--{name} {text!r} is not understood. Give an amount such as {example}.")
    return int(float(match[1]) * _UNITS[match[2]])


def _lanes(text: str) -> tuple[int, ...]:
    from secateurs.fpga.choosing import FILTERS, PIXELS

    match = re.fullmatch(r"(\d+)x(\d+)", text.strip(), re.ASCII)
    if match is None or int(match[1]) not in FILTERS or int(match[2]) not in PIXELS:
        raise PlanError(
            f"lanes={text!r} is not understood. Give those of filters ({', '.join(map(str, FILTERS))}) and of pixels "
            f"(even, at most {PIXELS[-1]}), such as 16x8."
        )
    return int(match[1]), int(match[2])


def with_limits(target: str, limits: Mapping[str, str | None]) -> str:
    """The target's text with options for the limits that are given.

    Raises:
        PlanError: it is no FPGA, or a limit is not understood.
    """
    given = {name: text for name, text in limits.items() if text is not None}
    if not given:
        return target
    if target.partition(":")[0] != NAME:
        name = next(iter(given))
        raise PlanError(f"--{name} limits what an FPGA holds, and the target is {target}. Give --target fpga:ecp5-85f.")
    for name, text in given.items():
        amount(name, text)
    target = target if ":" in target else f"{target}:{Fpga.device}"
    return target + ("&" if "?" in target else "?") + "&".join(f"{name}={text}" for name, text in given.items())
