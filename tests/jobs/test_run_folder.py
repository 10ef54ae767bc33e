"""Run folders: refused when taken, resumed only by the same run, and never misled by a torn line."""

from __future__ import annotations

import ast
import json
import multiprocessing
import os
import re
import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

import secateurs
from secateurs import files
from secateurs.errors import DataError, PlanError
from secateurs.jobs.run_folder import RunFiles, RunFolder
from secateurs.jobs.settings import Settings
from secateurs.jobs.stages import Job
from secateurs.plan import Measurement
from secateurs.report.record import Point
from secateurs.search.rows import FileRows

Figures = dict[str, float]
POINT = Point(kind="final", predicted_ms=1.0, measured_ms=2.5)


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What a stage may find: every kind of value that the real ones have."""

    words: str
    figure: float | None = field(default_factory=lambda: None)
    pairs: tuple[tuple[int, float], ...] = ()
    point: Point = POINT
    rare: Measurement | None = None
    names: dict[str, Any] = field(default_factory=dict)


JOB = {"model": "cifar-resnet20", "latency": "50%", "seed": 0, "input": [1, 2]}


def test_events_survive_and_a_torn_line_counts_as_not_done(tmp_path: Path) -> None:
    with RunFolder.create(tmp_path / "run", JOB) as run:
        run.record("trace", Seen(words="a"), Seen)
        run.record("plan", {"rounds": 2.0}, Figures)
    with open(tmp_path / "run" / "events.jsonl", "a") as file:
        file.write('{"time": 1, "event": "finetune", "data": {"ac')
    with RunFolder.resume(tmp_path / "run", JOB) as run:
        assert run.done("trace", Seen) == Seen(words="a")
        assert run.done("finetune", Figures) is None
        run.record("finetune", {"accuracy": 0.9}, Figures)
    again = RunFolder.resume(tmp_path / "run")
    assert again.done("finetune", Figures) == {"accuracy": 0.9}
    assert again.done("plan", Figures) == {"rounds": 2.0}
    assert again.job == JOB


def test_a_value_comes_back_as_it_was(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path / "run", JOB)
    values = [
        Seen(words="é", figure=float("inf"), pairs=((1, 2.5),)),
        Seen(words="p", point=POINT.model_copy(update={"kind": "held-out"})),
        Seen(words="", rare=Measurement(1.0, 0.1, 3, memory_bytes=5), names={"a": 1, "b": [None, {"c": True}]}),
    ]
    for number, value in enumerate(values):
        assert run.record(str(number), value, Seen) == value
    again = RunFolder.resume(tmp_path / "run")
    assert [again.done(str(number), Seen) for number in range(len(values))] == values
    lines = (tmp_path / "run" / "events.jsonl").read_text().splitlines()
    first, _, third = (json.loads(line)["data"] for line in lines)
    assert list(first) == ["words", "figure", "pairs", "point", "names"], "what is seen now and then is left out"
    assert third["rare"]["memory_bytes"] == 5
    assert third["figure"] is None


def test_a_stage_is_done_once_and_its_time_adds_up(tmp_path: Path) -> None:
    done = []

    def work() -> Seen:
        done.append(1)
        with run.timed("search"):
            time.sleep(0.01)
        return Seen(words="found")

    run = RunFolder.create(tmp_path / "run", JOB)
    assert run.stage("plan", Seen, work) == run.stage("plan", Seen, work) == Seen(words="found")
    before = run.seconds
    run = RunFolder.resume(tmp_path / "run")
    assert run.stage("plan", Seen, work) == Seen(words="found")
    assert done == [1]
    assert run.seconds == before
    with pytest.raises(KeyError), run.timed("search"):
        raise KeyError
    run.stage("repair", Seen, work)
    assert run.seconds["search"] >= 2 * 0.01
    assert run.seconds["total"] >= before["total"] > 0


@pytest.mark.parametrize(
    ("data", "told"),
    [
        ('{"words": 3}', "event 'plan' at words"),
        ('{"words": "a", "figure": "1.0"}', "event 'plan' at figure"),
        ('{"words": "a", "pairs": [[1.5, 2.5]]}', "event 'plan' at pairs.0"),
        ('{"figure": 1.0}', "event 'plan' at words"),
        ('["words"]', "event 'plan' at"),
    ],
)
def test_an_event_of_other_types_is_told(tmp_path: Path, data: str, told: str) -> None:
    RunFolder.create(tmp_path / "run", JOB)
    (tmp_path / "run" / "events.jsonl").write_text(f'{{"time": 1, "event": "plan", "data": {data}}}\n')
    with pytest.raises(DataError, match=re.escape(told)) as caught:
        RunFolder.resume(tmp_path / "run").done("plan", Seen)
    assert f"secateurs prune --resume -o {tmp_path / 'run'}" in str(caught.value)


def test_an_event_of_another_version_is_read(tmp_path: Path) -> None:
    """An older one lacks what a stage did not find then, a newer one has more."""
    RunFolder.create(tmp_path / "run", JOB)
    (tmp_path / "run" / "events.jsonl").write_text('{"event": "plan", "data": {"words": "a", "later": [1]}}\n')
    assert RunFolder.resume(tmp_path / "run").done("plan", Seen) == Seen(words="a")


def test_a_taken_folder_is_refused(tmp_path: Path) -> None:
    RunFolder.create(tmp_path / "run", JOB)
    with pytest.raises(DataError, match=r"has not finished.*--resume"):
        RunFolder.create(tmp_path / "run", JOB)
    (tmp_path / "run" / "result.json").write_text("{}")
    with pytest.raises(DataError, match="a finished run"):
        RunFolder.create(tmp_path / "run", JOB)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("x")
    with pytest.raises(DataError, match=r"thesis\.tex"):
        RunFolder.create(tmp_path / "other", JOB)
    (tmp_path / "file").write_text("x")
    with pytest.raises(DataError, match="cannot be used"):
        RunFolder.create(tmp_path / "file", JOB)


def test_a_run_that_fails_before_its_plan_leaves_the_folder_free(tmp_path: Path) -> None:
    def fail(name: str, folder: str = "run") -> None:
        with RunFolder.create(tmp_path / folder, JOB) as run:
            run.write(run.path / name, "{}")
            raise PlanError("out of reach")

    with pytest.raises(PlanError):
        fail("dense.onnx")
    assert not (tmp_path / "run").exists()
    with pytest.raises(PlanError):
        fail("plan.json")
    assert (tmp_path / "run" / "job.json").exists()
    for number, work in enumerate(("checkpoints", "carrier.safetensors", "front.json")):
        with pytest.raises(PlanError):
            fail(work, f"run{number}")
        assert RunFolder.resume(tmp_path / f"run{number}").job == JOB, work

    def judge(count: int) -> None:
        with RunFolder.create(tmp_path / f"judged{count}", JOB) as run:
            rows = FileRows(run.path / "evaluations.sqlite3")
            for number in range(count):
                rows.put(str(number), {"accuracy": 0.5})
            raise PlanError("the machine is disturbed")

    for count in (0, 2):
        with pytest.raises(PlanError):
            judge(count)
        assert (tmp_path / f"judged{count}").exists() == bool(count)
    with pytest.raises(KeyboardInterrupt), RunFolder.create(tmp_path / "other", JOB):
        raise KeyboardInterrupt
    assert RunFolder.resume(tmp_path / "other").job == JOB


def test_resume_refuses_other_settings_and_empty_folders(tmp_path: Path) -> None:
    RunFolder.create(tmp_path / "run", JOB)
    with pytest.raises(DataError, match=r"latency '50%', now it is '60%'"):
        RunFolder.resume(tmp_path / "run", {**JOB, "latency": "60%"})
    with pytest.raises(DataError, match="no run to resume"):
        RunFolder.resume(tmp_path / "nothing")
    (tmp_path / "run" / "job.json").write_text("{")
    with pytest.raises(DataError, match="no run to resume"):
        RunFolder.resume(tmp_path / "run")


def _try_to_enter(path: str, answers: multiprocessing.Queue[str]) -> None:
    try:
        with RunFolder.resume(path):
            answers.put("entered")
    except DataError as error:
        answers.put(str(error))


@pytest.mark.skipif(os.name == "nt", reason="folders are not locked on Windows")
def test_a_second_process_is_kept_out(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    answers: multiprocessing.Queue[str] = context.Queue()
    with RunFolder.create(tmp_path / "run", JOB):
        process = context.Process(target=_try_to_enter, args=(str(tmp_path / "run"), answers))
        process.start()
        assert "Another process is working" in answers.get(timeout=60)
        process.join()
    assert not (tmp_path / "run" / ".lock").exists()


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write everywhere")
def test_no_write_permission_is_a_clear_message(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(DataError, match="cannot be used"):
        RunFolder.create(tmp_path / "run", JOB)


def test_a_full_disk_is_a_clear_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = RunFolder.create(tmp_path / "run", JOB)

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DataError, match=r"No space left.*start again"):
        run.record("trace", {}, Figures)


def test_a_link_in_place_of_a_file_of_the_run_is_not_followed(tmp_path: Path) -> None:
    for name in (".lock", "events.jsonl"):
        run = RunFolder.create(tmp_path / f"run{name}", JOB)
        (tmp_path / "mine").write_text("of the user")
        (run.path / name).symlink_to(tmp_path / "mine")

        def work(run: RunFolder = run) -> None:
            with run:
                run.record("trace", {}, Figures)

        with pytest.raises(DataError, match="annot"):
            work()
        assert (tmp_path / "mine").read_text() == "of the user"
        assert (run.path / name).is_symlink()
    (tmp_path / "planted").mkdir()
    (tmp_path / "planted" / ".lock").write_text("of the user")
    with pytest.raises(DataError, match=r"not empty \(\.lock\)"):
        RunFolder.create(tmp_path / "planted", JOB)


def test_only_what_the_run_made_is_removed(tmp_path: Path) -> None:
    def fail(error: BaseException, rows: bool) -> None:
        with RunFolder.create(tmp_path / "run", JOB) as run:
            run.write(run.files.dense("onnx"), "{}")
            (run.path / "thesis.tex").write_text("mine")
            (run.path / "dense.notes").write_text("mine")
            (run.path / "mine").mkdir()
            (run.path / "mine" / "plan.json").write_text("mine")
            (run.path / "link").symlink_to(tmp_path)
            if rows:
                FileRows(run.files.values).put("a", {"value": 1.0})
            raise error

    mine = {"thesis.tex", "dense.notes", "mine", "link"}
    with pytest.raises(PlanError):
        fail(PlanError("disk full"), rows=False)
    assert {path.name for path in (tmp_path / "run").iterdir()} == mine
    assert (tmp_path / "run" / "mine" / "plan.json").read_text() == "mine"
    shutil.rmtree(tmp_path / "run")
    with pytest.raises(PlanError):
        fail(PlanError("disk full"), rows=True)
    assert {"job.json", "values.sqlite3", "dense.onnx", *mine} <= {path.name for path in (tmp_path / "run").iterdir()}
    shutil.rmtree(tmp_path / "run")
    stopped = PlanError("the exporter failed")
    stopped.__context__ = KeyboardInterrupt()
    with pytest.raises(PlanError):
        fail(stopped, rows=False)
    assert RunFolder.resume(tmp_path / "run").job == JOB


def test_a_folder_of_the_run_keeps_what_is_not_its_own(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path / "run", JOB)
    (run.files.checkpoints / "dense").mkdir(parents=True)
    for name in ("checkpoint.safetensors", "dense/checkpoint.safetensors", "values.sqlite3", "notes.md"):
        (run.files.checkpoints / name).touch()
    (run.files.checkpoints / "away").symlink_to(tmp_path)
    run.remove(run.files.checkpoints)
    assert {path.name for path in run.files.checkpoints.iterdir()} == {"values.sqlite3", "notes.md", "away"}
    assert run.files.job.exists()


def test_files_are_known_by_their_digests(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path / "run", JOB)
    assert run.sound(run.files.plan) is False
    run.write(run.files.plan, "{}")
    (run.path / "dense.onnx").write_bytes(b"dense")
    run.know(run.files.dense("onnx"))
    held = json.loads(run.files.job.read_text())["digests"]
    assert set(held) == {"plan.json", "dense.onnx"}
    again = RunFolder.resume(run.path)
    assert again.job == JOB
    again.require_sound(again.files.plan, again.files.dense("onnx"))
    assert again.made(again.files.carrier) is False
    for content in (None, b"another"):
        (run.path / "dense.onnx").unlink(missing_ok=True)
        if content is not None:
            (run.path / "dense.onnx").write_bytes(content)
        assert not again.sound(again.files.dense("onnx"))
        with pytest.raises(DataError, match=r"dense\.onnx is missing, or is not the file"):
            again.require_sound(again.files.dense("onnx"))


def test_what_an_older_version_wrote_is_the_run_s_own_however_often_it_is_resumed(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path / "run", JOB)
    run.files.carrier.write_bytes(b"trained before the cut")
    (run.path / "notes.md").touch()
    held = json.loads(run.files.job.read_text())
    del held["digests"]  # which that version kept none of
    run.files.job.write_text(json.dumps(held))
    with RunFolder.resume(run.path) as older:
        assert older.made(older.files.carrier)
        older.write(older.files.repaired, b"cut and repaired")
    later = RunFolder.resume(run.path)
    assert later.made(later.files.carrier)
    assert set(json.loads(run.files.job.read_text())["digests"]) == {"carrier.safetensors", "repaired.safetensors"}
    later.files.carrier.write_bytes(b"of somebody else")
    assert not later.sound(later.files.carrier)


def test_what_somebody_puts_into_a_new_run_is_not_its_own(tmp_path: Path) -> None:
    RunFolder.create(tmp_path / "run", JOB)
    run = RunFolder.resume(tmp_path / "run")
    run.files.carrier.touch()
    assert not run.made(run.files.carrier)
    assert not RunFolder.resume(tmp_path / "run").made(run.files.carrier)


@pytest.mark.parametrize(
    "text",
    ["[" * 9000, "null", "[]", "1e999", '{"schema": 3}', "\ud800", "", "9" * 9000, "NaN"],
)
def test_a_job_of_any_json_is_a_message(tmp_path: Path, text: str) -> None:
    run = RunFolder.create(tmp_path / "run", JOB)
    run.files.job.write_text(text, errors="surrogatepass")
    with pytest.raises(DataError, match=r"no run to resume|another version"):
        RunFolder.resume(run.path)


@pytest.mark.parametrize(
    ("name", "value"),
    [("digests", []), ("digests", {"plan.json": 3}), ("options", "x"), ("options", {"data": {}}), ("command", 3),
     ("source", 3), ("known", "x")],
)  # fmt: skip
def test_types_in_a_job_are_checked(tmp_path: Path, name: str, value: object) -> None:
    run = RunFolder.create(tmp_path / "run", JOB)
    run.files.job.write_text(json.dumps({"schema": "secateurs.job/1", **JOB, name: value}))
    with pytest.raises(DataError, match=f"is damaged: {name}"):
        RunFolder.resume(run.path)


def test_a_resumed_run_may_correct_what_nothing_was_made_with(tmp_path: Path) -> None:
    job = {**JOB, "lr": 5.0, "precision": "fp32"}
    RunFolder.create(tmp_path / "run", job)
    with RunFolder.resume(tmp_path / "run", {**job, "lr": 0.01}) as run:
        assert run.job["lr"] == 0.01
        run.files.checkpoints.mkdir()
    with pytest.raises(DataError, match=r"lr 0\.01, now it is 0\.02"):
        RunFolder.resume(tmp_path / "run", {**job, "lr": 0.02})


def test_written_files_leave_no_draft(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path / "run", JOB)
    run.write(run.files.plan, "{}")
    run.write(run.files.plan, "{1}")
    assert (tmp_path / "run" / "plan.json").read_text() == "{1}"
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["job.json", "plan.json"]
    run.remove(run.files.plan)
    run.remove(run.files.front)
    assert not (tmp_path / "run" / "plan.json").exists()


def names_of_run_files() -> set[str]:
    """Every name that RunFiles gives, of files and of folders."""
    here = Path("run")
    files = RunFiles(here)
    paths = [path for path in vars(files).values() if path != here]
    paths += [name("*") for name in (files.dense, files.deployed, files.candidate)]
    paths += [files.point(3), files.picked("knee")]
    return {part for path in paths for part in path.relative_to(here).parts} - {"3", "knee"}


def named_in(source: str, names: set[str]) -> set[str]:
    """Names of run files that code spells: as a text with an ending or a path of it, or joined to a path."""
    tree, found = ast.parse(source), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div):
            text, known = _text(node.right), names
        elif isinstance(node, (ast.Constant, ast.JoinedStr)):
            text, known = _text(node), {name for name in names if "." in name}
        else:
            continue
        parts = text.split("/")
        found |= {name for name in known if name in (parts[0], parts[-1])}
        found |= {name for name in names if len(parts) > 1 and name == parts[0]}
    return found


def _text(node: ast.AST) -> str:
    """A text in the source; what is put into it is an asterisk."""
    if isinstance(node, ast.JoinedStr):
        return "".join(map(_text, node.values))
    if isinstance(node, ast.FormattedValue):
        return "*"
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""


STATED_ELSEWHERE = {
    ("search/hamp/picked.py", "front.json"): "strategy front reads it in the folder that is its own",
    ("latency/store.py", ".lock"): "ending of a file beside the store of measurements",
    ("elements/native.py", ".lock"): "a file in the folder of compiled kernels",
}


def test_nothing_else_names_a_file_of_a_run() -> None:
    root, names = Path(secateurs.__file__).parent, names_of_run_files()
    assert {"job.json", "plan.json", "result.json", "evaluations.sqlite3", "checkpoints", "search", "points"} <= names
    found = {
        (path.relative_to(root).as_posix(), name)
        for path in root.rglob("*.py")
        if path != Path(files.__file__)
        for name in named_in(path.read_text(encoding="utf-8"), names)
    }
    assert found == set(STATED_ELSEWHERE)


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ('open("plan.json")', "plan.json"),
        ('CARRIER = "carrier.safetensors"', "carrier.safetensors"),
        ('path = folder / "checkpoints"', "checkpoints"),
        ('path = folder / f"search/{name}"', "search"),
        ('where = f"points/{number}"', "points"),
        ('where = f"{folder}/events.jsonl"', "events.jsonl"),
        ('files = folder.glob("model.*")', "model.*"),
        ('where = folder / f"dense.{artifact}"', "dense.*"),
        ('help = "The plan.json of a run"', None),
        ('progress.task("search")', None),
        ('"""search/ and more."""', "search"),
    ],
)
def test_a_name_of_a_run_file_is_found(source: str, name: str | None) -> None:
    assert named_in(source, names_of_run_files()) == ({name} if name else set())


def test_folders_of_points_and_picks(tmp_path: Path) -> None:
    files = RunFiles(tmp_path)
    assert files.point(3) == tmp_path / "points" / "3"
    assert files.picked("latency=3ms") == tmp_path / "picked" / "latency=3ms"
    assert files.picked("a/b", 7) == tmp_path / "picked" / "a_b, epochs=7"
    assert files.models() == []
    for name in ("model.onnx", "model.safetensors", "dense.onnx"):
        (tmp_path / name).touch()
    assert [path.name for path in files.models()] == ["model.onnx", "model.safetensors"]


def test_what_is_damaged_between_stages_is_made_again(tmp_path: Path, fake_target: str) -> None:
    names = ("dense", "plan", "repair", "finetune", "deploy")

    def begun(where: str) -> RunFolder:
        run = RunFolder.create(tmp_path / where, JOB)
        for name in names:
            run.record(name, {}, Figures)
        files = run.files
        between = (files.dense("onnx"), files.plan, files.carrier, files.repaired)
        for path in (*between, files.weights, files.deployed("onnx"), files.path / "model.bin"):
            run.write(path, path.name)
        return RunFolder.resume(run.path)

    def left(run: RunFolder) -> set[str]:
        Job(None, None, Settings(latency="60%", target=fake_target), run, None)._redo_what_is_damaged()  # type: ignore[arg-type]
        return {name for name in names if run.has(name)}

    assert left(begun("whole")) == set(names)
    for name, kept in (
        ("dense.onnx", {"plan", "repair", "finetune", "deploy"}),
        ("plan.json", {"dense"}),
        ("carrier.safetensors", {"dense"}),
        ("repaired.safetensors", {"dense", "plan"}),
        ("model.safetensors", {"dense", "plan", "repair", "finetune"}),
        ("model.onnx", {"dense", "plan", "repair", "finetune"}),
        ("model.bin", {"dense", "plan", "repair", "finetune"}),
    ):
        for content in (None, "foreign"):
            run = begun(f"{name}{content}")
            (run.path / name).unlink() if content is None else (run.path / name).write_text(content)
            assert left(run) == kept, (name, content)
            assert not (run.path / name).exists()
