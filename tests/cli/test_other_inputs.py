"""Networks that take something else than one image: their plans come from Python and go through the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from typer.testing import CliRunner, Result

import secateurs as sc
from secateurs.cli.app import app
from secateurs.models import load_module

FACTORY = """
import dataclasses
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.one, self.two = nn.Embedding(9, 12), nn.Linear(12, 20), nn.Linear(20, 3)

    def mixed(self, ids, scale=1.0):
        return self.two(self.one(self.table(ids)).relu()) * scale

class Tokens(Net):
    def forward(self, ids, mask=None, scale=2):
        found = self.mixed(ids, scale)
        return found if mask is None else found * mask[..., None]

class Nested(Net):
    def forward(self, batch, flag=False):
        assert type(batch["pair"]) is tuple and flag is True
        return {"out": self.mixed(batch["ids"]) + batch["pair"][0][..., None] * batch[3]}

@dataclasses.dataclass
class Batch:
    ids: torch.Tensor

class Object(Net):
    def forward(self, batch):
        return self.mixed(batch.ids)
"""
IDS, FLOATS = torch.randint(0, 9, (2, 5)), torch.randn(2, 5)
EXAMPLES: dict[str, tuple[str, Any]] = {
    "integers": ("Tokens", IDS),
    "by name": ("Tokens", {"mask": FLOATS, "ids": IDS}),
    "numbers": ("Tokens", ((IDS, None, 3), {})),
    "nested, a number as key": ("Nested", (({"ids": IDS, "pair": (FLOATS, None), 3: 0.5},), {"flag": True})),
}


def call(*words: str | Path) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words])


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("other") / "net.py"
    path.write_text(FACTORY)
    return path


def planned(model: str, example: Any, folder: Path) -> Path:
    torch.manual_seed(0)
    plan = sc.plan(sc.trace(load_module(model)[0], example), keep=0.6, criterion="l2")
    plan.save(folder / "plan.json")
    return folder / "plan.json"


@pytest.mark.parametrize("name", EXAMPLES)
@pytest.mark.parametrize("more", [(), ("--dynamic-batch",)])
def test_a_plan_of_any_example_is_carried_out_and_exported(
    name: str, more: tuple[str, ...], file: Path, tmp_path: Path
) -> None:
    kind, example = EXAMPLES[name]
    model, out = f"{file}:{kind}", tmp_path / "small.onnx"
    plan = planned(model, example, tmp_path)
    result = call("export", model, plan, "--batch", 2, "-o", out, *more)
    assert result.exit_code == 0, result.stderr
    assert call("apply", model, plan, "-o", tmp_path / "small.safetensors").exit_code == 0
    session = onnxruntime.InferenceSession(out)
    assert len(session.get_inputs()) == sum(isinstance(leaf, torch.Tensor) for leaf in leaves(example))


def leaves(example: Any) -> list[Any]:
    return torch.utils._pytree.tree_leaves(example)


def test_the_file_computes_what_the_cut_network_does(file: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, out = f"{file}:Tokens", tmp_path / "small.onnx"
    example = {"mask": FLOATS, "ids": IDS}
    plan = planned(model, example, tmp_path)
    assert call("export", model, plan, "--batch", 2, "-o", out, "--seed", 4).exit_code == 0
    network = load_module(model, seed=4)[0]
    small = sc.apply(network, sc.Plan.load(plan), example).eval()
    assert type(small) is type(network)
    (found,) = onnxruntime.InferenceSession(out).run(None, {"mask": FLOATS.numpy(), "ids": IDS.numpy()})
    np.testing.assert_allclose(found, small(**example).detach().numpy(), atol=1e-5)
    assert found.shape == (2, 5, 3)


def test_the_pruned_network_is_measured(file: Path, tmp_path: Path, fake_target: str) -> None:
    model = f"{file}:Tokens"
    plan = planned(model, {"mask": FLOATS, "ids": IDS}, tmp_path)
    result = call("compare", model, plan, "--target", fake_target)
    assert result.exit_code == 0, result.stderr


def test_an_object_that_a_plan_does_not_hold_is_told(file: Path, tmp_path: Path) -> None:
    model = f"{file}:Object"
    network = load_module(model)[0]
    batch = type(network).forward.__globals__["Batch"](IDS)
    plan = planned(model, batch, tmp_path)
    result = call("export", model, plan, "-o", tmp_path / "small.onnx")
    assert result.exit_code == 1
    said = " ".join(result.stderr.split())
    assert "holds a Batch" in said
    assert "apply(model, plan, example)" in said
    with pytest.raises(sc.StructureError, match="holds a Batch"):
        sc.apply(network, sc.Plan.load(plan))
    assert sc.apply(network, sc.Plan.load(plan), batch)(batch).shape == (2, 5, 3)
