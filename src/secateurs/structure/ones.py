"""Sizes that the exporter sets apart from all others, the network often does not: something has length one there, or is
as long as something else."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch

from secateurs.structure.comparison import relative_difference, tensors_of
from secateurs.structure.draws import mapped, resized, tensors_in
from secateurs.structure.input_sizes import FARTHEST, InputSizes, names_in, true
from secateurs.structure.interpreter import values_of
from secateurs.structure.untouched import fresh_runs

ALIKE = 1e-3
"""Relative difference, in the network's own precision, up to which two outputs are the same."""
MOST = 16
"""Lengths of an axis that are tried."""
LEAST = 4
"""Lengths that are tried whatever refuses them."""
_DIFFER = re.compile(r".* != .*")
_APART = re.compile(r".* (!= 1|>= 2|> 1)|1 (<|!=) .*")


def with_ones(program: torch.export.ExportedProgram, model: torch.nn.Module, sizes: InputSizes) -> InputSizes:
    """``sizes`` that also take lengths which the exporter set apart, if its graph computes there what the network does.

    The two are run beside each other at every such length of an axis (where ``s // 16 != 1`` is wanted: 16 to 31), the
    others as long as in the example, and at the least lengths of all axes together. First go conditions that two
    numbers differ (a pad is not zero, say) if graph and network agree wherever they are alike.
    """
    sizes = _unparted(program, model, sizes)
    found: dict[str, list[int]] = {}
    for symbol, lengths in _set_apart(sizes).items():
        good = [length for length in lengths[:MOST] if _alike(program, model, sizes, {symbol: length})]
        if good:
            found[symbol] = good
    if not found or not _alike(program, model, sizes, {symbol: lengths[0] for symbol, lengths in found.items()}):
        return sizes
    return sizes.taking(found)


def _unparted(program: torch.export.ExportedProgram, model: torch.nn.Module, sizes: InputSizes) -> InputSizes:
    """``sizes`` without conditions ``a != b`` that the network does not know."""
    parting = [c for c in sizes.conditions if _DIFFER.fullmatch(c) and not _APART.fullmatch(c)]
    rest = dataclasses.replace(sizes, conditions=tuple(c for c in sizes.conditions if c not in parting))
    gone: list[str] = []
    alike: dict[str, int] = {}
    for condition in parting:
        tried = _equal_at(rest, condition)
        if tried and all(_alike(program, model, sizes, {symbol: length}) for symbol, length in tried):
            gone.append(condition)
            alike.update(tried[:1])
    if not gone or not _alike(program, model, sizes, alike):
        return sizes
    return dataclasses.replace(sizes, conditions=tuple(c for c in sizes.conditions if c not in gone))


def _equal_at(sizes: InputSizes, condition: str) -> list[tuple[str, int]]:
    """Symbols and lengths, few of each, at which ``a != b`` fails, where one symbol is not as in the example."""
    found: list[tuple[str, int]] = []
    for symbol in sorted(names_in(condition) & sizes.symbols.keys()):
        lengths = range(1, FARTHEST * sizes.symbols[symbol] + 1)
        equal = [n for n in lengths if not true(condition, {**sizes.symbols, symbol: n})]
        fit = [n for n in equal if sizes.fit(sizes.at({**sizes.symbols, symbol: n}))]
        found += [(symbol, n) for n in fit[:: max(-(-len(fit) // LEAST), 1)]]
    return found


def _set_apart(sizes: InputSizes) -> dict[str, list[int]]:
    """Lengths that are refused because something would have length one, up to three times the example's, and the least
    lengths of all, which conditions on several axes may refuse."""
    found = {symbol: _refused(sizes, symbol, range(1, min(LEAST, size) + 1)) for symbol, size in sizes.symbols.items()}
    for condition in sizes.conditions:
        symbols = names_in(condition) & sizes.symbols.keys()
        if len(symbols) != 1 or not _APART.fullmatch(condition):
            continue
        (symbol,) = symbols
        lengths = range(1, FARTHEST * sizes.symbols[symbol] + 1)
        found[symbol] += _refused(
            sizes, symbol, [length for length in lengths if not true(condition, {symbol: length})]
        )
    return {symbol: sorted({*lengths}) for symbol, lengths in found.items()}


def _refused(sizes: InputSizes, symbol: str, lengths: Iterable[int]) -> list[int]:
    return [length for length in lengths if not sizes.fit(sizes.at({**sizes.symbols, symbol: length}))]


def _alike(
    program: torch.export.ExportedProgram, model: torch.nn.Module, sizes: InputSizes, changed: Mapping[str, int]
) -> bool:
    """Whether graph and network return the same on inputs drawn at random, where symbols have other values."""
    example: Any = program.example_inputs
    if len(sizes.example) != len(tensors_in(example)):
        return False
    args, kwargs = _drawn(example, sizes.at({**sizes.symbols, **changed}))
    try:
        with fresh_runs(model), torch.no_grad():
            wanted = tensors_of(model(*mapped(torch.clone, args), **mapped(torch.clone, kwargs)))
            known = dict(values_of(program, (args, kwargs)))
    except Exception:  # the network has no such size, or the graph has not
        return False
    found = [known[name] for name in program.graph_signature.user_outputs if isinstance(known.get(name), torch.Tensor)]
    return bool(found) and relative_difference(found, wanted) <= ALIKE


def _drawn(example: Any, shapes: Sequence[Sequence[int]]) -> Any:
    generator, left = torch.Generator().manual_seed(0), iter(shapes)

    def draw(leaf: torch.Tensor) -> torch.Tensor:
        shape = tuple(next(left))
        if leaf.is_floating_point():
            return torch.randn(shape, generator=generator).to(leaf)
        return resized(leaf, shape)

    return mapped(draw, example)
