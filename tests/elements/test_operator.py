from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from secateurs.elements import native
from secateurs.elements.module import SparseConv2d
from secateurs.elements.operator import geometry, sparse_conv2d
from secateurs.elements.packing import pack, unpack
from secateurs.errors import PlanError, SecateursError


def layer(activation: str = "none", **options: object) -> tuple[nn.Conv2d, SparseConv2d]:
    torch.manual_seed(0)
    conv = nn.Conv2d(12, 24, 3, **{"padding": 1, **options})
    conv.weight.data *= torch.rand(1, conv.weight.shape[1], 3, 3) < 0.4
    return conv, SparseConv2d.from_dense(conv, block=8, activation=activation)


@pytest.mark.parametrize(
    "options",
    [{}, {"stride": 2}, {"padding": "same", "dilation": 2}, {"padding": "valid"}, {"groups": 3}, {"bias": False}],
)
def test_module_equals_its_dense_layer(options: dict) -> None:
    conv, sparse = layer(**options)
    x = torch.randn(2, 12, 9, 10)
    torch.testing.assert_close(sparse(x), conv(x), rtol=1e-5, atol=1e-5)
    assert torch.equal(sparse.dense_weight(), conv.weight)
    assert 0.2 < sparse.density < 0.6
    assert "density" in repr(sparse)


