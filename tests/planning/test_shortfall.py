"""Nothing removed is an error that names what holds everything; little removed is a warning that the plan keeps."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize
from typer.testing import CliRunner

import secateurs as sc
from secateurs.cli.app import app
from secateurs.structure import trace
from secateurs.structure.holding import holds, shortfall


class Two(nn.Module):
    """Two convolutions and a classifier."""

    def __init__(self, wrap=lambda layer: layer, channels: tuple[int, int] = (16, 12)) -> None:  # type: ignore[no-untyped-def]
        super().__init__()
        first, second = channels
        self.a = wrap(nn.Conv2d(3, first, 3, padding=1))
        self.b = wrap(nn.Conv2d(first, second, 3, padding=1))
        self.fc = nn.Linear(second, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(torch.relu(self.b(torch.relu(self.a(x)))).mean((2, 3)))


class PerChannel(nn.Module):
    """A module of one channel for every channel of the input, in a loop."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(1, 1, 3, padding=1) for _ in range(8))
        self.fc = nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        outs = []
        for i, conv in enumerate(self.convs):
            outs.append(conv(x[:, i : i + 1]))
        return self.fc(torch.relu(torch.cat(outs, 1)).mean((2, 3)))


class BySingularValue(nn.Module):
    """Divides a weight by what depends on the whole of it."""

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return weight / torch.linalg.svdvals(weight.flatten(1))[0]


class Counted(nn.Module):
    """A weight from an operator that has no rule."""

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return weight * torch.histc(weight, 3)[0]


def weighed(kind: type[nn.Module]) -> nn.Module:
    """Two convolutions whose weights a parametrisation computes."""
    return Two(lambda layer: parametrize.register_parametrization(layer, "weight", kind()))


IMAGE = torch.randn(2, 3, 8, 8)


@pytest.mark.parametrize(
    ("model", "example", "words"),
    [
        (PerChannel(), torch.randn(2, 8, 8, 8), ("convs.0, convs.1 and 6 more", "only output", "outs.append(conv")),
        (weighed(BySingularValue), IMAGE, ("16 units of a", "whole", "aten.linalg_svdvals", "test_shortfall.py")),
        (weighed(Counted), IMAGE, ("aten.histc", "a.parametrizations.weight.0", "weight * torch.histc(weight, 3)")),
        (nn.Sequential(nn.Conv2d(3, 5, 1)), IMAGE, ("5 units of 0", "output of the network")),
    ],
)
@pytest.mark.parametrize("asked", [{"keep": 0.6}, {"macs": "60%"}, {"macs": "60%", "strategy": "uniform"}])
def test_nothing_can_go(
    model: nn.Module, example: torch.Tensor, words: tuple[str, ...], asked: dict[str, object]
) -> None:
    graph = trace(model.eval(), example)
    with pytest.raises(sc.PlanError, match="Nothing in this network can be pruned") as caught:
        sc.plan(graph, **asked)  # type: ignore[arg-type]
    for word in words:
        assert word in str(caught.value)


def test_a_network_of_outputs_alone_is_told_what_can_be_done() -> None:
    with pytest.raises(sc.PlanError) as caught:
        sc.plan(trace(nn.Sequential(nn.Conv2d(3, 5, 1)).eval(), IMAGE), keep=0.6)
    message = str(caught.value)
    assert "5 units of 0: it is an output of the network. What a network returns keeps its size" in message
    assert "together with the layers that read its outputs" in message
    assert "remove_parametrizations" not in message


class ByHand(nn.Module):
    """A LayerNorm over channels, written out."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.a(x)
        centred = x - x.mean(1, keepdim=True)
        return self.b(centred / (centred.pow(2).mean(1, keepdim=True) + 1e-5).sqrt())


def test_statistics_by_hand_are_told_their_cure() -> None:
    with pytest.raises(sc.PlanError) as caught:
        sc.plan(trace(ByHand().eval(), IMAGE), keep=0.6)
    message = str(caught.value)
    assert "8 units of a: a reduction runs over this axis at aten.mean.dim" in message
    assert "use nn.LayerNorm, nn.RMSNorm, nn.GroupNorm" in message
    assert "remove_parametrizations" not in message


@pytest.mark.parametrize(
    ("held", "words"),
    [
        ({"keep": ("*",)}, ("group a:out is kept whole by keep=", "group b:out")),
        ({"barriers": ("a", "b")}, ("declared a barrier at aten.conv2d.default in a",)),
        ({"barriers": ("aten.conv2d*",)}, ("declared a barrier",)),
    ],
)
def test_patterns_that_hold_everything(held: dict[str, tuple[str, ...]], words: tuple[str, ...]) -> None:
    graph = trace(Two().eval(), IMAGE, **held)  # type: ignore[arg-type]
    for asked in ({"keep": 0.6}, {"macs": "50%"}):
        with pytest.raises(sc.PlanError) as caught:
            sc.plan(graph, **asked)  # type: ignore[arg-type]
        assert all(word in str(caught.value) for word in words)


def test_everything_may_stay() -> None:
    """Whoever asks for nothing gets nothing and no complaint, but of a network without groups no plan is made."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made = sc.plan(trace(Two().eval(), IMAGE), keep=1.0, criterion="l2")
    assert made.removed() == {}
    assert "warnings" not in made.provenance


