"""The first stage and the last, with a bench that gives what it is told."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import training_job
from safetensors.torch import load_file
from torch import nn

from secateurs.errors import DataError
from secateurs.jobs.comparison import unpacked
from secateurs.jobs.deployment import DeployFound, Deployment, parameter_count
from secateurs.jobs.plan_stage import PlanFound
from secateurs.jobs.run_folder import RunFolder
from secateurs.jobs.settings import Settings
from secateurs.plan import Measurement, Plan
from secateurs.progress import silent
from secateurs.structure import apply, trace
from secateurs.testing.latency import FakeTarget

PLANNED = PlanFound(
    picked=None,
    strategy="knapsack",
    criterion="l1",
    predicted_ms=None,
    gap=None,
    search={},
    rounds=1,
    points=(),
    latency_model=None,
    dense_macs=100,
    macs=50,
    structure_check_rel_error=0.0,
    plan_notes=(),
)


@dataclass
class Told:
    """A bench whose pruned file takes ``ratios`` of the dense one's latency, one after the other."""

    folder: Path
    ratios: Iterator[float]

    def __post_init__(self) -> None:
        self.target, self.quantises = FakeTarget(lambda content: {}), False
        self.dense = self.folder / "dense.onnx"

    def export(self, module: nn.Module, path: Path, plan: Plan | None = None, in_float: Path | None = None) -> Any:
        path.write_bytes(b"x" * parameter_count(module))
        return SimpleNamespace(size_bytes=path.stat().st_size, max_rel_error=1e-7)

    def final(self, deployed: Path) -> dict[str, Measurement]:
        assert deployed == self.folder / "model.onnx"
        ratio = next(self.ratios)
        return {"dense": Measurement(10.0, 0.0, 9), "pruned": Measurement(10 * ratio, 0.0, 9, ratio, 1.01 * ratio)}


def stages(folder: Path, *ratios: float, **more: Any) -> Deployment:
    settings = Settings(latency="60%", allow_chance=True)
    opened = RunFolder.create(folder, settings.to_dict())
    loaded = replace(training_job.network(), **more)
    return Deployment(
        loaded, training_job.images(), settings, opened, Told(folder, iter(ratios)), silent, settings.aims[0]
    )  # type: ignore[arg-type]


def deployed(deployment: Deployment) -> tuple[DeployFound, nn.Module]:
    module, example = deployment.loaded.module, deployment.loaded.example()
    graph = trace(module, example)
    plan = graph.plan({group.name: tuple(range(0, group.units, 2)) for group in graph.groups})
    small = apply(module, plan, example)
    return deployment.deploy(small, plan, deployment.dense(), PLANNED, 0.5), small


def test_the_dense_network_is_tested_and_exported(tmp_path: Path) -> None:
    deployment = stages(tmp_path / "run", notes=("random weights",))
    found = deployment.dense()
    assert (found.model, found.input_shape, found.test_images) == ("tiny", (3, 16, 16), 32)
    assert unpacked(found.dense_correct, found.test_images).mean() == found.dense_accuracy
    assert found.dense_params == found.dense_bytes == parameter_count(deployment.loaded.module)
    assert "random weights" in found.notes
    assert (tmp_path / "run" / "dense.onnx").is_file()
    trained = stages(tmp_path / "trained", notes=("random weights",), source={"weights": "w.safetensors"})
    assert (trained.dense().weights, "random weights" in trained.dense().notes) == ("w.safetensors", False)


def test_a_dense_network_at_chance_ends_the_run(tmp_path: Path) -> None:
    deployment = stages(tmp_path / "run")
    strict = replace(deployment, settings=Settings(latency="60%"))
    with pytest.raises(DataError, match="chance"):
        strict.dense()


@pytest.mark.parametrize(
    ("ratios", "kept"),
    [
        ((0.5, 0.4), 0.5),
        ((0.7, 0.5, 0.55), 0.55),
        ((0.7, 0.8, 0.5), 0.7),
        ((0.7, 0.5, 0.8, 0.4), 0.7),
        ((0.597, 0.5, 0.59), 0.59),
    ],
)
def test_of_a_missed_budget_the_middle_of_three_measurements_counts(
    tmp_path: Path, ratios: tuple[float, ...], kept: float
) -> None:
    """The upper end of the interval counts: 0.597 may be 0.603."""
    found, small = deployed(stages(tmp_path / "run", *ratios))
    assert found.pruned.ratio == kept
    assert found.params == found.file_bytes == parameter_count(small)
    assert set(load_file(tmp_path / "run" / "model.safetensors")) == set(small.state_dict())
