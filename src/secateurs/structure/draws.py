"""Inputs for the check: drawn at random, of the example's sizes and of others, integers within what they may be."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

_MEANS = (0.0, 1.0, -1.0)
"""Means of floats, draw by draw: a forward may ask whether its input is bright or dark."""
Call = tuple[tuple[Any, ...], dict[str, Any]]
"""Positional and keyword inputs of one run."""

WAYS = ("free", "range", "given")
"""How values are drawn: floats from a normal distribution, integers within their bounds; or everything within the
range of the example; or integers and masks as they are in the example and floats near to theirs."""


@dataclass(frozen=True)
class Sizes:
    """Other sizes of the example's axes: by (number of the tensor, dimension)."""

    changed: tuple[tuple[tuple[int, int], int], ...] = ()

    def of(self, number: int, shape: Sequence[int]) -> tuple[int, ...]:
        """The shape of tensor ``number``, which is ``shape`` in the example."""
        new = list(shape)
        for (which, dim), size in self.changed:
            if which == number:
                new[dim] = size
        return tuple(new)

    def __add__(self, other: Sizes) -> Sizes:
        return Sizes(tuple(dict((*self.changed, *other.changed)).items()))


def mapped(function: Callable[[torch.Tensor], Any], tree: Any) -> Any:
    """The tree with every tensor replaced; dataclasses that PyTorch does not know are entered, too."""

    def enter(leaf: Any) -> Any:
        if isinstance(leaf, torch.Tensor):
            return function(leaf)
        if dataclasses.is_dataclass(leaf) and not isinstance(leaf, type):
            return dataclasses.replace(
                leaf, **{f.name: mapped(function, getattr(leaf, f.name)) for f in dataclasses.fields(leaf) if f.init}
            )
        return leaf

    return pytree.tree_map(enter, tree)


def tensors_in(tree: Any) -> list[torch.Tensor]:
    """Every tensor of a tree, in the order of :func:`mapped`."""
    found: list[torch.Tensor] = []
    mapped(found.append, tree)
    return found


def drawn(
    example: Call, seed: int, way: str = "free", sizes: Sizes | None = None, bounds: Mapping[int, int] | None = None
) -> Call:
    """The example with every tensor redrawn, floats in float64.

    Args:
        example: positional and keyword inputs.
        seed: of the values.
        way: one of :data:`WAYS`.
        sizes: axes that get another size.
        bounds: by number of the tensor how many values an integer input may have, from 0 on; see :data:`ANY`.
    """
    generator = torch.Generator().manual_seed(seed)
    number = -1

    def draw(leaf: torch.Tensor) -> torch.Tensor:
        nonlocal number
        number += 1
        shape = sizes.of(number, leaf.shape) if sizes else tuple(leaf.shape)
        values = leaf.detach().cpu()
        if leaf.is_floating_point():
            return _floats(values, shape, generator, way)
        if leaf.is_complex():
            return torch.randn(shape, generator=generator, dtype=torch.complex128)
        if way == "given":
            return resized(values, shape)
        if leaf.dtype is torch.bool:
            return _mask(torch.rand(shape, generator=generator) < 0.5)
        return _integers(values, shape, generator, (bounds or {}).get(number), way)

    args, kwargs = example
    return mapped(draw, tuple(args)), mapped(draw, dict(kwargs))


def _floats(values: torch.Tensor, shape: tuple[int, ...], generator: torch.Generator, way: str) -> torch.Tensor:
    if way == "free" or not values.numel():
        mean = _MEANS[generator.initial_seed() % len(_MEANS)]
        return torch.randn(shape, generator=generator, dtype=torch.float64) + mean
    finite = values.double()[values.isfinite()]
    low, high = (float(finite.min()), float(finite.max())) if finite.numel() else (0.0, 0.0)
    uniform = torch.rand(shape, generator=generator, dtype=torch.float64)
    if way == "given":
        return resized(values.double(), shape) * (1 + 1e-2 * (uniform - 0.5))
    return low + uniform * (high - low) if high > low else low * (1 + 0.2 * (uniform - 0.5))


