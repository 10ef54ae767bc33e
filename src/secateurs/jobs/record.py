"""From what the stages found to the record that result.json holds."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from secateurs.budgets import ACCURACY, ROUNDING, Limited, Metric
from secateurs.jobs.comparison import OnSamples
from secateurs.jobs.deployment import DenseFound, DeployFound, ValidationFound, check_budgets
from secateurs.jobs.plan_stage import PlanFound
from secateurs.jobs.recovery import DenseTunedFound, FinetuneFound, RepairFound
from secateurs.jobs.run_folder import RunFiles
from secateurs.jobs.settings import Aim, Settings
from secateurs.latency.targets.opening import make_target
from secateurs.plan import Measurement, Plan
from secateurs.provenance import versions
from secateurs.report.record import (
    BudgetRecord,
    Certainty,
    DenseFinetuned,
    FileRecord,
    GroupRecord,
    PrunedSide,
    Record,
    Seconds,
    Side,
    TargetRecord,
    TargetRow,
    Validation,
)


@dataclass(frozen=True)
class FurtherFound:
    """What the stages found on a target behind the first one."""

    aim: Aim
    dense: DenseFound
    deployed: DeployFound


@dataclass(frozen=True)
class Findings:
    """What every stage of a run found; ``validated``: None where no accuracy was asked for; ``further``: on every
    target but the first."""

    dense: DenseFound
    planned: PlanFound
    repaired: RepairFound
    tuned: FinetuneFound
    dense_tuned: DenseTunedFound
    deployed: DeployFound
    validated: ValidationFound | None = None
    further: tuple[FurtherFound, ...] = ()

    @property
    def stages(self) -> tuple[Any, ...]:
        """The values in the order of the stages, on the first target."""
        values = (getattr(self, one.name) for one in fields(self) if one.name != "further")
        return tuple(value for value in values if value is not None)

    def accuracy(self, deployed: DeployFound) -> float:
        """On the test images, of what is deployed somewhere: a quantised file's own, or the network's."""
        return self.tuned.accuracy if deployed.accuracy is None else deployed.accuracy

    @property
    def before(self) -> OnSamples:
        """The dense network on the test images."""
        return OnSamples(self.dense.dense_accuracy, self.dense.dense_correct, self.dense.test_images)

    @property
    def after(self) -> OnSamples:
        """What is deployed on the test images: a quantised file, or the network itself."""
        value = self.tuned.accuracy if self.deployed.accuracy is None else self.deployed.accuracy
        return OnSamples(value, self.deployed.correct or self.tuned.correct, self.dense.test_images)


def make_record(
    settings: Settings,
    found: Findings,
    plan: Plan,
    seconds: Mapping[str, float],
    command: str,
    metric: Metric = ACCURACY,
) -> Record:
    """The record of a finished run.

    A column that a stage's value has under its name is taken over as it is; the others are put together here.
    """
    dense, planned, repaired, deployed = found.dense, found.planned, found.repaired, found.deployed
    rows, budgets = _rows(settings, found)
    before, after = deployed.dense, deployed.pruned
    made = {
        "metric": metric,
        "seed": settings.seed,
        "versions": versions(),
        "target": target_record(dense.target, settings.threads, dense.precision),
        "targets": tuple(rows),
        "budget": planned.picked or settings.asked,
        "budgets": budgets,
        "budget_ms": rows[0].budget_ms,
        "budget_used": budgets[0].used if budgets else None,
        "max_loss": settings.max_loss,
        "min_accuracy": None if settings.bound is None else settings.bound.min_accuracy,
        "validation": (validation := _validation(found)),
        "dense": _side(before, dense.dense_accuracy, planned.dense_macs, dense.dense_params, dense.dense_bytes),
        "pruned": PrunedSide(
            **_side(after, found.accuracy(deployed), planned.macs, deployed.params, deployed.file_bytes).model_dump(),
            accuracy_cut=repaired.accuracy_cut,
            accuracy_recalibrated=repaired.accuracy_recalibrated,
            repaired_by=repaired.repaired_by,
        ),
        "dense_finetuned": _dense_finetuned(found, seconds),
        "test": _test(found),
        "blocks_removed": plan.blocks_removed,
        "epochs": settings.training[0],
        "speedup": before.latency_ms / after.latency_ms,
        "latency_ratio": after.ratio,
        "latency_ratio_upper": after.ratio_upper,
        "seconds": Seconds(**{name: round(value, 3) for name, value in seconds.items()}),
        "batch": settings.batch,
        "groups": tuple(
            GroupRecord(name=name, units=plan.group_sizes[name], kept=len(kept)) for name, kept in plan.groups.items()
        ),
        "settings": settings.to_dict(),
        "notes": (*_notes(found, budgets), *_refused(found, plan), *_said_of(validation, metric)),
        "command": command,
        "created": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
    }
    return Record(**{**_taken_over(found), **made})


def _rows(settings: Settings, found: Findings) -> tuple[list[TargetRow], tuple[BudgetRecord, ...]]:
    """A row for every target, and every budget in the order in which they count."""
    planned, budgets, made = found.planned, dict[str, BudgetRecord](), []
    places = (FurtherFound(settings.aims[0], found.dense, found.deployed), *found.further)
    said = [(planned.predicted_ms, planned.latency_model)]
    said += [(one.predicted_ms, one.latency_model) for one in planned.modelled or ()]
    for place, (predicted_ms, model) in zip(places, said, strict=True):
        checked = check_budgets(place.aim.budgets, place.dense, planned, place.deployed)
        budgets |= {f"{one.resource}@{one.target}": one for one in checked}
        row = _row(settings, found, place, next((one for one in checked if one.resource == "latency"), None))
        made.append(row.model_copy(update={"predicted_ms": predicted_ms, "latency_model": model}))
    order = [f"{one.resource}@{one.target}" for one in settings.budgets]
    return made, tuple(budgets[name] for name in order if name in budgets)


def _row(settings: Settings, found: Findings, place: FurtherFound, budget: BudgetRecord | None) -> TargetRow:
    """One target, without what the model says; ``budget``: of its latency."""
    dense, deployed, planned = place.dense, place.deployed, found.planned
    before, after = deployed.dense, deployed.pruned
    about = target_record(dense.target, settings.threads, dense.precision)
    artifact = make_target(place.aim.target).artifact
    return TargetRow(
        name=place.aim.target,
        fingerprint=about.fingerprint,
        threads=about.threads,
        precision=about.precision,
        file=RunFiles(Path()).deployed(artifact, place.aim.place).name,
        budget="" if budget is None else budget.text,
        budget_ms=None if budget is None else budget.limit,
        predicted_ms=None,
        dense=_side(before, dense.dense_accuracy, planned.dense_macs, dense.dense_params, dense.dense_bytes),
        pruned=_side(after, found.accuracy(deployed), planned.macs, deployed.params, deployed.file_bytes),
        speedup=before.latency_ms / after.latency_ms,
        latency_ratio=after.ratio or 1.0,
        latency_ratio_upper=after.ratio_upper or 1.0,
        met=None if budget is None else budget.met,
        export_max_rel_error=deployed.export_max_rel_error,
        files=deployed.files,
    )


def _taken_over(found: Findings) -> dict[str, Any]:
    """Columns of the record that a stage's value has under the same name."""
    return {
        one.name: getattr(stage, one.name)
        for stage in found.stages
        for one in fields(stage)
        if one.name in Record.model_fields
    }


