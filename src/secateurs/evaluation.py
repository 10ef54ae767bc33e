"""How good a candidate network is before any training: cut it, refresh its statistics, validate it on fixed images."""

from __future__ import annotations

import copy
import hashlib
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from secateurs.answers import SETTINGS, refit_count
from secateurs.data.accuracy import evaluate
from secateurs.data.datasets import TensorSource
from secateurs.data.images import Images
from secateurs.errors import DataError, PlanError, StructureError
from secateurs.importance.values import order
from secateurs.models import rebuild
from secateurs.plan import Plan
from secateurs.recover.batch_norm import reestimate
from secateurs.recover.least_squares import least_squares, workable
from secateurs.recover.lockstep import Lane
from secateurs.recover.precision import Mode, arrange_weights
from secateurs.search.problem import Evaluation, Rows
from secateurs.search.rows import MemoryRows
from secateurs.structure import apply
from secateurs.structure.fold import batch_norm_pairs, fold_in_place

if TYPE_CHECKING:
    from secateurs.search.hamp.pool import Pool
    from secateurs.structure import Graph

Candidate = tuple[np.ndarray, frozenset[int]]
VERSION = 3
"""Part of what names an evaluation: rises when the same candidate would be judged differently."""
REPAIRS = ("statistics", "least-squares", "none")
CALIBRATED, BATCH = 64, 64
"""Calibration images that every candidate is repaired on (least squares takes fewer large ones), and how many images
are run at once. More images do not rank networks better: 20 cuts of resnet56 ranked on 64, on 128 and on another 64
correlate with the ranks on 512 images and 1,500 validation images by 0.99 each."""
VALIDATED = 500
"""Validation images by default."""


