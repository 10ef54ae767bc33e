"""Groups left with few units are told, and criteria that do not compare groups cannot empty one."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner

import secateurs as sc
from secateurs.cli.app import app
from secateurs.importance.context import find_criterion, within_groups
from secateurs.planning.narrow import remarks
from secateurs.registry import names


class Uneven(nn.Module):
    """A stem, a residual stream of 32 units whose weights are tiny beside the others', and a wide tail."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.inner = nn.Conv2d(3, 32, 3, padding=1), nn.Conv2d(32, 40, 3, padding=1)
        self.back, self.tail = nn.Conv2d(40, 32, 3, padding=1), nn.Conv2d(32, 64, 3, padding=1)
        self.head = nn.Linear(64, 10)
        with torch.no_grad():
            for layer in (self.stem, self.back):
                layer.weight *= 1e-3

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        x = (x + self.back(self.inner(x).relu())).relu()
        return self.head(self.tail(x).relu().mean((2, 3)))


@pytest.fixture(scope="module")
def graph() -> sc.Graph:
    return sc.trace(Uneven(), torch.randn(1, 3, 8, 8))


def stream(graph: sc.Graph) -> str:
    return next(group.name for group in graph.groups if group.units == 32)


@pytest.mark.filterwarnings("ignore:.*:UserWarning")
@pytest.mark.parametrize("criterion", ["l1", "l2", "random", "fpgm"])
def test_a_group_of_small_weights_keeps_a_tenth(graph: sc.Graph, criterion: str) -> None:
    """Before, one of 32 units stayed, and nothing was said."""
    plan = sc.plan(graph, macs="8%", criterion=criterion, legal=sc.Legal(blocks=False))
    for group in graph.groups:
        assert len(plan.groups[group.name]) >= np.ceil(0.1 * group.units), group.name
    if criterion == "l1":
        assert len(plan.groups[stream(graph)]) == 4
        [note] = [line for line in plan.provenance["warnings"] if "do not tell what groups are worth" in line]
        assert "--min-width" in note


def test_the_users_own_least_width_wins(graph: sc.Graph) -> None:
    with pytest.warns(UserWarning, match=r"Less than a tenth of the units stay in .*\(\d of 32\)"):
        plan = sc.plan(graph, macs="8%", criterion="l1", legal=sc.Legal(min_width=1, blocks=False))
    assert len(plan.groups[stream(graph)]) < 4
    plan = sc.plan(graph, macs="50%", criterion="l1", legal=sc.Legal(min_width=6, blocks=False))
    assert min(map(len, plan.groups.values())) >= 6
    assert not any("do not tell" in line for line in plan.provenance.get("warnings", ()))


def test_which_criteria_have_a_floor() -> None:
    compare = {name for name in names("criteria") if find_criterion(name).compares_groups}
    assert compare >= {"measured", "fisher_obs", "fisher", "taylor", "obd", "obs", "splamp", "lamp"}
    assert not compare & {"random", "l1", "l2", "l2_folded", "bn_scale", "fpgm", "activation", "acs", "acs_self"}


@pytest.mark.filterwarnings("ignore:.*:UserWarning")
def test_a_users_own_function_may_say_that_it_compares_no_groups(graph: sc.Graph) -> None:
    def small(graph: sc.Graph, group: str, context: object) -> np.ndarray:
        units = graph.groups[graph.group_index(group)].units
        return np.arange(1, units + 1) * (1e-9 if units == 32 else 1.0)

    legal = sc.Legal(blocks=False)
    free = sc.plan(graph, macs="8%", criterion=small, legal=legal)
    assert len(free.groups[stream(graph)]) < 4
    held = sc.plan(graph, macs="8%", criterion=within_groups(small), legal=legal)
    assert len(held.groups[stream(graph)]) == 4


def test_narrow_groups_and_bottlenecks(graph: sc.Graph) -> None:
    whole = {group.name: group.units for group in graph.groups}
    assert remarks(graph, whole) == []
    tail = next(group.name for group in graph.groups if group.units == 64)
    inner = next(group.name for group in graph.groups if group.units == 40)
    [few] = remarks(graph, {**whole, tail: 6})
    assert "Less than a tenth" in few
    assert f"{tail} (6 of 64)" in few
    assert "--min-width above 6" in few
    [neck] = remarks(graph, {**whole, tail: 9})
    assert neck.startswith(f"Bottlenecks, through which all passes: {tail} (9 of 64)")
    assert remarks(graph, {**whole, inner: 6}) == []  # a shortcut leads around it
    assert remarks(graph, {}) == []
    assert remarks(graph, {name: units // 3 for name, units in whole.items()}) == []


def test_the_plan_verb_and_the_record_say_so(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(Path(__file__).read_text() + "\n\ndef make():\n    return Uneven()\n")
    words = [
        "plan",
        f"{tmp_path}/net.py:make",
        "--input",
        "1,3,8,8",
        "--macs",
        "8%",
        "--criterion",
        "l1",
        "--json",
        "--no-blocks",
    ]
    result = CliRunner().invoke(app, [*words, "-o", str(tmp_path / "plan.json"), "--min-width", "1"])
    assert result.exit_code == 0, result.stderr
    assert any("Less than a tenth" in line for line in json.loads(result.stdout)["warnings"])
    assert "Less than a tenth" in " ".join(result.stderr.split())
    result = CliRunner().invoke(app, [*words, "-o", str(tmp_path / "plan.json")])
    assert "do not tell what groups are worth" in " ".join(result.stderr.split())
