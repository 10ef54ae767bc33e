"""Where only some classes count, nothing that is asked for scores looks at the other outputs."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from secateurs.data import Data, Images, open_data
from secateurs.data.accuracy import among, evaluate
from secateurs.data.datasets import TensorSource
from secateurs.data.images import BatchesOf
from secateurs.errors import DataError
from secateurs.importance.scoring import Scorer
from secateurs.jobs.front import FrontJob, FrontSettings
from secateurs.jobs.run_folder import RunFolder
from secateurs.models import Preprocessing, load
from secateurs.planning.channels import Channels
from secateurs.planning.entry import plan
from secateurs.planning.planner import Planner
from secateurs.structure import trace

CHOSEN = (0, 2, 4)


class Net(nn.Module):
    """Two layers and a head of so many outputs."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 12, 3)
        self.head = nn.Linear(12, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.second(torch.relu(self.first(x)))).mean((2, 3)))


def networks() -> tuple[nn.Module, nn.Module]:
    """One of five outputs, and the same with those that count only."""
    torch.manual_seed(0)
    wide = Net(5).eval()
    narrow = copy.deepcopy(wide)
    narrow.head = nn.Linear(12, 3)
    with torch.no_grad():
        narrow.head.weight.copy_(wide.head.weight[list(CHOSEN)])
        narrow.head.bias.copy_(wide.head.bias[list(CHOSEN)])
    return wide, narrow


def data(labels: Tensor, classes: tuple[int, ...] | None) -> Data:
    torch.manual_seed(1)
    images = Images(TensorSource(torch.randn(len(labels), 3, 8, 8), labels.numpy()), np.arange(48), Preprocessing())
    return Data(images, images, images, images, classes=classes)


@pytest.fixture
def both() -> tuple[tuple[nn.Module, Data], tuple[nn.Module, Data]]:
    wide, narrow = networks()
    return (wide, data(torch.arange(48) % 3 * 2, CHOSEN)), (narrow, data(torch.arange(48) % 3, None))


@pytest.mark.parametrize("criterion", ["fisher", "measured"])
def test_plans_are_those_of_the_network_with_these_outputs(
    both: tuple[tuple[nn.Module, Data], tuple[nn.Module, Data]], criterion: str
) -> None:
    found = []
    for module, images in both:
        graph, batches = trace(module, torch.randn(2, 3, 8, 8)), BatchesOf(images.calibration, 16)
        scorer = Scorer(graph, criterion, batches, task=images.task)
        planner = Planner(Channels(graph), scorer, resources=("macs",), images=images)
        uniform = plan(graph, keep=0.5, criterion=criterion, data=batches, images=images)
        found.append((planner.scores, planner.solve({"macs": 0.4}).solution.widths.tolist(), uniform.groups))
    (wide, widths, kept), (narrow, expected, wanted) = found
    for name, values in narrow.items():
        assert wide[name] == pytest.approx(values, rel=1e-3)
    assert (widths, kept) == (expected, wanted)
    module, images = both[0]
    graph = trace(module, torch.randn(2, 3, 8, 8))
    everything = Scorer(graph, criterion, BatchesOf(images.calibration, 16))
    assert any(not np.allclose(values, narrow[name], rtol=0.05) for name, values in everything.scores.items())


def test_fronts_score_for_the_classes_that_count(tmp_path: Path) -> None:
    loaded = load("digits-resnet", seed=1)
    images = replace(open_data("digits", loaded), classes=tuple(range(10)))
    settings = FrontSettings(objectives=("macs",))
    job = FrontJob(loaded, images, settings, RunFolder(tmp_path / "run", {}), loaded.example())
    assert job._planner(trace(loaded.module, loaded.example())).scorer.task.classes == images.classes


def test_labels_are_mapped_or_refused() -> None:
    logits = torch.randn(4, 5)
    few, labels = among(logits, torch.tensor([0, 4, 2, -100]), CHOSEN)
    assert torch.equal(few, logits[:, [0, 2, 4]])
    assert labels.tolist() == [0, 2, 1, -100]
    assert among(logits, torch.tensor([0, 4, 2, 2], dtype=torch.uint8), CHOSEN)[1].tolist() == [0, 2, 1, 1]
    for wrong, words in ((1, "Label 1"), (-1, "Label -1"), (7, "Label 7"), (-6, "Label -6")):
        with pytest.raises(DataError, match=f"{words} is not among the 3 classes"):
            among(logits, torch.tensor([0, 4, 2, wrong]), CHOSEN)
    with pytest.raises(DataError, match="class indices"):
        among(logits, torch.rand(4, 5), CHOSEN)
    with pytest.raises(DataError, match="Class 9 counts, but the network has 5 outputs"):
        among(logits, torch.zeros(4, dtype=torch.int64), (0, 9))


def test_accuracy_is_that_of_the_network_with_these_outputs(
    both: tuple[tuple[nn.Module, Data], tuple[nn.Module, Data]],
) -> None:
    found = [evaluate(module, images.test, images.task) for module, images in both]
    assert found[0].top1 == found[1].top1
    assert found[0].loss == pytest.approx(found[1].loss, rel=1e-5)
