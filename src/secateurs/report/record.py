"""What a finished run says about itself: the content of ``result.json``, frozen, with a JSON round trip."""

from __future__ import annotations

import json
import os
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from secateurs.budgets import ACCURACY, ROUNDING, Metric
from secateurs.errors import DataError, why
from secateurs.files import read_json, read_text
from secateurs.plan import differs_by_noise

SCHEMA = "secateurs.result/1"
_VALUE = "metric"
_NOT_RENAMED = ("metric", "settings", "search")
"""Columns whose keys are not the record's own."""


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", populate_by_name=True)


class TargetRecord(_Frozen):
    """The runtime and device that the latencies belong to."""

    name: str
    fingerprint: str
    threads: int
    precision: str
    details: dict[str, str] = Field(default_factory=dict)


class Side(_Frozen):
    """One network as deployed: latency in ms, spread = IQR / median, accuracy as a fraction, counts, file size;
    ``memory_bytes``: by how much the file raised the peak of the runtime's process, ``peak_memory_bytes``."""

    latency_ms: float
    latency_spread: float
    accuracy: float
    macs: int
    params: int
    file_bytes: int
    memory_bytes: int | None = None
    peak_memory_bytes: int | None = None


class PrunedSide(Side):
    """The pruned network, with its accuracy right after the cut and after the repair; ``repaired_by``: what that did
    ("" for nothing, or where an older version did not say it)."""

    accuracy_cut: float
    accuracy_recalibrated: float
    repaired_by: str = ""


class Certainty(_Frozen):
    """What the test images tell. ``samples``: how many; ``standard_error``: of the pruned network's accuracy;
    ``difference``: pruned - dense, untouched; its error is paired, image by image, or by blocks of samples where the
    metric is of all of them at once (None: not known); ``tie``: within two of them."""

    samples: int
    standard_error: float | None
    dense_standard_error: float | None
    difference: float
    difference_standard_error: float | None
    tie: bool


class FileRecord(_Frozen):
    """One of the files that ran side by side in the final measurement: ``network`` (``dense`` or ``pruned``) in
    ``precision`` (``f32``, ``int8``); ``ratio``: of its latency to that of the dense file that budgets are of;
    ``accuracy``: on the test images, as a fraction; of a quantised file as the runtime computes it."""

    network: str
    precision: str
    latency_ms: float
    ratio: float
    accuracy: float
    file_bytes: int


class LayersRecord(_Frozen):
    """Layers of a quantised file: how many are ``quantised``, and which stay ``in_float``, by module path."""

    quantised: int
    in_float: tuple[str, ...] = ()

    @property
    def count(self) -> int:
        """All of them."""
        return self.quantised + len(self.in_float)


class DenseFinetuned(_Frozen):
    """The dense network fine-tuned as the pruned one was, for ``epochs``; ``difference``: pruned - this one, ``tie`` as
    in :class:`Certainty`."""

    epochs: int
    accuracy: float
    standard_error: float | None
    seconds: float
    difference: float
    difference_standard_error: float | None
    tie: bool


class ValidationStep(_Frozen):
    """A network that was tried on the way to the fastest one that keeps enough accuracy. ``predicted_ratio``: its
    latency to dense by the model, ``latency_ratio``: measured (None: it was not); ``accuracy``: on the validation
    images, repaired; ``holds``: whether that is enough; ``chosen``: this is the one."""

    predicted_ratio: float
    latency_ratio: float | None
    accuracy: float
    holds: bool
    chosen: bool


class Validation(_Frozen):
    """What became of an accuracy that was asked for, on so many validation images (``samples``).

    ``least``: that must stay, by which networks were chosen; ``dense``, ``repaired``, ``deployed``: accuracies of the
    dense network, of the cut one when it was repaired, and as deployed; of quantised targets those of the files;
    ``standard_error``: of ``repaired``; ``difference``: repaired - dense, its error is paired, image by image; ``tie``:
    within two of them; ``steps``: every network that was tried, in order.
    """

    samples: int
    least: float
    dense: float
    repaired: float
    deployed: float
    standard_error: float | None
    difference: float
    difference_standard_error: float | None
    tie: bool
    steps: tuple[ValidationStep, ...] = ()

    @property
    def held(self) -> bool:
        """Whether the repaired network keeps enough; what must stay is worse than what the dense network has."""
        if self.least > self.dense:
            return self.repaired <= self.least + ROUNDING
        return self.repaired >= self.least - ROUNDING


