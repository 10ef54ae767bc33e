"""Where evaluations of candidates are kept: in memory, or in a file that outlives a kill."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from secateurs.errors import PlanError, why
from secateurs.files import read_json, write_ahead


class MemoryRows:
    """Rows for one process only."""

    def __init__(self) -> None:
        self._held: dict[str, Mapping[str, Any]] = {}

    def get(self, key: str) -> Mapping[str, Any] | None:
        """The row stored under ``key``, or None."""
        return self._held.get(key)

    def put(self, key: str, row: Mapping[str, Any]) -> None:
        """Store ``row``."""
        self._held[key] = dict(row)

    def __iter__(self) -> Iterator[Mapping[str, Any]]:
        return iter(list(self._held.values()))

    def __len__(self) -> int:
        return len(self._held)


class FileRows:
    """Rows in a SQLite file (WAL): a row is on disk when :meth:`put` returns, several processes may share the file.

    A row that cannot be read counts as not there: it is judged again and then replaced.

    Args:
        path: created on first use where it does not exist.

    Raises:
        PlanError: on use: the file cannot be opened, or is something else.
    """

    def __init__(self, path: str | Path) -> None:
        self._path = Path(path)
        self._damaged: set[str] = set()

    @cached_property
    def _base(self) -> sqlite3.Connection:
        self._require_own()
        try:
            base = sqlite3.connect(self._path.resolve().as_uri(), timeout=60.0, isolation_level=None, uri=True)
            write_ahead(base)
            base.execute("PRAGMA synchronous=FULL")
            base.execute(
                "CREATE TABLE IF NOT EXISTS evaluations "
                "(number INTEGER PRIMARY KEY, key TEXT UNIQUE, row TEXT NOT NULL)"
            )
        except sqlite3.Error as error:
            raise self._refusal(error) from error
        return base

    def _require_own(self) -> None:
        if self._path.is_symlink() or (self._path.exists() and not self._path.is_file()):
            raise PlanError(
                f"Evaluations are not kept in {self._path}: it is a link, or no regular file. Move it away, then start "
                "again."
            )

    def _refusal(self, error: Exception) -> PlanError:
        if isinstance(error, sqlite3.DatabaseError) and not isinstance(error, sqlite3.OperationalError):
            return PlanError(
                f"Evaluations cannot be kept in {self._path}: it is damaged, or not ours ({why(error)}). Move it "
                "out of the folder and start again with --resume: what it held is judged again."
            )
        return PlanError(
            f"Evaluations cannot be kept in {self._path} ({why(error)}). "
            "Check that the folder can be written to and that the file is one of ours, or give another run folder."
        )

    def get(self, key: str) -> Mapping[str, Any] | None:
        """The row stored under ``key``, or None.

        Raises:
            PlanError: the file cannot be read.
        """
        try:
            query = "SELECT CAST(row AS BLOB) FROM evaluations WHERE key = ?"
            found = self._base.execute(query, (key,)).fetchone()
        except sqlite3.Error as error:
            raise self._refusal(error) from error
        row = None if found is None else _row(found[0])
        if found is not None and row is None:
            self._damaged.add(key)
        return row

    def put(self, key: str, row: Mapping[str, Any]) -> None:
        """Store ``row``; the first one stored under a key stays.

        Raises:
            PlanError: the disk is full or the file cannot be written.
        """
        clash = "REPLACE" if key in self._damaged else "IGNORE"
        try:
            self._base.execute(f"INSERT OR {clash} INTO evaluations (key, row) VALUES (?, ?)", (key, json.dumps(row)))
            self._damaged.discard(key)
        except sqlite3.Error as error:
            raise self._refusal(error) from error

    def __iter__(self) -> Iterator[Mapping[str, Any]]:
        """Every row in the order of storing.

        Raises:
            PlanError: the file cannot be read.
        """
        try:
            held = self._base.execute("SELECT CAST(row AS BLOB) FROM evaluations ORDER BY number").fetchall()
        except sqlite3.Error as error:
            raise self._refusal(error) from error
        return iter([row for row in (_row(text) for (text,) in held) if row is not None])

    def __len__(self) -> int:
        try:
            return int(self._base.execute("SELECT COUNT(*) FROM evaluations").fetchone()[0])
        except sqlite3.Error as error:
            raise self._refusal(error) from error

    def adopt(self, path: str | Path, holding: str = "accuracy") -> int:
        """Copy the rows of another such file that are not here yet and have a number ``holding``; how many there were.

        Raises:
            PlanError: it is missing, or something else.
        """
        try:
            self._base.execute("ATTACH DATABASE ? AS other", (f"{Path(path).resolve().as_uri()}?mode=ro",))
            try:
                found = self._base.execute(
                    "INSERT OR IGNORE INTO evaluations (key, row) SELECT key, row FROM other.evaluations "
                    "WHERE json_extract(row, ?) IS NOT NULL ORDER BY number",
                    (f"$.{holding}",),
                )
                return found.rowcount
            finally:
                self._base.execute("DETACH DATABASE other")
        except sqlite3.Error as error:
            raise PlanError(
                f"There are no evaluations to start from in {path} ({why(error)}). Give the folder of a front."
            ) from error

    def close(self) -> None:
        """Close the file."""
        self._base.close()


def _row(text: bytes) -> Mapping[str, Any] | None:
    """A stored row, None where it is damaged."""
    try:
        found = read_json(text.decode())
    except (ValueError, AttributeError):
        return None
    return found if isinstance(found, dict) else None


def kept_rows(path: Path | None) -> FileRows | None:
    """The rows in a file, None without one."""
    return None if path is None else FileRows(path)
