"""Structure: which units can be removed together, and the only code that removes them.

For a custom operator, :func:`rule` registers how units pass through it; see ``docs/add-your-own.md``.
"""

from secateurs.structure.analysis import barrier, move, rule
from secateurs.structure.apply import apply
from secateurs.structure.call import Call
from secateurs.structure.graph import Barrier, Graph
from secateurs.structure.groups import Group, View
from secateurs.structure.inspection import Inspection, inspect
from secateurs.structure.rules.elementwise import pointwise
from secateurs.structure.trace import trace
from secateurs.structure.training import agree_on_plan, slice_optimizer
from secateurs.structure.values import Factor, Value
from secateurs.structure.verify import check_plan

__all__ = [
    "Barrier",
    "Call",
    "Factor",
    "Graph",
    "Group",
    "Inspection",
    "Value",
    "View",
    "agree_on_plan",
    "apply",
    "barrier",
    "check_plan",
    "inspect",
    "move",
    "pointwise",
    "rule",
    "slice_optimizer",
    "trace",
]
