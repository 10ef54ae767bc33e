"""Rows of the store of measurements as they lie in its file: read with suspicion, written with a checksum, salvaged."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from secateurs.errors import DataError
from secateurs.files import open_own, read_bytes, read_json

LATEST = 1e11
"""Seconds since 1970 of a date that computers can still print."""


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


@dataclass(frozen=True)
class Checked:
    """What a look at every row found: ``sound`` rows, rows found ``damaged`` now, ``set_aside`` in all, and what is
    wrong with the file's ``structure``."""

    sound: int
    damaged: int
    set_aside: int
    structure: tuple[str, ...]


Entry = tuple[str, str, float, str]
"""(signature, payload, created, fingerprint)."""


def row_checksum(fingerprint: bytes, signature: bytes, payload: bytes, created: float) -> str:
    """What a row must have beside it, or somebody changed it."""
    parts = (fingerprint, signature, payload, repr(created).encode())
    return hashlib.sha256(b"\0".join(part or b"" for part in parts)).hexdigest()[:16]


def write(connection: sqlite3.Connection, rows: Sequence[Entry], clash: str) -> int:
    """Number of rows written; ``clash``: REPLACE or IGNORE where one is."""
    with transaction(connection):
        targets = [(fingerprint,) for fingerprint in sorted({row[3] for row in rows})]
        connection.executemany("INSERT OR IGNORE INTO targets(fingerprint) VALUES (?)", targets)
        summed = [
            (
                signature,
                payload,
                created,
                row_checksum(where.encode(), signature.encode(), payload.encode(), created),
                where,
            )
            for signature, payload, created, where in rows
        ]
        return connection.executemany(
            f"INSERT OR {clash} INTO measurements (target, signature, payload, created, checksum) "
            "SELECT id, ?, ?, ?, ? FROM targets WHERE fingerprint = ?",
            summed,
        ).rowcount


def as_object(text: bytes) -> dict[str, Any] | None:
    """A JSON object, None where it is none."""
    try:
        found = read_json(text.decode())
    except (ValueError, AttributeError):
        return None
    return found if isinstance(found, dict) else None


def as_row(fingerprint: bytes, signature: bytes, payload: bytes, created: Any) -> Row | None:
    """The row, None where a part of it cannot be read."""
    where, what = as_object(fingerprint), as_object(payload)
    if where is None or what is None or not isinstance(created, (int, float)) or not 0 <= created < LATEST:
        return None
    try:
        return Row(where, signature.decode(), what, float(created))
    except ValueError:
        return None


def is_row(signature: str, payload: str, created: float, fingerprint: str) -> bool:
    return as_row(fingerprint.encode(), signature.encode(), payload.encode(), created) is not None


def salvaged(damaged: Path) -> Iterator[Entry]:
    """Rows that can still be read in a damaged file, from its beginning and from its end to where it is torn; of those
    with a checksum the ones that it fits."""
    seen: set[tuple[str, str]] = set()
    with contextlib.suppress(sqlite3.Error), contextlib.closing(sqlite3.connect(damaged)) as base:
        base.text_factory = bytes
        checksum = "checksum" if version_of(base) > 1 else "NULL"
        for order in ("ASC", "DESC"):
            with contextlib.suppress(sqlite3.Error):
                for where, signature, payload, created, known in base.execute(
                    f"SELECT fingerprint, signature, payload, created, {checksum} FROM measurements "
                    f"JOIN targets ON targets.id = target ORDER BY target {order}, signature {order}"
                ):
                    if as_row(where, signature, payload, created) is None:
                        continue
                    if known is not None and known.decode() != row_checksum(where, signature, payload, created):
                        continue
                    entry = (signature.decode(), payload.decode(), float(created), where.decode())
                    if (entry[0], entry[3]) not in seen:
                        seen.add((entry[0], entry[3]))
                        yield entry


def version_of(connection: sqlite3.Connection) -> int:
    return int(connection.execute("PRAGMA user_version").fetchone()[0])


@contextlib.contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[None]:
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


@contextlib.contextmanager
def alone(path: Path) -> Iterator[None]:
    """Nothing else runs under the same lock file; on systems without ``fcntl`` it keeps nobody out."""
    with open_own(path, os.O_RDWR | os.O_CREAT) as lock:
        with contextlib.suppress(ImportError):  # Windows
            import fcntl

            fcntl.flock(lock.fileno(), fcntl.LOCK_EX)
        yield


def read_lines(path: str | os.PathLike[str], longest: int = 1 << 20) -> Iterator[str]:
    """Lines of a file of exported rows, one after the other.

    Raises:
        OSError: it is missing, or no regular file.
        ValueError: a line is no UTF-8, or longer than ``longest`` bytes.
    """
    if not Path(path).is_file():
        read_bytes(path)  # says what it is
    with open(path, "rb") as file:
        for number in itertools.count(1):
            line = file.readline(longest + 1)
            if not line:
                return
            if len(line) > longest:
                raise ValueError(f"line {number} has more than {longest} bytes")
            yield line.decode("utf-8")


def exported_rows(lines: Iterable[str], source: str) -> Iterator[Row]:
    """The rows of exported lines, one after the other.

    Raises:
        DataError: a line is no exported row.
    """
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            raw = read_json(line)
            row = Row(dict(raw["fingerprint"]), str(raw["signature"]), dict(raw["payload"]), float(raw["created"]))
            row.signature.encode()
            if not 0 <= row.created < LATEST:
                raise ValueError(f"it was written {row.created} s after 1970")
        except (ValueError, KeyError, TypeError, RecursionError, OverflowError) as error:
            raise DataError(
                f"Line {number} of {source} is not a stored measurement ({error!r}). "
                f"Give a file that 'secateurs store export' wrote."
            ) from error
        yield row
