"""The stages that give a cut network its accuracy back: repair, fine-tuning, and dense fine-tuned equally beside it."""

from __future__ import annotations

from dataclasses import dataclass

from safetensors.torch import load_file, save
from torch import nn

from secateurs.data import Data, Scored, evaluate
from secateurs.jobs.comparison import on_test_images, told
from secateurs.jobs.plan_stage import PlanFound
from secateurs.jobs.run_folder import RunFolder
from secateurs.jobs.settings import Settings
from secateurs.jobs.training import Trainer, epochs_before
from secateurs.plan import Plan
from secateurs.progress import Progress
from secateurs.recover.amount import too_few
from secateurs.recover.checkpoint import tensors
from secateurs.recover.finetune import Epoch, Finetuned
from secateurs.report.wording import duration
from secateurs.structure.copies import deep_copy

CHEAP_S = 180.0
"""The dense network is trained equally without being asked where that takes no longer than this, by estimate."""
_FORWARDS_OF_A_STEP = 3
"""A training step costs as much as so many forwards, and the teacher's comes on top."""


@dataclass(frozen=True, kw_only=True)
class RepairFound:
    """Accuracy on the test images before and after the repair, which of them are right after it (as text), and what was
    done in words. The last two have no value in runs of older versions."""

    accuracy_cut: float
    accuracy_recalibrated: float
    correct: str = ""
    repaired_by: str = ""
    repair_notes: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class FinetuneFound:
    """What fine-tuning came to. ``correct``: as in :class:`RepairFound`, ``kept``: ``tuned``, ``repaired`` where that
    network is better, or "" where there was no training after the cut; ``tuned_epochs``: as many."""

    accuracy: float
    correct: str = ""
    kept: str = ""
    tuned_epochs: int = 0
    tune_notes: tuple[str, ...]
    train_mode: str = ""
    history: tuple[Epoch, ...] = ()


@dataclass(frozen=True)
class EquallyTuned:
    """The dense network after ``epochs`` of fine-tuning, on the test images."""

    epochs: int
    accuracy: float
    correct: str


@dataclass(frozen=True, kw_only=True)
class DenseTunedFound:
    """That network, or why there is none."""

    dense_tuned: EquallyTuned | None = None
    dense_notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Recovery:
    """The stages between plan and deployment."""

    trainer: Trainer
    data: Data
    settings: Settings
    folder: RunFolder
    progress: Progress

    def repair(self, small: nn.Module, plan: Plan) -> RepairFound:
        """Refitted weights and re-estimated statistics, and the accuracy before and after."""
        cut = self._tested(small)
        with self.folder.timed("recover"):
            how, notes = self.trainer.mend(small, plan)
        self.folder.write(self.folder.files.repaired, save(tensors(small)))
        repaired = self._tested(small) if how else cut
        return RepairFound(
            accuracy_cut=cut.value,
            accuracy_recalibrated=repaired.value,
            correct=told(repaired),
            repaired_by=how,
            repair_notes=tuple(notes),
        )

    def tune(self, small: nn.Module, plan: Plan, repaired: RepairFound) -> FinetuneFound:
        """Fine-tuning of the repaired network (in place) with the dense one as teacher; a finished one is restored from
        its last checkpoint."""
        small.load_state_dict(load_file(self.folder.files.repaired))
        before = epochs_before(self.settings)
        epochs = self.settings.training[0] - before
        if epochs == 0:
            note = f"All {before} epochs came before the cut." if before else "No fine-tuning was done (--epochs 0)."
            notes = (note, *few_steps(self.settings, self.data))
            return FinetuneFound(accuracy=repaired.accuracy_recalibrated, correct=repaired.correct, tune_notes=notes)
        untrained = deep_copy(small, {})
        with self.folder.timed("finetune"):
            tuned = self.trainer.train(small, "", epochs, plan)
        found = self.folder.stage("finetune", FinetuneFound, lambda: self._tuned(small, untrained, tuned))
        if found.kept == "repaired":
            small.load_state_dict(untrained.state_dict())
        return found

    def _tuned(self, small: nn.Module, repaired: nn.Module, tuned: Finetuned) -> FinetuneFound:
        """What fine-tuning came to; the network that does better on the validation images stays: by accuracy, then by
        loss."""
        notes, worse = list(few_steps(self.settings, self.data)), False
        if not self.settings.penalty:  # under which elements go while the network is trained
            metric, count = self.data.task.measured, len(self.data.validation)
            before, after = self._validated(repaired).value, tuned.epochs[-1].validation_accuracy
            gain = metric.gain(before, after)
            worse = gain < 0 or (gain == 0 and self._validated(repaired).loss < self._validated(small).loss)
            told_of = f"{count} validation {self.data.samples}"
            notes.append(_chosen(metric.said(before), metric.said(after), told_of, worse=worse))
        kept = self._tested(repaired if worse else small)
        return FinetuneFound(
            accuracy=kept.value,
            correct=told(kept),
            kept="repaired" if worse else "tuned",
            tuned_epochs=len(tuned.epochs),
            tune_notes=tuple(notes),
            train_mode=str(tuned.mode),
            history=tuned.epochs,
        )

    def _tested(self, module: nn.Module) -> Scored:
        return on_test_images(module, self.data, self.progress)

    def _validated(self, module: nn.Module) -> Scored:
        """On the validation images, where the loss decides between equal accuracies."""
        return evaluate(module, self.data.validation, self.data.task, progress=self.progress)

    def dense_tuned(self, planned: PlanFound, seconds: float) -> DenseTunedFound:
        """The dense network fine-tuned as the pruned one was, where that is wanted or cheap; or why it was not.

        ``settings.dense_epochs`` says for how long; None: as long as the pruned one, where that is cheap.

        Args:
            planned: says how much of the network is left.
            seconds: that training took in the run.
        """
        with self.folder.timed("dense_finetune"):
            return self._dense_tuned(planned, seconds)

    def _dense_tuned(self, planned: PlanFound, seconds: float) -> DenseTunedFound:
        wanted, epochs = self.settings.dense_epochs, self.settings.training[0]
        tuned_for, epochs = max(1, epochs), epochs if wanted is None else wanted
        if epochs == 0:
            return DenseTunedFound()
        estimate = seconds * _more_work(planned.macs / max(1, planned.dense_macs)) * epochs / tuned_for
        if wanted is None and estimate > CHEAP_S:
            note = (
                f"The dense network was not fine-tuned equally, which would take some {duration(estimate)}: "
                f"--dense-epochs {epochs} does it. The pruned network is compared with the untouched one."
            )
            return DenseTunedFound(dense_notes=(note,))
        module, s = deep_copy(self.trainer.dense, {}), "s" if epochs != 1 else ""
        self.progress.say(f"The dense network is fine-tuned for {epochs} epoch{s}, to compare with.")
        self.trainer.train(module, "dense", epochs)
        found = self._tested(module)
        return DenseTunedFound(dense_tuned=EquallyTuned(epochs, found.value, told(found)))


def few_steps(settings: Settings, data: Data) -> tuple[str, ...]:
    """What is to be said where fine-tuning has few steps."""
    epochs, batch = settings.training
    return too_few(epochs, len(data.train), batch)


def _more_work(kept: float) -> float:
    """How many times the work of a training step is the dense network's, where the pruned one keeps this share."""
    return (1 + _FORWARDS_OF_A_STEP) / (1 + _FORWARDS_OF_A_STEP * kept)


def _chosen(before: str, after: str, images: str, *, worse: bool) -> str:
    """Which network was kept after fine-tuning, and why."""
    equal = ", and a lower loss" if before == after else ""
    found = f"{after} after it, {before} before it on {images}"
    if worse:
        return (
            f"Fine-tuning ended below the repaired network ({found}{equal}), so that one was kept and the training "
            f"thrown away. Give more --epochs, or another --lr."
        )
    return f"The network was kept as fine-tuning left it: {found}{equal}."
