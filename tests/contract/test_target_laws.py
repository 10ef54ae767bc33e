"""Each law of the targets' contract can fail: for each there is a target that breaks it, and an honest one keeps them
all."""

from __future__ import annotations

import itertools
import sys
import unittest
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx
import pytest

from secateurs.latency.process import Worker
from secateurs.latency.targets import Operation, Target
from secateurs.testing.latency import FakeTarget, FakeWorker
from secateurs.testing.targets import TargetContract


def weight_costs(content: bytes) -> dict[str, float]:
    graph = onnx.load_model_from_string(content).graph
    sizes = {tensor.name: len(tensor.raw_data) // 4 for tensor in graph.initializer}
    kinds = ("Conv", "Gemm", "MatMul")
    return {n.output[0]: 0.005 + 2e-5 * sizes.get(n.input[1], 0) for n in graph.node if n.op_type in kinds}


def honest(**changes: Any) -> FakeTarget:
    return FakeTarget(weight_costs, **changes)


def without_profiler() -> FakeTarget:
    return honest(profiles=False)


class Missing(FakeTarget):
    """Not here, and it says so."""

    reason: str | None = "the board is not plugged in (see its manual)"

    def available(self) -> str | None:
        return self.reason


class Wordless(Missing):
    reason = "no"


class Wavering(Missing):
    def available(self) -> str | None:
        return f"the board is busy, try {next(counted)} is over"


class Ageing(FakeTarget):
    def fingerprint(self, threads: int) -> dict[str, str | int]:
        return {"target": self.name, "threads": threads, "since": next(counted)}


class Careless(FakeTarget):
    def fingerprint(self, threads: int) -> dict[str, str | int]:
        return {"target": self.name, "threads": 1}


class Nameless(FakeTarget):
    def fingerprint(self, threads: int) -> dict[str, str | int]:
        return {"threads": threads}


class Nested(FakeTarget):
    def fingerprint(self, threads: int) -> dict[str, str | int]:
        return {"target": self.name, "threads": threads, "versions": {"runtime": 1}}  # type: ignore[dict-item]


class Sending(FakeTarget):
    def settings(self, *, threads: int, batch: int, profile: bool) -> dict[str, Any]:
        return {"threads": threads, "folder": Path("here")}


class Tupled(FakeTarget):
    def settings(self, *, threads: int, batch: int, profile: bool) -> dict[str, Any]:
        return {"threads": threads, "shape": (batch, 3)}


counted = itertools.count()


class Other(FakeWorker):
    """``wrong``: the member that is wrong."""

    def __init__(self, target: FakeTarget, wrong: str) -> None:
        super().__init__(target)
        self.wrong = wrong

    def load(self, key: str, file: Path, settings: Mapping[str, Any]) -> dict[str, Any]:
        if self.wrong == "reads anything":
            return {"load_ms": 1.0, "first_ms": 1.0}
        if self.wrong == "raises what it meets":
            self._held[key] = self._target.costs(file.read_bytes())
        found = super().load(key, file, settings)
        if self.wrong == "forgets memory":
            self._bytes -= 1 << 19
        return {**found, "first_ms": -1.0} if self.wrong == "loads before it begins" else found

    def run(self, keys: Sequence[str], *, runs: int, rounds: int = 1, skip: int = 0) -> dict[str, Any]:
        if self.wrong == "runs what was dropped" and not set(keys) <= set(self._held):
            return {"times_ms": {key: [1.0] for key in keys}, "wall_ms": 1.0, "cpu_ms": 1.0}
        found = super().run(keys, runs=runs, rounds=rounds, skip=skip)
        times = found["times_ms"]
        if self.wrong == "one round":
            return {**found, "times_ms": {key: seen[:runs] for key, seen in times.items()}}
        if self.wrong == "twice as often":
            return {**found, "times_ms": {key: 2 * seen for key, seen in times.items()}}
        if self.wrong == "nanoseconds":
            return {**found, "times_ms": {key: [1e6 * ms for ms in seen] for key, seen in times.items()}}
        if self.wrong == "no time":
            return {**found, "times_ms": {key: [0.0 for _ in seen] for key, seen in times.items()}}
        if self.wrong == "one file":
            return {**found, "times_ms": dict(list(times.items())[:1])}
        if self.wrong == "no clock of the processor":
            return {**found, "cpu_ms": float("nan")}
        return found

    def profile(self, key: str) -> dict[str, Any]:
        found = super().profile(key)
        if self.wrong == "profiles once":
            self._held.pop(key)
        return found

    def peak_bytes(self) -> int:
        found = super().peak_bytes()
        return found / 2**20 if self.wrong == "mebibytes" else found  # type: ignore[return-value]

    def close(self) -> None:
        if self.wrong != "stays":
            super().close()


class Wrong(FakeTarget):
    """Its workers are wrong in one way."""

    wrong = ""

    def start(self) -> FakeWorker:
        return Other(self, self.wrong)


def wrong(how: str) -> Callable[[], Target]:
    def make() -> Target:
        target = Wrong(weight_costs)
        target.wrong = how
        return target

    return make


class Misnaming(FakeTarget):
    def operations(self, profile: Mapping[str, Any]) -> tuple[Operation, ...]:
        return tuple(Operation((f"kernel {n}",), "", 1.0) for n, _ in enumerate(profile["nodes_us"]))


class Unmeasured(FakeTarget):
    def operations(self, profile: Mapping[str, Any]) -> tuple[Operation, ...]:
        return tuple(Operation((name,), "", float("nan")) for name in profile["nodes_us"])


class Inventing(FakeTarget):
    def operations(self, profile: Mapping[str, Any]) -> tuple[Operation, ...]:
        return (Operation(("everything",), "", 1.0),)


class Lingering(FakeTarget):
    """Its process notices neither that it is asked to end nor that nobody is left to ask."""

    program = "import sys, time\nprint('{\"ready\": true}', flush=True)\ntime.sleep(90)\n"

    def start(self) -> Worker:  # type: ignore[override]
        return Worker(self.name, [sys.executable, "-c", self.program], timeout_s=20.0)


class Unsendable(Lingering):
    program = "import sys\nprint('{\"ready\": true}', flush=True)\nsys.stdin.read()\n"


def lingering() -> Target:
    return Lingering(weight_costs)


BROKEN: dict[str, list[Callable[[], Target]]] = {
    "test_it_says_what_it_is": [
        lambda: honest(name=""),
        lambda: honest(name="fake "),
        lambda: honest(artifact="elf"),
        lambda: honest(precision=""),
        lambda: honest(profiles=1),
        lambda: with_members(engine="no_such_engine", package="x"),
        lambda: with_members(engine="onnx_runtime", package=None),
    ],
    "test_it_can_be_used_or_says_why_not": [lambda: Wordless(weight_costs), lambda: Wavering(weight_costs)],
    "test_its_fingerprint_is_stable_and_distinct": [
        lambda: Ageing(weight_costs),
        lambda: Careless(weight_costs),
        lambda: Nameless(weight_costs),
        lambda: Nested(weight_costs),
    ],
    "test_its_settings_travel": [lambda: Tupled(weight_costs)],
    "test_two_files_are_measured_in_turn": [
        wrong("one round"),
        wrong("nanoseconds"),
        wrong("no time"),
        wrong("one file"),
        wrong("no clock of the processor"),
        wrong("loads before it begins"),
    ],
    "test_a_comparison_is_complete": [wrong("twice as often")],
    "test_what_it_cannot_run_is_a_target_error": [
        wrong("reads anything"),
        wrong("raises what it meets"),
        wrong("runs what was dropped"),
    ],
    "test_its_profile_names_operators": [
        lambda: Misnaming(weight_costs),
        lambda: Unmeasured(weight_costs),
        lambda: Inventing(weight_costs, profiles=False),
    ],
    "test_memory_is_told_in_bytes": [wrong("mebibytes"), wrong("forgets memory")],
    "test_a_closed_worker_is_gone": [wrong("stays")],
    "test_a_worker_does_not_outlive_its_parent": [lingering],
}


def with_members(**members: Any) -> Target:
    target = honest()
    for name, value in members.items():
        setattr(target, name, value)
    return target


class Trial(TargetContract):
    """``make``: gives the target on trial."""

    def __init__(self, make: Callable[[], Target]) -> None:
        self.make = make

    def target(self) -> Target:
        return self.make()


Trial.__test__ = False  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("law", "make"),
    [pytest.param(law, make, id=f"{law}-{n}") for law, fakes in BROKEN.items() for n, make in enumerate(fakes)],
)
def test_a_law_can_fail(law: str, make: Callable[[], Target], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("secateurs.testing.targets._GONE_S", 1.0)
    with pytest.raises(AssertionError):
        getattr(Trial(make), law)()


@pytest.mark.parametrize("law", BROKEN)
@pytest.mark.parametrize("make", [honest, without_profiler])
def test_an_honest_target_keeps_every_law(law: str, make: Callable[[], Target]) -> None:
    getattr(Trial(make), law)()


@pytest.mark.parametrize("law", BROKEN)
def test_a_target_that_is_not_here_keeps_or_skips_every_law(law: str) -> None:
    missing = Trial(lambda: Missing(weight_costs))
    if law in ("test_it_says_what_it_is", "test_it_can_be_used_or_says_why_not"):
        getattr(missing, law)()
        return
    with pytest.raises(unittest.SkipTest, match="not plugged in"):
        getattr(missing, law)()


def test_every_law_is_shown_to_fail() -> None:
    assert set(BROKEN) == {name for name in dir(TargetContract) if name.startswith("test_")}


def test_settings_that_are_no_json_are_told() -> None:
    with pytest.raises(TypeError, match="not JSON serializable"):
        Trial(lambda: Sending(weight_costs)).test_its_settings_travel()


def test_targets_that_must_be_kept_apart_are() -> None:
    class Twin(Trial):
        def others(self) -> list[Target]:
            return [honest(name="fake")]

    with pytest.raises(AssertionError, match="the same as that of fake"):
        Twin(honest).test_its_fingerprint_is_stable_and_distinct()


def test_a_target_that_cannot_be_sent_to_another_process_is_told() -> None:
    def make() -> Target:
        return Unsendable(lambda content: {})

    with pytest.raises(AssertionError, match="cannot be sent to another process"):
        Trial(make).test_a_worker_does_not_outlive_its_parent()


def test_a_worker_that_ends_with_its_parent_passes() -> None:
    Trial(lambda: Unsendable(weight_costs)).test_a_worker_does_not_outlive_its_parent()


def test_a_contract_without_a_target_says_what_to_do() -> None:
    with pytest.raises(AssertionError, match="override target"):
        TargetContract().test_it_says_what_it_is()
