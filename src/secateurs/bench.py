"""Deployed files on the target: exporting a module, and measuring it beside the dense network."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.utils import _pytree as pytree

from secateurs.closed_loop import Attempt, Goal
from secateurs.cost import quantity
from secateurs.elements.rectangles import deployable
from secateurs.errors import InfeasibleBudgetError
from secateurs.export.artifacts import export_artifact
from secateurs.export.onnx import ExportReport
from secateurs.latency.store import Store
from secateurs.latency.targets._base import Target, skips_pruned_elements
from secateurs.latency.timing import Protocol, compare
from secateurs.plan import RESOURCES, Measurement, Plan
from secateurs.progress import Progress, silent
from secateurs.report import wording

QUICK = Protocol(turns=24, precision=0.008)
"""For a candidate in the closed loop."""
FINAL = Protocol(turns=48, precision=0.005)
"""For the figures of the report."""


@dataclass(frozen=True)
class Bench:
    """A target with one dense file that everything is compared with.

    ``folder``: where files lie; ``example``: what the network is exported with.
    """

    target: Target
    folder: Path
    example: Any
    threads: int = 1
    batch: int = 1
    seed: int = 0
    progress: Progress = silent

    @property
    def dense(self) -> Path:
        """The dense network's file."""
        return self.folder / f"dense.{self.target.artifact}"

    @property
    def deployed(self) -> Path:
        """The pruned network's file."""
        return self.folder / f"model.{self.target.artifact}"

    def export(self, module: nn.Module, path: Path, plan: Plan | None = None) -> ExportReport:
        """Write the file that the target runs, compared with PyTorch.

        ``plan``: by which ``module`` was cut; its kernel elements are written in the form that this target runs fast.

        Raises:
            ExportError: it cannot be exported, or computes something else.
        """
        if plan is not None:
            module = deployable(module, plan, self.example, skips=skips_pruned_elements(self.target))
        return export_artifact(self.target.artifact, module, self.example, path, batch=self.batch)

    def measure_dense(self) -> Measurement:
        """Latency and memory of the dense file now."""
        return self._compare({"dense": self.dense}, QUICK)["dense"]

    def measure(self, module: nn.Module, store: Store, name: str, plan: Plan | None = None) -> Measurement:
        """Latency, memory and file size of a candidate, exported for real, beside dense.

        ``name``: says which network it is; a candidate that the store knows is not measured again, so that another
        run on the same rows makes the same plan. ``plan``: as in :meth:`export`.
        """
        shape = "x".join(str(size) for leaf in inputs_of(self.example) for size in leaf.shape[1:])
        signature = f"candidate/2/b{self.batch}/{shape}/{name}"
        fingerprint = self.target.fingerprint(self.threads)
        held = store.get(fingerprint, signature)
        if held is not None:
            return Measurement(**held)
        measured = self.export_and_compare(module, plan)
        store.put(fingerprint, {signature: asdict(measured)})
        return measured

    def export_and_compare(self, module: nn.Module, plan: Plan | None = None) -> Measurement:
        """Latency, memory and file size of a module beside dense, whatever the store knows."""
        with self._scratch() as path:
            written = self.export(module, path, plan)
            measured = self._compare({"dense": self.dense, "pruned": path}, QUICK)["pruned"]
            return replace(measured, file_bytes=written.size_bytes)

    def final(self) -> dict[str, Measurement]:
        """Latencies of ``dense`` and ``pruned`` from one interleaved run of the deployed files."""
        return self._compare({"dense": self.dense, "pruned": self.deployed}, FINAL)

    def _compare(self, files: dict[str, Path], protocol: Protocol) -> dict[str, Measurement]:
        return compare(
            self.target,
            files,
            threads=self.threads,
            batch=self.batch,
            protocol=protocol,
            progress=self.progress,
            seed=self.seed,
        )

    @contextlib.contextmanager
    def _scratch(self) -> Iterator[Path]:
        path = self.folder / f".candidate.{self.target.artifact}"
        try:
            yield path
        finally:
            path.unlink(missing_ok=True)


def inputs_of(example: Any) -> list[Tensor]:
    """Every tensor with a batch dimension in an example."""
    return [leaf for leaf in pytree.tree_leaves(example) if isinstance(leaf, Tensor) and leaf.dim() > 0]


def out_of_reach(
    error: InfeasibleBudgetError, goal: Goal, attempt: Attempt[Any], budget: str, target: str
) -> InfeasibleBudgetError:
    """The error for a budget below what any legal network takes, with the *measured* figure of the least one."""
    what, details = RESOURCES[goal.resource], dict(error.details)
    removed, narrow = details.get("removed", []), details.get("at_minimum", [])
    costliest = ", ".join(f"{name} ({quantity(cost, what.unit)})" for name, cost in details.get("costliest", []))
    limits = f"There {len(narrow)} of {len(details.get('widths', {}))} groups are at their minimum width"
    limits += f", {len(removed)} blocks are removed" if removed else ""
    limits += f", and what still costs most is {costliest}" if costliest else ""
    measured, ratio = attempt.measured, goal.ratio(attempt)
    dense = measured.latency_ms / ratio if goal.resource == "latency" and ratio else goal.dense
    found = {"measured": ratio * dense, "measured_ratio": ratio, "measured_ms": measured.latency_ms}
    told = "counted" if goal.exact else "measured"
    return InfeasibleBudgetError(
        f"{what.words.capitalize()} budget {budget} ({wording.amount(goal.limit * dense, what.unit)}) cannot be "
        f"reached on {target}: the {'fastest' if goal.resource == 'latency' else 'smallest'} legal network takes "
        f"{wording.amount(ratio * dense, what.unit)} when {told}, {ratio:.1%} of dense "
        f"({wording.amount(dense, what.unit)}). {limits}. "
        f"Raise {what.option} to {wording.percent(1.02 * ratio, 0).replace(' ', '')} or more, "
        f"or give the search more freedom (a smaller --min-width, --blocks, fewer --keep).",
        {**details, **found},
    )
