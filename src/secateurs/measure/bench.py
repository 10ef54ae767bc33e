"""Deployed files on the target: exporting a module, and measuring it beside the dense network."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from secateurs.elements.rectangles import deployable
from secateurs.export.artifacts import export_artifact
from secateurs.export.onnx import ExportReport, as_arguments
from secateurs.export.quantised import ENOUGH, LEAST, Quantising
from secateurs.latency.store import Store
from secateurs.latency.targets._base import QUANTISED, Target
from secateurs.latency.timing import Protocol, compare
from secateurs.measure.deployed import Deployed, running
from secateurs.plan import Measurement, Plan
from secateurs.progress import Progress, silent
from secateurs.provenance import store_key

QUICK = Protocol(turns=24, precision=0.008)
"""For a candidate in the closed loop."""
FINAL = Protocol(turns=48, precision=0.005)
"""For the figures of the report."""


@dataclass(frozen=True)
class Bench:
    """A target with one dense file that everything is compared with.

    ``dense``: where that file lies; ``candidate``: where a network is exported to while it is measured; ``example``:
    what networks are exported with; ``calibration``: batches of samples that files are quantised by, where the target
    runs quantised ones (None: random ones, which is enough for times).
    """

    target: Target
    dense: Path
    candidate: Path
    example: Any
    threads: int = 1
    batch: int = 1
    seed: int = 0
    progress: Progress = silent
    calibration: Iterable[Any] | None = None

    @classmethod
    def inside(
        cls,
        folder: Path,
        target: Target,
        example: Any,
        threads: int = 1,
        batch: int = 1,
        seed: int = 0,
        progress: Progress = silent,
    ) -> Bench:
        """A bench whose files lie in a scratch folder."""
        dense, candidate = (folder / f"{name}.{target.artifact}" for name in ("dense", "candidate"))
        return cls(target, dense, candidate, example, threads, batch, seed, progress)

    @property
    def quantises(self) -> bool:
        """Whether the target's files hold quantised numbers."""
        return self.target.precision in QUANTISED

    @property
    def most(self) -> int | None:
        """The greatest whole number of a weight in the target's files; None where they hold float numbers."""
        if not self.quantises:
            return None
        return 63 if self.target.saturates else 127

    def export(
        self,
        module: nn.Module,
        path: Path,
        plan: Plan | None = None,
        samples: int = ENOUGH,
        in_float: Path | None = None,
    ) -> ExportReport:
        """Write the file that the target runs, compared with PyTorch.

        ``plan``: by which ``module`` was cut; its kernel elements are written in the form that this target runs fast,
        and its layers in float are not quantised;
        ``samples``: by how many a quantised file is calibrated; ``in_float``: where the same network's float file goes,
        where the target's are quantised.

        Raises:
            ExportError: it cannot be exported, or computes something else.
        """
        found = self._quantising(samples, plan) if self.quantises else None
        if found is not None and in_float is not None and self.target.runs_float:
            if self.target.artifact == "onnx":  # it is made of the float file
                found = replace(found, beside=in_float)
            else:
                self._export(self.target.artifact, module, in_float, plan)
        return self._export(self.target.exporter, module, path, plan, found)

    def export_float(self, module: nn.Module, path: Path) -> ExportReport:
        """Write a network in float numbers, in the same format.

        Raises:
            ExportError: as of :meth:`export`.
        """
        return self._export(self.target.artifact, module, path, None)

    def _export(
        self, exporter: str, module: nn.Module, path: Path, plan: Plan | None, quantising: Quantising | None = None
    ) -> ExportReport:
        if plan is not None:
            module = deployable(module, plan, self.example, skips=self.target.skips_pruned_elements)
        return export_artifact(exporter, module, self.example, path, batch=self.batch, quantising=quantising)

    def _quantising(self, samples: int, plan: Plan | None) -> Quantising:
        given = random_samples(self.example, samples) if self.calibration is None else self.calibration
        return Quantising(given, self.target.saturates, samples, frozenset() if plan is None else plan.in_float)

    def measure_dense(self) -> Measurement:
        """Latency and memory of the dense file now."""
        return self._compare({"dense": self.dense}, QUICK)["dense"]

    def export_dense_and_in_float(self, module: nn.Module) -> tuple[ExportReport, Measurement]:
        """Write the dense file, which is quantised, and measure the same network's float file beside it."""
        with self._scratch() as path:
            written = self.export(module, self.dense, in_float=path)
            return written, self._compare({"dense": self.dense, "float": path}, QUICK)["float"]

    def measure(self, module: nn.Module, store: Store, name: str, plan: Plan | None = None) -> Measurement:
        """Latency, memory and file size of a candidate, exported for real, beside dense.

        ``name``: says which network it is; a candidate that the store knows is not measured again, so that another
        run on the same rows makes the same plan. ``plan``: as in :meth:`export`.
        """
        shape = "x".join(str(size) for leaf in inputs_of(self.example) for size in leaf.shape[1:])
        signature = store_key("candidate", f"b{self.batch}", shape, name)
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
            # How a file is calibrated does not change its times.
            written = self.export(module, path, plan, LEAST)
            measured = self._compare({"dense": self.dense, "pruned": path}, QUICK)["pruned"]
            return replace(measured, file_bytes=written.size_bytes)

    def final(self, deployed: Path, others: Mapping[str, Path] = MappingProxyType({})) -> dict[str, Measurement]:
        """Latencies of ``dense``, ``pruned`` and ``others`` from one interleaved run of the files to deploy."""
        return self._compare({"dense": self.dense, "pruned": deployed, **others}, FINAL)

    def running(self, path: Path) -> contextlib.AbstractContextManager[Deployed]:
        """The file as the target runs it, called like the network that it was made of."""
        return running(self.target, path, threads=self.threads, batch=self.batch)

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
        try:
            yield self.candidate
        finally:
            self.candidate.unlink(missing_ok=True)


def inputs_of(example: Any) -> list[Tensor]:
    """Every tensor with a batch dimension in an example."""
    return [leaf for leaf in pytree.tree_leaves(example) if isinstance(leaf, Tensor) and leaf.dim() > 0]


def random_samples(example: Any, count: int, seed: int = 0) -> list[Any]:
    """``count`` samples of the example's kind in batches of its own size, floats drawn from a normal distribution."""
    args, kwargs = as_arguments(example)
    generator = torch.Generator().manual_seed(seed)

    def redraw(tensor: Tensor) -> Tensor:
        return torch.randn(tensor.shape, generator=generator) if tensor.is_floating_point() else tensor

    size = next((len(leaf) for leaf in inputs_of(example)), 1)
    return [[pytree.tree_map_only(Tensor, redraw, (args, kwargs))] for _ in range(-(-count // size))]
