"""Plans that leave layers in float where files are quantised: what they hold, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from secateurs.errors import PlanError
from secateurs.plan import Plan
from secateurs.structure import apply, trace


@pytest.fixture(scope="module")
def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 6, 3)).eval()


@pytest.fixture(scope="module")
def plan(network: nn.Module) -> Plan:
    return trace(network, torch.randn(1, 3, 8, 8)).plan({"0:out": (0, 2, 4, 6)})


def mixed(plan: Plan, *layers: str) -> Plan:
    return plan.model_copy(update={"precision": dict.fromkeys(layers, "float")})


def test_a_plan_without_a_mix_says_nothing_of_it(plan: Plan) -> None:
    assert "precision" not in json.loads(plan.to_json())
    assert "precision" not in plan.diff(plan)
    assert plan.in_float == frozenset()


def test_a_mixed_plan_is_read_back_and_cuts_the_same(plan: Plan, network: nn.Module, tmp_path: Path) -> None:
    mixed(plan, "3").save(tmp_path / "plan.json")
    held = Plan.load(tmp_path / "plan.json")
    assert held == mixed(plan, "3")
    assert held.in_float == {"3"}
    x = torch.randn(1, 3, 8, 8)
    assert torch.equal(apply(network, held, x)(x), apply(network, plan, x)(x))


def test_the_difference_names_layers(plan: Plan) -> None:
    found = mixed(plan, "0").diff(mixed(plan, "3"))
    assert found["precision"] == (("0",), ("3",))
    assert not found["groups"]
    assert plan.diff(mixed(plan, "3"))["precision"] == ((), ("3",))


@pytest.mark.parametrize("name", ["layer9.conv", "1", ""])
def test_a_name_that_is_no_layer_is_refused(plan: Plan, name: str) -> None:
    with pytest.raises(PlanError, match=f"here.json leaves {name!r} in float, .* such as 0, 3"):
        Plan.from_json(mixed(plan, name).to_json(), "here.json")


def test_another_precision_is_refused(plan: Plan) -> None:
    raw = json.loads(plan.to_json()) | {"precision": {"0": "int4"}}
    with pytest.raises(PlanError, match=r"damaged at precision\.0.*'float'"):
        Plan.from_json(json.dumps(raw))


def test_two_rounds_keep_what_either_leaves_in_float(plan: Plan, network: nn.Module) -> None:
    x = torch.randn(1, 3, 8, 8)
    second = trace(apply(network, plan, x), x).plan({"0:out": (0, 1)})
    assert mixed(plan, "0").then(mixed(second, "3")).in_float == {"0", "3"}
    assert mixed(plan, "0").then(second).in_float == {"0"}
