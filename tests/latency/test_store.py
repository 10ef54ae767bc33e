from __future__ import annotations

import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

from secateurs.errors import DataError
from secateurs.latency.store import Store, default_path, digest

PRINT = {"target": "t", "threads": 1}


def test_rows_survive(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "store.sqlite3"
    with Store(path) as store:
        store.put(PRINT, {"a/1": {"ms": 1.5}, "a/2": {"ms": 2.5}, "b": {"ms": 3}})
    with Store(path) as store:
        assert store.get(PRINT, "a/1") == {"ms": 1.5}
        assert store.get({**PRINT, "threads": 2}, "a/1") is None
        assert store.find({"threads": 1, "target": "t"}, "a/") == {"a/1": {"ms": 1.5}, "a/2": {"ms": 2.5}}
        store.put(PRINT, {"b": {"ms": 4}})
        assert store.get(PRINT, "b") == {"ms": 4}
        assert len(list(store.rows())) == 3


def test_tables_can_be_exchanged(tmp_path: Path) -> None:
    with Store(tmp_path / "a") as first, Store(tmp_path / "b") as second:
        first.put(PRINT, {"x": {"ms": 1}, "y": {"ms": 2}})
        second.put(PRINT, {"y": {"ms": 9}})
        assert second.import_lines(first.export_lines()) == 1
        assert second.get(PRINT, "y") == {"ms": 9}
        assert second.import_lines(first.export_lines()) == 0
        with pytest.raises(DataError, match="Line 1 of mine"):
            second.import_lines(["{}"], "mine")
        second.vacuum()


class Listener:
    def __init__(self) -> None:
        self.said: list[str] = []

    def task(self, name: str, total: int | None = None):  # type: ignore[no-untyped-def]
        raise AssertionError

    def say(self, message: str) -> None:
        self.said.append(message)


@pytest.mark.parametrize("damage", ["text", "middle"])
def test_a_damaged_file_is_set_aside(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "store.sqlite3"
    with Store(path) as store:
        store.put(PRINT, {f"{i:04}": {"text": "x" * 200} for i in range(400)})
    if damage == "text":
        path.write_bytes(b"this is no database, but long enough to look at" * 20)
    else:
        content = bytearray(path.read_bytes())
        content[8192:40960] = bytes(32768)
        path.write_bytes(bytes(content))
    listener = Listener()
    with Store(path, progress=listener) as store:
        store.put(PRINT, {"new": {"ms": 1}})
        assert store.get(PRINT, "new") == {"ms": 1}
    assert "set aside" in listener.said[0]
    assert len(list(tmp_path.glob("*.damaged-*"))) >= 1


def test_a_newer_schema_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "store.sqlite3"
    Store(path).close()
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version=99")
    connection.close()
    with pytest.raises(DataError, match="schema 99"):
        Store(path)


def test_an_unusable_place_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="--store"):
        Store(tmp_path / "file" / "store.sqlite3")


def test_default_path_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SECATEURS_STORE", str(tmp_path / "mine"))
    assert default_path() == tmp_path / "mine"
    monkeypatch.delenv("SECATEURS_STORE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_path() == tmp_path / "secateurs" / "store.sqlite3"


def test_digest_depends_on_content() -> None:
    assert digest(b"a") != digest(b"b")
    assert len(digest(b"a")) == 32


WRITER = """
import sys
from secateurs.latency.store import Store
with Store(sys.argv[1]) as store:
    for i in range(int(sys.argv[3])):
        store.put({"target": "t"}, {f"{sys.argv[2]}/{i}": {"i": i}})
        print(i, flush=True)
"""


def _writer(path: Path, name: str, count: int) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path), name, str(count)], stdout=subprocess.PIPE, env=environment
    )


def test_many_writers_and_one_that_is_killed(tmp_path: Path) -> None:
    path = tmp_path / "store.sqlite3"
    writers = [_writer(path, f"w{i}", 60) for i in range(3)]
    doomed = _writer(path, "doomed", 100000)
    assert doomed.stdout is not None
    for _ in range(20):
        doomed.stdout.readline()
    time.sleep(random.Random(0).uniform(0, 0.05))
    doomed.send_signal(signal.SIGKILL)
    reported = 20 + len(doomed.stdout.read().split())
    doomed.wait()
    for writer in writers:
        writer.communicate()
        assert writer.returncode == 0
    with Store(path) as store:
        for i in range(3):
            assert store.find({"target": "t"}, f"w{i}/") == {f"w{i}/{n}": {"i": n} for n in range(60)}
        assert reported - 1 <= len(store.find({"target": "t"}, "doomed/")) <= reported + 1
