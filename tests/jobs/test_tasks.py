"""The main job on other tasks than classification, from loaders to the report, on a target without a clock."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import secateurs as sc
from secateurs.jobs.settings import Settings
from secateurs.latency import model
from secateurs.report import Record, render


@pytest.fixture(scope="module", autouse=True)
def _few_samples() -> Iterator[None]:
    """The fake target is exact, so a small design is enough."""
    real = model.profile

    def profile(*args, **kwargs):  # type: ignore[no-untyped-def]
        return real(*args, **{**kwargs, "samples": 24})

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model, "profile", profile)
        yield


@dataclass
class Estimate:
    """What the network answers."""

    mean: Tensor
    hidden: Tensor


class Regressor(nn.Module):
    """Two numbers from two signals, called by keywords."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(8, 32), nn.Linear(4, 32)
        self.middle, self.last = nn.Linear(32, 32), nn.Linear(32, 2)

    def forward(self, signal: Tensor, extra: Tensor) -> Estimate:
        hidden = F.relu(self.middle(F.relu(self.first(signal) + self.second(extra))))
        return Estimate(self.last(hidden), hidden.mean(1))

    def squared(self, outputs: Estimate, wanted: Tensor) -> Tensor:
        """A loss that needs a method of the network."""
        return F.mse_loss(outputs.mean, wanted)


def batches(count: int, seed: int) -> list[dict[str, Any]]:
    """Batches that are dicts of dicts, of different sizes, with what is no tensor."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for size in ([16, 12] * count)[:count]:
        signal, extra = torch.randn(size, 8, generator=generator), torch.randn(size, 4, generator=generator)
        wanted = torch.stack([signal.sum(1), signal[:, 0] - extra[:, 1]], 1)
        found.append({"signal": signal, "extra": extra, "target": {"value": wanted}, "name": "a batch"})
    return found


EXAMPLE = {"signal": torch.zeros(1, 8), "extra": torch.zeros(1, 4)}


class Spread:
    """A metric that wants all predictions at once."""

    def __init__(self) -> None:
        self.found: list[Tensor] = []

    def update(self, predictions: Tensor, wanted: Tensor) -> None:
        self.found.append((predictions - wanted).detach())

    def compute(self) -> float:
        return float(torch.cat(self.found).square().mean().sqrt())

    def reset(self) -> None:
        self.found = []

    def merge_state(self, other: Spread) -> None:
        self.found = self.found + other.found


@pytest.fixture(scope="module")
def network() -> Regressor:
    """After some steps of training: it has something to lose."""
    module, data = Regressor(), batches(6, 1)
    optimizer = torch.optim.Adam(module.parameters(), lr=0.01)
    for _ in range(40):
        for batch in data:
            optimizer.zero_grad()
            module.squared(module(batch["signal"], batch["extra"]), batch["target"]["value"]).backward()
            optimizer.step()
    return module.eval()


def task_of(module: Regressor) -> sc.Task:
    return sc.Task(
        loss=lambda outputs, batch: module.squared(outputs, batch["target"]["value"]),
        metric=Spread(),
        name="RMSE",
        unit="V",
        better="lower",
        outputs=lambda outputs: outputs.mean,
        compared=lambda outputs, batch: (outputs.mean, batch["target"]["value"]),
        kind="volts",
    )


@pytest.mark.parametrize("epochs", [0, 1])
def test_a_network_of_dicts_and_a_dataclass_goes_through_the_whole_job(
    network: Regressor, fake_target: str, tmp_path: Path, epochs: int
) -> None:
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    settings = Settings(latency="80%", target=fake_target, epochs=epochs, train_batch=16, lr=0.01, precision="fp32")
    given = {"data": (batches(10, 2), batches(6, 3)), "task": task_of(network), "settings": settings}
    result = sc.prune(network, EXAMPLE, output=tmp_path / "run", **given)
    record = result.record
    assert record.pruned_within_budget
    assert (record.metric.name, record.metric.unit, record.metric.better) == ("RMSE", "V", "lower")
    found = result.module(**EXAMPLE)
    assert isinstance(found, Estimate)
    assert result.module.middle.weight.numel() < network.middle.weight.numel()
    with torch.no_grad():
        errors = [result.module(b["signal"], b["extra"]).mean - b["target"]["value"] for b in batches(6, 3)]
    reached = torch.cat(errors).square().mean().sqrt()
    assert record.pruned.accuracy == pytest.approx(float(reached), rel=1e-4)
    assert record.pruned.accuracy_recalibrated < record.pruned.accuracy_cut  # the repair helps
    assert record.test is not None
    assert record.test.samples == 84
    assert record.test.standard_error is not None
    assert record.test.standard_error > 0
    raw = json.loads((tmp_path / "run" / "result.json").read_text())
    assert raw["metric"] == {"name": "RMSE", "unit": "V", "better": "lower"}
    assert raw["pruned"]["metric"] == record.pruned.accuracy
    assert "accuracy" not in raw["pruned"]
    assert Record.load(tmp_path / "run" / "result.json") == record
    page = render(record)
    assert "RMSE (lower is better) on the test set" in page
    assert "ccuracy" not in page.replace("accuracy_chart", "")
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    again = sc.prune(network, EXAMPLE, output=tmp_path / "run", resume=True, **given)
    assert again.record == record
