"""Repair, fine-tuning, and dense fine-tuned equally beside it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import training_job
from torch import nn

from secateurs.data import Images, Scored
from secateurs.errors import PlanError
from secateurs.jobs import recovery
from secateurs.jobs.comparison import standard_error
from secateurs.jobs.entry import Place, run
from secateurs.jobs.settings import Settings
from secateurs.jobs.training import Trainer
from secateurs.report import Record

pytestmark = pytest.mark.usefixtures("few_samples")


def settings(fake_target: str) -> Settings:
    return Settings(
        latency="60%",
        target=fake_target,
        train_batch=16,
        criterion="taylor",
        precision="fp32",
        allow_chance=True,
        epochs=2,
    )


def done(fake_target: str, place: Path, **more: object) -> Record:
    chosen = replace(settings(fake_target), **more)  # type: ignore[arg-type]
    where = Place(place, store=place.parent / "store")
    return run(training_job.network(), training_job.images(), chosen, where).record


def test_dense_is_trained_equally_where_that_is_cheap(
    fake_target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, trained = Trainer.train, []

    def train(self: Trainer, student: nn.Module, name: str, epochs: int, *more: object) -> object:
        trained.append((name, epochs, sum(p.numel() for p in student.parameters())))
        return real(self, student, name, epochs, *more)  # type: ignore[arg-type]

    monkeypatch.setattr(Trainer, "train", train)
    record = done(fake_target, tmp_path / "run")
    assert trained == [("", 2, record.pruned.params), ("dense", 2, record.dense.params)]
    tuned, test = record.dense_finetuned, record.test
    assert tuned is not None
    assert test is not None
    assert tuned.epochs == record.epochs == 2
    assert tuned.difference == pytest.approx(record.pruned.accuracy - tuned.accuracy)
    assert test.samples == 32
    assert test.difference == pytest.approx(record.pruned.accuracy - record.dense.accuracy)
    assert test.standard_error == pytest.approx(standard_error(record.pruned.accuracy, 32))
    assert record.seconds.dense_finetune > 0
    assert record.pruned.repaired_by
    assert record.kept in ("tuned", "repaired")
    assert record.tuned_epochs == 2
    assert Record.load(tmp_path / "run" / "result.json") == record


def test_not_where_it_is_dear_or_unwanted(fake_target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert done(fake_target, tmp_path / "none", dense_epochs=0).dense_finetuned is None
    untrained = done(fake_target, tmp_path / "untrained", epochs=0)
    assert untrained.dense_finetuned is None
    assert (untrained.kept, untrained.tuned_epochs) == ("", 0)
    monkeypatch.setattr(recovery, "CHEAP_S", 0.0)
    dear = done(fake_target, tmp_path / "dear")
    assert dear.dense_finetuned is None
    assert any("--dense-epochs 2" in note for note in dear.notes)
    asked = done(fake_target, tmp_path / "asked", dense_epochs=1).dense_finetuned
    assert asked is not None
    assert asked.epochs == 1
    with pytest.raises(PlanError, match="dense_epochs is -1"):
        Settings(latency="60%", dense_epochs=-1)


def test_the_dense_network_itself_stays_untouched(fake_target: str, tmp_path: Path) -> None:
    settings = Settings(
        latency="60%", target=fake_target, criterion="l2", precision="fp32", allow_chance=True, epochs=1
    )
    network = training_job.network()
    before = {name: tensor.clone() for name, tensor in network.module.state_dict().items()}
    run(network, training_job.images(), settings, Place(tmp_path / "run", store=tmp_path / "store"))
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.module.state_dict().items())


def test_the_repaired_network_is_kept_where_training_made_it_worse(
    fake_target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = recovery.evaluate

    def favours_untrained(module: nn.Module, images: Images, *more: Any, **others: Any) -> Scored:
        found = real(module, images, *more, **others)
        return replace(found, value=1.0) if images.name == "validation" else found

    monkeypatch.setattr(recovery, "evaluate", favours_untrained)
    chosen = replace(settings(fake_target), lr=1e-9, epochs=1)
    done = run(training_job.network(), training_job.images(), chosen, Place(tmp_path / "run", store=tmp_path / "store"))
    assert any("that one was kept" in note for note in done.record.notes)
    assert done.record.pruned.accuracy == done.record.pruned.accuracy_recalibrated
    assert done.record.settings["schedule"] == "once"
