"""Contract of a target: laws for a plug-in's tests to inherit. They measure, but no time decides."""

from __future__ import annotations

import base64
import contextlib
import functools
import json
import math
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import time
import unittest
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from secateurs import registry
from secateurs.errors import TargetError, TargetUnavailableError
from secateurs.export.artifacts import calibrated, export_artifact, formats, variants
from secateurs.export.quantised import LEAST, Quantising
from secateurs.latency.process import WORKER_FILE, Worker
from secateurs.latency.sites import SiteMap
from secateurs.latency.targets import Operation, Target, open_target
from secateurs.latency.timing import Protocol, compare
from secateurs.measure.bench import random_samples
from secateurs.structure import trace

ONCE = Protocol(turns=3, runs_per_turn=1, refuse=math.inf, extensions=0)
"""Turns that are refused for no disturbance."""
_GONE_S = 30.0
"""So long a worker may take to notice that its parent is gone."""
_PARENT = """
import base64, importlib.util, json, pickle, sys, types
name, file, paths, target = json.loads(sys.stdin.readline())
sys.path[:] = paths
try:
    found = importlib.util.find_spec(name)
except (ImportError, ValueError):
    found = None
if found is None or found.origin != file:
    parts = name.split(".")
    for count in range(1, len(parts)):
        sys.modules.setdefault(".".join(parts[:count]), types.ModuleType(parts[count - 1]))
    spec = importlib.util.spec_from_file_location(name, file)
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
worker = pickle.loads(base64.b64decode(target)).start()
print(worker.pid, flush=True)
sys.stdin.read()
"""


