"""A front from Python, of any task: searched, measured, picked from, and continued."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from test_tasks import EXAMPLE, Regressor, batches, task_of

import secateurs as sc
from secateurs.errors import DataError, PlanError
from secateurs.importance.output_change import Answers
from secateurs.jobs.front_settings import FrontSettings
from secateurs.search.rows import FileRows

SETTINGS = FrontSettings(objectives=("macs",), evaluations=24, population=6, points=0, epochs=0, images=24)


@pytest.fixture
def network() -> Regressor:
    return Regressor().eval()


def test_a_front_of_a_metric_that_is_no_accuracy(network: Regressor, fake_target: str, tmp_path: Path) -> None:
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    settings = replace(SETTINGS, target=fake_target)
    given = {"data": (batches(10, 2), batches(6, 3)), "task": task_of(network), "settings": settings}
    found = sc.front(network, EXAMPLE, output=tmp_path / "front", **given)
    assert (found.record.metric.name, found.record.metric.unit) == ("RMSE", "V")
    assert len(found.record.points) > 2
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    costs = [point.costs["macs"] for point in found.record.points]
    assert costs == sorted(costs, reverse=True)
    last = found.record.points[-1].number
    result = found.pick(f"point={last}")
    assert result.record.metric.name == "RMSE"
    assert result.module(**EXAMPLE).mean.shape == (1, 2)
    assert sum(p.numel() for p in result.module.parameters()) < sum(p.numel() for p in network.parameters())
    again = sc.front(network, EXAMPLE, output=tmp_path / "front", resume=True, **given)
    assert again.record.points == found.record.points
    assert again.record.evaluations == found.record.evaluations
    with pytest.raises(DataError, match="no point 999"):
        again.pick("point=999")


def test_measured_values_of_a_front_are_kept(
    network: Regressor, fake_target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = replace(SETTINGS, target=fake_target, criterion="measured")
    given = {"data": (batches(10, 2), batches(6, 3)), "task": task_of(network), "settings": settings}
    found = sc.front(network, EXAMPLE, output=tmp_path / "front", **given)
    (tmp_path / "front" / "front.json").unlink()
    assert len(FileRows(tmp_path / "front" / "values.sqlite3")) > 0
    monkeypatch.setattr(Answers, "_change", lambda *given: pytest.fail("it is measured already"))
    again = sc.front(network, EXAMPLE, output=tmp_path / "front", resume=True, **given)
    assert again.record.points == found.record.points
    picked = again.pick(f"point={found.record.points[-1].number}")  # its own job takes them, too
    assert picked.record.criterion == "measured"


def test_a_front_without_a_folder_can_be_picked_from(network: Regressor, fake_target: str) -> None:
    found = sc.front(
        network,
        EXAMPLE,
        data=(batches(4, 2), batches(2, 3)),
        loss=lambda outputs, batch: network.squared(outputs, batch["target"]["value"]),
        objectives=["macs"],
        target=fake_target,
        evaluations=8,
        points=0,
    )
    assert found.record.metric.name == "loss"
    assert found.folder.is_dir()
    with pytest.raises(PlanError, match="is not understood"):
        found.pick("the best")


def test_settings_are_given_once(network: Regressor) -> None:
    with pytest.raises(PlanError, match="another setting beside it"):
        sc.front(network, EXAMPLE, data="digits", settings=SETTINGS, evaluations=30)
    with pytest.raises(PlanError, match="is a dict"):
        sc.front(network, EXAMPLE, data="digits", settings={})  # type: ignore[arg-type]
    with pytest.raises(PlanError, match="task= holds loss and metric"):
        sc.front(network, EXAMPLE, data="digits", task="regression", loss=lambda outputs, batch: outputs)
