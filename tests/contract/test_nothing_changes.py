"""After every public call module, loaders, random states and PyTorch's settings are bit for bit as before."""

from __future__ import annotations

import os
import random
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import secateurs as sc
from secateurs.latency import model as latency_model
from secateurs.models import Preprocessing
from secateurs.recover.precision import fastest_mode


class Own(nn.Module):
    """A small network with everything that a call could disturb: statistics, dropout, hooks, attributes, a counter."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.second = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.3))
        self.head = nn.Linear(8, 4)
        self.told: list[int] = [1]
        self.register_buffer("seen", torch.zeros((), dtype=torch.long))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.second(self.first(x)).mean((2, 3)))


def network() -> Own:
    """In train mode, with a part in evaluation mode and one that is frozen; a hook; gradients that are there."""
    torch.manual_seed(5)
    model = Own().train()
    model.first.eval()
    model.first[0].weight.requires_grad_(False)
    model.head.register_forward_hook(lambda module, inputs, output: None)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.ones_like(parameter)
    return model


class Stream(IterableDataset):  # type: ignore[type-arg]
    """Images that are drawn anew in every pass."""

    def __init__(self, count: int) -> None:
        self.count, self.rng = count, np.random.default_rng(3)

    def __iter__(self) -> Iterator[Any]:
        for number in range(self.count):
            yield torch.from_numpy(self.rng.normal(number % 4, 1, (3, 8, 8)).astype(np.float32)), number % 4


def loaders() -> tuple[Any, Any]:
    generator = torch.Generator().manual_seed(2)
    labels = torch.arange(64) % 4
    images = torch.randn(64, 3, 8, 8, generator=generator) + labels[:, None, None, None]
    shuffled = DataLoader(TensorDataset(images, labels), 16, shuffle=True, generator=generator)
    return shuffled, DataLoader(Stream(32), batch_size=8)


def of_module(model: nn.Module) -> dict[str, Any]:
    """Everything there is to see of a module, tensors as bytes."""
    found: dict[str, Any] = {}
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        found[name] = (id(tensor), tensor.dtype, tensor.device, tensor.requires_grad, tensor.stride())
        found[name] += (tensor.detach().numpy().tobytes(),)
        found[f"{name}.grad"] = None if tensor.grad is None else tensor.grad.numpy().tobytes()
    for name, module in model.named_modules():
        found[f"{name}:mode"] = module.training
        for key, value in vars(module).items():
            if isinstance(value, dict):
                found[f"{name}:{key}"] = [(one, id(two)) for one, two in value.items()]
            else:
                found[f"{name}:{key}"] = repr(value)
    return found


def of_process() -> dict[str, Any]:
    """Settings and random states of Python, NumPy and PyTorch."""
    _, keys, *numpy_rest = np.random.get_state(legacy=True)
    return {
        "random": random.getstate(),
        "numpy": (keys.tobytes(), numpy_rest),
        "torch": torch.get_rng_state().numpy().tobytes(),
        "dtype": torch.get_default_dtype(),
        "threads": torch.get_num_threads(),
        "deterministic": (
            torch.are_deterministic_algorithms_enabled(),
            torch.is_deterministic_algorithms_warn_only_enabled(),
        ),
        "grad": torch.is_grad_enabled(),
        "inference": torch.is_inference_mode_enabled(),
        "anomaly": torch.is_anomaly_enabled(),
        "autocast": torch.is_autocast_enabled("cpu"),
        "precision": torch.get_float32_matmul_precision(),
        "environment": dict(os.environ),
        "numpy errors": np.geterr(),
        "warnings": list(warnings.filters),
        "here": Path.cwd(),
    }


def of_loaders(pair: tuple[Any, Any]) -> dict[str, Any]:
    shuffled, stream = pair
    return {
        "shuffled": shuffled.generator.get_state().numpy().tobytes(),
        "sampler": shuffled.sampler.generator.get_state().numpy().tobytes(),
        "stream": repr(stream.dataset.rng.bit_generator.state),
        "images": shuffled.dataset.tensors[0].numpy().tobytes(),
    }


@pytest.fixture
def unusual() -> Iterator[None]:
    """Settings that are not PyTorch's own."""
    held = torch.get_num_threads()
    torch.set_num_threads(2)
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.set_float32_matmul_precision("high")
    torch.manual_seed(11)
    random.seed(12)
    np.random.seed(13)
    with np.errstate(under="raise"):
        yield
    torch.set_num_threads(held)
    torch.use_deterministic_algorithms(False)
    torch.set_float32_matmul_precision("highest")


EXAMPLE = (1, 3, 8, 8)


def _prune(model: nn.Module, example: torch.Tensor, data: tuple[Any, Any], target: str) -> object:
    return sc.prune(
        model,
        example,
        data=data,
        target=target,
        latency="80%",
        criterion="l1",
        normalize=Preprocessing(),
        allow_chance=True,
        threads=1,
        epochs=1,
    )


def _plan(model: nn.Module, example: torch.Tensor, data: tuple[Any, Any], target: str) -> object:
    return sc.plan(sc.trace(model, example), macs="70%", strategy="global-rank", criterion="taylor", data=data[0])


def _apply(model: nn.Module, example: torch.Tensor, data: tuple[Any, Any], target: str) -> object:
    made = sc.plan(sc.trace(model, example), keep=0.5, criterion="l1")
    return sc.apply(model, made, example)


CASES: dict[str, tuple[Callable[..., Any], Callable[[nn.Module, torch.Tensor, tuple[Any, Any], str], object]]] = {
    "trace": (torch.inference_mode, lambda model, example, data, target: sc.trace(model, example)),
    "plan": (torch.no_grad, _plan),
    "apply": (torch.inference_mode, _apply),
    "profile": (
        torch.inference_mode,
        lambda model, example, data, target: sc.profile(sc.trace(model, example), target),
    ),
    "prune": (torch.no_grad, _prune),
}


@pytest.mark.parametrize("call", CASES)
def test_nothing_of_the_users_changes(
    call: str, fake_target: str, unusual: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = latency_model.profile
    monkeypatch.setattr(latency_model, "profile", lambda *a, **k: real(*a, **{**k, "samples": 12}))
    model, data, example = network(), loaders(), torch.randn(*EXAMPLE, generator=torch.Generator().manual_seed(1))
    surrounded, work = CASES[call]
    with surrounded():
        before = of_module(model), of_loaders(data), of_process()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            work(model, example, data, fake_target)
        after = of_module(model), of_loaders(data), of_process()
    for was, is_now in zip(before, after, strict=True):
        assert {name for name in was if was[name] != is_now.get(name)} == set()
        assert set(was) == set(is_now)


def test_a_trial_of_number_formats_leaves_the_teacher_alone() -> None:
    teacher, student = network(), network()
    before = of_module(teacher), of_process()
    fastest_mode(student, teacher, torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(1)))
    assert (of_module(teacher), of_process()) == before
