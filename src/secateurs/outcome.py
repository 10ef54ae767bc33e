"""From what the stages found to the record that result.json holds."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from secateurs.plan import Plan
from secateurs.planning import versions
from secateurs.report.record import (
    GroupRecord,
    ModelError,
    Point,
    PrunedSide,
    Record,
    Seconds,
    Side,
    TargetRecord,
)
from secateurs.settings import Settings

Facts = dict[str, Any]
"""JSON values by name; every stage adds its own."""


def make_record(
    settings: Settings, facts: Mapping[str, Any], plan: Plan, seconds: Mapping[str, float], command: str
) -> Record:
    """The record of a finished run."""
    dense, pruned = facts["dense"], facts["pruned"]
    budget_ms = settings.budget.limit_ms(dense["latency_ms"])
    return Record(
        model=facts["model"],
        strategy=facts["strategy"],
        criterion=facts["criterion"],
        seed=settings.seed,
        versions=versions(),
        target=target_record(facts["target"], settings.threads, facts["precision"]),
        budget=str(settings.budget),
        budget_ms=budget_ms,
        budget_used=pruned["ratio"] * dense["latency_ms"] / budget_ms,
        predicted_ms=facts["predicted_ms"],
        dense=_side(dense, facts["dense_accuracy"], facts["dense_macs"], facts["dense_params"], facts["dense_bytes"]),
        pruned=PrunedSide(
            **_side(pruned, facts["accuracy"], facts["macs"], facts["params"], facts["file_bytes"]).model_dump(),
            accuracy_cut=facts["accuracy_cut"],
            accuracy_recalibrated=facts["accuracy_recalibrated"],
        ),
        blocks_removed=plan.blocks_removed,
        classes=facts["classes"],
        class_count=facts["class_count"],
        epochs=settings.epochs,
        speedup=dense["latency_ms"] / pruned["latency_ms"],
        latency_ratio=pruned["ratio"],
        latency_ratio_upper=pruned["ratio_upper"],
        export_max_rel_error=facts["export_max_rel_error"],
        structure_check_rel_error=facts["structure_check_rel_error"],
        seconds=Seconds(**{name: round(value, 3) for name, value in seconds.items()}),
        batch=settings.batch,
        data=facts["data"],
        weights=facts["weights"],
        input_shape=tuple(facts["input_shape"]),
        groups=tuple(
            GroupRecord(name=name, units=plan.group_sizes[name], kept=len(kept)) for name, kept in plan.groups.items()
        ),
        points=tuple(Point(**point) for point in facts["points"]),
        latency_model=ModelError(**facts["latency_model"]),
        gap=facts["gap"],
        rounds=facts["rounds"],
        notes=_notes(facts, budget_ms),
        command=command,
        created=time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
    )


def _side(measured: Mapping[str, Any], accuracy: float, macs: int, params: int, file_bytes: int) -> Side:
    return Side(
        latency_ms=measured["latency_ms"],
        latency_spread=measured["spread"],
        accuracy=accuracy,
        macs=macs,
        params=params,
        file_bytes=file_bytes,
        peak_memory_bytes=measured["peak_memory_bytes"],
    )


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


def _notes(facts: Mapping[str, Any], budget_ms: float) -> tuple[str, ...]:
    """What was not done or needs attention."""
    notes = [*facts["notes"], *facts["plan_notes"], *facts["repair_notes"], *facts["tune_notes"]]
    dense, pruned = facts["dense"], facts["pruned"]
    used = pruned["ratio"] * dense["latency_ms"] / budget_ms
    if pruned["ratio_upper"] * dense["latency_ms"] > budget_ms:
        notes.append(
            f"The budget is missed in the final measurement, {used:.1%} of it at the median: the machine is quieter or "
            f"busier than when the plan was chosen. Run again, or lower --latency a little."
        )
    elif used < 0.94:
        notes.append(f"Only {used:.1%} of the budget is used: no legal plan that was found lies closer to it.")
    for name in ("dense", "pruned"):
        if facts[name]["spread"] > 0.1:
            notes.append(
                f"Latencies of the {name} file spread by {facts[name]['spread']:.0%} (interquartile range over "
                f"median): the machine is busy. Ratios are taken turn by turn and are steadier than that."
            )
    return tuple(notes)
