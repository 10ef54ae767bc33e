"""Widths, blocks and a precision per layer: what a search chooses from where files are quantised.

docs/methods.md, "Widths and precisions in one problem". What a layer takes in int8 and in float is told by the latency
models of both targets, what a conversion takes by mixed files that were measured, what quantising a layer costs by the
answers of files in which nothing else is quantised.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from secateurs.budgets import RESOURCES
from secateurs.data.calls import Inputs, tensors_of
from secateurs.data.tasks.task import classification
from secateurs.errors import PlanError
from secateurs.importance.output_change import Answers
from secateurs.importance.scoring import calibration_batches, calibration_inputs
from secateurs.latency.targets.opening import in_float, open_target
from secateurs.measure.mixed import FileAnswers, MixedFiles, drawn_mixes, mixed_ratios
from secateurs.measure.profile import profile
from secateurs.plan import Plan
from secateurs.planning.channels import Channels
from secateurs.progress import Progress, silent
from secateurs.search.legal import check_mixing
from secateurs.search.mixed import FLOAT, INT8, Conversions, Mix, NoWorse
from secateurs.search.values import curve, keep

if TYPE_CHECKING:
    from secateurs.cost import CostModel
    from secateurs.data import Data
    from secateurs.latency.model import LatencyModel
    from secateurs.latency.store import Store
    from secateurs.latency.targets import Target
    from secateurs.network import NetworkSpec
    from secateurs.search.legal import Legal
    from secateurs.search.problem import Rows, Strategy
    from secateurs.structure import Graph

_ASKED, _CUT = 6, 0.45
"""Groups, and the share of their units, by which losses are put into the currency of the scores."""


@dataclass(frozen=True)
class MixedSpace:
    """A :class:`~secateurs.planning.space.Space` of widths, blocks and precisions.

    ``channels``: the space of widths and blocks on the target of quantised files; ``mix``: layers that can be either;
    ``conversions``: what mixing costs; ``files``: of the dense network; ``calibration``: batches that losses are
    measured on.
    """

    channels: Channels
    mix: Mix
    conversions: Conversions
    files: MixedFiles
    calibration: Iterable[Any]
    widths_only: bool = False

    @property
    def graph(self) -> Graph:
        """The traced network."""
        return self.channels.graph

    @property
    def legal(self) -> Legal:
        """Which networks may be returned."""
        return self.channels.legal

    @cached_property
    def spec(self) -> NetworkSpec:
        """The network's numbers, with a group of precision per layer."""
        return self.mix.extended()

    @cached_property
    def _latency(self) -> CostModel:
        return self.mix.model(self.conversions)

    def model(self, resource: str) -> CostModel:
        """Of latency and of multiply-adds.

        Raises:
            PlanError: another resource, which depends on the precision too.
        """
        if resource == "latency":
            return self._latency
        if resource == "macs":
            return self.channels.model(resource)
        raise PlanError(
            f"With a mix of precisions latency and multiply-adds can be limited, not {RESOURCES[resource].words}. "
            f"Leave out {RESOURCES[resource].option}, or --precision-mix."
        )

    def options(self, models: Sequence[CostModel]) -> tuple[np.ndarray, ...]:
        """Widths that pay in int8 or in float, and both precisions of every layer."""
        others = [model for model in models if model is not self._latency]
        widths = self.channels.options([self.mix.int8, self.mix.in_float, *others])
        return (*widths, *(np.array([FLOAT, INT8]) for _ in self.mix.layers))

    def values(
        self, scores: Mapping[str, np.ndarray], images: Data | None, rows: Rows | None, progress: Progress
    ) -> tuple[np.ndarray, ...]:
        """Sums of the best scores; of a layer minus what the outputs change by when it alone is quantised.

        Both in the scores' own currency: how much they say that some cuts cost, by how far those change the outputs.
        """
        judge = classification() if images is None else images.task
        answers = Answers(self.graph, [judge.called_with(batch) for batch in self.calibration], rows, judge)
        with progress.task("what int8 costs", len(self.mix.layers)) as task:
            rate = exchange_rate(self.graph, scores, answers)
            lost = []
            for layer in self.mix.layers:
                lost.append(rate * self._change(layer, answers, rows))
                task.advance()
        own = self.channels.values(scores, images, rows, progress)
        return (*own, *(np.array([0.0, 0.0, -loss]) for loss in lost))

    def _change(self, layer: str, answers: Answers, rows: Rows | None) -> float:
        """How far the answers move when one layer is quantised; measured once."""
        key = f"int8/{answers.identity}/{7 if self.files.seven_bits else 8}/{layer}"
        held = None if rows is None else rows.get(key)
        if held is not None:
            return float(held["loss"])
        run = FileAnswers(self.files.only(layer))

        def answered(batch: Inputs) -> list[torch.Tensor]:
            return [torch.from_numpy(found) for found in run([x.cpu().numpy() for _, x in tensors_of(batch)])]

        loss = answers.distance_of(answered)
        if rows is not None:
            rows.put(key, {"loss": loss})
        return loss

    def finished(self, plan: Plan, widths: np.ndarray) -> Plan:
        """The plan with the layers that stay in float."""
        spec = self.graph.spec
        removed = {number for number, block in enumerate(spec.blocks) if block.name in plan.blocks_removed}
        gone = {layer.name for layer in spec.layers if removed & set(layer.blocks)}
        states = zip(self.mix.layers, widths[len(spec.groups) :], strict=True)
        floats = {name: "float" for name, state in states if state == FLOAT and name not in gone}
        return plan.model_copy(update={"precision": floats})

    def note(self, plan: Plan) -> str:
        """Which layers a plan leaves in float, in one sentence."""
        if not plan.precision:
            return "Precisions: every layer in int8; none is worth its conversions to float."
        slower = set(self._slower(plan)) & set(plan.precision)
        told = [f"{name} (no faster in int8)" if name in slower else name for name in plan.precision]
        return f"Precisions: {len(told)} of {len(self.mix.layers)} layers stay in float: {', '.join(told)}."

    def _slower(self, plan: Plan) -> list[str]:
        """Layers that take no longer in float at a plan's widths."""
        widths = np.array([max(1, len(plan.groups[group.name])) for group in self.graph.spec.groups])
        int8, floats = Counter[str](), Counter[str]()
        for found, model in ((int8, self.mix.int8), (floats, self.mix.in_float)):
            for term in model.terms:
                found[term.name] += float(term.evaluate(widths))  # type: ignore[assignment]
        return [name for name in self.mix.layers if int8[name] >= self.conversions.scale * floats[name]]

    def allowing(self, legal: Legal) -> MixedSpace:
        """The same with other legal networks."""
        return replace(self, channels=self.channels.allowing(legal))

    def search(self, strategy: Strategy) -> Strategy:
        """The strategy, never worse than with one precision for all layers.

        Raises:
            PlanError: it does not solve the joint problem.
        """
        check_mixing(strategy.name)
        return NoWorse(strategy, len(self.graph.spec.groups))