class Seconds(_Frozen):
    """Wall time per stage, in seconds, over all sittings of a resumed run."""

    trace: float = 0.0
    profile: float = 0.0
    search: float = 0.0
    recover: float = 0.0
    finetune: float = 0.0
    dense_finetune: float = 0.0
    measure: float = 0.0
    total: float = 0.0


class GroupRecord(_Frozen):
    """Units of one group before and after."""

    name: str
    units: int
    kept: int


class Point(_Frozen):
    """A network whose latency was both predicted and measured; ``kind``: ``held-out``, ``candidate`` or ``final``."""

    kind: str
    predicted_ms: float
    measured_ms: float


class ModelError(_Frozen):
    """Error of the latency model on whole networks that it was not fitted on, as fractions."""

    mean_abs: float
    p95: float
    spearman: float
    networks: int = 0


class BudgetRecord(_Frozen):
    """One budget after the final measurement, in ``unit`` (``ms``, ``bytes``, ``macs``).

    ``resource``: ``latency``, ``memory``, ``file_size`` or ``macs``; ``text``: as the user gave it; ``upper``: upper
    end of the 95 % interval of ``pruned``, where it has one; ``target``: on which of several it holds, "" where there
    is one target.
    """

    resource: str
    text: str
    unit: str
    limit: float
    dense: float
    pruned: float
    upper: float
    target: str = ""

    @property
    def used(self) -> float:
        """Share of the budget that is taken, 1.0 = all of it."""
        return self.pruned / self.limit

    @property
    def met(self) -> bool:
        """Whether the upper bound is within the limit."""
        return self.upper <= self.limit * (1 + 1e-9)


class TargetRow(_Frozen):
    """The same network on one of the targets: its file there beside the dense one, in one interleaved run.

    ``name``: as it was asked for; ``file``: the deployed one, in the run's folder; ``budget``: of latency, as the user
    gave it, in ``budget_ms`` that of this run ("" and None: latency was not limited); ``met``: whether the upper 95 %
    bound is within it (None: no budget); ``predicted_ms``: None where there is no latency model; ``accuracy`` of
    quantised files as the runtime computes it, and then all four ``files``.
    """

    name: str
    fingerprint: str
    threads: int
    precision: str
    file: str
    budget: str
    budget_ms: float | None
    predicted_ms: float | None
    dense: Side
    pruned: Side
    speedup: float
    latency_ratio: float
    latency_ratio_upper: float
    met: bool | None
    export_max_rel_error: float
    latency_model: ModelError | None = None
    files: tuple[FileRecord, ...] = ()

    @property
    def latency_tie(self) -> bool:
        """Whether neither file is faster, as far as the measurement tells."""
        return differs_by_noise(self.latency_ratio, self.latency_ratio_upper)


