"""Where a network must be rebuilt, it is said where and why, which sizes it takes, and what would keep its class."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from typer.testing import CliRunner

import secateurs as sc
from secateurs.cli.app import app
from secateurs.structure.advice import advice
from secateurs.testing.structure import random_cut


class Literal(nn.Module):
    """Writes a width into its code."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(6, 12, 3, padding=1), nn.Conv2d(12, 8, 1), nn.Conv2d(8, 10, 1)

    def forward(self, x):
        x = self.b(F.relu(self.a(x)))
        return self.c(x.flatten(2).view(-1, 8, x.shape[2] * x.shape[3]).view_as(x))


class Halves(nn.Module):
    """Two halves that only an even cut leaves equal."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(10, 16, 1), nn.Conv2d(8, 12, 1), nn.Conv2d(8, 12, 1)

    def forward(self, x):
        first, second = self.a(x).relu().chunk(2, 1)
        return self.b(first) * self.c(second)


class Net(nn.Module):
    """A stem, a block of which one may not follow, and a classifier."""

    def __init__(self, block: nn.Module, inputs: int, outputs: int) -> None:
        super().__init__()
        self.stem, self.block, self.fc = nn.Conv2d(3, inputs, 3, padding=1), block, nn.Linear(outputs, 5)

    def forward(self, x):
        return self.fc(self.block(F.relu(self.stem(x))).mean((2, 3)))


def literal() -> Net:
    torch.manual_seed(0)
    return Net(Literal(), 6, 10).eval()


def halves() -> Net:
    torch.manual_seed(0)
    return Net(Halves(), 10, 12).eval()


EXAMPLE = torch.randn(1, 3, 8, 8)


def test_a_class_that_follows_needs_no_advice() -> None:
    graph = sc.trace(Net(nn.Conv2d(6, 10, 1), 6, 10).eval(), EXAMPLE)
    assert advice(graph) is None
    plan = graph.plan(random_cut(graph, 0.4, 0))
    assert not {"warnings", "input_sizes"} & set(plan.provenance)


@pytest.mark.parametrize(
    ("build", "line", "some"), [(literal, "view(-1, 8", False), (halves, "self.b(first) * self.c(second)", True)]
)
def test_the_place_and_the_barriers_that_keep_the_class(build, line: str, some: bool) -> None:
    graph = sc.trace(build(), EXAMPLE)
    found = advice(graph)
    assert found is not None
    assert found.some is some
    assert found.module == "block"
    assert "test_advice.py:" in found.source
    assert line in found.source
    assert str(found.sizes) == "x [any, 3, any, any]"
    assert 0 < found.kept.parameters < found.rebuilt.parameters
    held = sc.trace(build(), EXAMPLE, barriers=found.barriers)
    assert advice(held) is None
    for seed in range(3):
        plan = held.plan(random_cut(held, 0.4, seed))
        assert plan.rebuild is None
        assert type(sc.apply(build(), plan, EXAMPLE)) is Net


class SplitThenLiteral(nn.Module):
    """An attribute that follows, and further on a number that cannot."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 16, 1), nn.Conv2d(8, 10, 1), nn.Conv1d(10, 4, 1)
        self.sizes = (8, 8)

    def forward(self, x):
        one, two = torch.split(self.a(x).relu(), self.sizes, dim=1)
        x = self.b(one * two.sigmoid())
        return self.c(x.flatten(2).view(-1, 10, x.shape[2] * x.shape[3]))


class NormAndReshape(nn.Module):
    """A layer that follows and a reshape that does not, on one line."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm = nn.Linear(3, 24), nn.LayerNorm(24, elementwise_affine=False)
        self.qkv, self.out, self.heads = nn.Linear(24, 24), nn.Linear(24, 5), 4

    def forward(self, x):
        x = self.a(x)
        y = self.qkv(self.norm(x)).reshape(-1, x.shape[1], self.heads, x.shape[2] // self.heads)
        return self.out(y.tanh().flatten(2))


class ReadsItsWidth(nn.Module):
    """A number of the dense network that Python reads off a size."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 16, 1), nn.Conv2d(16, 5, 1)

    def forward(self, x):
        x = self.a(x).relu()
        scaled = x / torch.sqrt(torch.tensor(x.shape[1]).to(x.dtype))
        return self.b(scaled).relu()


