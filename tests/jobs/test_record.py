"""The record that is made from what the stages found, without running any."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

import pytest
import torch

from secateurs.errors import TargetError
from secateurs.jobs.comparison import Validated, WithinFound, packed
from secateurs.jobs.deployment import DenseFound, DeployFound, ValidationFound, check_budgets
from secateurs.jobs.plan_stage import PlanFound
from secateurs.jobs.record import Findings, FurtherFound, _side, make_record, slower_than_float
from secateurs.jobs.recovery import DenseTunedFound, EquallyTuned, FinetuneFound, RepairFound
from secateurs.jobs.settings import Settings
from secateurs.measure.targeted import Modelled
from secateurs.plan import Fingerprint, Measurement, Plan
from secateurs.report import wording
from secateurs.report.record import FileRecord, LayersRecord, ModelError, Point, Record, Side, ValidationStep

SETTINGS = Settings(latency="60%", macs="50%", epochs=2, train_batch=16, seed=3)
PLAN = Plan(
    groups={"a:out": (0, 2)},
    group_sizes={"a:out": 4},
    blocks_removed=("b",),
    slices={},
    fingerprint=Fingerprint(digest="0", shapes={}),
)
SECONDS = {"measure": 1.23456, "dense_finetune": 2.0, "total": 9.0}


def right(text: str) -> str:
    return packed(torch.tensor([letter == "1" for letter in text]))


def found(**changes: Any) -> Findings:
    """Findings of a run; ``changes``: by stage, other values of its fields."""
    values = Findings(
        dense=DenseFound(
            model="net",
            weights="w.safetensors",
            input_shape=(3, 8, 8),
            data="digits",
            class_count=10,
            classes="all",
            target={"target": "fake", "device": "here", "threads": "1", "precision": "fp32"},
            precision="fp32",
            dense_accuracy=0.75,
            dense_correct=right("1110"),
            test_images=4,
            dense_params=100,
            dense_bytes=1000,
            notes=("first",),
        ),
        planned=PlanFound(
            picked=None,
            strategy="knapsack",
            criterion="l1",
            predicted_ms=5.5,
            gap=0.01,
            search={},
            rounds=2,
            points=(Point(kind="final", predicted_ms=5.5, measured_ms=5.6),),
            latency_model=ModelError(mean_abs=0.01, p95=0.02, spearman=0.9, networks=7),
            dense_macs=2000,
            macs=900,
            structure_check_rel_error=1e-9,
            plan_notes=("second",),
        ),
        repaired=RepairFound(
            accuracy_cut=0.25,
            accuracy_recalibrated=0.5,
            correct=right("1100"),
            repaired_by="least squares",
            repair_notes=("third",),
        ),
        tuned=FinetuneFound(
            accuracy=0.75,
            correct=right("0111"),
            kept="tuned",
            tuned_epochs=2,
            tune_notes=("fourth",),
            train_mode="fp32",
        ),
        dense_tuned=DenseTunedFound(dense_tuned=EquallyTuned(2, 1.0, right("1111")), dense_notes=("fifth",)),
        deployed=DeployFound(
            params=40,
            file_bytes=480,
            export_max_rel_error=1e-6,
            dense=Measurement(10.0, 0.01, 40, memory_bytes=900),
            pruned=Measurement(5.8, 0.02, 40, ratio=0.58, ratio_upper=0.59, memory_bytes=500, peak_memory_bytes=700),
        ),
    )
    parts = {name: replace(getattr(values, name), **more) for name, more in changes.items()}
    return replace(values, **parts)


def record(settings: Settings = SETTINGS, seconds: Mapping[str, float] = SECONDS, **changes: Any) -> Record:
    return make_record(settings, found(**changes), PLAN, seconds, "secateurs prune …")


def test_every_figure_reaches_its_column() -> None:
    made = record()
    assert (made.model, made.weights, made.input_shape, made.data) == ("net", "w.safetensors", (3, 8, 8), "digits")
    assert (made.strategy, made.criterion, made.rounds, made.gap, made.seed) == ("knapsack", "l1", 2, 0.01, 3)
    assert (made.dense.latency_ms, made.dense.macs, made.dense.params, made.dense.file_bytes) == (10.0, 2000, 100, 1000)
    pruned = made.pruned
    assert (pruned.latency_ms, pruned.macs, pruned.params, pruned.file_bytes) == (5.8, 900, 40, 480)
    assert (pruned.accuracy_cut, pruned.accuracy_recalibrated, pruned.accuracy) == (0.25, 0.5, 0.75)
    assert (pruned.memory_bytes, pruned.peak_memory_bytes, made.dense.peak_memory_bytes) == (500, 700, None)
    assert (made.kept, made.tuned_epochs, made.epochs, pruned.repaired_by) == ("tuned", 2, 2, "least squares")
    assert made.speedup == pytest.approx(10 / 5.8)
    assert (made.latency_ratio, made.latency_ratio_upper) == (0.58, 0.59)
    assert (made.budget, made.budget_ms) == ("latency 60%, macs 50%", 6.0)
    assert made.budget_used == pytest.approx(5.8 / 6)
    assert [budget.resource for budget in made.budgets] == ["latency", "macs"]
    assert made.target.fingerprint == "here"
    assert made.seconds.measure == 1.235
    assert [(group.name, group.units, group.kept) for group in made.groups] == [("a:out", 4, 2)]
    assert made.notes == ("first", "second", "third", "fourth", "fifth")
    assert made.settings == SETTINGS.to_dict()
    assert Record.model_validate(json.loads(made.to_json())) == made


def test_the_only_target_has_a_row_too() -> None:
    made = record()
    (row,) = made.targets
    assert (row.name, row.fingerprint, row.precision) == (SETTINGS.target, made.target.fingerprint, "fp32")
    assert (row.budget, row.budget_ms, row.met, row.predicted_ms) == ("60%", 6.0, True, made.predicted_ms)
    assert (row.dense, row.pruned.latency_ms, row.pruned.accuracy) == (made.dense, 5.8, 0.75)
    assert (row.file, row.latency_model, row.files) == ("model.onnx", made.latency_model, made.files)
    assert [budget.target for budget in made.budgets] == ["", ""]


def test_every_target_has_a_row_and_its_budget() -> None:
    """Slower than its budget on the second one: the run as a whole missed it."""
    settings = Settings(
        latency=("60%", "3ms"), target=("onnxruntime-cpu", "openvino-cpu"), macs="50%", epochs=2, train_batch=16, seed=3
    )
    values = found(
        planned={
            "modelled": (
                Modelled(predicted_ms=2.9, points=(), latency_model=ModelError(mean_abs=0.03, p95=0.05, spearman=0.9)),
            )
        }
    )
    dense = replace(
        values.dense, target={"target": "openvino-cpu", "device": "there"}, dense_bytes=900, notes=("first", "sixth")
    )
    pruned = Measurement(3.2, 0.2, 40, ratio=0.8, ratio_upper=0.81)
    deployed = replace(values.deployed, file_bytes=450, dense=Measurement(4.0, 0.01, 40), pruned=pruned)
    further = (FurtherFound(settings.aims[1], dense, deployed),)
    made = make_record(settings, replace(values, further=further), PLAN, SECONDS, "")
    first, second = made.targets
    assert (first.met, second.met, second.file) == (True, False, "model.openvino-cpu.onnx")
    assert (second.budget_ms, second.predicted_ms, second.speedup, second.fingerprint) == (3.0, 2.9, 4 / 3.2, "there")
    assert (second.dense.file_bytes, second.pruned.file_bytes, second.pruned.macs) == (900, 450, made.pruned.macs)
    assert [(one.resource, one.target) for one in made.budgets] == [
        ("latency", "onnxruntime-cpu"),
        ("latency", "openvino-cpu"),
        ("macs", ""),
    ]
    assert not made.pruned_within_budget
    assert made.notes[:2] == ("first", "sixth")
    assert any("The latency on openvino-cpu budget is missed" in note for note in made.notes)
    assert any("Latencies of the pruned file on openvino-cpu spread by 20%" in note for note in made.notes)
    assert "of the budget of 3.00 ms (3ms)" in wording.verdict(made)
    assert wording.target_rows(made)[1][4] == "106.7 % of 3ms, missed"
    assert Record.model_validate(json.loads(made.to_json())) == made


def test_networks_are_compared_image_by_image() -> None:
    made = record()
    assert made.test is not None
    assert made.dense_finetuned is not None
    assert (made.test.samples, made.test.difference, made.test.tie) == (4, 0.0, True)
    assert made.test.difference_standard_error == pytest.approx((2 / 4 / 4) ** 0.5)
    assert made.dense_finetuned.difference == pytest.approx(-0.25)
    assert made.dense_finetuned.seconds == 2.0
    assert record(dense_tuned={"dense_tuned": None}).dense_finetuned is None


def test_a_column_that_a_stage_names_needs_no_line_here() -> None:
    """And no two stages claim the same one."""
    made = record(planned={"structure_check_rel_error": 0.5}, dense={"classes": "present"}, tuned={"kept": "repaired"})
    assert (made.structure_check_rel_error, made.classes, made.kept) == (0.5, "present", "repaired")
    names = [one.name for stage in found().stages for one in fields(stage) if one.name in Record.model_fields]
    assert len(names) == len(set(names))


def test_a_measured_figure_that_a_column_calls_alike_needs_no_line_here(monkeypatch: pytest.MonkeyPatch) -> None:
    class Longer(Side):
        first_run_ms: float | None = None

    monkeypatch.setattr("secateurs.jobs.record.Side", Longer)
    measured = Measurement(10.0, 0.01, 40, memory_bytes=900, file_bytes=7, first_run_ms=55.0)
    made = _side(measured, 0.5, 2000, 100, 1000)
    assert isinstance(made, Longer)
    assert (made.first_run_ms, made.memory_bytes, made.latency_spread) == (55.0, 900, 0.01)
    assert made.file_bytes == 1000, "the deployed file's"


def test_what_is_missed_or_unsteady_is_told() -> None:
    late = Measurement(6.2, 0.2, 40, ratio=0.62, ratio_upper=0.64)
    made = record(deployed={"pruned": late})
    assert not made.pruned_within_budget
    assert any("latency budget is missed" in note for note in made.notes)
    assert any("Latencies of the pruned file spread by 20%" in note for note in made.notes)
    early = Measurement(5.0, 0.0, 40, ratio=0.5, ratio_upper=0.5)
    loose = record(Settings(latency="60%"), deployed={"pruned": early})
    assert any("Only 83.3% of the budget is used" in note for note in loose.notes)


def test_a_pick_has_no_budgets() -> None:
    made = record(planned={"picked": "point 3 of the front"})
    assert (made.budget, made.budgets, made.budget_ms, made.budget_used) == ("point 3 of the front", (), None, None)


def test_layers_that_the_quantizer_refused_are_named_beside_those_of_the_plan() -> None:
    values = found(deployed={"int8_layers": LayersRecord(quantised=3, in_float=("a", "b"))})
    mixed = PLAN.model_copy(update={"precision": {"a": "float"}})
    made = make_record(SETTINGS, values, mixed, SECONDS, "")
    assert [note for note in made.notes if "quantizer" in note] == [
        "The quantizer leaves b in float: it has no int8 form there."
    ]
    assert wording.int8_layers(made.int8_layers) == " Layers of the pruned file in int8: 3 of 5; in float: a, b."
    assert make_record(SETTINGS, found(), PLAN, SECONDS, "").int8_layers is None


def within(repaired: str, deployed: str, least: float = 0.5) -> Record:
    """Of a run that was asked for an accuracy; which of four validation images are right."""
    step = ValidationStep(predicted_ratio=0.6, latency_ratio=0.58, accuracy=0.5, holds=True, chosen=True)
    dense = Validated(0.75, right("1110"))
    validated = ValidationFound(
        repaired=Validated(repaired.count("1") / 4, right(repaired)),
        deployed=Validated(deployed.count("1") / 4, right(deployed)),
    )
    values = found(planned={"within": WithinFound(samples=4, least=least, dense=dense, steps=(step,))})
    settings = Settings(max_loss=25.0, macs="90%", epochs=2, train_batch=16)
    return make_record(settings, replace(values, validated=validated), PLAN, SECONDS, "")


def test_what_became_of_an_accuracy_that_was_asked_for() -> None:
    made = within("0110", "1111")
    assert made.validation is not None
    seen = made.validation
    assert (seen.dense, seen.repaired, seen.deployed, seen.least, seen.samples) == (0.75, 0.5, 1.0, 0.5, 4)
    assert (seen.difference, seen.tie) == (-0.25, True)
    assert seen.difference_standard_error == pytest.approx((3 / 16 / 4) ** 0.5)
    assert (made.max_loss, made.min_accuracy, made.budget) == (25.0, None, "accuracy loss ≤ 25 points, macs 90%")
    assert made.pruned_within_budget
    assert not any("of the budget is used" in note for note in made.notes), "accuracy is what binds"
    assert any("one image is 25.00 points" in note for note in made.notes)
    assert any("So few validation images do not tell a loss of 25.00 points" in note for note in made.notes)
    assert "Bound held: accuracy loss ≤ 25 points, macs 90%; validation accuracy 50.00 %" in wording.verdict(made)
    assert Record.model_validate(json.loads(made.to_json())) == made


def test_an_accuracy_that_is_not_kept_is_told() -> None:
    missed = within("0100", "0110")
    assert not missed.pruned_within_budget
    assert any("Repaired again, the network has 25.00%" in note for note in missed.notes)
    assert wording.verdict(missed).startswith("Bound missed")
    spoilt = within("0110", "0100")
    assert spoilt.pruned_within_budget, "the promise is about the repaired network"
    assert any("As deployed the network has 25.00%" in note for note in spoilt.notes)


def test_a_resource_that_the_target_does_not_tell_is_an_error() -> None:
    values = found(deployed={"dense": Measurement(10.0, 0.0, 40)})
    with pytest.raises(TargetError, match="--memory"):
        check_budgets(Settings(memory="60%").budgets, values.dense, values.planned, values.deployed)


def file(network: str, precision: str, ratio: float) -> FileRecord:
    return FileRecord(network=network, precision=precision, latency_ms=1.0, ratio=ratio, accuracy=0.9, file_bytes=9)


def test_int8_that_is_slower_than_float_is_told() -> None:
    files = [
        file("dense", "f32", 1.5),
        file("dense", "int8", 1.0),
        file("pruned", "f32", 0.5),
        file("pruned", "int8", 0.6),
    ]
    (note,) = slower_than_float(files)
    assert "The pruned network in int8 takes 1.20 times as long as in float here" in note
    assert "without :int8" in note
    assert slower_than_float(files[:2]) == slower_than_float([]) == []
