"""What a network does in training mode alone is cut along, judged, and never lost without a word."""

from __future__ import annotations

import copy
import pickle
import random
import warnings

import pytest
import torch
from torch import nn
from two_modes_networks import DIFFERENT, SideBranch, StochasticDepth, Trunk, conv

import secateurs as sc
from secateurs.errors import StructureError
from secateurs.structure import Graph, check_plan, verify
from secateurs.structure.comparison import nest_of, relative_difference
from secateurs.structure.modes import INTERPRETER, MASKED, RUN_ONLY, training_of
from secateurs.structure.precision import Float64
from secateurs.structure.scratch import mask_removed, scratch
from secateurs.structure.two_modes import TwoModes
from secateurs.testing.structure import random_cut, verdict


def example(batch: int = 1) -> torch.Tensor:
    return torch.randn(batch, 3, 8, 8, generator=torch.Generator().manual_seed(5))


def halved(graph: Graph):
    return graph.plan(random_cut(graph, 0.4, 1))


def trains(network: nn.Module, batch: int) -> bool:
    """Whether a forward and a backward in training mode run, and every parameter gets a gradient."""
    network = copy.deepcopy(network).train()
    try:
        outputs = network(example(batch))
    except ValueError:
        return False
    leaves = [leaf for leaf in torch.utils._pytree.tree_leaves(outputs) if isinstance(leaf, torch.Tensor)]
    sum(leaf.float().pow(2).mean() for leaf in leaves).backward()
    return all(parameter.grad is not None for parameter in network.parameters())


def gap_in_training(model: nn.Module, small: nn.Module, plan) -> float:
    """Difference to the dense network with removed indices at zero, both in training mode; chance is none."""
    dense = mask_removed(model.double().train(), plan)
    with Float64(), torch.no_grad():
        return relative_difference(small.double().train()(example(4).double()), dense(example(4).double()))


@pytest.mark.parametrize("name", DIFFERENT)
@pytest.mark.parametrize("rebuilt", [False, True], ids=["own class", "rebuilt"])
def test_what_training_alone_reads_is_cut_along(name: str, rebuilt: bool) -> None:
    torch.manual_seed(0)
    model = scratch(DIFFERENT[name].build(), 3).float().train()
    graph = sc.trace(model, example())
    plan = halved(graph)
    assert plan.rebuild is None
    for parameter, dim in DIFFERENT[name].along:
        assert plan.removed().get(parameter, {}).get(dim), parameter
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        small = sc.apply(model, plan.model_copy(update={"rebuild": "to try it"}) if rebuilt else plan, example())
    assert (type(small) is TwoModes) == rebuilt
    for mode in (False, True):
        with torch.no_grad():
            ours, theirs = small.train(mode)(example(2)), copy.deepcopy(model).train(mode)(example(2))
        assert nest_of(ours) == nest_of(theirs)
    for batch in (2, 1):
        assert trains(small, batch) == trains(model, batch)
    assert trains(small, 2)
    if plan.provenance["training"] == MASKED:
        assert gap_in_training(model, small, plan) < 1e-9


@pytest.mark.parametrize("name", DIFFERENT)
def test_evaluation_is_right_as_well(name: str) -> None:
    torch.manual_seed(0)
    model = DIFFERENT[name].build()
    graph = sc.trace(model, example())
    assert verdict(model, example(), graph=graph).outcome == "right"


def test_statistics_of_training_alone_ask_the_interpreter() -> None:
    plan = halved(sc.trace(DIFFERENT["NormalisedHead"].build(), example()))
    assert plan.provenance["training"] == INTERPRETER
    assert "statistics" not in plan.provenance


def test_what_training_alone_compares_stays_together() -> None:
    graph = sc.trace(DIFFERENT["Agreement"].build(), example())
    plan = halved(graph)
    assert plan.slices["a.0.weight"][0] == plan.slices["b.0.weight"][0]


