"""Every measurement in one SQLite database, so that nothing is measured twice and a killed run goes on."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sqlite3
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from secateurs.errors import DataError
from secateurs.progress import Progress, silent

SCHEMA_VERSION = 1
_BUSY_S = 60.0
_TABLES = """
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
) WITHOUT ROWID;
"""


@dataclass(frozen=True)
class Row:
    """One measurement: what was measured (``signature``) where (``fingerprint``), and the figures (``payload``)."""

    fingerprint: dict[str, Any]
    signature: str
    payload: dict[str, Any]
    created: float


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
            self._set_aside(error)
            return self._connect()
        except OSError as error:
            raise self._unusable(error) from error

    def _unusable(self, error: Exception) -> DataError:
        return DataError(
            f"The store of measurements {self.path} cannot be used ({error}). "
            f"Name another file with --store or the variable SECATEURS_STORE."
        )

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self.path, timeout=_BUSY_S, isolation_level=None, check_same_thread=False)
        try:
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("PRAGMA synchronous=NORMAL")
            with _transaction(connection):
                version = int(connection.execute("PRAGMA user_version").fetchone()[0])
                if version > SCHEMA_VERSION:
                    raise DataError(
                        f"The store of measurements {self.path} has schema {version}, this version of secateurs "
                        f"reads up to {SCHEMA_VERSION}. Update secateurs, or name another file with --store."
                    )
                for statement in _TABLES.split(";"):
                    connection.execute(statement)
                connection.execute(f"PRAGMA user_version={SCHEMA_VERSION}")
            if connection.execute("PRAGMA quick_check(1)").fetchone()[0] != "ok":
                raise sqlite3.DatabaseError("the integrity check failed")
        except BaseException:
            connection.close()
            raise
        return connection

    def _set_aside(self, error: Exception) -> None:
        aside = self.path.with_name(f"{self.path.name}.damaged-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}")
        try:
            os.replace(self.path, aside)
        except FileNotFoundError:
            return
        for suffix in ("-wal", "-shm"):
            with contextlib.suppress(OSError):
                os.replace(f"{self.path}{suffix}", f"{aside}{suffix}")
        self._progress.say(
            f"The store of measurements {self.path} is damaged ({error}). It was set aside as {aside}, "
            f"and a new one was begun; what it held will be measured again."
        )

    def get(self, fingerprint: Mapping[str, Any], signature: str) -> dict[str, Any] | None:
        """The stored figures, or None."""
        found = self._connection.execute(
            "SELECT payload FROM measurements JOIN targets ON targets.id = target "
            "WHERE fingerprint = ? AND signature = ?",
            (_canonical(fingerprint), signature),
        ).fetchone()
        return None if found is None else json.loads(found[0])

    def find(self, fingerprint: Mapping[str, Any], prefix: str) -> dict[str, dict[str, Any]]:
        """Every stored row of this target whose signature starts with ``prefix``, by signature."""
        rows = self._connection.execute(
            "SELECT signature, payload FROM measurements JOIN targets ON targets.id = target "
            "WHERE fingerprint = ? AND signature >= ? AND signature < ? ORDER BY signature",
            (_canonical(fingerprint), prefix, prefix + "\U0010ffff"),
        )
        return {signature: json.loads(payload) for signature, payload in rows}

    def put(self, fingerprint: Mapping[str, Any], rows: Mapping[str, Mapping[str, Any]]) -> None:
        """Store the figures ``{signature: payload}`` in one transaction; an older row gives way."""
        self._insert(
            (_canonical(fingerprint), signature, json.dumps(payload), time.time())
            for signature, payload in rows.items()
        )

    def _insert(self, rows: Iterable[tuple[str, str, str, float]]) -> None:
        connection = self._connection
        try:
            with _transaction(connection):
                for fingerprint, signature, payload, created in rows:
                    connection.execute("INSERT OR IGNORE INTO targets(fingerprint) VALUES (?)", (fingerprint,))
                    connection.execute(
                        "INSERT OR REPLACE INTO measurements SELECT id, ?, ?, ? FROM targets WHERE fingerprint = ?",
                        (signature, payload, created, fingerprint),
                    )
        except sqlite3.Error as error:
            raise self._unusable(error) from error

    def rows(self) -> Iterator[Row]:
        """Every row, oldest first."""
        query = (
            "SELECT fingerprint, signature, payload, created FROM measurements "
            "JOIN targets ON targets.id = target ORDER BY created, signature"
        )
        for fingerprint, signature, payload, created in self._connection.execute(query):
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
            except (ValueError, KeyError, TypeError) as error:
                raise DataError(
                    f"Line {number} of {source} is not a stored measurement ({error!r}). "
                    f"Give a file that 'secateurs store export' wrote."
                ) from error
            if self.get(row.fingerprint, row.signature) is None:
                fresh.append((_canonical(row.fingerprint), row.signature, json.dumps(row.payload), row.created))
        self._insert(fresh)
        return len(fresh)

    def vacuum(self) -> None:
        """Give freed space back to the disk."""
        self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        self._connection.execute("VACUUM")

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    def __enter__(self) -> Store:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


@contextlib.contextmanager
def _transaction(connection: sqlite3.Connection) -> Iterator[None]:
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
    except BaseException:
        connection.execute("ROLLBACK")
        raise
    connection.execute("COMMIT")
