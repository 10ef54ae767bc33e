"""An independent judge of cut networks: the user's own dense module in which removed units are *absent*.

Every removed element of every parameter and buffer becomes NaN, and NaN means "not there": products and statistics
run over what is there, an element-wise operator with something absent gives something absent. The judge sees ATen
calls only: it knows nothing of ids, groups, rules or the exported graph, and shares no code with
``secateurs.structure``.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from secateurs.plan import Plan
from secateurs.structure.copies import deep_copy

_Operator = Callable[..., Any]
_JUDGED: dict[str, Callable[..., Any]] = {}


def dense_ignoring(
    model: nn.Module, plan: Plan, inputs: Sequence[Any], keywords: Mapping[str, Any]
) -> list[torch.Tensor]:
    """Every output tensor of the dense ``model`` (float64) when the units that ``plan`` removes are absent.

    An element of an output that is NaN depends on a removed unit where none should be left.
    """
    dense = deep_copy(model, {}).eval()
    blank_removed(dense, plan)
    with torch.no_grad(), whole_operators(), Absent():
        result = dense(*inputs, **keywords)
    return [leaf for leaf in pytree.tree_leaves(result) if isinstance(leaf, torch.Tensor)]


def blank_removed(model: nn.Module, plan: Plan) -> None:
    """Set every removed index of every parameter and buffer to NaN in place."""
    with torch.no_grad():
        for name, axes in plan.removed().items():
            path, _, leaf = name.rpartition(".")
            tensor = getattr(model.get_submodule(path), leaf)
            if tensor.is_floating_point():
                for dim, gone in axes.items():
                    tensor.index_fill_(int(dim), torch.tensor(gone), float("nan"))


@contextlib.contextmanager
def whole_operators() -> Iterator[None]:
    """Fused attention kernels off for a while, so that attention comes as products and a softmax."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


class Absent(TorchDispatchMode):
    """Runs operators with NaN read as "not there"."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        keywords = dict(kwargs or {})
        name = str(func).removeprefix("aten.")
        judged = _JUDGED.get(name) or _JUDGED.get(name.partition(".")[0])
        if judged is None or not any(_holes(leaf) for leaf in pytree.tree_leaves((args, keywords))):
            return func(*args, **keywords)
        return judged(func, *args, **keywords)


def judged(*names: str) -> Callable[[_Operator], _Operator]:
    """Register how an operator treats what is absent, by its ATen name with or without overload."""

    def register(function: _Operator) -> _Operator:
        for name in names:
            _JUDGED[name] = function
        return function

    return register


def _holes(leaf: Any) -> bool:
    return isinstance(leaf, torch.Tensor) and leaf.is_floating_point() and bool(leaf.isnan().any())


def there(tensor: torch.Tensor) -> torch.Tensor:
    """1 where a value is there, 0 where it is absent."""
    return (~tensor.isnan()).to(tensor.dtype)


def zeroed(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor with zeros for what is absent."""
    return tensor.nan_to_num(nan=0.0, posinf=float("inf"), neginf=float("-inf"))


def _product(func: Any, first: torch.Tensor, second: torch.Tensor, *rest: Any) -> torch.Tensor:
    """A contraction over what is there; absent where no term is there."""
    result = func(zeroed(first), zeroed(second), *rest)
    terms = func(there(first), there(second), *rest)
    return result.masked_fill(terms == 0, float("nan"))