def exchange_rate(graph: Graph, scores: Mapping[str, np.ndarray], answers: Answers) -> float:
    """By how much the scores fall per change of the answers: the median over some groups cut by ``_CUT``; 1 where no
    cut tells."""
    groups = list(graph.spec.groups)
    chosen = sorted({int(place) for place in np.linspace(0, len(groups) - 1, min(_ASKED, len(groups))).round()})
    found = []
    for group in (groups[place] for place in chosen):
        width = group.units - max(1, int(group.units * _CUT))
        if width < 1:
            continue
        worth = curve(scores[group.name])
        change = answers.change(graph.plan({group.name: keep(scores[group.name], width)}, ()))
        if change > 1e-12 and worth[-1] > worth[width]:
            found.append(float(worth[-1] - worth[width]) / change)
    return float(np.median(found)) if found else 1.0


def check_mixes(target: Target) -> None:
    """Nothing, if the target's files can hold layers in float beside quantised ones.

    Raises:
        PlanError: they cannot.
    """
    if not target.mixes:
        raise PlanError(
            f"Files of target {target.name} hold no layers in float beside quantised ones. Give an int8 target of ONNX "
            f"Runtime or OpenVINO, or leave --precision-mix out."
        )


def mixed_space(
    channels: Channels,
    target: str,
    images: Data,
    *,
    threads: int = 1,
    store: Store | None = None,
    seed: int = 0,
    progress: Progress = silent,
) -> MixedSpace:
    """The joint choice on a target of quantised files, from measurements; what the store knows is not measured again.

    Args:
        channels: the space of widths and blocks, with the latency model of that target.
        target: its name.
        images: that ranges and losses are taken from.
        threads: of the runtime.
        store: where measurements are kept.
        seed: of what is measured.
        progress: where to report.

    Raises:
        PlanError: there is no latency model, no layer has both forms, or the target's files cannot hold both.
        TargetError: the runtime failed, or the machine is too disturbed to measure.
        ExportError: the network cannot be exported or quantised.
    """
    if channels.costs is None:
        raise PlanError(
            "Which layers stay in float is decided by measured time. Give --latency, or no --precision-mix."
        )
    graph, batch, calibration = channels.graph, channels.batch, calibration_batches(images)
    opened = open_target(target)
    check_mixes(opened)
    with progress.task("export for precisions"):
        files = MixedFiles.of(graph, calibration_inputs(images), batch=batch, seven_bits=opened.saturates)
        layers = _choosable(graph, files)
    floats = profile(graph, in_float(target), threads=threads, batch=batch, store=store, seed=seed, progress=progress)
    mix = mix_of(graph.spec, layers, files, channels.costs, floats)
    mixes, network = drawn_mixes(layers, seed), graph.spec.fingerprint
    ratios = mixed_ratios(files, mixes, opened, network, threads=threads, batch=batch, store=store, progress=progress)
    dense_ms = float(mix.int8.evaluate(graph.spec.dense_widths))
    return MixedSpace(channels, mix, mix.fitted(mixes, [ratio * dense_ms for ratio in ratios]), files, calibration)


def mix_of(
    spec: NetworkSpec, layers: tuple[str, ...], files: MixedFiles, int8: LatencyModel, floats: LatencyModel
) -> Mix:
    """The numbers of the choice, by the latency models of both targets."""
    passed = tuple(one for one in files.layers.passed if {one.source, one.reader} & set(layers))
    return Mix(spec, layers, passed, int8.cost_model(), floats.cost_model())


def _choosable(graph: Graph, files: MixedFiles) -> tuple[str, ...]:
    """Layers that can be int8 or float, in the network's order: called once, and with an int8 form.

    Raises:
        PlanError: there is none.
    """
    calls = Counter(layer.name for layer in graph.spec.layers)
    found = tuple(name for name, count in calls.items() if count == 1 and name in files.possible)
    if not found:
        raise PlanError("No layer of this network has an int8 form, so there is nothing to mix. Give the float target.")
    return found
