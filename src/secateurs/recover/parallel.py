"""Fine-tuning on several processes at once (``torchrun``): every process takes its share of each batch."""

from __future__ import annotations

import atexit
import os
from collections.abc import Iterable, Sequence
from datetime import timedelta

import torch
from torch import Tensor, nn


def start() -> bool:
    """Join the processes that ``torchrun`` started; False where this is the only one.

    Tensors on GPUs go through NCCL where every process of this machine has one; all others through Gloo, which waits
    without spinning, so that processes that wait do not disturb a measurement.
    """
    if not torch.distributed.is_available() or int(os.environ.get("WORLD_SIZE", "1")) < 2:
        return False
    if not torch.distributed.is_initialized():
        local = int(os.environ.get("LOCAL_RANK", "0"))
        enough = torch.cuda.is_available() and torch.cuda.device_count() > local
        if enough:
            torch.cuda.set_device(local)
        # the others wait while the first one profiles and plans
        backend = "cpu:gloo,cuda:nccl" if enough else "gloo"
        torch.distributed.init_process_group(backend, timeout=timedelta(days=7))
        # a thread of Gloo that lets go of a tensor while the interpreter ends would abort the process
        atexit.register(_leave)
    return True


def rank() -> int:
    """This process's number, 0 for the only one."""
    return torch.distributed.get_rank() if _running() else 0


def size() -> int:
    """How many processes take part."""
    return torch.distributed.get_world_size() if _running() else 1


def average_gradients(parameters: Iterable[nn.Parameter], share: float) -> None:
    """Replace every gradient by the mean over all images of the batch.

    ``share``: this process's part of the batch's images; its gradients are means over that part.
    """
    if size() == 1:
        return
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    held = [p.grad if p.grad is not None else torch.zeros_like(p) for p in trained]
    if not held:
        return
    flat = torch.cat([gradient.flatten() for gradient in held]) * share
    torch.distributed.all_reduce(flat)
    for parameter, part in zip(trained, flat.split([gradient.numel() for gradient in held]), strict=True):
        parameter.grad = part.view_as(parameter).clone()


def total(values: Sequence[float], device: torch.device) -> list[float]:
    """Sums over all processes."""
    if size() == 1:
        return list(values)
    held = torch.tensor(values, dtype=torch.float64 if device.type == "cpu" else torch.float32, device=device)
    torch.distributed.all_reduce(held)
    return [float(value) for value in held]


def average_buffers(module: nn.Module) -> None:
    """Replace running statistics by their mean over all processes."""
    if size() == 1:
        return
    for buffer in module.buffers():
        if buffer.is_floating_point():
            torch.distributed.all_reduce(buffer)
            buffer.div_(size())


def same_everywhere(module: nn.Module) -> None:
    """Copy process 0's parameters and buffers to all."""
    if size() == 1:
        return
    for tensor in (*module.parameters(), *module.buffers()):
        held: Tensor = tensor.detach()
        torch.distributed.broadcast(held, 0)


def same_text(text: str) -> str:
    """Process 0's text, on every process."""
    if size() == 1:
        return text
    data = text.encode()
    length = torch.tensor([len(data)], dtype=torch.int64)
    torch.distributed.broadcast(length, 0)
    held = torch.zeros(int(length), dtype=torch.uint8)
    if rank() == 0:
        held.copy_(torch.frombuffer(bytearray(data), dtype=torch.uint8))
    torch.distributed.broadcast(held, 0)
    return held.numpy().tobytes().decode()


def wait() -> None:
    """Until every process is here."""
    if size() > 1:
        torch.distributed.barrier()


def _leave() -> None:
    if _running():
        torch.distributed.destroy_process_group()


def _running() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()
