"""Schedules of fine-tuning in the main job, on a target without a clock."""

from __future__ import annotations

import copy
import os
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import training_job
from safetensors.torch import load_file
from torch import nn

import secateurs as sc
from secateurs.errors import PlanError
from secateurs.importance.dynamic import Dynamics
from secateurs.importance.scoring import Scorer
from secateurs.jobs import recovery
from secateurs.jobs.entry import Place, run
from secateurs.jobs.settings import Settings
from secateurs.jobs.training import Trainer, epochs_before
from secateurs.models import Loaded
from secateurs.planning.channels import Channels
from secateurs.planning.planner import Planner
from secateurs.recover.features import spread
from secateurs.recover.quantisation import QuantiseAware
from secateurs.recover.schedules.regrow import PruneRegrow, RegrowSchedule, _reordered
from secateurs.search.legal import Legal
from secateurs.search.problem import Solution
from secateurs.search.values import keep
from secateurs.structure import apply, trace
from secateurs.structure.training import scatter

pytestmark = pytest.mark.usefixtures("few_samples")


@pytest.fixture(scope="module")
def network() -> Loaded:
    return training_job.network()


def _settings(fake_target: str, schedule: str, epochs: int = 2) -> Settings:
    # The way to a plan within a latency is the same for all: one of them goes it.
    latency = "60%" if schedule == "regrow" else None
    return Settings(
        latency=latency,
        macs=None if latency else "60%",
        target=fake_target,
        epochs=epochs,
        train_batch=16,
        criterion="taylor",
        precision="fp32",
        schedule=schedule,
        features=0.5,
        calibrate_values=4 if schedule == "gradual" else 0,
        lr=0.01,
        allow_chance=True,
    )


def test_scattered_weights_are_cut_to_the_same_network(network: Loaded) -> None:
    graph = trace(network.module, network.example())
    plan = graph.plan({group.name: tuple(range(1, group.units, 2)) for group in graph.groups})
    small = apply(network.module, plan, network.example())
    with torch.no_grad():
        for parameter in small.parameters():
            parameter.add_(1.0)
    wide = copy.deepcopy(network.module)
    scatter(wide, small, plan)
    again = apply(wide, plan, network.example())
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in small.state_dict().items())
    group = graph.groups[0]
    view = next(view for view in graph.views(group.name) if view.role == "out")
    untouched = torch.from_numpy(view.indices[::2].ravel())
    before, after = (net.state_dict()[view.parameter] for net in (network.module, wide))
    assert torch.equal(before.index_select(view.dim, untouched), after.index_select(view.dim, untouched))


@pytest.mark.parametrize("schedule", ["gradual", "soft", "regrow"])
def test_a_schedule_ends_within_the_budget_and_resumes_to_the_same(
    schedule: str,
    network: Loaded,
    fake_target: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = _settings(fake_target, schedule)
    before = {name: tensor.clone() for name, tensor in network.module.state_dict().items()}
    whole = run(network, training_job.images(), settings, Place(tmp_path / "whole", store=tmp_path / "store"))
    assert whole.record.pruned_within_budget
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.module.state_dict().items())
    assert not whole.folder.joinpath("carrier.safetensors").exists()
    kept = {path.name.partition("-")[0] for path in whole.folder.glob("checkpoints/*")}  # judged rows stay
    assert kept <= {"values.sqlite3"}
    trained = apply(network.module, whole.plan, network.example(), check=False).state_dict()
    assert any(not torch.equal(t, trained[name]) for name, t in whole.module.state_dict().items())

    def stop(self: recovery.Recovery, *given: object) -> None:
        raise KeyboardInterrupt

    place = Place(tmp_path / "parts", store=tmp_path / "store")
    with monkeypatch.context() as patch:
        patch.setattr(recovery.Recovery, "repair", stop)
        with pytest.raises(KeyboardInterrupt):
            run(network, training_job.images(), settings, place)
    assert (tmp_path / "parts" / "carrier.safetensors").is_file()
    resumed = run(network, training_job.images(), settings, replace(place, resume=True))
    assert resumed.plan.groups == whole.plan.groups
    for name, tensor in whole.module.state_dict().items():
        assert torch.equal(tensor, resumed.module.state_dict()[name]), name


