"""From what the stages found to the record that result.json holds."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from secateurs.closed_loop import Attempt, untold
from secateurs.latency.model import LatencyModel
from secateurs.plan import RESOURCES, Budget, Plan, describe_budgets
from secateurs.planning import Choice
from secateurs.provenance import versions
from secateurs.report.record import (
    BudgetRecord,
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
    budgets = check_budgets(settings.budgets, facts)
    picked = facts.get("picked")
    return Record(
        model=facts["model"],
        strategy=facts["strategy"],
        criterion=facts["criterion"],
        seed=settings.seed,
        versions=versions(),
        target=target_record(facts["target"], settings.threads, facts["precision"]),
        budget=picked or describe_budgets(settings.budgets),
        budgets=budgets,
        budget_ms=next((one.limit for one in budgets if one.resource == "latency"), None),
        budget_used=budgets[0].used if budgets else None,
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
        latency_model=None if facts["latency_model"] is None else ModelError(**facts["latency_model"]),
        search=facts.get("search", {}),
        gap=facts["gap"],
        rounds=facts["rounds"],
        settings=settings.to_dict(),
        notes=_notes(facts, budgets),
        command=command,
        created=time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
    )


def check_budgets(budgets: Sequence[Budget], facts: Mapping[str, Any]) -> tuple[BudgetRecord, ...]:
    """Every budget with the figures of the deployed files; none where a person picked the network.

    Raises:
        TargetError: memory is limited, and the target does not tell it.
    """
    if facts.get("picked"):
        return ()
    dense, pruned = facts["dense"], facts["pruned"]
    latency = dense["latency_ms"]
    figures = {
        "latency": (latency, pruned["ratio"] * latency, pruned["ratio_upper"] * latency),
        "memory": (dense["memory_bytes"], pruned["memory_bytes"], pruned["memory_bytes"]),
        "file_size": (facts["dense_bytes"], facts["file_bytes"], facts["file_bytes"]),
        "macs": (facts["dense_macs"], facts["macs"], facts["macs"]),
    }
    return tuple(_check(budget, *figures[budget.resource]) for budget in budgets)


def _check(budget: Budget, dense: float | None, pruned: float | None, upper: float | None) -> BudgetRecord:
    if dense is None or pruned is None or upper is None:
        raise untold(budget.resource)
    return BudgetRecord(
        resource=budget.resource,
        text=str(budget),
        unit=RESOURCES[budget.resource].unit,
        limit=budget.limit(dense),
        dense=dense,
        pruned=pruned,
        upper=upper,
    )


def _side(measured: Mapping[str, Any], accuracy: float, macs: int, params: int, file_bytes: int) -> Side:
    return Side(
        latency_ms=measured["latency_ms"],
        latency_spread=measured["spread"],
        accuracy=accuracy,
        macs=macs,
        params=params,
        file_bytes=file_bytes,
        memory_bytes=measured["memory_bytes"],
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


def _notes(facts: Mapping[str, Any], budgets: Sequence[BudgetRecord]) -> tuple[str, ...]:
    """What was not done or needs attention."""
    notes = [*facts["notes"], *facts["plan_notes"], *facts["repair_notes"], *facts["tune_notes"]]
    for budget in budgets:
        what = RESOURCES[budget.resource]
        if not budget.met:
            notes.append(
                f"The {what.words} budget is missed in the final measurement, {budget.used:.1%} of it at the median: "
                f"the machine is quieter or busier than when the plan was chosen. Run again, or lower {what.option} a "
                f"little."
            )
    if budgets and max(budget.used for budget in budgets) < 0.94:
        notes.append(
            f"Only {max(budget.used for budget in budgets):.1%} of the budget is used: no legal plan that was found "
            f"lies closer to it."
        )
    for name in ("dense", "pruned"):
        if facts[name]["spread"] > 0.1:
            notes.append(
                f"Latencies of the {name} file spread by {facts[name]['spread']:.0%} (interquartile range over "
                f"median): the machine is busy. Ratios are taken turn by turn and are steadier than that."
            )
    return tuple(notes)


def model_error(costs: LatencyModel) -> dict[str, Any]:
    """The latency model's error as the record names it."""
    error = costs.error
    return {"mean_abs": error.mean_abs, "p95": error.p95, "spearman": error.spearman, "networks": error.count}


def points(
    costs: LatencyModel, dense_ms: float, attempts: Sequence[Attempt[Choice]], accepted: Attempt[Choice]
) -> list[dict[str, Any]]:
    """Predicted against measured ms: the model's own held-out networks, and the plans of the closed loop.

    ``dense_ms``: the model's figure of the dense network.
    """
    found = [
        {"kind": "held-out", "predicted_ms": predicted, "measured_ms": measured}
        for predicted, measured in costs.error.pairs
    ]
    for attempt in attempts:
        assert attempt.measured.ratio is not None
        found.append(
            {
                "kind": "final" if attempt is accepted else "candidate",
                "predicted_ms": attempt.choice.predicted["latency"] * dense_ms,
                "measured_ms": attempt.measured.ratio * dense_ms,
            }
        )
    return found
