"""Structure: which units can be removed together, and the only code that removes them."""

from secateurs.structure.apply import apply
from secateurs.structure.graph import Barrier, Graph
from secateurs.structure.groups import Group, View
from secateurs.structure.inspection import Inspection, inspect
from secateurs.structure.trace import trace
from secateurs.structure.training import agree_on_plan, slice_optimizer
from secateurs.structure.verify import check_plan

__all__ = [
    "Barrier",
    "Graph",
    "Group",
    "Inspection",
    "View",
    "agree_on_plan",
    "apply",
    "check_plan",
    "inspect",
    "slice_optimizer",
    "trace",
]
