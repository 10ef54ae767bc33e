"""Repair without training: every layer is refitted so that the cut network follows the dense one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, fx, nn

from secateurs.data.calls import Inputs, changed, on
from secateurs.errors import DataError, PlanMismatchError
from secateurs.plan import ElementPattern, Plan
from secateurs.progress import Progress, silent
from secateurs.recover.refit.element_choice import ElementCount, surgeon
from secateurs.recover.refit.lockstep import Lane, Weighted
from secateurs.recover.refit.normal_equations import NormalEquations
from secateurs.recover.refit.pairing import constant_of, surroundings_of
from secateurs.recover.refit.unfolding import Geometry, draw_positions, inputs_at, outputs_at
from secateurs.structure.copies import deep_copy
from secateurs.structure.kernel_elements import mask_of

_DAMPINGS = (0.001, 0.01, 0.1, 1.0)
_SQUARES = 7
"""Matrices of the size inputs² that are alive at once while a layer is solved for."""
_OWN_INPUTS = "its inputs are the images themselves"


@dataclass(frozen=True)
class RefitSettings:
    """How layers are refitted.

    ``damping``: pull towards the cut weights, as a share of the inputs' mean square, None chooses per layer what
    serves a quarter of the images best that the solution has not seen; ``samples``: outputs looked at
    per layer and unknown; ``positions``: fewest positions per image; ``sweeps``: further solutions that mind the
    activation behind the layer; ``weights``: False refits constants only (bias correction); ``residual``: a layer in
    front of an addition also makes up for what the other summand lost; ``after``: False saves the look at what is wrong
    afterwards, and gives what was wrong before the last solution; ``memory_bytes``: bound on live activations,
    and on the products of one layer's inputs: of a layer with more of them only the constants are refitted.
    """

    damping: float | None = None
    samples: float = 8.0
    positions: int = 64
    sweeps: int = 2
    weights: bool = True
    residual: bool = True
    after: bool = True
    memory_bytes: int = 4 << 30
    seed: int = 0
    spelled_as: ClassVar[str] = "Settings"


@dataclass(frozen=True)
class Refitted:
    """What was done. ``errors``: per layer, the share of the output's variance that is wrong before and after, on
    the calibration images; ``skipped``: layers that were not touched, and why; ``note``: a line for the user.
    """

    errors: dict[str, tuple[float, float]]
    images: int
    skipped: dict[str, str] = field(default_factory=dict)
    note: str = ""
    masks: dict[str, Tensor] = field(default_factory=dict)
    """Elements that stay, per weight, where they were chosen on the way."""


def least_squares(
    dense: nn.Module,
    small: nn.Module,
    plan: Plan,
    batches: Sequence[Inputs],
    *,
    settings: RefitSettings | None = None,
    counts: Mapping[str, ElementCount] | None = None,
    lane: Lane | None = None,
    progress: Progress = silent,
) -> Refitted:
    """Refit the weights of ``small`` (in place), layer after layer, so that its outputs follow ``dense``.

    Card. For every convolution and linear layer: minimise E‖T - Ŵx̂ - b‖² + δ‖Ŵ - W‖² over Ŵ and b by its normal
    equations, with x̂ the input that the small network gives it (earlier layers repaired already), T the dense
    network's output of that layer on the same images, W the cut weights, δ = ``damping`` times the mean square of the
    inputs. Source: docs/methods.md, "Least squares repair", the OBS family (AdaPrune, ZipLM arXiv 2302.04089, OSSCAR
    arXiv 2403.12983) in its sequential form. Ours: the constant goes into the bias or the batch norm's mean; in front
    of an addition T includes what the other summand lacks, so errors of the residual stream are made up for and not
    handed on. Cost: one run of both networks plus samples x D² per layer. When to use: after every cut, before
    batch-norm re-estimation. When not: with fewer than some dozens of images.

    Args:
        dense: the network before the cut.
        small: ``apply(dense, plan)``; changed in place.
        plan: which outputs of each layer stayed.
        batches: inputs of one shape [batch, ...], one tensor or several; a last smaller one is left out. As many as
            ``memory_bytes`` allows are used.
        settings: see :class:`RefitSettings`.
        counts: kernel elements to choose and prune on the way, per weight (:mod:`.element_choice`).
        lane: ``dense`` exported for such batches, where several networks are compared with it.
        progress: shows layers.

    Networks on another device, or of less than 32 bits, are refitted as copies on the CPU in 32 bits.

    Raises:
        DataError: there are no images.
        PlanMismatchError: ``small`` is not ``dense`` cut by ``plan``.
        StructureError: a network cannot be exported.
    """
    chosen = settings or RefitSettings()
    if not all(map(workable, (dense, small))):
        return _on_copies(dense, small, plan, batches, settings=chosen, counts=counts, progress=progress)
    full = [batch for batch in batches if len(batch) == len(batches[0])] if batches else []
    if not full or len(full[0]) == 0:
        raise DataError("There are no images to refit layers on. Give calibration data.")
    modes = {child: child.training for module in (dense, small) for child in module.modules()}
    for module in (dense, small):
        module.eval()
    try:
        lanes = lane or Lane(dense, full[0]), Lane(small, full[0])
        full = full[: _affordable(lanes, len(full), chosen)]
        for each in lanes:
            each.feed(full)
        run = _Run(*lanes, plan, chosen, counts or {})
        with torch.no_grad(), progress.task("least squares", len(run.small.weighted)) as task:
            for call in run.small.weighted:
                run.refit(call)
                task.advance(1, call.weight.rpartition(".")[0])
    finally:
        for child, training in modes.items():
            child.training = training
    images = sum(map(len, full))
    for weight in run.small.others:
        run.skipped.setdefault(weight, "convolutions of this kind are not refitted")
    kind = "refitted by least squares" if chosen.weights else "corrected in their constants"
    note = f"{len(run.errors)} layers {kind} on {images} images."
    left = {weight: reason for weight, reason in run.skipped.items() if reason != _OWN_INPUTS}
    if left and chosen.weights:
        weight, reason = next(iter(left.items()))
        note += f" {len(left)} were not, such as {weight.rpartition('.')[0]}: {reason}."
    return Refitted(run.errors, images, run.skipped, note, run.masks)


def correct_bias(
    dense: nn.Module, small: nn.Module, plan: Plan, batches: Sequence[Inputs], *, progress: Progress = silent
) -> Refitted:
    """Shift the constants of ``small`` (in place) so that every output's mean is the dense network's.

    The cheap relative of :func:`least_squares`, for networks without batch norm and for very few images.

    Raises:
        DataError, PlanMismatchError, StructureError: as :func:`least_squares`.
    """
    settings = RefitSettings(weights=False, sweeps=0, positions=256)
    return least_squares(dense, small, plan, batches, settings=settings, progress=progress)


def workable(module: nn.Module) -> bool:
    """Whether :func:`least_squares` works on the network itself and not on a copy."""
    tensors = [tensor for tensor in module.parameters() if tensor.is_floating_point()]
    return all(tensor.device.type == "cpu" and tensor.dtype in (torch.float32, torch.float64) for tensor in tensors)


def _on_copies(dense: nn.Module, small: nn.Module, plan: Plan, batches: Sequence[Inputs], **options: Any) -> Refitted:
    """:func:`least_squares` on copies that it can work on; ``small`` gets the weights."""
    dtype = max((tensor.dtype for tensor in dense.parameters()), key=lambda dtype: dtype.itemsize)
    dtype = dtype if dtype == torch.float64 else torch.float32
    whole, cut = (deep_copy(module, {}).cpu().to(dtype) for module in (dense, small))
    inputs = [on(changed(batch, Tensor.detach), torch.device("cpu"), floats=dtype) for batch in batches]
    done = least_squares(whole, cut, plan, inputs, **options)
    found = cut.state_dict()
    with torch.no_grad():
        for name, tensor in small.state_dict().items():
            tensor.copy_(found[name])
    return done


def _affordable(lanes: Sequence[Lane], count: int, settings: RefitSettings) -> int:
    """How many batches' activations fit into memory, at least one."""
    return int(max(1, min(count, settings.memory_bytes // max(1, sum(lane.peak_bytes() for lane in lanes)))))


class _Run:
    """Both networks at the same layer."""

    def __init__(
        self, dense: Lane, small: Lane, plan: Plan, settings: RefitSettings, counts: Mapping[str, ElementCount]
    ) -> None:
        self.dense, self.small, self.plan, self.settings, self.counts = dense, small, plan, settings, counts
        self.masks: dict[str, Tensor] = {}
        self.partners = {call.key: call for call in dense.weighted}
        self.repeated = {call.weight for call in small.weighted if call.use}
        self.errors: dict[str, tuple[float, float]] = {}
        self.skipped: dict[str, str] = {}
        self.changed = bool(self.counts or plan.elements)
        """Whether anything so far differs from the dense network."""

    def refit(self, call: Weighted) -> None:
        """Refit one layer and leave both networks right behind it."""
        partner = self.partners.get(call.key)
        self.small.advance(call.node)
        reason = self._obstacle(call, partner)
        if partner is None or reason is not None:
            self.skipped[call.weight] = reason or "the dense network has no such layer"
            return
        kept = self._kept(call)
        self.dense.advance(partner.node)
        self.changed = self.changed or not self._untouched(call, partner)
        self.dense.advance(partner.node, after=True)
        if not self.changed:
            self.errors[call.weight] = (0.0, 0.0)
            return
        pattern = self.plan.elements.get(call.weight)
        layer = _Layer(call, partner, self.small, self.dense, kept, self._settings(call), pattern)
        layer.count = self.counts.get(call.weight)
        self.errors[call.weight] = layer.refit()
        if layer.count is not None and layer.stays is not None:
            self.masks[call.weight] = layer.stays.reshape(layer.weight.shape)

    def _untouched(self, call: Weighted, partner: Weighted) -> bool:
        """Whether the layer does what its original does: in front of the first cut there is nothing to make up for."""
        if any(
            not torch.equal(self.small.tensors[mine], self.dense.tensors[theirs])
            for mine, theirs in ((call.weight, partner.weight), (call.bias, partner.bias))
            if mine is not None and theirs is not None
        ):
            return False
        mine, theirs = call.node.args[0], partner.node.args[0]
        assert isinstance(mine, fx.Node)
        assert isinstance(theirs, fx.Node)
        inputs, originals = self.small.value(mine), self.dense.value(theirs)
        return (
            inputs is not None
            and originals is not None
            and all(torch.equal(new, old) for new, old in zip(inputs, originals, strict=True))
        )

    def _settings(self, call: Weighted) -> RefitSettings:
        """Of one layer: where the products of its inputs do not fit into memory, only its constants are refitted."""
        weight = self.small.tensors[call.weight]
        groups = Geometry.of(call.node, weight).groups
        needed = _SQUARES * 8 * groups * weight[0].numel() ** 2
        if not self.settings.weights or needed <= self.settings.memory_bytes:
            return self.settings
        self.skipped[call.weight] = f"its {weight[0].numel()} inputs are too many; its constants were refitted"
        return replace(self.settings, weights=False, sweeps=0)

    def _obstacle(self, call: Weighted, partner: Weighted | None) -> str | None:
        if call.weight in self.repeated:
            return "its weight serves several calls"
        if all(node.op == "placeholder" for node in call.node.all_input_nodes):
            return _OWN_INPUTS
        return None

    def _kept(self, call: Weighted) -> Tensor:
        """Which of the dense layer's outputs this layer still has."""
        weight, dense = self.small.tensors[call.weight], self.dense.tensors[call.weight]
        kept = torch.tensor(self.plan.slices.get(call.weight, {}).get(0, tuple(range(len(dense)))))
        if len(kept) != len(weight):
            raise PlanMismatchError(
                f"{call.weight} has {len(weight)} outputs, the plan keeps {len(kept)} of {len(dense)}. "
                f"Give the network that this plan was applied to."
            )
        return kept


class _Layer:
    """One layer of the small network beside its dense original."""

    def __init__(
        self,
        call: Weighted,
        partner: Weighted,
        small: Lane,
        dense: Lane,
        kept: Tensor,
        settings: RefitSettings,
        pattern: ElementPattern | None = None,
    ) -> None:
        self.settings, self.kept = settings, kept
        self.weight = small.tensors[call.weight]
        self.bias = None if call.bias is None else small.tensors[call.bias]
        self.constant = constant_of(call, small)
        self.geometry = Geometry.of(call.node, self.weight)
        self.around = surroundings_of(call, partner, small, dense)
        source = call.node.args[0]
        assert isinstance(source, fx.Node)
        inputs, targets = small.value(source), dense.value(partner.node)
        assert inputs is not None
        assert targets is not None
        self.inputs, self.targets = inputs, targets
        groups = self.geometry.groups
        self.matrix = self.weight.reshape(groups, len(self.weight) // groups, -1)
        self.stays: Tensor | None = None
        self.count: ElementCount | None = None
        if pattern is not None:
            self.stays = mask_of(pattern, tuple(self.weight.shape), groups).reshape(self.matrix.shape)
        # What has been added to the outputs: not the bias itself, because a batch norm may hold it.
        self.added = torch.zeros(len(self.weight), 1)
        self.positions = self._draw()

    def refit(self) -> tuple[float, float]:
        """Change weight and constant; the wrong share of the target's variance before and after."""
        fitted, checked = (NormalEquations(*self.matrix.shape, products=self.settings.weights) for _ in range(2))
        steps = 1 + self.settings.sweeps if self.around.clips else 1
        damping, wrong = self.settings.damping or 0.0, []
        for sweep in range(steps + self.settings.after):
            for system in (fitted, checked):
                system.clear_residuals()
            variance = self._pass(fitted, checked, clipped=sweep > 0, first=sweep == 0)
            system = fitted.merged(checked) if checked.count else fitted
            wrong.append(float(system.energy.sum()) / max(variance, 1e-12))
            if sweep == 0 and self.settings.damping is None:
                damping = self._damping(fitted, checked)
            if sweep == 0 and self.count is not None:
                self._prune(system, damping, self.count)
                for one in (fitted, checked):
                    one.clear_residuals()
                self._pass(fitted, checked, clipped=False, first=False)
                system = fitted.merged(checked) if checked.count else fitted
            if sweep < steps:
                self._step(system, damping)
        return wrong[0], wrong[-1]

    def _damping(self, fitted: NormalEquations, checked: NormalEquations) -> float:
        """The damping whose solution on three quarters of the images serves the others best."""
        if not checked.count or not self.settings.weights:
            return _DAMPINGS[-1]
        free = self.constant is not None
        errors = [checked.error(*fitted.solve(damping, constant=free, stays=self.stays)) for damping in _DAMPINGS]
        return _DAMPINGS[errors.index(min(errors))]

    def _prune(self, system: NormalEquations, damping: float, count: ElementCount) -> None:
        """Choose what stays, and set the rest of the weight to zero."""
        step, _ = system.solve(damping, constant=self.constant is not None)
        self.stays = surgeon(system, self.matrix.double() + step, count, damping)
        self.weight.mul_(self.stays.reshape(self.weight.shape))
        self.matrix = self.weight.reshape(self.matrix.shape)

    def _step(self, system: NormalEquations, damping: float) -> None:
        step, shift = torch.zeros_like(system.cross), system.rest / max(1, system.count)
        if self.settings.weights:
            step, shift = system.solve(damping, constant=self.constant is not None, stays=self.stays)
        self.weight.add_(step.reshape(self.weight.shape).to(self.weight.dtype))
        self.matrix = self.weight.reshape(self.matrix.shape)
        if self.constant is not None:
            self.constant.add_(shift.flatten())
            if self.bias is None:
                self.added += shift.reshape(-1, 1).float()

    def _pass(self, fitted: NormalEquations, checked: NormalEquations, *, clipped: bool, first: bool) -> float:
        """Put residuals (and on the first pass inputs) into the systems; the targets' variance.

        Every fourth batch goes into ``checked``.
        """
        total, square, count = torch.zeros(len(self.weight)), 0.0, 0
        for place, positions in enumerate(self.positions):
            target = self.targets[place]
            x = inputs_at(self.inputs[place], target.shape[-1], self.geometry, positions)
            reached = (self.matrix @ x).reshape(len(self.weight), -1) + self.added
            if self.bias is not None:
                reached = reached + self.bias[:, None]
            wanted = self._wanted(place, positions, reached, clipped=clipped)
            total += wanted.sum(1)
            square += float(wanted.double().square().sum())
            count += wanted.shape[1]
            system = checked if place % 4 == 3 else fitted
            if first:
                system.add_inputs(x)
            system.add_residuals(x, (wanted - reached).reshape(*self.matrix.shape[:2], -1))
        return square - float(total.double().square().sum()) / max(1, count)

    def _wanted(self, place: int, positions: Tensor, reached: Tensor, *, clipped: bool) -> Tensor:
        """Target outputs [outputs, samples].

        Behind a clipping activation, a value that the dense network clips may be anything that is clipped too.
        """
        wanted = outputs_at(self.targets[place], self.geometry, positions)[self.kept]
        around, gain = self.around, self.around.gain
        # A channel that its batch norm all but switches off cannot make up for anything.
        usable = gain.abs() > 0.05 * gain.abs().median()
        gain = torch.where(usable, gain, torch.ones(()))
        pair = around.summands(place, self.geometry, positions, self.kept) if self.settings.residual else None
        offset = around.offset
        if pair is not None:
            wanted = torch.where(usable, wanted + (pair[1] - pair[0]) / gain, wanted)
            offset = offset + pair[0]
        if not clipped or not around.clips or (pair is None and around.lacking is not None):
            return wanted
        goal, now = gain * wanted + offset, gain * reached + offset
        goal = torch.where(goal <= around.low, now.clamp_max(around.low), goal)
        goal = torch.where(goal >= around.high, now.clamp_min(around.high), goal)
        return torch.where(usable, (goal - offset) / gain, wanted)

    def _draw(self) -> list[Tensor]:
        images = sum(map(len, self.inputs))
        needed = int(self.settings.samples * self.matrix.shape[2] / max(1, images)) + 1
        count = max(self.settings.positions, needed)
        generator = torch.Generator().manual_seed(self.settings.seed)
        return [draw_positions(target, self.geometry, count, generator) for target in self.targets]
