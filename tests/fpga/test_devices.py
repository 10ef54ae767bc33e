"""Device files, and the engine that is chosen within what a device has."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

from secateurs.errors import PlanError
from secateurs.fpga.choosing import best_engine, deployed, milliseconds
from secateurs.fpga.devices import BLOCK_BITS, Device, blocks, names, open_device
from secateurs.fpga.engine import Engine
from secateurs.fpga.layers import LayerShape
from secateurs.fpga.reading import read

CONV = {"conv": LayerShape(64, 64, (3, 3), 1, (1, 1), (16, 16), (16, 16))}


@pytest.mark.parametrize("name", names())
def test_a_device_that_comes_along_runs_a_layer(name: str) -> None:
    device = open_device(name)
    engine = best_engine(CONV, device)
    assert device.fits(engine)
    assert engine.multipliers > device.multipliers / 2
    assert open_device(name) == device


def test_a_file_of_ones_own(tmp_path: Path) -> None:
    text = (Path(__file__).parents[2] / "src/secateurs/fpga/devices/ecp5-85f.toml").read_text()
    file = tmp_path / "board.toml"
    file.write_text(text.replace("clock_mhz = ", "clock_mhz = 2 # "))
    assert open_device(str(file)).clock_mhz == 2
    assert open_device(str(file)).name == "board"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "lacks bandwidth_mb_s, block_ram_blocks"),
        ("speed = 3", "has unknown speed"),
        ("not toml at all", "cannot be read"),
        (None, "cannot be read"),
    ],
)
def test_a_file_that_is_none(tmp_path: Path, content: str | None, said: str) -> None:
    file = tmp_path / "board.toml"
    if content is not None:
        file.write_text(content)
    with pytest.raises(PlanError, match=said):
        open_device(str(file))


def test_an_unknown_device_and_impossible_figures() -> None:
    with pytest.raises(PlanError, match="Known: artix7-100t, ecp5-85f"):
        open_device("ice40")
    with pytest.raises(PlanError, match="clock_mhz = -1"):
        Device("x", "X", "ecp5", 1, 1, -1, 1)
    with pytest.raises(PlanError, match="family 'asic'"):
        Device("x", "X", "asic", 1, 1, 1, 1)


def test_limits_hold() -> None:
    device = open_device("ecp5-85f")
    few = device.limited(multipliers=60)
    assert best_engine(CONV, few).multipliers <= 60
    small = device.limited(block_ram_bits=24 * BLOCK_BITS)
    assert blocks(best_engine(CONV, small)) <= 24
    for given in ({"multipliers": 157}, {"multipliers": 0}, {"block_ram_bits": 1 << 40}):
        with pytest.raises(PlanError, match="Allow 1 to"):
            device.limited(**given)


@pytest.mark.parametrize("given", [{"multipliers": 8}, {"block_ram_bits": 3 * BLOCK_BITS}])
def test_a_network_that_does_not_fit_is_told(given: dict[str, int]) -> None:
    with pytest.raises(PlanError, match="does not fit on Lattice ECP5"):
        best_engine(CONV, open_device("ecp5-85f").limited(**given))


def test_blocks_are_those_that_yosys_counts() -> None:
    assert blocks(Engine(16, 8, 2048, 1024)) == 25
    assert blocks(Engine(4, 2, 512, 128)) == 4


def test_a_slow_memory_holds_a_layer_up() -> None:
    device = Device("x", "X", "ecp5", 156, 208, 100.0, 10.0)
    assert milliseconds(1000, 10, device) == pytest.approx(0.01)
    assert milliseconds(1000, 10**6, device) == pytest.approx(100.0)


def test_the_chosen_engine_is_the_fastest(quantised_file: Path) -> None:
    network, device = read(onnx.load(quantised_file)), open_device("ecp5-85f")
    made = deployed(network, device)
    assert device.fits(made.engine)
    fewer = deployed(network, device.limited(multipliers=60))
    assert sum(fewer.ms.values()) > sum(made.ms.values())
    assert set(made.cycles) == {layer.name for layer in network.layers}
