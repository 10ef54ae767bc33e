"""Networks on the test and the validation images, and how two of them are compared, image by image."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from torch import Tensor, nn

from secateurs.data import Data, Images, Scored, evaluate
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
    """A network on the validation images: accuracy (0-1), and which of them it gets right, as text."""

    accuracy: float
    correct: str

    @classmethod
    def of(cls, found: Scored) -> Validated:
        """The same, of all figures of one pass."""
        return cls(found.top1, packed(found.correct))


@dataclass(frozen=True)
class Difference:
    """Of two accuracies on the same images: ``second - first``, its standard error (paired, as McNemar's test has it),
    and whether it is within two of them."""

    value: float
    error: float

    @property
    def tie(self) -> bool:
        """Whether the images do not tell the two apart."""
        return abs(self.value) <= 2 * self.error + 1e-12


def packed(correct: Tensor) -> str:
    """Which images were right, bool [images], as text for the run folder."""
    return bytes(np.packbits(correct.numpy())).hex()


def unpacked(text: str, images: int) -> np.ndarray:
    """What :func:`packed` was given."""
    return np.unpackbits(np.frombuffer(bytes.fromhex(text), dtype=np.uint8))[:images].astype(bool)


def difference(first: np.ndarray, second: np.ndarray) -> Difference:
    """How two networks differ on the same images, bool [images] each."""
    lost, won, count = int((first & ~second).sum()), int((second & ~first).sum()), len(first)
    variance = (lost + won) / count - ((won - lost) / count) ** 2
    return Difference((won - lost) / count, float(np.sqrt(max(0.0, variance) / count)))


def standard_error(accuracy: float, images: int) -> float:
    """Of an accuracy on so many images."""
    return float(np.sqrt(accuracy * (1 - accuracy) / images))


def deployed_on_test_images(bench: Bench, file: Path, data: Data, progress: Progress) -> Scored:
    """A file on the test images, as the target runs it.

    Raises:
        TargetError: the runtime refuses the file or fails.
    """
    return _deployed(bench, file, data.test, data, progress)


def on_test_images(module: nn.Module, data: Data, progress: Progress) -> Scored:
    """A network on the test images."""
    return evaluate(module, data.test, classes=data.classes, progress=progress)


def validated_file(bench: Bench, file: Path, data: Data) -> Validated:
    """A file on the validation images, as the target runs it."""
    return Validated.of(_deployed(bench, file, data.validation, data, silent))


def _deployed(bench: Bench, file: Path, images: Images, data: Data, progress: Progress) -> Scored:
    with bench.running(file) as network:
        return evaluate(network, images, classes=data.classes, batch=max(64, bench.batch), progress=progress)


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
                    return validated_file(self.bench, self.bench.dense, data)
                return Validated.of(evaluate(self.trainer.dense, data.validation, classes=data.classes))

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
            return Validated.of(evaluate(small, data.validation, classes=data.classes))
        with Scratch("validated") as folder:
            file = Path(folder) / f"network.{self.bench.target.artifact}"
            self.bench.export(small, file, plan)
            return validated_file(self.bench, file, data)

    @cached_property
    def _rows(self) -> FileRows:
        return FileRows(self.folder.files.repairs)

    @cached_property
    def _identity(self) -> str:
        """Names everything but the cut that an accuracy depends on."""
        settings, data = self.trainer.settings, self.trainer.data
        runtime = self.bench.target.fingerprint(settings.threads) if self.bench.quantises else None
        facts = (data.name, len(data.validation), settings.repair, settings.seed, runtime)
        return digest(f"{checkpoint.digest(self.trainer.dense)} {facts}", 16)
