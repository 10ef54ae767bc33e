"""Runs in which the search leaves layers in float: recorded, deployed, and taken up again after a kill."""

from __future__ import annotations

import sys
import types
from collections.abc import Iterator
from dataclasses import dataclass
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
from secateurs.latency import model as latency_model
from secateurs.latency.targets._base import with_precision
from secateurs.models import Loaded, Preprocessing
from secateurs.plan import Plan
from secateurs.progress import Progress, Task, silent
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
        # Few networks are enough where times follow from a formula.
        patch.setattr(latency_model, "_FIRST", 1)
        patch.setattr(latency_model, "_ROUNDS", 0)
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


@dataclass(frozen=True)
class Killed:
    """Ends the run at a message, or where a task of this name begins."""

    at: str

    def say(self, message: str) -> None:
        if message.startswith(self.at):
            raise KeyboardInterrupt

    def task(self, name: str, total: int | None = None) -> Task:
        self.say(name)
        return silent.task(name, total)


def run(folder: RunFolder, chosen: Settings, store: Path, progress: Progress = silent) -> Result:
    loaded, data = network(), training_job.images()
    return Job(loaded, data, chosen, folder, loaded.example(), store=store, progress=progress).run()


@pytest.fixture(scope="module")
def plans() -> list[str]:
    """Texts of plan.json, when the run was killed behind the plan stage and when it ended."""
    return []


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory, target: str, plans: list[str]) -> Result:
    """Of a run that was killed while it measured its first plan, again before it exported, and taken up both times."""
    folder = tmp_path_factory.mktemp("mixed")
    store, chosen = folder / "store.sqlite3", settings(target)
    with pytest.raises(KeyboardInterrupt):
        run(RunFolder.create(folder / "run", chosen.to_dict()), chosen, store, Killed("Plan 1"))
    held = Settings.from_dict(RunFolder.resume(folder / "run").job)
    assert held.precision_mix == "auto"
    with pytest.raises(KeyboardInterrupt):
        run(RunFolder.resume(folder / "run"), held, store, Killed("export pruned"))
    plans.append((folder / "run" / "plan.json").read_text())
    ended = run(RunFolder.resume(folder / "run"), held, folder / "empty.sqlite3")
    plans.append((folder / "run" / "plan.json").read_text())
    return ended


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


def test_a_run_that_has_a_plan_is_taken_up_with_its_mix(result: Result, plans: list[str]) -> None:
    assert plans[0] == plans[1]
    assert Plan.from_json(plans[0]).precision == result.plan.precision


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"target": "onnxruntime-cpu"}, "runs files of one precision, so there are none to mix"),
        ({"target": "fpga:ecp5-85f"}, "runs files of one precision, so there are none to mix"),
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
