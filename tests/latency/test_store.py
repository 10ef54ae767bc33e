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
from secateurs.latency import store as store_module
from secateurs.latency.store import Store, default_path, digest
from secateurs.latency.stored_rows import Checked, version_of

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


@pytest.mark.parametrize("damage", ["header", "middle"])
def test_a_damaged_file_is_set_aside(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "store.sqlite3"
    with Store(path) as store:
        store.put(PRINT, {f"{i:04}": {"text": "x" * 200} for i in range(400)})
    content = bytearray(path.read_bytes())
    if damage == "header":
        content[:16] = b"no database now!"
    else:
        content[8192:40960] = bytes(32768)
    path.write_bytes(bytes(content))
    listener = Listener()
    with Store(path, progress=listener) as store:
        store.put(PRINT, {"new": {"ms": 1}})
        assert store.get(PRINT, "new") == {"ms": 1}
    assert "set aside" in listener.said[0]
    assert len(list(tmp_path.glob("*.damaged-*"))) >= 1


def test_damage_is_told_also_where_nobody_listens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "store.sqlite3"
    monkeypatch.setenv("SECATEURS_STORE", str(path))  # our own place: whatever lies there is ours
    path.write_bytes(b"this is no database, but long enough to look at" * 20)
    with pytest.warns(UserWarning, match="set aside as"), Store(path):
        pass
    [aside] = tmp_path.glob("*.damaged-*")
    assert aside.read_bytes().startswith(b"this is no database")


def test_damage_found_later_is_a_message(tmp_path: Path) -> None:
    path = tmp_path / "store.sqlite3"
    with Store(path) as store:
        store.put(PRINT, {f"{i:04}": {"text": "x" * 200} for i in range(400)})
    with Store(path) as store:
        content = bytearray(path.read_bytes())
        content[4096:] = bytes(len(content) - 4096)
        path.write_bytes(bytes(content))
        store._connection.execute("PRAGMA shrink_memory")
        with pytest.raises(DataError, match="--store"):
            list(store.rows())


def test_an_older_schema_is_migrated_with_its_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "store.sqlite3"
    with Store(path) as store:
        store.put(PRINT, {"a": {"ms": 1}})
    further = (*store_module._STEPS, "ALTER TABLE measurements ADD COLUMN note TEXT; CREATE TABLE more (x)")
    monkeypatch.setattr(store_module, "_STEPS", further)
    with Store(path) as store:
        assert store.get(PRINT, "a") == {"ms": 1}
        assert store._connection.execute("SELECT note FROM measurements").fetchall() == [(None,)]
    with Store(path) as store:
        assert version_of(store._connection) == 3


def test_a_migration_that_fails_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "store.sqlite3"
    with Store(path) as store:
        store.put(PRINT, {"a": {"ms": 1}})
    with monkeypatch.context() as patch:
        patch.setattr(store_module, "_STEPS", (*store_module._STEPS, "CREATE TABLE more (x); NONSENSE"))
        with pytest.raises(DataError, match="cannot be used"):
            Store(path)
    with Store(path) as store:
        assert store.get(PRINT, "a") == {"ms": 1}
        names = {name for (name,) in store._connection.execute("SELECT name FROM sqlite_master WHERE type='table'")}
        assert names == {"targets", "measurements", "set_aside"}


def test_what_is_held_by_target(tmp_path: Path) -> None:
    with Store(tmp_path / "store.sqlite3") as store:
        store.put(PRINT, {"a": {"ms": 1}, "b": {"ms": 2}})
        store.put({"target": "other"}, {"a": {"ms": 3}})
        first, second = store.summary()
    assert (first.fingerprint, first.rows) == ({"target": "other"}, 1)
    assert (second.fingerprint, second.rows) == (PRINT, 2)
    assert second.oldest <= second.newest <= first.newest


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
path, name, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
with Store(path) as store:
    for i in range(count):
        store.put({"target": "t"}, {f"{name}/{i}": {"i": i}, f"{name}/{i}/pair": {"i": i}})
        print(i, flush=True)
"""


def _writer(path: Path, name: str, count: int) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path), name, str(count)], stdout=subprocess.PIPE, env=environment
    )


def test_many_writers_on_a_new_file_and_one_that_is_killed(tmp_path: Path) -> None:
    path = tmp_path / "store.sqlite3"
    writers = [_writer(path, f"w{i}", 40) for i in range(8)]
    doomed = _writer(path, "doomed", 100000)
    assert doomed.stdout is not None
    for _ in range(5):
        doomed.stdout.readline()
    time.sleep(random.Random(0).uniform(0, 0.05))
    doomed.send_signal(signal.SIGKILL)
    reported = 5 + len(doomed.stdout.read().split())
    doomed.wait()
    for writer in writers:
        writer.communicate()
        assert writer.returncode == 0
    with Store(path) as store:
        held = [row.signature for row in store.rows()]
        assert len(held) == len(set(held))
        for i in range(8):
            wanted = {f"w{i}/{n}{end}": {"i": n} for n in range(40) for end in ("", "/pair")}
            assert store.find({"target": "t"}, f"w{i}/") == wanted
        # Two rows a write, both or neither; the last write may have been done but not yet told.
        kept = [name for name in held if name.startswith("doomed/")]
        assert len(kept) in (2 * reported, 2 * reported + 2)
        assert {f"doomed/{n}" for n in range(reported)} <= set(kept)


OPENER = """
import sys, warnings
from secateurs.latency.store import Store
warnings.simplefilter("ignore")
with Store(sys.argv[1]) as store:
    store.put({"target": "t"}, {sys.argv[2]: {}})
"""


def test_several_processes_meet_a_damaged_file(tmp_path: Path) -> None:
    path = tmp_path / "store.sqlite3"
    Store(path).close()
    path.write_bytes(b"no database now!" + path.read_bytes()[16:])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    openers = [subprocess.Popen([sys.executable, "-c", OPENER, str(path), f"p{i}"], env=environment) for i in range(4)]
    assert [opener.wait() for opener in openers] == [0] * 4
    with Store(path) as store:
        assert {row.signature for row in store.rows()} == {f"p{i}" for i in range(4)}
    assert len([found for found in tmp_path.glob("*.damaged-*") if not found.name.endswith(("-wal", "-shm"))]) == 1


@pytest.mark.parametrize("name", ["README.md", "model.safetensors", "notes", "notes.sqlite3", "table.db"])
def test_a_file_of_another_kind_is_left_where_it_is(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(b"this is no database, but long enough to look at" * 20)
    before = path.read_bytes()
    with pytest.raises(DataError, match=r"not a database.*--store"):
        Store(path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_database_of_another_program_is_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "photos.db"
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE photos (name TEXT)")
    connection.close()
    before = path.read_bytes()
    with pytest.raises(DataError, match="another program, with the tables photos"):
        Store(path)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("signature", "created"), [("a", "NaN"), ("a", "1e300"), ("a", "-1"), ("a", "Infinity"), ("\\ud800", "1")]
)
def test_rows_that_cannot_be_kept_are_refused_as_a_whole(tmp_path: Path, signature: str, created: str) -> None:
    good = '{"fingerprint": {}, "signature": "good", "payload": {}, "created": 1}'
    bad = f'{{"fingerprint": {{}}, "signature": "{signature}", "payload": {{}}, "created": {created}}}'
    with Store(tmp_path / "store.sqlite3") as store:
        with pytest.raises(DataError, match="Line 2 of theirs is not a stored measurement"):
            store.import_lines([good, bad], "theirs")
        assert list(store.rows()) == []


def _damage(path: Path, column: str, value: str) -> None:
    """Change a row behind the store's back."""
    connection = sqlite3.connect(path)
    connection.execute(f"UPDATE measurements SET {column} = {value} WHERE signature = 'bad'")
    connection.commit()
    connection.close()


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("payload", "CAST(x'7bff' AS TEXT)"),
        ("payload", "'{'"),
        ("payload", "'[1]'"),
        ("payload", "'{\"ms\": 2}'"),
        ("payload", f"'{'[' * 9000}'"),
        ("created", "1e300"),
        ("created", "created + 1"),
        ("checksum", "NULL"),
    ],
)
def test_a_damaged_row_is_set_aside_alone(tmp_path: Path, column: str, value: str) -> None:
    path = tmp_path / "store.sqlite3"
    with Store(path) as store:
        store.put(PRINT, {"good": {"ms": 1}, "bad": {"ms": 1}})
    _damage(path, column, value)
    listener = Listener()
    with Store(path, progress=listener) as store:
        assert store.get(PRINT, "bad") is None
        assert store.find(PRINT, "") == {"good": {"ms": 1}}
        assert "1 damaged row" in listener.said[0]
        assert store.check() == Checked(1, 0, 1, ())
        store.put(PRINT, {"bad": {"ms": 3}})
        assert store.get(PRINT, "bad") == {"ms": 3}
    assert len(listener.said) == 1


