"""Workers that are processes of this machine."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from typing import Any

from secateurs.judging.pool import Answer, JudgeWorker, Pool
from secateurs.search.problem import Evaluation

Work = Callable[..., Evaluation]
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


def process_pool(judge: Work, workers: int, threads: int | None = None) -> Pool:
    """A pool of ``workers`` processes with their own copy of the judge.

    ``threads``: of each (None: the machine's cores shared out, so that they are not oversubscribed).
    """
    each = threads or max(1, (os.cpu_count() or 1) // workers)
    return Pool(Processes(pickle.dumps(judge), each), workers)


class Processes:
    """Workforce of fresh processes; the judge travels as bytes, so that its imports see the thread limits."""

    def __init__(self, judge: bytes, threads: int) -> None:
        self._judge, self._threads = judge, threads
        self._context = multiprocessing.get_context("spawn")

    def hire(self, wanted: int, present: int) -> list[JudgeWorker]:
        """That many new processes."""
        return [self._start() for _ in range(wanted)]

    def _start(self) -> _Process:
        here, there = self._context.Pipe()
        # Maths libraries read their thread count when they are loaded, which a child does before any code of ours.
        before = {name: os.environ.get(name) for name in _THREADS}
        os.environ.update(dict.fromkeys(_THREADS, str(self._threads)))
        try:
            process = self._context.Process(target=_work, args=(there, self._judge, self._threads), daemon=True)
            process.start()
        finally:
            for name, value in before.items():
                os.environ.pop(name) if value is None else os.environ.update({name: value})
        there.close()
        return _Process(process, here)

    def answers(self, busy: Sequence[JudgeWorker]) -> list[tuple[JudgeWorker, Answer]]:
        """Answers of the processes that have one; a process that ended without one is lost."""
        processes: dict[Any, _Process] = {w.connection: w for w in busy if isinstance(w, _Process)}
        found: list[tuple[JudgeWorker, Answer]] = []
        for connection in wait(list(processes)):
            worker = processes[connection]
            try:
                found.append((worker, worker.connection.recv()))
            except (EOFError, OSError):
                worker.close()
                found.append((worker, None))
        return found

    def close(self) -> None:
        """Nothing is held."""


class _Process:
    def __init__(self, process: Any, connection: Connection) -> None:
        self.process, self.connection = process, connection

    def give(self, item: tuple[Any, ...]) -> None:
        with suppress(OSError):  # a process that has died meanwhile shows when its answer is waited for
            self.connection.send(item)

    def close(self) -> None:
        self.connection.close()
        self.process.terminate()
        self.process.join(5)


def _work(connection: Connection, judge: bytes, threads: int) -> None:
    """What a worker process does until its parent goes away."""
    _die_with_parent()
    with suppress(EOFError, OSError, KeyboardInterrupt):
        held: Work | None = None
        while True:
            item = connection.recv()
            try:
                if held is None:
                    held = pickle.loads(judge)
                    limit = getattr(held, "limit_threads", None)
                    if limit is not None:
                        limit(threads)
                answer: Answer = held(*item)
            except Exception as error:
                answer = _portable(error)
            connection.send(answer)


def _die_with_parent() -> None:
    """End with the process that started this one, however that ends and whatever is worked on."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _portable(error: Exception) -> Exception:
    """The error, or what it says where it cannot be sent."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error
