"""Networks in other forms: each is cut, or refused with the true reason and what to do."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.ao import quantization
from torch.nn.utils import prune

import secateurs as sc
from secateurs.structure import trace
from secateurs.structure.forms import plain

EXAMPLE = torch.randn(2, 3, 8, 8)


class Two(nn.Module):
    """Two convolutions, a batch norm and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.bn = nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16)
        self.b, self.fc = nn.Conv2d(16, 12, 3, padding=1), nn.Linear(12, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(torch.relu(self.b(torch.relu(self.bn(self.a(x))))).mean((2, 3)))


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def exported(**options: object) -> nn.Module:
    """The module of an exported program."""
    return torch.export.export(Two().eval(), (EXAMPLE,), strict=False, **options).module()  # type: ignore[arg-type]


FORMS: dict[str, Callable[[], nn.Module]] = {
    "exported": exported,
    "exported_with_free_batch": lambda: exported(dynamic_shapes=({0: torch.export.Dim.AUTO},)),
    "fx": lambda: torch.fx.symbolic_trace(Two().eval()),
    "compiled": lambda: torch.compile(Two().eval(), backend="eager"),  # type: ignore[dict-item]
    "data_parallel": lambda: nn.DataParallel(Two().eval()),
    "averaged": lambda: torch.optim.swa_utils.AveragedModel(Two().eval()).eval(),
    "compiled_data_parallel": lambda: torch.compile(nn.DataParallel(Two().eval()), backend="eager"),  # type: ignore[dict-item]
}


@pytest.mark.parametrize("name", list(FORMS))
def test_forms_that_are_cut(name: str) -> None:
    """The plan is that of the network inside, and what comes back is that network, smaller."""
    model = FORMS[name]()
    graph = trace(model, EXAMPLE)
    assert [(group.name, group.units) for group in graph.groups] == [("a:out", 16), ("b:out", 12)]
    made = sc.plan(graph, keep=0.5, criterion="l2")
    small = sc.apply(model, made, EXAMPLE)
    assert isinstance(small, torch.fx.GraphModule) or type(small) is Two
    assert small.get_parameter("b.weight").shape == (6, 8, 3, 3)
    assert small.eval()(EXAMPLE).shape == (2, 5)
    small.train()(EXAMPLE).sum().backward()
    if name not in ("fx", "exported", "exported_with_free_batch"):
        assert sc.apply(plain(model), made, EXAMPLE).get_parameter("b.weight").equal(small.get_parameter("b.weight"))


def test_an_exported_module_is_left_as_it_was() -> None:
    model = exported()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    sc.apply(model, sc.plan(trace(model, EXAMPLE), keep=0.5, criterion="l2"), EXAMPLE)
    assert all(tensor.equal(before[name]) for name, tensor in model.state_dict().items())
    with pytest.raises(NotImplementedError):
        model.eval()
    assert model(EXAMPLE).shape == (2, 5)


@pytest.mark.parametrize("kind", [torch.half, torch.bfloat16, torch.float64])
def test_number_formats_stay(kind: torch.dtype) -> None:
    model, example = Two().eval().to(kind), EXAMPLE.to(kind)
    small = sc.apply(model, sc.plan(trace(model, example), keep=0.5, criterion="l2"), example)
    assert {tensor.dtype for tensor in small.parameters()} == {kind}
    assert small(example).dtype == kind


def masked() -> Two:
    """Half of the filters of one layer, half of the weights of the other and a quarter of its biases are masked."""
    model = Two().eval()
    prune.random_structured(model.a, "weight", amount=0.5, dim=0)
    prune.random_unstructured(model.b, "weight", amount=0.5)
    prune.l1_unstructured(model.b, "bias", amount=3)
    return model


def test_masks_are_cut_along_and_count_in_scores() -> None:
    model = masked()
    empty = [i for i in range(16) if not model.a.weight[i].any()]
    made = sc.plan(trace(model, EXAMPLE), keep=0.5, criterion="l2")
    assert set(made.groups["a:out"]).isdisjoint(empty)
    small = sc.apply(model, made, EXAMPLE)
    kept = list(made.groups["a:out"])
    assert small.a.weight.equal(model.a.weight[kept])
    assert small.b.bias.shape == small.b.bias_mask.shape == (6,)
    assert small.b.weight.equal(small.b.weight_orig * small.b.weight_mask)
    small.train()(EXAMPLE).sum().backward()
    torch.optim.SGD(small.parameters(), 0.1).step()
    small(EXAMPLE)
    assert not small.b.weight[small.b.weight_mask == 0].any()
    for name in ("weight", "bias"):
        prune.remove(small.b, name)
    assert not hasattr(small.b, "weight_mask")


def test_containers_of_masks() -> None:
    model = masked()
    prune.l1_unstructured(model.b, "weight", amount=0.5)
    prune.global_unstructured([(model.fc, "weight"), (model.a, "bias")], prune.L1Unstructured, amount=0.3)
    small = sc.apply(model, sc.plan(trace(model, EXAMPLE), keep=0.5, criterion="l2"), EXAMPLE)
    assert small.fc.weight_mask.shape == small.fc.weight.shape == (5, 6)


@pytest.mark.parametrize("norm", [nn.utils.weight_norm, nn.utils.spectral_norm])
def test_weights_of_old_hooks_are_small_at_once(norm: Callable[[nn.Module], nn.Module]) -> None:
    model = Two().eval()
    norm(model.b)
    small = sc.apply(model, sc.plan(trace(model, EXAMPLE), keep=0.5, criterion="l2"), EXAMPLE)
    assert small.b.weight.shape == (6, 8, 3, 3)


class StoredSmall(nn.Module):
    """Integers with a step per row, turned into numbers in the forward."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.register_buffer("packed", torch.randint(-127, 127, (outputs, inputs), dtype=torch.int8))
        self.register_buffer("step", torch.rand(outputs, 1) + 0.1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(x, self.packed.to(x.dtype) * self.step.to(x.dtype))


def test_integers_that_become_weights_are_cut() -> None:
    model = nn.Sequential(StoredSmall(6, 16), nn.ReLU(), StoredSmall(16, 12), nn.ReLU(), nn.Linear(12, 5)).eval()
    graph = trace(model, torch.randn(2, 6))
    assert [group.units for group in graph.groups] == [16, 12]
    small = sc.apply(model, graph.plan({group.name: range(0, group.units, 2) for group in graph.groups}))
    assert (small[2].packed.shape, small[2].packed.dtype) == ((6, 8), torch.int8)


def observed(qat: bool) -> nn.Module:
    """A network prepared for quantisation."""
    model = nn.Sequential(quantization.QuantStub(), Two(), quantization.DeQuantStub())
    model.train(qat)
    model.qconfig = (quantization.get_default_qat_qconfig if qat else quantization.get_default_qconfig)("fbgemm")
    model = (quantization.prepare_qat if qat else quantization.prepare)(model)
    model(EXAMPLE)
    return model.eval()


class Int8Params(nn.Parameter):
    """Packed weights as other packages make them."""


def packed() -> nn.Module:
    """A layer whose weight is packed integers."""
    model = Two()
    model.fc._parameters["weight"] = Int8Params(torch.zeros(5, 12, dtype=torch.int8), requires_grad=False)
    return model


def subclassed() -> nn.Module:
    """A layer whose weight is a wrapper around quantised tensors."""
    quantize = pytest.importorskip("torchao.quantization")
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 32))
    quantize.quantize_(model, quantize.Int8WeightOnlyConfig())
    return model


def sparse() -> nn.Module:
    """A layer whose weight is stored sparsely."""
    model = Two()
    model.fc.weight = nn.Parameter(model.fc.weight.detach().to_sparse())
    return model


def on_meta() -> nn.Module:
    """A network without values."""
    with torch.device("meta"):
        return Two()


class FullyShardedDataParallel(nn.Module):
    """Stands for the wrapper of that name, which needs several processes."""

    def __init__(self) -> None:
        super().__init__()
        self.module = Two()


REFUSED: dict[str, tuple[Callable[[], object], str]] = {
    "scripted": (lambda: torch.jit.script(Two()), "TorchScript.*Give the nn.Module that it was made from"),
    "jit_traced": (lambda: torch.jit.trace(Two().eval(), EXAMPLE), "TorchScript.*Give the nn.Module"),
    "program": (lambda: torch.export.export(Two(), (EXAMPLE,)), "exported program.*program.module()"),
    "function": (lambda: torch.relu, "must be a torch.nn.Module"),
    "observers": (lambda: observed(qat=False), "Observer.*quantisation of the dense network.*Prune the float network"),
    "fake_quantised": (lambda: observed(qat=True), "FakeQuant.*Prune the float network first"),
    "static_int8": (
        lambda: quantization.convert(observed(qat=False)),
        "packed integers.*Prune the float network first",
    ),
    "dynamic_int8": (
        lambda: quantization.quantize_dynamic(Two().eval(), {nn.Linear}, dtype=torch.qint8),
        "^fc is a Linear: its weights are packed integers",
    ),
    "packed": (packed, "fc.weight is a Int8Params of torch.int8.*Prune the float network first"),
    "subclassed": (subclassed, "0.weight is a .*Tensor.*torchao.*Prune the float network first"),
    "sparse": (sparse, "fc.weight is stored in the layout torch.sparse_coo.*to_dense"),
    "meta": (on_meta, "a.weight is on the meta device.*Load the weights"),
    "sharded": (FullyShardedDataParallel, "pieces on several processes.*Gather them"),
    "lazy": (lambda: nn.Sequential(nn.LazyConv2d(4, 1)), "0.weight has no shape yet"),
}


@pytest.mark.parametrize("name", list(REFUSED))
def test_forms_that_are_refused(name: str) -> None:
    build, words = REFUSED[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = build()
    with pytest.raises(sc.StructureError, match=words):
        trace(model, EXAMPLE)  # type: ignore[arg-type]
    made = sc.plan(trace(Two().eval(), EXAMPLE), keep=0.5, criterion="l2")
    with pytest.raises(sc.StructureError, match=words):
        sc.apply(model, made)  # type: ignore[arg-type]


class Branching(nn.Module):
    """Python code that looks at a value."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + 1 if x.sum() > 0 else x - 1


class WritingIntoChunks(nn.Module):
    """An in-place write into one of several views."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first, second = (x * 2).requires_grad_().clone().chunk(2, 2)
        return first.mul_(3) + second


@torch.library.custom_op("secateurs_tests::rounded", mutates_args=())
def rounded(x: torch.Tensor) -> torch.Tensor:
    """An operator of somebody's own."""
    return x.round()


torch.library.define("secateurs_tests::floored", "(Tensor x) -> Tensor")


@torch.library.impl("secateurs_tests::floored", "cpu")
def floored(x: torch.Tensor) -> torch.Tensor:
    """The same, registered as an operator of C++ is."""
    return x.floor()


class Rounding(nn.Module):
    """An operator of which PyTorch knows no shapes."""

    def __init__(self, operator: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.a, self.operator = nn.Conv2d(3, 4, 1), operator

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.operator(self.a(x))


class Packing(nn.Module):
    """A packed sequence whose lengths are values."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(8, 4, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.mean(1)
        lengths = (x > 0).any(-1).sum(-1).clamp(min=1)
        packed = nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        return self.gru(packed)[1]


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (Packing(), r"packed sequence is as long as values.*padded sequence"),
        (Branching(), r"branches or loops on values of a tensor.*torch\.where"),
        (WritingIntoChunks(), r"one of several views.*by slicing"),
        (Rounding(rounded), r"rounded.*cannot tell the shapes.*register_fake"),
        (Rounding(torch.ops.secateurs_tests.floored), r"floored.*cannot tell the shapes.*register_fake"),
    ],
)
def test_what_is_in_the_way_of_an_export(model: nn.Module, words: str) -> None:
    with pytest.raises(sc.StructureError, match=words):
        trace(model.eval(), EXAMPLE)


class Within(nn.Module):
    """A module whose forward cannot be exported, inside another."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.a, self.inner = nn.Conv2d(3, 3, 1), inner

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(self.a(x))


class AsNumber(nn.Module):
    """A value becomes a number of Python's."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        most = int(x.argmax())
        return x[:, : most % 3 + 1]


class Looping(nn.Module):
    """A loop over what passes a condition."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = x * 2
        for place in x.flatten(1).mean(0).gt(0).nonzero():
            out = out + place
        return out


class Picking(nn.Module):
    """A branch on how many pass a condition."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found = x[x > 0]
        return found[:9] if found.numel() > 9 else found


@pytest.mark.parametrize(
    ("inner", "line"),
    [
        (Branching(), "return x + 1 if x.sum() > 0 else x - 1"),
        (AsNumber(), "most = int(x.argmax())"),
        (Looping(), "for place in x.flatten(1).mean(0).gt(0).nonzero():"),
        (Picking(), "return found[:9] if found.numel() > 9 else found"),
    ],
)
def test_a_forward_that_depends_on_values_is_refused_in_whole_sentences(inner: nn.Module, line: str) -> None:
    with pytest.raises(sc.StructureError) as refused:
        trace(Within(inner).eval(), EXAMPLE)
    said = str(refused.value)
    assert f"in inner (test_forms.py:{_line_of(line)}: {line})" in said
    assert "branches or loops on values of a tensor" in said
    assert "torch.where" in said
    assert "trace the modules before it by themselves" in said
    assert not any(words in said for words in ("u0", "Could not", "unhinted", "Sym", "symbol"))


def _line_of(text: str) -> int:
    lines = Path(__file__).read_text(encoding="utf-8").splitlines()
    return next(number for number, line in enumerate(lines, 1) if line.strip() == text)


def test_what_is_in_the_way_of_an_export_is_named_with_its_line() -> None:
    with pytest.raises(sc.StructureError, match=r"in inner \(test_forms.py:\d+: return first.mul_\(3\) \+ second\)"):
        trace(Within(WritingIntoChunks()).eval(), EXAMPLE)
