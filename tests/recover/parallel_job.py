"""Fine-tuning as one of several processes.

torchrun --nproc-per-node 2 parallel_job.py RESULT CHECKPOINTS      (or alone, without torchrun)
"""

from __future__ import annotations

import sys
from pathlib import Path

import small_job
import torch
from safetensors.torch import save_file
from torch import nn

from secateurs.recover import parallel
from secateurs.recover.finetune import finetune
from secateurs.recover.recipe import Recipe

RECIPE = Recipe(epochs=2, lr=0.05, batch=16, precision="fp32", layout="contiguous", augment=False, seed=3)


def network() -> nn.Module:
    """Without dropout and batch norm, whose results depend on how a batch is divided."""
    torch.manual_seed(5 + parallel.rank())
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 3))


def main(result: Path, checkpoints: Path) -> None:
    torch.set_num_threads(1)
    parallel.start()
    module = network()
    finetune(module, small_job.data(), RECIPE, checkpoint_dir=checkpoints)
    named = result.with_name(f"{result.stem}{parallel.rank()}.safetensors")
    save_file({key: value.contiguous() for key, value in module.state_dict().items()}, named)
    parallel.wait()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