@pytest.mark.parametrize("name", ["PooledHead", "SideBranch", "NormalisedHead", "AttentiveHead"])
def test_damage_to_what_training_alone_reads_is_caught(name: str) -> None:
    model = DIFFERENT[name].build()
    graph = sc.trace(model, example())
    plan = halved(graph)
    parameter, dim = DIFFERENT[name].along[0]
    kept = plan.slices[parameter][dim]
    other = next(i for i in range(99) if i not in kept)
    damaged = {**plan.slices, parameter: {**plan.slices[parameter], dim: tuple(sorted((*kept[1:], other)))}}
    with pytest.raises(StructureError, match="in training mode"):
        check_plan(model, plan.model_copy(update={"slices": damaged}), example(), graph=graph)


def test_a_network_that_does_nothing_else_is_traced_once() -> None:
    class Plain(Trunk):
        def __init__(self) -> None:
            super().__init__()
            self.drop = nn.Dropout(0.3)

        def forward(self, x):
            return self.classify(self.drop(self.b(self.a(x))))

    graph = sc.trace(Plain(), example())
    assert graph.training is None
    assert graph.training_mode.kind == "same"
    assert "training" not in halved(graph).provenance


class Functional(Trunk):
    """Dropout that is no module."""

    def forward(self, x):
        return self.classify(nn.functional.dropout(self.b(self.a(x)), 0.5, self.training))


def test_chance_alone_costs_no_second_trace_but_is_kept_in_a_rebuilt_network() -> None:
    model = Functional()
    graph = sc.trace(model, example())
    assert graph.training is None
    assert graph.training_mode.kind == "chance"
    small = sc.apply(model, halved(graph).model_copy(update={"rebuild": "to try it"}), example()).train()
    for norm in ("a.1", "b.1"):
        small.get_submodule(norm).eval()
    assert not torch.equal(small(example(2)), small(example(2)))
    assert torch.equal(small.eval()(example(2)), small(example(2)))


class Uneven(Trunk):
    """Halves that a forward cannot cut unevenly, and two outputs in training."""

    def __init__(self) -> None:
        super().__init__()
        self.b, self.c, self.aux = conv(8, 12), conv(8, 12), nn.Linear(8, 5)

    def forward(self, x):
        first, second = self.a(x).chunk(2, 1)
        out = self.classify(self.b(first) + self.c(second))
        return {"out": out, "aux": self.aux(second.mean((2, 3)))} if self.training else out


def uneven(model: nn.Module):
    graph = sc.trace(model, example())
    first, second = (group.name for group in graph.groups[:2])
    return graph.plan({first: range(2), second: range(7)})


def test_a_network_that_must_be_rebuilt_keeps_both_nests() -> None:
    model = Uneven()
    small = sc.apply(model, uneven(model), example())
    assert hasattr(small, "secateurs_rebuilt")
    assert list(small.train()(example(2))) == ["out", "aux"]
    assert small.eval()(example(2)).shape == (2, 5)
    assert trains(small, 2)
    assert trains(small, 1) == trains(model, 1)


def test_a_rebuilt_network_of_two_modes_is_one_module() -> None:
    model = Uneven()
    small = sc.apply(model, uneven(model), example())
    for other in (copy.deepcopy(small), pickle.loads(pickle.dumps(small)), copy.deepcopy(small).double().float()):
        other.train()(example(4))
        assert int(other.get_buffer("b.1.num_batches_tracked")) == 1
        assert other.secateurs_rebuilt == small.secateurs_rebuilt
        with torch.no_grad():
            other.fc.weight.zero_(), other.fc.bias.zero_()
        assert not other.eval()(example(2)).any()
        assert not other.train()(example(2))["out"].any()
    names = [name for name, _ in small.named_parameters()]
    assert len(names) == len(set(names)) == len(list(model.parameters()))
    program = torch.export.export(small.eval(), (example(2),))
    assert program.graph_signature.user_inputs == ("x",)
    again = sc.trace(small, example())
    assert verdict(small, example(), graph=again).outcome == "right"


