"""What a network's answers are compared with, in a batch that does not say more."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from secateurs.errors import DataError

_TARGETS = ("labels", "label", "targets", "target", "y", "masks", "mask")


def target_of(batch: Any) -> Any:
    """What answers are compared with: the last entry of a tuple, or the ``labels`` and the like of a dict.

    Raises:
        DataError: there is none.
    """
    if isinstance(batch, Mapping):
        for name in _TARGETS:
            if name in batch:
                return batch[name]
        raise DataError(
            f"A batch is a dict of {', '.join(map(repr, batch))}, none of which is called {', '.join(_TARGETS)}. Say "
            f"what the metric compares: Task(compared=lambda outputs, batch: (predictions, targets))."
        )
    if isinstance(batch, (tuple, list)) and len(batch) > 1:
        return batch[-1]
    return batch  # such as images that are to be restored
