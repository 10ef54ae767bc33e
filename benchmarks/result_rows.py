"""Rows of results: one line of a CSV file each, written as soon as it is known."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path


def append(row: Mapping[str, object], path: Path, fields: Sequence[str] | None = None) -> None:
    """Add a row to the file, which begins with a header; ``fields``: the columns (None: the row's own)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = not path.exists()
    with open(path, "a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(row) if fields is None else fields)
        if fresh:
            writer.writeheader()
        writer.writerow(row)
