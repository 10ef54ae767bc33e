"""The package still does what the reference says, and a replay that differs anywhere is found.

The reference is renewed by: rm -r tests/golden/replay; scripts/replay write tests/golden/replay --reduced
"""

from __future__ import annotations

import importlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parent.parent
REFERENCE = ROOT / "tests" / "golden" / "replay"


@pytest.fixture
def difference(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    return importlib.import_module("replaying.difference")


@pytest.fixture
def normal(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    return importlib.import_module("replaying.normal")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_package_does_what_the_reference_says(difference: ModuleType, tmp_path: Path) -> None:
    paths = [str(ROOT / "src"), str(ROOT / "scripts"), *filter(None, [os.environ.get("PYTHONPATH")])]
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    environment = {**os.environ, **threads, "PYTHONPATH": os.pathsep.join(paths)}
    command = [sys.executable, "-m", "replaying", "write", str(tmp_path / "now"), "--reduced"]
    run = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-2000:]
    assert list(difference.differences(REFERENCE, tmp_path / "now")) == []


def _edit(name: str, change: Callable[[str], str]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        path = folder / name
        before = path.read_text(encoding="utf-8")
        after = change(before)
        assert after != before
        path.write_text(after, encoding="utf-8")

    return edit


def _json(change: Callable[[dict], None]) -> Callable[[str], str]:  # type: ignore[type-arg]
    def edit(text: str) -> str:
        value = json.loads(text)
        change(value)
        return json.dumps(value)

    return edit


def _other_unit(plans: dict) -> None:  # type: ignore[type-arg]
    units = plans["greedy-l1"]["groups"]["stem.0:out"]
    units.append(next(unit for unit in range(99) if unit not in units))


@pytest.mark.parametrize(
    ("edit", "told"),
    [
        (_edit("plans/residual.json", _json(_other_unit)), "plans/residual.json: /greedy-l1/groups/stem.0:out: "),
        (
            _edit("store.json", lambda text: text.replace("candidate/2", "candidate/3")),
            'store.json: /0: "candidate/2/b1',
        ),
        (_edit("jobs/measured.json", lambda text: text.replace("answers/", "answer/")), "jobs/measured.json: /0: "),
        (
            _edit("jobs/macs/events.json", lambda text: text.replace('"repair"', '"mend"')),
            'event: "repair", then "mend"',
        ),
        (
            _edit("jobs/macs/result.json", lambda text: text.replace('"speedup"', '"gain"')),
            "/speedup is only in the first",
        ),
        (
            _edit("jobs/macs/job.json", lambda text: text.replace('"macs": "50%"', '"macs": "51%"')),
            '/macs: "50%", then "51%"',
        ),
        (_edit("help/prune.txt", lambda text: text.replace("--latency", "--latenz")), "help/prune.txt: line "),
        (_edit("signatures.json", lambda text: text.replace('"graph", "costs=None"', '"graph", "costs"')), "/plan/1: "),
        (_edit("ls.json", lambda text: text.replace('"knapsack"', '"rucksack"')), 'name: "knapsack", then "rucksack"'),
        (lambda folder: (folder / "help" / "ls.txt").unlink(), "help/ls.txt: only in "),
        (lambda folder: (folder / "more.txt").write_text("x"), "more.txt: only in "),
    ],
)
def test_one_change_is_one_difference(
    difference: ModuleType,
    edit: Callable[[Path], None],
    told: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    shutil.copytree(REFERENCE, tmp_path / "other")
    assert difference.compare(REFERENCE, tmp_path / "other") == 0
    assert capsys.readouterr().out.startswith("0 differences in ")
    edit(tmp_path / "other")
    assert difference.compare(REFERENCE, tmp_path / "other") == 1
    first, last = capsys.readouterr().out.splitlines()
    assert told in first
    assert last.startswith("1 differences in ")


def test_order_and_kind_of_values_count(difference: ModuleType) -> None:
    for one, two, told in (
        ('{"a": 1, "b": 2}', '{"b": 2, "a": 1}', "another order"),
        ("[1, 2]", "[1, 2, 3]", "2 items, then 3"),
        ("[1]", "[1.0]", "1, then 1.0"),
        ("[true]", "[1]", "true, then 1"),
        ("[null]", "[[]]", "null, then []"),
        ("one\n", "one", "line ends"),
    ):
        assert told in difference._where(one, two)


def test_what_another_replay_starts_from_is_not_compared(difference: ModuleType, tmp_path: Path) -> None:
    shutil.copytree(REFERENCE, tmp_path / "other")
    (tmp_path / "other" / difference.KEPT).mkdir()
    (tmp_path / "other" / difference.KEPT / "store.sqlite3").write_bytes(b"\x00")
    assert list(difference.differences(REFERENCE, tmp_path / "other")) == []


def test_a_folder_without_a_replay_is_refused(difference: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="no replay"):
        difference.compare(REFERENCE, tmp_path)


def test_only_times_versions_and_places_are_left_out(normal: ModuleType) -> None:
    found = {"seconds": {"trace": 1.5}, "versions": {"torch": "2"}, "created": "today", "accuracy": 0.123456, "n": [1]}
    kept = normal.masked(found)
    assert kept == {
        "seconds": {"trace": "~"},
        "versions": {"torch": "~"},
        "created": "~",
        "accuracy": 0.123456,
        "n": [1],
    }
    events = [
        {"time": 1.5, "event": "seconds", "data": {"total": 2.5}},
        {"time": 2.5, "event": "x", "data": {"n": 1.5}},
    ]
    assert normal.masked(events) == [
        {"time": "~", "event": "seconds", "data": {"total": "~"}},
        {"time": "~", "event": "x", "data": {"n": 1.5}},
    ]
    assert normal.robust(kept)["accuracy"] == "~"
    assert normal.robust({"units": [1, 2], "name": "blocks.0.1:out", "limit": 0.5}) == {
        "units": [1, 2],
        "name": "blocks.0.1:out",
        "limit": 0.5,
    }
    assert normal.robust("takes 3.25 ms of layer.1.0") == "takes ~ ms of layer.1.0"


def test_the_layout_of_a_file_counts(normal: ModuleType, tmp_path: Path) -> None:
    writer = normal.Writer(tmp_path, {"/some/where": "WORK"})
    writer.document("usual.json", '{\n "path": "/some/where/x"\n}\n')
    writer.document("other.json", '{"path": "/some/where/x"}')
    assert (tmp_path / "usual.json").read_text() == '{\n "path": "WORK/x"\n}\n'
    assert "another layout" in (tmp_path / "other.json").read_text()
