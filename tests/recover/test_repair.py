from __future__ import annotations

from dataclasses import replace

import pytest
import small_job
import torch
from torch import nn

from secateurs.data import accuracy
from secateurs.errors import DataError, StructureError
from secateurs.recover import repair as module_under_test
from secateurs.recover.batch_norm import reestimate
from secateurs.recover.recipe import Recipe
from secateurs.recover.repair import repair
from secateurs.recover.training import train
from secateurs.structure import apply, trace


def _network(*, batch_norm: bool) -> nn.Sequential:
    torch.manual_seed(0)
    norms = (nn.BatchNorm2d(16), nn.BatchNorm2d(8)) if batch_norm else (nn.Identity(), nn.Identity())
    return nn.Sequential(
        nn.Conv2d(3, 16, 3),
        norms[0],
        nn.ReLU(),
        nn.Conv2d(16, 8, 3),
        norms[1],
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(128, 3),
    )


@pytest.fixture(scope="module", params=[True, False], ids=["batch norm", "none"])
def trained(request: pytest.FixtureRequest) -> nn.Sequential:
    module = _network(batch_norm=request.param)
    train(module, small_job.data(), Recipe(epochs=12, lr=0.05, batch=16, precision="fp32", layout="contiguous"))
    return module


def test_the_best_on_validation_is_kept(trained: nn.Sequential) -> None:
    data = small_job.data()
    graph = trace(trained, torch.randn(1, 3, 8, 8))
    plan = graph.plan({group.name: tuple(range(group.units // 2)) for group in graph.groups})
    small = apply(trained, plan).train()
    before = accuracy(small, data.test)
    done = repair(trained, small, plan, data)
    assert not small.training
    kinds = {"nothing", "least squares"}
    if any(isinstance(child, nn.BatchNorm2d) for child in trained):
        kinds |= {"batch norm", "least squares and batch norm"}
    else:
        kinds.add("bias correction")
    assert set(done.accuracies) == kinds
    assert done.accuracies[done.chosen] == max(done.accuracies.values())
    assert accuracy(small, data.validation) == done.accuracies[done.chosen]
    assert accuracy(small, data.test) >= before


def test_the_test_images_are_not_touched(trained: nn.Sequential) -> None:
    data = small_job.data()
    plan = trace(trained, torch.randn(1, 3, 8, 8)).plan({})
    hidden = replace(data.test, source=None)  # type: ignore[arg-type]
    done = repair(trained, apply(trained, plan), plan, replace(data, test=hidden))  # a look at them would fail
    assert done.accuracies[done.chosen] == max(done.accuracies.values())


def test_without_export_batch_norm_remains(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object, **named: object) -> None:
        raise StructureError("cannot be exported")

    monkeypatch.setattr(module_under_test, "least_squares", refuse)
    data, dense = small_job.data(), _network(batch_norm=True)
    reestimate(dense, data.calibration.batches(20))
    plan = trace(dense.eval(), torch.randn(1, 3, 8, 8)).plan({"0:out": (0, 1, 2)})
    done = repair(dense, apply(dense, plan), plan, data)
    assert done.chosen in ("nothing", "batch norm")
    assert any("not refitted: cannot be exported" in note for note in done.notes)


def test_no_calibration_images(trained: nn.Sequential) -> None:
    data = small_job.data()
    plan = trace(trained, torch.randn(1, 3, 8, 8)).plan({})
    with pytest.raises(DataError, match="no calibration images"):
        repair(trained, apply(trained, plan), plan, replace(data, calibration=data.calibration.take(0)))
