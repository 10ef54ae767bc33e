"""Networks from ONNX files compute what ONNX Runtime computes, for any batch, and are cut as any other network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest
import torch
from torch import nn

import secateurs as sc
from secateurs import models
from secateurs.errors import DataError
from secateurs.models.onnx_file.opening import open_onnx
from secateurs.models.onnx_file.values import OPERATORS
from secateurs.models.onnx_file.views import batch_axis, runs

IMAGES, ROWS, WORDS = "float[N,4,6,6] x", "float[N,5,8] x", "int64[N,7] x"


def written(path: Path, body: str, inputs: str = IMAGES, opset: int = 17, outputs: str = "y", **weights: Any) -> str:
    """A file with this graph, weights as initializers; its text for ``open_onnx``."""
    listed = ", ".join(f"float {name}" for name in outputs.split(","))
    text = f'<ir_version: 8, opset_import: ["" : {opset}]> g ({inputs}) => ({listed}) {{ {body} }}'
    model = onnx.parser.parse_model(text)
    for node in model.graph.node:  # the text form has no dots in names
        node.input[:] = [name.replace("__", ".") for name in node.input]
    for name, value in weights.items():
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(value), name.replace("__", ".")))
    for output in model.graph.output:
        output.type.tensor_type.ClearField("shape")
    onnx.save(model, path)
    return str(path)


def rand(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def ints(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.int64)


UNARY = [
    "Abs",
    "Neg",
    "Exp",
    "Floor",
    "Ceil",
    "Round",
    "Sign",
    "Erf",
    "Sin",
    "Cos",
    "Tanh",
    "Atan",
    "Relu",
    "Sigmoid",
    "Softplus",
    "Softsign",
    "HardSwish",
    "LeakyRelu<alpha=0.2>",
    "Elu",
    "Celu",
    "Selu",
    "HardSigmoid",
    "HardSigmoid<alpha=0.16666667,beta=0.5>",
    "ThresholdedRelu",
    "Softmax",
    "LogSoftmax<axis=1>",
    "GlobalAveragePool",
    "GlobalMaxPool",
    "ReduceMean<axes=[1]>",
    "ReduceMax<axes=[2,3],keepdims=0>",
    "ReduceL2<axes=[-1]>",
    "ReduceLogSumExp<axes=[1]>",
    "ReduceSumSquare<axes=[1]>",
    "Flatten",
    "Flatten<axis=2>",
    "Transpose<perm=[0,2,3,1]>",
    "Identity",
    "LpNormalization<axis=1>",
    "LRN<size=3>",
    "DepthToSpace<blocksize=2>",
    'DepthToSpace<blocksize=2,mode="CRD">',
    "SpaceToDepth<blocksize=2>",
    "MaxPool<kernel_shape=[3,3],strides=[2,2],pads=[1,1,1,1]>",
    'MaxPool<kernel_shape=[2,2],strides=[2,2],auto_pad="SAME_UPPER">',
    "MaxPool<kernel_shape=[3,3],strides=[2,2],ceil_mode=1>",
    "AveragePool<kernel_shape=[3,3],pads=[1,1,1,1]>",
    "AveragePool<kernel_shape=[3,3],pads=[0,0,1,1]>",
    "AveragePool<kernel_shape=[2,2],pads=[1,1,0,0],count_include_pad=1>",
]


def _called(text: str) -> str:
    name, _, about = text.partition("<")
    return f"y = {name}{'<' if about else ''}{about} (x)".replace("> (x)", ">(x)")


CASES: dict[str, tuple[str, dict[str, Any]]] = {
    **{text: (_called(text), {}) for text in UNARY},
    "Conv": ("y = Conv<pads=[1,1,1,1]>(x, c__weight, c__bias)", {"c__weight": rand(6, 4, 3, 3), "c__bias": rand(6)}),
    "Conv dilated, grouped": ("y = Conv<group=2,dilations=[2,2]>(x, w)", {"w": rand(6, 2, 3, 3)}),
    "Conv, TensorFlow's padding": ('y = Conv<auto_pad="SAME_UPPER",strides=[2,2]>(x, w)', {"w": rand(6, 4, 3, 3)}),
    "Conv, padded on one side": ("y = Conv<pads=[0,0,1,1],strides=[2,2]>(x, w)", {"w": rand(6, 4, 3, 3)}),
    "ConvTranspose": ("y = ConvTranspose<strides=[2,2],output_padding=[1,1]>(x, w)", {"w": rand(4, 3, 3, 3)}),
    "ConvTranspose, cut": ("y = ConvTranspose<strides=[2,2],pads=[0,0,1,1]>(x, w)", {"w": rand(4, 3, 3, 3)}),
    "BatchNormalization": (
        "y = BatchNormalization(x, s, b, m, v)", {"s": rand(4), "b": rand(4), "m": rand(4), "v": rand(4) ** 2 + 0.1},
    ),
    "InstanceNormalization": ("y = InstanceNormalization(x, s, b)", {"s": rand(4), "b": rand(4)}),
    "PRelu": ("y = PRelu(x, s)", {"s": rand(4, 1, 1)}),
    "PRelu over the last axis": ("y = PRelu(x, s)", {"s": rand(6)}),
    "Clip": ("y = Clip(x, lo, hi)", {"lo": np.float32(0), "hi": np.float32(6)}),
    "arithmetic": ("a = Mul(x, k)\n b = Add(a, v)\n c = Pow(b, e)\n y = Div(c, k)",
                   {"k": np.float32(1.5), "v": rand(4, 1, 1), "e": np.float32(2)}),
    "Where": ("c = Greater(x, k)\n y = Where(c, x, k)", {"k": np.float32(0.1)}),
    "Concat, Split": ("a, b = Split<axis=1>(x, s)\n y = Concat<axis=1>(b, x, a)", {"s": ints(1, 3)}),
    "Slice": ("y = Slice(x, s, e, a, t)", {"s": ints(1, 4), "e": ints(3, -7), "a": ints(1, 3), "t": ints(1, -1)}),
    "Pad": ("y = Pad(x, p)", {"p": ints(0, 0, 1, 2, 0, 0, 0, 1)}),
    "Pad, reflected": ('y = Pad<mode="reflect">(x, p)', {"p": ints(0, 0, 1, 2, 0, 0, 0, 1)}),
    "Resize, nearest": (
        'y = Resize<mode="nearest",coordinate_transformation_mode="asymmetric",nearest_mode="floor">(x, , s)',
        {"s": np.array([1, 1, 2, 2], np.float32)},
    ),
    "Resize, linear": ('y = Resize<mode="linear">(x, , s)', {"s": np.array([1, 1, 2, 2], np.float32)}),
    "Resize, corners": (
        'y = Resize<mode="linear",coordinate_transformation_mode="align_corners">(x, , s)',
        {"s": np.array([1, 1, 1.5, 2], np.float32)},
    ),
    "Gather": ("y = Gather<axis=1>(x, i)", {"i": ints(2, 0, -1)}),
    "Gather of one": ("y = Gather<axis=1>(x, i)", {"i": np.int64(2)}),
    "Tile, Expand": ("a = Tile(x, r)\n b = ReduceMean<axes=[1]>(a)\n y = Expand(b, s)",
                     {"r": ints(1, 2, 1, 1), "s": ints(1, 3, 1, 1)}),
    "TopK": ("y, i = TopK<axis=1>(x, k)", {"k": ints(2)}),
    "CumSum": ("y = CumSum(x, a)", {"a": np.int64(1)}),
    "Einsum": ('y = Einsum<equation="nchw,cd->ndhw">(x, w)', {"w": rand(4, 3)}),
    "Min, Max, Sum, Mean": ("a = Min(x, k)\n b = Max(a, v)\n c = Sum(b, x)\n y = Mean(c, x)",
                            {"k": np.float32(0.5), "v": rand(1, 4, 1, 1)}),
    "shapes": ("s = Shape(x)\n i = Constant<value_ints=[0]>()\n n = Gather(s, i)\n m = Constant<value_ints=[-1]>()\n"
               " z = Concat<axis=0>(n, m)\n y = Reshape(x, z)", {}),
    "MatMul": ("t = Transpose<perm=[0,2,3,1]>(x)\n a = MatMul(t, w)\n y = Add(a, f__bias)",
               {"w": rand(4, 3), "f__bias": rand(3)}),
    "Gemm": ("a = Flatten(x)\n y = Gemm<transB=1>(a, f__weight, b)", {"f__weight": rand(3, 144), "b": rand(3)}),
    "Gemm, scaled": ("a = Flatten(x)\n y = Gemm<alpha=0.5>(a, w, b)", {"w": rand(144, 3), "b": rand(3)}),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_operators(case: str, tmp_path: Path) -> None:
    """Opening one compares it with ONNX Runtime on random inputs, alone and as a batch."""
    body, weights = CASES[case]
    opened = open_onnx(written(tmp_path / "f.onnx", body, **weights), {})
    assert opened.image == (4, 6, 6)
    assert len(opened.notes) == 1


@pytest.mark.parametrize("opset", [9, 12, 13, 18])
def test_axes_as_attributes_and_as_inputs(opset: int, tmp_path: Path) -> None:
    if opset < 13:
        body, weights = (
            "a = ReduceMean<axes=[2,3],keepdims=1>(x)\n b = Squeeze<axes=[2,3]>(a)\n y = Unsqueeze<axes=[1]>(b)",
            {},
        )
    else:
        mean = "ReduceMean(x, ax)" if opset >= 18 else "ReduceMean<axes=[2,3]>(x)"
        body = f"a = {mean}\n b = Squeeze(a, ax)\n y = Unsqueeze(b, one)"
        weights = {"ax": ints(2, 3), "one": ints(1)}
        weights = weights if "ax" in body else {"one": ints(1)}
    assert open_onnx(written(tmp_path / "f.onnx", body, opset=opset, **weights), {}).image


@pytest.mark.parametrize("axis", [1, -1])
def test_softmax_of_old_files_runs_over_all_axes_behind(axis: int, tmp_path: Path) -> None:
    open_onnx(written(tmp_path / "f.onnx", f"y = Softmax<axis={axis}>(x)", opset=11), {})


def test_a_wrong_network_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(OPERATORS, "Relu", lambda given, attributes, opset: given[0].abs())
    with pytest.raises(DataError, match="does not compute what ONNX Runtime does: outputs differ by"):
        open_onnx(written(tmp_path / "f.onnx", "y = Relu(x)"), {})


NORM = (
    "m = ReduceMean<axes=[-1]>(x)\n d = Sub(x, m)\n q = Pow(d, two)\n v = ReduceMean<axes=[-1]>(q)\n e = Add(v, eps)\n"
    " s = Sqrt(e)\n n = Div(d, s)\n g = Mul(n, norm__weight)\n y = Add(g, norm__bias)"
)


def test_a_spelled_out_layer_norm_becomes_one(tmp_path: Path) -> None:
    weights = {"two": np.float32(2), "eps": np.float32(1e-5), "norm__weight": rand(8), "norm__bias": rand(8)}
    module = open_onnx(written(tmp_path / "f.onnx", NORM, ROWS, opset=13, **weights), {"N": 1}).module
    [layer] = [one for one in module.modules() if isinstance(one, nn.LayerNorm)]
    assert layer.normalized_shape == (8,)
    assert dict(module.named_modules())["norm"] is layer


def test_names_weights_and_layers(tmp_path: Path) -> None:
    body = (
        "a = Conv(x, stem__0__weight)\n b = Relu(a)\n p = GlobalAveragePool(b)\n f = Flatten(p)\n"
        " y = Gemm<transB=1>(f, head__weight, head__bias)"
    )
    weights = {"stem__0__weight": rand(6, 4, 3, 3), "head__weight": rand(3, 6), "head__bias": rand(3)}
    module = open_onnx(written(tmp_path / "f.onnx", body, **weights), {}).module
    assert set(module.state_dict()) == {"stem.0.weight", "head.weight", "head.bias"}
    assert np.array_equal(module.get_submodule("stem.0").weight.detach(), weights["stem__0__weight"])


def test_tokens_come_from_the_table(tmp_path: Path) -> None:
    opened = open_onnx(
        written(
            tmp_path / "f.onnx",
            "a = Gather(emb__weight, x)\n y = ReduceMean<axes=[1]>(a)",
            WORDS,
            emb__weight=rand(11, 8),
        ),
        {},
    )
    assert opened.image is None
    assert int(opened.example[0].max()) < 11
    assert isinstance(opened.module.emb, nn.Embedding)


def test_images_of_tensorflow_are_turned(tmp_path: Path) -> None:
    body = "t = Transpose<perm=[0,3,1,2]>(x)\n y = Conv(t, w)"
    opened = open_onnx(written(tmp_path / "f.onnx", body, "float[N,6,8,3] x", w=rand(4, 3, 3, 3)), {})
    assert opened.image == (3, 6, 8)
    assert opened.module(torch.zeros(2, 3, 6, 8)).shape == (2, 4, 4, 6)


def test_a_file_for_one_batch_takes_any(tmp_path: Path) -> None:
    body = "a = Conv(x, w)\n y = Reshape(a, s)"
    opened = open_onnx(written(tmp_path / "f.onnx", body, "float[1,4,6,6] x", w=rand(5, 4, 3, 3), s=ints(1, 80)), {})
    assert opened.module(torch.zeros(3, 4, 6, 6)).shape == (3, 80)
    stuck = "a = Reshape(x, s)\n b = Add(a, t)\n y = ReduceMean<axes=[0]>(b)"
    opened = open_onnx(written(tmp_path / "g.onnx", stuck, "float[1,4,6,6] x", s=ints(4, 36), t=rand(4, 36)), {})
    assert "for no other" in opened.notes[-1]


def test_half_precision_is_told(tmp_path: Path) -> None:
    path = written(tmp_path / "f.onnx", "y = Conv(x, w)", "float16[N,4,6,6] x", w=rand(6, 4, 3, 3).astype(np.float16))
    model = onnx.load(path)
    model.graph.output[0].type.tensor_type.elem_type = onnx.TensorProto.FLOAT16
    onnx.save(model, path)
    opened = open_onnx(path, {})
    assert any("float16" in note for note in opened.notes)
    assert opened.module.w.weight.dtype == torch.float32


def test_outputs_and_sizes_are_chosen(tmp_path: Path) -> None:
    path = written(tmp_path / "f.onnx", "a = Relu(x)\n y = Sigmoid(a)", "float[batch,4,height,width] x")
    with pytest.raises(DataError, match=r"free sizes .*height=SIZE&width=SIZE"):
        open_onnx(path, {})
    opened = open_onnx(path, {"height": 8, "width": 10, "outputs": "a"})
    assert opened.image == (4, 8, 10)
    assert float(opened.module(torch.full((1, 4, 8, 10), 3.0)).max()) == 3


@pytest.mark.parametrize(
    ("body", "inputs", "options", "message"),
    [
        ("y = NonMaxSuppression(x, x)", IMAGES, {}, r"cannot be rebuilt in PyTorch: NonMaxSuppression.*outputs=NAME"),
        ("y = QuantizeLinear(x, k)", IMAGES, {}, "is quantised .*float file"),
        ("y = Relu(x)", IMAGES, {"outputs": "z"}, "has no value 'z'. Its last ones are y"),
        ("y = Relu(x)", IMAGES, {"width": 3}, "no free size 'width'. It has N"),
        ("y = Relu(x)", IMAGES, {"N": "two"}, "is no size"),
        ("y = Conv(x, x)", "float[1,1,3,3] x", {}, "computes its weights from inputs"),
        ("z = Relu(x)\n y = Relu(k)", IMAGES, {}, "does not depend on its inputs"),
    ],
)  # fmt: skip
def test_what_cannot_be_rebuilt_is_named(
    body: str, inputs: str, options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=message):
        open_onnx(written(tmp_path / "f.onnx", body, inputs, k=np.float32([1.0])), options)


def test_damaged_and_missing_files(tmp_path: Path) -> None:
    (tmp_path / "f.onnx").write_bytes(b"no onnx at all")
    for name, message in (("f.onnx", "cannot be read"), ("g.onnx", "does not exist")):
        with pytest.raises(DataError, match=message):
            models.load(f"onnx:{tmp_path / name}")


@pytest.mark.parametrize(
    ("before", "grown", "after", "place"),
    [
        ((1, 4, 1, 1), 0, (1, 4), 0),
        ((1, 8, 8, 7, 7, 3), 0, (64, 49, 3), 0),
        ((64, 49, 3), 0, (1, 8, 8, 7, 7, 3), 0),
        ((12, 1, 2, 8), 1, (12, 16), 0),  # length * batch
        ((12, 1, 16), 1, (12, 2, 8), 1),  # batch * heads
        ((12, 16), 0, (12, 1, 16), 1),
        ((2, 3), 0, (3, 2), 0),
    ],
)
def test_where_the_batch_goes(before: tuple[int, ...], grown: int, after: tuple[int, ...], place: int) -> None:
    assert batch_axis(before, grown, after) == place


def test_reshapes_as_joins_and_splits() -> None:
    assert runs((2, 5, 1, 1), (2, 5), 0) == ((0, 1, (-1,)), (1, 4, (-1,)))
    assert runs((2, 7, 24), (2, 7, 3, 4, 2), 0) == ((0, 1, (-1,)), (1, 2, (-1,)), (2, 3, (3, 4, 2)))
    assert runs((6, 8), (2, 3, 8), 0) == ((0, 1, (-1, 3)), (1, 2, (-1,)))


@pytest.mark.slow
def test_a_network_from_a_file_is_cut_in_place(tmp_path: Path) -> None:
    body = (
        "a = Conv<pads=[1,1,1,1]>(x, c1__weight)\n b = Relu(a)\n c = Conv(b, c2__weight)\n p = GlobalAveragePool(c)\n"
        " f = Reshape(p, s)\n y = Gemm<transB=1>(f, head__weight)"
    )
    weights = {
        "c1__weight": rand(8, 4, 3, 3),
        "c2__weight": rand(6, 8, 3, 3),
        "head__weight": rand(3, 6),
        "s": ints(1, 6),
    }
    loaded = models.load(f"onnx:{written(tmp_path / 'f.onnx', body, 'float[1,4,6,6] x', **weights)}")
    graph = sc.trace(loaded.module, loaded.example())
    small = sc.apply(loaded.module, sc.plan(graph, macs="40%", criterion="l2"), loaded.example())
    assert type(small) is type(loaded.module)
    assert small(torch.zeros(2, 4, 6, 6)).shape == (2, 3)
    again = models.rebuild(loaded.source)
    assert torch.equal(again.module.c1.weight, loaded.module.c1.weight)
