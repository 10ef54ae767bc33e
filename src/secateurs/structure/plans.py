"""A choice as a plan, with what its carrying out costs whoever uses the result."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from secateurs.plan import Plan
from secateurs.structure.advice import rebuilt_remark, sizes_when_rebuilt
from secateurs.structure.recipe import placed, plan_with, recipe_of, refusal
from secateurs.structure.remarks import training_remark

if TYPE_CHECKING:
    from secateurs.structure.graph import Graph


def resolved_plan(
    graph: Graph, kept: Mapping[str, Sequence[int]], blocks_removed: tuple[str, ...], provenance: dict[str, Any]
) -> Plan:
    """A self-contained plan of a choice. Its ``provenance["warnings"]`` say what the user must know of the result:
    that it is a rebuilt network, where and why, which sizes it takes, and what training mode no longer does."""
    recipe = recipe_of(graph)
    resolved = graph.cut(kept, blocks_removed)
    plan = plan_with(graph, resolved, blocks_removed, provenance, recipe)
    if recipe.fragile and plan.rebuild is None:
        failure = refusal(graph, plan)
        if failure is not None:
            recipe = placed(graph, recipe, [(failure, plan)])
            plan = plan_with(graph, resolved, blocks_removed, provenance, recipe)
    remarks = [training_remark(graph, plan.rebuild is not None), rebuilt_remark(graph, plan, recipe)]
    return _with(plan, [remark for remark in remarks if remark is not None], graph)


def _with(plan: Plan, remarks: Sequence[str], graph: Graph) -> Plan:
    provenance = dict(plan.provenance)
    if plan.rebuild is not None:
        provenance["input_sizes"] = str(sizes_when_rebuilt(graph))
    if remarks:
        provenance["warnings"] = [*provenance.get("warnings", ()), *remarks]
    return plan.model_copy(update={"provenance": provenance}) if provenance != plan.provenance else plan