@pytest.mark.parametrize("wrap", [parametrizations.spectral_norm, parametrizations.weight_norm, nn.utils.spectral_norm])
def test_normalised_weights_are_counted_scored_and_cut(wrap) -> None:  # type: ignore[no-untyped-def]
    """Multiply-adds are those of plain layers, and a criterion of weights finds them."""
    model = Two(wrap).eval()
    graph, plain = trace(model, IMAGE), trace(Two().eval(), IMAGE)
    assert graph.spec.macs(graph.spec.dense_widths) == plain.spec.macs(plain.spec.dense_widths)
    assert [group.name for group in graph.groups] == ["a:out", "b:out"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made = sc.plan(graph, keep=0.6, criterion="l2")
        sc.plan(graph, macs="50%", criterion="l2")
    small = sc.apply(model, made, IMAGE)
    assert small(IMAGE).shape == (2, 5)  # old-style weights are computed when the layer runs
    assert small.a.weight.shape == (10, 3, 3, 3)
    assert small.b.weight.shape == (7, 10, 3, 3)


class OneOfThree(nn.Module):
    """Most of the network is held, a little is not."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 32, 3, padding=1), nn.Conv2d(32, 32, 3, padding=1), nn.Conv2d(32, 4, 1)
        self.d = nn.Conv2d(4, 5, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.sort(self.a(x), 1)[0]
        return self.d(torch.relu(self.c(torch.sort(self.b(x), 1)[0])))


def test_little_can_go() -> None:
    graph = trace(OneOfThree().eval(), IMAGE)
    with pytest.warns(UserWarning, match=r"40% of the network was to go.*aten.sort.*test_shortfall.py") as caught:
        made = sc.plan(graph, keep=0.6, criterion="l2")
    assert made.provenance["warnings"] == [str(caught[0].message)]
    assert sc.Plan.from_json(made.to_json()).provenance["warnings"] == made.provenance["warnings"]
    assert made.removed()


def test_a_budget_out_of_reach_names_what_holds_the_network() -> None:
    graph = trace(OneOfThree().eval(), IMAGE)
    for strategy in ("knapsack", "uniform", "splamp"):
        with pytest.raises(sc.InfeasibleBudgetError, match=r"64 units|32 units of a.*aten.sort"):
            sc.plan(graph, macs="60%", strategy=strategy)


def test_groups_too_small_for_the_ratio() -> None:
    graph = trace(Two(channels=(2, 2)).eval(), IMAGE)
    with pytest.warns(UserWarning, match="2 of 2 groups are too small to lose a unit at this ratio"):
        made = sc.plan(graph, keep=0.8, criterion="l2")
    assert made.removed() == {}


def test_legal_widths_hold_for_a_ratio_too() -> None:
    graph = trace(Two().eval(), IMAGE)
    made = sc.plan(graph, keep=0.25, criterion="l2", legal=sc.Legal(min_width=8, pinned=("b:out",)))
    assert made.widths() == {"a:out": 8, "b:out": 12}


def test_places_are_listed_most_first() -> None:
    found = holds(trace(OneOfThree().eval(), IMAGE))
    assert [hold.units for hold in found] == [32, 32, 5]
    assert found[-1].reason == "it is an output of the network"
    assert "sort" in found[0].operator
    assert found[0].layers == ("a",)
    assert shortfall(trace(Two().eval(), IMAGE), 0.9) is None


def test_the_command_line_says_it(tmp_path: Path) -> None:
    net = tmp_path / "net.py"
    net.write_text(
        "import torch\nfrom torch import nn\n\nclass Net(nn.Module):\n    def __init__(self):\n"
        "        super().__init__()\n        self.a, self.b = nn.Conv2d(3, 32, 3), nn.Conv2d(32, 4, 1)\n"
        "        self.c = nn.Conv2d(4, 5, 1)\n\n    def forward(self, x):\n"
        "        return self.c(self.b(torch.sort(self.a(x), 1)[0]))\n"
    )
    words = ["plan", f"{net}:Net", "--input", "3,8,8", "--ratio", "0.6", "--criterion", "l2"]
    plan = str(tmp_path / "plan.json")
    said = CliRunner().invoke(app, [*words, "-o", plan, "--json"])
    assert said.exit_code == 0
    assert "aten.sort" in json.loads(said.stdout)["warnings"][0]
    assert "Warning: 40% of the network" in " ".join(said.stderr.split())
    failed = CliRunner().invoke(app, [*words, "--keep", "*", "-o", plan])
    assert failed.exit_code == 1
    message = failed.stderr.strip().splitlines()[-1]
    assert "Nothing in this network can be pruned" in message
    assert len(message) < 1200
