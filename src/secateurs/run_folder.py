"""The folder of one run: who it belongs to, what is already done, and files that appear whole or not at all.

``job.json`` names the run (all settings); ``events.jsonl`` grows by one line per finished stage and is what a resumed
run reads. A line torn by a crash is ignored: its stage counts as not done.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sqlite3
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from secateurs.errors import DataError, SecateursError
from secateurs.plan import write_atomic

SCHEMA = "secateurs.job/1"
_ADVICE = "Choose another folder with -o"
_WORK = ("plan.json", "front.json", "checkpoints", "carrier.safetensors")
"""What a run's time goes into, as evaluations do: with any of them a failed run can be continued."""


def check_free(folder: Path) -> None:
    """Nothing, if a new run can be put into ``folder``; makes nothing.

    Raises:
        DataError: it holds a run or other files, or cannot be written.
    """
    try:
        held = sorted(entry.name for entry in folder.iterdir() if entry.name != ".lock") if folder.exists() else []
    except OSError as error:
        raise DataError(f"Folder {folder} cannot be used ({error.strerror or error}). {_ADVICE}.") from error
    if "job.json" in held:
        state = "a finished run" if {"result.json", "front.json"} & set(held) else "a run that has not finished"
        raise DataError(
            f"Folder {folder} already holds {state}. {_ADVICE}, delete the folder, or continue that run with "
            f"'{_resuming(folder)}'."
        )
    if held:
        more = f" and {len(held) - 1} more" if len(held) > 1 else ""
        raise DataError(f"Folder {folder} is not empty ({held[0]}{more}). {_ADVICE}.")
    above = next((parent for parent in (folder, *folder.absolute().parents) if parent.exists()), None)
    if above is None or not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
        raise DataError(f"Folder {folder} cannot be used: {above} is not writable. {_ADVICE}.")


