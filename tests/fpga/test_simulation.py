"""The simulated hardware against the integer reference and the formula of its cycles: every bit, every cycle."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from secateurs.errors import TargetError, TargetUnavailableError
from secateurs.fpga import simulation
from secateurs.fpga.cycles import job_cycles
from secateurs.fpga.engine import Engine
from secateurs.fpga.integers import run_layer
from secateurs.fpga.layers import IntegerLayer
from secateurs.fpga.packing import EngineJob, jobs
from secateurs.fpga.simulation import assembled, simulate

from .conftest import SMALL, draw_bytes, draw_layer

_AT_ONCE = 6
"""Layers of one simulation: starting it takes longer than they do."""


def check(layers: list[IntegerLayer], rng: np.random.Generator, engine: Engine = SMALL, **given: object) -> None:
    """Every byte and, where no stream waits, every cycle."""
    work: list[tuple[EngineJob, np.ndarray, np.ndarray | None]] = []
    expected = []
    for layer in layers:
        x, added = draw_bytes(rng, layer)
        parts = jobs(layer, engine)
        work += [(job, x, added) for job in parts]
        expected.append((parts, run_layer(layer, x, added)))
    found = iter(simulate(work, **given))  # type: ignore[arg-type]
    for parts, y in expected:
        seen = [next(found) for _ in parts]
        np.testing.assert_array_equal(assembled(parts, seen), y)
        counted, predicted = [one.cycles for one in seen], [job_cycles(job) for job in parts]
        assert given.get("stall") or counted == predicted


@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_bit_and_every_cycle(needs_simulator: Callable[[str], None], seed: int) -> None:
    needs_simulator("verilator")
    rng = np.random.default_rng(seed)
    check([draw_layer(rng) for _ in range(_AT_ONCE)], rng)


@given(seed=st.integers(0, 2**31 - 1), stall=st.integers(1, 200))
@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_bit_while_streams_wait(needs_simulator: Callable[[str], None], seed: int, stall: int) -> None:
    needs_simulator("verilator")
    rng = np.random.default_rng(seed)
    check([draw_layer(rng) for _ in range(_AT_ONCE)], rng, stall=stall, seed=seed + 1)


SHAPES: dict[str, dict[str, object]] = {
    "linear": {"weight": np.ones((10, 64, 1, 1), np.int8), "input_hw": (1, 1), "output_hw": (1, 1)},
    "mean": {"weight": np.eye(6, dtype=np.int8)[:, :, None, None] * np.ones((1, 1, 4, 4), np.int8)},
    "empty": {"weight": np.zeros((5, 3, 3, 3), np.int8)},
    "one row at a time": {"weight": np.ones((4, 7, 3, 3), np.int8), "input_hw": (9, 24), "output_hw": (7, 22)},
    "many blocks": {"weight": np.ones((33, 2, 3, 3), np.int8), "stride": 2, "output_hw": (2, 2), "input_hw": (5, 6)},
}


@pytest.mark.parametrize("name", SHAPES)
def test_shapes_of_their_own(needs_simulator: Callable[[str], None], name: str) -> None:
    needs_simulator("verilator")
    given = dict(SHAPES[name])
    rng = np.random.default_rng(len(name))
    weight = given["weight"]
    assert isinstance(weight, np.ndarray)
    numbers = {
        "bias": rng.integers(-900, 900, len(weight)),
        "multiplier": np.full(len(weight), 1 << 23),
        "shift": np.full(len(weight), 28),
        "stride": 1,
        "padding": (0, 0),
        "input_hw": (4, 4),
        "output_hw": (2, 2) if weight.shape[2] == 3 else (1, 1),
        "add": None,
    }
    check([draw_layer(rng, **{**numbers, **given})], rng)


def test_the_second_simulator_agrees(needs_simulator: Callable[[str], None], tmp_path: Path) -> None:
    needs_simulator("icarus")
    rng = np.random.default_rng(1)
    engine = Engine(4, 2, 64, 64)
    given = {"input_hw": (4, 5), "output_hw": (4, 5), "stride": 1, "padding": (1, 1)}
    weight = rng.integers(-128, 128, (5, 2, 3, 3)).astype(np.int8)
    numbers = {"bias": np.zeros(5, np.int64), "multiplier": np.full(5, 1 << 23), "shift": np.full(5, 31)}
    check([draw_layer(rng, weight=weight, **numbers, **given)], rng, engine, simulator="icarus", folder=tmp_path)


@pytest.mark.parametrize(("column", "refused"), [(0, True), (2, True), (3, False)])
def test_an_unknown_byte_of_the_image_is_no_zero(tmp_path: Path, column: int, refused: bool) -> None:
    """The image is three columns wide, words are of four: what a simulator does not know there is nobody's."""
    engine, rng = Engine(4, 4, 64, 64), np.random.default_rng(1)
    shape = {"weight": np.zeros((4, 1, 1, 1), np.int8), "input_hw": (1, 3), "output_hw": (1, 3)}
    (job,) = jobs(draw_layer(rng, add=None, stride=1, padding=(0, 0), **shape), engine)
    lanes = ["00"] * 4
    lanes[3 - column] = "0X"
    (tmp_path / "out").write_text("".join(f"{''.join(lanes)}\n" for _ in range(4)))
    words, unknown = simulation._read(tmp_path / "out", 4)
    found = simulation._parted([job], words, unknown, [9])
    if refused:
        with pytest.raises(TargetError, match=f"4 of 12 bytes of layer .* filter 0, row 0, column {column}"):
            assembled([job], found)
    else:
        assert not assembled([job], found).any()


def layer_work() -> list[tuple[EngineJob, np.ndarray, np.ndarray | None]]:
    rng = np.random.default_rng(0)
    layer = draw_layer(rng, add=None)
    return [(job, draw_bytes(rng, layer)[0], None) for job in jobs(layer, SMALL)]


def test_a_missing_simulator_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(simulation, "available", lambda simulator: "it is not installed")
    with pytest.raises(TargetUnavailableError, match="cannot be simulated here: it is not installed"):
        simulate(layer_work())


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (["true"], "Run it again"),
        (["sh", "-c", "kill -9 $$"], f"exit code -{int(signal.SIGKILL)}"),
        (["sh", "-c", "echo error: no word moved; exit 0"], "no word moved"),
        (
            ["sh", "-c", "for a; do case $a in +out=*|+cycles=*) : > ${a#*=};; esac; done", "x"],
            "gave 0 words of 0 jobs",
        ),
    ],
)
def test_a_simulation_that_fails_says_so(monkeypatch: pytest.MonkeyPatch, command: list[str], said: str) -> None:
    monkeypatch.setattr(simulation, "built", lambda *given: command)
    with pytest.raises(TargetError, match=said):
        simulate(layer_work())


def test_a_full_disk_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*given: object) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(simulation, "built", lambda *given: ["true"])
    monkeypatch.setattr(simulation, "write_streams", full)
    with pytest.raises(TargetError, match="No space left"):
        simulate(layer_work())


def test_a_simulation_that_hangs_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(simulation, "built", lambda *given: ["sleep", "60"])
    monkeypatch.setattr(
        simulation.subprocess, "run", lambda *given, **more: (_ for _ in ()).throw(subprocess.TimeoutExpired("x", 1))
    )
    with pytest.raises(TargetError, match="was stopped"):
        simulate(layer_work(), timeout_s=1)
