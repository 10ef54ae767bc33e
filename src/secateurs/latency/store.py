"""Every measurement in one SQLite database, so that nothing is measured twice and a killed run goes on."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sqlite3
import sys
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from secateurs.errors import DataError, why
from secateurs.files import write_ahead
from secateurs.progress import Progress, silent

_BUSY_S = 60.0
_HEADER = b"SQLite format 3\0"
_SUFFIXES = ("", ".sqlite3", ".sqlite", ".db")
_LATEST = 1e11
"""Seconds since 1970 of a date that computers can still print."""
_STEPS: tuple[str, ...] = (
    """
    CREATE TABLE IF NOT EXISTS targets (
        id INTEGER PRIMARY KEY,
        fingerprint TEXT NOT NULL UNIQUE
    );
    CREATE TABLE IF NOT EXISTS measurements (
        target INTEGER NOT NULL REFERENCES targets(id),
        signature TEXT NOT NULL,
        payload TEXT NOT NULL,
        created REAL NOT NULL,
        PRIMARY KEY (target, signature)
    ) WITHOUT ROWID
    """,
)
"""Statements that lead from schema version n to n + 1; a file keeps its version in ``PRAGMA user_version``."""


@dataclass(frozen=True)
class Row:
    """One measurement: what was measured (``signature``) where (``fingerprint``), and the figures (``payload``)."""

    fingerprint: dict[str, Any]
    signature: str
    payload: dict[str, Any]
    created: float


@dataclass(frozen=True)
class Holding:
    """What a store holds of one target: number of ``rows``, their ``size_bytes``, and when the first and the last
    were written (seconds since 1970)."""

    fingerprint: dict[str, Any]
    rows: int
    size_bytes: int
    oldest: float
    newest: float


def default_path() -> Path:
    """``$SECATEURS_STORE``, or ``store.sqlite3`` in the user's cache folder."""
    named = os.environ.get("SECATEURS_STORE")
    if named:
        return Path(named)
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "secateurs" / "store.sqlite3"


def digest(content: bytes) -> str:
    """Short hash of a model file's content."""
    return hashlib.sha256(content).hexdigest()[:32]


def _canonical(fingerprint: Mapping[str, Any]) -> str:
    return json.dumps(dict(fingerprint), sort_keys=True, separators=(",", ":"))


