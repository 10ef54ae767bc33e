"""Repair without training: every layer is refitted so that the cut network follows the dense one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, fx, nn

from secateurs.errors import DataError, PlanMismatchError
from secateurs.plan import Plan
from secateurs.progress import Progress, silent
from secateurs.recover.lockstep import Lane, Weighted
from secateurs.recover.unfolding import Geometry, draw_positions, inputs_at, outputs_at


@dataclass(frozen=True)
class Settings:
    """``damping``: pull towards the cut weights, as a share of the inputs' mean square; ``samples``: outputs per
    layer and unknown that are looked at (more positions per image are drawn for larger layers); ``weights``: False
    refits constants only (bias correction); ``residual``: a layer in front of an addition also makes up for what the
    other summand lost; ``memory_bytes``: bound on live activations.
    """

    damping: float = 0.01
    samples: float = 8.0
    positions: int = 64
    weights: bool = True
    residual: bool = True
    memory_bytes: int = 4 << 30
    seed: int = 0


@dataclass(frozen=True)
class Refitted:
    """What was done. ``errors``: per layer, the share of the output's variance that is wrong before and after, on
    the calibration images; ``skipped``: layers that were not touched, and why; ``note``: a line for the user.
    """

    errors: dict[str, tuple[float, float]]
    images: int
    skipped: dict[str, str] = field(default_factory=dict)
    note: str = ""


def least_squares(
    dense: nn.Module,
    small: nn.Module,
    plan: Plan,
    batches: Sequence[Tensor],
    *,
    settings: Settings | None = None,
    progress: Progress = silent,
) -> Refitted:
    """Refit the weights of ``small`` (in place), layer after layer, so that its outputs follow ``dense``.

    Card. For every convolution and linear layer: minimise E‖T - Ŵx̂ - b‖² + δ‖Ŵ - W‖² over Ŵ and b by its normal
    equations, with x̂ the input that the small network gives it (earlier layers repaired already), T the dense
    network's output of that layer on the same images, W the cut weights, δ = ``damping`` times the mean square of the
    inputs. Source: METHODS §7.5, the OBS family (AdaPrune, ZipLM arXiv 2302.04089, OSSCAR arXiv 2403.12983) in its
    sequential form. Ours: the constant goes into the bias or the batch norm's mean; in front of an addition T includes
    what the other summand lacks, so errors of the residual stream are made up for and not handed on. Cost: one run of
    both networks plus samples x D² per layer. When to use: after every cut, before batch-norm re-estimation. When not:
    with fewer than some dozens of images.

    Args:
        dense: the network before the cut.
        small: ``apply(dense, plan)``; changed in place.
        plan: which outputs of each layer stayed.
        batches: inputs of one shape [batch, ...]; a last smaller one is left out. As many as ``memory_bytes`` allows
            are used.
        settings: see :class:`Settings`.
        progress: shows layers.

    Raises:
        DataError: there are no images.
        PlanMismatchError: ``small`` is not ``dense`` cut by ``plan``.
        StructureError: a network cannot be exported.
    """
    chosen = settings or Settings()
    full = [batch for batch in batches if len(batch) == len(batches[0])] if batches else []
    if not full or len(full[0]) == 0:
        raise DataError("There are no images to refit layers on. Give calibration data.")
    modes = {child: child.training for module in (dense, small) for child in module.modules()}
    for module in (dense, small):
        module.eval()
    try:
        full = full[: _affordable(dense, small, full, chosen)]
        run = _Run(Lane(dense, full), Lane(small, full), plan, chosen)
        with torch.no_grad(), progress.task("least squares", len(run.small.weighted)) as task:
            for call in run.small.weighted:
                run.refit(call)
                task.advance(1, call.weight.rpartition(".")[0])
    finally:
        for child, training in modes.items():
            child.training = training
    images = sum(map(len, full))
    note = f"{len(run.errors)} layers refitted by least squares on {images} images."
    return Refitted(run.errors, images, run.skipped, note)


def correct_bias(
    dense: nn.Module, small: nn.Module, plan: Plan, batches: Sequence[Tensor], *, progress: Progress = silent
) -> Refitted:
    """Shift the constants of ``small`` (in place) so that every output's mean is the dense network's.

    The cheap relative of :func:`least_squares`, for networks without batch norm and for very few images.

    Raises:
        DataError, PlanMismatchError, StructureError: as :func:`least_squares`.
    """
    settings = Settings(weights=False)
    return least_squares(dense, small, plan, batches, settings=settings, progress=progress)


def _affordable(dense: nn.Module, small: nn.Module, batches: Sequence[Tensor], settings: Settings) -> int:
    """How many batches' activations fit into memory, at least one."""
    each = Lane(dense, batches[:1]).peak_bytes() + Lane(small, batches[:1]).peak_bytes()
    return int(max(1, min(len(batches), settings.memory_bytes // max(1, each))))


class _Run:
    """Both networks at the same layer."""

    def __init__(self, dense: Lane, small: Lane, plan: Plan, settings: Settings) -> None:
        self.dense, self.small, self.plan, self.settings = dense, small, plan, settings
        self.partners = {call.key: call for call in dense.weighted}
        self.repeated = {call.weight for call in small.weighted if call.use}
        self.generator = torch.Generator().manual_seed(settings.seed)
        self.errors: dict[str, tuple[float, float]] = {}
        self.skipped: dict[str, str] = {}

    def refit(self, call: Weighted) -> None:
        """Refit one layer and leave both networks right behind it."""
        partner = self.partners.get(call.key)
        self.small.advance(call.node)
        reason = self._obstacle(call, partner)
        if partner is None or reason is not None:
            self.skipped[call.weight] = reason or "the dense network has no such layer"
            return
        self.dense.advance(partner.node, after=True)
        system = self._gather(call, partner)
        constant = self._constant(call)
        weight = self.small.tensors[call.weight]
        step, shift = system.solve(self.settings, free_constant=constant is not None)
        self.errors[call.weight] = system.errors(step, shift)
        weight.add_(step.reshape(weight.shape).to(weight.dtype))
        if constant is not None:
            constant.add_(shift)

    def _obstacle(self, call: Weighted, partner: Weighted | None) -> str | None:
        if call.weight in self.repeated:
            return "its weight serves several calls"
        if call.weight in self.plan.elements:
            return "its kernel elements are chosen by the plan"
        sources = [node for node in call.node.all_input_nodes if node.op != "placeholder"]
        if not sources:
            return "its inputs are the images themselves"
        if partner is None:
            return "the dense network has no such layer"
        return None

    def _gather(self, call: Weighted, partner: Weighted) -> _System:
        weight = self.small.tensors[call.weight]
        geometry = Geometry.of(call.node, weight)
        kept = self._kept(call, weight)
        bias = self.small.tensors[call.bias] if call.bias is not None else None
        inputs, targets = self.small.value(_source(call.node)), self.dense.value(partner.node)
        assert inputs is not None
        assert targets is not None
        drift = self._drift(call, partner) if self.settings.residual else None
        system = _System(weight, geometry.groups)
        wanted = max(self.settings.positions, self._positions(system.unknowns, sum(map(len, inputs))))
        for place, (given, target) in enumerate(zip(inputs, targets, strict=True)):
            positions = draw_positions(target, geometry, wanted, self.generator)
            x = inputs_at(given, target.shape[-1], geometry, positions)
            y = outputs_at(target, geometry, positions)[kept]
            if drift is not None:
                y = y + drift(place, geometry, positions, kept)
            if bias is not None:
                y = y - bias[:, None]
            system.add(x, y)
        return system

    def _positions(self, unknowns: int, images: int) -> int:
        return int(self.settings.samples * unknowns / max(1, images)) + 1

    def _kept(self, call: Weighted, weight: Tensor) -> Tensor:
        """Which of the dense layer's outputs this layer still has."""
        dense = self.dense.tensors[call.weight]
        kept = torch.tensor(self.plan.slices.get(call.weight, {}).get(0, tuple(range(len(dense)))))
        if len(kept) != len(weight):
            raise PlanMismatchError(
                f"{call.weight} has {len(weight)} outputs, the plan keeps {len(kept)} of {len(dense)}. "
                f"Give the network that this plan was applied to."
            )
        return kept

    def _constant(self, call: Weighted) -> _Constant | None:
        if call.bias is not None:
            return _Constant(self.small.tensors[call.bias], 1.0)
        norm = _norm_behind(call.node)
        if norm is None:
            return None
        mean = norm.args[3]
        assert isinstance(mean, fx.Node)
        return _Constant(self.small.tensors[self.small.names[mean.name]], -1.0)

    def _drift(self, call: Weighted, partner: Weighted) -> _Drift | None:
        """What the other summand behind this layer lacks, in units of this layer's output."""
        here, there = _other_summand(call.node), _other_summand(partner.node)
        if here is None or there is None:
            return None
        lacking, whole = self.small.value(here), self.dense.value(there)
        if lacking is None or whole is None:
            return None
        gain = None
        norm = _norm_behind(call.node)
        if norm is not None:
            gain = _gain(norm, self.small)
        return _Drift(lacking, whole, gain)


@dataclass(frozen=True)
class _Constant:
    """Where a layer's additive constant lives: a bias (``sign`` 1) or the mean of the batch norm behind it (-1)."""

    tensor: Tensor
    sign: float

    def add_(self, shift: Tensor) -> None:
        self.tensor.add_(self.sign * shift.to(self.tensor.dtype))


@dataclass(frozen=True)
class _Drift:
    lacking: list[Tensor]
    whole: list[Tensor]
    gain: Tensor | None

    def __call__(self, batch: int, geometry: Geometry, positions: Tensor, kept: Tensor) -> Tensor:
        """[outputs, samples] to be added to the target."""
        whole = outputs_at(self.whole[batch], geometry, positions)
        lacking = outputs_at(self.lacking[batch], geometry, positions)
        if len(whole) <= int(kept.max()) or len(lacking) != len(kept):
            return torch.zeros(len(kept), 1)
        difference = whole[kept] - lacking
        if self.gain is None:
            return difference
        # A channel that its batch norm all but switches off cannot make up for anything.
        usable = self.gain.abs() > 0.05 * self.gain.abs().median()
        return torch.where(usable[:, None], difference / self.gain.where(usable, torch.ones(()))[:, None], 0.0)


class _System:
    """Normal equations of one layer, float64, centred."""

    def __init__(self, weight: Tensor, groups: int) -> None:
        self.weight = weight.reshape(groups, weight.shape[0] // groups, -1)
        groups, outputs, self.unknowns = self.weight.shape
        self.gram = torch.zeros(groups, self.unknowns, self.unknowns, dtype=torch.float64)
        self.cross = torch.zeros(groups, outputs, self.unknowns, dtype=torch.float64)
        self.inputs = torch.zeros(groups, self.unknowns, dtype=torch.float64)
        self.rest = torch.zeros(groups, outputs, dtype=torch.float64)
        self.energy = torch.zeros(groups, outputs, dtype=torch.float64)
        self.square = torch.zeros(groups, outputs, dtype=torch.float64)
        self.total = torch.zeros(groups, outputs, dtype=torch.float64)
        self.count = 0

    def add(self, x: Tensor, y: Tensor) -> None:
        """Take in inputs [groups, unknowns, samples] and wanted outputs [outputs, samples]."""
        wanted = y.reshape(self.rest.shape[0], self.rest.shape[1], -1)
        residual = wanted - self.weight @ x
        self.gram += x @ x.transpose(1, 2)
        self.cross += residual @ x.transpose(1, 2)
        self.inputs += x.sum(2)
        self.rest += residual.sum(2)
        self.energy += residual.square().sum(2)
        self.square += wanted.square().sum(2)
        self.total += wanted.sum(2)
        self.count += x.shape[2]

    def solve(self, settings: Settings, *, free_constant: bool) -> tuple[Tensor, Tensor]:
        """Change of the weights [groups, outputs, unknowns] and of the constant [all outputs]."""
        gram, cross = self._centred() if free_constant else (self.gram, self.cross)
        step = torch.zeros_like(cross)
        if settings.weights:
            mean_square = gram.diagonal(dim1=1, dim2=2).mean(1)
            damping = (settings.damping * mean_square).clamp_min(1e-12 * max(1, self.count))
            damped = gram + damping[:, None, None] * torch.eye(self.unknowns, dtype=torch.float64)
            step = torch.linalg.solve(damped, cross.transpose(1, 2)).transpose(1, 2)
        shift = torch.zeros_like(self.rest)
        if free_constant:
            shift = (self.rest - (step @ self.inputs[:, :, None])[:, :, 0]) / self.count
        return step, shift.flatten()

    def errors(self, step: Tensor, shift: Tensor) -> tuple[float, float]:
        """Share of the wanted outputs' variance that is wrong: before and after the step."""
        variance = float((self.square - self.total.square() / self.count).sum())
        constant = shift.reshape(self.rest.shape)
        after = (
            self.energy
            - 2 * (step * self.cross).sum(2)
            + ((step @ self.gram) * step).sum(2)
            - 2 * constant * self.rest
            + 2 * constant * (step @ self.inputs[:, :, None])[:, :, 0]
            + self.count * constant.square()
        )
        scale = max(variance, 1e-12)
        return float(self.energy.sum()) / scale, max(0.0, float(after.sum())) / scale

    def _centred(self) -> tuple[Tensor, Tensor]:
        gram = self.gram - self.inputs[:, :, None] * self.inputs[:, None, :] / self.count
        cross = self.cross - self.rest[:, :, None] * self.inputs[:, None, :] / self.count
        return gram, cross


def _source(node: fx.Node) -> fx.Node:
    source = node.args[0]
    assert isinstance(source, fx.Node)
    return source


def _norm_behind(node: fx.Node) -> fx.Node | None:
    """The batch norm that alone reads this layer's output."""
    users = list(node.users)
    if len(users) == 1 and str(users[0].target) == "aten.batch_norm.default" and users[0].args[0] is node:
        return users[0] if isinstance(users[0].args[3], fx.Node) else None
    return None


def _other_summand(node: fx.Node) -> fx.Node | None:
    """What the layer's output (behind its batch norm) is added to."""
    end = _norm_behind(node) or node
    users = list(end.users)
    if len(users) != 1 or str(users[0].target) not in ("aten.add.Tensor", "aten.add_.Tensor"):
        return None
    add = users[0]
    others = [other for other in add.args[:2] if other is not end]
    if len(others) != 1 or not isinstance(others[0], fx.Node) or add.kwargs.get("alpha", 1) != 1:
        return None
    return others[0]


def _gain(norm: fx.Node, lane: Lane) -> Tensor:
    """γ / √(σ² + ε) of a batch norm [channels]."""
    variance = norm.args[4]
    assert isinstance(variance, fx.Node)
    assert isinstance(norm.args[7], float)
    gain = torch.rsqrt(lane.tensors[lane.names[variance.name]] + norm.args[7])
    scale = norm.args[1]
    return gain * lane.tensors[lane.names[scale.name]] if isinstance(scale, fx.Node) else gain
