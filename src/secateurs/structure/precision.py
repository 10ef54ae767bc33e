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
        if str(func).split(".")[1].rstrip("_") in _DRAWS:
            return _drawn(func, args, kwargs)
        return pytree.tree_map(_widened, func(*args, **kwargs))


_DRAWS = (
    "rand", "randn", "rand_like", "randn_like", "normal", "uniform", "bernoulli", "exponential", "native_dropout",
)  # fmt: skip


def _drawn(func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """Random numbers that are none, so that two networks of different size can be compared."""
    if "native_dropout" in str(func):
        return args[0].clone(), torch.ones_like(args[0], dtype=torch.bool)
    return pytree.tree_map(lambda leaf: _widened(leaf).fill_(1.0), func(*args, **kwargs))


def _widened(leaf: Any) -> Any:
    if isinstance(leaf, torch.Tensor) and leaf.dtype in (torch.float32, torch.float16, torch.bfloat16):
        return leaf.double()
    if isinstance(leaf, torch.dtype) and leaf in (torch.float32, torch.float16, torch.bfloat16):
        return torch.float64
    return leaf