class Store:
    """The database of measurements; safe under several processes at once.

    Args:
        path: the file (None: :func:`default_path`). Folders are made as needed.
        progress: told when a damaged file was set aside.

    Raises:
        DataError: the file cannot be opened or comes from a newer version.
    """

    def __init__(self, path: str | os.PathLike[str] | None = None, *, progress: Progress = silent) -> None:
        self.path = Path(path) if path is not None else default_path()
        self._progress = progress
        self._connection = self._open()

    def _open(self) -> sqlite3.Connection:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            return self._connect()
        except sqlite3.OperationalError as error:
            raise self._unusable(error) from error
        except sqlite3.DatabaseError as error:
            if self._someone_elses():
                raise self._unusable(error) from error
            return self._replace_damaged()
        except OSError as error:
            raise self._unusable(error) from error

    def _unusable(self, error: Exception | str) -> DataError:
        reason = error if isinstance(error, str) else why(error)
        return DataError(
            f"The store of measurements {self.path} cannot be used ({reason}). "
            f"Name another file with --store or the variable SECATEURS_STORE."
        )

    def _someone_elses(self) -> bool:
        """Whether the file is of another kind by content and by name: such a one is not moved away."""
        with open(self.path, "rb") as file:
            is_database = file.read(len(_HEADER)) == _HEADER
        return not is_database and self.path != default_path() and self.path.suffix.lower() not in _SUFFIXES

    def _refuse_foreign(self, connection: sqlite3.Connection) -> None:
        """Raises DataError where the file is a database with other tables: it is left as it is."""
        query = "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%'"
        tables = {name for (name,) in connection.execute(query)}
        if tables and "measurements" not in tables:
            raise self._unusable(f"it is a database of another program, with the tables {', '.join(sorted(tables))}")

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self.path, timeout=_BUSY_S, isolation_level=None, check_same_thread=False)
        try:
            self._refuse_foreign(connection)
            write_ahead(connection, _BUSY_S)
            connection.execute("PRAGMA synchronous=NORMAL")
            self._migrate(connection)
            if connection.execute("PRAGMA quick_check(1)").fetchone()[0] != "ok":
                raise sqlite3.DatabaseError("the integrity check failed")
        except BaseException:
            connection.close()
            raise
        return connection

    def _migrate(self, connection: sqlite3.Connection) -> None:
        """Bring the file to this version's schema, whole or not at all; another process may be doing the same.

        Raises:
            DataError: a newer version wrote it.
        """
        if _version(connection) == len(_STEPS):
            return
        with _transaction(connection):
            version = _version(connection)
            if version > len(_STEPS):
                raise DataError(
                    f"The store of measurements {self.path} has schema {version}, this version of secateurs "
                    f"reads up to {len(_STEPS)}. Update secateurs, or name another file with --store."
                )
            for step in _STEPS[version:]:
                for statement in step.split(";"):
                    connection.execute(statement)
            connection.execute(f"PRAGMA user_version={len(_STEPS)}")

    def _replace_damaged(self) -> sqlite3.Connection:
        """A new file in place of the damaged one, which is kept; of several processes only one moves it."""
        with _alone(self.path.with_name(f"{self.path.name}.lock")):
            try:
                return self._connect()
            except sqlite3.OperationalError as error:
                raise self._unusable(error) from error
            except sqlite3.DatabaseError as error:
                self._set_aside(error)
                return self._connect()

    def _set_aside(self, error: Exception) -> None:
        aside = self.path.with_name(f"{self.path.name}.damaged-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}")
        for suffix in ("", "-wal", "-shm"):
            with contextlib.suppress(FileNotFoundError):
                os.replace(f"{self.path}{suffix}", f"{aside}{suffix}")
        message = (
            f"The store of measurements {self.path} is damaged ({why(error)}). It was set aside as {aside}, "
            f"and a new one was begun; what it held will be measured again."
        )
        if self._progress is silent:
            warnings.warn(message, stacklevel=4)
        self._progress.say(message)

    def _select(self, query: str, values: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
        try:
            return self._connection.execute(query, values).fetchall()
        except sqlite3.Error as error:
            raise self._unusable(error) from error

    def get(self, fingerprint: Mapping[str, Any], signature: str) -> dict[str, Any] | None:
        """The stored figures, or None."""
        found = self._select(
            "SELECT payload FROM measurements JOIN targets ON targets.id = target "
            "WHERE fingerprint = ? AND signature = ?",
            (_canonical(fingerprint), signature),
        )
        return json.loads(found[0][0]) if found else None

    def find(self, fingerprint: Mapping[str, Any], prefix: str) -> dict[str, dict[str, Any]]:
        """Every stored row of this target whose signature starts with ``prefix``, by signature."""
        rows = self._select(
            "SELECT signature, payload FROM measurements JOIN targets ON targets.id = target "
            "WHERE fingerprint = ? AND signature >= ? AND signature < ? ORDER BY signature",
            (_canonical(fingerprint), prefix, prefix + "\U0010ffff"),
        )
        return {signature: json.loads(payload) for signature, payload in rows}

    def put(self, fingerprint: Mapping[str, Any], rows: Mapping[str, Mapping[str, Any]]) -> None:
        """Store the figures ``{signature: payload}`` in one transaction; an older row gives way."""
        where = _canonical(fingerprint)
        entries = [(signature, json.dumps(payload), time.time(), where) for signature, payload in rows.items()]
        self._insert(entries, "REPLACE")

    def forget(self, fingerprint: Mapping[str, Any], prefix: str) -> int:
        """Remove every row of this target whose signature starts with ``prefix``; returns how many there were."""
        connection = self._connection
        try:
            with _transaction(connection):
                return connection.execute(
                    "DELETE FROM measurements WHERE target IN (SELECT id FROM targets WHERE fingerprint = ?) "
                    "AND signature >= ? AND signature < ?",
                    (_canonical(fingerprint), prefix, prefix + "\U0010ffff"),
                ).rowcount
        except sqlite3.Error as error:
            raise self._unusable(error) from error

    def _insert(self, rows: Sequence[tuple[str, str, float, str]], clash: str) -> int:
        """Number of (signature, payload, created, fingerprint) written; ``clash``: REPLACE or IGNORE where one is."""
        connection = self._connection
        try:
            with _transaction(connection):
                targets = [(fingerprint,) for fingerprint in sorted({row[3] for row in rows})]
                connection.executemany("INSERT OR IGNORE INTO targets(fingerprint) VALUES (?)", targets)
                return connection.executemany(
                    f"INSERT OR {clash} INTO measurements SELECT id, ?, ?, ? FROM targets WHERE fingerprint = ?", rows
                ).rowcount
        except sqlite3.Error as error:
            raise self._unusable(error) from error

    def rows(self) -> Iterator[Row]:
        """Every row, oldest first."""
        query = (
            "SELECT fingerprint, signature, payload, created FROM measurements "
            "JOIN targets ON targets.id = target ORDER BY created, signature"
        )
        for fingerprint, signature, payload, created in self._select(query):
            yield Row(json.loads(fingerprint), signature, json.loads(payload), created)

    def export_lines(self) -> Iterator[str]:
        """Every row as one line of JSON, for :meth:`import_lines` elsewhere."""
        for row in self.rows():
            yield json.dumps(row.__dict__, sort_keys=True)

    def import_lines(self, lines: Iterable[str], source: str = "the file") -> int:
        """Add exported rows; rows that are here already stay. Returns how many came in.

        Raises:
            DataError: a line is not an exported row; nothing is imported then.
        """
        fresh = []
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                raw = json.loads(line)
                row = Row(dict(raw["fingerprint"]), str(raw["signature"]), dict(raw["payload"]), float(raw["created"]))
                row.signature.encode()
                if not 0 <= row.created < _LATEST:
                    raise ValueError(f"it was written {row.created} s after 1970")
            except (ValueError, KeyError, TypeError, RecursionError) as error:
                raise DataError(
                    f"Line {number} of {source} is not a stored measurement ({error!r}). "
                    f"Give a file that 'secateurs store export' wrote."
                ) from error
            fresh.append((row.signature, json.dumps(row.payload), row.created, _canonical(row.fingerprint)))
        return self._insert(fresh, "IGNORE")

    def summary(self) -> list[Holding]:
        """What is held of every target, the most recent one first."""
        query = (
            "SELECT fingerprint, COUNT(*), SUM(LENGTH(signature) + LENGTH(payload)), MIN(created), MAX(created) "
            "FROM measurements JOIN targets ON targets.id = target GROUP BY target ORDER BY MAX(created) DESC"
        )
        return [Holding(json.loads(row[0]), *row[1:]) for row in self._select(query)]

    def vacuum(self) -> None:
        """Give freed space back to the disk.

        Raises:
            DataError: another process is using the file, or the disk is full.
        """
        self._select("DELETE FROM targets WHERE id NOT IN (SELECT target FROM measurements)")
        self._select("VACUUM")
        self._select("PRAGMA wal_checkpoint(TRUNCATE)")

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    def __enter__(self) -> Store:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _version(connection: sqlite3.Connection) -> int:
    return int(connection.execute("PRAGMA user_version").fetchone()[0])


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Nothing else runs under the same lock file; on systems without ``fcntl`` it keeps nobody out."""
    with open(path, "wb") as lock:
        with contextlib.suppress(ImportError):  # Windows
            import fcntl

            fcntl.flock(lock.fileno(), fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def _transaction(connection: sqlite3.Connection) -> Iterator[None]:
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise
