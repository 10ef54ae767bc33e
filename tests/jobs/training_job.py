"""A tiny run: its network and its images; and its training as one of two processes, where the first trains a cut
network, then uncut ones under masks.

python training_job.py FOLDER        with torchrun's environment
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from secateurs.data import Data, Images
from secateurs.data.datasets import TensorSource
from secateurs.importance.dynamic import Dynamics
from secateurs.jobs.settings import Settings
from secateurs.jobs.training import Trainer
from secateurs.models import Loaded, Preprocessing
from secateurs.models.cifar_resnet import CifarResNet
from secateurs.recover import parallel
from secateurs.recover.schedules.regrow import PruneRegrow
from secateurs.recover.schedules.soft import SoftMasks
from secateurs.structure import apply, trace


def network() -> Loaded:
    """Three residual blocks for 16 x 16 images."""
    torch.manual_seed(3)
    return Loaded(CifarResNet(8, classes=4).eval(), "tiny", (3, 16, 16), Preprocessing(), (4,))


def images() -> Data:
    """Random images whose class is their brightness."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(160) % 4
    inputs = torch.randn(160, 3, 16, 16, generator=generator) + labels[:, None, None, None]
    source = TensorSource(inputs, labels.numpy())

    def part(first: int, last: int, name: str) -> Images:
        return Images(source, np.arange(first, last), Preprocessing(), name=name)

    return Data(part(0, 96, "train"), part(0, 32, "calibration"), part(96, 128, "validation"), part(128, 160, "test"))


def halves(scores: Mapping[str, np.ndarray]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(range(len(found) // 2)) for name, found in scores.items()}


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    parallel.start()
    module, example = network().module, network().example()
    given = {"train_batch": 16, "precision": "fp32", "features": 0.5, "lr": 0.01, "quantise_aware": True}
    settings = Settings(latency="60%", target="onnxruntime-cpu:int8", **given)  # type: ignore[arg-type]
    trainer = Trainer(module, example, images(), settings, folder / "checkpoints", most=lambda: 63)
    if parallel.rank() > 0:
        assert trainer.assist() == "over"
        return
    graph = trace(module, example)
    plan = graph.plan({group.name: tuple(range(0, group.units, 2)) for group in graph.groups})
    small = apply(module, plan, example)
    trainer.train(small, "cut", 1, plan)
    masks, wide = SoftMasks(graph, halves, interval=2), copy.deepcopy(module)
    trainer.train(wide, "soft", 1, masks=masks)
    widths = {group.name: max(1, group.units // 2) for group in graph.groups}
    regrown = PruneRegrow(graph, widths, Dynamics(graph), rounds=2, interval=2)
    trainer.train(copy.deepcopy(module), "regrow", 1, masks=regrown)
    trainer.dismiss("over")
    assert all(len(regrown.kept[name]) == width for name, width in widths.items())
    assert all(len(units) == masks.units[name] // 2 for name, units in masks.kept.items())
    save_file(dict(small.state_dict()), folder / "small.safetensors")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
