"""``secateurs store``: two people exchange what they measured on the same device."""

from __future__ import annotations

import json
from pathlib import Path

from typer.testing import CliRunner, Result

from secateurs.cli.app import app
from secateurs.latency.store import Store

DEVICE = {"target": "onnxruntime-cpu", "device": "a processor", "threads": 1}


def call(*words: str | Path) -> Result:
    return CliRunner().invoke(app, ["store", *(str(word) for word in words)])


def test_exchange_between_two_people(tmp_path: Path) -> None:
    mine, yours, file = tmp_path / "mine.sqlite3", tmp_path / "yours.sqlite3", tmp_path / "table.jsonl"
    with Store(mine) as store:
        store.put(DEVICE, {"a": {"ms": 1.0}, "b": {"ms": 2.0}})
    with Store(yours) as store:
        store.put(DEVICE, {"b": {"ms": 9.0}})
    assert json.loads(call("export", file, "--store", mine, "--json").stdout)["rows"] == 2
    assert json.loads(call("import", file, "--store", yours, "--json").stdout) == {
        "source": str(file),
        "rows": 2,
        "added": 1,
    }
    with Store(yours) as store:
        assert store.find(DEVICE, "") == {"a": {"ms": 1.0}, "b": {"ms": 9.0}}
    again = call("import", file, "--store", yours)
    assert "0 of 2 measurements added" in again.stdout


def test_ls_tells_targets_and_rows(tmp_path: Path) -> None:
    path = tmp_path / "store.sqlite3"
    with Store(path) as store:
        store.put(DEVICE, {"a": {"ms": 1.0}})
    shown = call("ls", "--store", path)
    assert shown.exit_code == 0
    assert "onnxruntime-cpu" in shown.stdout
    assert "a processor" in shown.stdout
    [held] = json.loads(call("ls", "--store", path, "--json").stdout)["targets"]
    assert held["rows"] == 1
    assert held["fingerprint"] == DEVICE


def test_vacuum_makes_the_file_smaller(tmp_path: Path) -> None:
    path = tmp_path / "store.sqlite3"
    with Store(path) as store:
        store.put(DEVICE, {f"{i}": {"text": "x" * 1000} for i in range(400)})
        store._connection.execute("DELETE FROM measurements")
    found = json.loads(call("vacuum", "--store", path, "--json").stdout)
    assert found["bytes_after"] < found["bytes_before"] / 4
    with Store(path) as store:
        assert store.summary() == []


def test_what_is_missing_or_broken_is_told(tmp_path: Path) -> None:
    none = call("ls", "--store", tmp_path / "none.sqlite3")
    assert none.exit_code == 1
    assert "no store of measurements" in none.stderr
    assert not (tmp_path / "none.sqlite3").exists()
    (tmp_path / "bad.jsonl").write_text('{"fingerprint": {}}\n')
    bad = call("import", tmp_path / "bad.jsonl", "--store", tmp_path / "new.sqlite3")
    assert bad.exit_code == 1
    assert "Line 1 of" in bad.stderr
    assert "bad.jsonl" in bad.stderr
    assert call("import", tmp_path / "absent.jsonl", "--store", tmp_path / "new.sqlite3").exit_code == 1


def test_the_store_is_not_overwritten_by_its_own_export(tmp_path: Path) -> None:
    path = tmp_path / "store.sqlite3"
    with Store(path) as store:
        store.put(DEVICE, {"a": {"ms": 1.0}})
    found = call("export", path, "--store", path)
    assert found.exit_code == 1
    with Store(path) as store:
        assert store.get(DEVICE, "a") == {"ms": 1.0}
