"""How far a network's answers move when something of it goes and the rest is refitted: measured on a few images."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

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


def refit_count(images: Tensor) -> int:
    """On how many images like these [images, ...] layers are refitted quickly."""
    return max(1, int(images_for((images,)) * REFITTED))


class Answers:
    """Compares cut and refitted networks with the whole one.

    ``batches``: tuples of positional inputs; the first fifth of the images serves the refit. Networks that are not
    given one tensor only, or that the refit cannot take, have their batch-norm statistics re-estimated instead.
    ``rows``: where what was measured is kept, None: in memory; ``classes``: the outputs that are compared, None: all.
    """

    def __init__(
        self,
        graph: Graph,
        batches: Sequence[tuple[Any, ...]],
        rows: Rows | None = None,
        classes: Sequence[int] | None = None,
    ) -> None:
        self.graph, self.rows, self.classes = graph, rows, classes
        self._known: dict[str, float] = {}
        images = [tuple(x[i : i + 1] if _per_image(x) else x for x in b) for b in batches for i in range(_count(b))]
        _require_one_size(images)
        macs = graph.spec.macs(graph.spec.dense_widths)
        images = images[: images_for(images[0], macs)] if images else []
        first = max(1, int(len(images) * REFITTED)) if len(images) > 1 else len(images)
        size = max(1, min(64, first // 3))  # too few batches to choose the damping on: the largest holds
        self.refitted = list(_batched(images[:first], size))
        self.judged = list(_batched(images[first:] or images, 64))

    @cached_property
    def dense(self) -> list[list[Tensor]]:
        """The whole network's answers."""
        return [self._run(self.graph.model, batch) for batch in self.judged]

    @cached_property
    def lane(self) -> Lane | None:
        """The whole network, exported for the refit; None where that works on copies."""
        model = self.graph.model
        return Lane(model, self._moved(self.refitted[0])[0]) if workable(model) else None

    @cached_property
    def identity(self) -> str:
        """Names the network, its weights and the images."""
        among = "" if self.classes is None else f" {list(self.classes)}"
        found = hashlib.sha256(f"{spelled(SETTINGS)} {self.graph.spec.fingerprint}{among}".encode())
        images = [x for batch in (*self.refitted, *self.judged) for x in batch if isinstance(x, Tensor)]
        for tensor in (*self.graph.model.state_dict().values(), *images):
            found.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        return found.hexdigest()[:16]

    def change(self, plan: Plan) -> float:
        """How far the answers of the network that ``plan`` cuts are from the whole network's; measured once.

        Mean Kullback-Leibler divergence per image of the softmax over the classes; for outputs that are not
        [images, classes], half of their mean squared change in units of their variance.
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

    def distance_of(self, answered: Callable[[tuple[Any, ...]], Sequence[Tensor]]) -> float:
        """How far answers to the judged batches are from the whole network's, in the units of :meth:`change`.

        ``answered``: floating-point outputs for a batch of positional inputs, in the order of the network's.
        """
        total, count = 0.0, 0
        for batch, dense in zip(self.judged, self.dense, strict=True):
            answers = self._among(answered(batch))
            total += sum(_distance(new, old) for new, old in zip(answers, dense, strict=True)) * _count(batch)
            count += _count(batch)
        return total / count

    def _refit(self, small: nn.Module, plan: Plan) -> None:
        inputs = [self._moved(batch) for batch in self.refitted]
        if all(len(batch) == 1 for batch in inputs):
            try:
                given = [batch[0] for batch in inputs]
                least_squares(self.graph.model, small, plan, given, settings=SETTINGS, lane=self.lane)
                return
            except (DataError, StructureError):
                pass
            reestimate(small, [batch[0] for batch in inputs])

    def _run(self, model: nn.Module, batch: tuple[Any, ...]) -> list[Tensor]:
        return self._among(self._outputs(model, batch))

    @torch.inference_mode()
    def _outputs(self, model: nn.Module, batch: tuple[Any, ...]) -> list[Tensor]:
        return list(_floats(model(*self._moved(batch))))

    def _among(self, found: Sequence[Tensor]) -> list[Tensor]:
        """The outputs that count."""
        if self.classes is None:
            return list(found)
        return [x[:, list(self.classes)] if x.ndim == 2 and x.shape[1] > max(self.classes) else x for x in found]

    def _moved(self, batch: tuple[Any, ...]) -> tuple[Any, ...]:
        device = next(iter(self.graph.model.parameters())).device
        return tuple(x.to(device, copy=True) if isinstance(x, Tensor) else x for x in batch)


def _require_one_size(images: Sequence[tuple[Any, ...]]) -> None:
    """Raises DataError where images differ in size: they are looked at together."""
    shapes = sorted({tuple(tuple(x.shape[1:]) for x in image if _per_image(x)) for image in images})
    if len(shapes) > 1:
        listed = ", ".join(" and ".join(map(str, one)) for one in shapes[:3])
        raise DataError(
            f"The calibration images have several sizes ({listed}), and criterion measured compares networks on images "
            f"of one. Resize them to one, or choose a criterion that takes each batch alone, such as fisher_obs."
        )


def _batched(images: Sequence[tuple[Any, ...]], size: int) -> Iterator[tuple[Any, ...]]:
    for start in range(0, len(images), size):
        group = images[start : start + size]
        yield tuple(torch.cat(parts) if _per_image(parts[0]) else parts[0] for parts in zip(*group, strict=True))


def _per_image(value: Any) -> bool:
    """Whether an input has a row per image; others, such as a time step, are for all."""
    return isinstance(value, Tensor) and value.ndim > 0


def _count(batch: tuple[Any, ...]) -> int:
    """Images in a batch of inputs."""
    return next((len(x) for x in batch if _per_image(x)), 0)


def _floats(answer: Any) -> Iterator[Tensor]:
    """Every tensor of floating-point numbers in an answer."""
    if isinstance(answer, Tensor):
        if answer.is_floating_point():
            yield answer.float()
    elif isinstance(answer, Mapping):
        for part in answer.values():
            yield from _floats(part)
    elif isinstance(answer, (tuple, list)):
        for part in answer:
            yield from _floats(part)


def _distance(new: Tensor, old: Tensor) -> float:
    if old.ndim == 2 and old.shape[1] > 1:
        reached, wanted = (x.double().log_softmax(1) for x in (new, old))
        return max(0.0, float(nn.functional.kl_div(reached, wanted, log_target=True, reduction="batchmean")))
    variance = old.double().var(correction=0).clamp_min(1e-12)
    return 0.5 * float((new.double() - old.double()).square().mean() / variance)
