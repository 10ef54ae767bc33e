"""Which input sizes an exported graph holds for: fixed axes, free ones, and what the free ones must satisfy."""

from __future__ import annotations

import dataclasses
import functools
import math
import re
import types
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.export.graph_signature import InputKind
from torch.utils._sympy.printers import PythonPrinter

from secateurs.errors import StructureError
from secateurs.structure.call import concrete_int

INPUT_SIZES = "secateurs_input_sizes"
"""Under this name the sizes are kept with an exported program's graph module."""
FARTHEST = 3
"""Sizes up to so many times the example's are tried to say of which number they must be multiples."""


@dataclass(frozen=True)
class InputSizes:
    """Sizes of the tensors among the inputs.

    ``names``: one for each tensor, in order; ``axes``: for each a number or an expression in symbols per dimension;
    ``conditions``: expressions that must be true, in the same symbols; ``example``: the traced sizes. Expressions are
    Python's.
    """

    names: tuple[str, ...]
    axes: tuple[tuple[int | str, ...], ...]
    conditions: tuple[str, ...]
    example: tuple[tuple[int, ...], ...]

    def fit(self, shapes: Sequence[Sequence[int]]) -> bool:
        """Whether the graph holds for inputs of these shapes."""
        return misfit(self.axes, self.conditions, shapes) is None

    @property
    def symbols(self) -> dict[str, int]:
        """Every symbol's value in the example."""
        return _solved(self.axes, self.example)

    def at(self, symbols: Mapping[str, int]) -> list[tuple[int, ...]]:
        """Shapes of the inputs where symbols have these values."""
        return [
            tuple(axis if isinstance(axis, int) else int(eval(_compiled(axis), _KNOWN, dict(symbols))) for axis in axes)
            for axes in self.axes
        ]

    def taking(self, lengths: Mapping[str, Sequence[int]]) -> InputSizes:
        """These sizes where symbols may have some other values, too: conditions read the example's in their place."""

        def instead(match: re.Match[str]) -> str:
            allowed = lengths.get(match[0])
            return (
                match[0] if not allowed else f"({self.symbols[match[0]]} if {match[0]} in {[*allowed]} else {match[0]})"
            )

        return dataclasses.replace(self, conditions=tuple(_SYMBOL.sub(instead, c) for c in self.conditions))

    def __str__(self) -> str:
        return "; ".join(
            f"{name} [{', '.join(self._in_words(number, dim) for dim in range(len(axes)))}]"
            for number, (name, axes) in enumerate(zip(self.names, self.axes, strict=True))
        )

    def _in_words(self, number: int, dim: int) -> str:
        size = self.example[number][dim]
        if isinstance(self.axes[number][dim], int):
            return str(size)
        most = FARTHEST * size + 1
        alone, together = self._bound(number, dim), self._as_long(number, dim)
        fits, others = (
            {length for length in range(1, most) if self._fits_with(axes, length)} for axes in (alone, together)
        )
        if len(others) > len(fits):  # inputs that must be alike though the exporter does not say so
            first = min(together)[0]
            if first < number:
                return f"as {self.names[first]}"
            fits = others
        if len(fits) < 2:
            return str(size)
        least, longest = min(fits), max(fits)
        steps = [k for k in range(1, size + 1) if size % k == 0]
        step = next((k for k in steps if fits.issuperset(range(-(-least // k) * k, longest + 1, k))), None)
        if step is None:
            return f"{size} and some others"
        some = " and some others" if any(other % step for other in fits) else ""
        start = f" from {least}" if least > step else ""
        up_to = f" up to {longest}" if longest + step < most else ""
        return ("any" if step == 1 else f"multiples of {step}") + some + start + up_to

    def _bound(self, number: int, dim: int) -> set[tuple[int, int]]:
        """An axis and those that are bound to be as long."""
        same = self.axes[number][dim]
        return {(n, d) for n, axes in enumerate(self.axes) for d, axis in enumerate(axes) if axis == same}

    def _as_long(self, number: int, dim: int) -> set[tuple[int, int]]:
        """An axis and those that stand in the same place of other inputs and are as long in the example."""
        size = self.example[number][dim]
        alike = [n for n, shape in enumerate(self.example) if shape[dim : dim + 1] == (size,)]
        return set().union(*(self._bound(n, dim) for n in alike if not isinstance(self.axes[n][dim], int)))

    def _fits_with(self, changed: set[tuple[int, int]], size: int) -> bool:
        """Whether the example's sizes fit, but for these axes."""
        return self.fit(
            [
                [size if (number, dim) in changed else length for dim, length in enumerate(shape)]
                for number, shape in enumerate(self.example)
            ]
        )


def input_sizes(program: torch.export.ExportedProgram) -> InputSizes:
    """What an exported program says of the sizes of its inputs."""
    kinds = {spec.arg.name: spec.kind for spec in program.graph_signature.input_specs}
    nodes = [n for n in program.graph.nodes if n.op == "placeholder" and kinds[n.name] is InputKind.USER_INPUT]
    tensors = [(n.name, n.meta["val"]) for n in nodes if isinstance(n.meta.get("val"), torch.Tensor)]
    environments = {
        id(size.node.shape_env): size.node.shape_env
        for _, tensor in tensors
        for size in tensor.shape
        if isinstance(size, torch.SymInt) and size.node.maybe_as_int() is None
    }
    axes = tuple(tuple(_expression(size) for size in tensor.shape) for _, tensor in tensors)
    symbols = {name for one in axes for axis in one if isinstance(axis, str) for name in _SYMBOL.findall(axis)}
    conditions: dict[str, None] = {}
    for environment in environments.values():
        for guard in environment.guards:
            condition = environment.simplify(guard.expr)
            if all(_printed(symbol) in symbols for symbol in condition.free_symbols):  # others depend on values
                conditions.setdefault(_printed(condition))
    batches = {axes_[0] for axes_ in axes if axes_}
    for symbol, limits in program.range_constraints.items():
        name = _printed(symbol)
        if name in symbols:  # that a batch has two samples at least is the exporter's way, not the network's
            conditions.update(dict.fromkeys(_bounds(name, 2 if name in batches else 1, limits)))
    conditions.pop("True", None)
    example = tuple(tuple(concrete_int(size) for size in tensor.shape) for _, tensor in tensors)
    return InputSizes(tuple(name for name, _ in tensors), axes, tuple(conditions), example)


def _expression(size: Any) -> int | str:
    known = size if isinstance(size, int) else size.node.maybe_as_int()
    return int(known) if known is not None else _printed(size.node.expr)


def _printed(expression: Any) -> str:
    return str(PythonPrinter().doprint(expression))


def _bounds(symbol: str, usual: int, limits: Any) -> Iterable[str]:
    if limits.lower.is_Integer and limits.lower > usual:
        yield f"{symbol} >= {int(limits.lower)}"
    if limits.upper.is_Integer:
        yield f"{symbol} <= {int(limits.upper)}"


def misfit(
    axes: Sequence[Sequence[int | str]], conditions: Sequence[str], shapes: Sequence[Sequence[int]]
) -> str | None:
    """Why shapes do not fit, None where they do: the number of a tensor with another size, or a condition."""
    key = (tuple(map(tuple, axes)), tuple(conditions), tuple(map(tuple, shapes)))
    plain = all(type(size) is int for shape in key[2] for size in shape)
    return _misfit_of_numbers(*key) if plain else _misfit(*key)


def _misfit(
    axes: tuple[tuple[int | str, ...], ...], conditions: tuple[str, ...], shapes: tuple[tuple[int, ...], ...]
) -> str | None:
    for number, (expected, given) in enumerate(zip(axes, shapes, strict=True)):
        if len(expected) != len(given):
            return str(number)
    known = _solved(axes, shapes)
    for number, (expected, given) in enumerate(zip(axes, shapes, strict=True)):
        for axis, size in zip(expected, given, strict=True):
            if (axis != size) if isinstance(axis, int) else not true(f"({axis}) == size", {**known, "size": size}):
                return str(number)
    return next((condition for condition in conditions if not true(condition, known)), None)


def _solved(axes: Sequence[Sequence[int | str]], shapes: Sequence[Sequence[int]]) -> dict[str, int]:
    """Values of the symbols that an axis consists of, but for a factor."""
    known: dict[str, int] = {}
    for expected, given in zip(axes, shapes, strict=True):
        for axis, size in zip(expected, given, strict=True):
            scaled = _SCALED.fullmatch(axis) if isinstance(axis, str) else None
            if scaled is not None:
                known.setdefault(scaled[2], size // int(scaled[1] or 1))
    return known


_misfit_of_numbers = functools.lru_cache(maxsize=256)(_misfit)
_SCALED = re.compile(r"(?:(\d+)\*)?([a-z_]\w*)")
_SYMBOL = re.compile(r"\b[a-z_]\w*\b")
_TAKING = re.compile(r"\(\d+ if (\w+) in \[[\d, ]*\] else \1\)")


_KNOWN = {
    "__builtins__": {},
    "math": math,
    "torch": types.SimpleNamespace(sym_float=torch.sym_float, _sym_sqrt=torch.sym_sqrt),
    "abs": abs,
    "max": max,
    "min": min,
    "round": round,
}
"""What the exporter's expressions name besides symbols, ``math.trunc(0.5*torch.sym_float(s1))`` say."""


def names_in(condition: str) -> set[str]:
    """Every name in a condition."""
    return set(_SYMBOL.findall(condition))


def true(condition: str, known: dict[str, int]) -> bool:
    """Whether a condition holds where symbols have these values."""
    try:
        return bool(eval(_compiled(condition), _KNOWN, known))
    except (NameError, ZeroDivisionError):  # a symbol that is no size of an input; a size at which nothing is left
        return False


@functools.lru_cache(maxsize=4096)
def _compiled(condition: str) -> Any:
    return compile(condition, "<sizes>", "eval")


def as_traced(
    values: Sequence[Any], names: Sequence[str], axes: Sequence[Sequence[int | str]], conditions: Sequence[str]
) -> Any:
    """``values``, the tensors among the inputs, if the graph holds for their shapes.

    A rebuilt graph holds some sizes of its example as numbers; at others it would compute something else without a
    sound.

    Raises:
        StructureError: other shapes.
    """
    if isinstance(values[0], torch.fx.Proxy):  # a graph module that is read from a file traces its code again
        return values[0].tracer.create_proxy("call_function", as_traced, (values, names, axes, conditions), {})
    found = misfit(axes, conditions, [value.shape for value in values])
    if found is None:
        return values
    shown = dict(zip(names, ([*value.shape] for value in values), strict=True))
    given = ", ".join(f"{name} has shape {shape}" for name, shape in shown.items())
    wanted = ", ".join(f"{n} [{', '.join(map(_free, one))}]" for n, one in zip(names, axes, strict=True))
    why = "" if found.isdigit() else f" where {_named(found, names, axes)}"
    raise StructureError(
        f"Input {given}, but this rebuilt network takes {wanted}{why} only: its graph holds sizes of the example "
        "that it was pruned with. Prune again with an example of the new shape, or keep the network's own class "
        "('secateurs doctor' says how)."
    )


def _free(axis: int | str) -> str:
    return str(axis) if isinstance(axis, int) else "any" if axis.isidentifier() else axis


def _named(condition: str, names: Sequence[str], axes: Sequence[Sequence[int | str]]) -> str:
    """The condition with ``x.shape[2]`` for a symbol."""
    places = {
        axis: f"{name}.shape[{dim}]"
        for name, one in reversed(list(zip(names, axes, strict=True)))
        for dim, axis in reversed(list(enumerate(one)))
        if isinstance(axis, str)
    }
    plain = _TAKING.sub(r"\1", condition).replace("torch.sym_float(", "float(").replace("torch._sym_sqrt(", "sqrt(")
    return _SYMBOL.sub(lambda match: places.get(match[0], match[0]), plain)
