"""One measurement at a time on a device, whoever started it."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from secateurs.errors import UnstableTimingError
from secateurs.latency import worker as runner
from secateurs.latency.process import Worker
from secateurs.progress import Progress, silent


def lock_path() -> Path:
    """This machine's lock file: ``$SECATEURS_LOCK`` or one name in the system's folder for temporary files."""
    return Path(runner.lock_path())


@contextlib.contextmanager
def measuring(
    progress: Progress = silent, timeout_s: float = 1800.0, *, worker: Worker | None = None
) -> Iterator[None]:
    """Hold the measurement lock of the device; the system frees it if its holder dies.

    Args:
        progress: told when another measurement must be waited for.
        timeout_s: longest wait.
        worker: process on the device; where that is another machine, the lock is taken there, by it.

    Raises:
        UnstableTimingError: another measurement held it for longer than ``timeout_s``.
        TargetError: the other machine is gone.
    """
    if isinstance(worker, Worker) and worker.remote:
        try:
            _wait(worker.lock, worker.name, progress, timeout_s)
            yield
        finally:
            worker.unlock()
        return
    path = lock_path()
    with runner.open_lock(str(path)) as file:
        _wait(lambda: runner.try_lock(file), f"this machine ({path})", progress, timeout_s)
        yield


def _wait(attempt: Callable[[], bool], where: str, progress: Progress, timeout_s: float) -> None:
    start, told = time.monotonic(), False
    while not attempt():
        if not told:
            progress.say(f"Waiting for another measurement on {where} to end.")
            told = True
        if time.monotonic() - start > timeout_s:
            raise UnstableTimingError(
                f"Another measurement on {where} has held the lock for more than {timeout_s:.0f} s. "
                f"Two at once would disturb each other: end the other one, or start again later."
            )
        time.sleep(0.05)
