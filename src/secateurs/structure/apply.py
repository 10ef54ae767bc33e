"""A plan carried out, and proved: the verbs of structure."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from secateurs.errors import PlanError, StructureError, checked
from secateurs.plan import Plan
from secateurs.structure.examples import split_example, stored_example
from secateurs.structure.forms import plain
from secateurs.structure.graph import Graph
from secateurs.structure.kernel_elements import cut_elements
from secateurs.structure.rebuild import rebuild
from secateurs.structure.scratch import let_go
from secateurs.structure.slicing import cut_copy, require_match
from secateurs.structure.trace import trace
from secateurs.structure.training import require_own, slice_optimizer
from secateurs.structure.verify import verify
from secateurs.structure.whole import require_resolved, require_whole


def apply(
    model: nn.Module,
    plan: Plan,
    example: Any = None,
    *,
    check: bool = True,
    optimizer: torch.optim.Optimizer | None = None,
) -> nn.Module:
    """A new, smaller module; ``model`` is untouched.

    The cut is checked (docs/structure.md, "The check"): a scratch copy in float64 with every parameter redrawn must
    compute the same as the dense network that ignores the removed units, to 1e-6 of the largest output. Kernel elements
    that the plan does not keep are zero in what is returned; names and shapes do not change by them.

    Args:
        model: the network the plan was made for (weights may differ, names and shapes may not). What wraps it
            (``torch.compile``, ``DataParallel``) is taken off, and is not around the result.
        plan: what stays.
        example: inputs for the check; without it, random inputs of the plan's stored shapes.
        check: False skips the check (searches that evaluate many candidates of one traced network).
        optimizer: the optimiser that trains ``model``; it is re-pointed to the new module's parameters and its
            state is sliced along, so momentum survives.

    Raises:
        PlanMismatchError: the plan belongs to another network; names the first difference.
        PlanError: the plan is damaged or was changed; names the first difference.
        StructureError: the cut network fails or computes something else; names the first differing module.
    """
    model = plain(model)
    checked(Plan, plan, "apply(plan=)", "Give what sc.plan returned, or sc.Plan.load(FILE)")
    require_match(model, plan)
    require_whole(model, plan)
    if optimizer is not None:
        require_own(optimizer, model)
    with torch.inference_mode(False):  # tensors made in inference mode could never be trained
        if plan.rebuild is not None:
            small = rebuild(model, plan, example, check=check)
        else:
            small = _checked(model, plan, example) if check else cut_copy(model, plan)
        cut_elements(small, plan.elements)
    if optimizer is not None:
        slice_optimizer(optimizer, model, small, plan)
    return small


def _checked(model: nn.Module, plan: Plan, example: Any) -> nn.Module:
    """The user's own module, cut and checked; rebuilt from the graph where its forward does not follow this plan."""
    try:
        check_plan(model, plan, example)
    except StructureError as error:
        let_go(error)
        if plan.patches or plan.bypasses or plan.scales:
            require_resolved(plan, _made_anew(model, plan, example))
        reason = str(error).partition(" The original is intact.")[0]
        try:
            return rebuild(model, plan.model_copy(update={"rebuild": reason}), example)
        except StructureError:
            raise error from None
    return cut_copy(model, plan)


def _made_anew(model: nn.Module, plan: Plan, example: Any) -> Plan:
    """The plan of the same decision, from a fresh look at the network; the plan itself where that fails."""
    call = split_example(example) if example is not None else stored_example(plan)
    try:
        return trace(model, call, grid=str(plan.provenance.get("grid", "auto"))).plan(plan.groups, plan.blocks_removed)
    except (StructureError, PlanError):
        return plan


def check_plan(
    model: nn.Module, plan: Plan, example: Any = None, *, seed: int = 0, graph: Graph | None = None
) -> float:
    """Relative difference between the cut network and its oracle on redrawn parameters.

    The oracle is the user's own dense network with the removed indices set to zero; where a statistic spans units
    (normalisation or softmax over them) it is the interpreter of the exported graph. Both run on several inputs drawn
    at random, with integers within their bounds, and at another batch size and another height, width or length where
    the dense network takes them.

    Args:
        model: the dense network.
        plan: what stays.
        example: inputs; without it, inputs of the plan's stored shapes.
        seed: of the redrawn parameters and inputs.
        graph: the traced network, if at hand (else it is traced where it is needed).

    Raises:
        StructureError: the cut network does not run, the difference is above 1e-6, or nothing in the outputs can be
            compared.
    """
    call = split_example(example) if example is not None else stored_example(plan)
    grid = str(plan.provenance.get("grid", "auto"))
    return verify(model, plan, call, seed=seed, graph=graph, traced=lambda: trace(model, call, grid=grid))
