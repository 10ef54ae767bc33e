"""One measurement at a time on this machine, whoever started it."""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from secateurs.errors import UnstableTimingError
from secateurs.progress import Progress, silent


def lock_path() -> Path:
    """The lock file: ``$SECATEURS_LOCK`` or one name in the system's folder for temporary files."""
    return Path(os.environ.get("SECATEURS_LOCK") or Path(tempfile.gettempdir()) / "secateurs-measure.lock")


def _try_lock(file: IO[bytes]) -> bool:
    try:
        import fcntl
    except ImportError:  # Windows
        import msvcrt

        try:
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
        except OSError:
            return False
        return True
    try:
        fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


@contextlib.contextmanager
def measuring(progress: Progress = silent, timeout_s: float = 1800.0) -> Iterator[None]:
    """Hold the machine's measurement lock; the system frees it if this process dies.

    Raises:
        UnstableTimingError: another measurement held it for longer than ``timeout_s``.
    """
    path = lock_path()
    with contextlib.suppress(OSError):
        path.touch(mode=0o666, exist_ok=True)
        path.chmod(0o666)
    with open(path, "r+b" if os.access(path, os.W_OK) else "rb") as file:
        start, told = time.monotonic(), False
        while not _try_lock(file):
            if not told:
                progress.say(f"Waiting for another measurement on this machine to end ({path}).")
                told = True
            if time.monotonic() - start > timeout_s:
                raise UnstableTimingError(
                    f"Another measurement has held {path} for more than {timeout_s:.0f} s. "
                    f"Two at once would disturb each other: end the other one, or start again later."
                )
            time.sleep(0.05)
        yield
