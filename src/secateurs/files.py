"""Files that appear whole or not at all, and temporary folders that do not pile up.

What a killed process left behind is removed by the next one.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import re
import secrets
import shutil
import sqlite3
import stat
import tempfile
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import IO, Any

from secateurs.errors import DataError, PlanError

_MARK = ".in-use"
_DRAFT = re.compile(r"\.(.+?)\.\d+(\.[0-9a-f]+)?\.tmp")
_EXPORTED = re.compile(r"(dense|model|\.candidate)(\.[\w.-]+)?\.(onnx|pt2|pte|xml|bin)")
PARTS = (".safetensors", ".json", ".zip", ".pt", ".tmp")
"""Endings of what training and strategies keep below their folders; rows (.sqlite3) are never removed."""
_SETTLED_S = 60.0
"""A younger mark may belong to a process that is about to lock it."""


MOST_BYTES = 32 << 20
"""Longest text that is read whole: as JSON it takes up to some twenty times as much memory."""
_READ_MB = "SECATEURS_READ_MB"


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


def _named(path: Any) -> Path:
    """The path, where it can be one.

    Raises:
        OSError: it cannot.
    """
    if not isinstance(path, (str, os.PathLike)):
        raise OSError(None, f"a {type(path).__name__} is no path")
    if "\0" in os.fspath(path):
        raise OSError(None, "a path has no zero byte")
    return Path(path)


def require_regular(path: str | os.PathLike[str], what: str = "It") -> None:
    """Nothing, if ``path`` is missing or a regular file; links are followed.

    Raises:
        DataError: it is a folder, a device, a pipe or a socket, which are neither read nor replaced.
    """
    try:
        kind = _kind(_named(path))
    except OSError as error:
        raise DataError(f"{what} {path!r} cannot be used ({error.strerror}). Give the name of a file.") from error
    if kind not in ("missing", "file"):
        raise DataError(f"{what} {path} is a {kind}, no regular file. Give the name of a file.")


def _kind(path: Path) -> str:
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return "missing"
    except OSError:
        return "file"  # whoever opens it is told why that cannot be done
    kinds = {"folder": stat.S_ISDIR, "pipe": stat.S_ISFIFO, "socket": stat.S_ISSOCK}
    kinds |= {"device": lambda mode: stat.S_ISCHR(mode) or stat.S_ISBLK(mode)}
    return next((name for name, is_one in kinds.items() if is_one(mode)), "file")


def open_own(path: str | os.PathLike[str], flags: int, mode: str = "r+b") -> IO[bytes]:
    """A file of ours, opened where its name may have been planted: a link is not followed, a pipe not waited for.

    Raises:
        OSError: it cannot be opened, or is no regular file.
    """
    safe = 0
    for name in ("O_NOFOLLOW", "O_NONBLOCK", "O_CLOEXEC", "O_BINARY"):  # as far as the system has them
        safe |= getattr(os, name, 0)
    handle = os.open(path, flags | safe, 0o666)
    try:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise OSError(None, "is no regular file", str(path))
        return os.fdopen(handle, mode)
    except BaseException:
        os.close(handle)
        raise


def read_bytes(path: str | os.PathLike[str], *, own: bool = False, most: int = MOST_BYTES) -> bytes:
    """Content of a regular file of bounded size; ``own``: one whose name may have been planted (see :func:`open_own`).

    The variable SECATEURS_READ_MB sets another bound.

    Raises:
        OSError: it is missing, no regular file (a pipe is not waited for, a device not read), or larger.
    """
    raised = os.environ.get(_READ_MB, "")
    most = int(raised) << 20 if raised.isascii() and raised.isdigit() and len(raised) < 10 else most
    if not own and (kind := _kind(_named(path))) not in ("file", "missing"):
        raise OSError(None, f"it is a {kind}, no regular file")
    with open_own(path, os.O_RDONLY, "rb") if own else open(path, "rb") as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise OSError(None, f"it has more than {most >> 20} MB; {_READ_MB}=N lets N MB be read")
    return content


def read_text(path: str | os.PathLike[str], *, own: bool = False) -> str:
    """The same as text; raises UnicodeDecodeError where it is no UTF-8."""
    return read_bytes(path, own=own).decode("utf-8")


def read_json(text: str | bytes) -> Any:
    """JSON values of any depth and with any numbers.

    Raises:
        ValueError: it is no JSON, or nested more deeply than anything of ours.
    """
    if not isinstance(text, (str, bytes)):
        raise ValueError(f"it is a {type(text).__name__}, no text")
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def digest_of(path: Path, *, follow: bool = False) -> str:
    """SHA-256 of a file's content, read piece by piece; ``follow``: also through a link."""
    found = hashlib.sha256()
    with open(path, "rb") if follow else open_own(path, os.O_RDONLY, "rb") as file:
        while piece := file.read(1 << 20):
            found.update(piece)
    return found.hexdigest()


