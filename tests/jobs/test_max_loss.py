"""The fastest network within a loss, from settings to the report, on a target without a clock."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import training_job

import secateurs as sc
from secateurs.data import evaluate
from secateurs.jobs import comparison
from secateurs.jobs.comparison import RepairedAccuracies
from secateurs.jobs.entry import Place, run
from secateurs.jobs.settings import Settings
from secateurs.models import Loaded
from secateurs.report import Record

pytestmark = pytest.mark.usefixtures("few_samples")

DATA = training_job.images()


@pytest.fixture(scope="module")
def network() -> Loaded:
    """The tiny network after some steps of training: it has accuracy to lose."""
    loaded = training_job.network()
    optimizer = torch.optim.SGD(loaded.module.parameters(), lr=0.05, momentum=0.9)
    loaded.module.train()
    for _ in range(12):
        for inputs, labels in DATA.train.batches(32):
            optimizer.zero_grad()
            F.cross_entropy(loaded.module(inputs), labels).backward()
            optimizer.step()
    loaded.module.eval()
    return loaded


@pytest.fixture(scope="module")
def settings(fake_target: str) -> Settings:
    return Settings(max_loss=10.0, target=fake_target, criterion="l1", epochs=0, train_batch=16)


@pytest.fixture(scope="module")
def finished(network: Loaded, settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> sc.Result:
    return run(network, DATA, settings, Place(tmp_path_factory.mktemp("finished") / "run"))


def test_the_network_keeps_what_was_asked(finished: sc.Result, network: Loaded) -> None:
    record = finished.record
    assert record.validation is not None
    seen, dense = record.validation, evaluate(network.module, DATA.validation).top1
    assert (seen.samples, seen.dense, seen.least) == (len(DATA.validation), dense, pytest.approx(dense - 0.1))
    assert seen.repaired == seen.deployed == evaluate(finished.module, DATA.validation).top1
    assert seen.repaired >= seen.least
    assert record.pruned_within_budget
    assert (record.max_loss, record.min_accuracy, record.budgets, record.budget_ms) == (10.0, None, (), None)
    assert record.budget == "accuracy loss ≤ 10 points"
    assert record.latency_ratio < 1


def test_every_network_that_was_tried_is_told(finished: sc.Result) -> None:
    assert finished.record.validation is not None
    steps = finished.record.validation.steps
    (chosen,) = [one for one in steps if one.chosen]
    assert chosen.accuracy == finished.record.validation.repaired
    assert chosen.predicted_ratio == min(one.predicted_ratio for one in steps if one.holds)
    assert chosen.latency_ratio == pytest.approx(finished.record.latency_ratio, rel=1e-3)
    assert any(not one.holds for one in steps), "the bound is what stops the search"
    page = (finished.folder / "report.html").read_text()
    assert "Networks tried for the accuracy" in page
    assert "Bound held: accuracy loss ≤ 10 points" in page
    assert any("validation images, by which the network was chosen" in note for note in finished.record.notes)
    assert Record.load(finished.folder / "result.json") == finished.record


def test_a_killed_search_judges_nothing_twice_and_ends_alike(
    finished: sc.Result, network: Loaded, settings: Settings, run_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    judged: list[str] = []
    real = RepairedAccuracies._repaired

    def counted(accuracies: RepairedAccuracies, plan: sc.Plan) -> comparison.Validated:
        if len(judged) == 2 and not resumed:
            raise KeyboardInterrupt
        judged.append(plan.model_dump_json(include={"groups", "blocks_removed"}))
        return real(accuracies, plan)

    monkeypatch.setattr(RepairedAccuracies, "_repaired", counted)
    resumed = False
    with pytest.raises(KeyboardInterrupt):
        run(network, DATA, settings, Place(run_folder))
    copy = run_folder.with_name("copy")
    shutil.copytree(run_folder, copy)
    resumed = True
    again = run(network, DATA, settings, Place(run_folder, resume=True))
    assert finished.record.validation is not None
    assert len(judged) == len(set(judged)) == len(finished.record.validation.steps)
    assert again.record.validation == finished.record.validation
    assert again.plan.groups == finished.plan.groups
    for name, tensor in finished.module.state_dict().items():
        assert torch.equal(tensor, again.module.state_dict()[name]), name
    with pytest.raises(sc.DataError, match=r"max_loss 10\.0, now it is 5\.0"):
        run(network, DATA, replace(settings, max_loss=5.0), Place(copy, resume=True))


def test_other_budgets_hold_as_well(network: Loaded, fake_target: str) -> None:
    result = sc.prune(
        network.module,
        network.example(),
        data=DATA,
        min_accuracy=0.5,
        file_size="50%",
        macs="30%",
        target=fake_target,
        criterion="l1",
        epochs=1,
    )
    record = result.record
    assert record.validation is not None
    assert record.validation.repaired >= record.validation.least == record.min_accuracy == 0.5
    assert [budget.resource for budget in record.budgets] == ["file_size", "macs"]
    assert record.pruned_within_budget
    assert record.pruned.macs <= 0.3 * record.dense.macs
    assert record.pruned.file_bytes <= 0.5 * record.dense.file_bytes
    assert record.budget == "accuracy ≥ 50%, file size 50%, macs 30%"
    assert record.validation.deployed == evaluate(result.module, DATA.validation).top1


def test_of_a_quantised_target_the_files_accuracy_counts(
    network: Loaded, settings: Settings, fake_target: str, run_folder: Path
) -> None:
    quantised = replace(settings, max_loss=None, min_accuracy="50%", target=f"{fake_target}:int8")
    record = run(network, DATA, quantised, Place(run_folder)).record
    assert record.validation is not None
    assert record.validation.repaired >= record.validation.least == 0.5
    assert record.min_accuracy == 0.5
    assert record.target.precision == "int8"
    assert len(record.files) == 4


@pytest.mark.parametrize(
    ("bound", "told"),
    [
        ({"min_accuracy": "100%"}, r"--min-accuracy 100% is above what the dense network has"),
        ({"max_loss": 99.9}, r"--max-loss 99.9 is no less than all that the dense network has"),
    ],
)
def test_what_dense_does_not_keep_is_refused_before_anything_is_measured(
    bound: dict[str, object],
    told: str,
    settings: Settings,
    run_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("secateurs.measure.targeted.profile", None)
    monkeypatch.setattr("secateurs.jobs.plan_stage.trace", None)
    untrained, asked = training_job.network(), {"max_loss": None, "allow_chance": True, **bound}
    with pytest.raises(sc.PlanError, match=told):
        run(untrained, DATA, replace(settings, **asked), Place(run_folder))  # type: ignore[arg-type]
    assert not run_folder.exists()
