"""The folder of one run: who it belongs to, what is already done, and files that appear whole or not at all.

``job.json`` names the run (all settings); ``events.jsonl`` grows by one line per finished stage, which holds what the
stage found as a frozen value, and is what a resumed run reads. A line torn by a crash is ignored: its stage counts as
not done.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from secateurs.errors import DataError, SecateursError, checked, interrupted, why
from secateurs.files import (
    PARTS,
    RunFiles,
    Seals,
    append_line,
    digest_of,
    open_own,
    read_bytes,
    read_json,
    remove_ours,
    write_atomic,
)
from secateurs.jobs.settings import as_then, unused

SCHEMA = "secateurs.job/1"
_DIGESTS = "digests"
"""Key of job.json: SHA-256 of every finished file, by name."""
_ADVICE = "Choose another folder with -o"
V = TypeVar("V")


def check_free(folder: Path) -> None:
    """Nothing, if a new run can be put into ``folder``; makes nothing.

    Raises:
        DataError: it holds a run or other files, or cannot be written.
    """
    try:
        inside = list(folder.iterdir()) if folder.exists() else []
    except OSError as error:
        raise DataError(f"Folder {folder} cannot be used ({error.strerror or error}). {_ADVICE}.") from error
    files = RunFiles(folder)
    held = sorted(entry.name for entry in inside if entry != files.lock or not _is_lock(entry))
    if files.job.name in held:
        finished = files.result.name in held or files.front.name in held
        state = "a finished run" if finished else "a run that has not finished"
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
        is_front = "objectives" in read_json(read_bytes(RunFiles(folder).job, own=True))
    except (OSError, ValueError, TypeError):
        is_front = False
    return f"secateurs {'front' if is_front else 'prune'} --resume -o {folder}"


class RunFolder:
    """An opened run folder; a context manager that keeps a second process out.

    Make one with :meth:`create` or :meth:`resume`.
    """

    def __init__(self, path: Path, job: Mapping[str, Any]) -> None:
        self.path, self.files = path, RunFiles(path)
        self.job = dict(job)
        self._seals = Seals(path, self.job.pop(_DIGESTS, {}))
        self.made_here = self._changed = False
        self.seconds: dict[str, float] = {}
        """By what they were spent on, over all sittings."""
        self._lock: IO[bytes] | None = None
        self._done: dict[str, Any] = {}
        self._began = time.monotonic()

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
        run._write_job()
        return run

    @classmethod
    def resume(
        cls,
        path: str | os.PathLike[str],
        job: Mapping[str, Any] | None = None,
        assumed: Mapping[str, Any] | None = None,
    ) -> RunFolder:
        """The run that ``path`` holds; ``job``: settings that must be the same where given; ``assumed``: what a
        setting counts as that the run, begun by an older version, does not know.

        Raises:
            DataError: there is no run, or it was started with other settings.
        """
        folder = Path(path)
        held = _read_job(folder)
        run = cls(folder, held)
        run._done = run._read_events()
        if _DIGESTS not in held:  # of an older version, which kept none: what is there now is what it wrote
            run._seals.add({one: digest_of(one) for one in sorted(folder.iterdir()) if run._is_result(one)})
            run._changed = True
        for name, wanted in ({} if job is None else json.loads(json.dumps(dict(job)))).items():
            had = held.get(name, (assumed or {}).get(name))
            if name in run.correctable and had != wanted:
                run._correct(name, wanted)
            elif had != (as_then(wanted, had) if name == "source" else wanted):
                raise DataError(
                    f"Folder {folder} holds a run with {name} {had!r}, now it is {wanted!r}. Resume with "
                    f"the same settings ('{_resuming(folder)}' takes all of them from the folder), "
                    f"or choose another folder."
                )
        run.seconds = run.done("seconds", dict[str, float]) or {}
        run._began -= run.seconds.get("total", 0.0)
        return run

    def __enter__(self) -> RunFolder:
        self._lock = self._take_lock()
        if self._changed:
            self._write_job()
        for entry in self.path.iterdir():  # what a killed sitting was writing
            if self.files.is_draft(entry):
                self.remove(entry)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._lock is not None:
            self._lock.close()
            self._lock = None
            with contextlib.suppress(OSError):
                self.files.lock.unlink()
        if isinstance(error, SecateursError) and not interrupted(error) and not self.files.worked:
            self._discard()

    def _discard(self) -> None:
        """Leave no trace of a run that failed before anything but measurements was done: those are in the store, and
        the same folder should serve the next try. What the run did not make stays."""
        for entry in (*filter(self.files.owns, self.path.iterdir()), *self.files.empty_rows()):
            self.remove(entry)
        if self.made_here:
            with contextlib.suppress(OSError):
                self.path.rmdir()

    def _take_lock(self) -> IO[bytes] | None:
        try:
            import fcntl
        except ImportError:  # Windows: two processes in one folder are not kept apart
            return None
        try:
            lock = open_own(self.files.lock, os.O_RDWR | os.O_CREAT)
        except OSError as error:
            raise DataError(
                f"Folder {self.path} cannot be written ({self.files.lock.name}: {error.strerror or error}). {_ADVICE}."
            ) from error
        try:
            fcntl.flock(lock.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            lock.close()
            raise DataError(
                f"Another process is working in {self.path}. Wait for it, or choose another folder."
            ) from error
        return lock

    def _read_events(self) -> dict[str, Any]:
        done: dict[str, Any] = {}
        try:
            lines = read_bytes(self.files.events, own=True).split(b"\n")
        except FileNotFoundError:
            return done
        except OSError as error:
            raise self._unwritable(error) from error
        for line in lines:
            try:
                event = read_json(line)
                done[event["event"]] = event["data"]
            except (ValueError, KeyError, TypeError):
                continue
        return done

    @property
    def correctable(self) -> frozenset[str]:
        """Settings that a resumed run may change, since nothing was made with them yet."""
        return unused(self.job, self._done, trained=self.files.checkpoints.exists())

    def _correct(self, name: str, wanted: Any) -> None:
        self.job[name], self._changed = wanted, True
        self.forget("mode")

    def _unwritable(self, error: OSError) -> DataError:
        return DataError(
            f"Cannot write {self.files.events} ({error.strerror or error}). Free space, then start again (with "
            f"--resume, where the folder has a {self.files.plan.name})."
        )

    def has(self, event: str) -> bool:
        """Whether an earlier sitting, or this one, finished that stage."""
        return event in self._done

    def forget(self, *events: str) -> None:
        """Let these stages be done again."""
        for event in events:
            self._done.pop(event, None)

    def done(self, event: str, kind: type[V]) -> V | None:
        """What the last event of this name recorded, or None.

        Raises:
            DataError: that is no value of this ``kind``.
        """
        return self._as(kind, event, self._done[event]) if event in self._done else None

    def stage(self, name: str, kind: type[V], work: Callable[[], V]) -> V:
        """What a stage found: by ``work``, or from where an earlier sitting finished it.

        Raises:
            DataError: what the earlier sitting found cannot be read, or the file cannot be written.
        """
        held = self.done(name, kind)
        if held is None:
            held = self.record(name, work(), kind)
            self.seconds["total"] = time.monotonic() - self._began
            self.record("seconds", self.seconds, dict[str, float])
        return held

    @contextlib.contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Adds the time spent inside to ``seconds[name]``, also when it ends with an error."""
        before, start = self.seconds.get(name, 0.0), time.monotonic()
        try:
            yield
        finally:
            self.seconds[name] = before + time.monotonic() - start

    def record(self, event: str, value: V, kind: type[V]) -> V:
        """Append an event and make sure that it is on the disk; returns the value as a resumed run would read it.

        Raises:
            DataError: the file cannot be written.
        """
        line = json.dumps({"time": round(time.time(), 3), "event": event, "data": _as_event(value, kind)})
        try:
            append_line(self.files.events, line.encode())
        except OSError as error:
            raise self._unwritable(error) from error
        self._done[event] = json.loads(line)["data"]
        return self._as(kind, event, self._done[event])

    def _as(self, kind: type[V], event: str, held: Any) -> V:
        try:
            return TypeAdapter(kind).validate_json(json.dumps(held), strict=True)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            raise DataError(
                f"{self.files.events} is damaged: event {event!r} at {where}: {first['msg']}. Delete that "
                f"line, and the stage is done again by '{_resuming(self.path)}'."
            ) from error

    def write(self, path: Path, content: str | bytes) -> None:
        """Write one of :attr:`files`, whole or not at all; its digest is kept."""
        data = content.encode() if isinstance(content, str) else content
        write_atomic(path, data)
        self._know({path: hashlib.sha256(data).hexdigest()})

    def exported(self, path: Path) -> list[Path]:
        """An exported file, and those that were written beside it (model.xml, model.bin)."""
        known = [self.path / name for name in sorted(self._seals.digests)]
        beside = [one for one in known if one.stem == path.stem and self.files.is_exported(one)]
        return list(dict.fromkeys([path, *beside]))

    def know(self, path: Path) -> None:
        """Keep the digest of a file that another room wrote, and of what it wrote beside it (model.xml, model.bin)."""
        beside = self.files.exported_beside(path)
        self._know({one: digest_of(one) for one in sorted(beside)})

    def _know(self, digests: Mapping[Path, str]) -> None:
        if self._seals.add(digests):
            self._write_job()

    def _write_job(self) -> None:
        held = {"schema": SCHEMA, **self.job, _DIGESTS: self._seals.digests}
        write_atomic(self.files.job, (json.dumps(held, indent=1) + "\n").encode())

    def _is_result(self, path: Path) -> bool:
        """Whether it is a file that a stage left."""
        told = (self.files.job, self.files.events, self.files.lock)
        return path not in told and path.is_file() and self.files.owns(path) and not self.files.is_draft(path)

    def sound(self, path: Path) -> bool:
        """Whether a file is there and as the run wrote it."""
        return self._seals.sound(path)

    def made(self, path: Path) -> bool:
        """Whether the run made such a file; what somebody put there is not taken for the run's."""
        return self._seals.knows(path)

    def require_sound(self, *paths: Path) -> None:
        """Nothing, if these files are as the run wrote them.

        Raises:
            DataError: one is missing or was changed since.
        """
        for path in paths:
            if not self.sound(path):
                raise DataError(
                    f"{path} is missing, or is not the file that the run wrote. Put that one back, or start the run "
                    f"again in another folder."
                )

    def remove(self, path: Path) -> None:
        """Delete a file of the run, or what it keeps in one of its folders, if it is there.

        Links are not followed. Rows that were judged stay, and so does everything else that no run makes.
        """
        remove_ours(path, PARTS)


