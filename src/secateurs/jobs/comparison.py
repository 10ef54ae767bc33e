"""Networks on the test and the validation images, and how two of them are compared, image by image."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from secateurs.data import Data, Images, Samples, Scored, evaluate
from secateurs.data.calls import called
from secateurs.data.nests import filled, leaves
from secateurs.data.tasks.meters import standard_error as by_blocks
from secateurs.files import Scratch
from secateurs.jobs.run_folder import RunFolder
from secateurs.jobs.training import Trainer
from secateurs.measure.bench import Bench
from secateurs.plan import Plan
from secateurs.progress import Progress, silent
from secateurs.provenance import digest
from secateurs.recover import checkpoint
from secateurs.report.record import ValidationStep
from secateurs.search.rows import FileRows
from secateurs.structure import apply


@dataclass(frozen=True)
class Validated:
    """A network on the validation images: accuracy (0-1) or the task's metric, and what :func:`told` says of it."""

    accuracy: float
    correct: str

    @classmethod
    def of(cls, found: Scored) -> Validated:
        """The same, of all figures of one pass."""
        return cls(found.value, told(found))


@dataclass(frozen=True)
class Difference:
    """Of two networks on the same images: ``second - first``, its standard error (paired, as McNemar's test has it, or
    by leaving out blocks of samples; None: not known), and whether it is within two of them."""

    value: float
    error: float | None

    @property
    def tie(self) -> bool:
        """Whether the images do not tell the two apart."""
        return self.error is not None and abs(self.value) <= 2 * self.error + 1e-12


_PARTS = "parts:"


def told(found: Scored) -> str:
    """What a network's figures say of its difference to another's, as text for the run folder.

    Of a classifier which images are right, of others the metric with each block of samples left out.
    """
    if found.answers is not None:
        return packed(found.correct)
    return _PARTS + ",".join(map(repr, found.parts))


def packed(correct: Tensor) -> str:
    """Which images were right, bool [images], as text for the run folder."""
    return bytes(np.packbits(correct.numpy())).hex()


def unpacked(text: str, images: int) -> np.ndarray:
    """What :func:`packed` was given."""
    return np.unpackbits(np.frombuffer(bytes.fromhex(text), dtype=np.uint8))[:images].astype(bool)


@dataclass(frozen=True)
class OnSamples:
    """A network on so many samples: the metric's ``value``, and ``text`` of :func:`told`."""

    value: float
    text: str
    samples: int

    @property
    def _parts(self) -> tuple[float, ...] | None:
        """The metric with each block left out; None of a classifier."""
        if not self.text.startswith(_PARTS):
            return None
        return tuple(float(one) for one in self.text.removeprefix(_PARTS).split(",") if one)

    @property
    def error(self) -> float | None:
        """The standard error of the value, None where it is not known."""
        return standard_error(self.value, self.samples) if self._parts is None else by_blocks(self._parts)

    def against(self, other: OnSamples) -> Difference:
        """This one's value less the other's, on the same samples."""
        mine, theirs = self._parts, other._parts
        if mine is None or theirs is None:
            return difference(unpacked(other.text, self.samples), unpacked(self.text, self.samples))
        same = len(mine) == len(theirs)
        apart = tuple(a - b for a, b in zip(mine, theirs, strict=True)) if same else ()
        return Difference(self.value - other.value, by_blocks(apart))


def difference(first: np.ndarray, second: np.ndarray) -> Difference:
    """How two networks differ on the same images, bool [images] each."""
    lost, won, count = int((first & ~second).sum()), int((second & ~first).sum()), len(first)
    variance = (lost + won) / count - ((won - lost) / count) ** 2
    return Difference((won - lost) / count, float(np.sqrt(max(0.0, variance) / count)))


def standard_error(accuracy: float, images: int) -> float:
    """Of an accuracy on so many images."""
    return float(np.sqrt(accuracy * (1 - accuracy) / images))


def deployed_on_test_images(
    bench: Bench, file: Path, data: Data, progress: Progress, like: nn.Module | None = None
) -> Scored:
    """A file on the test images, as the target runs it; ``like``: the network whose outputs' form the file lost.

    Raises:
        TargetError: the runtime refuses the file or fails.
    """
    return _deployed(bench, file, data.test, data, progress, like)


def on_test_images(module: nn.Module, data: Data, progress: Progress) -> Scored:
    """A network on the test images."""
    return evaluate(module, data.test, data.task, progress=progress)


