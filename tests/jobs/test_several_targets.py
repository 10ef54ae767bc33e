"""One network for several targets: every measured budget is held, each on its own device, and told for each."""

from __future__ import annotations

import json
import sys
import types
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import pytest
import torch
import training_job

import secateurs as sc
from secateurs import registry
from secateurs.errors import PlanError, TargetUnavailableError
from secateurs.jobs.entry import Place, check_names, run
from secateurs.jobs.run_folder import RunFolder
from secateurs.jobs.settings import Settings
from secateurs.latency import model
from secateurs.latency.store import Store
from secateurs.latency.targets import open_target
from secateurs.measure.bench import Bench
from secateurs.models import Loaded, Preprocessing
from secateurs.report import Record, wording
from secateurs.testing.latency import FakeTarget
from secateurs.testing.targets import SmallNetwork

torch.manual_seed(0)
NETWORK = Loaded(SmallNetwork(24).eval(), "small", (3, 16, 16), Preprocessing(), (4,))
DATA = training_job.images()


def channel_costs(content: bytes) -> dict[str, float]:
    """Per convolution and linear layer 5 µs, and 1 µs per output channel: half of a width saves half, not more."""
    graph = onnx.load_model_from_string(content).graph
    shapes = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    kinds = ("Conv", "Gemm", "MatMul")
    return {n.output[0]: 0.005 + 1e-3 * shapes[n.input[1]][0] for n in graph.node if n.op_type in kinds}


def make_other_target() -> FakeTarget:
    return FakeTarget(channel_costs, 0.02, name="fake-channels")


def make_missing_target() -> FakeTarget:
    target = FakeTarget(channel_costs, name="fake-missing")
    target.available = lambda: "board is not plugged in"  # type: ignore[method-assign]
    return target


@pytest.fixture(scope="module", autouse=True)
def targets(fake_target: str) -> Iterator[tuple[str, str]]:
    """Two targets whose costs have different shapes; a profile of either needs few samples, for they are exact."""
    module = types.ModuleType("secateurs_other_targets")
    vars(module).update(other=make_other_target, missing=make_missing_target)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, module.__name__, module)
        patch.setitem(registry._BUILT_IN["targets"], "fake-channels", f"{module.__name__}:other")
        patch.setitem(registry._BUILT_IN["targets"], "fake-missing", f"{module.__name__}:missing")
        patch.setattr(model, "profile", partial(model.profile, samples=30))
        yield fake_target, "fake-channels"


@pytest.fixture(scope="module")
def settings(targets: tuple[str, str]) -> Settings:
    return Settings(
        latency=("60%", "75%"),
        target=targets,
        criterion="l1",
        epochs=0,
        train_batch=16,
        repair="statistics",
        allow_chance=True,
    )