@dataclass(frozen=True, eq=False)
class Judge:
    """From a plan to its accuracy; holds everything that takes, so that it can be sent to another process.

    ``calibration``: input batches; ``validation``: labelled images, read already; ``repair``: ``statistics`` (batch
    norms are re-estimated; in a network without them every layer's mean output is corrected), ``least-squares`` (layers
    are refitted first, quickly) or ``none``; ``precision``: ``fp32`` or ``bf16`` (autocast); ``means``: mean outputs
    of the dense layers, for ``statistics`` without batch norm; ``norms``: batch norms that are folded into the layer
    before them when their statistics are known (``structure.fold.batch_norm_pairs``), which saves a third of the time;
    ``source``: where the module came from (``Loaded.source``): with it the module is rebuilt in another process and
    not pickled, so that its class need not be importable there.
    """

    module: nn.Module
    example: Any
    calibration: tuple[Tensor, ...]
    validation: Images
    classes: tuple[int, ...] | None = None
    repair: str = "statistics"
    precision: str = "fp32"
    means: Mapping[str, Tensor] = field(default_factory=dict)
    norms: Mapping[str, str] = field(default_factory=dict)
    source: Mapping[str, Any] = field(default_factory=dict)

    def __call__(self, plan: Plan, images: int | None = None) -> Evaluation:
        """The accuracy of the cut and repaired network on the first ``images`` of the validation images (None: all).

        The same plan gives the same figure.
        """
        start = time.perf_counter()
        small = apply(self.module, plan, self.example, check=False).eval()
        if self.repair == "least-squares":
            with suppress(DataError, StructureError):  # a network that cannot be refitted is judged as it is
                least_squares(self.module, small, plan, self.refitted, settings=SETTINGS, lane=self.lane)
        mode = Mode(self.precision, "channels_last")
        small = arrange_weights(small, torch.channels_last)
        device = next((parameter.device for parameter in small.parameters()), torch.device("cpu"))
        with mode.autocast(device):
            if self.repair != "none":
                reestimate(small, self.calibration)
                _correct_means(small, self.calibration, self._targets(plan))
            fold_in_place(small, self.norms)
            validation = self.validation if images is None else self.validation.take(images)
            found = evaluate(small, validation, classes=self.classes, batch=_even_batch(len(validation)))
        return Evaluation(found.top1, time.perf_counter() - start, {"loss": found.loss, "top5": found.top5})

    @property
    def refitted(self) -> list[Tensor]:
        """The calibration images in four batches, and what is left over: a quarter chooses the damping."""
        images = torch.cat(self.calibration)
        images = images[: min(len(images), refit_count(images))]
        return list(images.split(max(1, len(images) // 4)))

    @cached_property
    def lane(self) -> Lane | None:
        """The whole network, exported for the refit; None where that works on copies."""
        return Lane(self.module, self.refitted[0]) if workable(self.module) else None

    def limit_threads(self, threads: int) -> None:
        """Use so many CPU threads from now on, in the whole process."""
        torch.set_num_threads(threads)

    def use_gpu(self) -> None:
        """Judge on this process's first GPU from now on."""
        self.module.to("cuda")
        self.__dict__.pop("lane", None)
        object.__setattr__(self, "means", {name: mean.to("cuda") for name, mean in self.means.items()})

    def __getstate__(self) -> dict[str, Any]:
        held = dict(self.__dict__)
        held.pop("lane", None)
        if self.source:
            held["module"] = {name: tensor.cpu() for name, tensor in self.module.state_dict().items()}
        return held

    def __setstate__(self, held: dict[str, Any]) -> None:
        self.__dict__.update(held)
        if self.source:
            self.__dict__["module"] = _rebuilt(self.source, held["module"])

    def _targets(self, plan: Plan) -> dict[str, Tensor]:
        """Mean outputs that the cut network's layers should have."""
        targets = {}
        for name, mean in self.means.items():
            kept = plan.slices.get(f"{name}.bias", {}).get(0)
            targets[name] = mean if kept is None else mean[torch.tensor(kept, device=mean.device)]
        return targets


class Evaluator:
    """Judges candidates (widths, removed blocks) of one traced network; satisfies ``search.problem.Evaluator``.

    In every group the units with the highest ``scores`` stay. The same candidate gives the same figure, and is
    evaluated once: results are kept in ``rows`` by :attr:`identity` and candidate. With a ``pool``, :meth:`many` judges
    candidates side by side.
    """

    def __init__(self, graph: Graph, scores: Mapping[str, np.ndarray], judge: Judge, rows: Rows | None = None) -> None:
        self.graph = graph
        self.judge = judge
        self.rows: Rows = MemoryRows() if rows is None else rows
        self.pool: Pool | None = None
        self.images = len(judge.validation)
        self._ranks = {group.name: order(scores[group.name]) for group in graph.groups}
        self._digest = self._facts()
        self._count, self._seconds = 0, 0.0

    @property
    def identity(self) -> str:
        """Names everything that a figure depends on: network, weights, units' order, images, repair and precision."""
        return f"{self._digest}/{self.images}"

    @property
    def evaluations_per_second(self) -> float:
        """Real evaluations (none from ``rows``) per second spent in them so far; 0 before the first one."""
        return self._count / self._seconds if self._seconds else 0.0

    def __call__(self, widths: np.ndarray, removed: frozenset[int] = frozenset()) -> Evaluation:
        """The evaluation of one legal candidate."""
        row = self.rows.get(self.key(widths, removed))
        if row is not None:
            return Evaluation(float(row["accuracy"]), float(row["seconds"]), dict(row["details"]))
        ((_, found),) = self.many([(widths, removed)])
        return found

    def many(self, candidates: Sequence[Candidate]) -> Iterator[tuple[int, Evaluation]]:
        """(place, evaluation) of every candidate as they are done; all of them are computed."""
        start = time.perf_counter()
        items = [(self.plan(widths, removed), self.images) for widths, removed in candidates]
        answers = enumerate(self.judge(*item) for item in items) if self.pool is None else self.pool.map(items)
        for place, found in answers:
            self._count, self._seconds = self._count + 1, self._seconds + time.perf_counter() - start
            widths, removed = candidates[place]
            row = {"accuracy": found.accuracy, "seconds": found.seconds, "details": dict(found.details)}
            self.rows.put(
                self.key(widths, removed), {**row, "widths": np.asarray(widths).tolist(), "removed": sorted(removed)}
            )
            yield place, found
            start = time.perf_counter()

    def error(self, widths: np.ndarray, removed: frozenset[int] = frozenset()) -> float:
        """1 - accuracy (0-1) of a candidate."""
        return 1.0 - self(widths, removed).accuracy

    def key(self, widths: np.ndarray, removed: frozenset[int] = frozenset()) -> str:
        """The name under which this candidate's evaluation is kept; groups inside removed blocks play no part."""
        text = f"{self.identity}|{sorted(self._widths(widths, removed).items())}|{sorted(removed)}"
        return hashlib.sha256(text.encode()).hexdigest()

    def plan(self, widths: np.ndarray, removed: frozenset[int] = frozenset()) -> Plan:
        """The candidate as a plan: in every group the best-scored units stay."""
        kept = {
            name: tuple(sorted(self._ranks[name][:width].tolist()))
            for name, width in self._widths(widths, removed).items()
        }
        return self.graph.plan(kept, [self.graph.blocks[block].name for block in sorted(removed)])

    def on_fewer(self, images: int) -> Evaluator:
        """The same evaluator on the first ``images`` validation images: quicker, and with an identity of its own."""
        other = copy.copy(self)
        other.images = min(images, self.images)
        return other

    def _widths(self, widths: np.ndarray, removed: frozenset[int]) -> dict[str, int]:
        inside = {group for block in removed for group in self.graph.blocks[block].groups}
        groups = self.graph.groups
        return {groups[g].name: int(width) for g, width in enumerate(widths) if g not in inside}

    def _facts(self) -> str:
        judge, found = self.judge, hashlib.sha256()
        found.update(
            repr((VERSION, judge.repair, judge.precision, judge.classes, self.graph.spec.fingerprint)).encode()
        )
        for tensor in (*judge.module.state_dict().values(), *judge.calibration):
            _feed(found, tensor)
        for batch in judge.validation.batches(BATCH):
            for tensor in batch:
                _feed(found, tensor)
        for name, ranks in sorted(self._ranks.items()):
            found.update(name.encode() + np.asarray(ranks, dtype=np.int64).tobytes())
        return found.hexdigest()[:16]


def make_evaluator(
    graph: Graph,
    scores: Mapping[str, np.ndarray],
    calibration: Images,
    validation: Images,
    *,
    classes: Sequence[int] | None = None,
    repair: str | None = None,
    precision: str = "auto",
    source: Mapping[str, Any] | None = None,
    rows: Rows | None = None,
) -> Evaluator:
    """An evaluator of candidates of ``graph``.

    Args:
        graph: the traced network.
        scores: of the units of every group, by which units stay.
        calibration: images to repair every candidate on; the first :data:`CALIBRATED` are used.
        validation: images to validate on, all of them: ``data.validation.take(500)``.
        classes: only these outputs count.
        repair: one of :data:`REPAIRS`, see :class:`Judge`; None: ``least-squares`` where there is no batch norm
            (corrected means alone leave most cuts at chance there) and layers can be refitted, else ``statistics``.
        precision: ``fp32``, ``bf16``, or ``auto``: bf16 where the processor multiplies matrices in it.
        source: ``Loaded.source`` of the network, for judging in other processes; see :class:`Judge`.
        rows: where evaluations are kept (None: in memory).

    Raises:
        PlanError: unknown repair or precision.
        DataError: there are no images.
    """
    if repair is not None and repair not in REPAIRS:
        raise PlanError(f"Repair {repair!r} is unknown. Known: {', '.join(REPAIRS)}.")
    if precision not in ("auto", "fp32", "bf16"):
        raise PlanError(f"Precision {precision!r} is unknown. Known: auto, fp32, bf16.")
    if len(calibration) == 0 or len(validation) == 0:
        raise DataError("Candidates cannot be judged without calibration and validation images. Give data with both.")
    module = graph.model.eval()
    device = next((parameter.device for parameter in module.parameters()), torch.device("cpu"))
    batches = tuple(inputs for inputs, _ in calibration.take(CALIBRATED).batches(BATCH))
    without_norms = not any(isinstance(child, _BatchNorm) for child in module.modules())
    if repair is None:
        repair = "least-squares" if without_norms and _exports(module, batches[0].to(device)) else "statistics"
    judge = Judge(
        module,
        (graph.args, graph.kwargs),
        batches,
        _read(validation),
        None if classes is None else tuple(classes),
        repair,
        _precision(device) if precision == "auto" else precision,
        _mean_outputs(module, batches) if repair == "statistics" and without_norms else {},
        {} if without_norms else batch_norm_pairs(graph),
        source or {},
    )
    return Evaluator(graph, scores, judge, rows)


def _exports(module: nn.Module, batch: Tensor) -> bool:
    """Whether layers can be refitted one after the other."""
    try:
        return bool(Lane(module, batch).weighted)
    except StructureError:
        return False


def _rebuilt(source: Mapping[str, Any], state: Mapping[str, Tensor]) -> nn.Module:
    """The network that ``source`` describes with these weights, through a file as if it were loaded for the first time
    (a built-in network's variant follows from its weights)."""
    with tempfile.TemporaryDirectory(prefix="secateurs-judge-") as folder:
        path = Path(folder) / "weights.safetensors"
        save_file({name: tensor.contiguous().clone() for name, tensor in state.items()}, path)
        return rebuild({**source, "weights_sha256": None}, weights=path).module


def _read(images: Images) -> Images:
    """The images decoded and normalised, so that no evaluation does it again."""
    parts = [inputs for inputs, _ in images.batches(256)]
    return Images(
        TensorSource(torch.cat(parts), images.labels),
        np.arange(len(images)),
        images.preprocessing,
        name=images.name,
    )


def _even_batch(images: int) -> int:
    """The largest batch up to :data:`BATCH` that leaves no smaller last one, for which kernels would be
    made ready once more; where there is none of half that size, the full one."""
    even = [size for size in range(BATCH // 2, BATCH + 1) if images % size == 0]
    return max(even, default=BATCH)


def _precision(device: torch.device) -> str:
    """``bf16`` where the hardware has matrix units for it. Not decided by timing: results must not depend on load."""
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported() else "fp32"
    has_tiles = getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    return "bf16" if device.type == "cpu" and has_tiles() else "fp32"


def _feed(digest: Any, tensor: Tensor) -> None:
    digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())


def _biased(module: nn.Module) -> dict[str, nn.Module]:
    """Convolutions and linear layers with a bias, by name."""
    kinds = (nn.modules.conv._ConvNd, nn.Linear)
    return {
        name: child for name, child in module.named_modules() if isinstance(child, kinds) and child.bias is not None
    }


def _channel_mean(layer: nn.Module, output: Tensor) -> Tensor:
    channel = output.ndim - 1 if isinstance(layer, nn.Linear) else 1
    return output.float().mean(dim=[dim for dim in range(output.ndim) if dim != channel])


def _mean_outputs(module: nn.Module, batches: Sequence[Tensor]) -> dict[str, Tensor]:
    """Mean output per channel of every layer with a bias that runs once per pass, over ``batches``."""
    total: dict[str, list[Tensor]] = {}

    def watch(name: str) -> Callable[[nn.Module, Any, Tensor], None]:
        return lambda layer, _, output: total.setdefault(name, []).append(_channel_mean(layer, output))

    handles = [layer.register_forward_hook(watch(name)) for name, layer in _biased(module).items()]
    device = next((parameter.device for parameter in module.parameters()), torch.device("cpu"))
    try:
        with torch.no_grad():
            for batch in batches:
                module(batch.to(device))
    finally:
        for handle in handles:
            handle.remove()
    return {name: torch.stack(found).mean(0) for name, found in total.items() if len(found) == len(batches)}


def _correct_means(small: nn.Module, batches: Sequence[Tensor], targets: Mapping[str, Tensor]) -> None:
    """Shift every bias so that the layer's mean output is the target, front to back in one pass over one batch.

    The one-pass relative of :func:`secateurs.recover.least_squares.correct_bias`, quick enough for every candidate: a
    layer's output is corrected on its way, so that the layers behind it see what they will see.
    """
    if not targets:
        return

    def shift(target: Tensor) -> Callable[[nn.Module, Any, Tensor], Tensor]:
        def correct(layer: nn.Module, _: Any, output: Tensor) -> Tensor:
            missing = target - _channel_mean(layer, output)
            assert isinstance(layer.bias, nn.Parameter)
            layer.bias.data += missing.to(layer.bias.dtype)
            shape = [1] * output.ndim
            shape[output.ndim - 1 if isinstance(layer, nn.Linear) else 1] = -1
            return output + missing.view(shape).to(output.dtype)

        return correct

    handles = [
        layer.register_forward_hook(shift(targets[name])) for name, layer in _biased(small).items() if name in targets
    ]
    device = next((parameter.device for parameter in small.parameters()), torch.device("cpu"))
    try:
        with torch.no_grad():
            small(torch.cat(list(batches)).to(device))
    finally:
        for handle in handles:
            handle.remove()
