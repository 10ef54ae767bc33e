"""Files that appear whole or not at all, and temporary folders that do not pile up.

What a killed process left behind is removed by the next one.
"""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import sqlite3
import tempfile
import time
from pathlib import Path
from typing import IO

from secateurs.errors import PlanError

_MARK = ".in-use"
_SETTLED_S = 60.0
"""A younger mark may belong to a process that is about to lock it."""


class Scratch(tempfile.TemporaryDirectory[str]):
    """A temporary folder ``secateurs-<name>-…``, removed at the end; a context manager that gives its path.

    A file inside is locked as long as this process lives, so that others can tell whether the folder is still needed.
    """

    def __init__(self, name: str) -> None:
        sweep_once()
        super().__init__(prefix=f"secateurs-{name}-", ignore_cleanup_errors=True)
        self._mark = open(os.path.join(self.name, _MARK), "wb")  # noqa: SIM115  (held until cleanup)
        _locked(self._mark)

    def cleanup(self) -> None:
        """Remove the folder."""
        self._mark.close()
        super().cleanup()


def sweep() -> list[Path]:
    """Remove this user's folders whose process is gone; returns them. Nothing on systems without ``fcntl``."""
    gone: list[Path] = []
    if not hasattr(os, "getuid"):
        return gone
    for mark in Path(tempfile.gettempdir()).glob(f"secateurs-*/{_MARK}"):
        with contextlib.suppress(OSError):
            if _ours(mark.parent) and time.time() - mark.stat().st_mtime > _SETTLED_S:
                with open(mark, "rb") as file:
                    if _locked(file):
                        shutil.rmtree(mark.parent, ignore_errors=True)
                        gone.append(mark.parent)
    return gone


sweep_once = functools.cache(sweep)


def _ours(folder: Path) -> bool:
    return not folder.is_symlink() and folder.stat().st_uid == os.getuid()


def _locked(file: IO[bytes]) -> bool:
    """Whether the file's lock is ours now; the end of the process gives it back, however it ends."""
    try:
        import fcntl
    except ImportError:  # Windows
        return False
    try:
        fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def write_atomic(path: str | os.PathLike[str], data: bytes) -> None:
    """Write ``data`` under ``path`` so that a crash or a full disk leaves the old file or none, never half of one.

    Raises:
        PlanError: the folder is missing, not writable, or the disk is full.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise PlanError(
            f"Cannot write {path} ({error.strerror or error}). Free space or choose another folder."
        ) from error


def write_ahead(connection: sqlite3.Connection, wait_s: float = 60.0) -> None:
    """Switch a database to write-ahead logging; SQLite does not wait by itself while another process uses the file.

    Raises:
        sqlite3.OperationalError: it is still locked after ``wait_s``, or cannot be written.
    """
    until = time.monotonic() + wait_s
    while True:
        try:
            connection.execute("PRAGMA journal_mode=WAL")
            return
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > until:
                raise
            time.sleep(0.02)
