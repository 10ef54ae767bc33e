"""The main job on a target without a clock: files, figures, resuming, budgets out of reach."""

from __future__ import annotations

import copy
import json
import shutil
from dataclasses import replace
from pathlib import Path

import onnxruntime
import pytest
import torch
from safetensors.torch import load_file

import secateurs as sc
from secateurs.data import Data, open_data
from secateurs.importance.scoring import Scorer
from secateurs.jobs import deployment
from secateurs.jobs import plan_stage as planning_stage
from secateurs.jobs import stages as job_module
from secateurs.jobs import training as tuning
from secateurs.jobs.entry import Place, run
from secateurs.jobs.settings import Settings
from secateurs.measure import targeted
from secateurs.models import Loaded, load
from secateurs.planning.channels import Channels
from secateurs.planning.planner import Planner
from secateurs.report import Record

pytestmark = pytest.mark.usefixtures("few_samples")


@pytest.fixture(scope="module")
def network() -> Loaded:
    """The demo's network; what its weights are does not matter here."""
    return load("digits-resnet?width=1", seed=3)


@pytest.fixture(scope="module")
def settings(fake_target: str) -> Settings:
    return Settings(latency="60%", target=fake_target, epochs=1, train_batch=16, criterion="splamp", precision="fp32")


@pytest.fixture(scope="module")
def finished(network: Loaded, settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> sc.Result:
    return run(network, _digits(network), settings, Place(tmp_path_factory.mktemp("finished") / "run"))


def _digits(network: Loaded) -> Data:
    """A few of the digits: what is learnt does not matter here."""
    data = open_data("digits", network)
    few = {part: getattr(data, part).take(64) for part in ("train", "calibration", "validation", "test")}
    return replace(data, **few)


def test_a_run_leaves_every_file_and_keeps_its_promise(finished: sc.Result, network: Loaded) -> None:
    run_folder = finished.folder
    names = {path.name for path in run_folder.iterdir()}
    wanted = {
        "plan.json",
        "model.safetensors",
        "model.onnx",
        "result.json",
        "report.html",
        "events.jsonl",
        "dense.onnx",
    }
    assert wanted <= names
    assert not [name for name in names if name.startswith(".") or name.endswith(".tmp")]
    record = Record.load(run_folder / "result.json")
    assert record == finished.record
    assert record.pruned_within_budget
    assert record.budget_used >= 0.94
    assert record.speedup >= 1 / 0.6
    assert record.pruned.macs < record.dense.macs
    assert record.pruned.params == sum(p.numel() for p in finished.module.parameters())
    assert record.structure_check_rel_error <= 1e-6
    assert record.export_max_rel_error <= 1e-4
    assert record.dense.params == sum(p.numel() for p in network.module.parameters())


def test_the_saved_parts_make_the_same_network(finished: sc.Result, network: Loaded) -> None:
    run_folder = finished.folder
    plan = sc.Plan.load(run_folder / "plan.json")
    again = sc.apply(network.module, plan, network.example()).eval()
    again.load_state_dict(load_file(run_folder / "model.safetensors"))
    image = torch.randn(1, *network.input_shape)
    with torch.no_grad():
        expected = finished.module(image)
        assert torch.equal(again(image), expected)
    session = onnxruntime.InferenceSession(run_folder / "model.onnx", providers=["CPUExecutionProvider"])
    [found] = session.run(None, {session.get_inputs()[0].name: image.numpy()})
    assert float(abs(torch.from_numpy(found) - expected).max()) <= 1e-4 * float(expected.abs().max())


def test_the_plan_says_where_it_comes_from(finished: sc.Result) -> None:
    facts = finished.plan.provenance
    assert facts["strategy"] == "knapsack"
    assert facts["criterion"] == "splamp"
    assert facts["budget"] == "60%"
    assert facts["source"]["model"] == "digits-resnet"
    assert facts["predicted_ms"] > 0
    assert "torch" in facts["versions"]


def test_a_killed_run_resumes_to_the_same_result(
    network: Loaded, settings: Settings, run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = _digits(network)
    real = tuning.finetune

    def killed(student, *args, **kwargs):  # type: ignore[no-untyped-def]
        seen = 0

        class Task:
            def __enter__(self):  # type: ignore[no-untyped-def]
                return self

            def __exit__(self, *details: object) -> None:
                pass

            def advance(self, steps: int = 1, note: str = "") -> None:
                nonlocal seen
                seen += steps
                if seen >= 2:
                    raise KeyboardInterrupt

        class Progress:
            def task(self, name: str, total: int | None = None) -> Task:
                return Task()

            def say(self, message: str) -> None:
                pass

        return real(student, *args, **{**kwargs, "progress": Progress()})

    monkeypatch.setattr(tuning, "finetune", killed)
    with pytest.raises(KeyboardInterrupt):
        run(network, data, settings, Place(run_folder))
    assert (run_folder / "plan.json").exists()
    assert not (run_folder / "result.json").exists()
    copy = tmp_path / "copy"
    shutil.copytree(run_folder, copy)
    before = (run_folder / "plan.json").read_bytes()

    monkeypatch.setattr(tuning, "finetune", real)
    monkeypatch.setattr(planning_stage, "trace", None)  # a resumed run has a plan: it must not trace or plan again
    first = run(network, data, settings, Place(run_folder, resume=True))
    shutil.rmtree(copy / "checkpoints")  # the copy trains from the start: the uninterrupted run
    second = run(network, data, settings, Place(copy, resume=True))
    assert (run_folder / "plan.json").read_bytes() == before
    for name, tensor in first.module.state_dict().items():
        assert torch.equal(tensor, second.module.state_dict()[name]), name
    assert first.record.pruned.accuracy == second.record.pruned.accuracy


def test_a_run_that_an_older_version_began_ends_alike(
    finished: sc.Result, network: Loaded, settings: Settings, run_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which images were right, and for how long was trained, it did not record; nor did it train the dense network."""
    with monkeypatch.context() as patch:
        patch.setattr(deployment.Deployment, "deploy", _interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(network, _digits(network), settings, Place(run_folder))
    path, lines = run_folder / "events.jsonl", []
    for line in path.read_text().splitlines():
        event = json.loads(line)
        for name in ("dense_correct", "test_images", "correct", "repaired_by", "tuned_epochs"):
            event["data"].pop(name, None)
        lines += [json.dumps(event)] if event["event"] != "dense_tuned" else []
    path.write_text("\n".join(lines) + "\n")
    record = run(network, _digits(network), settings, Place(run_folder, resume=True)).record
    assert record.test == finished.record.test
    assert record.tuned_epochs == finished.record.tuned_epochs == 1
    assert record.dense_finetuned is not None
    assert finished.record.dense_finetuned is not None
    assert record.dense_finetuned.difference == finished.record.dense_finetuned.difference


def _interrupted(*given: object) -> None:
    raise KeyboardInterrupt


def test_a_finished_run_is_only_read_again(
    finished: sc.Result, network: Loaded, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tuning, "finetune", None)
    monkeypatch.setattr(planning_stage, "trace", None)
    again = run(network, _digits(network), settings, Place(finished.folder, resume=True))
    assert again.record == finished.record
    for name, tensor in finished.module.state_dict().items():
        assert torch.equal(tensor, again.module.state_dict()[name])


def test_resume_with_other_settings_is_refused(finished: sc.Result, network: Loaded, settings: Settings) -> None:
    run_folder, other = finished.folder, replace(settings, latency="50%")
    with pytest.raises(sc.DataError, match=r"latency '60%', now it is '50%'"):
        run(network, _digits(network), other, Place(run_folder, resume=True))
    with pytest.raises(sc.DataError, match="a finished run"):
        run(network, _digits(network), other, Place(run_folder))


def test_a_second_run_measures_nothing_and_plans_the_same(
    finished: sc.Result, network: Loaded, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job_module.Bench, "export_and_compare", None)
    other = replace(settings, epochs=0)
    again = run(network, _digits(network), other, Place(tmp_path / "again"))
    assert again.plan.groups == finished.plan.groups
    assert again.record.rounds == finished.record.rounds


def test_a_budget_out_of_reach_names_the_fastest_measured_point(
    network: Loaded, settings: Settings, run_folder: Path
) -> None:
    tight = replace(settings, latency="0.03ms")
    with pytest.raises(sc.InfeasibleBudgetError, match=r"when measured, \d+\.\d% of dense") as caught:
        run(network, _digits(network), tight, Place(run_folder))
    assert caught.value.exit_code == 3
    assert caught.value.details["measured_ms"] > 0.03
    assert "ms)" in str(caught.value)
    assert not run_folder.exists()


def test_several_budgets_are_measured_and_hold_together(network: Loaded, settings: Settings, run_folder: Path) -> None:
    several = replace(settings, latency="70%", file_size="50%", memory="0.9MB", macs="80%", epochs=0)
    network = replace(network, module=copy.deepcopy(network.module))
    for name, bias in network.module.named_parameters():
        if "bn" in name and name.endswith("bias"):
            torch.nn.init.normal_(bias)  # equal ones, as of a network without training, are in a file but once
    result = run(network, _digits(network), several, Place(run_folder))
    budgets = {budget.resource: budget for budget in result.record.budgets}
    assert list(budgets) == ["latency", "memory", "file_size", "macs"]
    assert result.record.pruned_within_budget
    assert all(budget.met for budget in budgets.values())
    assert max(budget.used for budget in budgets.values()) >= 0.94
    assert budgets["file_size"].pruned == (run_folder / "model.onnx").stat().st_size
    assert budgets["memory"].pruned == 2 * (run_folder / "model.onnx").stat().st_size
    assert budgets["macs"].pruned == result.record.pruned.macs
    assert result.plan.provenance["budget"] == "latency 70%, memory 900kB, file size 50%, macs 80%"
    assert set(result.plan.provenance["predicted"]) == set(budgets)


def test_multiply_adds_alone_need_no_latency_model(
    network: Loaded, settings: Settings, run_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(targeted, "profile", None)
    only = replace(settings, latency=None, macs="50%", epochs=0)
    record = run(network, _digits(network), only, Place(run_folder)).record
    assert record.pruned.macs <= 0.5 * record.dense.macs
    assert record.pruned.macs >= 0.47 * record.dense.macs
    assert record.budget_ms is None
    assert record.predicted_ms is None
    assert record.budget == "macs 50%"
    assert "multiply-adds" in (run_folder / "report.html").read_text()


@pytest.mark.parametrize(
    ("budget", "told"),
    [
        ({"file_size": "1kB"}, r"File size budget 1kB .* smallest legal network takes .* when measured"),
        ({"memory": "0.1%"}, r"Memory budget 0.1% .* smallest legal network"),
        ({"macs": "10k"}, r"Macs budget 10k .* when counted.*Raise --macs"),
        ({"file_size": "50GB"}, r"File size budget 50GB is not below .*nothing to prune"),
    ],
)
def test_other_budgets_out_of_reach(
    budget: dict[str, str], told: str, network: Loaded, settings: Settings, run_folder: Path
) -> None:
    with pytest.raises(sc.PlanError, match=told) as caught:
        run(network, _digits(network), replace(settings, latency=None, **budget), Place(run_folder))
    assert caught.value.exit_code == (1 if "nothing to prune" in told else 3)
    assert not run_folder.exists()


def test_budgets_that_no_network_meets_together(network: Loaded, settings: Settings) -> None:
    graph = sc.trace(network.module, network.example())
    planner = Planner(Channels(graph), Scorer(graph), resources=("macs", "file_size"))
    lowest = {one["constraint"]: one["ratio"] for one in planner.reach}
    assert 0 < lowest["macs"] < 0.2
    with pytest.raises(sc.InfeasibleBudgetError, match="macs"):
        planner.solve({"macs": 0.9 * lowest["macs"], "file_size": 0.9})
    assert "Within reach by the model: macs" in planner.reachable()


def test_a_budget_above_dense_is_refused(network: Loaded, settings: Settings, run_folder: Path) -> None:
    loose = replace(settings, latency="500ms")
    with pytest.raises(sc.PlanError, match="nothing to prune"):
        run(network, _digits(network), loose, Place(run_folder))
