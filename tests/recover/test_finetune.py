from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import small_job
import torch
from torch import nn

from secateurs.data import Data, accuracy
from secateurs.errors import PlanError
from secateurs.recover.finetune import finetune
from secateurs.recover.recipe import Recipe
from secateurs.recover.training import scratch_recipe, train

RECIPE = small_job.RECIPE


def wide(seed: int) -> nn.Sequential:
    """The small job's network with five more outputs between and behind its three."""
    narrow = small_job.network(seed)
    assert isinstance(narrow, nn.Sequential)
    head = nn.Linear(288, 8)
    with torch.no_grad():
        head.weight[1:6:2], head.bias[1:6:2] = narrow[-1].weight, narrow[-1].bias
    return nn.Sequential(*narrow[:-1], head)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """The killed processes run on one thread; so must what they are compared with."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def _kill(folder: Path, step: int, saving: str) -> subprocess.Popen[bytes]:
    """A process that trains and is killed at ``step``."""
    return subprocess.Popen([sys.executable, small_job.__file__, str(folder), str(step), saving])


def _trained(folder: Path | None = None) -> tuple[int, dict[str, torch.Tensor]]:
    """Step that it began at, and the result, of a run (resumed where the folder has a checkpoint)."""
    module, resume = small_job.network(), folder is not None
    done = finetune(
        module, small_job.data(), RECIPE, teacher=small_job.network(1), checkpoint_dir=folder, resume=resume
    )
    return done.resumed_at, module.state_dict()


def _same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


def test_killed_and_resumed_ends_bit_for_bit_the_same(tmp_path: Path) -> None:
    # 5 steps an epoch: killed inside the first epoch and inside the second
    killed = {
        tmp_path / "first": (_kill(tmp_path / "first", 3, "every-step"), 2),
        tmp_path / "second": (_kill(tmp_path / "second", 8, "every-epoch"), 5),
    }
    _, expected = _trained()
    for folder, (process, resumed) in killed.items():
        assert process.wait(120) == -9
        began, result = _trained(folder)
        assert began == resumed
        assert _same(result, expected)


def test_the_same_twice() -> None:
    assert _same(_trained()[1], _trained()[1])


def test_a_finished_run_is_not_repeated(tmp_path: Path) -> None:
    first, second = small_job.network(), small_job.network()
    done = finetune(first, small_job.data(), RECIPE, checkpoint_dir=tmp_path)
    again = finetune(second, small_job.data(), RECIPE, checkpoint_dir=tmp_path, resume=True)
    assert (done.resumed_at, again.resumed_at) == (0, 15)
    assert again.epochs == done.epochs
    assert _same(first.state_dict(), second.state_dict())


def test_without_resume_it_starts_anew(tmp_path: Path) -> None:
    finetune(small_job.network(), small_job.data(), RECIPE, checkpoint_dir=tmp_path)
    assert finetune(small_job.network(), small_job.data(), RECIPE, checkpoint_dir=tmp_path).resumed_at == 0


@pytest.mark.parametrize("other", ["recipe", "network", "teacher", "images", "classes"])
def test_another_runs_checkpoint_is_refused(tmp_path: Path, other: str) -> None:
    short = replace(RECIPE, epochs=1)
    data = small_job.data()
    finetune(small_job.network(), data, short, checkpoint_dir=tmp_path)
    recipe = replace(short, lr=0.01) if other == "recipe" else short
    student = small_job.network(9 if other == "network" else 0)
    teacher = small_job.network(1) if other == "teacher" else None
    if other == "images":
        data = replace(data, train=data.train.take(60))
    if other == "classes":
        data = replace(data, classes=(0, 1, 2))
    before = {key: value.clone() for key, value in student.state_dict().items()}
    with pytest.raises(PlanError, match=f"belongs to another run: {other}"):
        finetune(student, data, recipe, teacher=teacher, checkpoint_dir=tmp_path, resume=True)
    assert _same(before, student.state_dict())


@pytest.mark.parametrize("damage", ["cut off", "foreign", "another number"])
def test_from_a_damaged_checkpoint_training_begins_anew(tmp_path: Path, damage: str) -> None:
    short = replace(RECIPE, epochs=1)
    whole = finetune(small_job.network(), small_job.data(), short, checkpoint_dir=tmp_path).module
    file = tmp_path / "checkpoint.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes({"cut off": content[:-100], "foreign": b"nothing", "another number": content}[damage])
    said: list[str] = []

    class Listening(small_job.Killer):
        def say(self, message: str) -> None:
            said.append(message)

    given = {"checkpoint_dir": tmp_path, "resume": True, "progress": Listening(-1)}
    again = finetune(small_job.network(), small_job.data(), short, **given)
    assert again.resumed_at == 0
    assert "is damaged" in said[0]
    assert "begins anew" in said[0]
    assert _same(again.module.state_dict(), whole.state_dict())


def test_an_unwritable_folder_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(PlanError, match="Cannot make folder"):
        finetune(small_job.network(), small_job.data(), RECIPE, checkpoint_dir=tmp_path / "file" / "x")


def test_it_learns() -> None:
    data = small_job.data()
    module = small_job.network()
    done = finetune(module, data, replace(RECIPE, epochs=8, ema=None, alpha=0.0))
    assert not module.training
    assert len(done.epochs) == 8
    assert done.epochs[-1].loss < 0.6 * done.epochs[0].loss
    assert accuracy(module, data.test) >= 0.8


def test_the_teacher_is_followed_and_unchanged() -> None:
    data, recipe = small_job.data(), replace(RECIPE, epochs=10, ema=None, alpha=1.0)
    teacher = small_job.network(3)
    otherwise = small_job.Noise(120)
    otherwise.labels = (otherwise.labels + 1) % 3
    train(teacher, replace(data, train=replace(data.train, source=otherwise)), replace(recipe, alpha=0.0))
    teacher.train()
    before = {key: value.clone() for key, value in teacher.state_dict().items()}
    module = small_job.network()
    finetune(module, data, recipe, teacher=teacher)
    assert teacher.training
    assert _same(before, teacher.state_dict())
    teacher.eval()
    inputs, labels = data.test.batch(np.arange(20))
    with torch.no_grad():
        answers = module(inputs).argmax(1)
        assert (answers == teacher(inputs).argmax(1)).float().mean() >= 0.8
    assert (answers == labels).float().mean() <= 0.2


def test_only_the_classes_that_count_are_learnt() -> None:
    narrow, data, recipe = small_job.network(), small_job.data(), replace(RECIPE, epochs=2, weight_decay=0.0, ema=None)
    expected = finetune(narrow, data, recipe, teacher=small_job.network(1))
    student, source = wide(0), small_job.Noise(120)
    source.labels = source.labels * 2 + 1
    moved = [replace(part, source=source) for part in (data.train, data.calibration, data.validation, data.test)]
    before = student[-1].weight.detach().clone()
    found = finetune(student, Data(*moved, classes=(1, 3, 5)), recipe, teacher=wide(1))
    assert isinstance(narrow, nn.Sequential)
    assert torch.allclose(student[-1].weight[1:6:2], narrow[-1].weight, atol=1e-5)
    assert torch.equal(student[-1].weight[::2], before[::2])
    for one, other in zip(expected.epochs, found.epochs, strict=True):
        assert one.loss == pytest.approx(other.loss, rel=1e-4)
        assert (one.train_accuracy, one.validation_accuracy) == (other.train_accuracy, other.validation_accuracy)


def test_global_random_states_are_left_alone() -> None:
    for seed in (torch.manual_seed, random.seed, np.random.seed):
        seed(4)
    expected = (torch.rand(1).item(), random.random(), np.random.rand())
    for seed in (torch.manual_seed, random.seed, np.random.seed):
        seed(4)
    finetune(_fresh(), small_job.data(), replace(RECIPE, epochs=1))
    assert (torch.rand(1).item(), random.random(), np.random.rand()) == expected


def _fresh() -> nn.Module:
    with torch.random.fork_rng():
        return small_job.network()


def test_divergence_is_told() -> None:
    module = small_job.network()
    with torch.no_grad():
        module[0].weight.fill_(float("nan"))
    with pytest.raises(PlanError, match="diverged"):
        finetune(module, small_job.data(), RECIPE)


def test_zero_epochs_change_nothing() -> None:
    module = small_job.network()
    before = {key: value.clone() for key, value in module.state_dict().items()}
    done = finetune(module, small_job.data(), replace(RECIPE, epochs=0, precision="auto", layout="auto"))
    assert done.epochs == ()
    assert _same(before, module.state_dict())
    assert not module.training


def test_every_mode_trains() -> None:
    for precision in ("fp32", "bf16"):
        for layout in ("contiguous", "channels_last"):
            module = small_job.network()
            done = finetune(module, small_job.data(), replace(RECIPE, epochs=1, precision=precision, layout=layout))
            assert (done.mode.precision, done.mode.layout) == (precision, layout)
            assert module[0].weight.is_contiguous()
            assert module[0].weight.dtype == torch.float32


@pytest.mark.parametrize("lies", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize("trained", ["contiguous", "channels_last"])
def test_weights_lie_afterwards_as_before(lies: torch.memory_format, trained: str) -> None:
    module = small_job.network().to(memory_format=lies)
    before = {name: parameter.stride() for name, parameter in module.named_parameters()}
    finetune(module, small_job.data(), replace(RECIPE, epochs=1, layout=trained))
    assert {name: parameter.stride() for name, parameter in module.named_parameters()} == before


def test_frozen_parameters_stay() -> None:
    module = small_job.network()
    module[0].weight.requires_grad_(False)
    before = module[0].weight.clone()
    finetune(module, small_job.data(), replace(RECIPE, epochs=1))
    assert torch.equal(before, module[0].weight)


def test_training_from_scratch() -> None:
    module = small_job.network()
    done = train(module, small_job.data(), replace(scratch_recipe(epochs=2), precision="fp32", layout="contiguous"))
    assert len(done.epochs) == 2


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("epochs", -1),
        ("lr", 0.0),
        ("lr", float("inf")),
        ("batch", 0),
        ("momentum", 1.0),
        ("weight_decay", -1.0),
        ("warmup", 1.0),
        ("alpha", 1.5),
        ("temperature", 0.0),
        ("label_smoothing", 1.0),
        ("ema", 1.0),
        ("precision", "fp8"),
        ("layout", "rows"),
        ("clip_norm", 0.0),
    ],
)
def test_settings_out_of_range(setting: str, value: object) -> None:
    with pytest.raises(PlanError, match=f"{setting}=.*out of range"):
        Recipe(**{setting: value})  # type: ignore[arg-type]
