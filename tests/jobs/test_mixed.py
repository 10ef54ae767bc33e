"""Runs in which the search leaves layers in float: recorded, deployed, and taken up again after a kill."""

from __future__ import annotations

import sys
import types
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
import training_job
from torch import nn

from secateurs import registry
from secateurs.errors import PlanError
from secateurs.jobs.run_folder import RunFolder
from secateurs.jobs.settings import Settings
from secateurs.jobs.stages import Job, Result
from secateurs.latency.targets._base import with_precision
from secateurs.models import Loaded, Preprocessing
from secateurs.plan import Plan
from secateurs.progress import Progress, silent
from secateurs.testing.latency import FakeTarget

FEW = 5
"""Input channels up to which a quantised convolution takes three times as long as in float; others take half."""


def costs(content: bytes) -> dict[str, float]:
    graph = onnx.load_model_from_string(content).graph
    shapes = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    quantised = {n.output[0]: shapes[n.input[0]] for n in graph.node if n.input and n.input[0] in shapes}
    found = {}
    for node in graph.node:
        if node.op_type in ("Conv", "Gemm"):
            int8 = node.input[1] in quantised
            shape = quantised[node.input[1]] if int8 else shapes[node.input[1]]
            factor = (3.0 if shape[1] <= FEW else 0.5) if int8 else 1.0
            found[node.output[0]] = 0.005 + 2e-5 * factor * float(np.prod(shape))
    return found


@pytest.fixture(scope="module")
def target() -> Iterator[str]:
    def make(precision: str = "f32") -> FakeTarget:
        return FakeTarget(costs, 0.02, name=with_precision("fake-mix", precision, ("f32", "int8")), precision=precision)

    module = types.ModuleType("secateurs_mixed_target")
    module.make = make  # type: ignore[attr-defined]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, module.__name__, module)
        patch.setitem(registry._BUILT_IN["targets"], "fake-mix", f"{module.__name__}:make")
        yield "fake-mix"


def network() -> Loaded:
    """Two convolutions and a linear layer for 16 x 16 images."""
    torch.manual_seed(3)
    layers = (
        nn.Conv2d(3, 12, 3, 2),
        nn.ReLU(),
        nn.Conv2d(12, 16, 3, 2),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )
    return Loaded(nn.Sequential(*layers, nn.Linear(16, 4)).eval(), "tiny", (3, 16, 16), Preprocessing(), (4,))


def settings(target: str) -> Settings:
    given = {"latency": "70%", "criterion": "l1", "epochs": 0, "allow_chance": True, "repair": "none"}
    return Settings(target=f"{target}:int8", precision_mix="auto", dense_epochs=0, **given)  # type: ignore[arg-type]


class Killed:
    """Ends the run at a message."""

    task = staticmethod(silent.task)

    def say(self, message: str) -> None:
        if message.startswith("Plan 1"):
            raise KeyboardInterrupt


def run(folder: RunFolder, chosen: Settings, store: Path, progress: Progress = silent) -> Result:
    loaded, data = network(), training_job.images()
    return Job(loaded, data, chosen, folder, loaded.example(), store=store, progress=progress).run()


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory, target: str) -> Result:
    """Of a run that was killed while it measured its first plan, and taken up again."""
    folder = tmp_path_factory.mktemp("mixed")
    chosen = settings(target)
    with pytest.raises(KeyboardInterrupt):
        run(RunFolder.create(folder / "run", chosen.to_dict()), chosen, folder / "store.sqlite3", Killed())
    opened = RunFolder.resume(folder / "run")
    assert Settings.from_dict(opened.job).precision_mix == "auto"
    return run(opened, Settings.from_dict(opened.job), folder / "store.sqlite3")


def test_the_layer_that_int8_slows_down_stays_in_float(result: Result) -> None:
    held = Plan.load(result.folder / "plan.json")
    assert held == result.plan
    assert "0" in held.precision
    notes = " ".join(result.record.notes)
    assert "layers stay in float: 0 (no faster in int8)" in notes
    assert result.record.pruned_within_budget


def test_the_deployed_file_is_mixed_as_the_plan_and_the_record_say(result: Result) -> None:
    layers = result.record.int8_layers
    assert layers is not None
    assert set(layers.in_float) == set(result.plan.precision)
    graph = onnx.load(result.folder / "model.onnx").graph
    assert sum(tensor.data_type == onnx.TensorProto.INT8 and len(tensor.dims) > 1 for tensor in graph.initializer) == (
        layers.quantised
    )
    floats = {t.name for t in graph.initializer if t.data_type == onnx.TensorProto.FLOAT and len(t.dims) > 1}
    assert {name.removesuffix(".weight") for name in floats} == set(layers.in_float)
    assert f"in int8: {layers.quantised} of {layers.count}" in (result.folder / "report.html").read_text()


def test_a_run_that_has_a_plan_is_taken_up_with_its_mix(result: Result, tmp_path: Path, target: str) -> None:
    """Killed behind the plan stage: nothing is planned again, and the same file comes out."""
    import shutil

    shutil.copytree(result.folder, tmp_path / "run")
    for name in ("result.json", "report.html", "model.onnx"):
        (tmp_path / "run" / name).unlink()
    events = tmp_path / "run" / "events.jsonl"
    lines = [line for line in events.read_text().splitlines() if '"event": "deploy"' not in line]
    events.write_text("\n".join(lines) + "\n")
    opened = RunFolder.resume(tmp_path / "run")
    again = run(opened, Settings.from_dict(opened.job), tmp_path / "empty.sqlite3")
    assert again.plan.precision == result.plan.precision
    assert again.record.int8_layers == result.record.int8_layers


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"target": "onnxruntime-cpu"}, "runs float files, so there are no precisions to mix"),
        ({"precision_mix": "sometimes"}, "'sometimes' is unknown. Known: off, auto"),
        ({"strategy": "lap"}, "which strategy 'lap' does not"),
        ({"latency": None, "macs": "50%"}, "decided by measured time. Give --latency"),
        ({"file_size": "50%"}, "does not go with --file-size"),
        ({"elements": "layer"}, "does not go with --elements"),
        ({"schedule": "gradual", "epochs": 2}, "does not go with --schedule gradual"),
    ],
)
def test_what_does_not_go_with_a_mix_is_refused_at_once(changes: dict[str, object], words: str) -> None:
    given = {"latency": "60%", "target": "onnxruntime-cpu:int8", "precision_mix": "auto", **changes}
    with pytest.raises(PlanError, match=words):
        Settings(**given)  # type: ignore[arg-type]
