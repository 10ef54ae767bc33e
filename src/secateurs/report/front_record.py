"""front.json: a Pareto front with everything that is needed to pick from it and to draw it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from secateurs.budgets import ACCURACY, Metric
from secateurs.errors import DataError, why
from secateurs.files import read_text

SCHEMA = "secateurs.front/1"


class Tuned(BaseModel):
    """What became of a point that was carried to the end. ``folder``: its run folder inside the front's; ``kept``: as
    in :class:`secateurs.report.record.Record`; accuracies are fractions on the test set; latencies in ms,
    ``latency_ratio`` to dense in one interleaved run; ``memory_bytes``: as in
    :class:`secateurs.report.record.Side`, None where the target does not tell it."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    folder: str
    accuracy: float
    accuracy_recalibrated: float
    latency_ms: float
    latency_ratio: float
    file_bytes: int
    memory_bytes: int | None = None
    kept: str = ""

    @property
    def how(self) -> str:
        """What the deployed network is."""
        return {"tuned": "fine-tuned", "repaired": "repaired, fine-tuning thrown away"}.get(self.kept, "repaired alone")

    def measured(self, name: str) -> float | None:
        """A resource as measured on the deployed file, None where it was not."""
        return {"latency": self.latency_ms, "file_size": self.file_bytes, "memory": self.memory_bytes}.get(name)


class FrontPoint(BaseModel):
    """One network. ``error``: on the validation images before fine-tuning; ``costs``: by the models, per resource;
    ``measured_ms`` and ``measured_memory_bytes``: of the network when the front was run on the target (None: no
    objective); ``widths``: units kept per group (0 in a removed block)."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    number: int
    error: float
    costs: dict[str, float]
    measured_ms: float | None = None
    measured_memory_bytes: int | None = None
    widths: dict[str, int]
    removed: tuple[str, ...] = ()
    tuned: Tuned | None = None


class Front(BaseModel):
    """A front and how it was found. ``metric``: what networks are judged by, an ``error`` being 1 less its worth
    (:meth:`secateurs.budgets.Metric.worth`); ``points``: slowest first; ``history``: per generation of the search;
    ``seeds``: (costs of the main resource, error) of the networks that the search began with; ``picked``: number of the
    point that a run was started for (None: this is the front itself)."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)
    schema_: str = Field(default=SCHEMA, alias="schema")
    metric: Metric = ACCURACY
    model: str
    data: str
    target: str
    criterion: str
    seed: int
    created: str
    objectives: tuple[str, ...]
    units: dict[str, str]
    dense_error: float
    dense_costs: dict[str, float]
    dense_accuracy: float | None = None
    group_sizes: dict[str, int]
    points: tuple[FrontPoint, ...]
    seeds: tuple[tuple[float, float], ...] = ()
    history: tuple[dict[str, Any], ...] = ()
    evaluations: int
    stopped: str
    images: int
    rank_correlation: float | None = None
    command: str = ""
    resume: str = ""
    picked: int | None = None
    versions: dict[str, str] = Field(default_factory=dict)

    @property
    def main(self) -> str:
        """The resource on the charts' horizontal axis."""
        return self.objectives[1]

    def knee(self) -> FrontPoint:
        """The point of the least sum of objectives, each scaled to 0-1 over the front; of two objectives that is the
        one farthest below the line between the front's ends."""

        def values(point: FrontPoint) -> list[float]:
            return [point.error, *(point.costs[name] for name in self.dense_costs)]

        spans = [max(column) - min(column) or 1.0 for column in zip(*map(values, self.points), strict=True)]
        return min(self.points, key=lambda point: sum(v / s for v, s in zip(values(point), spans, strict=True)))

    def spread(self, count: int) -> list[FrontPoint]:
        """``count`` points that are evenly spread over the main cost and clearly cheaper than dense, the knee among
        them; ends where pruning leaves nothing of the accuracy are left out. None where nothing was pruned."""
        dense = self.dense_costs[self.main]
        useful = [p for p in self.points if p.costs[self.main] <= 0.97 * dense and p.error <= 0.7]
        useful = useful or [p for p in self.points if not self.is_dense(p)]
        if not useful:
            return []
        low, high = useful[-1].costs[self.main], useful[0].costs[self.main]
        wanted = [low + (high - low) * index / max(1, count - 1) for index in range(count)]
        chosen = {min(useful, key=lambda p: abs(p.costs[self.main] - place)).number for place in wanted}
        knee = self.knee()
        if knee in useful and knee.number not in chosen:
            chosen.discard(min(chosen, key=lambda n: abs(self.point(n).costs[self.main] - knee.costs[self.main])))
            chosen.add(knee.number)
        return [point for point in self.points if point.number in chosen]

    def is_dense(self, point: FrontPoint) -> bool:
        """Whether nothing was pruned."""
        return not point.removed and dict(point.widths) == self.group_sizes

    def point(self, number: int) -> FrontPoint:
        """The point of that number.

        Raises:
            DataError: there is none.
        """
        for point in self.points:
            if point.number == number:
                return point
        raise DataError(f"The front has no point {number}; it has 0 to {len(self.points) - 1}. Give another number.")

    def to_json(self) -> str:
        """JSON text."""
        return self.model_dump_json(by_alias=True, indent=1) + "\n"

    @classmethod
    def load(cls, path: Path) -> Front:
        """Read front.json.

        Raises:
            DataError: it is missing, damaged or of another version.
        """
        try:
            return cls.model_validate_json(read_text(path))
        except (OSError, UnicodeDecodeError, ValidationError) as error:
            raise DataError(
                f"{path} holds no front that this version reads ({why(error)}). Delete this file and continue with "
                f"'secateurs front --resume -o {path.parent}': the evaluations are kept, nothing is judged again."
            ) from error
