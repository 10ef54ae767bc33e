"""Checkpoints as people have them: which weights are taken and how names are changed is always told."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from secateurs import models
from secateurs.errors import DataError

State = dict[str, Tensor]
FACTORY = "from torch import nn\ndef make():\n    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))\n"


def network() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))


@pytest.fixture
def state() -> State:
    torch.manual_seed(3)
    return {name: torch.rand_like(value.float()).to(value.dtype) for name, value in network().state_dict().items()}


def prefixed(state: State, prefix: str) -> State:
    return {prefix + name: value for name, value in state.items()}


def other(state: State) -> State:
    return {name: value + 1 for name, value in state.items()}


CASES: dict[str, tuple[Callable[[State], Any], str]] = {
    "plain": (lambda s: s, ""),
    "state_dict": (lambda s: {"epoch": 3, "state_dict": s}, "weights are 'state_dict'"),
    "model": (lambda s: {"model": s, "optimizer": {"state": {0: {"m": torch.ones(1)}}}}, "weights are 'model'"),
    "nested": (lambda s: {"model": {"state_dict": s, "step": 1}}, "weights are 'model.state_dict'"),
    "another name": (lambda s: {"generator": s}, "weights are 'generator'"),
    "DataParallel": (lambda s: prefixed(s, "module."), "'module.' of DataParallel"),
    "compiled": (lambda s: prefixed(s, "_orig_mod."), "'_orig_mod.' of torch.compile"),
    "both": (lambda s: {"model": prefixed(s, "_orig_mod.module.")}, "'_orig_mod.' of torch.compile, 'module.'"),
    "a compiled part": (
        lambda s: {name.replace("0.", "0._orig_mod.", 1): value for name, value in s.items()},
        "'_orig_mod.' of torch.compile",
    ),
    "averaged": (lambda s: {"n_averaged": torch.tensor(5), **prefixed(s, "module.")}, "an average's count"),
    "beside its average": (
        lambda s: {"state_dict": s, "state_dict_ema": other(s)},
        "for a running average of them give --weights",
    ),
    "lightning": (
        lambda s: {"state_dict": {**prefixed(s, "model.net."), "loss.weight": torch.ones(2)}},
        "those below 'model.net.'",
    ),
    "half": (lambda s: {name: v.half() if v.is_floating_point() else v for name, v in s.items()}, "holds float16"),
    "bfloat16": (
        lambda s: {name: v.bfloat16() if v.is_floating_point() else v for name, v in s.items()},
        "holds bfloat16",
    ),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("ending", ["pth", "ckpt", "pth.tar"])
def test_the_weights_are_found_and_what_was_done_is_told(case: str, ending: str, state: State, tmp_path: Path) -> None:
    make, told = CASES[case]
    path, module = tmp_path / f"w.{ending}", network()
    torch.save(make(state), path)
    weights = models.fitted(models.read_weights(path), module)
    models.load_into(module, weights, "it")
    close = 1e-2 if "holds" in told else 0
    assert all(torch.allclose(value, state[name], atol=close) for name, value in module.state_dict().items())
    assert told in " ".join(weights.notes)
    assert bool(weights.notes) == bool(told)


def test_the_notes_reach_the_user(state: State, tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(FACTORY)
    torch.save({"ema": state}, tmp_path / "w.pth")
    loaded = models.load(f"{tmp_path}/net.py:make?size=8", weights=tmp_path / "w.pth")
    assert any("'ema'" in note for note in loaded.notes)


def test_an_average_can_be_named_and_is_rebuilt(state: State, tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(FACTORY)
    torch.save({"state_dict": state, "state_dict_ema": other(state)}, tmp_path / "w.pth")
    loaded = models.load(f"{tmp_path}/net.py:make?size=8", weights=f"{tmp_path}/w.pth::state_dict_ema")
    again = models.rebuild(loaded.source)
    for module in (loaded.module, again.module):
        assert torch.equal(module[0].weight, state["0.weight"] + 1)


@pytest.mark.parametrize(
    ("held", "part", "message"),
    [
        (
            {"generator": {"a": torch.ones(1)}, "critic": {"a": torch.ones(1)}},
            "",
            r"several sets.*generator, critic.*::generator",
        ),
        ({"first_ema": {"a": torch.ones(1)}, "swa": {"a": torch.ones(1)}}, "", "several sets"),
        ({"model": {"a": torch.ones(1)}}, "::best", "no weights under 'best'. It has model"),
        ({"epoch": 3}, "", "no state dict of tensors"),
        ({3: torch.ones(1)}, "", "no name of a tensor"),
        ([torch.ones(1)], "", "no state dict of tensors .found list"),
    ],
)
def test_what_cannot_be_told_is_asked(held: Any, part: str, message: str, tmp_path: Path) -> None:
    torch.save(held, tmp_path / "w.pth")
    with pytest.raises(DataError, match=message):
        models.read_weights(f"{tmp_path}/w.pth{part}")