@pytest.fixture(scope="module")
def finished(settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> sc.Result:
    folder = tmp_path_factory.mktemp("several")
    return run(NETWORK, DATA, settings, Place(folder / "run", store=folder / "store.sqlite3"))


def test_every_measured_budget_is_held(finished: sc.Result, targets: tuple[str, str]) -> None:
    record = finished.record
    assert [row.name for row in record.targets] == list(targets)
    assert all(row.met for row in record.targets)
    assert record.pruned_within_budget
    assert [(one.target, one.text) for one in record.budgets] == [("fake", "60%"), ("fake-channels", "75%")]
    used = [row.latency_ratio * row.dense.latency_ms / (row.budget_ms or 0) for row in record.targets]
    assert max(used) >= 0.94
    assert max(used) <= 1
    assert all(row.speedup == pytest.approx(1 / row.latency_ratio, rel=1e-3) for row in record.targets)
    for row in record.targets:
        assert row.predicted_ms == pytest.approx(row.pruned.latency_ms, rel=0.05), "each by its own model"
        assert row.latency_model is not None
    assert record.rounds == sum(point.kind in ("candidate", "final") for point in record.points)


def test_the_keys_of_one_target_are_the_first_ones(finished: sc.Result) -> None:
    record, first = finished.record, finished.record.targets[0]
    assert (record.target.name, record.budget) == ("fake", "latency on fake 60%, latency on fake-channels 75%")
    assert (record.budget_ms, record.predicted_ms, record.speedup) == (
        first.budget_ms,
        first.predicted_ms,
        first.speedup,
    )
    assert record.dense == first.dense
    assert record.pruned.latency_ms == first.pruned.latency_ms
    assert finished.plan.provenance["predicted_ms"] == first.predicted_ms
    assert set(finished.plan.provenance["predicted"]) == {"latency@fake", "latency@fake-channels"}
    assert finished.plan.provenance["target"] == "fake, 1 thread; fake-channels, 1 thread"


def test_every_target_has_its_files(finished: sc.Result) -> None:
    folder = finished.folder
    assert [row.file for row in finished.record.targets] == ["model.onnx", "model.fake-channels.onnx"]
    image = DATA.test.batch([0])[0].numpy()  # type: ignore[arg-type]
    answers = []
    for row in finished.record.targets:
        session = onnxruntime.InferenceSession(folder / row.file, providers=["CPUExecutionProvider"])
        answers.append(session.run(None, {session.get_inputs()[0].name: image})[0])
        assert row.pruned.file_bytes == (folder / row.file).stat().st_size
    assert answers[0] == pytest.approx(answers[1], rel=1e-5)
    assert (folder / "dense.fake-channels.onnx").exists()
    assert not list(folder.glob(".*"))


def test_every_target_has_its_line(finished: sc.Result) -> None:
    rows = wording.target_rows(finished.record)
    assert [row[0] for row in rows] == ["fake", "fake-channels"]
    assert [row[4].rpartition(" of ")[2] for row in rows] == ["60%", "75%"]
    page = (finished.folder / "report.html").read_text()
    assert "On every target" in page
    assert "model.fake-channels.onnx" in page
    verdict = wording.verdict(finished.record)
    assert verdict.startswith("Budgets met: ")
    assert "measured on fake-channels" in verdict
    assert Record.load(finished.folder / "result.json") == finished.record
    told = json.loads((finished.folder / "result.json").read_text())["targets"]
    assert {"name", "fingerprint", "budget_ms", "predicted_ms", "dense", "pruned", "speedup", "met"} <= set(told[0])


def test_measurements_of_one_target_are_no_other_ones(finished: sc.Result, targets: tuple[str, str]) -> None:
    store = Store(finished.folder.parent / "store.sqlite3")
    found = [store.find(open_target(name).fingerprint(1), "candidate") for name in targets]
    assert set(found[0]) == set(found[1]) != set()
    assert all(found[0][name] != found[1][name] for name in found[0])


def test_a_run_that_is_killed_before_every_stage_ends_alike(
    finished: sc.Result, settings: Settings, run_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[str] = []
    measured: list[tuple[str, str]] = []
    stage, measure = RunFolder.stage, Bench.measure

    def once(what: str) -> None:
        if what not in begun:
            begun.append(what)
            raise KeyboardInterrupt

    def staged(self: RunFolder, name: str, kind: Any, work: Callable[[], Any]) -> Any:
        if self.done(name, kind) is None:
            once(name)
        return stage(self, name, kind, work)

    def measuring(self: Bench, module: Any, store: Store, name: str, plan: Any = None) -> Any:
        if self.target.name == "fake-channels":
            once("the second target's first candidate")
        measured.append((self.target.name, name))
        return measure(self, module, store, name, plan)

    monkeypatch.setattr(RunFolder, "stage", staged)
    monkeypatch.setattr(Bench, "measure", measuring)
    place, result = Place(run_folder, store=finished.folder.parent / "store.sqlite3"), None
    while result is None:
        try:
            result = run(NETWORK, DATA, settings, replace(place, resume=run_folder.exists()))
        except KeyboardInterrupt:
            assert len(begun) < 20
    assert {"dense", "dense on fake-channels", "plan", "repair", "deploy", "deploy on fake-channels"} <= set(begun)
    assert begun[-1] == "deploy on fake-channels"
    assert result.plan.groups == finished.plan.groups
    again, before = (one.record.model_dump(exclude={"seconds", "created", "command"}) for one in (result, finished))
    assert again == before


def test_a_target_out_of_reach_is_refused_with_what_limits_it(settings: Settings, run_folder: Path) -> None:
    tight = replace(settings, latency=("90%", "0.03ms"))
    with pytest.raises(sc.InfeasibleBudgetError) as caught:
        run(NETWORK, DATA, tight, Place(run_folder))
    told = str(caught.value)
    assert told.startswith("Latency budget 0.03ms")
    assert "cannot be reached on fake-channels, 1 thread: the fastest legal network takes" in told
    assert "Raise --latency of fake-channels to" in told
    assert caught.value.details["constraint"] == "latency@fake-channels"
    assert not run_folder.exists()


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ({"target": ("fake", "fake"), "latency": ("60%", "70%")}, "Target fake is given twice"),
        (
            {"target": ("fake", "fake-channels"), "latency": "60%"},
            r"there are 2 targets \(fake, fake-channels\) and 1 latency \(60%\)",
        ),
        ({"target": ("fake", "fake-channels"), "macs": "60%"}, "there are 2 targets .* and no latency"),
        ({"target": "fake", "latency": ("60%", "70%")}, r"there is 1 target \(fake\) and 2 latencies"),
        ({"target": ("fake", "fake-channels"), "max_loss": 1.0}, "--max-loss asks how fast .* on one target"),
        (
            {"target": ("fake", "fake-channels"), "latency": ("60%", "70%"), "elements": "layer"},
            "by the time on one target, but there are 2",
        ),
        ({"target": ("fake", "fake-channels"), "latency": ("60%", "fast")}, "budget 'fast' is not understood"),
    ],
)
def test_what_does_not_pair_is_refused(asked: dict[str, Any], told: str) -> None:
    with pytest.raises(PlanError, match=told):
        Settings(**asked)


def test_targets_that_cannot_be_used_are_refused_before_anything_is_measured(settings: Settings) -> None:
    with pytest.raises(TargetUnavailableError, match="fake-missing cannot be used here: board is not plugged in"):
        check_names(replace(settings, target=("fake", "fake-missing")))
    with pytest.raises(PlanError, match="Targets fake and fake:f32 are the same runtime on the same device"):
        check_names(replace(settings, target=("fake", "fake:f32")))


def test_names_of_files_are_apart() -> None:
    names = ("onnxruntime-cpu", "ssh://pi@host/onnxruntime-cpu:int8", "ssh:/pi@host/onnxruntime-cpu/int8")
    aims = Settings(target=names, latency=("60%", "50%", "40%"), macs="90%").aims
    assert [aim.place for aim in aims] == ["", "ssh.pi.host.onnxruntime-cpu.int8", "ssh.pi.host.onnxruntime-cpu.int8.3"]
    assert [[str(one) for one in aim.budgets] for aim in aims] == [["60%", "90%"], ["50%"], ["40%"]]
    (only,) = Settings(latency="60%").aims
    assert (only.name, only.place, only.stage("dense")) == ("", "", "dense")
