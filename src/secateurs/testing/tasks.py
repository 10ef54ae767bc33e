"""The laws that every task obeys, for our named ones and for those of users."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from secateurs.data.accuracy import evaluate
from secateurs.data.calls import called, on
from secateurs.data.images import Data
from secateurs.data.nests import mapped
from secateurs.data.opening import from_batches
from secateurs.data.tasks.check import check_task
from secateurs.data.tasks.task import Task
from secateurs.recover.finetune import finetune
from secateurs.recover.recipe import Recipe


class TaskContract:
    """Laws of a task. A test inherits this and says what is tested; see docs/tasks.md."""

    @abstractmethod
    def task(self) -> Task:
        """The task."""

    @abstractmethod
    def network(self) -> nn.Module:
        """A small network with weights by a fixed seed."""

    @abstractmethod
    def example(self) -> Any:
        """An example of its inputs."""

    @abstractmethod
    def batches(self) -> list[Any]:
        """Two batches of at least four samples each, always the same."""

    @pytest.fixture
    def data(self) -> Data:
        """The batches as four splits."""
        task = self.task().fed(self.example(), self.network())
        return from_batches(self.batches(), self.batches(), task)

    def test_the_network_takes_the_batches_and_the_task_its_answers(self, data: Data) -> None:
        check_task(data, self.network())

    def test_an_evaluation_changes_nothing_and_gives_the_same_figure_again(self, data: Data) -> None:
        module = self.network()
        before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
        first, second = (evaluate(module, data.test, data.task) for _ in range(2))
        assert first.value == second.value
        assert first.loss == second.loss
        assert first.images == len(data.test)
        assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())

    def test_the_metric_is_one_of_all_samples(self, data: Data) -> None:
        whole, apart = evaluate(self.network(), data.test, data.task, batch=len(data.test)), []
        apart = [evaluate(self.network(), data.test, data.task, batch=size) for size in (2, 3)]
        for found in apart:
            assert found.value == pytest.approx(whole.value, rel=1e-4, abs=1e-6)

    def test_the_metric_says_which_way_is_better(self, data: Data) -> None:
        metric = data.task.measured
        low, high = sorted((0.25, 0.75), reverse=metric.better == "lower")
        assert metric.worth(low) < metric.worth(high)
        assert metric.gain(low, high) > 0
        assert metric.value_of(metric.worth(0.25)) == pytest.approx(0.25, rel=1e-6)

    def test_answers_are_no_distance_from_themselves_and_some_from_others(self, data: Data) -> None:
        module, task = self.network().eval(), data.task
        batch = data.test.batch(np.arange(4))
        with torch.no_grad():
            answers = called(module, on(task.called_with(batch), torch.device("cpu"), copy=True))
        assert float(task.apart(answers, answers)) == pytest.approx(0, abs=1e-6)
        moved = mapped(_shaken, answers)
        assert float(task.apart(moved, answers)) > 0

    def test_distance_and_loss_have_gradients(self, data: Data) -> None:
        module, task = self.network(), data.task
        batch = data.train.batch(np.arange(min(4, len(data.train))))
        inputs = on(task.called_with(batch), torch.device("cpu"), copy=True)
        with torch.no_grad():
            wanted = mapped(_shaken, called(module, inputs))
        task.training_loss(called(module, inputs), batch, wanted, alpha=0.5).backward()
        assert any(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in module.parameters())

    def test_it_can_be_trained_and_the_training_resumed(self, data: Data, tmp_path: Any) -> None:
        recipe = Recipe(epochs=1, lr=1e-3, batch=2, precision="fp32", layout="contiguous")
        done = finetune(self.network(), data, recipe, teacher=self.network(), checkpoint_dir=tmp_path / "run")
        again = finetune(
            self.network(), data, recipe, teacher=self.network(), checkpoint_dir=tmp_path / "run", resume=True
        )
        assert again.resumed_at > 0
        pairs = zip(done.module.parameters(), again.module.parameters(), strict=True)
        assert all(torch.equal(one, other) for one, other in pairs)


def _shaken(tensor: Tensor) -> Tensor:
    if not tensor.is_floating_point():
        return tensor
    generator = torch.Generator().manual_seed(1)
    return tensor + 0.5 * torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype)
