"""Float64 all the way: networks that create or cast to float32 inside their forward follow their inputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode


class Float64(TorchDispatchMode):
    """While active, every float32 (or half precision) tensor, cast and constant becomes float64."""

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[Any],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        args, kwargs = pytree.tree_map(_widened, (tuple(args), dict(kwargs or {})))
        if "_assert_tensor_metadata" in str(func):
            return None
        name = str(func).split(".")[1]
        if name.rstrip("_") in _DRAWS:
            return _drawn(func, args, kwargs)
        if name.startswith("rrelu_with_noise"):
            args = (*args[:4], False, *args[5:])  # the mean slope
        return pytree.tree_map(_widened, func(*args, **kwargs))


_DRAWS = (
    "rand", "randn", "rand_like", "randn_like", "normal", "normal_functional", "uniform", "bernoulli", "exponential",
    "native_dropout", "log_normal", "cauchy", "geometric", "poisson",
)  # fmt: skip


def _drawn(func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """Random numbers that are none, so that two networks of different size can be compared."""
    if "native_dropout" in str(func):
        return args[0].clone(), torch.ones_like(args[0], dtype=torch.bool)
    source = kwargs.get("generator") or torch.default_generator
    state = source.get_state()  # a draw of another size must not change those that follow
    drawn = func(*args, **kwargs)
    source.set_state(state)
    return pytree.tree_map(lambda leaf: _widened(leaf).fill_(1.0), drawn)


class Settled(TorchDispatchMode):
    """While active, values that differ by rounding tie, and of those that tie the first is chosen."""

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[Any],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        name, keywords = str(func).split(".")[1], dict(kwargs or {})
        if name not in _CHOOSING or not args or not _is_float(args[0]):
            return func(*args, **keywords)
        if name in ("sort", "argsort"):
            keywords.update(zip(("dim", "descending"), args[1:], strict=False), stable=True)  # it takes them by name
            args, func = args[:1], getattr(torch.ops.aten, name).stable
        return func(_rounded(args[0]), *args[1:], **keywords)


_CHOOSING = (
    "max_pool2d_with_indices", "max_pool3d_with_indices", "adaptive_max_pool2d", "adaptive_max_pool3d", "max", "min",
    "argmax", "argmin", "topk", "sort", "argsort", "kthvalue", "median", "mode", "cummax", "cummin",
    "fractional_max_pool2d", "fractional_max_pool3d",
)  # fmt: skip
_BITS = 2.0**32


def _rounded(tensor: torch.Tensor) -> torch.Tensor:
    mantissa, exponent = torch.frexp(tensor)
    return torch.ldexp((mantissa * _BITS).round() / _BITS, exponent)


class Shaken(TorchDispatchMode):
    """While active, the result of every operator is off by a little more than rounding."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self._generator = torch.Generator().manual_seed(seed)

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[Any],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        places = {leaf.untyped_storage().data_ptr() for leaf in pytree.tree_leaves((args, kwargs)) if _is_float(leaf)}

        def shake(leaf: Any) -> Any:
            if not _is_float(leaf) or leaf.untyped_storage().data_ptr() in places:
                return leaf
            return leaf * (1 + SHAKEN_BY * torch.randn(leaf.shape, dtype=leaf.dtype, generator=self._generator))

        return pytree.tree_map(shake, func(*args, **dict(kwargs or {})))


SHAKEN_BY = 1e-12


def _is_float(leaf: Any) -> bool:
    return isinstance(leaf, torch.Tensor) and leaf.is_floating_point()


_WIDER = {
    torch.float32: torch.float64, torch.float16: torch.float64, torch.bfloat16: torch.float64,
    torch.complex64: torch.complex128, torch.complex32: torch.complex128,
}  # fmt: skip


def widened(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor in double precision, real or complex; integers and truth values as they are."""
    return tensor.to(_WIDER.get(tensor.dtype, tensor.dtype))


def _widened(leaf: Any) -> Any:
    if isinstance(leaf, torch.Tensor):
        return widened(leaf)
    return _WIDER.get(leaf, leaf) if isinstance(leaf, torch.dtype) else leaf
