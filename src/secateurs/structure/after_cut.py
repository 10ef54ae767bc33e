"""An operator call after a cut: what of its tensors stays, for the integers that have to follow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from secateurs.errors import StructureError
from secateurs.structure.call import Analysis
from secateurs.structure.ids import NEUTRAL, IdSpace
from secateurs.structure.values import Value


class Gone:
    """Which ids a choice removes.

    Args:
        ids: the id space of the analysis.
        removed: bool [ids], True where a representative goes.
    """

    def __init__(self, ids: IdSpace, removed: np.ndarray) -> None:
        self._ids = ids
        self._removed = removed

    def mask(self, stack: Sequence[np.ndarray], size: int) -> np.ndarray:
        """True where an index goes, bool [size]."""
        gone = np.zeros(size, dtype=bool)
        for ids in stack:
            gone |= (ids != NEUTRAL) & self._removed[self._ids.find(ids)]
        return gone

    def kept(self, value: Value, dim: int) -> np.ndarray:
        """True where an index of an activation's axis stays, bool [size of the axis]."""
        return ~self.mask(value.along(dim), value.shape[dim])


@dataclass(frozen=True)
class AfterCut:
    """One operator call after a cut, as the ``sizes`` of its rule sees it.

    ``arguments``: by schema name, as they stand in the dense graph (tensors as nodes); ``outputs``: what the rule
    returned, tensors only.
    """

    analysis: Analysis
    node: torch.fx.Node
    arguments: dict[str, Any]
    outputs: tuple[Value, ...]
    gone: Gone

    def __getitem__(self, name: str) -> Any:
        return self.arguments[name]

    def __contains__(self, name: str) -> bool:
        return name in self.arguments

    def get(self, name: str, default: Any = None) -> Any:
        """Argument ``name`` or the default where the schema has none."""
        return self.arguments.get(name, default)

    def number(self, name: str, place: int | None = None) -> int:
        """The integer argument ``name``, or entry ``place`` of it, of which a cut needs to know what it counts.

        Raises:
            StructureError: it is computed in the forward, from the size or the values of an input.
        """
        found = self.arguments[name] if place is None else self.arguments[name][place]
        if not isinstance(found, int):
            raise self.uncountable(name)
        return found

    def uncountable(self, name: str) -> StructureError:
        """The error of an integer argument that is computed in the forward."""
        return StructureError(
            f"{self.node.target} counts units by a number ({name}) that the network computes from its inputs, so what "
            "is left of them cannot be told for every input. Keep these units (--keep), or count them by a constant."
        )

    def input(self, name: str = "self") -> Value:
        """The tensor that is given as argument ``name``."""
        value = self.analysis.values[self.arguments[name].name]
        assert isinstance(value, Value)
        return value

    @property
    def output(self) -> Value:
        """The first result."""
        return self.outputs[0]

    def stays(self, value: Value, dim: int) -> np.ndarray:
        """True where an index along ``dim`` of an input or output stays, bool [size of the axis]."""
        return self.gone.kept(value, dim)

    def length(self, value: Value, dim: int) -> int:
        """How many indices along ``dim`` stay."""
        return int(self.stays(value, dim).sum())

    @property
    def grid(self) -> tuple[int, bool]:
        """Of a call in groups: their number, and whether whole groups can go (else positions in every group)."""
        groups, axis = self.analysis.folded_grids.get(self.node.name, (1, 1))
        return groups, axis == 0