class Normalised(Trunk):
    """A statistic over units, so that the interpreter judges; a number and two kinds of containers come out."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(12)

    def forward(self, x):
        x = self.norm(self.b(self.a(x)).mean((2, 3)))
        return {"out": self.fc(x), "sizes": (12, [x.mean(1) * 0])}


def test_a_rebuilt_network_that_an_interpreter_judges_keeps_its_nest(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Normalised()
    plan = halved(sc.trace(model, example())).model_copy(update={"rebuild": "to try it"})
    assert plan.provenance["statistics"]
    small = sc.apply(model, plan, example()).eval()
    assert nest_of(small(example(2))) == nest_of(model.eval()(example(2)))

    class Flat(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x):
            return list(self.inner(x).values())

    whole = verify.build
    monkeypatch.setattr(verify, "build", lambda *args: Flat(whole(*args)))
    with pytest.raises(StructureError, match="list of 2 in place of dict with out, sizes"):
        sc.apply(model, plan, example())


class Undecided(Trunk):
    """Training draws whether a layer runs: it cannot be exported."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.aux = conv(16, 16), nn.Linear(12, 5)

    def forward(self, x):
        x = self.a(x)
        if not self.training or bool(torch.rand(()) < 0.5):
            x = x + self.inner(x)
        x = self.b(x)
        out = self.classify(x)
        return (out, self.aux(x.mean((2, 3)))) if self.training else out


def test_training_that_cannot_be_exported_is_told_and_tried() -> None:
    model = Undecided()
    graph = sc.trace(model, example())
    assert graph.training is None
    assert graph.judge_in_training == RUN_ONLY
    with pytest.warns(UserWarning, match="aux.weight"):
        plan = sc.plan(graph, keep=0.6, criterion="l1")
    assert any("could not be exported" in warning for warning in plan.provenance["warnings"])
    assert "in training mode" in plan.rebuild
    with pytest.warns(UserWarning, match="returns a tensor there, not tuple of 2, and 2 parameters"):
        small = sc.apply(model, plan, example())
    assert small.train()(example(2)).shape == (2, 5)


class LayerDrop(Trunk):
    """Python's random numbers say which layers run in training; an auxiliary head reads the last."""

    def __init__(self) -> None:
        super().__init__()
        self.layers, self.aux = nn.ModuleList(conv(16, 16) for _ in range(3)), nn.Linear(12, 5)

    def forward(self, x):
        x = self.a(x)
        for layer in self.layers:
            if not self.training or random.random() < 0.6:
                x = layer(x)
        x = self.b(x)
        out = self.classify(x)
        return (out, self.aux(x.mean((2, 3)))) if self.training else out


@pytest.mark.parametrize("seed", [1, *(pytest.param(seed, marks=pytest.mark.long) for seed in (3, 5))])
def test_layers_that_are_dropped_at_random_stay_random(seed: int) -> None:
    """Whatever was dropped while the network was traced: the last two, nothing, or everything."""
    random.seed(seed)
    model = LayerDrop()
    graph = sc.trace(model, example())
    plan = halved(graph)
    assert plan.rebuild is None
    assert plan.removed()["aux.weight"][1]
    assert "warnings" not in plan.provenance
    small = sc.apply(model, plan, example())
    run = set()
    for layer in small.layers:
        layer.register_forward_hook(lambda module, inputs, output: run.add(module))
    for seed in range(20):
        random.seed(seed)
        small.train()(example(2))
    assert len(run) == 3


def test_a_rebuilt_network_holds_no_draw_for_good() -> None:
    model = LayerDrop()
    plan = halved(sc.trace(model, example())).model_copy(update={"rebuild": "to try it"})
    with pytest.warns(UserWarning, match="an export would hold one draw for good.*aux.weight"):
        small = sc.apply(model, plan, example()).train()
    assert small(example(2)).shape == (2, 5)
    assert len(list(small.layers.children())) == 3


class Targets(Trunk):
    """Training needs what evaluation does not."""

    def __init__(self) -> None:
        super().__init__()
        self.aux = nn.Linear(12, 5)

    def forward(self, x, target=None):
        x = self.b(self.a(x))
        if not self.training:
            return self.classify(x)
        if target is None:
            raise ValueError("targets should not be None")
        return nn.functional.cross_entropy(self.classify(x) + self.aux(x.mean((2, 3))), target)


