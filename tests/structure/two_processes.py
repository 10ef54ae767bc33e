"""One of two processes that prune a network in training; run by test_training.py."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch
import torch.distributed
from networks import ResNet, image, plan_of
from torch import nn

from secateurs.errors import PlanError
from secateurs.plan import Plan
from secateurs.structure import agree_on_plan, apply, trace


def main(rank: int, folder: str, fails: bool) -> None:
    """Decide on rank 0, prune everywhere, train one step, write what came out."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    torch.manual_seed(rank)
    model = nn.parallel.DistributedDataParallel(ResNet())

    def decide() -> Plan:
        if fails:
            raise ValueError("no budget")
        return plan_of(trace(model.module, image()), seed=rank)

    try:
        plan = agree_on_plan(decide)
    except (PlanError, ValueError) as error:
        text = f"{type(error).__name__}: {error}"
    else:
        small = nn.parallel.DistributedDataParallel(apply(model.module, plan, image()))
        small(image()).sum().backward()
        text = plan.to_json() + " ".join(f"{float(p.grad.sum()):.5f}" for p in small.parameters())
    Path(folder, f"{rank}.txt").write_text(text)
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], sys.argv[3] == "1")
    # the wrapped model keeps the process group, and so Gloo's threads, beyond destroy_process_group(); one that lets go
    # of a tensor while the interpreter ends aborts the process
    os._exit(0)