def test_rows_of_an_older_version_get_a_checksum(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "store.sqlite3"
    connection = sqlite3.connect(path)
    connection.executescript(store_module._STEPS[0] + "; PRAGMA user_version=1")
    connection.execute("INSERT INTO targets VALUES (1, ?)", (store_module._canonical(PRINT),))
    connection.execute("INSERT INTO measurements VALUES (1, 'a', '{\"ms\": 1}', 5.0)")
    connection.commit()
    connection.close()
    with Store(path) as store:
        assert store.get(PRINT, "a") == {"ms": 1}
        assert store.check() == Checked(1, 0, 0, ())


def test_what_can_be_read_of_a_damaged_file_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "store.sqlite3"
    with Store(path) as store:
        store.put(PRINT, {f"{i:04}": {"text": "x" * 200} for i in range(400)})
    content = bytearray(path.read_bytes())
    middle = len(content) // 2 // 4096 * 4096
    content[middle : middle + 4096] = bytes(4096)
    path.write_bytes(bytes(content))
    with Store(path, progress=Listener()) as store:
        kept = store.find(PRINT, "")
    assert 100 < len(kept) < 400
    assert all(row == {"text": "x" * 200} for row in kept.values())


def test_a_store_that_can_only_be_read_is_read(tmp_path: Path) -> None:
    path = tmp_path / "store.sqlite3"
    with Store(path) as store:
        store.put(PRINT, {"a": {"ms": 1}})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "access", lambda where, mode: False)
        with Store(path) as store:
            assert not store.writable
            assert store.get(PRINT, "a") == {"ms": 1}
            assert [holding.rows for holding in store.summary()] == [1]
            assert store.check().sound == 1
            for change in (lambda: store.put(PRINT, {"b": {}}), store.vacuum, store.require_writable):
                with pytest.raises(DataError, match="can only be read"):
                    change()


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for name, kind in (("pipe", "pipe"), (".", "folder"), ("/dev/null", "device")):
        with pytest.raises(DataError, match=f"is a {kind}, no regular file"):
            Store(tmp_path / name)
