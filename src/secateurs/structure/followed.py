"""Sizes that a forward reads off one tensor and gives another: both must lose as many indices.

``y.reshape(b, x.shape[1], 1, 1)`` follows ``x`` in the user's own module, while the exported graph holds a number.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from secateurs.structure.call import Analysis
from secateurs.structure.ids import NEUTRAL, PINNED
from secateurs.structure.interpreter import values_of
from secateurs.structure.untouched import evaluating, untouched
from secateurs.structure.values import Value


@dataclass(frozen=True)
class Followed:
    """Axis ``dim`` of node ``node`` was given the size that was read off axis ``source_dim`` of node ``source``."""

    node: str
    dim: int
    source: str
    source_dim: int


def followed(model: nn.Module, program: torch.export.ExportedProgram) -> tuple[Followed, ...]:
    """Every such pair of axes that may carry units, in the order of the forward.

    Found by running the network once and its exported graph once on the same inputs: tensors are recognised in the
    graph by what they hold. Where that does not tell, the pair is left out.
    """
    widths = {size for tensor in model.parameters() for size in tensor.shape if size > 1}
    with untouched(model), evaluating(model), torch.no_grad():
        watch = _Watch(widths)
        args, kwargs = program.example_inputs
        torch.manual_seed(0)
        try:
            with watch:
                model(*args, **kwargs)
            prints = {found for seen in watch.seen for found in (seen.made, seen.source)}
            nodes = _recognised(program, prints) if prints else {}
        except Exception:
            return ()  # it does not take a size that is more than a number, or does not run as it was exported
        finally:
            watch.forget()
    pairs = [
        Followed(nodes[seen.made], seen.dim, nodes[seen.source], seen.source_dim)
        for seen in watch.seen
        if seen.made in nodes and seen.source in nodes
    ]
    return tuple(dict.fromkeys(pairs))


def tie_followed(analysis: Analysis, pairs: Iterable[Followed]) -> None:
    """Let the units of both axes go together, one by one.

    Left alone is what would lose too much by it: an axis that stays, or along which several positions are one unit
    (whole heads that are joined to the width of what they read); a rebuilt graph cuts those apart.
    """
    for pair in pairs:
        mine = _one_by_one(analysis, pair.node, pair.dim)
        other = _one_by_one(analysis, pair.source, pair.source_dim)
        if mine is not None and other is not None:
            analysis.ids.unify(mine, other)


def _one_by_one(analysis: Analysis, node: str, dim: int) -> np.ndarray | None:
    """Ids along an axis whose positions are units of their own, all of which can go."""
    value = analysis.values.get(node)
    stack = value.along(dim) if isinstance(value, Value) else []
    if len(stack) != 1:
        return None
    units = analysis.ids.find(stack[0])
    alone = len(np.unique(units)) == len(units) and not np.isin(units, (NEUTRAL, PINNED)).any()
    return stack[0] if alone else None


_Print = tuple[tuple[int, ...], str]
"""Shape and digest of the values: what a tensor is recognised by."""


@dataclass(frozen=True)
class _Seen:
    made: _Print
    dim: int
    source: _Print
    source_dim: int


class _Size(int):
    """A size that remembers the axis that it was read off."""

    tensor: torch.Tensor | None
    dim: int


class _Watch(TorchFunctionMode):
    """Notes where a size that was read off a tensor becomes the size of another. ``widths``: sizes that count."""

    def __init__(self, widths: set[int]) -> None:
        super().__init__()
        self.seen: list[_Seen] = []
        self._widths = widths
        self._marks: list[_Size] = []

    def forget(self) -> None:
        """Hold no tensor any more, wherever a size was kept."""
        for mark in self._marks:
            mark.tensor = None

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[Any], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        marks: list[_Size] = []
        plain, keywords = _unmarked(args, marks), _unmarked(kwargs or {}, marks)
        result = func(*plain, **keywords)
        if isinstance(result, torch.Size):
            return torch.Size([self._mark(plain[0], size, dim) for dim, size in enumerate(result)])
        if getattr(func, "__name__", "") == "size" and isinstance(result, int):
            return self._mark(plain[0], result, next(iter((*plain[1:], *keywords.values()))))
        if marks and isinstance(result, torch.Tensor):
            self._note(result, plain, marks, getattr(func, "__name__", "").startswith("new_"))
        return result

    def _mark(self, tensor: torch.Tensor, size: int, dim: int) -> int:
        if size not in self._widths:
            return size
        found = _Size(size)
        found.tensor, found.dim = tensor, dim % tensor.dim()
        self._marks.append(found)
        return found

    def _note(self, result: torch.Tensor, inputs: Iterable[Any], marks: list[_Size], new: bool) -> None:
        """``new``: the result is no view of the inputs, so that their own sizes count as well."""
        given = () if new else tuple(value for value in inputs if isinstance(value, torch.Tensor))
        for mark in marks:
            places = [dim for dim, size in enumerate(result.shape) if size == mark]
            source = mark.tensor
            if source is not None and len(places) == 1 and not any(source is one for one in given):
                self.seen.append(_Seen(_print(result), places[0], _print(source), mark.dim))


def _unmarked(value: Any, marks: list[_Size]) -> Any:
    """The value with plain sizes; those that were marked are added to ``marks``."""
    if isinstance(value, _Size):
        marks.append(value)
        return int(value)
    if isinstance(value, torch.Size):
        return torch.Size([_unmarked(item, marks) for item in value])
    if type(value) in (tuple, list):
        return type(value)(_unmarked(item, marks) for item in value)
    if type(value) is dict:
        return {key: _unmarked(item, marks) for key, item in value.items()}
    if isinstance(value, slice):
        return slice(*(_unmarked(item, marks) for item in (value.start, value.stop, value.step)))
    return value


def _print(tensor: torch.Tensor) -> _Print:
    values = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    return tuple(tensor.shape), hashlib.blake2b(values.numpy().data, digest_size=16).hexdigest()


def _recognised(program: torch.export.ExportedProgram, wanted: set[_Print]) -> dict[_Print, str]:
    """For each the first node of the exported graph that gives such a tensor."""
    shapes = {shape for shape, _ in wanted}
    found: dict[_Print, str] = {}
    torch.manual_seed(0)
    for name, value in _tensors(values_of(program)):
        if tuple(value.shape) in shapes:
            known = _print(value)
            if known in wanted:
                found.setdefault(known, name)
    return found


def _tensors(values: Iterator[tuple[str, Any]]) -> Iterator[tuple[str, torch.Tensor]]:
    yield from ((name, value) for name, value in values if isinstance(value, torch.Tensor))
