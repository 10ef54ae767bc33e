"""Networks as files on the target: the dense one before anything else, the pruned one at the end."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from safetensors.torch import save
from torch import nn

from secateurs.budgets import RESOURCES, Budget
from secateurs.data import Data, check_trained
from secateurs.export.onnx import ExportReport
from secateurs.files import Scratch
from secateurs.jobs.comparison import (
    RepairedAccuracies,
    Validated,
    deployed_on_test_images,
    on_test_images,
    told,
    validated_file,
)
from secateurs.jobs.plan_stage import PlanFound
from secateurs.jobs.run_folder import RunFolder
from secateurs.jobs.settings import Aim, Settings
from secateurs.latency.targets import open_target
from secateurs.latency.targets._base import Target
from secateurs.latency.targets.opening import in_float as in_float_target
from secateurs.measure.bench import Bench
from secateurs.models import Loaded
from secateurs.plan import Measurement, Plan
from secateurs.planning.closed_loop import untold
from secateurs.progress import Progress
from secateurs.recover.checkpoint import tensors
from secateurs.report.record import BudgetRecord, FileRecord, LayersRecord
from secateurs.structure.kernel_elements import elements_pruned

_FLOAT, _NETWORKS = "float ", ("dense", "pruned")
_AGAIN = 2
"""Further final measurements where the first is not clearly within the budget: the machine may have been busy."""


@dataclass(frozen=True, kw_only=True)
class DenseFound:
    """What the first stage finds. ``target``: its fingerprint; ``dense_correct``: which test images the network gets
    right, as text; an older version did not record that, nor how many there are. Where the target runs quantised files
    (None elsewhere): ``float_accuracy``, of the network before its file was quantised, and ``float_ratio``, latency of
    the float file / of the quantised one."""

    model: str
    weights: str
    input_shape: tuple[int, ...]
    data: str
    class_count: int
    classes: str
    target: dict[str, str]
    precision: str
    dense_accuracy: float
    dense_correct: str = ""
    test_images: int = 0
    dense_params: int
    dense_bytes: int
    notes: tuple[str, ...]
    float_accuracy: float | None = None
    float_ratio: float | None = None

    @property
    def in_float(self) -> float:
        """Latency of the dense network in float / in the target's precision."""
        return 1.0 if self.float_ratio is None else self.float_ratio


@dataclass(frozen=True, kw_only=True)
class DeployFound:
    """What the last stage finds: the file to deploy, and both files in one interleaved measurement.

    Of quantised files only: ``accuracy`` and ``correct`` (which test images, as text) of the file to deploy, all four
    ``files`` of that measurement, and the file's layers by precision (an older version did not record that).
    """

    params: int
    file_bytes: int
    export_max_rel_error: float
    dense: Measurement
    pruned: Measurement
    accuracy: float | None = None
    correct: str = ""
    files: tuple[FileRecord, ...] = ()
    int8_layers: LayersRecord | None = None


@dataclass(frozen=True, kw_only=True)
class ValidationFound:
    """The pruned network on the validation images, where an accuracy was asked for: repaired, and as deployed."""

    repaired: Validated
    deployed: Validated


def _side_by_side(measured: Mapping[str, Measurement], made: Mapping[str, Any]) -> DeployFound:
    return DeployFound(dense=measured["dense"], pruned=measured["pruned"], **made)


@dataclass(frozen=True)
class _Four:
    """What is known of the four files before they are measured. ``made``: of the quantised pruned one; ``accuracy``: of
    the pruned network in float; ``float_bytes``: of both float files, by the names that they are measured under."""

    dense: DenseFound
    made: Mapping[str, Any]
    accuracy: float
    float_bytes: Mapping[str, int]

    def found(self, measured: Mapping[str, Measurement], target: Target) -> DeployFound:
        """With the latencies of all four."""
        in_float = {"dense": self.dense.float_accuracy or 0.0, "pruned": self.accuracy}
        quantised = {"dense": self.dense.dense_accuracy, "pruned": self.made["accuracy"]}
        sizes = {"dense": self.dense.dense_bytes, "pruned": self.made["file_bytes"], **self.float_bytes}
        files = []
        for name, seen in measured.items():
            network = name.removeprefix(_FLOAT)
            files.append(
                FileRecord(
                    network=network,
                    precision=target.precision if name == network else "f32",
                    latency_ms=seen.latency_ms,
                    ratio=seen.ratio or 1.0,
                    accuracy=(quantised if name == network else in_float)[network],
                    file_bytes=sizes[name],
                )
            )
        files.sort(key=lambda one: (one.network != "dense", one.precision != "f32"))
        return replace(_side_by_side(measured, self.made), files=tuple(files))