class Record(_Frozen):
    """Everything ``result.json`` holds.

    ``metric``: what networks are judged by; in every ``accuracy`` is its value, and in the file of another metric these
    keys are called ``metric…`` (``metric_cut``);
    ``budget``: as the user gave it, or what was picked from a front; ``budgets``: every one with its figures (none
    for a pick, nor of latency where an accuracy was asked for: ``max_loss`` in points, or ``min_accuracy``, and
    ``validation`` is what became of it);
    ``budget_ms``: the latency budget in the milliseconds of the final interleaved measurement (None: latency was not
    limited); ``budget_used``: measured share of the main budget (the first), 1.0 = all of it (None: a
    pick); ``predicted_ms``: None where there is no latency model;
    ``latency_ratio`` and ``latency_ratio_upper``: median of the per-turn ratios to the dense network and the upper end
    of its 95 % interval; ``speedup``: ratio of the medians of that run; ``class_count``: classes among which the
    argmax is taken; ``dense_finetuned``: None where the dense network was not trained; ``test``: None in files of older
    versions; ``kept``: ``tuned`` or, where fine-tuning was thrown away, ``repaired`` ("": none after the cut);
    ``tuned_epochs``: of fine-tuning after the cut; ``files``: of quantised targets the four files, dense and pruned,
    float and quantised; accuracies of ``dense`` and ``pruned`` are the quantised files' then; ``int8_layers``: of the
    quantised file to deploy (None: there is none); ``search``: details of a
    search that judged candidates, {} for others; ``gap``: proven distance of the search's solution from the best one,
    as a fraction of its value; ``targets``: a row for every target, the first one's figures are those of ``target``,
    ``dense`` and ``pruned`` (none in files of older versions);
    ``settings``: all of the run, by their names in :class:`secateurs.jobs.settings.Settings`; ``notes``: what was not
    done or needs attention.
    """

    schema_: str = Field(default=SCHEMA, alias="schema")
    metric: Metric = ACCURACY
    model: str
    strategy: str
    criterion: str
    seed: int
    versions: dict[str, str]
    target: TargetRecord
    targets: tuple[TargetRow, ...] = ()
    budget: str
    budgets: tuple[BudgetRecord, ...]
    budget_ms: float | None
    budget_used: float | None
    max_loss: float | None = None
    min_accuracy: float | None = None
    validation: Validation | None = None
    predicted_ms: float | None
    dense: Side
    pruned: PrunedSide
    dense_finetuned: DenseFinetuned | None = None
    test: Certainty | None = None
    files: tuple[FileRecord, ...] = ()
    int8_layers: LayersRecord | None = None
    kept: str = ""
    tuned_epochs: int = 0
    blocks_removed: tuple[str, ...] = ()
    classes: str = "all"
    class_count: int
    epochs: int
    speedup: float
    latency_ratio: float
    latency_ratio_upper: float
    export_max_rel_error: float
    structure_check_rel_error: float
    seconds: Seconds
    batch: int = 1
    data: str = ""
    weights: str = ""
    input_shape: tuple[int, ...] = ()
    groups: tuple[GroupRecord, ...] = ()
    points: tuple[Point, ...] = ()
    latency_model: ModelError | None = None
    search: dict[str, Any] = Field(default_factory=dict)
    gap: float | None = None
    rounds: int = 1
    settings: dict[str, Any] = Field(default_factory=dict)
    notes: tuple[str, ...] = ()
    command: str = ""
    created: str = ""

    @property
    def latency_tie(self) -> bool:
        """Whether neither file is faster, as far as the measurement tells."""
        return differs_by_noise(self.latency_ratio, self.latency_ratio_upper)

    @property
    def pruned_within_budget(self) -> bool:
        """Whether every budget is met, and the accuracy that was asked for is held; of latency the upper 95 % bound
        counts."""
        held = self.validation is None or self.validation.held
        return held and all(budget.met for budget in self.budgets)

    def to_json(self) -> str:
        """Stable JSON text."""
        return json.dumps(self.to_dict(), indent=1) + "\n"

    def to_dict(self) -> dict[str, Any]:
        """As JSON values: what ``result.json`` holds."""
        held: dict[str, Any] = self.model_dump(by_alias=True, mode="json")
        if self.metric == ACCURACY:
            return held
        return _renamed_columns(held, "accuracy", _VALUE)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Record:
        """Read a ``result.json``.

        Raises:
            DataError: the file is missing, is not JSON, has another schema or lacks a field.
        """
        try:
            raw = read_json(read_text(path))
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"{path} cannot be read ({why(error)}). Give the folder of a finished run.") from error
        except ValueError as error:
            raise DataError(f"{path} is not JSON ({why(error)}). Run the job again with --resume.") from error
        if not isinstance(raw, dict) or raw.get("schema") != SCHEMA:
            found = raw.get("schema") if isinstance(raw, dict) else type(raw).__name__
            raise DataError(f"{path} has schema {found!r}, this version reads {SCHEMA!r}. Run the job again.")
        raw = _renamed_columns(raw, _VALUE, "accuracy")
        try:
            return cls.model_validate(raw)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            raise DataError(f"{path} is damaged at {where}: {first['msg']}. Run the job again.") from error


def _renamed_columns(held: dict[str, Any], before: str, after: str) -> dict[str, Any]:
    return {name: one if name in _NOT_RENAMED else _renamed(one, before, after) for name, one in held.items()}


def _renamed(value: Any, before: str, after: str) -> Any:
    """JSON values whose keys ``before``, ``before_…`` begin with ``after`` instead."""
    if isinstance(value, list):
        return [_renamed(one, before, after) for one in value]
    if not isinstance(value, dict):
        return value
    named = {}
    for name, one in value.items():
        own = name == before or name.startswith(f"{before}_")
        named[after + name.removeprefix(before) if own else name] = _renamed(one, before, after)
    return named
