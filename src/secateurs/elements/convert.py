"""Whole networks on the sparse kernels: batch normalisation folded, activations and residual additions fused."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

from secateurs.elements.module import DEFAULT_BLOCK, SparseConv2d
from secateurs.elements.operator import geometry
from secateurs.elements.packing import pack
from secateurs.errors import PlanError, StructureError, why
from secateurs.structure.operators import PADS, VIEWS, is_a, short_name
from secateurs.structure.untouched import exporting

_CONVOLUTIONS = ("aten.conv1d", "aten.conv2d")
_NORM = ("aten._native_batch_norm_legit_no_training",)


def convert(
    model: nn.Module,
    example: Tensor,
    kept: Mapping[str, Tensor] | None = None,
    *,
    block: int = DEFAULT_BLOCK,
    dense_too: bool = True,
) -> fx.GraphModule:
    """The network in evaluation mode with its convolutions run by the sparse kernels.

    Batch normalisation is folded into the convolution before it, and zeros padded ahead of it into its padding; a
    residual addition and a ReLU, ReLU6 or SiLU that alone read its result are computed in the same pass. The batch size
    stays free where the network allows it. A 1-D convolution becomes one of height 1.

    Args:
        model: the trained network.
        example: an input [n, c, h, w].
        kept: bool masks of weights that stay, by parameter name; default: where the weights are not zero.
        block: filters that share a pattern.
        dense_too: run ungrouped convolutions without pruned elements through the kernels too, so that the
            activations keep one layout.

    Raises:
        StructureError: the network cannot be exported.
        PlanError: ``kept`` names something that is no convolution's weight.
    """
    graph_module = _export(model.eval(), example)
    kept = dict(kept or {})
    names = {str(node.args[1].target) for node in graph_module.graph.nodes if _is_convolution(node)}
    unknown = sorted(set(kept) - names)
    if unknown:
        raise PlanError(
            f"{unknown[0]!r} is not a convolution's weight of this network. "
            f"Its convolutions are {', '.join(sorted(names)[:6])}{' …' if len(names) > 6 else ''}."
        )
    with torch.no_grad():
        for node in list(graph_module.graph.nodes):
            if is_a(node, VIEWS):  # a view of channels_last memory may need a copy
                node.target = torch.ops.aten.reshape.default
            elif _is_convolution(node):
                _replace(graph_module, node, kept.get(str(node.args[1].target)), block, dense_too)
    graph_module.graph.eliminate_dead_code()
    graph_module.delete_all_unused_submodules()
    graph_module.recompile()
    return graph_module


def _export(model: nn.Module, example: Tensor) -> fx.GraphModule:
    # A batch of one is baked in; two leave it free, where the network does not bake its batch in itself.
    pair = example[:1].repeat(2, *[1] * (example.dim() - 1))
    attempts: list[Callable[[], Any]] = [
        lambda: torch.export.export(model, (pair,), dynamic_shapes=({0: torch.export.Dim.AUTO},), strict=False),
        lambda: torch.export.export(model, (example,), strict=False),
    ]
    error: Exception | None = None
    for attempt in attempts:
        try:
            with exporting(model):
                program = attempt().run_decompositions({})
            module = program.module(check_guards=False)
            assert isinstance(module, fx.GraphModule)
            return module
        except Exception as problem:
            error = problem
    assert error is not None
    raise StructureError(
        f"torch.export cannot capture {type(model).__name__} for an input of shape {tuple(example.shape)}: "
        f"{why(error)}. Check that the network runs on such an input in evaluation mode."
    ) from error


def _is_convolution(node: fx.Node) -> bool:
    if not is_a(node, _CONVOLUTIONS):
        return False
    weight = node.args[1]
    return isinstance(weight, fx.Node) and weight.op == "get_attr"


def _tensor(module: fx.GraphModule, node: Any) -> Tensor | None:
    if not isinstance(node, fx.Node):
        return None
    value: Any = module
    path = str(node.target)
    for part in path.split("."):
        value = getattr(value, part)
    assert isinstance(value, Tensor)
    return value.detach()


def _argument(node: fx.Node, index: int, name: str, default: Any) -> Any:
    return node.args[index] if len(node.args) > index else node.kwargs.get(name, default)


def _pair(value: Any, height: int | None) -> tuple[int, int]:
    """Of both axes; ``height``: what stands for the first of a 1-D convolution, None for a 2-D one."""
    values = [int(v) for v in value] if isinstance(value, (list, tuple)) else [int(value)]
    return (values[0] if height is None else height, values[-1])


def _only_user(node: fx.Node) -> fx.Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None


def _replace(module: fx.GraphModule, conv: fx.Node, kept: Tensor | None, block: int, dense_too: bool) -> None:
    weight = _tensor(module, conv.args[1])
    assert weight is not None
    groups = int(_argument(conv, 6, "groups", 1))
    if kept is not None and kept.shape != weight.shape:
        raise PlanError(
            f"The mask of {conv.args[1]} has shape {tuple(kept.shape)}, its weight {tuple(weight.shape)}. "
            f"Give one truth value per weight."
        )
    stays = weight != 0 if kept is None else kept
    if bool(stays.all()) and (not dense_too or groups > 1):
        return
    bias = _tensor(module, _argument(conv, 2, "bias", None))
    last, weight, bias = _fold_norm(module, conv, weight, bias)
    last, residual = _fuse_addition(last)
    last, activation = _fuse_activation(last)
    flat = weight.dim() == 3
    one, none = (1, 0) if flat else (None, None)
    stride, dilation = _pair(_argument(conv, 3, "stride", 1), one), _pair(_argument(conv, 5, "dilation", 1), one)
    kernel = _pair(list(weight.shape[2:]), one)
    source, ahead = _padded_ahead(conv.args[0])
    padding = _padding(_argument(conv, 4, "padding", 0), kernel, dilation, none)
    top, left, bottom, right = (a + b for a, b in zip(ahead, padding, strict=True))
    call = geometry(kernel, stride, (top, left, bottom, right), dilation, groups)
    layer = SparseConv2d(pack(weight, groups=groups, block=block, kept=stays), bias, tuple(call), activation)
    name = f"sparse_{conv.name}"
    module.add_submodule(name, layer)
    arguments: tuple[Any, ...] = (source,) if residual is None else (source, residual)
    with module.graph.inserting_before(last.next):
        if flat:
            arguments = tuple(module.graph.call_function(torch.ops.aten.unsqueeze.default, (a, 2)) for a in arguments)
        new = module.graph.call_module(name, arguments)
        if flat:
            new = module.graph.call_function(torch.ops.aten.squeeze.dim, (new, 2))
        new.meta = dict(last.meta)
    last.replace_all_uses_with(new)


def _padded_ahead(source: Any) -> tuple[Any, tuple[int, int, int, int]]:
    """What a convolution reads before zeros were put around it, and how many: top, left, bottom, right."""
    if not is_a(source, PADS):
        return source, (0, 0, 0, 0)
    named = short_name(source.target) == "constant_pad_nd"
    constant = named or _argument(source, 2, "mode", "constant") == "constant"
    value = _argument(source, 2 if named else 3, "value", None)
    left, right, top, bottom, *further = [*list(_argument(source, 1, "pad", [])), 0, 0, 0, 0]
    if not constant or value or min(left, right, top, bottom) < 0 or any(further):
        return source, (0, 0, 0, 0)
    return source.args[0], (top, left, bottom, right)


def _padding(
    value: Any, kernel: tuple[int, int], dilation: tuple[int, int], height: int | None
) -> tuple[int, int, int, int]:
    if isinstance(value, str):
        total = [d * (k - 1) if value == "same" else 0 for k, d in zip(kernel, dilation, strict=True)]
        return (total[0] // 2, total[1] // 2, total[0] - total[0] // 2, total[1] - total[1] // 2)
    top, left = _pair(value, height)
    return (top, left, top, left)


def _fold_norm(
    module: fx.GraphModule, conv: fx.Node, weight: Tensor, bias: Tensor | None
) -> tuple[fx.Node, Tensor, Tensor | None]:
    """The last node that folding covers, and the weight and bias with the normalisation in them."""
    norm = _only_user(conv)
    if norm is None or not is_a(norm, _NORM) or norm.args[0] is not conv:
        return conv, weight, bias
    result = _only_user(norm)
    if result is None or result.target is not operator.getitem or result.args[1] != 0:
        return conv, weight, bias
    gain, shift, mean, variance = (_tensor(module, argument) for argument in norm.args[1:5])
    assert mean is not None
    assert variance is not None
    epsilon = norm.args[6]
    assert isinstance(epsilon, float)
    scale = (variance.double() + epsilon).rsqrt() * (1.0 if gain is None else gain.double())
    start = -mean.double() if bias is None else bias.double() - mean.double()
    folded = start * scale + (0.0 if shift is None else shift.double())
    scaled = weight.double() * scale.view(-1, *[1] * (weight.dim() - 1))
    return result, scaled.to(weight.dtype), folded.to(weight.dtype)


def _kind(node: Any) -> Any:
    """Shape and type of a node's tensor, None where it has none."""
    value = node.meta.get("val") if isinstance(node, fx.Node) else None
    return (tuple(value.shape), value.dtype) if isinstance(value, Tensor) else None


def _fuse_addition(last: fx.Node) -> tuple[fx.Node, fx.Node | None]:
    """An addition of two tensors of one shape and type that alone reads ``last``, and the other operand.

    The other operand must stand before: where both come from convolutions, the later one takes the addition.
    """
    add = _only_user(last)
    if add is None or not is_a(add, ("aten.add",)) or add.kwargs.get("alpha", 1) != 1:
        return last, None
    left, right = add.args[0], add.args[1]
    other = right if left is last else left
    if not isinstance(other, fx.Node) or other is last or _kind(other) is None:
        return last, None
    if _kind(other) != _kind(last):  # one of them is spread over the other's pixels or images
        return last, None
    return (add, other)


def _fuse_activation(last: fx.Node) -> tuple[fx.Node, str]:
    user = _only_user(last)
    if user is None or user.op != "call_function":
        return last, "none"
    name = short_name(user.target)
    if name in ("relu", "silu", "relu6"):
        return user, name
    if name in ("hardtanh", "clamp") and tuple(user.args[1:3]) in ((0, 6), (0.0, 6.0)):
        return user, "relu6"
    return last, "none"
