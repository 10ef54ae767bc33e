"""What the dense network gives when it ignores the removed units, on inputs of several kinds and sizes."""

from __future__ import annotations

import functools
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from secateurs.errors import StructureError, why
from secateurs.plan import Plan
from secateurs.structure.comparison import mostly_finite, tensors_of
from secateurs.structure.draws import (
    KINDS,
    WAYS,
    Call,
    IndexBounds,
    Sizes,
    drawn,
    mapped,
    other_batch,
    other_sizes,
    tensors_in,
)
from secateurs.structure.memory import Memory
from secateurs.structure.modes import INTERPRETER, into_training
from secateurs.structure.precision import Float64, Settled, Shaken
from secateurs.structure.scratch import is_large, let_go, mask_removed, scratch
from secateurs.structure.untouched import untouched

if TYPE_CHECKING:
    from secateurs.structure.graph import Graph

SMALL = 2_000_000
"""Parameters up to which a further draw costs nothing that anyone notices."""


@dataclass(frozen=True)
class Case:
    """One run: how its inputs are drawn (``inputs`` makes them anew) and what must come out.

    ``optional``: other sizes than the example's, which a rebuilt network may decline.
    """

    example: Call
    seed: int
    way: str
    expected: Any
    sizes: Sizes | None = None
    bounds: tuple[tuple[int, int], ...] = ()
    optional: bool = False

    def inputs(self) -> Call:
        """The inputs, the same every time; a run may change them in place."""
        return drawn(self.example, self.seed, self.way, self.sizes, dict(self.bounds))

    def __str__(self) -> str:
        shapes = ", ".join(str(list(leaf.shape)) for leaf in tensors_in(self.inputs()))
        kinds = {"free": "random inputs", "range": "inputs in the example's range", "given": "the example's own inputs"}
        return f"{kinds[self.way]} {shapes}"


def run(network: nn.Module, call: Call, *modes: Any) -> Any:
    """What a network gives, all in float64; chance, globals and classes are the same for every run."""
    with untouched(network, modules=False), torch.no_grad():
        random.seed(0)
        np.random.seed(0)
        torch.manual_seed(0)
        with Float64():
            args, kwargs = call
            if not modes:
                return network(*args, **kwargs)
            with modes[0]:
                return network(*args, **kwargs)


