"""The front job: which points are carried on and where to, what becomes of their figures, and what is searched anew.

What the search finds and how a pick ends is tested as a user would do it, in tests/cli/test_front.py.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import training_job
from test_record import record

from secateurs.errors import DataError, PlanError
from secateurs.jobs import front as module
from secateurs.jobs.front import FrontJob
from secateurs.jobs.front_settings import FrontSettings, Pick
from secateurs.jobs.run_folder import RunFolder
from secateurs.jobs.settings import Settings
from secateurs.jobs.stages import Job, Result
from secateurs.judging.crew import Crew
from secateurs.report.front_record import Front, FrontPoint, Tuned
from secateurs.search.legal import Legal
from secateurs.search.rows import FileRows
from secateurs.testing.latency import network

LOADED, DATA = training_job.network(), training_job.images()


def front(count: int = 8) -> Front:
    """Point 0 is the dense network; the others are cheaper and worse by a little each."""
    points = tuple(
        FrontPoint(
            number=number,
            error=0.1 + 0.4 * (number / count) ** 2,
            costs={"latency": 2.0 * (1 - number / (count + 1)), "macs": 1e6 * (1 - number / (count + 1))},
            widths={"a:out": 16 - number, "b:out": 8},
            removed=("block",) if number > 5 else (),
        )
        for number in range(count)
    )
    return Front(
        model="tiny", data="images", target="fake, 1 thread", criterion="l2", seed=0, created="now",
        objectives=("error", "latency", "macs"), units={"latency": "ms", "macs": "macs"}, dense_error=0.1,
        dense_costs={"latency": 2.0, "macs": 1e6}, group_sizes={"a:out": 16, "b:out": 8}, points=points,
        evaluations=40, stopped="evaluations", images=64, resume="old command",
    )  # fmt: skip


def job(folder: Path, kind: type[FrontJob] = FrontJob, **changes: Any) -> FrontJob:
    settings = FrontSettings(**{"points": 0, "epochs": 1, **changes})
    made = RunFolder.resume(folder) if folder.exists() else RunFolder.create(folder, settings.to_dict())
    resume_with = f"secateurs front --resume -o {folder}"
    return kind(LOADED, DATA, settings, made, LOADED.example(), resume_with=resume_with)


class Carrying(FrontJob):
    """Notes what is carried where; the deployed network is as accurate as its number says."""

    def carry(self, front: Front, pick: Pick, path: Path) -> Result:
        CARRIED.append((pick, path))
        made = record()
        wrong = 0.2 if pick.number is None else ACCURACY.get(pick.number, 0.9 - 0.1 * pick.number)
        pruned = made.pruned.model_copy(update={"accuracy": wrong, "latency_ms": 4.0, "file_bytes": 77})
        return Result(None, None, made.model_copy(update={"pruned": pruned}), path)  # type: ignore[arg-type]


CARRIED: list[tuple[Pick, Path]] = []
ACCURACY: dict[int, float] = {}


@pytest.fixture(autouse=True)
def _nothing_carried() -> None:
    CARRIED.clear()
    ACCURACY.clear()


def written(made: FrontJob, found: Front) -> None:
    made.folder.files.front.write_text(found.to_json())


def test_a_front_that_is_there_is_not_searched_again(tmp_path: Path) -> None:
    made = job(tmp_path / "run")
    written(made, front())
    found = made.run()
    assert found.points == front().points
    assert found.resume == f"secateurs front --resume -o {tmp_path / 'run'}"  # the folder may have moved
    assert Front.load(made.folder.files.front) == found
    assert "<html" in made.folder.files.front_page.read_text()
    assert CARRIED == []


def test_spread_points_are_carried_on_once(tmp_path: Path) -> None:
    made = job(tmp_path / "run", Carrying, points=3)
    written(made, front())
    found = made.run()
    numbers = [pick.number for pick, _ in CARRIED]
    assert numbers == [point.number for point in front().spread(3)]
    assert [path for _, path in CARRIED] == [tmp_path / "run" / "points" / str(number) for number in numbers]
    assert [point.number for point in found.points if point.tuned is not None] == numbers
    again = job(tmp_path / "run", Carrying, points=3).run()
    assert len(CARRIED) == 3
    assert again.points == found.points


def test_a_kill_costs_the_point_that_was_being_carried(tmp_path: Path) -> None:
    class Killed(Carrying):
        def carry(self, front: Front, pick: Pick, path: Path) -> Result:
            if len(CARRIED) == 1:
                raise KeyboardInterrupt
            return super().carry(front, pick, path)

    made = job(tmp_path / "run", Killed, points=3)
    written(made, front())
    with pytest.raises(KeyboardInterrupt):
        made.run()
    assert sum(point.tuned is not None for point in Front.load(made.folder.files.front).points) == 1
    job(tmp_path / "run", Carrying, points=3).run()
    assert len({pick.number for pick, _ in CARRIED}) == len(CARRIED) == 3


def test_what_became_of_a_point_is_kept_beside_it(tmp_path: Path) -> None:
    made = job(tmp_path / "run", Carrying)
    ACCURACY[2] = 0.66
    where = tmp_path / "run" / "points" / "2"
    found = made._with_tuned(front(), front().point(2), made.carry(front(), Pick.of(2), where), where)
    tuned = found.point(2).tuned
    assert tuned is not None
    assert (tuned.folder, tuned.accuracy, tuned.file_bytes, tuned.kept) == ("points/2", 0.66, 77, "tuned")
    assert tuned.latency_ratio == pytest.approx(4.0 / record().dense.latency_ms)
    assert found.dense_accuracy == record().dense.accuracy
    assert all(point.tuned is None for point in found.points if point.number != 2)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("accuracies", "ranks"),
    [
        ({1: 0.9, 2: 0.8}, None),
        ({1: 0.9, 2: 0.8, 3: 0.7}, 1.0),
        ({1: 0.7, 2: 0.8, 3: 0.9}, -1.0),
        ({1: 0.5, 2: 0.5, 3: 0.5}, None),
    ],
)
def test_ranks_before_and_after_training_are_compared(
    tmp_path: Path, accuracies: dict[int, float], ranks: float | None
) -> None:
    """From three points on; equal accuracies have no order."""
    made, found = job(tmp_path / "run", Carrying), front()
    ACCURACY.update(accuracies)
    for number in accuracies:
        where = tmp_path / "run" / "points" / str(number)
        found = made._with_tuned(found, found.point(number), made.carry(found, Pick.of(number), where), where)
    assert found.rank_correlation == (None if ranks is None else pytest.approx(ranks))


def tuned_front() -> Front:
    found = front()
    done = Tuned(
        folder="points/3", accuracy=0.8, accuracy_recalibrated=0.7, latency_ms=1.0, latency_ratio=0.5, file_bytes=9
    )
    points = tuple(p.model_copy(update={"tuned": done}) if p.number == 3 else p for p in found.points)
    return found.model_copy(update={"points": points})


@pytest.mark.parametrize(
    ("wanted", "epochs", "number", "folder"),
    [
        ("point=2", 1, 2, "picked/point=2"),
        ("point=3", 1, 3, "points/3"),  # carried already
        ("point=3", 9, 3, "picked/point=3, epochs=9"),
        ("latency=60%", 1, None, "picked/latency=60%"),
        ("latency=60%", 9, None, "picked/latency=60%, epochs=9"),
    ],
)
def test_where_a_pick_is_carried_to(tmp_path: Path, wanted: str, epochs: int, number: int | None, folder: str) -> None:
    job(tmp_path / "run")
    made = job(tmp_path / "run", Carrying, epochs=epochs)
    made.pick(tuned_front(), wanted)
    [(pick, path)] = CARRIED
    assert (pick.number, path) == (number, tmp_path / "run" / folder)


def test_the_knee_is_a_point(tmp_path: Path) -> None:
    job(tmp_path / "run", Carrying).pick(front(), "knee")
    assert CARRIED[0][0].number == front().knee().number
    with pytest.raises(DataError, match="no point 99"):
        job(tmp_path / "run", Carrying).pick(front(), "point=99")
    with pytest.raises(PlanError, match="not understood"):
        job(tmp_path / "run", Carrying).pick(front(), "memory=3MB")


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[Job]:
    """Main jobs that are started."""
    found: list[Job] = []

    def instead(job: Job) -> Result:
        found.append(job)
        return Result(None, None, record(), job.folder.path)  # type: ignore[arg-type]

    monkeypatch.setattr(Job, "run", instead)
    return found


def test_a_point_is_carried_exactly_as_the_front_has_it(tmp_path: Path, started: list[Job]) -> None:
    made = job(tmp_path / "run", seed=3, threads=2)
    made.carry(front(), Pick.of(4), tmp_path / "run" / "points" / "4")
    [one] = started
    held = json.loads((one.folder.files.search / "front.json").read_text())
    assert held["picked"] == 4
    assert Front.load(one.folder.files.search / "front.json").points == front().points
    settings = one.settings
    assert (settings.strategy, settings.criterion, settings.seed, settings.threads) == ("front", "l2", 3, 2)
    assert settings.train_batch == 8, "by the number of images"
    assert Settings.from_dict(one.folder.job) == settings
    share = front().point(4).costs["latency"] / 2.0
    assert float(str(settings.latency).rstrip("%")) == pytest.approx(100 * share)
    assert one.command == f"secateurs front --resume -o {tmp_path / 'run'} --pick point=4"
    assert one.folder.job["data"] == DATA.name


def test_a_budget_is_carried_as_it_was_typed(tmp_path: Path, started: list[Job]) -> None:
    job(tmp_path / "run")
    made = job(tmp_path / "run", epochs=7)
    pick = Pick.parse("macs=300k", ("latency", "macs"))
    made.carry(front(), pick, tmp_path / "run" / "picked" / "x")
    [one] = started
    assert (one.settings.macs, one.settings.latency, one.settings.epochs) == ("300k", None, 7)
    assert json.loads((one.folder.files.search / "front.json").read_text())["picked"] is None
    assert one.command.endswith("--pick macs=300k --epochs 7")


def test_carrying_goes_on_where_it_was_interrupted(tmp_path: Path, started: list[Job]) -> None:
    made, where = job(tmp_path / "run"), tmp_path / "run" / "points" / "4"
    made.carry(front(), Pick.of(4), where)
    first = (where / "job.json").read_text()
    made.carry(front(), Pick.of(4), where)
    assert (where / "job.json").read_text() == first
    (where / "result.json").write_text("{}")
    (where / "search" / "front.json").unlink()
    made.carry(front(), Pick.of(4), where)
    assert not (where / "search" / "front.json").exists()  # a finished run searches nothing
    replace(made, settings=replace(made.settings, seed=5)).carry(front(), Pick.of(4), where)
    assert started[-1].settings == started[0].settings  # those that it was begun with
    with pytest.raises(DataError, match="holds a run with source"):
        replace(made, loaded=replace(LOADED, source={"model": "another"})).carry(front(), Pick.of(4), where)


def test_a_point_that_an_older_version_began_goes_on_as_it_was(tmp_path: Path, started: list[Job]) -> None:
    """Batch and epochs of fine-tuning had other defaults, and the dense network was not trained beside it."""
    made = job(tmp_path / "run", epochs=2, seed=5)
    where = made.folder.files.point(2)
    then = Settings(latency="50%", target="torch-cpu", strategy="front", criterion="l1", epochs=1, seed=5).to_dict()
    then |= {"train_batch": 128, "min_width": 1, "source": {}, "data": DATA.name}
    for name in ("allow_chance", "dense_epochs"):
        del then[name]
    where.parent.mkdir()
    RunFolder.create(where, then)
    made.carry(front(), Pick.of(2), where)
    settings = started[0].settings
    assert (settings.train_batch, settings.epochs, settings.min_width) == (128, 1, 1)


def test_the_dense_network_is_not_carried(tmp_path: Path, started: list[Job]) -> None:
    with pytest.raises(PlanError, match="Point 0 of the front is the dense network"):
        job(tmp_path / "run").carry(front(), Pick.of(0), tmp_path / "run" / "points" / "0")
    assert started == []


def evaluated(folder: Path) -> Path:
    folder.mkdir()
    rows = FileRows(folder / "evaluations.sqlite3")
    rows.put("a", {"accuracy": 0.5})
    rows.close()
    return folder


def test_evaluations_are_taken_from_fronts_that_are_still_there(tmp_path: Path) -> None:
    """Those that the job began with, and those of this sitting; each once."""
    first, second, gone = evaluated(tmp_path / "first"), evaluated(tmp_path / "second"), tmp_path / "gone"
    settings = FrontSettings(points=0)
    job_file = {**settings.to_dict(), "known": [str(gone), str(first)]}
    folder = RunFolder.create(tmp_path / "run", job_file)
    made = FrontJob(LOADED, DATA, settings, folder, LOADED.example(), known=(second, first))
    assert made._sources() == [first, second]
    assert job(tmp_path / "other")._sources() == []


def test_the_crew_is_asked_before_anything_is_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def refuse(crew: Crew, target: str) -> None:
        asked.append(target)
        raise DataError("This node measures nothing. Start it on another.")

    monkeypatch.setattr(Crew, "check", refuse)
    made = job(tmp_path / "run", target="torch-cpu")
    with pytest.raises(DataError, match="measures nothing"):
        made.run()
    assert asked == ["torch-cpu"]
    assert not made.folder.files.front.exists()


def candidate(latency: float, accuracy: float, widths: list[int], removed: frozenset[int] = frozenset()) -> Any:
    predicted = {"latency": latency, "macs": 100 * latency}
    return SimpleNamespace(widths=np.array(widths), removed=removed, predicted=predicted, accuracy=accuracy)


def test_points_are_numbered_from_the_slowest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made, spec = job(tmp_path / "run", objectives=("latency", "macs")), network()
    spec = replace(spec, blocks=(replace(spec.blocks[0], groups=(2,)),))
    candidates = [
        candidate(1.0, 0.5, [9, 9, 9, 9], frozenset({0})),
        candidate(2.0, 0.9, [64, 64, 64, 64]),
        candidate(1.0, 0.6, [9, 9, 9, 8]),
    ]
    monkeypatch.setattr(
        FrontJob, "_measured", lambda self, planner, found: [10 * one.predicted["latency"] for one in found]
    )
    problem: Any = SimpleNamespace(spec=spec)
    planner: Any = SimpleNamespace(graph=None)
    points = made._points(planner, problem, SimpleNamespace(candidates=candidates))  # type: ignore[arg-type]
    assert [(point.number, point.costs["latency"], point.error) for point in points] == [
        (0, 2.0, pytest.approx(0.1)),
        (1, 1.0, pytest.approx(0.4)),
        (2, 1.0, pytest.approx(0.5)),
    ]
    assert [point.measured_ms for point in points] == [20.0, 10.0, 10.0]
    assert [point.measured_memory_bytes for point in points] == [None] * 3
    assert points[2].widths == {"c0:out": 9, "c1:out": 9, "c2:out": 0, "c3:out": 9}
    assert (points[1].removed, points[2].removed) == ((), (spec.blocks[0].name,))


def test_memory_is_measured_where_it_is_an_objective(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def measured(graph: Any, networks: Any, target: str, **settings: Any) -> list[int | None]:
        asked.append((target, settings["threads"], settings["batch"]))
        return [1000, 400][: len(networks)]

    monkeypatch.setattr(module, "measured_memory", measured)
    graph: Any = SimpleNamespace(spec=network())
    assert job(tmp_path / "without")._weighed(graph, Legal()) == ()
    made = job(tmp_path / "run", objectives=("macs", "memory"), threads=2, batch=3, target="torch-cpu")
    dense, least = made._weighed(graph, Legal(min_width=5))
    assert asked == [("torch-cpu", 2, 3)]
    assert (dense.widths.tolist(), dense.bytes) == ([64] * 4, 1000.0)
    assert (least.widths.tolist(), least.removed, least.bytes) == ([5] * 4, frozenset({0}), 400.0)
    monkeypatch.setattr(module, "measured_memory", lambda *given, **more: [None, None])
    assert made._weighed(graph, Legal()) == ()
