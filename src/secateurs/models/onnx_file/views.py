"""Reshapes as what they join and split, so that they follow another batch and fewer channels.

A file gives a reshape the sizes of its example: ``[1, 1024]`` of ``[1, 1024, 1, 1]``. As joins and splits it is "the
first axis stays, the others become one".
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor, nn

from secateurs.models.onnx_file.operators import function_of
from secateurs.models.onnx_file.values import Value

Run = tuple[int, int, tuple[int, ...]]
"""(first, last + 1) of axes that become axes of these sizes; one of the sizes may be -1, which is what is left."""


class Reshaped(nn.Module):
    """Joins and splits axes. The sizes that it gives lie in ``sizes_0``, ``sizes_1`` …, where a cut can find them."""

    def __init__(self, parts: Sequence[Run]) -> None:
        super().__init__()
        self._spans = [(first, last, made.index(-1) if -1 in made else None) for first, last, made in parts]
        for number, (_, _, made) in enumerate(parts):
            setattr(self, f"sizes_{number}", tuple(size for size in made if size != -1))

    def forward(self, values: Tensor) -> Tensor:
        """The values in their new shape."""
        sizes: list[Any] = []
        for number, (first, last, free) in enumerate(self._spans):
            made = list(getattr(self, f"sizes_{number}"))
            if free is not None:
                made.insert(free, math.prod(values.shape[first:last]) // math.prod(made))
            sizes += made
        return values.reshape(sizes)


class Numbered(nn.Module):
    """An operator with inputs that are numbers: sizes, bounds, amounts. Whole ones lie in ``input_1``, ``input_2`` …,
    by
    the input's place, where a cut can find them."""

    def __init__(
        self, op: str, attributes: Mapping[str, Any], opset: int, numbers: Mapping[int, Any], count: int
    ) -> None:
        super().__init__()
        self.op = op
        self._attributes, self._opset, self._count = dict(attributes), opset, count
        self._shapes = {place: np.shape(value) for place, value in numbers.items() if _whole(value)}
        self._others = {place: value for place, value in numbers.items() if place not in self._shapes}
        for place in self._shapes:
            held = np.ravel(numbers[place]).tolist()
            setattr(self, f"input_{place}", held[0] if len(held) == 1 else tuple(held))

    def forward(self, *values: Tensor) -> Any:
        """What the operator gives."""
        rest = iter(values)
        return function_of(self.op)(
            [self._input(place, rest) for place in range(self._count)], self._attributes, self._opset
        )

    def _input(self, place: int, rest: Any) -> Value:
        if place in self._shapes:
            return np.array(getattr(self, f"input_{place}"), dtype=np.int64).reshape(self._shapes[place])
        return self._others[place] if place in self._others else next(rest)


def _whole(value: Any) -> bool:
    return isinstance(value, np.ndarray) and value.dtype.kind in "iu" and value.size > 0


def runs(before: Sequence[int], after: Sequence[int], batch: int | None) -> tuple[Run, ...]:
    """The shortest runs of axes that have as many entries before and after a reshape.

    ``batch``: the axis after it in which the batch lies.
    """
    found: list[list[int]] = []
    i = j = 0
    while i < len(before) and j < len(after):
        first, start, one, two = i, j, before[i], after[j]
        i, j = i + 1, j + 1
        while one != two:
            if one < two:
                one, i = one * before[i], i + 1
            else:
                two, j = two * after[j], j + 1
        found.append([first, i, start, j])
    if found:  # trailing axes of size 1
        found[-1][1], found[-1][3] = len(before), len(after)
    return tuple((first, last, _free(after[start:end], batch, start)) for first, last, start, end in found)


def _free(sizes: Sequence[int], batch: int | None, start: int) -> tuple[int, ...]:
    """Sizes with -1 at the batch, or at the only one that is not 1."""
    more = [place for place, size in enumerate(sizes) if size != 1]
    free = batch - start if batch is not None and 0 <= batch - start < len(sizes) else None
    if free is None and len(more) <= 1:
        free = more[0] if more else 0
    return tuple(-1 if place == free else size for place, size in enumerate(sizes))


def batch_axis(before: Sequence[int], grown: int, after: Sequence[int]) -> int | None:
    """Where the batch lies after a reshape at batch 1, from the axis in which it lay before; None where nothing tells.

    An axis of size 1 is it. Else it was joined with an axis: with the one before where axes became fewer, such as
    [length * batch, width], and with the one behind where they did not, such as [length, batch * heads, size].
    """
    lead = math.prod(before[:grown])
    first = next((place for place in range(len(after)) if math.prod(after[:place]) == lead), None)
    if first is None:
        return None
    last = first + 1
    while last < len(after) and math.prod(after[first:last]) < before[grown]:
        last += 1
    same = range(first, last + 1 if last < len(after) and after[last] == 1 else last)
    alone = next((place for place in same if after[place] == 1), None)
    if alone is not None:
        return alone
    return first - 1 if first > 0 and len(after) < len(before) else first
