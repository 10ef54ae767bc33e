"""Who judges candidates: this process, processes of this machine, or actors on a cluster."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from secateurs.errors import SecateursError, why

if TYPE_CHECKING:
    from secateurs.judging.evaluator import NetworkEvaluator


@dataclass(frozen=True)
class Crew:
    """Who judges candidates. ``workers``: processes of this machine, or Ray actors (None: one process, or as many
    actors as the cluster has room for); ``ray``: address of a cluster, ``auto`` or ``local``; ``threads``: of each."""

    workers: int | None = None
    ray: str | None = None
    threads: int | None = None

    def check(self, target: str) -> None:
        """Nothing, if latencies may be measured on this machine: on a cluster, if its node carries the target's label.

        Raises:
            TargetUnavailableError: it does not, or the cluster cannot be reached.
            SecateursError: Ray is not installed.
        """
        if self.ray is not None:
            try:
                from secateurs.judging.cluster import connect, require_label
            except ImportError as error:
                raise SecateursError(
                    f"--ray needs {error.name or 'ray'}, which cannot be imported ({why(error)}). Install the extra "
                    f"that provides it (pip install 'secateurs[ray]'), or judge on this machine with --workers."
                ) from error

            connect(self.ray, target)
            require_label(target)

    @contextlib.contextmanager
    def at_work(self, evaluator: NetworkEvaluator) -> Iterator[None]:
        """The evaluator judges with this crew inside."""
        if self.ray is not None:
            from secateurs.judging.cluster import ray_pool

            evaluator.pool = ray_pool(evaluator.judge, self.ray, self.workers, self.threads or 1)
        elif self.workers is not None and self.workers > 1:
            from secateurs.judging.processes import process_pool

            evaluator.pool = process_pool(evaluator.judge, self.workers, self.threads)
        try:
            yield
        finally:
            if evaluator.pool is not None:
                evaluator.pool.close()
                evaluator.pool = None