def _integers(
    values: torch.Tensor, shape: tuple[int, ...], generator: torch.Generator, bound: int | None, way: str
) -> torch.Tensor:
    low, high = (int(values.min()), int(values.max())) if values.numel() else (0, 0)
    if way == "free" and bound == ANY:
        if low == high == 1:  # nothing masked so far: a mask of ones
            return _mask(torch.rand(shape, generator=generator) < 0.7).to(values.dtype)
        low, high = min(low, 0), 255 if values.dtype is torch.uint8 else max(high, 7)
    elif way == "free" and bound is not None:
        low, high = 0, max(bound - 1, 0)
    drawn = torch.randint(low, high + 1, shape, generator=generator).to(values.dtype)
    if drawn.numel() and generator.initial_seed() % 2:  # so that of few numbers one is large for certain
        drawn.view(-1)[-1] = high
    return drawn


def _mask(mask: torch.Tensor) -> torch.Tensor:
    """A mask that lets something through and holds something back in every row, whichever it means by True."""
    if mask.dim() and mask.shape[-1] > 1:
        mask[..., 0], mask[..., -1] = True, False
    return mask


def resized(values: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    """The values, repeated or cut to a shape."""
    for dim, size in enumerate(shape):
        if size != values.shape[dim]:
            values = values.index_select(dim, torch.arange(size) % max(values.shape[dim], 1))
    return values.clone()


def other_batch(example: Call, more: int = 1) -> Sizes | None:
    """So many samples more, where every tensor has the same first size."""
    leaves = tensors_in(example)
    shaped = [(number, leaf) for number, leaf in enumerate(leaves) if leaf.dim()]
    if not shaped or len({leaf.shape[0] for _, leaf in shaped}) > 1:
        return None
    return Sizes(tuple(((number, 0), leaf.shape[0] + more) for number, leaf in shaped))


KINDS = ("near", "larger", "odd")
"""Which other sizes: those that pooling and patches divide as well, height and width apart where they may be; larger
ones only, which a table that is read as far as the input is long may not have; odd ones in place of even ones, for
which a forward may pad (tried once, as most networks take them or none)."""


def other_sizes(example: Call, kind: str = "near") -> Iterator[Sizes]:
    """Other heights, widths and lengths of one of :data:`KINDS`: all axes, each by a size of its own, then one axis of
    a size, then all of that size, in every tensor.

    Channels of images are no such axis; which of the others the network takes only the network can tell.
    """
    leaves = tensors_in(example)
    axes: dict[int, list[tuple[int, int]]] = {}
    for number, leaf in enumerate(leaves):
        channel = leaf.dim() >= 4
        for dim in range(2 if channel else 1, leaf.dim()):
            if leaf.shape[dim] > (1 if kind != "odd" else 2) and (kind != "odd" or leaf.shape[dim] % 2 == 0):
                axes.setdefault(leaf.shape[dim], []).append((number, dim))
    largest = sorted(axes, reverse=True)[:2]
    apart = []
    for size in largest:
        ranks: dict[int, int] = {}
        for axis in axes[size]:
            rank = ranks[axis[0]] = ranks.get(axis[0], -1) + 1
            apart.append((axis, _beside(size, kind) if rank else _near(size, kind)))
    several = len({(which, size) for (which, _), size in apart}) > len({which for (which, _), _ in apart})
    if several and kind != "larger":
        yield Sizes(tuple(apart))
    for size in largest[: 0 if several and kind == "odd" else 2]:
        new = _near(size, kind)
        firsts = {number: (number, dim) for number, dim in reversed(axes[size])}
        alone = Sizes(tuple((axis, new) for axis in firsts.values()))
        yield alone
        if len(axes[size]) > len(firsts) and kind != "odd":
            yield Sizes(tuple((axis, new) for axis in axes[size]))


def _step(size: int) -> int:
    """The power of two, 32 at most, that divides a size."""
    step = 32
    while size % step:
        step //= 2
    return step


def _near(size: int, kind: str) -> int:
    """A smaller size that pooling and patches divide as well, else a larger one."""
    if kind == "odd":
        return size + 1
    step = _step(size)
    return size - step if size > step and kind == "near" else size + step


def _beside(size: int, kind: str) -> int:
    """A size for a second axis that is as long in the example: another than the first one's."""
    step = _step(size)
    if kind == "odd":
        return size - 1
    return size + (step if size > step else step // 2 if step > 1 else 2)


ANY = -1
"""Bound of an integer input that is calculated with and never a position: pixels, time steps, masks."""


class IndexBounds(TorchDispatchMode):
    """Watches where integer inputs are used as positions: ``bounds`` of tensor number to how many there are.

    A tensor that is calculated with before it is looked up is left out: what it may be is not known. One that is never
    looked up has the bound :data:`ANY`.
    """

    def __init__(self) -> None:
        super().__init__()
        self._bounds: dict[int, int] = {}
        self._unknown: set[int] = set()
        self._sources: dict[int, tuple[int, bool]] = {}
        self._held: list[torch.Tensor] = []  # so that no other tensor takes their place in memory

    def watch(self, leaves: Sequence[torch.Tensor]) -> None:
        """Follow these tensors, by number."""
        for number, leaf in enumerate(leaves):
            if not leaf.is_floating_point() and leaf.dtype is not torch.bool and leaf.numel():
                self._follow(leaf, number, True)

    @property
    def bounds(self) -> dict[int, int]:
        """How many values each integer input may have, where that is known."""
        followed = {number for number, _ in self._sources.values()} - self._unknown
        return {number: self._bounds.get(number, ANY) for number in sorted(followed)}

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[Any],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        result = func(*args, **dict(kwargs or {}))
        name = str(func).split(".")[1]
        for index, size in _looked_up(name, args):
            number, plain = self._source(index)
            if number is not None and plain:
                self._bounds[number] = min(self._bounds.get(number, size), size)
            elif number is not None:
                self._unknown.add(number)
        self._pass_on(name, args, result)
        return result

    def _source(self, tensor: Any) -> tuple[int | None, bool]:
        if not isinstance(tensor, torch.Tensor) or tensor.is_floating_point():
            return None, True
        return self._sources.get(tensor.untyped_storage().data_ptr(), (None, True))

    def _pass_on(self, name: str, args: Sequence[Any], result: Any) -> None:
        if not isinstance(result, torch.Tensor) or result.is_floating_point() or result.dtype is torch.bool:
            return
        if not result.numel() or self._source(result)[0] is not None:
            return
        found = [self._source(argument) for argument in pytree.tree_leaves(args)]
        for number, plain in found:
            if number is not None:
                self._follow(result, number, plain and name in _COPIES)

    def _follow(self, tensor: torch.Tensor, number: int, plain: bool) -> None:
        self._held.append(tensor)
        self._sources[tensor.untyped_storage().data_ptr()] = (number, plain)


_COPIES = frozenset({"clone", "_to_copy", "repeat", "cat", "stack", "index_select", "gather", "flip", "roll", "clamp"})


def _looked_up(name: str, args: Sequence[Any]) -> Iterator[tuple[Any, int]]:
    """(positions, how many there are) of an operator that looks something up."""
    if name in ("embedding", "_embedding_bag", "embedding_renorm"):
        first, second = args[0], args[1]
        yield second, first.shape[0]
    elif name in ("index", "_unsafe_index", "index_put", "index_put_"):
        for dim, index in enumerate(args[1]):
            yield index, args[0].shape[dim] if dim < args[0].dim() else 0
    elif name in ("index_select", "gather", "scatter", "scatter_", "scatter_add", "index_add"):
        yield args[2], args[0].shape[args[1]] if args[0].dim() else 1
