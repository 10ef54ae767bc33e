"""Devices as TOML files: what they hold, how fast they are clocked, and how fast their memory is."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from secateurs.errors import PlanError, why
from secateurs.fpga.engine import Engine

BLOCK_BITS = 18432
"""Of a block of RAM: 2048×9, 1024×18 or 512×36 bits, one port to write and one to read."""
DEFAULT = "ecp5-85f"
_FOLDER = Path(__file__).parent
_SHAPES = ((2048, 9), (1024, 18), (512, 36))


@dataclass(frozen=True)
class Device:
    """An FPGA as far as the engine is concerned. ``family``: of yosys's synthesis; ``nextpnr``: how place and route
    names it, where it is one that the open tools place; ``bandwidth_mb_s``: of its external memory, 10^6 bytes;
    ``lanes``: of filters and of pixels that its engine must have, empty where it is chosen."""

    name: str
    title: str
    family: str
    multipliers: int
    block_ram_blocks: int
    clock_mhz: float
    bandwidth_mb_s: float
    nextpnr: tuple[str, ...] = ()
    lanes: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        numbers = ("multipliers", "block_ram_blocks", "clock_mhz", "bandwidth_mb_s")
        for name in numbers:
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not value > 0:
                raise PlanError(f"Device {self.name} has {name} = {value!r}. Give a number above 0.")
        if self.family not in ("ecp5", "xilinx"):
            raise PlanError(f"Device {self.name} is of family {self.family!r}. Known are ecp5 and xilinx.")

    @property
    def block_ram_bits(self) -> int:
        """Bits of all blocks of RAM."""
        return self.block_ram_blocks * BLOCK_BITS

    def limited(
        self, multipliers: int | None = None, block_ram_bits: int | None = None, lanes: tuple[int, ...] = ()
    ) -> Device:
        """The same of which only so much may be used, or with an engine of these lanes.

        Raises:
            PlanError: that is more than it has, or nothing.
        """
        found = replace(self, lanes=lanes)
        for what, limit, whole in (
            ("multipliers", multipliers, self.multipliers),
            ("bits of block RAM", block_ram_bits, self.block_ram_bits),
        ):
            if limit is not None and not 0 < limit <= whole:
                raise PlanError(f"{limit} {what} are allowed, and {self.title} has {whole}. Allow 1 to {whole}.")
        if multipliers is not None:
            found = replace(found, multipliers=multipliers)
        if block_ram_bits is not None:
            found = replace(found, block_ram_blocks=max(1, block_ram_bits // BLOCK_BITS))
        return found

    def fits(self, engine: Engine) -> bool:
        """Whether an engine's multipliers and buffers are there."""
        return engine.multipliers <= self.multipliers and blocks(engine) <= self.block_ram_blocks


def blocks(engine: Engine) -> int:
    """Blocks of RAM that an engine's buffers take: pixels by lane, weights and indexes by width."""
    return (
        engine.q * _blocks(engine.lines, 8)
        + _blocks(2 * engine.elements, 8 * engine.p)
        + _blocks(2 * engine.elements, 18)
    )


def _blocks(words: int, bits: int) -> int:
    return min(-(-words // depth) * -(-bits // width) for depth, width in _SHAPES)


def names() -> list[str]:
    """Devices that come along."""
    return sorted(path.stem for path in _FOLDER.glob("*.toml"))


def open_device(text: str) -> Device:
    """The device of that name, or of a file of the user's own (its path ends in .toml).

    Raises:
        PlanError: there is none, or the file is not understood.
    """
    own = text.endswith(".toml")
    path = Path(text) if own else _FOLDER / f"{text}.toml"
    if not own and text not in names():
        raise PlanError(f"FPGA {text!r} is unknown. Known: {', '.join(names())}; or name a device file, my-board.toml.")
    raw = _read(path)
    known = {field.name for field in dataclasses.fields(Device)} - {"name", "lanes"}
    lacks, extra = sorted(known - set(raw) - {"nextpnr"}), sorted(set(raw) - known)
    if lacks or extra:
        faults = [f"{verb} {', '.join(found)}" for verb, found in (("lacks", lacks), ("has unknown", extra)) if found]
        raise PlanError(
            f"Device file {path} {' and '.join(faults)}. Its settings are {', '.join(sorted(known))}; "
            f"{_FOLDER / f'{DEFAULT}.toml'} is an example."
        )
    return Device(path.stem, **{**raw, "nextpnr": tuple(raw.get("nextpnr", ()))})


def _read(path: Path) -> dict[str, Any]:
    try:
        import tomllib
    except ModuleNotFoundError as error:  # Python 3.10
        try:
            import tomli as tomllib  # type: ignore[no-redef, import-not-found]
        except ModuleNotFoundError:
            raise PlanError(
                "Device files are read by Python 3.11, or with the package tomli (pip install tomli)."
            ) from error
    try:
        return dict(tomllib.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise PlanError(f"Device file {path} cannot be read ({why(error)}). Give a TOML file.") from error