class LeavesItsWidth(nn.Module):
    """The same number written down is right; what follows is read off a size."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = ReadsItsWidth(), nn.Conv2d(5, 7, 1)

    def forward(self, x):
        return self.second(self.first(x) * 16**-0.5)


@pytest.mark.parametrize(
    ("build", "example", "module", "line", "words"),
    [
        (SplitThenLiteral, torch.randn(2, 3, 4, 4), "", "return self.c(x.flatten(2).view(-1, 10, ", "does not run"),
        (NormAndReshape, torch.randn(2, 7, 3), "", "y = self.qkv(self.norm(x)).reshape(", "shape '"),
        (ReadsItsWidth, torch.randn(2, 3, 4, 4), "", "scaled = x / torch.sqrt(torch.tensor(x.shape[1])", "else"),
        (LeavesItsWidth, torch.randn(2, 3, 4, 4), "first", "scaled = x / torch.sqrt(torch.tensor(x.shape[1])", "else"),
    ],
)
def test_the_line_is_the_one_that_no_attribute_helps(build, example, module: str, line: str, words: str) -> None:
    torch.manual_seed(0)
    found = advice(sc.trace(build().eval(), example))
    assert found.module == module
    assert line in found.source
    assert words in found.reason
    assert line in found.reason


def test_a_layer_that_nothing_reads_is_told() -> None:
    class Residuals(nn.Module):
        """The sum behind the last block is not used."""

        def __init__(self) -> None:
            super().__init__()
            self.first, self.skips = nn.Conv1d(3, 8, 1), nn.ModuleList(nn.Conv1d(12, 6, 1) for _ in range(2))
            self.inner = nn.ModuleList(nn.Conv1d(8, 12, 1) for _ in range(2))
            self.back = nn.ModuleList(nn.Conv1d(12, 8, 1) for _ in range(2))

        def forward(self, x):
            x, total = self.first(x), 0.0
            for inner, back, skip in zip(self.inner, self.back, self.skips, strict=True):
                y = inner(x).relu()
                x, total = x + back(y), total + skip(y)
            return total

    found = advice(sc.trace(Residuals().eval(), torch.randn(2, 3, 9)))
    assert "x, total = x + back(y), total + skip(y)" in found.source
    assert "Nothing reads what back.1 gives" in found.reason
    for build in (literal, halves):
        assert "Nothing reads" not in advice(sc.trace(build(), EXAMPLE)).reason


def test_the_shares_are_those_of_half_of_every_group() -> None:
    graph = sc.trace(halves(), EXAMPLE)
    found = advice(graph)
    kept = {group.name: range((group.units + 1) // 2) for group in graph.groups}
    small = sc.apply(halves(), graph.plan(kept), EXAMPLE)
    dense = sum(parameter.numel() for parameter in halves().parameters())
    assert found.rebuilt.parameters == pytest.approx(1 - sum(p.numel() for p in small.parameters()) / dense)


def test_a_plan_and_its_result_say_it() -> None:
    graph = sc.trace(literal(), EXAMPLE)
    with pytest.warns(UserWarning, match=r"rebuilt from the export and no Net: block does not follow \(test_advice.py"):
        plan = sc.plan(graph, keep=0.6, criterion="l2")
    assert plan.provenance["input_sizes"] == "x [any, 3, any, any]"
    assert "barriers=" in plan.provenance["warnings"][-1]
    assert ", in block (test_advice.py:" in plan.rebuild
    small = sc.apply(literal(), plan, EXAMPLE)
    assert "in block (test_advice.py:" in small.secateurs_rebuilt
    assert small.secateurs_sizes == "x [any, 3, any, any]"
    assert small(torch.randn(2, 3, 5, 9)).shape == (2, 5)


def test_plans_that_keep_the_class_say_nothing() -> None:
    graph = sc.trace(halves(), EXAMPLE)
    even = graph.plan({group.name: range(4) for group in graph.groups if group.name.startswith("block.a")})
    assert even.rebuild is None
    assert "warnings" not in even.provenance
    first, second = (group.name for group in graph.groups if group.name.startswith("block.a"))
    assert "does not follow" in graph.plan({first: range(3), second: range(8)}).provenance["warnings"][0]


def test_a_network_that_no_barrier_helps_is_told_so() -> None:
    class Counts(nn.Module):
        """Its own width is written down where everything goes through."""

        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 3)

        def forward(self, x):
            return self.b(self.a(x).relu().view(-1, 8))

    found = advice(sc.trace(Counts().eval(), torch.randn(2, 4)))
    assert found.barriers == ()
    assert "No barriers= were found" in str(found)


def test_doctor_shows_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = Path(__file__).read_text().partition("def test_a_class")[0]
    (tmp_path / "nets.py").write_text(source)
    monkeypatch.chdir(tmp_path)
    run = CliRunner().invoke(app, ["doctor", "nets.py:halves", "--input", "1,3,8,8", "--json"])
    assert run.exit_code == 0, run.output
    found = json.loads(run.stdout)["rebuilt"]
    assert found["module"] == "block"
    assert found["sizes"] == "x [any, 3, any, any]"
    assert found["barriers"]
    shown = CliRunner().invoke(app, ["doctor", "nets.py:halves", "--input", "1,3,8,8"]).stdout
    assert "some cuts need a network rebuilt from the export" in " ".join(shown.split())
