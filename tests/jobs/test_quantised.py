"""A run on a quantised target: what is promised is of the int8 file, and its accuracy is the runtime's."""

from __future__ import annotations

import sys
import types
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import training_job

from secateurs import registry
from secateurs.errors import PlanError
from secateurs.jobs.run_folder import RunFolder
from secateurs.jobs.settings import Settings
from secateurs.jobs.stages import Job, Result
from secateurs.latency.store import Store
from secateurs.latency.targets import make_target, open_target
from secateurs.latency.targets._base import with_precision
from secateurs.progress import Progress, silent
from secateurs.report.record import Record
from secateurs.testing.latency import FakeTarget


def run(folder: Path, target: str, store: Path, latency: str = "60%", progress: Progress = silent) -> Result:
    settings = Settings(latency=latency, target=target, criterion="l1", epochs=1, allow_chance=True, precision="fp32")
    loaded, data = training_job.network(), training_job.images()
    opened = RunFolder.create(folder, settings.to_dict())
    return Job(loaded, data, settings, opened, loaded.example(), store=store, progress=progress).run()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("quantised")


@pytest.fixture(scope="module")
def result(folder: Path, fake_target: str) -> Result:
    return run(folder / "run", f"{fake_target}:int8", folder / "store.sqlite3")


def fresh_accuracy(file: Path) -> float:
    """Of a file on the test images, with nothing of the package between it and the runtime."""
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    images = training_job.images().test
    right = 0
    for index in range(len(images)):
        inputs, label = images.batch(np.array([index]))
        (scores,) = session.run(None, {session.get_inputs()[0].name: inputs.numpy()})
        right += int(scores.argmax() == int(label))
    return right / len(images)


def stored(folder: Path, name: str) -> dict[str, dict[str, object]]:
    store = Store(folder / "store.sqlite3")
    return {text: store.find(open_target(text).fingerprint(1), "variant") for text in (name, f"{name}:int8")}


def test_the_deployed_file_is_quantised_and_its_accuracy_is_the_records(result: Result) -> None:
    file = result.folder / "model.onnx"
    held = onnx.load(file).graph.initializer
    assert sum(tensor.data_type == onnx.TensorProto.INT8 for tensor in held) >= 8
    assert result.record.pruned.accuracy == pytest.approx(fresh_accuracy(file))
    assert result.record.pruned.file_bytes == file.stat().st_size
    assert result.record.target.precision == "int8"


def test_the_budget_is_of_the_dense_int8_file(result: Result) -> None:
    record = result.record
    (budget,) = record.budgets
    assert budget.limit == pytest.approx(0.6 * record.dense.latency_ms)
    assert record.pruned_within_budget


def test_four_files_stand_side_by_side(result: Result) -> None:
    files = result.record.files
    names = [(one.network, one.precision) for one in files]
    assert names == [("dense", "f32"), ("dense", "int8"), ("pruned", "f32"), ("pruned", "int8")]
    dense_float, dense, pruned_float, pruned = files
    assert dense.ratio == 1.0
    assert dense_float.ratio > 1.2
    assert pruned.ratio < 0.6 < pruned_float.ratio
    assert (dense.accuracy, pruned.accuracy) == (result.record.dense.accuracy, result.record.pruned.accuracy)
    assert dense.file_bytes < dense_float.file_bytes
    assert "Float and quantised" in (result.folder / "report.html").read_text()


def test_the_record_can_be_read_back(result: Result) -> None:
    assert Record.load(result.folder / "result.json").files == result.record.files


def test_measurements_of_float_and_of_int8_are_not_mistaken_for_each_other(
    result: Result, folder: Path, fake_target: str
) -> None:
    before = stored(folder, fake_target)
    assert not before[fake_target]
    assert before[f"{fake_target}:int8"]
    in_float = run(folder / "float", fake_target, folder / "store.sqlite3")
    after = stored(folder, fake_target)
    assert after[fake_target]
    assert after[f"{fake_target}:int8"] == before[f"{fake_target}:int8"]
    assert in_float.record.files == ()
    assert in_float.record.dense.latency_ms > 1.2 * result.record.dense.latency_ms


def test_a_budget_can_be_of_the_dense_network_in_float(result: Result, folder: Path, fake_target: str) -> None:
    record = run(folder / "share", f"{fake_target}:int8", folder / "store.sqlite3", "40%-of-float").record
    (budget,) = record.budgets
    dense_float = next(one for one in record.files if (one.network, one.precision) == ("dense", "f32"))
    assert budget.text == "40%-of-float"
    assert budget.limit == pytest.approx(0.4 * dense_float.latency_ms)
    assert budget.met
    assert budget.used > 0.9


def test_a_budget_of_float_above_dense_int8_leaves_nothing_to_do(
    result: Result, folder: Path, fake_target: str
) -> None:
    with pytest.raises(PlanError, match="95%-of-float is not below what the dense network takes"):
        run(folder / "above", f"{fake_target}:int8", folder / "store.sqlite3", "95%-of-float")


def test_on_a_float_target_a_share_of_float_is_one_of_dense(tmp_path: Path, fake_target: str) -> None:
    record = run(tmp_path / "run", fake_target, tmp_path / "store.sqlite3", "60%-of-float").record
    assert record.budgets[0].limit == pytest.approx(0.6 * record.dense.latency_ms)


@pytest.fixture
def slow_target(monkeypatch: pytest.MonkeyPatch, fake_target: str) -> str:
    """A registered target on which int8 takes longer than float."""

    usual = make_target(fake_target).costs  # type: ignore[attr-defined]

    def costs(content: bytes) -> dict[str, float]:
        return {name: ms * (4 if b"DequantizeLinear" in content else 1) for name, ms in usual(content).items()}

    def make(precision: str = "f32") -> FakeTarget:
        name = with_precision("fake-slow", precision, ("f32", "int8"))
        return FakeTarget(costs, 0.02, name=name, precision=precision)

    module = types.ModuleType("secateurs_slow_target")
    module.make = make  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(registry._BUILT_IN["targets"], "fake-slow", f"{module.__name__}:make")
    return "fake-slow"


def test_where_int8_is_slower_float_is_used_and_said(tmp_path: Path, slow_target: str) -> None:
    result = run(tmp_path / "run", f"{slow_target}:int8", tmp_path / "store.sqlite3")
    record = result.record
    assert (record.target.name, record.target.precision, record.files) == (slow_target, "f32", ())
    assert any("int8 is not used" in note for note in record.notes)
    held = onnx.load(result.folder / "model.onnx").graph.initializer
    assert not any(tensor.data_type == onnx.TensorProto.INT8 for tensor in held)
    assert record.pruned_within_budget


def test_a_run_that_fell_back_to_float_can_be_resumed(tmp_path: Path, slow_target: str) -> None:
    folder, store, loaded = tmp_path / "run", tmp_path / "store.sqlite3", training_job.network()

    class Interrupted:
        task = staticmethod(silent.task)

        def say(self, message: str) -> None:
            if message.startswith("Plan 1"):
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(folder, f"{slow_target}:int8", store, progress=Interrupted())
    opened, data = RunFolder.resume(folder), training_job.images()
    record = Job(loaded, data, Settings.from_dict(opened.job), opened, loaded.example(), store=store).run().record
    assert (record.target.name, record.files) == (slow_target, ())
    assert any("int8 is not used" in note for note in record.notes)