def validated_file(bench: Bench, file: Path, data: Data, like: nn.Module | None = None) -> Validated:
    """A file on the validation images, as the target runs it; ``like``: as of :func:`deployed_on_test_images`."""
    return Validated.of(_deployed(bench, file, data.validation, data, silent, like))


class _Shaped(nn.Module):
    """A deployed file that answers in the nest that the network had, which a file does not keep."""

    def __init__(self, network: nn.Module, template: Any) -> None:
        super().__init__()
        self._network, self._template = network, template

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The file's outputs in that form."""
        return filled(self._template, [tensor for _, tensor in leaves(self._network(*args, **kwargs))])


def _answers(module: nn.Module, images: Images | Samples, data: Data) -> Any:
    """What a network answers to one sample."""
    held = {child: child.training for child in module.modules()}
    module.eval()
    try:
        with torch.no_grad():
            return called(module, data.task.called_with(images.batch(np.arange(1))))
    finally:
        for child, training in held.items():
            child.training = training


def _deployed(
    bench: Bench, file: Path, images: Images | Samples, data: Data, progress: Progress, like: nn.Module | None
) -> Scored:
    with bench.running(file) as running:
        network: nn.Module = running
        if data.asked is not None and like is not None:
            network = _Shaped(running, _answers(like, images, data))
        batch = max(64, bench.batch) if data.asked is None else None
        return evaluate(network, images, data.task, batch=batch, progress=progress)


@dataclass(frozen=True, kw_only=True)
class WithinFound:
    """How the fastest network within a loss was found, on so many validation images (``samples``): the accuracy that
    must stay, the dense network's, and every network that was tried."""

    samples: int
    least: float
    dense: Validated
    steps: tuple[ValidationStep, ...]


@dataclass(frozen=True)
class RepairedAccuracies:
    """How good networks are on the validation images once they are cut and repaired, as the target runs them.

    Every figure is computed once and kept in the run's folder, so that a killed run computes none again.
    """

    trainer: Trainer
    bench: Bench
    folder: RunFolder

    @cached_property
    def dense(self) -> Validated:
        """The dense network."""

        def judged() -> Validated:
            with self.folder.timed("recover"), self.trainer.progress.task("dense network on validation images"):
                data = self.trainer.data
                if self.bench.quantises:
                    return validated_file(self.bench, self.bench.dense, data, self.trainer.dense)
                return Validated.of(evaluate(self.trainer.dense, data.validation, data.task))

        return self.folder.stage("validation", Validated, judged)

    def of(self, plan: Plan) -> float:
        """The accuracy (0-1) of the network that ``plan`` leaves, repaired; where the target runs quantised files, that
        of its file.

        Raises:
            ExportError: it cannot be quantised.
            TargetError: the runtime refuses the file or fails.
        """
        decided = {"groups", "blocks_removed", *(["precision"] if plan.precision else [])}
        key = f"repaired/{self._identity}/{digest(plan.model_dump_json(include=decided), 16)}"
        held = self._rows.get(key)
        if held is None:
            with self.folder.timed("recover"):
                held = {"accuracy": self._repaired(plan).accuracy}
            self._rows.put(key, held)
        return float(held["accuracy"])

    def _repaired(self, plan: Plan) -> Validated:
        trainer = replace(self.trainer, progress=silent)
        small = apply(trainer.dense, plan, trainer.example, check=False).eval()
        trainer.mend(small, plan)
        return self.judged(small, plan)

    def judged(self, small: nn.Module, plan: Plan) -> Validated:
        """A network that was cut by ``plan``, as it is."""
        data = self.trainer.data
        if not self.bench.quantises:
            return Validated.of(evaluate(small, data.validation, data.task))
        with Scratch("validated") as folder:
            file = Path(folder) / f"network.{self.bench.target.artifact}"
            self.bench.export(small, file, plan)
            return validated_file(self.bench, file, data, self.trainer.dense)

    @cached_property
    def _rows(self) -> FileRows:
        return FileRows(self.folder.files.repairs)

    @cached_property
    def _identity(self) -> str:
        """Names everything but the cut that an accuracy depends on."""
        settings, data = self.trainer.settings, self.trainer.data
        runtime = self.bench.target.fingerprint(settings.threads) if self.bench.quantises else None
        facts = (data.name, len(data.validation), settings.repair, settings.seed, runtime, *data.task.identity)
        return digest(f"{checkpoint.digest(self.trainer.dense)} {facts}", 16)