def _read_job(folder: Path) -> dict[str, Any]:
    """What job.json holds.

    Raises:
        DataError: there is none, it is damaged, or another version wrote it.
    """
    job_file = RunFiles(folder).job
    try:
        held = read_json(read_bytes(job_file, own=True))
    except (OSError, ValueError) as error:
        raise DataError(
            f"Folder {folder} holds no run to resume ({job_file.name}: {why(error)}). Leave out --resume to start one."
        ) from error
    if not isinstance(held, dict) or held.pop("schema", None) != SCHEMA:
        raise DataError(f"{job_file} was written by another version. {_ADVICE}.")
    kinds: dict[str, Any] = {
        _DIGESTS: dict[str, str],
        "options": dict[str, str | int | None],
        "command": str,
        "source": dict[str, Any],
        "known": list[str],
    }
    for name, kind in kinds.items():
        if name in held:
            checked(kind, held[name], f"{job_file} is damaged: {name}", _ADVICE, DataError)
    return held


def _is_lock(entry: Path) -> bool:
    """Whether it is what a sitting leaves that was killed: an empty file."""
    return entry.is_file() and not entry.is_symlink() and entry.stat().st_size == 0


def _as_event(value: Any, kind: Any) -> Any:
    """A value as JSON values. What a stage finds now and then, so that its default is None, is left out where it is
    None."""
    found = TypeAdapter(kind).dump_python(value)
    if is_dataclass(value):
        for one in fields(value):
            if one.default is None and found[one.name] is None:
                del found[one.name]
    return found