@pytest.mark.parametrize("most", [None, 63, 127])
def test_training_rounds_what_the_deployed_file_rounds(
    most: int | None, network: Loaded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph = trace(network.module, network.example())
    kept = {group.name: tuple(range(0, group.units, 2)) for group in graph.groups}
    plan = graph.plan(kept).model_copy(update={"precision": {"fc": "float"}})
    seen: list[tuple[int, int, list[str]]] = []

    class Watched(QuantiseAware):
        def after_backward(self, student: nn.Module, step: int) -> None:
            super().after_backward(student, step)
            seen.append((self.first, self.most, sorted(self._layers)))

    monkeypatch.setattr("secateurs.jobs.training.QuantiseAware", Watched)
    given = {"target": "onnxruntime-cpu:int8", "quantise_aware": True, "train_batch": 16, "precision": "fp32"}
    settings = Settings(latency="60%", lr=0.01, **given)  # type: ignore[arg-type]
    work = (network.module, network.example(), training_job.images(), settings, tmp_path)
    trainer = Trainer(*work, most=lambda: most)
    trainer.train(apply(network.module, plan, network.example()), "cut", 1, plan)
    trainer.train(copy.deepcopy(network.module), "whole", 1)  # the dense network that is compared with: in float
    if most is None:
        assert not seen
        return
    layers = [name for name, layer in network.module.named_modules() if isinstance(layer, (nn.Conv2d, nn.Linear))]
    assert seen == [(3, most, sorted(set(layers) - {"fc"}))] * 6


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"target": "onnxruntime-cpu"}, "runs float files, so there is no quantisation to train with"),
        ({"target": "onnxruntime-cpu:int8", "epochs": 0}, "--quantise-aware is a way to train, but --epochs is 0"),
    ],
)
def test_where_nothing_is_rounded_or_trained_it_is_refused(given: dict[str, object], told: str) -> None:
    with pytest.raises(PlanError, match=told):
        Settings(latency="60%", quantise_aware=True, **given)  # type: ignore[arg-type]


@pytest.mark.parametrize("target", ["fpga:ecp5-85f", "onnxruntime-cpu:int8", "ssh://pi/openvino-cpu:int8"])
def test_every_target_of_int8_files_takes_rounding(target: str) -> None:
    assert Settings(latency="60%", quantise_aware=True, target=target).quantise_aware


