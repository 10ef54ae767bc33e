"""The folder of one run: who it belongs to, what is already done, and files that appear whole or not at all.

``job.json`` names the run (all settings); ``events.jsonl`` grows by one line per finished stage, which holds what the
stage found as a frozen value, and is what a resumed run reads. A line torn by a crash is ignored: its stage counts as
not done.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from secateurs.errors import DataError, SecateursError, why
from secateurs.files import write_atomic

SCHEMA = "secateurs.job/1"
_ADVICE = "Choose another folder with -o"
V = TypeVar("V")


class RunFiles:
    """Where every file of a run lies; nothing else in the package names one.

    What is below ``checkpoints`` and ``search`` is named by the training and by the strategy that keep it there; a file
    whose name begins with a dot is gone when the run ends.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lock = path / ".lock"
        self.job, self.events = path / "job.json", path / "events.jsonl"
        self.plan, self.result, self.report = path / "plan.json", path / "result.json", path / "report.html"
        self.carrier = path / "carrier.safetensors"  # the uncut network after training that came before the cut
        self.repaired = path / "repaired.safetensors"  # the cut network after its repair
        self.weights = path / "model.safetensors"  # the same after everything
        self.checkpoints = path / "checkpoints"
        self.trials = self.checkpoints / "values.sqlite3"  # networks tried to make values of groups comparable
        self.search = path / "search"  # of a strategy: what it goes on from
        self.evaluations = path / "evaluations.sqlite3"  # judged candidates
        self.values = path / "values.sqlite3"  # what groups were measured to be worth
        self.repairs = path / "repairs.sqlite3"  # accuracies of networks that were cut and repaired to find the fastest
        self.front, self.front_page = path / "front.json", path / "front.html"

    def dense(self, artifact: str) -> Path:
        """The dense network as the target runs it; ``artifact``: ending of its files."""
        return self.path / f"dense.{artifact}"

    def deployed(self, artifact: str) -> Path:
        """The pruned network as the target runs it."""
        return self.path / f"model.{artifact}"

    def candidate(self, artifact: str) -> Path:
        """A network that is being measured."""
        return self.path / f".candidate.{artifact}"

    def models(self) -> list[Path]:
        """The pruned network in every form that is there."""
        return sorted(self.path.glob("model.*"))

    def point(self, number: int) -> Path:
        """Folder of the run that carries a point of this front on."""
        return self.path / "points" / str(number)

    def picked(self, wanted: str, epochs: int | None = None) -> Path:
        """Folder of the run of a pick; ``epochs``: where they are others than the front was made with."""
        name = wanted.replace("/", "_")
        return self.path / "picked" / (name if epochs is None else f"{name}, epochs={epochs}")

    @property
    def scratch(self) -> tuple[Path, ...]:
        """What is of no use when the run has ended."""
        return self.checkpoints, self.repaired, self.carrier, self.search

    @property
    def worked(self) -> bool:
        """Whether there is anything that a run's time goes into, so that a failed run can be continued."""
        work = (self.plan, self.front, self.checkpoints, self.carrier)
        return any(path.exists() for path in work) or _has_rows(self.evaluations) or _has_rows(self.repairs)


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
    held = sorted(entry.name for entry in inside if entry != files.lock)
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
        is_front = "objectives" in json.loads(RunFiles(folder).job.read_text(encoding="utf-8"))
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
        self.made_here = False
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
        run.write(run.files.job, json.dumps({"schema": SCHEMA, **run.job}, indent=1) + "\n")
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
        job_file = RunFiles(folder).job
        try:
            held = json.loads(job_file.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
            raise DataError(
                f"Folder {folder} holds no run to resume ({job_file.name}: {why(error)}). Leave out --resume to start "
                f"one."
            ) from error
        if not isinstance(held, dict) or held.pop("schema", None) != SCHEMA:
            raise DataError(f"{job_file} was written by another version. {_ADVICE}.")
        for name, wanted in ({} if job is None else json.loads(json.dumps(dict(job)))).items():
            had = held.get(name, (assumed or {}).get(name))
            if had != (_as_then(wanted, had) if name == "source" else wanted):
                raise DataError(
                    f"Folder {folder} holds a run with {name} {had!r}, now it is {wanted!r}. Resume with "
                    f"the same settings ('{_resuming(folder)}' takes all of them from the folder), "
                    f"or choose another folder."
                )
        run = cls(folder, held)
        run._done = run._read_events()
        run.seconds = run.done("seconds", dict[str, float]) or {}
        run._began -= run.seconds.get("total", 0.0)
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
                self.files.lock.unlink()
        if isinstance(error, SecateursError) and not self.files.worked:
            self._discard()

    def _discard(self) -> None:
        """Leave no trace of a run that failed before anything but measurements was done: those are in the store, and
        the same folder should serve the next try."""
        for entry in list(self.path.iterdir()):
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
            lock = open(self.files.lock, "wb")  # noqa: SIM115 - held until the run ends
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

    def _read_events(self) -> dict[str, Any]:
        done: dict[str, Any] = {}
        with contextlib.suppress(FileNotFoundError):
            for line in self.files.events.read_text(encoding="utf-8", errors="replace").splitlines():
                try:
                    event = json.loads(line)
                    done[event["event"]] = event["data"]
                except (json.JSONDecodeError, KeyError, TypeError):
                    continue
        return done

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
        line = json.dumps({"time": round(time.time(), 3), "event": event, "data": as_event(value, kind)})
        path = self.files.events
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
                f"the folder has a {self.files.plan.name})."
            ) from error
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
        """Write one of :attr:`files`, whole or not at all."""
        write_atomic(path, content.encode() if isinstance(content, str) else content)

    def remove(self, path: Path) -> None:
        """Delete a file or folder of the run if it is there."""
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _as_then(source: Mapping[str, Any], had: Any) -> Mapping[str, Any]:
    """Where a network is from, as the version that wrote ``had`` would have said it: nothing of one that is an object,
    and ``pixel / 255`` where nobody told how pixels reach it."""
    from secateurs.models.preprocessing import Preprocessing

    if not had and set(source) == {"preprocessing"}:
        return {}
    if source.get("preprocessing") is None and had:
        plain = json.loads(json.dumps(Preprocessing().to_dict()))
        return {**source, "preprocessing": plain if had.get("preprocessing") == plain else None}
    return source


def as_event(value: V, kind: type[V]) -> Any:
    """A value as JSON values. What a stage finds now and then, so that its default is None, is left out where it is
    None."""
    found = TypeAdapter(kind).dump_python(value)
    if is_dataclass(value):
        for one in fields(value):
            if one.default is None and found[one.name] is None:
                del found[one.name]
    return found


def _has_rows(path: Path) -> bool:
    """Whether a file of evaluations holds any."""
    if not path.exists():
        return False
    with contextlib.suppress(sqlite3.Error), contextlib.closing(sqlite3.connect(path)) as base:
        return base.execute("SELECT 1 FROM evaluations LIMIT 1").fetchone() is not None
    return True
