"""Structure: which units can be removed together, and the only code that removes them.

For a custom operator, :func:`rule` registers how units pass through it; see ``docs/add-your-own.md``.
"""

from secateurs.structure.after_cut import AfterCut
from secateurs.structure.analysis import barrier, move
from secateurs.structure.apply import apply, check_plan
from secateurs.structure.call import Call
from secateurs.structure.graph import Barrier, Graph
from secateurs.structure.groups import Group, View
from secateurs.structure.inspection import Inspection, inspect
from secateurs.structure.operators import rule
from secateurs.structure.rules.elementwise import pointwise
from secateurs.structure.trace import trace
from secateurs.structure.training import agree_on_plan, slice_optimizer
from secateurs.structure.values import Factor, Value

__all__ = [
    "AfterCut",
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