def _resuming(folder: Path) -> str:
    """The command that continues the run in ``folder``, whichever verb started it."""
    try:
        is_front = "objectives" in json.loads((folder / "job.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError):
        is_front = False
    return f"secateurs {'front' if is_front else 'prune'} --resume -o {folder}"


class RunFolder:
    """An opened run folder; a context manager that keeps a second process out.

    Make one with :meth:`create` or :meth:`resume`.
    """

    def __init__(self, path: Path, job: Mapping[str, Any]) -> None:
        self.path = path
        self.job = dict(job)
        self.made_here = False
        self._lock: IO[bytes] | None = None
        self._done: dict[str, dict[str, Any]] = {}

    @classmethod
    def create(cls, path: str | os.PathLike[str], job: Mapping[str, Any]) -> RunFolder:
        """A new run in a folder that is missing or empty.

        Raises:
            DataError: the folder holds a run or other files, or cannot be written.
        """
        folder = Path(path)
        check_free(folder)
        fresh = not folder.exists()
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DataError(f"Folder {folder} cannot be used ({error.strerror or error}). {_ADVICE}.") from error
        run = cls(folder, job)
        run.made_here = fresh
        run.write("job.json", json.dumps({"schema": SCHEMA, **run.job}, indent=1) + "\n")
        return run

    @classmethod
    def resume(cls, path: str | os.PathLike[str], job: Mapping[str, Any] | None = None) -> RunFolder:
        """The run that ``path`` holds; ``job``: settings that must be the same where given.

        Raises:
            DataError: there is no run, or it was started with other settings.
        """
        folder = Path(path)
        try:
            held = json.loads((folder / "job.json").read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
            raise DataError(
                f"Folder {folder} holds no run to resume (job.json: {error}). Leave out --resume to start one."
            ) from error
        if not isinstance(held, dict) or held.pop("schema", None) != SCHEMA:
            raise DataError(f"{folder / 'job.json'} was written by another version. {_ADVICE}.")
        for name, wanted in ({} if job is None else json.loads(json.dumps(dict(job)))).items():
            if held.get(name) != wanted:
                raise DataError(
                    f"Folder {folder} holds a run with {name} {held.get(name)!r}, now it is {wanted!r}. Resume with "
                    f"the same settings ('{_resuming(folder)}' takes all of them from the folder), "
                    f"or choose another folder."
                )
        run = cls(folder, held)
        run._done = run._read_events()
        return run

    def __enter__(self) -> RunFolder:
        self._lock = self._take_lock()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._lock is not None:
            self._lock.close()
            self._lock = None
            with contextlib.suppress(OSError):
                (self.path / ".lock").unlink()
        if isinstance(error, SecateursError) and not self._worked():
            self._discard()

    def _worked(self) -> bool:
        return any((self.path / name).exists() for name in _WORK) or _has_rows(self.path / "evaluations.sqlite3")

    def _discard(self) -> None:
        """Leave no trace of a run that failed before anything but measurements was done: those are in the store, and
        the same folder should serve the next try."""
        for entry in list(self.path.iterdir()):
            self.remove(entry.name)
        if self.made_here:
            with contextlib.suppress(OSError):
                self.path.rmdir()

    def _take_lock(self) -> IO[bytes] | None:
        try:
            import fcntl
        except ImportError:  # Windows: two processes in one folder are not kept apart
            return None
        try:
            lock = open(self.path / ".lock", "wb")  # noqa: SIM115 - held until the run ends
        except OSError as error:
            raise DataError(f"Folder {self.path} cannot be written ({error.strerror}). {_ADVICE}.") from error
        try:
            fcntl.flock(lock.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            lock.close()
            raise DataError(
                f"Another process is working in {self.path}. Wait for it, or choose another folder."
            ) from error
        return lock

    def _read_events(self) -> dict[str, dict[str, Any]]:
        done: dict[str, dict[str, Any]] = {}
        with contextlib.suppress(FileNotFoundError):
            for line in (self.path / "events.jsonl").read_text(encoding="utf-8", errors="replace").splitlines():
                try:
                    event = json.loads(line)
                    done[event["event"]] = event["data"]
                except (json.JSONDecodeError, KeyError, TypeError):
                    continue
        return done

    def done(self, event: str) -> dict[str, Any] | None:
        """What the last event of this name recorded, or None."""
        return self._done.get(event)

    def record(self, event: str, data: Mapping[str, Any]) -> dict[str, Any]:
        """Append an event and make sure that it is on the disk; returns the data as a resumed run would read it.

        Raises:
            DataError: the file cannot be written.
        """
        line = json.dumps({"time": round(time.time(), 3), "event": event, "data": dict(data)})
        path = self.path / "events.jsonl"
        try:
            with open(path, "ab+") as file:
                end = file.seek(0, os.SEEK_END)
                if end:
                    # A crash may have torn the last line; start on a fresh one.
                    file.seek(end - 1)
                    if file.read(1) != b"\n":
                        file.write(b"\n")
                file.write(line.encode() + b"\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise DataError(
                f"Cannot write {path} ({error.strerror or error}). Free space, then start again (with --resume, where "
                f"the folder has a plan.json)."
            ) from error
        self._done[event] = json.loads(line)["data"]
        return self._done[event]

    def write(self, name: str, content: str | bytes) -> Path:
        """Write one file of the run, whole or not at all; returns its path."""
        path = self.path / name
        write_atomic(path, content.encode() if isinstance(content, str) else content)
        return path

    def remove(self, name: str) -> None:
        """Delete a file or folder of the run if it is there."""
        path = self.path / name
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _has_rows(path: Path) -> bool:
    """Whether a file of evaluations holds any."""
    if not path.exists():
        return False
    with contextlib.suppress(sqlite3.Error), contextlib.closing(sqlite3.connect(path)) as base:
        return base.execute("SELECT 1 FROM evaluations LIMIT 1").fetchone() is not None
    return True
