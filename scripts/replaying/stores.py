"""Under which names measurements and evaluations are kept, read from the SQLite files that they lie in."""

from __future__ import annotations

import contextlib
import json
import re
import sqlite3
from pathlib import Path
from typing import Any

Rows = list[dict[str, Any]]


def measurements(store: Path) -> Rows:
    """Fingerprint, signature and figures of every row, in the order of their names."""
    found = _select(
        store,
        "SELECT fingerprint, signature, payload FROM measurements JOIN targets ON targets.id = target "
        "ORDER BY fingerprint, signature",
    )
    return [
        {"fingerprint": json.loads(where), "signature": name, "payload": json.loads(payload)}
        for where, name, payload in found
    ]


def names(store: Path) -> set[tuple[str, str]]:
    """(fingerprint, signature) of every row."""
    if not store.exists():
        return set()
    return set(_select(store, "SELECT fingerprint, signature FROM measurements JOIN targets ON targets.id = target"))


def evaluations(path: Path) -> Rows:
    """Key and row of everything that was judged, in the order in which it was."""
    found = _select(path, "SELECT key, row FROM evaluations ORDER BY number")
    return [{"key": key, "row": json.loads(row)} for key, row in found]


def families(rows: Rows) -> list[str]:
    """Names without what a decision put into them: of how a network is named, not which networks were measured."""
    return sorted({_without_numbers(row.get("signature") or row["key"]) for row in rows})


def _without_numbers(name: str) -> str:
    name = re.sub(r"\[[\d, ]*\]", "[…]", name)
    name = re.sub(r"(?<=/)\d+(-\d+)+", "…", name)
    name = re.sub(r"(?<=/)[0-9a-f]{64}(?=/)", "…", name)  # of trained weights
    return re.sub(r"^(answers/[0-9a-f]{16})/[0-9a-f]{16}$", r"\1/…", name)


def _select(path: Path, query: str) -> list[tuple[Any, ...]]:
    with contextlib.closing(sqlite3.connect(path)) as base:
        return base.execute(query).fetchall()