def _test(found: Findings) -> Certainty:
    """How much the test images tell of the accuracies and of their difference."""
    dense, pruned = found.before, found.after
    apart = pruned.against(dense)
    return Certainty(
        samples=dense.samples,
        standard_error=pruned.error,
        dense_standard_error=dense.error,
        difference=apart.value,
        difference_standard_error=apart.error,
        tie=apart.tie,
    )


def _validation(found: Findings) -> Validation | None:
    """What became of the accuracy that was asked for; None where none was."""
    within, validated = found.planned.within, found.validated
    if within is None or validated is None:
        return None
    images, repaired = within.samples, validated.repaired
    judged = OnSamples(repaired.accuracy, repaired.correct, images)
    apart = judged.against(OnSamples(within.dense.accuracy, within.dense.correct, images))
    return Validation(
        samples=images,
        least=within.least,
        dense=within.dense.accuracy,
        repaired=repaired.accuracy,
        deployed=validated.deployed.accuracy,
        standard_error=judged.error,
        difference=apart.value,
        difference_standard_error=apart.error,
        tie=apart.tie,
        steps=within.steps,
    )


def _said_of(validation: Validation | None, metric: Metric) -> tuple[str, ...]:
    """How far the validation images can be trusted, and whether what is deployed falls behind."""
    if validation is None:
        return ()
    error, chosen = validation.difference_standard_error, len(validation.steps)
    asked = abs(validation.dense - validation.least)
    one = f"one image is {metric.distance(1 / validation.samples)}, " if metric == ACCURACY else ""
    spread = "not known" if error is None else metric.distance(error)
    notes = [
        f"The {metric.name} was judged on {validation.samples} validation images, by which the network was chosen "
        f"among {chosen}: {one}the standard error of the difference to dense {spread}. These images flatter it a "
        f"little; the test images, on which nothing was chosen, say how it does elsewhere."
    ]
    if error is not None and 2 * error > asked:
        notes.append(
            f"So few validation images do not tell a loss of {metric.distance(asked)}: two standard errors are "
            f"{metric.distance(2 * error).removesuffix(' points')}. Give data with more training images, of which a "
            f"tenth serve to validate."
        )
    worse = "below" if metric.better == "higher" else "above"
    if not validation.held:
        notes.append(
            f"Repaired again, the network has {metric.said(validation.repaired)} on the validation images, {worse} the "
            f"{metric.said(validation.least)} that must stay: it was judged better when it was chosen. Run again with "
            f"a smaller loss."
        )
    if metric.gain(validation.least, validation.deployed) < -ROUNDING:
        notes.append(
            f"As deployed the network has {metric.said(validation.deployed)} on the validation images, {worse} the "
            f"{metric.said(validation.least)} that must stay, which it had when it was repaired. Leave out the "
            f"training (--epochs 0), or give another --lr."
        )
    return tuple(notes)


