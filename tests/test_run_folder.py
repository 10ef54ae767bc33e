"""Run folders: refused when taken, resumed only by the same run, and never misled by a torn line."""

from __future__ import annotations

import multiprocessing
import os
from pathlib import Path

import pytest

from secateurs.errors import DataError, PlanError
from secateurs.run_folder import RunFolder
from secateurs.search.rows import FileRows

JOB = {"model": "cifar-resnet20", "latency": "50%", "seed": 0, "input": [1, 2]}


def test_events_survive_and_a_torn_line_counts_as_not_done(tmp_path: Path) -> None:
    with RunFolder.create(tmp_path / "run", JOB) as run:
        run.record("trace", {"seconds": 1.5})
        run.record("plan", {"rounds": 2})
    with open(tmp_path / "run" / "events.jsonl", "a") as file:
        file.write('{"time": 1, "event": "finetune", "data": {"ac')
    with RunFolder.resume(tmp_path / "run", JOB) as run:
        assert run.done("trace") == {"seconds": 1.5}
        assert run.done("finetune") is None
        run.record("finetune", {"accuracy": 0.9})
    again = RunFolder.resume(tmp_path / "run")
    assert again.done("finetune") == {"accuracy": 0.9}
    assert again.done("plan") == {"rounds": 2}
    assert again.job == JOB


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
            run.write(name, "{}")
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


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_a_clear_message(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path / "run", JOB)
    (tmp_path / "run" / "events.jsonl").symlink_to("/dev/full")
    with pytest.raises(DataError, match=r"No space left.*start again"):
        run.record("trace", {})


def test_written_files_leave_no_draft(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path / "run", JOB)
    run.write("plan.json", "{}")
    run.write("plan.json", "{1}")
    assert (tmp_path / "run" / "plan.json").read_text() == "{1}"
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["job.json", "plan.json"]
    run.remove("plan.json")
    run.remove("never-there")
    assert not (tmp_path / "run" / "plan.json").exists()
