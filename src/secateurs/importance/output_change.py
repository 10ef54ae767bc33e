"""How far a network's answers move when something of it goes and the rest is refitted: measured on a few images."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from secateurs.data.calls import Inputs, as_inputs, called, joined, on, part, tensors_of
from secateurs.data.tasks.task import Task, classification
from secateurs.errors import DataError, StructureError
from secateurs.plan import Plan
from secateurs.provenance import spelled
from secateurs.recover.batch_norm import reestimate
from secateurs.recover.refit.least_squares import RefitSettings, least_squares, workable
from secateurs.recover.refit.lockstep import Lane
from secateurs.structure.apply import apply
from secateurs.structure.graph import Graph

if TYPE_CHECKING:
    from secateurs.search.problem import Rows

NUMBERS, FEWEST, MOST = 18_000_000, 60, 320
"""Input numbers that are looked at in all, within these numbers of images."""
WORK = 250_000_000_000
"""Multiply-adds of the whole network on all images, at most (but for ``FEWEST``): large networks get fewer images."""
SETTINGS = RefitSettings(sweeps=0, after=False)
"""Of the refit: quick."""
REFITTED = 0.2
"""Share of the images that layers are refitted on; the others are answered on."""


def images_for(inputs: Sequence[Any], macs: float = 0) -> int:
    """How many images like these are enough for a network of so many multiply-adds an image."""
    numbers = sum(x[0].numel() for x in inputs if _per_image(x))
    return int(np.clip(min(NUMBERS // max(1, numbers), WORK // max(1.0, macs)), FEWEST, MOST))


def refit_count(inputs: Inputs) -> int:
    """On how many images like these [images, ...] layers are refitted quickly."""
    return max(1, int(images_for([x for _, x in tensors_of(inputs)]) * REFITTED))


class Answers:
    """Compares cut and refitted networks with the whole one.

    ``batches``: what the network is called with; the first fifth of the images serves the refit. Networks that the
    refit cannot take have their batch-norm statistics re-estimated instead. ``rows``: where what was measured is kept,
    None: in memory; ``task``: says how far two answers are apart, None: that of classification.
    """

    def __init__(
        self,
        graph: Graph,
        batches: Sequence[Inputs],
        rows: Rows | None = None,
        task: Task | None = None,
    ) -> None:
        self.graph, self.rows, self.task = graph, rows, task or classification()
        self._known: dict[str, float] = {}
        given = [as_inputs(batch) for batch in batches]
        images = [part(batch, slice(i, i + 1)) for batch in given for i in range(len(batch))]
        _require_one_size(images)
        macs = graph.spec.macs(graph.spec.dense_widths)
        images = images[: images_for([x for _, x in tensors_of(images[0])], macs)] if images else []
        first = max(1, int(len(images) * REFITTED)) if len(images) > 1 else len(images)
        size = max(1, min(64, first // 3))  # too few batches to choose the damping on: the largest holds
        self.refitted = _batched(images[:first], size)
        self.judged = _batched(images[first:] or images, 64)

    @cached_property
    def dense(self) -> list[list[Tensor]]:
        """The whole network's answers."""
        return [self._run(self.graph.model, batch) for batch in self.judged]

    @cached_property
    def lane(self) -> Lane | None:
        """The whole network, exported for the refit; None where that works on copies."""
        model = self.graph.model
        return Lane(model, self._moved(self.refitted[0])) if workable(model) else None

    @cached_property
    def identity(self) -> str:
        """Names the network, its weights and the images."""
        among = self.task.compared_as
        found = hashlib.sha256(f"{spelled(SETTINGS)} {self.graph.spec.fingerprint}{among}".encode())
        images = [x for batch in (*self.refitted, *self.judged) for _, x in tensors_of(batch)]
        for tensor in (*self.graph.model.state_dict().values(), *images):
            found.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        return found.hexdigest()[:16]

    def change(self, plan: Plan) -> float:
        """How far the answers of the network that ``plan`` cuts are from the whole network's; measured once.

        The task's distance, per image: of classification the mean Kullback-Leibler divergence of the softmax over the
        classes; for outputs that are not [images, classes], half of their mean squared change in units of their
        variance.
        """
        cut = hashlib.sha256(plan.model_dump_json(include={"groups", "blocks_removed"}).encode()).hexdigest()[:16]
        if cut in self._known:
            return self._known[cut]
        key = f"answers/{self.identity}/{cut}" if self.rows is not None else ""
        held = None if self.rows is None else self.rows.get(key)
        found = self._change(plan) if held is None else float(held["loss"])
        if self.rows is not None and held is None:
            self.rows.put(key, {"loss": found})
        self._known[cut] = found
        return found

    def _change(self, plan: Plan) -> float:
        modes = {child: child.training for child in self.graph.model.modules()}
        self.graph.model.eval()
        try:
            small = apply(self.graph.model, plan, (self.graph.args, self.graph.kwargs), check=False).eval()
            self._refit(small, plan)
            return self.distance_of(lambda batch: self._outputs(small, batch))
        finally:
            for child, training in modes.items():
                child.training = training

    def distance_of(self, answered: Callable[[Inputs], Any]) -> float:
        """How far answers to the judged batches are from the whole network's, in the units of :meth:`change`.

        ``answered``: outputs for a batch of inputs, built as the network's or as a list in their order.
        """
        total, count = 0.0, 0
        for batch, dense in zip(self.judged, self.dense, strict=True):
            doubled = ([x.double() for x in found] for found in (self.task.telling(answered(batch)), dense))
            total += max(0.0, float(self.task.distance_between(*doubled))) * len(batch)
            count += len(batch)
        return total / count

    def _refit(self, small: nn.Module, plan: Plan) -> None:
        inputs = [self._moved(batch) for batch in self.refitted]
        try:
            least_squares(self.graph.model, small, plan, inputs, settings=SETTINGS, lane=self.lane)
            return
        except (DataError, StructureError):
            reestimate(small, inputs)

    def _run(self, model: nn.Module, batch: Inputs) -> list[Tensor]:
        return self.task.telling(self._outputs(model, batch))

    @torch.inference_mode()
    def _outputs(self, model: nn.Module, batch: Inputs) -> Any:
        return called(model, self._moved(batch))

    def _moved(self, batch: Inputs) -> Inputs:
        device = next(iter(self.graph.model.parameters())).device
        return on(batch, device, copy=True)


def _require_one_size(images: Sequence[Inputs]) -> None:
    """Raises DataError where images differ in size: they are looked at together."""
    shapes = sorted({tuple(tuple(x.shape[1:]) for _, x in tensors_of(image) if _per_image(x)) for image in images})
    if len(shapes) > 1:
        listed = ", ".join(" and ".join(map(str, one)) for one in shapes[:3])
        raise DataError(
            f"The calibration images have several sizes ({listed}), and criterion measured compares networks on images "
            f"of one. Resize them to one, or choose a criterion that takes each batch alone, such as fisher_obs."
        )


def _batched(images: Sequence[Inputs], size: int) -> list[Inputs]:
    return [joined(images[start : start + size]) for start in range(0, len(images), size)]


def _per_image(value: Any) -> bool:
    """Whether an input has a row per image; others, such as a time step, are for all."""
    return isinstance(value, Tensor) and value.ndim > 0
