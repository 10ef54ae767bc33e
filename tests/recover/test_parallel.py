from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import parallel_job
import pytest
import small_job
import torch
from safetensors.torch import load_file
from torch import nn

from secateurs.recover import parallel
from secateurs.recover.finetune import finetune


def _port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_two_processes_train_as_one(tmp_path: Path) -> None:
    if not (torch.distributed.is_available() and torch.distributed.is_gloo_available()):
        pytest.skip("this PyTorch has no Gloo")
    common = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_port()), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, parallel_job.__file__, str(tmp_path / "r.safetensors"), str(tmp_path / "checkpoints")]
    running = [
        subprocess.Popen(command, env={**os.environ, **common, "RANK": str(rank), "LOCAL_RANK": str(rank)})
        for rank in range(2)
    ]
    assert [process.wait(120) for process in running] == [0, 0]
    results = [load_file(tmp_path / f"r{rank}.safetensors") for rank in range(2)]
    torch.manual_seed(5)
    alone = parallel_job.network()
    finetune(alone, small_job.data(), parallel_job.RECIPE)
    start = parallel_job.network().state_dict()
    for name, tensor in alone.state_dict().items():
        assert torch.equal(results[0][name], results[1][name])
        assert torch.allclose(results[0][name], tensor, atol=1e-5)
        assert not torch.allclose(start[name], tensor, atol=1e-3)
    assert (tmp_path / "checkpoints" / "checkpoint.safetensors").is_file()


def test_the_group_of_processes_is_left_before_the_interpreter_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left: list[Callable[[], None]] = []
    monkeypatch.setattr(parallel.atexit, "register", left.append)
    monkeypatch.setenv("WORLD_SIZE", "2")
    meeting = f"file://{tmp_path}/meeting"
    start = partial(torch.distributed.init_process_group, init_method=meeting, rank=0, world_size=1)
    monkeypatch.setattr(torch.distributed, "init_process_group", start)
    assert parallel.start()
    assert torch.distributed.is_initialized()
    (leave,) = left
    for _ in range(2):
        leave()
        assert not torch.distributed.is_initialized()


def test_alone_nothing_is_exchanged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert not parallel.start()
    assert (parallel.rank(), parallel.size()) == (0, 1)
    module = nn.BatchNorm1d(3)
    module.weight.grad = torch.ones(3)
    parallel.average_gradients(module.parameters(), 0.25)
    parallel.average_buffers(module)
    parallel.same_everywhere(module)
    parallel.wait()
    assert torch.equal(module.weight.grad, torch.ones(3))
    assert parallel.total([1.0, 2.0], torch.device("cpu")) == [1.0, 2.0]
    assert parallel.same_text("abc") == "abc"
