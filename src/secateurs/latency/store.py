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
from pathlib import Path
from types import TracebackType
from typing import Any

from secateurs.errors import DataError, why
from secateurs.files import require_regular, write_ahead
from secateurs.latency.stored_rows import (
    Checked,
    Entry,
    Holding,
    Row,
    alone,
    as_object,
    as_row,
    exported_rows,
    is_row,
    row_checksum,
    salvaged,
    transaction,
    version_of,
    write,
)
from secateurs.progress import Progress, silent

_BUSY_S = 60.0
_MADE_BY_US, _FIRST_PAGES = b"TABLE measurements", 1 << 16
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
    """
    ALTER TABLE measurements ADD COLUMN checksum TEXT;
    UPDATE measurements SET checksum = row_checksum(
        (SELECT CAST(fingerprint AS BLOB) FROM targets WHERE targets.id = target),
        CAST(signature AS BLOB), CAST(payload AS BLOB), created
    );
    CREATE TABLE IF NOT EXISTS set_aside (
        target INTEGER, signature BLOB, payload BLOB, created REAL, checksum TEXT, found REAL NOT NULL
    )
    """,
)
"""Statements that lead from schema version n to n + 1; a file keeps its version in ``PRAGMA user_version``."""


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

    Every row has a checksum. One that does not fit, or cannot be read, is set aside in the same file and told, and what
    it held is measured again. A file whose structure is damaged is set aside whole, and the rows that can still be read
    are taken over. Where the file cannot be written it can still be read.

    Args:
        path: the file (None: :func:`default_path`). Folders are made as needed.
        progress: told when damage was found.

    Raises:
        DataError: the file cannot be opened, is not ours, or comes from a newer version.
    """

    def __init__(self, path: str | os.PathLike[str] | None = None, *, progress: Progress = silent) -> None:
        self.path = Path(path) if path is not None else default_path()
        self._progress, self.writable = progress, True
        self._connection = self._open()

    def _open(self) -> sqlite3.Connection:
        try:
            require_regular(self.path, "The store of measurements")
            if self.path.exists() and not os.access(self.path, os.W_OK):
                return self._connect_to_read()
            self.path.parent.mkdir(parents=True, exist_ok=True)
            return self._connect()
        except sqlite3.OperationalError as error:
            if "readonly" in str(error) and self.path.exists():
                return self._connect_to_read()
            raise self._unusable(error) from error
        except sqlite3.DatabaseError as error:
            if not self._ours():
                raise self._unusable(error) from error
            return self._replace_damaged()
        except OSError as error:
            raise self._unusable(error) from error

    def _unusable(self, error: Exception | str) -> DataError:
        told = f"cannot be used ({error if isinstance(error, str) else why(error)})"
        advice = "Name another file with --store or the variable SECATEURS_STORE."
        return DataError(f"The store of measurements {self.path} {told}. {advice}")

    def require_writable(self) -> None:
        """Nothing, if measurements can be stored.

        Raises:
            DataError: the file can only be read.
        """
        if not self.writable:
            raise self._unusable("it can only be read, and measurements are to be stored")

    def _ours(self) -> bool:
        """Whether a file that SQLite cannot open is a store: by its content, or because it lies at our own place. Any
        other file is not moved away."""
        if self.path == default_path():
            return True
        with open(self.path, "rb") as file:
            return _MADE_BY_US in file.read(_FIRST_PAGES)

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

    def _connect_to_read(self) -> sqlite3.Connection:
        """A connection to a file that cannot be written."""
        self.writable = False
        for how in ("mode=ro", "mode=ro&immutable=1"):  # the second beside a log that nobody can open
            connection = sqlite3.connect(f"{self.path.resolve().as_uri()}?{how}", uri=True, check_same_thread=False)
            try:
                self._refuse_foreign(connection)
                if version_of(connection) <= len(_STEPS):
                    return connection
            except sqlite3.Error as error:
                connection.close()
                if how.endswith("1"):
                    raise self._unusable(error) from error
                continue
            connection.close()
            raise self._newer(version_of(connection))
        raise AssertionError

    def _newer(self, version: int) -> DataError:
        return DataError(
            f"The store of measurements {self.path} has schema {version}, this version of secateurs "
            f"reads up to {len(_STEPS)}. Update secateurs, or name another file with --store."
        )

    def _migrate(self, connection: sqlite3.Connection) -> None:
        """Bring the file to this version's schema, whole or not at all; another process may be doing the same.

        Raises:
            DataError: a newer version wrote it.
        """
        if version_of(connection) == len(_STEPS):
            return
        connection.create_function("row_checksum", 4, row_checksum, deterministic=True)
        with transaction(connection):
            version = version_of(connection)
            if version > len(_STEPS):
                raise self._newer(version)
            for step in _STEPS[version:]:
                for statement in step.split(";"):
                    connection.execute(statement)
            connection.execute(f"PRAGMA user_version={len(_STEPS)}")

    def _replace_damaged(self) -> sqlite3.Connection:
        """A new file in place of the damaged one, which is kept; of several processes only one moves it."""
        with alone(self.path.with_name(f"{self.path.name}.lock")):
            try:
                return self._connect()
            except sqlite3.OperationalError as error:
                raise self._unusable(error) from error
            except sqlite3.DatabaseError as error:
                return self._begin_anew(error)

    def _begin_anew(self, error: Exception) -> sqlite3.Connection:
        aside = self.path.with_name(f"{self.path.name}.damaged-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}")
        for suffix in ("", "-wal", "-shm"):
            with contextlib.suppress(FileNotFoundError):
                os.replace(f"{self.path}{suffix}", f"{aside}{suffix}")
        fresh = self._connect()
        saved = list(salvaged(aside))
        write(fresh, [row for row in saved if is_row(*row)], "IGNORE")
        self._tell(
            f"The store of measurements {self.path} is damaged ({why(error)}). It was set aside as {aside}, "
            f"and a new one was begun with the {len(saved)} measurements that could be read; what else it held will be "
            f"measured again."
        )
        return fresh

    def _tell(self, message: str) -> None:
        if self._progress is silent:
            warnings.warn(message, stacklevel=5)
        self._progress.say(message)

    def _select(self, query: str, values: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
        try:
            return self._connection.execute(query, values).fetchall()
        except sqlite3.Error as error:
            raise self._unusable(error) from error

    def _read(self, where: str = "", values: tuple[Any, ...] = ()) -> list[Row]:
        """The sound rows that fulfil a condition; damaged ones are set aside."""
        has_checksum = self.writable or version_of(self._connection) > 1
        found = self._select(
            "SELECT CAST(fingerprint AS BLOB), CAST(signature AS BLOB), CAST(payload AS BLOB), created, "
            f"{'checksum' if has_checksum else 'NULL'}, target FROM measurements JOIN targets ON targets.id = target "
            f"{where}",
            values,
        )
        rows, damaged = [], []
        for fingerprint, signature, payload, created, checksum, target in found:
            sum_now = row_checksum(fingerprint, signature, payload, created)
            row = as_row(fingerprint, signature, payload, created)
            if row is None or (has_checksum and checksum != sum_now):
                damaged.append((target, signature))
            else:
                rows.append(row)
        if damaged and self.writable:
            self._put_aside(damaged)
        return rows

    def _put_aside(self, damaged: Sequence[tuple[int, bytes]]) -> None:
        """Move rows to the table of those that nobody believes."""
        columns, same = "target, signature, payload, created, checksum", "target = ? AND CAST(signature AS BLOB) = ?"
        try:
            with transaction(self._connection):
                for key in damaged:
                    self._connection.execute(
                        "INSERT INTO set_aside SELECT target, CAST(signature AS BLOB), CAST(payload AS BLOB), created, "
                        f"checksum, {time.time()!r} FROM measurements WHERE {same}",
                        key,
                    )
                    self._connection.execute(f"DELETE FROM measurements WHERE {same}", key)
        except sqlite3.Error as error:
            raise self._unusable(error) from error
        some = ", ".join(repr(signature.decode("utf-8", "replace"))[:60] for _, signature in damaged[:3])
        self._tell(
            f"{len(damaged)} damaged {'rows' if len(damaged) > 1 else 'row'} of the store {self.path} ({some}) set "
            f"aside in its table set_aside ({columns}); what they held will be measured again."
        )

    def get(self, fingerprint: Mapping[str, Any], signature: str) -> dict[str, Any] | None:
        """The stored figures, or None."""
        found = self._read("WHERE fingerprint = ? AND signature = ?", (_canonical(fingerprint), signature))
        return found[0].payload if found else None

    def find(self, fingerprint: Mapping[str, Any], prefix: str) -> dict[str, dict[str, Any]]:
        """Every stored row of this target whose signature starts with ``prefix``, by signature."""
        rows = self._read(
            "WHERE fingerprint = ? AND signature >= ? AND signature < ? ORDER BY signature",
            (_canonical(fingerprint), prefix, prefix + "\U0010ffff"),
        )
        return {row.signature: row.payload for row in rows}

    def put(self, fingerprint: Mapping[str, Any], rows: Mapping[str, Mapping[str, Any]]) -> None:
        """Store the figures ``{signature: payload}`` in one transaction; an older row gives way."""
        where = _canonical(fingerprint)
        entries = [(signature, json.dumps(payload), time.time(), where) for signature, payload in rows.items()]
        self._insert(entries, "REPLACE")

    def forget(self, fingerprint: Mapping[str, Any], prefix: str) -> int:
        """Remove every row of this target whose signature starts with ``prefix``; returns how many there were."""
        self.require_writable()
        connection = self._connection
        try:
            with transaction(connection):
                return connection.execute(
                    "DELETE FROM measurements WHERE target IN (SELECT id FROM targets WHERE fingerprint = ?) "
                    "AND signature >= ? AND signature < ?",
                    (_canonical(fingerprint), prefix, prefix + "\U0010ffff"),
                ).rowcount
        except sqlite3.Error as error:
            raise self._unusable(error) from error

    def _insert(self, rows: Sequence[Entry], clash: str) -> int:
        self.require_writable()
        try:
            return write(self._connection, rows, clash)
        except sqlite3.Error as error:
            raise self._unusable(error) from error

    def rows(self) -> Iterator[Row]:
        """Every row, oldest first."""
        yield from self._read("ORDER BY created, signature")

    def check(self) -> Checked:
        """What is sound and what is not, after every row was read and the file's structure looked at."""
        before = self._select("SELECT COUNT(*) FROM measurements")[0][0]
        sound = sum(1 for _ in self.rows())
        told = [line for (line,) in self._select("PRAGMA integrity_check(5)")]
        aside = 0 if not self.writable else self._select("SELECT COUNT(*) FROM set_aside")[0][0]
        return Checked(sound, before - sound, aside, () if told == ["ok"] else tuple(told))

    def export_lines(self) -> Iterator[str]:
        """Every row as one line of JSON, for :meth:`import_lines` elsewhere."""
        for row in self.rows():
            yield json.dumps(row.__dict__, sort_keys=True)

    def import_lines(self, lines: Iterable[str], source: str = "the file") -> int:
        """Add exported rows; rows that are here already stay. Returns how many came in.

        Raises:
            DataError: a line is not an exported row; nothing is imported then.
        """
        rows = exported_rows(lines, source)
        fresh = [(row.signature, json.dumps(row.payload), row.created, _canonical(row.fingerprint)) for row in rows]
        return self._insert(fresh, "IGNORE")

    def summary(self) -> list[Holding]:
        """What is held of every target, the most recent one first."""
        query = (
            "SELECT CAST(fingerprint AS BLOB), COUNT(*), SUM(LENGTH(signature) + LENGTH(payload)), MIN(created), MAX("
            "created) FROM measurements JOIN targets ON targets.id = target GROUP BY target ORDER BY MAX(created) DESC"
        )
        read = [(as_object(row[0]) or {"target": "(damaged)"}, row[1:]) for row in self._select(query)]
        return [Holding(fingerprint, *rest) for fingerprint, rest in read]

    def vacuum(self) -> None:
        """Give freed space back to the disk.

        Raises:
            DataError: another process is using the file, or the disk is full.
        """
        self.require_writable()
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