class Oracle:
    """Cases of one plan for one network; they are made as they are asked for, and kept.

    The user's own dense network with the removed indices set to zero gives them; where a statistic spans units
    (normalisation or softmax over them), or a removed weight would be divided by its own size, the interpreter of the
    exported graph. Every network runs the cases in this order, so that what a run leaves behind is the same.

    Args:
        model: the dense network.
        plan: what stays.
        example: inputs.
        graph: the traced network; needed for an interpreter, else it is traced then.
        seed: of the redrawn parameters and inputs.
        traced: traces the network.
        training: in training mode, and how that is judged (:attr:`Graph.judge_in_training`): the cases are at the
            example's sizes then. None: in evaluation mode.
    """

    def __init__(
        self,
        model: nn.Module,
        plan: Plan,
        example: Call,
        graph: Graph | None,
        seed: int,
        training: str | None = None,
        *,
        traced: Callable[[], Graph],
    ) -> None:
        self.model, self.plan, self.example, self.graph, self.seed = model, plan, example, graph, seed
        self.training, self._traced = training, traced
        self.interpreted = bool(plan.provenance.get("statistics")) if training is None else training == INTERPRETER
        self.drawn_as = True, is_large(model)
        """Whether buffers are redrawn, and weights are held narrow."""
        self._dense: nn.Module | None = None
        self._used = False
        self._known: list[Case] = []
        self._more = self._draw()
        self._failure: Exception | None = None

    @property
    def failure(self) -> str:
        """Why the dense network did not run on inputs drawn last."""
        return "" if self._failure is None else why(self._failure, 200)

    def answers(self, model: nn.Module, plan: Plan, seed: int) -> bool:
        """Whether its cases hold for this plan, too: they do not depend on how a cut is carried out."""
        return (
            self.model is model
            and self.seed == seed
            and (self.plan.slices, self.plan.blocks_removed) == (plan.slices, plan.blocks_removed)
            and (self.plan.rebuild is None) == (plan.rebuild is None)
        )

    def source(self) -> nn.Module:
        """A scratch copy that nothing was removed from, to be cut."""
        if self._dense is not None and self._used:
            if is_large(self.model):  # what is needed of it is known, or found again
                self._dense, self._used = None, False
            return self._scratch()
        self._dense = self._dense or self._scratch()
        return self._dense

    def _scratch(self) -> nn.Module:
        buffers, narrow = self.drawn_as
        return scratch(self.model, self.seed, buffers=buffers, narrow=narrow)

    def _judge(self) -> nn.Module:
        """The dense network in its mode, masked where no interpreter is asked."""
        if self._dense is None:
            self._dense, self._used = self._scratch(), False
        if not self._used:
            self._dense, self._used = self.in_mode(self._dense), True
            if not self.interpreted:
                mask_removed(self._dense, self.plan)
        return self._dense

    def cases(self) -> Iterator[Case]:
        """Every case, those that were made before first."""
        yield from list(self._known)
        for case in self._more:
            self._known.append(case)
            yield case

    def runs(self) -> bool:
        """Whether the dense network runs on inputs that are drawn like the example's."""
        try:
            next(self.cases())
        except StructureError:
            return False
        return True

    def settled(self, case: Case) -> Any:
        """What comes out of a case when rounding never decides which of several values is chosen."""
        return self._ask(case.inputs(), Settled())

    def shaken(self, case: Case, seed: int) -> Any:
        """What comes out of a case when every operator is off by a little more than rounding."""
        return self._ask(case.inputs(), Shaken(seed))

    def dense(self) -> nn.Module:
        """The dense network that ignores the removed units."""
        return mask_removed(self.whole(), self.plan)

    def whole(self) -> nn.Module:
        """The dense network of which nothing is left out."""
        return self.in_mode(self._scratch())

    def in_mode(self, network: nn.Module) -> nn.Module:
        """A network in the mode that is asked about."""
        return network.eval() if self.training is None else into_training(network)

    def _draw(self) -> Iterator[Case]:
        first, bounds = self._first()
        yield first
        found = [first]
        small = sum(parameter.numel() for parameter in self.model.parameters()) <= SMALL
        for kind in KINDS[: len(KINDS) if small else 1] if self.training is None else ():
            for sizes in self._other_sizes(kind):
                case = self._case(self.seed + 1, first.way, sizes, bounds)
                if case is not None:
                    found.append(case)
                    yield case
                    break
        again = [self.seed + 1] if len(found) == 1 else []
        if bounds or any(not leaf.is_floating_point() for leaf in tensors_in(self.example)):
            again.append(self.seed + 2)
        if small:
            again = [self.seed + 2]
        for seed in again:
            case = self._case(seed, first.way, None, bounds) or self._case(seed, WAYS[-1], None, bounds)
            if case is not None:
                yield case

    def _first(self) -> tuple[Case, dict[int, int]]:
        """The first way of drawing on which the network runs, and what integer inputs may be."""
        holding = (True, False) if is_large(self.model) else (False,)  # some forwards compare number types
        for self.drawn_as in [(buffers, narrow) for buffers in (True, False) for narrow in holding]:
            for way in WAYS:
                watch = IndexBounds()
                case = self._case(self.seed, way, None, {}, watch)
                if case is not None:
                    return case, watch.bounds
                self._dense = None  # the run may have left something behind
        raise StructureError(
            "The dense network itself does not run on redrawn weights and inputs "
            f"({self.failure}), so no cut of it can be checked. "
            "The original is intact. Give an example with typical values."
        )

    def _other_sizes(self, kind: str) -> Iterator[Sizes]:
        batch = other_batch(self.example, 3 if kind == "larger" else 1)
        sizes = list(other_sizes(self.example, kind))
        if batch is not None:
            yield from (batch + other for other in sizes if self._follows(batch + other))
            if kind == KINDS[0] and self._follows(batch):
                yield batch
        if batch is None or kind != "odd":
            yield from (other for other in sizes if self._follows(other))

    def _follows(self, sizes: Sizes) -> bool:
        """Whether the graph takes these sizes, where it is the graph that is asked or rebuilt."""
        if not self.interpreted and self.plan.rebuild is None:
            return True
        assert self.graph is not None
        shapes = [sizes.of(number, leaf.shape) for number, leaf in enumerate(tensors_in(self.example))]
        return self.graph.input_sizes.fit(shapes)

    def _case(
        self, seed: int, way: str, sizes: Sizes | None, bounds: dict[int, int], watch: IndexBounds | None = None
    ) -> Case | None:
        """The case, or None where the dense network does not run on such inputs."""
        case = Case(self.example, seed, way, None, sizes, tuple(bounds.items()), sizes is not None)
        call = case.inputs()
        if watch is not None:
            watch.watch(tensors_in(call))
        memory = Memory(self._dense, parameters=False) if sizes is not None and self._dense is not None else None
        try:
            expected = self._ask(call, *([watch] if watch is not None else []))
        except Exception as error:
            self._failure = error
            let_go(error)
            if memory is not None:
                memory.restore()
            return None
        if not mostly_finite(expected):
            self._failure = self._failure or ValueError("its output is not finite")
            return None
        return Case(self.example, seed, way, expected, sizes, tuple(bounds.items()), sizes is not None)

    def _ask(self, call: Call, *modes: Any) -> Any:
        if self.interpreted:
            return self._interpret(call, *modes)
        given = mapped(torch.clone, call)
        result = run(self._judge(), call, *modes)
        if _finite(result):
            return result
        whole = run(self.whole(), given)
        if _places(result) == _places(whole):
            return result
        # Something divides by what is zero now, a weight's own size.
        self.interpreted, self._dense = True, None
        return self._interpret(given, *modes)

    def _interpret(self, call: Call, *modes: Any) -> Any:
        from secateurs.structure.interpreter import interpret

        if self.graph is None:
            self.graph = self._traced()
        dense, (args, kwargs) = self._judge(), call

        plan, graph = self.plan, self.graph if self.training is None else self.graph.training
        if graph is None:
            raise StructureError("The forward in training mode could not be exported.")
        answer = functools.partial(interpret, graph, plan, dense, args, kwargs)

        class Interpreted(nn.Module):
            def forward(self, *_: Any) -> list[torch.Tensor]:
                return answer()

        return run(Interpreted(), ((), {}), *modes)


def _finite(result: Any) -> bool:
    return all(bool(tensor.isfinite().all()) for tensor in tensors_of(result) if tensor.is_floating_point())


def _places(result: Any) -> list[bytes]:
    return [t.isfinite().numpy().tobytes() for t in tensors_of(result) if t.is_floating_point()]