def _dense_finetuned(found: Findings, seconds: Mapping[str, float]) -> DenseFinetuned | None:
    """The dense network trained equally, beside the pruned one on the same images; None where it was not."""
    trained, images = found.dense_tuned.dense_tuned, found.dense.test_images
    if trained is None:
        return None
    judged = OnSamples(trained.accuracy, trained.correct, images)
    apart = found.after.against(judged)
    return DenseFinetuned(
        epochs=trained.epochs,
        accuracy=trained.accuracy,
        standard_error=judged.error,
        seconds=round(seconds.get("dense_finetune", 0.0), 3),
        difference=apart.value,
        difference_standard_error=apart.error,
        tie=apart.tie,
    )


def _side(measured: Measurement, accuracy: float, macs: int, params: int, file_bytes: int) -> Side:
    """One column of the table; a figure that the measurement and the column call alike needs no line here."""
    alike = {one.name: getattr(measured, one.name) for one in fields(measured) if one.name in Side.model_fields}
    counted = {"accuracy": accuracy, "macs": macs, "params": params, "file_bytes": file_bytes}
    return Side(**{**alike, **counted, "latency_spread": measured.spread})


def target_record(fingerprint: Mapping[str, str], threads: int, precision: str) -> TargetRecord:
    """The target as the report names it; ``fingerprint``: what its figures depend on."""
    shown = [str(value) for key, value in fingerprint.items() if key not in ("target", "threads", "precision")]
    return TargetRecord(
        name=fingerprint["target"],
        fingerprint=", ".join(shown),
        threads=threads,
        precision=precision,
        details=dict(fingerprint),
    )


def slower_than_float(files: Sequence[FileRecord], target: str = "") -> list[str]:
    """What to say where a quantised file is no faster than the float one of the same network; ``files``: all four, on
    ``target`` where that is not the first."""
    ratios = {(one.network, one.precision): one.ratio for one in files}
    where = f"on {target}" if target else "here"
    return [
        f"The {one.network} network in {one.precision} takes {one.ratio / ratios[one.network, 'f32']:.2f} times as "
        f"long as in float {where}, so quantising buys nothing: give the target without :{one.precision}."
        for one in files
        if one.precision != "f32" and one.ratio >= ratios[one.network, "f32"]
    ]


def _refused(found: Findings, plan: Plan) -> list[str]:
    """Layers that the quantizer left in float though the plan does not say so."""
    layers = found.deployed.int8_layers
    names = [] if layers is None else [name for name in layers.in_float if name not in plan.precision]
    return [f"The quantizer leaves {', '.join(names)} in float: it has no int8 form there."] if names else []


def _notes(found: Findings, budgets: Sequence[BudgetRecord]) -> tuple[str, ...]:
    """What was not done or needs attention."""
    notes = [
        *found.dense.notes,
        *(note for one in found.further for note in one.dense.notes if note not in found.dense.notes),
        *found.planned.plan_notes,
        *found.repaired.repair_notes,
        *found.tuned.tune_notes,
        *found.dense_tuned.dense_notes,
        *slower_than_float(found.deployed.files),
        *(note for one in found.further for note in slower_than_float(one.deployed.files, one.aim.target)),
    ]
    for budget in budgets:
        what = Limited(budget.resource, budget.target)
        if not budget.met:
            notes.append(
                f"The {what.words} budget is missed in the final measurement, {budget.used:.1%} of it at the median: "
                f"the machine is quieter or busier than when the plan was chosen. Run again, or lower {what.option} a "
                f"little."
            )
    if found.planned.within is None and budgets and max(budget.used for budget in budgets) < 0.94:
        notes.append(
            f"Only {max(budget.used for budget in budgets):.1%} of the budget is used: no legal plan that was found "
            f"lies closer to it."
        )
    for where, deployed in (("", found.deployed), *((f" on {one.aim.target}", one.deployed) for one in found.further)):
        for name, measured in (("dense", deployed.dense), ("pruned", deployed.pruned)):
            if measured.spread > 0.1:
                notes.append(
                    f"Latencies of the {name} file{where} spread by {measured.spread:.0%} (interquartile range over "
                    f"median): the machine is busy. Ratios are taken turn by turn and are steadier than that."
                )
    return tuple(notes)