def test_training_that_does_not_run_on_the_example_is_told() -> None:
    model = Targets()
    graph = sc.trace(model, example())
    assert "targets should not be None" in str(graph)
    with pytest.warns(UserWarning, match=r"does not run in training mode.*aux\.weight.*runs in both modes"):
        plan = sc.plan(graph, keep=0.6, criterion="l1")
    small = sc.apply(model, plan, example())
    assert small.eval()(example(2)).shape == (2, 5)


def test_an_example_that_runs_in_both_modes_mends_it() -> None:
    model, inputs = Targets(), (example(2), torch.tensor([0, 1]))
    graph = sc.trace(model, inputs)
    plan = halved(graph)
    assert plan.removed()["aux.weight"][1]
    small = sc.apply(model, plan, inputs)
    small.train()(*inputs).backward()
    assert all(parameter.grad is not None for parameter in small.parameters())


def test_an_operator_that_training_alone_has_is_a_barrier() -> None:
    class Counts(Trunk):
        def forward(self, x):
            x = self.b(self.a(x))
            out = self.classify(x)
            return (out, torch.histc(x, 8, -1, 1)) if self.training else out

    graph = sc.trace(Counts(), example())
    assert [(barrier.operator, barrier.reason) for barrier in graph.barriers] == [
        ("aten.histc.default", "no rule for operator aten.histc.default")
    ]
    assert [group.name for group in graph.groups] == ["a.0:out"]


def test_features_that_training_returns_stay_and_say_so() -> None:
    class Features(Trunk):
        def forward(self, x):
            y = self.a(x)
            out = self.classify(self.b(y))
            return (out, y) if self.training else out

    graph = sc.trace(Features(), example())
    assert [group.name for group in graph.groups] == ["b.0:out"]
    reasons = {pin.reason for pin in sc.structure.inspect(graph).pins}
    assert "it is an output of the network in training mode" in reasons


def test_a_barrier_may_name_what_training_alone_runs() -> None:
    graph = sc.trace(DIFFERENT["PooledHead"].build(), example(), barriers=("aux",))
    assert [group.name for group in graph.groups] == ["b.0:out"]


class FrozenStatistics(SideBranch):
    """Training never touches the statistics of the trunk."""

    def train(self, mode: bool = True):
        super().train(mode)
        self.a[1].eval()
        return self


def test_frozen_statistics_stay_frozen_in_a_rebuilt_network() -> None:
    model = FrozenStatistics()
    plan = halved(sc.trace(model, example())).model_copy(update={"rebuild": "to try it"})
    small = sc.apply(model, plan, example()).train()
    before = {name: buffer.clone() for name, buffer in small.named_buffers()}
    small(example(4))
    moved = {name for name, buffer in small.named_buffers() if not torch.equal(buffer, before[name])}
    assert "side.1.running_mean" in moved
    assert not any(name.startswith("a.1.") for name in moved)


def test_blocks_that_training_sees_too_can_go() -> None:
    model = StochasticDepth()
    graph = sc.trace(model, example())
    assert [block.name for block in graph.blocks] == ["inner.0"]
    for rebuilt in (False, True):
        plan = graph.plan({}, ["inner.0"])
        if rebuilt:
            plan = plan.model_copy(update={"rebuild": "to try it"})
        small = sc.apply(model, plan, example())
        assert not [name for name, _ in small.named_parameters() if name.startswith("inner")]
        assert small.train()(example(2)).shape == (2, 5)


def test_a_block_that_an_auxiliary_head_looks_into_stays() -> None:
    class Inside(Trunk):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.aux = conv(16, 16), nn.Linear(16, 5)

        def forward(self, x):
            x = self.a(x)
            y = self.inner(x)
            out = self.classify(self.b(x + y))
            return (out, self.aux(y.mean((2, 3)))) if self.training else out

    assert not sc.trace(Inside(), example()).blocks


def test_modes_are_told_apart_by_running() -> None:
    assert training_of(DIFFERENT["PooledHead"].build(), (example(),), {}).outputs == (
        "dict with out",
        "dict with out, aux",
    )
    assert training_of(Functional(), (example(),), {}).kind == "chance"
    assert training_of(Targets(), (example(),), {}).kind == "fails"
    assert training_of(conv(3, 4), (example(),), {}).kind == "same"
