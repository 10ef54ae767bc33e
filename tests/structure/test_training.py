"""Pruning inside a training loop, and one plan on every process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from networks import ResNet, image, plan_of
from torch import nn

import secateurs
from secateurs.errors import StructureError
from secateurs.structure import agree_on_plan, apply, trace


def trained(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int = 2) -> None:
    """A few steps, so that the optimiser holds state."""
    model.train()
    for step in range(steps):
        optimizer.zero_grad()
        torch.manual_seed(step)
        model(torch.randn(4, 3, 12, 12)).pow(2).mean().backward()
        optimizer.step()


@pytest.mark.parametrize(
    "make",
    [
        lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9),
        lambda p: torch.optim.AdamW(p, lr=1e-3, amsgrad=True),
        lambda p: torch.optim.RMSprop(p, lr=1e-3, momentum=0.5),
    ],
    ids=["sgd", "adamw", "rmsprop"],
)
def test_state_is_sliced_along(make) -> None:
    model = ResNet()
    optimizer = make(model.parameters())
    trained(model, optimizer)
    before = {n: dict(optimizer.state[p]) for n, p in model.named_parameters()}
    plan = plan_of(trace(model, image()))
    small = apply(model, plan, image(), optimizer=optimizer)
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert held == {id(p) for p in small.parameters()}
    for name, parameter in small.named_parameters():
        for key, value in optimizer.state[parameter].items():
            old = before[name][key]
            if isinstance(value, torch.Tensor) and value.dim():
                for dim, kept in plan.slices.get(name, {}).items():
                    old = old.index_select(dim, torch.tensor(kept))
                assert torch.equal(value, old)
            else:
                assert value == old
    trained(small, optimizer, 1)


def test_parameters_of_a_removed_block_leave_the_optimiser() -> None:
    model = ResNet()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    trained(model, optimizer)
    small = apply(model, trace(model, image()).plan({}, ["blocks.0"]), image(), optimizer=optimizer)
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(list(small.parameters()))
    trained(small, optimizer, 1)


def test_an_optimiser_of_another_network_is_refused() -> None:
    model = ResNet()
    with pytest.raises(StructureError, match="no parameter of ResNet"):
        apply(model, plan_of(trace(model, image())), image(), optimizer=torch.optim.SGD(ResNet().parameters(), lr=0.1))


def test_without_processes_the_plan_is_just_decided() -> None:
    plan = plan_of(trace(ResNet(), image()))
    assert agree_on_plan(lambda: plan) is plan


@pytest.mark.parametrize("fails", [False, True])
def test_two_processes_agree(tmp_path: Path, fails: bool) -> None:
    script = str(Path(__file__).with_name("two_processes.py"))
    sources = os.pathsep.join([str(Path(secateurs.__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "PYTHONPATH": sources}
    running = [
        subprocess.Popen([sys.executable, script, str(rank), str(tmp_path), str(int(fails))], env=environment)
        for rank in range(2)
    ]
    try:
        assert [process.wait(timeout=240) for process in running] == [0, 0]
    finally:
        for process in running:
            process.kill()
    first, second = ((tmp_path / f"{rank}.txt").read_text() for rank in (0, 1))
    if fails:
        assert first == "ValueError: no budget"
        assert second == "PlanError: Rank 0 could not decide on a plan: no budget"
    else:
        assert first == second
