"""Rows of evaluations that somebody damaged: judged again and replaced, the others stay."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from secateurs.search.rows import FileRows


@pytest.mark.parametrize("value", ["CAST(x'7bff' AS TEXT)", "'{'", "'[1]'", f"'{'[' * 9000}'", "x'00ff'", "3"])
def test_a_damaged_row_counts_as_not_there(tmp_path: Path, value: str) -> None:
    path = tmp_path / "rows.sqlite3"
    rows = FileRows(path)
    rows.put("good", {"accuracy": 0.5})
    rows.put("bad", {"accuracy": 0.5})
    connection = sqlite3.connect(path)
    connection.execute(f"UPDATE evaluations SET row = {value} WHERE key = 'bad'")
    connection.commit()
    connection.close()
    assert rows.get("bad") is None
    assert list(rows) == [{"accuracy": 0.5}]
    rows.put("bad", {"accuracy": 0.7})
    assert rows.get("bad") == {"accuracy": 0.7}
    rows.put("good", {"accuracy": 0.9})
    assert rows.get("good") == {"accuracy": 0.5}