@judged("mm", "bmm", "mv", "dot", "vdot")
def _matrix(func: Any, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    return _product(func, first, second)


@judged("addmm", "baddbmm", "addmv")
def _added(
    func: Any, added: torch.Tensor, first: torch.Tensor, second: torch.Tensor, *, beta: float = 1, alpha: float = 1
) -> torch.Tensor:
    plain = {"addmm": torch.mm, "baddbmm": torch.bmm, "addmv": torch.mv}[str(func).split(".")[1]]
    return beta * added + alpha * _product(plain, first, second)


@judged("convolution")
def _convolution(
    func: Any, value: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, *rest: Any
) -> torch.Tensor:
    """Absent are the channels without a single weight; borders that see padding only are there.

    A kernel that slides over units (channel attention) slides over those that are there.
    """
    if value.dim() == 3 and value.shape[1] == 1 and _holes(value):
        present = (~value[0, 0].isnan()).nonzero().squeeze(1)
        narrow = func(value.index_select(2, present), weight, bias, *rest)
        return torch.full_like(value, float("nan")).index_copy(2, present, narrow)
    result = func(zeroed(value), zeroed(weight), None, *rest)
    transposed, groups = rest[3], rest[5]
    if transposed:
        spread = (
            there(weight).reshape(groups, weight.shape[0] // groups, weight.shape[1], -1).sum(dim=(1, 3)).reshape(-1)
        )
    else:
        spread = there(weight).flatten(1).sum(dim=1)
    lost = spread == 0
    view = [1] * result.dim()
    channel = result.dim() - len(rest[0]) - 1
    view[channel] = -1
    if bias is not None:
        result = result + bias.reshape(view)
    return result.masked_fill(lost.reshape(view), float("nan"))


@judged("_trilinear")
def _trilinear(
    func: Any,
    first: torch.Tensor,
    weight: torch.Tensor,
    second: torch.Tensor,
    expand1: list[int],
    expand2: list[int],
    expand3: list[int],
    sums: list[int],
    unroll: int = 1,
) -> torch.Tensor:
    for dim in sorted(expand1):
        first = first.unsqueeze(dim)
    for dim in sorted(expand2):
        weight = weight.unsqueeze(dim)
    for dim in sorted(expand3):
        second = second.unsqueeze(dim)
    return _sum(None, first * weight * second, sums)


@judged("sum")
def _sum(func: Any, value: torch.Tensor, dim: Any = None, keepdim: bool = False, **rest: Any) -> torch.Tensor:
    dims = list(range(value.dim())) if dim is None or dim == [] else dim
    dims = [dims] if isinstance(dims, int) else list(dims)
    empty = there(value).sum(dim=dims, keepdim=keepdim) == 0
    return zeroed(value).sum(dim=dims, keepdim=keepdim).masked_fill(empty, float("nan"))


@judged("mean")
def _mean(func: Any, value: torch.Tensor, dim: Any = None, keepdim: bool = False, **rest: Any) -> torch.Tensor:
    dims = list(range(value.dim())) if dim is None or dim == [] else dim
    return value.nanmean(dim=dims, keepdim=keepdim)


@judged("linalg_vector_norm", "norm")
def _vector_norm(func: Any, value: torch.Tensor, order: Any = 2, *rest: Any, **more: Any) -> torch.Tensor:
    counted = func(there(value), order, *rest, **more)
    return func(zeroed(value), order, *rest, **more).masked_fill(counted == 0, float("nan"))


@judged("_weight_norm_interface", "_weight_norm")
def _weight_norm(func: Any, direction: torch.Tensor, length: torch.Tensor, dim: int = 0) -> Any:
    others = [d for d in range(direction.dim()) if d != dim]
    norm = (zeroed(direction) ** 2).sum(dim=others, keepdim=True).sqrt()
    result = direction * (length / norm)
    return (result, norm) if "interface" in str(func) else result


@judged("var", "var_mean", "std", "std_mean")
def _variance(func: Any, value: torch.Tensor, dim: Any = None, *, correction: Any = 1, keepdim: bool = False) -> Any:
    dims = list(range(value.dim())) if dim is None or dim == [] else dim
    mean = value.nanmean(dim=dims, keepdim=True)
    count = there(value).sum(dim=dims, keepdim=keepdim)
    spread = ((value - mean) ** 2).nansum(dim=dims, keepdim=keepdim) / (
        count - (1 if correction is None else correction)
    )
    spread = spread.masked_fill(count == 0, float("nan"))
    name = str(func).split(".")[1]
    spread = spread.sqrt() if name.startswith("std") else spread
    return (spread, value.nanmean(dim=dims, keepdim=keepdim)) if name.endswith("mean") else spread


@judged("amax", "amin")
def _extreme(func: Any, value: torch.Tensor, *rest: Any, **more: Any) -> torch.Tensor:
    worst = float("-inf") if "amax" in str(func) else float("inf")
    result = func(value.masked_fill(value.isnan(), worst), *rest, **more)
    return result.masked_fill(result == worst, float("nan"))


@judged("max.dim", "min.dim")
def _extreme_at(func: Any, value: torch.Tensor, *rest: Any, **more: Any) -> Any:
    worst = float("-inf") if "max" in str(func) else float("inf")
    result, places = func(value.masked_fill(value.isnan(), worst), *rest, **more)
    return result.masked_fill(result == worst, float("nan")), places


@judged("logsumexp")
def _logsumexp(func: Any, value: torch.Tensor, *rest: Any, **more: Any) -> torch.Tensor:
    result = func(value.masked_fill(value.isnan(), float("-inf")), *rest, **more)
    return result.masked_fill(result == float("-inf"), float("nan"))


@judged("_softmax", "_safe_softmax", "_log_softmax")
def _softmax(func: Any, value: torch.Tensor, dim: int, *rest: Any, **more: Any) -> torch.Tensor:
    gone = value.isnan()
    result = func(value.masked_fill(gone, float("-inf")), dim, *rest, **more)
    return result.masked_fill(gone, float("nan"))


def _standardised(value: torch.Tensor, dims: Sequence[int], eps: float) -> torch.Tensor:
    mean = value.nanmean(dim=list(dims), keepdim=True)
    variance = ((value - mean) ** 2).nanmean(dim=list(dims), keepdim=True)
    return (value - mean) / torch.sqrt(variance + eps)


@judged("native_layer_norm")
def _layer_norm(
    func: Any,
    value: torch.Tensor,
    shape: Sequence[int],
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    eps: float,
) -> Any:
    result = _standardised(value, range(value.dim() - len(shape), value.dim()), eps)
    result = result if weight is None else result * weight
    result = result if bias is None else result + bias
    return result, result, result


@judged("native_group_norm")
def _group_norm(
    func: Any, value: torch.Tensor, weight: Any, bias: Any, n: int, c: int, area: int, groups: int, eps: float
) -> Any:
    result = _standardised(value.reshape(n, groups, -1), [2], eps).reshape(value.shape)
    view = [1, c] + [1] * (value.dim() - 2)
    result = result if weight is None else result * weight.reshape(view)
    result = result if bias is None else result + bias.reshape(view)
    return result, result, result


@judged("native_batch_norm", "_native_batch_norm_legit", "_native_batch_norm_legit_no_training")
def _batch_norm(
    func: Any, value: torch.Tensor, weight: Any, bias: Any, mean: Any, variance: Any, training: bool, *rest: Any
) -> Any:
    if "no_training" in str(func):
        training, rest = False, (training, *rest)
    eps = rest[1]
    view = [1, -1] + [1] * (value.dim() - 2)
    if training or mean is None:
        result = _standardised(value, [0, *range(2, value.dim())], eps)
    else:
        result = (value - mean.reshape(view)) / torch.sqrt(variance.reshape(view) + eps)
    result = result if weight is None else result * weight.reshape(view)
    result = result if bias is None else result + bias.reshape(view)
    return result, result, result


@judged("constant_pad_nd")
def _constant_pad(func: Any, value: torch.Tensor, pad: Sequence[int], *rest: Any) -> torch.Tensor:
    """What is absent at every position of the padded axes is absent in the border, too."""
    padded = [value.dim() - 1 - pair for pair in range(len(pad) // 2) if pad[2 * pair] or pad[2 * pair + 1]]
    result = func(value, pad, *rest)
    gone = value.isnan().all(dim=padded[0], keepdim=True) if padded else value.isnan()
    for dim in padded[1:]:
        gone = gone.all(dim=dim, keepdim=True)
    return result.masked_fill(gone, float("nan")) if padded else result
