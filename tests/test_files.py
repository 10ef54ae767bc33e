"""Temporary folders of killed processes are removed, those in use are not; databases that several processes open."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import pytest

from secateurs import files
from secateurs.files import Scratch, sweep
from secateurs.search.rows import FileRows

OLD = 1_000_000_000

HOLDER = """
import sys
from secateurs.files import Scratch
with Scratch("test") as name:
    print(name, flush=True)
    sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path))


def _held() -> tuple[subprocess.Popen[bytes], Path]:
    """A process and the folder that it holds."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment
    )
    assert process.stdout is not None
    folder = Path(process.stdout.readline().decode().strip())
    os.utime(folder / ".in-use", (OLD, OLD))
    return process, folder


def test_a_folder_is_gone_at_the_end(tmp_path: Path) -> None:
    with Scratch("variants") as name:
        assert Path(name).parent == tmp_path
        assert Path(name).name.startswith("secateurs-variants-")
        (Path(name) / "file").write_text("x")
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_process_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    process, folder = _held()
    (tmp_path / "secateurs-unmarked").mkdir()
    assert sweep() == []
    process.kill()
    process.communicate()
    assert folder.is_dir()
    assert sweep() == [folder]
    assert [found.name for found in tmp_path.iterdir()] == ["secateurs-unmarked"]


def test_a_folder_just_made_is_left_alone(tmp_path: Path) -> None:
    young = tmp_path / "secateurs-run-x"
    young.mkdir()
    (young / ".in-use").touch()
    assert sweep() == []
    os.utime(young / ".in-use", (OLD, OLD))
    assert sweep() == [young]


def test_folders_of_others_and_links_are_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = tmp_path / "elsewhere"
    mine.mkdir()
    (mine / ".in-use").touch()
    os.utime(mine / ".in-use", (OLD, OLD))
    (tmp_path / "secateurs-link").symlink_to(mine)
    assert sweep() == []
    (tmp_path / "secateurs-link").unlink()
    mine.rename(tmp_path / "secateurs-theirs")
    with monkeypatch.context() as patch:
        patch.setattr(os, "getuid", lambda: -1)
        assert sweep() == []
    assert sweep() == [tmp_path / "secateurs-theirs"]


def test_the_first_folder_of_a_process_sweeps(tmp_path: Path) -> None:
    stale = tmp_path / "secateurs-run-x"
    stale.mkdir()
    (stale / ".in-use").touch()
    os.utime(stale / ".in-use", (OLD, OLD))
    files.sweep_once.cache_clear()
    with Scratch("compare"):
        assert not stale.exists()


def test_a_database_that_another_process_holds_for_a_moment_is_opened(tmp_path: Path) -> None:
    """Which happens when several processes open a new file at the same time: SQLite itself does not wait then."""
    path = tmp_path / "rows.sqlite3"
    other = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    other.execute("BEGIN EXCLUSIVE")
    release = threading.Timer(0.2, other.close)
    release.start()
    rows = FileRows(path)
    rows.put("a", {"accuracy": 0.5})
    release.join()
    assert rows.get("a") == {"accuracy": 0.5}


def test_a_database_that_stays_locked_is_told(tmp_path: Path) -> None:
    path = tmp_path / "rows.sqlite3"
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        with contextlib.closing(sqlite3.connect(path)) as ours, pytest.raises(sqlite3.OperationalError, match="locked"):
            files.write_ahead(ours, wait_s=0.05)
