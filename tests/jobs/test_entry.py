"""The door to the main job: what its arguments become, where it works, what it leaves, and who else takes part."""

from __future__ import annotations

import copy
import inspect
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import training_job
from test_record import record

import secateurs as sc
from secateurs.errors import DataError, InfeasibleBudgetError, PlanError, TargetUnavailableError
from secateurs.jobs import entry
from secateurs.jobs.entry import Place, check_names, prune, run
from secateurs.jobs.settings import Settings
from secateurs.jobs.stages import Job, Result
from secateurs.jobs.training import Trainer
from secateurs.models import Loaded, Preprocessing, load
from secateurs.structure import apply, trace
from secateurs.testing.latency import FakeTarget

pytestmark = pytest.mark.usefixtures("few_samples")

LOADED, DATA = training_job.network(), training_job.images()


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """What ``prune`` asks ``run`` for; nothing is run."""
    found = SimpleNamespace()

    def noted(loaded: Loaded, data: Any, settings: Settings, place: Place, **more: Any) -> str:
        vars(found).update(loaded=loaded, data=data, settings=settings, place=place, **more)
        return "the result"

    monkeypatch.setattr(entry, "run", noted)
    return found


@pytest.fixture
def jobs(monkeypatch: pytest.MonkeyPatch) -> list[Job]:
    """Jobs that are started; each notes where it works and cuts its network without having looked at it."""
    found: list[Job] = []

    def instead(job: Job) -> Result:
        assert job.folder.path.is_dir()
        found.append(job)
        with torch.no_grad():
            next(job.loaded.module.parameters()).zero_()
        graph = trace(job.loaded.module, job.example)
        plan = graph.plan({group.name: tuple(range(group.units // 2)) for group in graph.groups})
        return Result(apply(job.loaded.module, plan, job.example), plan, record(), job.folder.path)

    monkeypatch.setattr(Job, "run", instead)
    return found


SETTINGS = Settings(latency="60%", train_batch=16, epochs=1)


def called(settings: Settings | None = None, **more: Any) -> Any:
    return prune(LOADED.module, LOADED.example(), data=DATA, settings=settings, **more)


def test_arguments_become_settings(asked: SimpleNamespace, tmp_path: Path) -> None:
    found = called(
        latency=0.6, memory="20MB", file_size=0.5, macs=None, target="torch-cpu", strategy="uniform", criterion="l1",
        epochs=3, threads=2, seed=4, allow_chance=True, output=str(tmp_path / "run"), resume=True,
    )  # fmt: skip
    assert found == "the result"
    assert asked.settings == Settings(
        latency="60.0%", memory="20MB", file_size="50.0%", target="torch-cpu", strategy="uniform", criterion="l1",
        epochs=3, threads=2, seed=4, allow_chance=True,
    )  # fmt: skip
    assert asked.place == Place(tmp_path / "run", resume=True)
    assert asked.data is DATA
    assert asked.loaded.module is LOADED.module


def test_a_bound_on_accuracy_becomes_a_setting(asked: SimpleNamespace) -> None:
    called(max_loss=1)
    assert asked.settings == Settings(max_loss=1)
    called(min_accuracy=0.88, macs="50%")
    assert asked.settings == Settings(min_accuracy="0.88", macs="50%")


def test_without_a_folder_none_is_named(asked: SimpleNamespace) -> None:
    called(latency="60%")
    assert asked.place == Place(None)
    assert asked.settings == Settings(latency="60%")


def test_a_wrapped_network_is_opened(asked: SimpleNamespace) -> None:
    prune(torch.nn.DataParallel(LOADED.module), LOADED.example(), data=DATA, latency="60%")
    assert asked.loaded.module is LOADED.module


def test_settings_come_alone(asked: SimpleNamespace) -> None:
    called(SETTINGS)
    assert asked.settings is SETTINGS
    beside: dict[str, object] = {
        "latency": "50%", "memory": 0.5, "file_size": "1MB", "macs": 0.5, "max_loss": 1.0, "min_accuracy": 0.9,
        "target": "openvino-cpu", "strategy": "lap", "criterion": "l1", "epochs": 3, "threads": 2, "seed": 1,
        "allow_chance": True, "precision_mix": "auto", "quantise_aware": True,
    }  # fmt: skip
    for name, value in beside.items():
        with pytest.raises(PlanError, match=f"settings= holds everything, so {name}= beside it"):
            called(SETTINGS, **{name: value})
    parameters = inspect.signature(prune).parameters
    first, last = (list(parameters).index(name) for name in ("latency", "settings"))
    assert set(beside) == set(list(parameters)[first:last]) - {"normalize"}


@pytest.mark.parametrize("share", [0.1 + 0.2, 1 / 3, 0.6, 1, 0.07])
def test_a_share_is_the_same_number_as_a_text(share: float) -> None:
    text = entry._text(share)
    assert text is not None
    assert float(text.removesuffix("%")) / 100 == pytest.approx(share, rel=1e-15)
    assert entry._text("3ms") == "3ms"
    assert entry._text(None) is None


def test_python_says_what_is_missing() -> None:
    network = load("digits-resnet?width=1", seed=3)
    with pytest.raises(PlanError, match="No budget"):
        prune(network.module, network.example(), data="digits")
    with pytest.raises(DataError, match="channels, height, width"):
        prune(network.module, torch.zeros(1, 5), data="digits", latency="50%")
    with pytest.raises(DataError, match="data= is a int"):
        prune(network.module, network.example(), data=3, latency="50%")  # type: ignore[arg-type]


def test_from_python_with_loaders_and_no_folder(fake_target: str) -> None:
    network = load("digits-resnet?width=0.25", seed=3).module
    generator = torch.Generator().manual_seed(0)
    images, labels = torch.randn(96, 3, 32, 32, generator=generator), torch.arange(96) % 10
    batches = [(images[start : start + 32], labels[start : start + 32]) for start in (0, 32, 64)]
    result = sc.prune(
        network,
        images[:1],
        data=(batches, batches),
        target=fake_target,
        latency=0.7,
        epochs=0,
        allow_chance=True,
        criterion="l1",
    )
    assert result.record.pruned_within_budget
    assert result.record.pruned.accuracy == result.record.pruned.accuracy_recalibrated
    assert any("No fine-tuning" in note for note in result.record.notes)
    assert not result.folder.exists()
    assert result.module(images[:2]).shape == (2, 10)
    assert json.loads(result.record.to_json())["speedup"] > 1


def test_the_network_stays_whatever_the_job_does(jobs: list[Job]) -> None:
    loaded = training_job.network()
    before = copy.deepcopy(loaded.module.state_dict())
    run(loaded, DATA, SETTINGS, Place())
    assert len(jobs) == 1
    assert all(torch.equal(tensor, before[name]) for name, tensor in loaded.module.state_dict().items())


def test_a_run_without_a_folder_leaves_none(jobs: list[Job]) -> None:
    run(LOADED, DATA, SETTINGS, Place())
    assert not jobs[0].folder.path.exists()


def test_the_folder_says_what_the_run_is(jobs: list[Job], tmp_path: Path) -> None:
    place = Place(tmp_path / "run", command="secateurs prune net", options={"model": "net.py:make"})
    run(replace(LOADED, source={"model": "net"}), DATA, SETTINGS, place)
    job = json.loads((tmp_path / "run" / "job.json").read_text())
    settled = SETTINGS.settled(len(DATA.train))
    assert {name: job[name] for name in settled.to_dict()} == json.loads(json.dumps(settled.to_dict()))
    assert (job["source"], job["data"]) == ({"model": "net"}, DATA.name)
    assert (job["options"], job["command"]) == ({"model": "net.py:make"}, "secateurs prune net")
    assert (jobs[0].command, jobs[0].settings) == ("secateurs prune net", settled)
    run(LOADED, DATA, SETTINGS, Place(tmp_path / "own"))
    assert json.loads((tmp_path / "own" / "job.json").read_text())["source"] == {
        "preprocessing": LOADED.preprocessing.to_dict()
    }


def test_resuming_takes_the_same_settings_only(jobs: list[Job], tmp_path: Path) -> None:
    run(LOADED, DATA, SETTINGS, Place(tmp_path / "run", command="first"))
    run(LOADED, DATA, SETTINGS, Place(tmp_path / "run", resume=True, command="second"))
    assert jobs[1].command == "first"
    with pytest.raises(DataError, match="seed 0, now it is 1"):
        run(LOADED, DATA, replace(SETTINGS, seed=1), Place(tmp_path / "run", resume=True))
    with pytest.raises(DataError, match="already holds"):
        run(LOADED, DATA, SETTINGS, Place(tmp_path / "run"))
    with pytest.raises(DataError, match="no run to resume"):
        run(LOADED, DATA, SETTINGS, Place(tmp_path / "other", resume=True))
    assert len(jobs) == 2


def test_a_job_that_fails_leaves_the_folder_free(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def instead(job: Job) -> Result:
        raise InfeasibleBudgetError("Not that fast. Raise the budget.")

    monkeypatch.setattr(Job, "run", instead)
    with pytest.raises(InfeasibleBudgetError):
        run(LOADED, DATA, SETTINGS, Place(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_names_are_looked_up_before_anything_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Away(FakeTarget):
        def available(self) -> str | None:
            return "the board is not plugged in"

    for wrong, said in (({"target": "abacus"}, "Unknown target"), ({"strategy": "luck"}, "Unknown strategy")):
        with pytest.raises(PlanError, match=said):
            run(LOADED, DATA, replace(SETTINGS, **wrong), Place(tmp_path / "run"))
    with pytest.raises(PlanError, match="Unknown criterion 'beauty'"):
        check_names(replace(SETTINGS, criterion="beauty"))
    with pytest.raises(PlanError, match="as by any other number"):
        check_names(replace(SETTINGS, elements="block"))
    monkeypatch.setattr("secateurs.latency.targets.opening.make_target", lambda text: Away(lambda content: {}))
    with pytest.raises(TargetUnavailableError, match="not plugged in"):
        check_names(SETTINGS)
    assert not (tmp_path / "run").exists()


def test_processes_share_a_batch_that_is_large_enough(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(entry.parallel, "size", lambda: 32)
    with pytest.raises(PlanError, match="32 processes cannot share a training batch of 16 images"):
        run(LOADED, DATA, SETTINGS, Place(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_a_helper_ends_with_the_result_of_the_first_process(
    jobs: list[Job], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    told: list[str] = []
    monkeypatch.setattr(Trainer, "dismiss", lambda trainer, text: told.append(text))
    first = run(LOADED, DATA, SETTINGS, Place(tmp_path / "run"))
    assert len(told) == 1
    monkeypatch.setattr(entry, "helps", lambda: True)
    monkeypatch.setattr(Trainer, "assist", lambda trainer: told[0])
    monkeypatch.setattr(entry.parallel, "same_everywhere", lambda module: None)
    helper = run(LOADED, DATA, SETTINGS, Place(tmp_path / "none"))
    assert len(jobs) == 1
    assert not (tmp_path / "none").exists()
    assert helper.plan == first.plan
    assert helper.record == first.record
    shapes = [tuple(parameter.shape) for parameter in helper.module.parameters()]
    assert shapes == [tuple(parameter.shape) for parameter in first.module.parameters()]
    assert not helper.module.training


RESUMED = Settings(latency="60%", target="torch-cpu")
BEFORE = {name: value for name, value in RESUMED.to_dict().items() if name not in ("allow_chance", "dense_epochs")}
"""Settings as an older version wrote them: with a batch and epochs of its own, and a least width of 1."""
BEFORE |= {"epochs": 1, "train_batch": 128, "min_width": 1}


@pytest.fixture
def begins_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The job that would run is what the door returns."""
    monkeypatch.setattr(entry, "_shared", lambda job: job)


def begun(path: Path, **held: Any) -> Path:
    path.mkdir()
    job = {"schema": "secateurs.job/1", **BEFORE, "data": training_job.images().name, **held}
    (path / "job.json").write_text(json.dumps(job))
    return path


def resumed(path: Path, settings: Settings = RESUMED, loaded: Loaded | None = None) -> Job:
    loaded = loaded or training_job.network()
    found: Any = run(loaded, training_job.images(), settings, Place(path, resume=True))
    assert isinstance(found, Job)
    return found


@pytest.mark.usefixtures("begins_nothing")
def test_a_run_that_an_older_version_began_from_python_goes_on(tmp_path: Path) -> None:
    """It did not say how pixels reach a network that is given as an object, and had other defaults."""
    job = resumed(begun(tmp_path / "run", source={}))
    assert (job.settings.epochs, job.settings.train_batch, job.settings.min_width) == (1, 128, 1)
    assert resumed(tmp_path / "run", replace(RESUMED, epochs=3)).settings.epochs == 3  # nothing was trained yet
    with pytest.raises(DataError, match="a run with macs None, now it is '50%'"):
        resumed(tmp_path / "run", replace(RESUMED, macs="50%"))


@pytest.mark.usefixtures("begins_nothing")
def test_one_that_it_began_from_a_file_goes_on(tmp_path: Path) -> None:
    """Pixels that nobody told it called pixel / 255."""
    source = {"model": "net.py:make", "weights": None, "preprocessing": Preprocessing().to_dict()}
    path = begun(tmp_path / "run", source=source)
    loaded = replace(training_job.network(), source={**source, "preprocessing": None})
    assert resumed(path, loaded=loaded).folder.job["source"]["preprocessing"] == source["preprocessing"]
    with pytest.raises(DataError, match="a run with source"):
        resumed(path, loaded=replace(loaded, source={**loaded.source, "model": "net.py:other"}))
    told = Preprocessing((0.5,), (0.5,)).to_dict()
    with pytest.raises(DataError, match="a run with source"):
        resumed(path, loaded=replace(loaded, source={**source, "preprocessing": told}))


@pytest.mark.usefixtures("begins_nothing")
def test_the_networks_own_pixels_are_part_of_a_run(tmp_path: Path) -> None:
    first = run(training_job.network(), training_job.images(), RESUMED, Place(tmp_path / "run"))
    assert isinstance(first, Job)
    assert resumed(tmp_path / "run").folder.job == first.folder.job
    other = replace(training_job.network(), preprocessing=Preprocessing((0.5,), (0.5,)))
    with pytest.raises(DataError, match="a run with source"):
        resumed(tmp_path / "run", loaded=other)
