"""In which order samples come, in batches."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch


def positions_of_batches(
    count: int, size: int, *, shuffle: bool, generator: torch.Generator | None, drop_last: bool
) -> Iterator[np.ndarray]:
    """Positions [at most ``size``] of the samples of each batch; a shuffled order comes from ``generator`` alone.

    ``drop_last`` leaves out a last batch that is smaller, but not an only one.
    """
    order = torch.randperm(count, generator=generator).numpy() if shuffle else np.arange(count)
    for start in range(0, count, size):
        chosen = order[start : start + size]
        if drop_last and len(chosen) < size and start > 0:
            return
        yield chosen
