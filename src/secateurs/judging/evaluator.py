"""How good a candidate network is before any training: cut it, refresh its statistics, validate it on fixed images."""

from __future__ import annotations

import copy
import hashlib
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from secateurs.data.calls import Inputs, on, tensors_of
from secateurs.data.datasets import TensorSource
from secateurs.data.images import Images
from secateurs.data.nests import leaves
from secateurs.data.samples import Samples
from secateurs.data.tasks.task import Task, classification
from secateurs.errors import DataError, PlanError, StructureError
from secateurs.judging.judge import BATCH, Judge, mean_outputs
from secateurs.plan import Plan
from secateurs.provenance import digest, spelled
from secateurs.recover.refit.lockstep import Lane
from secateurs.search.problem import Evaluation, Evaluator, Rows
from secateurs.search.rows import MemoryRows
from secateurs.search.values import order
from secateurs.structure.fold import batch_norm_pairs

if TYPE_CHECKING:
    from secateurs.judging.pool import Pool
    from secateurs.structure import Graph

Decision = tuple[np.ndarray, frozenset[int]]
VERSION = 3
"""Part of what names an evaluation: rises when the same candidate would be judged differently."""
REPAIRS = ("statistics", "least-squares", "none")
CALIBRATED = 64
"""Calibration images that every candidate is repaired on (least squares takes fewer large ones). More images do not
rank networks better: 20 cuts of resnet56 ranked on 64, on 128 and on another 64 correlate with the ranks
on 512 images and 1,500 validation images by 0.99 each."""


class NetworkEvaluator(Evaluator):
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

    def many(self, candidates: Sequence[Decision]) -> Iterator[tuple[int, Evaluation]]:
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
        return digest(text)

    def plan(self, widths: np.ndarray, removed: frozenset[int] = frozenset()) -> Plan:
        """The candidate as a plan: in every group the best-scored units stay."""
        kept = {
            name: tuple(sorted(self._ranks[name][:width].tolist()))
            for name, width in self._widths(widths, removed).items()
        }
        return self.graph.plan(kept, [self.graph.blocks[block].name for block in sorted(removed)])

    def on_fewer(self, images: int) -> NetworkEvaluator:
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
        facts = (VERSION, judge.repair, judge.precision, judge.task.classes, self.graph.spec.fingerprint)
        found.update(spelled((*facts, *judge.task.identity)).encode())
        given = [tensor for batch in judge.calibration for _, tensor in tensors_of(batch)]
        for tensor in (*judge.module.state_dict().values(), *given):
            _feed(found, tensor)
        for batch in judge.validation.batches(BATCH):
            for _, tensor in leaves(batch):
                _feed(found, tensor)
        for name, ranks in sorted(self._ranks.items()):
            found.update(name.encode() + np.asarray(ranks, dtype=np.int64).tobytes())
        return found.hexdigest()[:16]


def make_evaluator(
    graph: Graph,
    scores: Mapping[str, np.ndarray],
    calibration: Images | Samples,
    validation: Images | Samples,
    *,
    task: Task | None = None,
    repair: str | None = None,
    precision: str = "auto",
    source: Mapping[str, Any] | None = None,
    rows: Rows | None = None,
) -> NetworkEvaluator:
    """An evaluator of candidates of ``graph``.

    Args:
        graph: the traced network.
        scores: of the units of every group, by which units stay.
        calibration: images to repair every candidate on; the first :data:`CALIBRATED` are used.
        validation: images to validate on, all of them: ``data.validation.take(500)``.
        task: what networks are judged by; None: classification.
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
    task = task or classification()
    batches = tuple(task.called_with(batch) for batch in calibration.take(CALIBRATED).batches(BATCH))
    without_norms = not any(isinstance(child, _BatchNorm) for child in module.modules())
    if repair is None:
        repair = "least-squares" if without_norms and _exports(module, on(batches[0], device)) else "statistics"
    judge = Judge(
        module,
        (graph.args, graph.kwargs),
        batches,
        _read(validation),
        task,
        repair,
        _precision(device) if precision == "auto" else precision,
        mean_outputs(module, batches) if repair == "statistics" and without_norms else {},
        {} if without_norms else batch_norm_pairs(graph),
        source or {},
    )
    return NetworkEvaluator(graph, scores, judge, rows)


def _exports(module: nn.Module, batch: Inputs) -> bool:
    """Whether layers can be refitted one after the other."""
    try:
        return bool(Lane(module, batch).weighted)
    except StructureError:
        return False


def _read(images: Images | Samples) -> Images | Samples:
    """The images decoded and normalised, so that no evaluation does it again; samples stay where they are."""
    if isinstance(images, Samples):
        return images
    parts = [inputs for inputs, _ in images.batches(256)]
    return Images(
        TensorSource(torch.cat(parts), images.labels),
        np.arange(len(images)),
        images.preprocessing,
        name=images.name,
    )


def _precision(device: torch.device) -> str:
    """``bf16`` where the hardware has matrix units for it. Not decided by timing: results must not depend on load."""
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported() else "fp32"
    has_tiles = getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    return "bf16" if device.type == "cpu" and has_tiles() else "fp32"


def _feed(digest: Any, tensor: Tensor) -> None:
    digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
