"""A deployed file as its target runs it, called like the network that it was made of."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from secateurs.errors import TargetError
from secateurs.latency.process import Worker
from secateurs.latency.targets._base import Target

_KEY = "deployed"


class Deployed(nn.Module):
    """Runs a loaded file: what it returns is what whoever deploys it gets, to the last rounding.

    Args:
        worker: a process that has the file loaded.
        batch: samples that the file takes at once.
    """

    def __init__(self, worker: Worker, batch: int) -> None:
        super().__init__()
        self._worker, self._batch = worker, batch

    def forward(self, *args: Any, **kwargs: Any) -> Tensor | tuple[Tensor, ...]:
        """The file's outputs [samples, ...] for inputs [samples, ...], one tensor where it has one output.

        Raises:
            TargetError: the runtime failed.
        """
        leaves = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        samples = len(leaves[0])
        missing = -samples % self._batch
        arrays = [_filled(leaf.detach().cpu().numpy(), samples, missing) for leaf in leaves]
        outputs = tuple(torch.from_numpy(found[:samples].copy()) for found in self._worker.infer(_KEY, arrays))
        if not outputs:
            raise TargetError(f"{self._worker.name}: the file has no outputs. Export the network anew.")
        return outputs[0] if len(outputs) == 1 else outputs


def _filled(array: np.ndarray, samples: int, missing: int) -> np.ndarray:
    """The array with its last sample repeated, where the file takes more than are left."""
    if not missing or array.ndim == 0 or len(array) != samples:
        return np.ascontiguousarray(array)
    return np.concatenate([array, np.repeat(array[-1:], missing, axis=0)])


@contextlib.contextmanager
def running(target: Target, file: Path, *, threads: int = 1, batch: int = 1) -> Iterator[Deployed]:
    """The file, loaded in a process of the target's own.

    Raises:
        TargetError: the runtime refuses the file or fails.
    """
    with target.start() as worker:
        worker.load(_KEY, file, target.settings(threads=threads, batch=batch, profile=False))
        yield Deployed(worker, batch)
