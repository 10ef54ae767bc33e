"""What data-aware criteria need, gathered in one shared pass over calibration data."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from secateurs.data.calls import Inputs, called, on
from secateurs.data.nests import moved
from secateurs.data.tasks.task import Task, classification
from secateurs.errors import DataError
from secateurs.importance.batches import checked, told
from secateurs.importance.context import KINDS, Context, Criterion, find_criterion
from secateurs.importance.probes import Mask, Moment, Probe, input_squares, unfolds, weight_module
from secateurs.progress import Progress, silent
from secateurs.structure.copies import deep_copy
from secateurs.structure.fold import batch_norm_pairs
from secateurs.structure.graph import Graph

IMAGES = 320
"""Images whose inputs are held for criteria that run the network themselves."""


@dataclass(frozen=True)
class LossSensitivity:
    """First-order effect φ of removing a unit on one image's loss, over all images: float64 [units] each.

    φ = ∂loss/∂m for a factor m = 1 on the unit's output, summed over coupled layers. ``batch``: mean over batches of
    |mean φ|; ``absolute``: mean |φ|; ``square``: mean φ².
    """

    batch: np.ndarray
    absolute: np.ndarray
    square: np.ndarray


@dataclass(frozen=True)
class SecondMoments:
    """One consumer's inputs and the loss's sensitivity to its outputs, per image.

    ``gram``: Σ over positions of x xᵀ, float64 [inputs, inputs], inputs unfolded (channel-major, then kernel
    positions); ``gradient``: mean square of ∂loss/∂output per output unit, float64 [outputs].
    """

    gram: Tensor
    gradient: Tensor


@dataclass(frozen=True)
class Statistics:
    """Gathered figures. ``kinds``: which of these were asked for; ``samples``: images seen; ``loss``: their mean loss.

    ``outputs``: per group, φ at the producing layers (γ, β not included); ``norms``: per group, φ behind the batch
    norms; ``gradients``: per parameter, the mean square of one image's gradient; ``inputs``: per layer, the Euclidean
    norm of every input channel over all images and positions, divided by √images; ``moments``: per layer;
    ``images``: the first batches' inputs themselves, at most :data:`IMAGES`; ``dynamics``: how filters move in a short
    training (:class:`secateurs.importance.dynamic.Dynamics`); ``kept``: what criteria keep from one group to the next,
    under their names, under ``rows`` a store that outlives the process, where there is one, and under ``task`` what the
    network is for.
    """

    kinds: frozenset[str]
    samples: int
    loss: float
    outputs: dict[str, LossSensitivity] = field(default_factory=dict)
    norms: dict[str, LossSensitivity] = field(default_factory=dict)
    gradients: dict[str, np.ndarray] = field(default_factory=dict)
    inputs: dict[str, np.ndarray] = field(default_factory=dict)
    moments: dict[str, SecondMoments] = field(default_factory=dict)
    images: tuple[Inputs, ...] = ()
    dynamics: Any = None
    kept: dict[str, Any] = field(default_factory=dict, compare=False)


def gather(
    graph: Graph,
    batches: Iterable[Any],
    kinds: Collection[str],
    *,
    task: Task | None = None,
    seed: int = 0,
    progress: Progress = silent,
) -> Statistics:
    """Statistics of the graph's model over the batches, in one pass; ``dynamics`` train a copy on them first.

    The pass runs on a copy in evaluation mode; the user's model is not touched. Cost: one forward and one backward
    pass per batch, and for ``moments`` one product of unfolded inputs per consumer at up to 64 positions an image.

    Args:
        graph: the traced network.
        batches: pairs (inputs, targets), inputs a tensor or a tuple of positional inputs, batch first; of other tasks
            than classification whatever the task takes.
        kinds: what to gather, some of :data:`secateurs.importance.context.KINDS`.
        task: what the network is for, None: classification.
        seed: of the positions drawn for ``moments``.
        progress: told each batch.

    Raises:
        DataError: no batch, one that is no pair or that the network or the loss does not take, or a loss that is not
            finite.
    """
    wanted = frozenset(kinds)
    assert wanted <= set(KINDS), wanted
    dynamics, task = None, (task or classification()).fed((graph.args, graph.kwargs), graph.model)
    if "dynamics" in wanted:
        from secateurs.importance.dynamic import watch_training

        batches = list(checked(batches, task))
        dynamics = watch_training(graph, batches, task, seed=seed, progress=progress)
        batches = batches if len(wanted) > 1 else batches[:1]
    run = _Pass(graph, wanted, seed)
    try:
        with progress.task("calibration statistics", _length(batches)) as shown:
            for batch in checked(batches, task):
                with told(run.batches + 1, batch):
                    run.batch(batch, task)
                shown.advance()
    finally:
        run.close()
    if run.samples == 0:
        raise DataError("Calibration data has no batches, so no statistics can be gathered. Give some images.")
    return replace(run.finish(), dynamics=dynamics)


def _length(batches: Iterable[Any]) -> int | None:
    try:
        return len(batches)  # type: ignore[arg-type]
    except TypeError:
        return None


def context_for(
    graph: Graph,
    criterion: str | Criterion,
    batches: Iterable[Any] | None,
    *,
    task: Task | None = None,
    seed: int = 0,
    progress: Progress = silent,
) -> Context:
    """The context a criterion needs: with statistics where it reads calibration data, else without looking at any.

    Args:
        graph: the traced network.
        criterion: a registered name or a function.
        batches: calibration batches, or None: a criterion that needs them then says so when it scores.
        task: what the network is for, None: classification.
        seed: of everything random.
        progress: told each batch.
    """
    kinds = find_criterion(criterion).needs
    if not kinds or batches is None:
        return Context(seed)
    return Context(seed, gather(graph, batches, kinds, task=task, seed=seed, progress=progress))


def made_elsewhere(graph: Graph) -> str | None:
    """The first group whose units no convolution or linear module makes, None where all are made by one."""
    for group in graph.groups:
        views = [view for view in graph.views(group.name) if view.role == "out"]
        if not any(weight_module(graph.model, view.layer, view.parameter) is not None for view in views):
            return group.name
    return None


class _Pass:
    """The copy of the model with its hooks, and the sums so far."""

    def __init__(self, graph: Graph, kinds: frozenset[str], seed: int) -> None:
        self.graph, self.kinds = graph, kinds
        self.model = deep_copy(graph.model, {}).eval().requires_grad_(True)
        self.samples, self.loss = 0, 0.0
        self.sums: dict[tuple[str, str], list[np.ndarray]] = {}
        self.batches = 0
        self.squares: dict[str, Tensor] = {}
        self.input_sums: dict[str, Tensor] = defaultdict(lambda: torch.zeros(()))
        self.moments: dict[str, Moment] = {}
        self.places = {kind: self._places(kind) for kind in ("outputs", "norms") if kind in kinds}
        self.images: list[Inputs] = []
        self.weights = self._weights() if "gradients" in kinds else []
        self.masks = {p: Mask() for places in self.places.values() for found in places.values() for p, _ in found}
        self.generator = torch.Generator().manual_seed(seed)
        self.handles = [self.model.get_submodule(path).register_forward_hook(m) for path, m in self.masks.items()]
        self._watch_inputs()

    def _places(self, kind: str) -> dict[str, list[tuple[str, np.ndarray]]]:
        """Per group the modules behind which its units can be masked, and where they lie: (path, [units, n])."""
        pairs = batch_norm_pairs(self.graph) if kind == "norms" else {}
        result: dict[str, list[tuple[str, np.ndarray]]] = {}
        for group in self.graph.groups:
            found: dict[str, np.ndarray] = {}
            for view in self.graph.views(group.name):
                if view.role == "out" and weight_module(self.model, view.layer, view.parameter) is not None:
                    found.setdefault(pairs.get(view.parameter, view.layer), view.indices)
            result[group.name] = list(found.items())
        return result

    def _weights(self) -> list[str]:
        views = [view for group in self.graph.groups for view in self.graph.views(group.name)]
        known = dict(self.model.named_parameters())
        return list(dict.fromkeys(v.parameter for v in views if v.role == "out" and v.parameter in known))

    def _watch_inputs(self) -> None:
        consumers = {
            view.layer: view.parameter
            for group in self.graph.groups
            for view in self.graph.views(group.name)
            if view.role == "in"
        }
        for layer, parameter in consumers.items():
            module = weight_module(self.model, layer, parameter)
            if module is None:
                continue
            if "inputs" in self.kinds:
                self.handles.append(module.register_forward_pre_hook(self._input_hook(layer)))
            if "moments" in self.kinds and unfolds(module):
                self.moments[layer] = Moment(module, self.generator)
                self.handles.append(module.register_forward_hook(self.moments[layer]))

    def _input_hook(self, layer: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def add(module: nn.Module, arguments: tuple[Any, ...]) -> None:
            self.input_sums[layer] = self.input_sums[layer] + input_squares(module, arguments[0].detach())

        return add

    def batch(self, batch: Any, task: Task) -> None:
        """One forward and one backward pass."""
        device = next(iter(self.model.parameters())).device
        # a network may change its inputs in place
        inputs = on(task.called_with(batch), device, copy=True)
        count = len(inputs)
        if "images" in self.kinds and self.samples < IMAGES:
            self.images.append(on(inputs, device, copy=True))
        probes: list[Probe] = [*self.masks.values(), *self.moments.values()]
        for probe in probes:
            probe.begin()
        needs_gradient = bool(self.places or self.weights or self.moments)
        with torch.set_grad_enabled(needs_gradient):
            value = task.loss_of(called(self.model, inputs), moved(batch, device))
        if not bool(torch.isfinite(value)):
            raise DataError(
                f"The loss of calibration batch {self.batches + 1} is {float(value.detach())}. Check inputs and labels."
            )
        if needs_gradient:
            self._backward(value * count, count, probes)
        self.samples, self.batches = self.samples + count, self.batches + 1
        self.loss += float(value.detach()) * count

    def _backward(self, total: Tensor, count: int, probes: list[Probe]) -> None:
        leaves = [leaf for probe in probes for leaf in probe.leaves]
        if not leaves and not self.weights:  # nothing that could be masked: the criterion says which group lacks it
            return
        parameters = dict(self.model.named_parameters())
        weights = [parameters[name] for name in self.weights]
        gradients = torch.autograd.grad(total, [*leaves, *weights], allow_unused=True, materialize_grads=True)
        position = 0
        for probe in probes:
            probe.end(gradients[position : position + len(probe.leaves)])
            position += len(probe.leaves)
        for name, gradient in zip(self.weights, gradients[position:], strict=True):
            self.squares[name] = self.squares.get(name, torch.zeros(())) + gradient.detach().cpu().double() ** 2
        for kind, places in self.places.items():
            for group, found in places.items():
                if found:
                    self._add(kind, group, sum(self.masks[p].gradient[:, i].sum(-1) for p, i in found), count)

    def _add(self, kind: str, group: str, effect: Any, count: int) -> None:
        phi = effect.double().cpu().numpy()
        new = [np.abs(phi.sum(axis=0) / count), np.abs(phi).sum(axis=0), (phi**2).sum(axis=0)]
        old = self.sums.get((kind, group))
        self.sums[kind, group] = new if old is None else [a + b for a, b in zip(old, new, strict=True)]

    def finish(self) -> Statistics:
        """Means over what was seen."""
        found: dict[str, dict[str, LossSensitivity]] = {"outputs": {}, "norms": {}}
        for (kind, group), (batch, absolute, square) in self.sums.items():
            found[kind][group] = LossSensitivity(batch / self.batches, absolute / self.samples, square / self.samples)
        inputs = {layer: (total / self.samples).sqrt().cpu().numpy() for layer, total in self.input_sums.items()}
        gradients = {name: (total / self.samples).numpy() for name, total in self.squares.items()}
        moments = {
            layer: SecondMoments(moment.gram.div_(self.samples), moment.gradient / max(1, moment.positions))
            for layer, moment in self.moments.items()
            if moment.positions
        }
        return Statistics(
            self.kinds,
            self.samples,
            self.loss / self.samples,
            found["outputs"],
            found["norms"],
            gradients,
            inputs,
            moments,
            tuple(self.images),
        )

    def close(self) -> None:
        """Take the hooks off."""
        for handle in self.handles:
            handle.remove()
