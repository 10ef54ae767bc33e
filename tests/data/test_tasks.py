"""Tasks: how they are asked for, what they refuse, and how far their figures are to be trusted."""

from __future__ import annotations

import math
from collections import OrderedDict, namedtuple
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import secateurs as sc
from secateurs.budgets import AccuracyBound, Metric
from secateurs.data.accuracy import evaluate
from secateurs.data.calls import CallInputs, as_inputs, joined, split
from secateurs.data.images import BatchesOf, Data, InputsOf
from secateurs.data.nests import count, form, mapped
from secateurs.data.opening import from_batches
from secateurs.data.samples import wrap_samples
from secateurs.data.tasks import asked_task
from secateurs.data.tasks.check import check_task
from secateurs.data.tasks.detection import AveragePrecision
from secateurs.data.tasks.meters import standard_error
from secateurs.errors import DataError, PlanError

Pair = namedtuple("Pair", "first second")


@dataclass
class Out:
    logits: Tensor
    note: str = "kept"


class Linear(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


def squared(outputs: Any, batch: Any) -> Tensor:
    return F.mse_loss(outputs, batch[1])


def data(task: sc.Task, samples: int = 40) -> Data:
    generator = torch.Generator().manual_seed(0)
    given = [(torch.randn(samples, 3, generator=generator), torch.randn(samples, 2, generator=generator))]
    return from_batches(given, given, task.fed(torch.zeros(1, 3), Linear()))


def test_a_nest_keeps_its_containers() -> None:
    nest = {"a": [Pair(torch.ones(2), 3)], "b": OrderedDict(c=Out(torch.zeros(2, 1))), "d": None}
    made = mapped(lambda tensor: tensor + 1, nest)
    assert type(made["a"][0]) is Pair
    assert type(made["b"]) is OrderedDict
    assert made["b"]["c"].note == "kept"
    assert made["b"]["c"].logits.tolist() == [[1.0], [1.0]]
    assert nest["b"]["c"].logits.tolist() == [[0.0], [0.0]]
    assert form(nest) == form(made) == ("['a'][0][0]", "['b']['c'].logits")
    assert count(nest) == 2


def test_inputs_are_parted_and_joined_again() -> None:
    inputs = as_inputs(((torch.arange(10).reshape(5, 2), torch.tensor(0.5)), {"mask": torch.ones(5, 3)}))
    assert isinstance(inputs, CallInputs)
    assert len(inputs) == 5
    parts = split(inputs, 2)
    assert [len(part) for part in parts] == [2, 2, 1]
    again = joined(parts)
    assert isinstance(again, CallInputs)
    assert torch.equal(again.args[0], inputs.args[0])
    assert again.args[1].ndim == 0
    assert again.kwargs["mask"].shape == (5, 3)


def test_samples_of_batches_in_memory_are_parted_by_sample() -> None:
    boxes = [{"boxes": torch.full((n, 4), float(n))} for n in (1, 2, 3)]
    source = wrap_samples([{"image": torch.arange(3)[:, None], "targets": boxes, "size": (8, 8)}] * 2, "training")
    assert len(source) == 6
    batch = source.fetch(np.array([2, 3, 1]))
    assert batch["image"].flatten().tolist() == [2, 0, 1]
    assert [len(one["boxes"]) for one in batch["targets"]] == [3, 1, 2]
    assert batch["size"] == (8, 8)


def test_a_loaders_own_collate_makes_the_batches() -> None:
    loader = DataLoader(
        TensorDataset(torch.arange(6.0)),
        batch_size=4,
        collate_fn=lambda items: {"sum": torch.stack([i[0] for i in items])},
    )
    assert wrap_samples(loader, "training").fetch(np.array([1, 4]))["sum"].tolist() == [1.0, 4.0]


def test_what_cannot_be_put_together_is_told() -> None:
    source = wrap_samples([torch.zeros(2, 3), torch.zeros(2, 4)], "training")
    with pytest.raises(DataError, match=r"cannot be put together in one batch.*collate_fn"):
        source.fetch(np.array([0, 2]))
    with pytest.raises(DataError, match="Item 0 of the training data raised"):
        wrap_samples(_Broken(), "training").fetch(np.array([0]))


class _Broken:
    def __len__(self) -> int:
        return 1

    def __getitem__(self, row: int) -> Any:
        raise ValueError("no such file")


@pytest.mark.parametrize(
    ("loss", "metric", "message"),
    [
        (lambda o, b: o.mean() * math.nan, None, "The loss of the first training batch is nan"),
        (lambda o, b: (o - b[1]).square(), None, r"The loss returned shape \[4, 2\]"),
        (lambda o, b: 0.5, None, "The loss returned a float"),
        (lambda o, b: F.mse_loss(o.detach(), b[1]), None, "The loss has no gradient"),
        (lambda o, b: b[1].mean().requires_grad_(), None, "no gradient to any weight"),
        (lambda o, b: F.mse_loss(o, b["y"]), None, r"The loss raised TypeError.*\[1\] float32 \[4, 2\]"),
        (squared, lambda o, b: o[:, 7], "The metric <lambda> raised IndexError"),
        (squared, lambda o, b: math.inf, "The metric <lambda> is inf"),
        (squared, lambda o, b: o, r"returned shape \[4, 2\] for a batch of 4 samples"),
    ],
)
def test_what_a_task_gets_wrong_is_told_before_any_work(loss: Any, metric: Any, message: str) -> None:
    task = asked_task(None, loss, metric)
    assert task is not None
    with pytest.raises(DataError, match=message):
        check_task(data(task), Linear())


def test_a_network_that_does_not_take_the_batch_is_told() -> None:
    task = sc.Task(squared, squared, inputs=lambda batch: {"y": batch[0]})
    with pytest.raises(DataError, match=r"does not take a batch of the train data.*unexpected keyword.*Task\(inputs"):
        check_task(data(task), Linear())
    with pytest.raises(DataError, match="'x' is not among them"):
        sc.Task(squared, squared).fed({"x": torch.zeros(1, 3)}).called_with({"image": torch.zeros(2, 3)})


class _Moody(Linear):
    """Answers in another form from its third batch on."""

    calls = 0

    def forward(self, x: Tensor) -> Any:
        self.calls += 1
        found = super().forward(x)
        return found if self.calls < 3 else (found, found)


def test_outputs_that_change_their_form_and_a_metric_that_fails_late_are_told() -> None:
    task = sc.Task(squared, lambda outputs, batch: float(outputs.mean() if hasattr(outputs, "mean") else 0.0))
    with pytest.raises(DataError, match=r"answers batch 3 with .* the first one with .* change their form"):
        evaluate(_Moody(), data(task).test, data(task).task)
    seen: list[int] = []

    def late(outputs: Tensor, batch: Any) -> float:
        seen.append(len(seen))
        return 1.0 if len(seen) < 10 else [][0]

    with pytest.raises(DataError, match=r"The metric late raised IndexError.* on batch 10"):
        evaluate(Linear(), data(task).test, data(sc.Task(squared, late)).task)


def test_the_standard_error_of_a_mean_is_that_of_its_blocks() -> None:
    task = sc.Task(squared, lambda outputs, batch: batch[1][:, 0], name="first")
    held = data(task)
    found = evaluate(Linear(), held.test, held.task)
    values = held.test.batch(np.arange(40))[1][:, 0].double().reshape(10, 4).mean(1)
    assert found.value == pytest.approx(float(values.mean()))
    assert standard_error(found.parts) == pytest.approx(float(values.std() / 10**0.5))
    assert standard_error(()) is None


def test_how_tasks_are_asked_for() -> None:
    assert asked_task(None, None, None) is None
    judged = asked_task(None, squared, None)
    assert judged is not None
    assert judged.measured == Metric("loss", "", "lower")
    assert asked_task("segmentation?ignore=3", None, None).compared_as == " segmentation classes"  # type: ignore[union-attr]
    for wrong, message in (
        (("depth", None, None), "Task 'depth' is unknown"),
        (("segmentation?x=1", None, None), "has no option 'x'"),
        (("segmentation", squared, None), "Give one"),
        (("detection", None, None), "Task detection needs loss and decode"),
        ((None, None, squared), "without loss="),
        ((3, None, None), "task= is a int"),
    ):
        with pytest.raises(PlanError, match=message):
            asked_task(*wrong)  # type: ignore[arg-type]
    for wrong_task in ({"better": "more"}, {"distance": "far"}):
        with pytest.raises(PlanError):
            sc.Task(squared, squared, **wrong_task)  # type: ignore[arg-type]
    with pytest.raises(PlanError, match="metric= is a int"):
        sc.Task(squared, 3)


def test_what_must_stay_goes_by_the_metrics_direction_and_unit() -> None:
    bound = AccuracyBound(max_loss=2.0)
    assert bound.least(0.9) == pytest.approx(0.88)
    assert bound.least(0.3, Metric("wrong", "%", "lower")) == pytest.approx(0.32)
    assert bound.least(30.0, Metric("PSNR", "dB")) == pytest.approx(28.0)
    assert bound.least(10.0, Metric("RMSE", "m", "lower")) == pytest.approx(12.0)
    with pytest.raises(PlanError, match="measures RMSE, lower is better"):
        AccuracyBound(min_accuracy=0.5).least(10.0, Metric("RMSE", "m", "lower"))
    for metric in (Metric(), Metric("x", "", "lower"), Metric("x", "dB")):
        for value in (0.0, 0.3, 0.99):
            assert metric.value_of(metric.worth(value)) == pytest.approx(value, abs=1e-9)


def test_average_precision_of_boxes() -> None:
    def boxes(*corners: float, scores: bool = False) -> dict[str, Tensor]:
        found = {"boxes": torch.tensor([[x, x, x + 10, x + 10] for x in corners]).float().reshape(-1, 4)}
        found["labels"] = torch.ones(len(corners), dtype=torch.long)
        return {**found, "scores": torch.linspace(0.9, 0.5, len(corners))} if scores else found

    right, none = AveragePrecision(), AveragePrecision()
    right.update([boxes(5.0, scores=True), boxes(20.0, scores=True)], [boxes(5.0), boxes(20.0)])
    assert right.compute() == {"AP": pytest.approx(1.0), "AP50": pytest.approx(1.0)}
    none.update([boxes(scores=True)], [boxes(5.0)])
    assert none.compute()["AP"] == 0.0
    right.merge_state(none)
    assert 0.5 < right.compute()["AP"] < 1.0
    wrong = {"boxes": torch.tensor([[5.0, 5.0, 1.0, 1.0]]), "labels": torch.tensor([1]), "scores": torch.tensor([0.5])}
    with pytest.raises(DataError, match=r"A box is \[5.0, 5.0, 1.0, 1.0\]"):
        none.update([wrong], [boxes(5.0)])
    with pytest.raises(DataError, match="have no 'scores'"):
        none.update([boxes(5.0)], [boxes(5.0)])


def test_int8_files_are_calibrated_by_what_the_network_is_called_with() -> None:
    from secateurs.export.quantised import samples

    given = [{"mask": torch.ones(6, 2), "x": torch.arange(6.0)[:, None], "labels": torch.zeros(6)}]
    example = {"x": torch.zeros(1, 1), "mask": torch.zeros(1, 2)}
    task = sc.Task(lambda outputs, batch: outputs.mean(), lambda outputs, batch: 0.0).fed(example)
    held = from_batches(given, given, task)
    found = list(samples(InputsOf(BatchesOf(held.test, 4), held.task), 2))
    assert [[array.shape for array in part] for part in found] == [[(2, 1), (2, 2)]] * 3
    assert found[1][0].flatten().tolist() == [2.0, 3.0]