class Seals:
    """Digests of the files of a folder, by name, as ``digests``; one that has none is not known to be changed."""

    def __init__(self, folder: Path, digests: Mapping[str, str]) -> None:
        self.folder, self.digests = folder, dict(digests)

    def add(self, digests: Mapping[Path, str]) -> bool:
        """Keep these; whether one is new."""
        named = {path.relative_to(self.folder).as_posix(): found for path, found in digests.items()}
        fresh = any(self.digests.get(name) != found for name, found in named.items())
        self.digests |= named
        return fresh

    def knows(self, path: Path) -> bool:
        """Whether a digest of it was kept."""
        return path.relative_to(self.folder).as_posix() in self.digests

    def sound(self, path: Path) -> bool:
        """Whether the file is there and as it was when its digest was kept."""
        known = self.digests.get(path.relative_to(self.folder).as_posix())
        try:
            return path.is_file() and (known is None or digest_of(path) == known)
        except OSError:
            return False


def append_line(path: Path, line: bytes) -> None:
    """Append a line to a file of ours and make sure that it is on the disk; one that a crash tore is ended first.

    Raises:
        OSError: it cannot be written.
    """
    with open_own(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, "ab+") as file:
        end = file.seek(0, os.SEEK_END)
        if end:
            file.seek(end - 1)
            if file.read(1) != b"\n":
                file.write(b"\n")
        file.write(line + b"\n")
        file.flush()
        os.fsync(file.fileno())


def remove_ours(path: Path, endings: tuple[str, ...]) -> None:
    """Delete a file, or what has one of the endings below a folder, and the folder when it is empty then.

    Links are not followed.
    """
    if path.is_symlink() or not path.is_dir():
        path.unlink(missing_ok=True)
        return
    for entry in list(path.iterdir()):
        if entry.is_symlink():
            continue
        if entry.is_dir() or entry.name.endswith(endings):
            remove_ours(entry, endings)
    with contextlib.suppress(OSError):
        path.rmdir()


def write_atomic(path: str | os.PathLike[str], data: bytes | Iterable[bytes]) -> None:
    """Write ``data``, or pieces one after the other, under ``path`` so that a crash or a full disk leaves the old file
    or none, never half of one.

    A link is followed to the file that it names, and stays.

    Raises:
        PlanError: the folder is missing, not writable, or the disk is full.
        DataError: there is something that is no regular file: it stays.
    """
    require_regular(path, "Output")
    draft = path = Path(path)
    try:
        place = path.resolve() if path.is_symlink() else path
        draft = place.with_name(f".{place.name}.{os.getpid()}.{secrets.token_hex(3)}.tmp")
        with open_own(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, "wb") as file:
            file.writelines([data] if isinstance(data, bytes) else data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, place)
    except OSError as error:
        raise PlanError(
            f"Cannot write {path} ({error.strerror or error}). Free space or choose another folder."
        ) from error
    finally:
        with contextlib.suppress(OSError):
            draft.unlink()


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

    def dense(self, artifact: str, place: str = "") -> Path:
        """The dense network as the target runs it; ``artifact``: ending of its files; ``place``: which of several
        targets, "" for the first."""
        return self.path / ".".join(filter(None, ("dense", place, artifact)))

    def deployed(self, artifact: str, place: str = "") -> Path:
        """The pruned network as the target runs it."""
        return self.path / ".".join(filter(None, ("model", place, artifact)))

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

    def owns(self, entry: Path) -> bool:
        """Whether a run makes files of this name; rows that were measured or judged apart, which are never removed."""
        draft = _DRAFT.fullmatch(entry.name)
        name = entry.name if draft is None else draft[1]
        ours = {path.name for path in vars(self).values() if path.parent == self.path}
        return (
            not entry.is_symlink()
            and not name.endswith(".sqlite3")
            and (name in ours or _EXPORTED.fullmatch(name) is not None)
        )

    def is_draft(self, entry: Path) -> bool:
        """Whether a sitting was killed while it wrote this."""
        return _DRAFT.fullmatch(entry.name) is not None and self.owns(entry)

    def exported_beside(self, path: Path) -> list[Path]:
        """The exported files of the same stem (model.xml and model.bin)."""
        return sorted(filter(self.is_exported, self.path.glob(f"{path.stem}.*")))

    def is_exported(self, path: Path) -> bool:
        """Whether it is a network for a runtime."""
        return _EXPORTED.fullmatch(path.name) is not None

    def empty_rows(self) -> list[Path]:
        """Files of rows that hold none, with what SQLite keeps beside them."""
        bases = [base for base in (self.evaluations, self.values, self.repairs) if not _has_rows(base)]
        return [base.with_name(base.name + ending) for base in bases for ending in ("", "-wal", "-shm", "-journal")]

    @property
    def worked(self) -> bool:
        """Whether there is anything that a run's time goes into, so that a failed run can be continued."""
        work = (self.plan, self.front, self.checkpoints, self.carrier)
        rows = (self.evaluations, self.values, self.repairs)
        return any(path.exists() for path in work) or any(map(_has_rows, rows))


def _has_rows(path: Path) -> bool:
    """Whether a file of evaluations holds any."""
    if not path.exists():
        return False
    with contextlib.suppress(sqlite3.Error), contextlib.closing(sqlite3.connect(path)) as base:
        return base.execute("SELECT 1 FROM evaluations LIMIT 1").fetchone() is not None
    return True