def test_regrowth_trains_the_network_without_the_blocks_that_go(network: Loaded, tmp_path: Path) -> None:
    graph = trace(network.module, network.example())
    spec = graph.spec
    widths = np.array([max(1, units // 2) for units in spec.dense_widths])
    solution = Solution(widths, frozenset({0}), 0.0, {}, None, 0.0)
    settings = Settings(
        latency="60%", schedule="regrow", epochs=2, train_batch=16, precision="fp32", lr=0.01, barrier=("layer1.0.*",)
    )
    trainer = Trainer(network.module, network.example(), training_job.images(), settings, tmp_path)
    planner = Planner(Channels(graph), Scorer(graph, "l1"), resources=("macs",))
    assert spec.blocks[0].name.startswith("layer1.0")
    prepared = RegrowSchedule().settle(trainer, planner, solution)
    assert prepared.carrier is not None
    before, after = network.module.state_dict(), prepared.carrier.state_dict()
    assert torch.equal(before["layer1.0.conv1.weight"], after["layer1.0.conv1.weight"]), "what goes is not trained"
    assert not torch.equal(before["layer2.0.conv1.weight"], after["layer2.0.conv1.weight"])
    assert len(prepared.notes) == 1
    for group in spec.groups:
        found, given = prepared.planner.scores[group.name], planner.scores[group.name]
        assert sorted(found) == pytest.approx(sorted(given)), "a group is worth what it was at every width"


class Added(nn.Module):
    """A residual branch in one forward, which only a rebuilt graph can lose."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1), nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.a(x).relu()
        return self.c((x + self.b(x)).mean((2, 3)))


def test_regrowth_is_refused_before_the_search_where_it_cannot_work() -> None:
    graph = trace(Added(), torch.randn(1, 3, 8, 8))
    assert graph.spec.blocks
    trainer = Trainer(graph.model, graph.args, training_job.images(), Settings(latency="60%"), Path())
    with pytest.raises(PlanError, match="--no-blocks"):
        RegrowSchedule().check(trainer, Planner(Channels(graph), Scorer(graph)))
    RegrowSchedule().check(trainer, Planner(Channels(graph, legal=Legal(blocks=False)), Scorer(graph)))
    assert epochs_before(Settings(latency="60%", schedule="regrow", epochs=1)) == 1


def test_units_of_equal_worth_are_those_that_regrowth_kept(network: Loaded) -> None:
    graph = trace(network.module, network.example())
    name = graph.groups[0].name
    masks = PruneRegrow(graph, {name: 3}, Dynamics(graph))
    masks.kept[name] = (5, 6, 7)
    for level in (0.0, 2.5):
        given = _reordered(np.full(masks.units[name], level), masks, name)
        assert keep(given, 3) == (5, 6, 7)
        assert given == pytest.approx(level, abs=1e-6)


def test_features_are_refused_before_the_search_where_there_is_nothing_to_compare() -> None:
    with pytest.raises(PlanError, match="--features"):
        spread(nn.Linear(4, 2), nn.Linear(4, 2))
    inner = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 4))
    assert spread(inner, inner) == ("0",)


def test_all_epochs_before_the_cut_are_said(network: Loaded, fake_target: str, tmp_path: Path) -> None:
    settings = _settings(fake_target, "soft", epochs=1)
    done = run(network, training_job.images(), settings, Place(tmp_path / "run", store=tmp_path / "store"))
    assert isinstance(done, sc.Result)
    assert any("All 1 epochs came before the cut" in note for note in done.record.notes)


@pytest.mark.parametrize(
    ("schedule", "epochs", "expected"),
    [("once", 4, 0), ("gradual", 1, 0), ("gradual", 5, 2), ("soft", 1, 1), ("soft", 6, 3), ("regrow", 6, 3)],
)
def test_epochs_before_the_cut(schedule: str, epochs: int, expected: int) -> None:
    assert epochs_before(Settings(latency="60%", schedule=schedule, epochs=epochs)) == expected


def test_schedules_that_make_no_sense() -> None:
    with pytest.raises(PlanError, match="Known: once, gradual, soft, regrow"):
        Settings(latency="60%", schedule="never")
    with pytest.raises(PlanError, match="Give at least 1"):
        Settings(latency="60%", schedule="soft", epochs=0)
    with pytest.raises(PlanError, match="at least 0"):
        Settings(latency="60%", features=-1.0)


def test_helpers_train_along(tmp_path: Path) -> None:
    if not (torch.distributed.is_available() and torch.distributed.is_gloo_available()):
        pytest.skip("this PyTorch has no Gloo")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    common = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, training_job.__file__, str(tmp_path)]
    running = [
        subprocess.Popen(command, env={**os.environ, **common, "RANK": str(rank), "LOCAL_RANK": str(rank)})
        for rank in range(2)
    ]
    assert [process.wait(180) for process in running] == [0, 0]
    assert all(bool(torch.isfinite(t).all()) for t in load_file(tmp_path / "small.safetensors").values())


def test_a_few_steps_and_the_choice_are_told(network: Loaded, fake_target: str, tmp_path: Path) -> None:
    """96 images at a batch of 96 are one step; left out, batch and epochs follow the images."""
    settings = replace(_settings(fake_target, "once", epochs=1), train_batch=96, features=0.0)
    done = run(network, training_job.images(), settings, Place(tmp_path / "one", store=tmp_path / "store"))
    assert any("only 1 step (1 epoch of 96 images at batch 96)" in note for note in done.record.notes)
    assert sum("validation images" in note and "before it" in note for note in done.record.notes) == 1
    assert done.record.epochs == 1
    settings = replace(settings, train_batch=None, epochs=None)
    done = run(network, training_job.images(), settings, Place(tmp_path / "more", store=tmp_path / "store"))
    assert (done.record.epochs, done.record.settings["epochs"], done.record.settings["train_batch"]) == (10, 10, 8)
    assert not any("only" in note and "step" in note for note in done.record.notes)
    again = run(network, training_job.images(), settings, Place(tmp_path / "more", resume=True))
    assert again.record == done.record