class SmallNetwork(nn.Module):
    """Two convolutions of ``width`` channels and a head."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, width, 3, padding=1), nn.Conv2d(width, width, 3, padding=1)
        self.head = nn.Linear(width, 4)

    def forward(self, x: Tensor) -> Tensor:
        """Logits [n, 4] of images [n, 3, 8, 8]."""
        found: Tensor = self.head(torch.relu(self.two(torch.relu(self.one(x)))).mean((2, 3)))
        return found


class TargetContract:
    """Contract of a target: inherit, override :meth:`target`, run with pytest.

    ::

        class TestMyBoard(TargetContract):
            def target(self) -> Target:
                return Board()

    Where the target cannot be used, laws that run something are skipped with its reason.
    """

    threads = 1
    """With so many it measures."""

    def target(self) -> Target:
        """The target on trial, a new object."""
        raise AssertionError("override target() with the target on trial")

    def others(self) -> list[Target]:
        """Targets whose measurements must be kept apart from its own: other precisions, say."""
        return []

    def test_it_says_what_it_is(self) -> None:
        """A name, a kind of file that can be written, and members of the declared types."""
        found = self._whole()
        assert isinstance(found.name, str), f"its name is {found.name!r}"
        assert found.name.strip() == found.name != "", f"its name is {found.name!r}"
        assert found.artifact in formats(), f"artifact {found.artifact!r} is none of {formats()}"
        assert isinstance(found.precision, str), f"precision is {found.precision!r}"
        assert found.precision, "precision is empty"
        for member in (found.profiles, found.skips_pruned_elements):
            assert type(member) is bool, f"profiles and skips_pruned_elements are True or False, not {member!r}"
        if found.engine is not None:
            file = WORKER_FILE.parent / "engines" / f"{found.engine}.py"
            assert file.is_file(), f"engine {found.engine!r} is no file of latency/engines"
            assert found.package, "it can run on another machine, but does not say which package must be there"

    def test_it_can_be_used_or_says_why_not(self) -> None:
        """The same reason whenever it is asked; ``open_target`` gives it as an error."""
        found = self._whole()
        reason = found.available()
        assert reason == found.available() == self._whole().available(), "it says something else when asked again"
        if reason is None:
            assert open_target(found) is found, "it was refused although it is available"
            return
        assert isinstance(reason, str), f"the reason is {reason!r}"
        assert len(reason) > 10, f"the reason is {reason!r}"
        try:
            open_target(found)
        except TargetUnavailableError as error:
            told = str(error)
        else:
            told = ""
        assert reason in told, f"it cannot be used because {reason}, but the error says {told!r}"

    def test_its_fingerprint_is_stable_and_distinct(self) -> None:
        """The same for the same target in every process, JSON, and another one for other threads and targets."""
        found = self._usable()
        first = found.fingerprint(self.threads)
        assert first == found.fingerprint(self.threads) == self._whole().fingerprint(self.threads), "it changes"
        assert json.loads(json.dumps(first)) == first, f"{first} is not JSON"
        for name, value in first.items():
            assert isinstance(name, str), f"{name!r} is no text"
            assert isinstance(value, (str, int)), f"{name} is {value!r}, neither text nor a whole number"
        assert isinstance(first.get("target"), str), f"{first} does not say which target it is"
        assert first.get("threads") == self.threads, f"{first} does not say that there are {self.threads} threads"
        assert first != found.fingerprint(self.threads + 1), "it is the same for another number of threads"
        for other in self.others():
            assert first != other.fingerprint(self.threads), f"it is the same as that of {other.name}"

    def test_its_settings_travel(self) -> None:
        """They go to the worker as JSON, and other requests give other or the same settings, but no errors."""
        found = self._usable()
        for batch, profile in ((1, False), (4, False), (1, found.profiles)):
            settings = found.settings(threads=self.threads, batch=batch, profile=profile)
            assert json.loads(json.dumps(settings)) == settings, f"{settings} is not JSON"

    def test_two_files_are_measured_in_turn(self) -> None:
        """So many times of each as were asked for, positive, in milliseconds, beside those of the whole turn."""
        with self._loaded("large", "small") as (found, worker, files):
            for key, file in files.items():
                answer = worker.load(key, file, found.settings(threads=self.threads, batch=1, profile=False))
                for part in ("load_ms", "first_ms"):
                    assert answer[part] >= 0, f"{part} is {answer[part]}"
            answer = worker.run(list(files), runs=2, rounds=3, skip=1)
            assert set(answer["times_ms"]) == set(files), f"times of {sorted(answer['times_ms'])}"
            for key, times in answer["times_ms"].items():
                assert len(times) == 6, f"{len(times)} times of {key}, 2 runs in each of 3 rounds were asked for"
                assert all(math.isfinite(ms) and ms > 0 for ms in times), f"times of {key}: {times}"
            total = sum(sum(times) for times in answer["times_ms"].values())
            wall, cpu = answer["wall_ms"], answer["cpu_ms"]
            assert total <= 2 * wall + 1, f"runs of {total} ms in a turn of {wall} ms"
            assert math.isfinite(cpu), f"cpu_ms is {cpu}"
            assert cpu >= 0, f"cpu_ms is {cpu}"

    def test_a_comparison_is_complete(self) -> None:
        """Latencies and memory of two files from one interleaved run, as the closed loop asks."""
        with self._written("large", "small") as (found, files):
            both = {"dense": files["large"], "small": files["small"]}
            measured = compare(found, both, threads=self.threads, protocol=ONCE)
            assert set(measured) == set(both), f"measured are {sorted(measured)}"
            for name, one in measured.items():
                assert one.latency_ms > 0, f"{name} takes {one.latency_ms} ms"
                assert one.runs == ONCE.turns, f"{one.runs} runs of {name}"
            assert measured["small"].ratio is not None, "there is no ratio to the dense file"
            assert measured["small"].ratio > 0, f"the ratio is {measured['small'].ratio}"

    def test_what_it_cannot_run_is_a_target_error(self) -> None:
        """A file that is no model, one that is not there, one that was dropped; the next worker is as good as new."""
        with self._written("small") as (found, files):
            settings = found.settings(threads=self.threads, batch=1, profile=False)
            broken, missing = (files["small"].with_name(name) for name in ("broken", "missing"))
            broken.write_bytes(b"no model at all" * 9)
            for what, file in (("a file that is no model", broken), ("a file that is not there", missing)):
                with found.start() as worker:
                    _require_refusal(what, partial(worker.load, "wrong", file, settings))
            with found.start() as worker:
                worker.load("small", files["small"], settings)
                worker.drop(["small"])
                _require_refusal("a file that was dropped", partial(worker.run, ["small"], runs=1))
            with found.start() as worker:
                worker.load("small", files["small"], settings)
                assert worker.run(["small"], runs=1)["times_ms"]["small"], "nothing was measured after the errors"

    def test_its_profile_names_operators(self) -> None:
        """The profile's operators belong to layers of the network by their names, and every layer has one, so that a
        latency model can be made of them; without a profiler there are none, and it is made of whole runs."""
        found = self._usable()
        if not found.profiles:
            assert found.operations({}) == (), "it has operators without a profiler"
            return
        graph = trace(SmallNetwork(16).eval(), torch.randn(1, 3, 8, 8))
        built = variants(found.exporter, graph)
        with tempfile.TemporaryDirectory(prefix="secateurs-contract-") as folder, found.start() as worker:
            file = Path(folder) / f"variant.{found.artifact}"
            file.write_bytes(built.build(graph.spec.dense_widths // 2))
            worker.load("variant", file, found.settings(threads=self.threads, batch=1, profile=True))
            worker.run(["variant"], runs=4)
            operators = found.operations(worker.profile("variant"))
            for one in operators:
                assert isinstance(one, Operation), f"{one!r} is no Operation"
                assert math.isfinite(one.ms), f"{one}"
                assert one.ms >= 0, f"{one}"
            assert worker.run(["variant"], runs=1)["times_ms"]["variant"], "it cannot run after it was profiled"
        sites = SiteMap(built.operators, graph.spec)
        _, counts, _ = sites.attribute(operators)
        seen = {site.name for site, count in zip(sites.sites, counts, strict=True) if count}
        missing = {layer.name for layer in graph.spec.layers} - seen
        assert not missing, f"no operator of the profile belongs to layer {', '.join(sorted(missing))}"

    def test_memory_is_told_in_bytes(self) -> None:
        """The peak of the process, 0 where it is not known; it does not fall."""
        with self._loaded("large") as (found, worker, files):
            before = worker.peak_bytes()
            worker.load("large", files["large"], found.settings(threads=self.threads, batch=1, profile=False))
            after = worker.peak_bytes()
            for peak in (before, after):
                assert isinstance(peak, int), f"its peak is {peak!r}"
                assert peak >= 0, f"its peak is {peak!r}"
            assert after >= before, f"a peak of {before} bytes fell to {after}"

    def test_a_closed_worker_is_gone(self) -> None:
        """Its process has ended, closing it again does nothing, and asking it is a TargetError."""
        with self._loaded("small") as (found, worker, files):
            worker.load("small", files["small"], found.settings(threads=self.threads, batch=1, profile=False))
            worker.close()
            worker.close()
            assert worker.pid is None or not alive(worker.pid), f"process {worker.pid} still runs"
            _require_refusal("a closed worker", partial(worker.run, ["small"], runs=1))

    def test_a_worker_does_not_outlive_its_parent(self) -> None:
        """Where a measuring program is killed, its workers end: nothing is left that disturbs the next one."""
        found = self._usable()
        with found.start() as worker:
            if worker.pid is None:
                return
        module = sys.modules[found.start.__module__]
        try:
            packed = base64.b64encode(pickle.dumps(found)).decode()
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            raise AssertionError(f"it cannot be sent to another process: {error}") from error
        facts = json.dumps([module.__name__, module.__file__, sys.path, packed])
        command = [sys.executable, "-c", _PARENT]
        parent = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert parent.stdin is not None
        assert parent.stdout is not None
        parent.stdin.write(facts + "\n")
        parent.stdin.flush()
        said = parent.stdout.readline().strip()
        parent.kill()
        parent.communicate()
        assert said.isdigit(), f"the other process said {said!r} in place of its worker's number"
        until = time.monotonic() + _GONE_S
        while alive(int(said)) and time.monotonic() < until:
            time.sleep(0.05)
        if alive(int(said)):
            os.kill(int(said), signal.SIGKILL)
            raise AssertionError(f"the worker still ran {_GONE_S:.0f} s after its parent was killed")

    def _whole(self) -> Target:
        found: Target = registry.completed(self.target(), Target)
        return found

    def _usable(self) -> Target:
        found = self._whole()
        reason = found.available()
        if reason is not None:
            raise unittest.SkipTest(f"{found.name}: {reason}")
        return found

    @contextlib.contextmanager
    def _written(self, *sizes: str) -> Iterator[tuple[Target, dict[str, Path]]]:
        """The target, and a ``large`` or a ``small`` network, or both, in files that it runs."""
        found = self._usable()
        with tempfile.TemporaryDirectory(prefix="secateurs-contract-") as folder:
            files = {key: Path(folder) / f"{key}.{found.artifact}" for key in sizes}
            for key, file in files.items():
                file.write_bytes(_exported(found.exporter, {"large": 16, "small": 4}[key]))
            yield found, files

    @contextlib.contextmanager
    def _loaded(self, *sizes: str) -> Iterator[tuple[Target, Worker, dict[str, Path]]]:
        """The same with a worker."""
        with self._written(*sizes) as (found, files), found.start() as worker:
            yield found, worker, files


@functools.cache
def _exported(exporter: str, width: int) -> bytes:
    """The small network's file, made once."""
    example = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    given = Quantising(random_samples(example, LEAST)) if calibrated(exporter.partition(":")[2]) else None
    with tempfile.TemporaryDirectory(prefix="secateurs-contract-") as folder:
        file = Path(folder) / f"network.{exporter.partition(':')[0]}"
        export_artifact(exporter, SmallNetwork(width).eval(), example, file, quantising=given)
        return file.read_bytes()


def alive(pid: int) -> bool:
    """Whether a process that may be nobody's child runs; a zombie that nobody waits for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] != "Z"
    except OSError:
        if Path("/proc/self/stat").exists():
            return False
    try:
        os.kill(pid, 0)
    except OSError:
        return False
    return True


def _require_refusal(what: str, ask: Callable[[], object]) -> None:
    try:
        answer = ask()
    except TargetError as error:
        said = str(error)
    except Exception as error:
        raise AssertionError(f"{what}: {type(error).__name__} in place of a TargetError") from error
    else:
        raise AssertionError(f"{what}: it answered {answer!r}")
    assert len(said) > 20, f"{what}: it says {said!r}"