@dataclass(frozen=True)
class Deployment:
    """The first stage and the last, on one target of the run."""

    loaded: Loaded
    data: Data
    settings: Settings
    folder: RunFolder
    bench: Bench
    progress: Progress
    aim: Aim

    def dense(self) -> DenseFound:
        """The dense network's accuracy, size and file. First, because it also proves data, weights and export.

        Where the quantised file is slower than the float one, what is found is the float one's.
        """
        found = on_test_images(self.loaded.module, self.data, self.progress)
        said = check_trained(self.loaded, self.data, found, allow=self.settings.allow_chance)
        for note in (*said, *self.data.notes):
            self.progress.say(note)
        return self._placed(found.value, told(found), found.images, said)

    def dense_too(self, first: DenseFound) -> DenseFound:
        """The same on a further target, when the first one's is known; which test images are right is not."""
        accuracy = first.dense_accuracy if first.float_accuracy is None else first.float_accuracy
        return self._placed(accuracy, "", first.test_images, ())

    def _placed(self, accuracy: float, correct: str, images: int, said: Sequence[str]) -> DenseFound:
        """The dense network's file. ``accuracy``, ``correct``: on so many test images; ``said``: notes."""
        bench, module = self.bench, self.loaded.module
        if not bench.quantises:
            return self._dense(accuracy, correct, images, self._exported(bench), said)
        if not bench.target.runs_float:
            made = self._deployed_dense(self._exported(bench), said)
            return replace(made, float_accuracy=accuracy)
        with self.folder.timed("measure"), self.progress.task(self.aim.stage("export dense")):
            written, in_float = bench.export_dense_and_in_float(module)
        slow = slower_in(bench.target.precision, in_float, self.aim.name)
        if slow:
            self.progress.say(slow)
            bench = replace(bench, target=open_target(in_float_target(self.aim.target)))
            written = self._exported(bench)
            return replace(self, bench=bench)._dense(accuracy, correct, images, written, (*said, slow))
        made = self._deployed_dense(written, said)
        return replace(made, float_accuracy=accuracy, float_ratio=in_float.ratio)

    def _deployed_dense(self, written: ExportReport, said: Sequence[str]) -> DenseFound:
        """The record of the dense quantised file, by its own answers."""
        deployed = deployed_on_test_images(self.bench, self.bench.dense, self.data, self.progress, self.loaded.module)
        return self._dense(deployed.value, told(deployed), deployed.images, written, said)

    def _exported(self, bench: Bench) -> ExportReport:
        with self.folder.timed("measure"), self.progress.task(self.aim.stage("export dense")):
            return bench.export(self.loaded.module, bench.dense)

    def _dense(
        self, accuracy: float, correct: str, images: int, written: ExportReport, said: Sequence[str]
    ) -> DenseFound:
        """The record of the dense file; ``accuracy``, ``correct``: its own."""
        module, target = self.loaded.module, self.bench.target
        self.folder.know(self.bench.dense)
        return DenseFound(
            model=self.loaded.name,
            weights=str(self.loaded.source.get("weights") or ""),
            input_shape=tuple(self.loaded.input_shape),
            data=self.data.name,
            class_count=len(self.data.classes) if self.data.classes is not None else self.loaded.classes or 0,
            classes="all" if self.data.classes is None else "present",
            target={key: str(value) for key, value in target.fingerprint(self.settings.threads).items()},
            precision=target.precision,
            dense_accuracy=accuracy,
            dense_correct=correct,
            test_images=images,
            dense_params=parameter_count(module),
            dense_bytes=written.size_bytes,
            notes=(*said, *self.data.notes, *(() if self.loaded.source.get("weights") else self.loaded.notes)),
        )

    def deploy(
        self, small: nn.Module, plan: Plan, dense: DenseFound, planned: PlanFound, accuracy: float
    ) -> DeployFound:
        """The files to deploy, and their measurement beside dense. ``accuracy``: of the network before its export."""
        bench = self.bench
        deployed = self.folder.files.deployed(bench.target.artifact, self.aim.place)
        if not self.aim.place:
            self.folder.write(self.folder.files.weights, save(tensors(small)))
        with self.folder.timed("measure"), Scratch("float") as scratch:
            floats = {f"{_FLOAT}{name}": Path(scratch) / f"{name}.{bench.target.artifact}" for name in _NETWORKS}
            with self.progress.task(self.aim.stage("export pruned")):
                written = bench.export(small, deployed, plan, in_float=floats[f"{_FLOAT}pruned"])
            self.folder.know(deployed)
            made: dict[str, Any] = {
                "params": parameter_count(small) - elements_pruned(small, plan),
                "file_bytes": written.size_bytes,
                "export_max_rel_error": written.max_rel_error,
            }
            if not bench.quantises:
                return self._measured(dense, planned, lambda: _side_by_side(bench.final(deployed), made))
            scored = deployed_on_test_images(bench, deployed, self.data, self.progress, self.loaded.module)
            layers = LayersRecord(quantised=len(written.int8_layers), in_float=written.float_layers)
            made |= {"accuracy": scored.value, "correct": told(scored), "int8_layers": layers}
            if not bench.target.runs_float:
                return self._measured(dense, planned, lambda: _side_by_side(bench.final(deployed), made))
            with self.progress.task(self.aim.stage("export dense in float")):
                bench.export_float(self.loaded.module, floats[f"{_FLOAT}dense"])
            four = _Four(dense, made, accuracy, {name: path.stat().st_size for name, path in floats.items()})
            return self._measured(dense, planned, lambda: four.found(bench.final(deployed, floats), bench.target))

    def validate(
        self, accuracies: RepairedAccuracies, repaired: nn.Module, small: nn.Module, plan: Plan
    ) -> ValidationFound:
        """The network after its repair on the validation images, and as it is deployed."""
        first = accuracies.judged(repaired, plan)
        if self.bench.quantises:
            file = self.folder.files.deployed(self.bench.target.artifact)
            return ValidationFound(
                repaired=first, deployed=validated_file(self.bench, file, self.data, self.loaded.module)
            )
        return ValidationFound(repaired=first, deployed=accuracies.judged(small, plan))

    def _measured(self, dense: DenseFound, planned: PlanFound, measure: Callable[[], DeployFound]) -> DeployFound:
        """The final measurement. Where it is not clearly within the budget, two more decide with it: the one in the
        middle counts, whatever it says. A network that is over the budget passes one measurement with probability p at
        most (2.5 %, one end of a 95 % interval), and this rule with p + (1 - p) p²: 2.6 %."""
        first = measure()
        if all(budget.met for budget in check_budgets(self.aim.budgets, dense, planned, first)):
            return first
        name = self.aim.stage("The final measurement")
        self.progress.say(f"{name} is not clearly within the budget; two more follow, and the middle one counts.")
        found = [first, *(measure() for _ in range(_AGAIN))]
        return sorted(found, key=lambda one: one.pruned.ratio or math.inf)[len(found) // 2]


def check_budgets(
    budgets: Sequence[Budget], dense: DenseFound, planned: PlanFound, deployed: DeployFound
) -> tuple[BudgetRecord, ...]:
    """Every budget with the figures of the deployed files; none where a person picked the network.

    Raises:
        TargetError: memory is limited, and the target does not tell it.
    """
    if planned.picked:
        return ()
    before, after = deployed.dense, deployed.pruned
    latency, ratio, upper = before.latency_ms, after.ratio, after.ratio_upper
    assert ratio is not None
    assert upper is not None
    figures = {
        "latency": (latency, ratio * latency, upper * latency),
        "memory": (before.memory_bytes, after.memory_bytes, after.memory_bytes),
        "file_size": (dense.dense_bytes, deployed.file_bytes, deployed.file_bytes),
        "macs": (planned.dense_macs, planned.macs, planned.macs),
    }
    return tuple(_check(budget, *figures[budget.resource], _in_float(deployed)) for budget in budgets)


def _in_float(deployed: DeployFound) -> float:
    """Latency of the dense network in float / in the target's precision, in the final measurement."""
    found = [one.ratio for one in deployed.files if one.network == "dense" and one.precision == "f32"]
    return found[0] if found else 1.0


def slower_in(precision: str, in_float: Measurement, target: str = "") -> str:
    """What to say where the float file, measured beside the quantised one, is surely the faster of the two; ``target``:
    which of several that is."""
    assert in_float.ratio is not None
    if (in_float.ratio_upper or in_float.ratio) >= 1:
        return ""
    return (
        f"In {precision} the dense network takes {1 / in_float.ratio:.2f} times as long as in float on "
        f"{target or 'this target'}, so {precision} is not used: everything that follows is measured in float"
        f"{' there' if target else ''}."
    )


def _check(
    budget: Budget, dense: float | None, pruned: float | None, upper: float | None, float_ratio: float
) -> BudgetRecord:
    if dense is None or pruned is None or upper is None:
        raise untold(budget.name)
    return BudgetRecord(
        resource=budget.resource,
        text=str(budget),
        target=budget.target,
        unit=RESOURCES[budget.resource].unit,
        limit=budget.limit(dense, float_ratio),
        dense=dense,
        pruned=pruned,
        upper=upper,
    )


def parameter_count(module: nn.Module) -> int:
    """Trainable scalars, tied ones once."""
    return sum(parameter.numel() for parameter in module.parameters())