def test_one_dimension() -> None:
    conv = nn.Conv1d(6, 16, 5, padding=2, stride=2)
    sparse = SparseConv2d.from_dense(conv, block=16)
    x = torch.randn(2, 6, 31)
    torch.testing.assert_close(sparse(x.unsqueeze(2)).squeeze(2), conv(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("compiled", [True, False])
def test_what_the_kernels_would_read_past_is_refused(compiled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not compiled:
        monkeypatch.setattr(native, "kernels", lambda: None)
    _, sparse = layer()
    x = torch.randn(2, 12, 9, 10)
    for wrong in (torch.randn(2, 24, 1, 1), torch.randn(1, 24, 9, 10), torch.randn(2, 24, 9, 10).double()):
        with pytest.raises(PlanError, match="residual of"):
            sparse(x, wrong)
    with pytest.raises(PlanError, match="takes images"):
        sparse(x[0])
    sparse.bias = nn.Parameter(torch.zeros(23))
    with pytest.raises(PlanError, match="bias of"):
        sparse(x)


def test_no_images_give_no_images() -> None:
    conv, sparse = layer(stride=2)
    x = torch.randn(0, 12, 9, 10, requires_grad=True)
    assert sparse(x).shape == conv(x).shape
    sparse(x).sum().backward()
    assert float(sparse.weights.grad.abs().max()) == 0.0


def test_state_dict_round_trip() -> None:
    _, first = layer()
    second = SparseConv2d(
        pack(torch.ones(24, 12, 3, 3) * (first.dense_weight() != 0), block=8), torch.zeros(24), tuple(first.call)
    )
    second.load_state_dict(first.state_dict())
    x = torch.randn(1, 12, 5, 5)
    assert torch.equal(first(x), second(x))


@pytest.mark.parametrize("activation", native.ACTIVATIONS)
@pytest.mark.parametrize("groups", [1, 2])
def test_gradients(activation: str, groups: int) -> None:
    weight = torch.randn(10, 4 // groups, 3, 3) * (torch.rand(1, 4 // groups, 3, 3) < 0.6)
    packed = pack(weight, groups=groups, block=8)
    x, bias, residual = torch.randn(2, 4, 6, 5), torch.randn(10), torch.randn(2, 10, 4, 5)
    call = geometry((3, 3), (2, 1), (2, 1, 1, 1), groups=groups)
    inputs = [t.clone().requires_grad_() for t in (x, packed.weights, bias, residual)]

    def dense(x: Tensor, weights: Tensor, bias: Tensor, residual: Tensor) -> Tensor:
        full = unpack(weights, packed.masks, packed.shape, groups)
        y = F.conv2d(F.pad(x, (1, 1, 2, 1)), full, bias, stride=(2, 1), groups=groups) + residual
        return y if activation == "none" else getattr(F, activation)(y)

    code = native.ACTIVATIONS.index(activation)
    actual = sparse_conv2d(inputs[0], inputs[1], packed.masks, packed.starts, inputs[2], inputs[3], 10, call, code)
    expected = dense(*inputs)
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)
    seed = torch.randn_like(actual)
    for mine, theirs in zip(
        torch.autograd.grad(actual, inputs, seed), torch.autograd.grad(expected, inputs, seed), strict=True
    ):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)


def test_training_moves_the_kept_weights_only() -> None:
    _, sparse = layer("relu")
    zeros = sparse.dense_weight() == 0
    optimizer = torch.optim.SGD(sparse.parameters(), lr=0.1)
    before = sparse.weights.detach().clone()
    sparse(torch.randn(2, 12, 6, 6)).square().mean().backward()
    optimizer.step()
    assert not torch.equal(sparse.weights, before)
    assert not sparse.dense_weight()[zeros].any()


def test_operator_passes_pytorchs_own_checks() -> None:
    _, sparse = layer("relu")
    x = torch.randn(2, 12, 6, 6).contiguous(memory_format=torch.channels_last)
    arguments = (
        x,
        sparse.weights.detach(),
        sparse.masks,
        sparse.starts,
        sparse.bias.detach(),
        None,
        24,
        sparse.call,
        native.ACTIVATIONS.index("relu"),
    )
    torch.library.opcheck(sparse_conv2d, arguments, test_utils=("test_schema", "test_faketensor"))
    trained = (x.clone().requires_grad_(), sparse.weights, *arguments[2:])
    torch.library.opcheck(sparse_conv2d, trained, test_utils=("test_autograd_registration",))


def test_export_keeps_the_operator_and_frees_the_batch() -> None:
    _, sparse = layer("silu")
    free = ({0: torch.export.Dim.AUTO},)
    program = torch.export.export(sparse.eval(), (torch.randn(2, 12, 7, 7),), dynamic_shapes=free)
    assert any(node.target is sparse_conv2d for node in program.graph.nodes)
    x = torch.randn(5, 12, 7, 7)
    torch.testing.assert_close(program.module()(x), sparse(x))


def test_other_types_run_dense() -> None:
    conv, sparse = layer("relu")
    x = torch.randn(1, 12, 5, 5, dtype=torch.float64)
    torch.testing.assert_close(sparse.double()(x), F.relu(conv.double()(x)))


def test_without_kernels_it_warns_and_runs_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    conv, sparse = layer("relu")
    monkeypatch.setattr(native, "_load", lambda: (None, "No compiler was found."))
    native._warn.cache_clear()
    x = torch.randn(1, 12, 5, 5)
    with pytest.warns(RuntimeWarning, match=r"slow reference\. No compiler"):
        y = sparse(x)
    torch.testing.assert_close(y, F.relu(conv(x)))
    with pytest.raises(SecateursError, match="not there"):
        native.require()
    assert native.missing() == "No compiler was found."


def test_refusals() -> None:
    with pytest.raises(PlanError, match="Padding mode"):
        SparseConv2d.from_dense(nn.Conv2d(3, 8, 3, padding_mode="reflect"))
    with pytest.raises(PlanError, match="cannot be fused"):
        SparseConv2d.from_dense(nn.Conv2d(3, 8, 3), activation="gelu")
    if native.missing() is None:
        with pytest.raises(SecateursError, match="shapes do not fit"):
            layer()[1](torch.randn(1, 12, 0, 5))


def test_torch_compile_takes_the_operator_in_one_graph() -> None:
    _, sparse = layer("relu6")
    x = torch.randn(2, 12, 7, 7)
    with torch.inference_mode():
        compiled = torch.compile(sparse, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(x), sparse(x))
