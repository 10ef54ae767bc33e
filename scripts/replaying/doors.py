"""The doors to the package under test: its checkout, its command line, its plug-ins, its clock."""

from __future__ import annotations

import contextlib
import functools
import io
import os
import random
import runpy
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import onnx
import torch
from onnx import numpy_helper

ROOT = Path(__file__).resolve().parents[2]
_TICK = 1e-6
_PLUGINS = "\n".join(
    ("[secateurs.targets]", *(f"{name} = replaying.doors:{name.replace('-', '_')}" for name in ("fake", "fake-sparse")))
)


def use_checkout(root: Path = ROOT) -> None:
    """Import the package from this checkout, whatever else is installed; to be called before it is imported.

    An editable install puts a finder before the search path; it is taken out here.
    """
    sys.meta_path[:] = [found for found in sys.meta_path if "secateurs" not in getattr(found, "known_packages", ())]
    sys.path.insert(0, str(root / "src"))
    import secateurs

    if not Path(secateurs.__file__).is_relative_to(root):
        raise SystemExit(
            f"replay: secateurs comes from {secateurs.__file__}, not from {root}. Run it in a fresh process."
        )


@contextlib.contextmanager
def prepared(folder: Path, store: Path) -> Iterator[None]:
    """Inside, the working folder is ``folder``, measurements go to ``store``, and nothing depends on clock or width."""
    before, variables = Path.cwd(), dict(os.environ)
    with _plugins(), _slow_clock(), _operators_once():
        os.environ |= {"SECATEURS_STORE": str(store), "COLUMNS": "100", "LINES": "50", "TERM": "dumb", "NO_COLOR": "1"}
        torch.set_num_threads(1)
        os.chdir(folder)
        try:
            yield
        finally:
            os.chdir(before)
            os.environ.clear()
            os.environ |= variables


@contextlib.contextmanager
def _plugins() -> Iterator[None]:
    """Targets ``fake`` and ``fake-sparse``, registered as an installed package would register them."""
    with tempfile.TemporaryDirectory(prefix="replay-plugins-") as name:
        described = Path(name) / "replay_targets-0.dist-info"
        described.mkdir()
        (described / "METADATA").write_text("Metadata-Version: 2.1\nName: replay-targets\nVersion: 0\n")
        (described / "entry_points.txt").write_text(_PLUGINS + "\n")
        sys.path.insert(0, name)
        try:
            yield
        finally:
            sys.path.remove(name)


@contextlib.contextmanager
def _operators_once() -> Iterator[None]:
    """PyTorch's exporter reads its operators from source at every export, half of what a small one takes: here once."""
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(ImportError, AttributeError):  # private: where it is gone, exports are slow again
            from torch.onnx._internal.exporter._registration import ONNXRegistry

            once = staticmethod(functools.cache(ONNXRegistry.from_torchlib))
            stack.enter_context(mock.patch.object(ONNXRegistry, "from_torchlib", once))
        yield


@contextlib.contextmanager
def _slow_clock() -> Iterator[None]:
    """A clock that moves by a microsecond whenever it is looked at.

    Two things in the package depend on time: which number format trains fastest, and when a search or a profile that
    takes long ends early. On this clock the first is always the same and the second never happens.
    """
    real, now = (time.perf_counter, time.monotonic), [1000.0]

    def tick() -> float:
        now[0] += _TICK
        return now[0]

    time.perf_counter = time.monotonic = tick
    try:
        yield
    finally:
        time.perf_counter, time.monotonic = real


stops_after: list[int | None] = [None]
"""How many files a fake target loads before it behaves as if Ctrl-C were pressed; None: all."""


def fake() -> Any:
    """A target that takes 5 µs per layer and 20 ns per weight that is not zero, output channels in steps of 4."""
    from secateurs.testing.latency import FakeTarget

    return FakeTarget(_costs, base_ms=0.02, memory=lambda content: 2 * len(content), fail_after=stops_after[0])


def fake_sparse() -> Any:
    """The same, and it claims to leave out kernel elements that are zero."""
    target = fake()
    target.name, target.skips_pruned_elements = "fake-sparse", True
    return target


def _costs(content: bytes) -> dict[str, float]:
    graph = onnx.load_model_from_string(content).graph
    weights = {tensor.name: tensor for tensor in graph.initializer}
    costs = {}
    for node in graph.node:
        if node.op_type not in ("Conv", "ConvTranspose", "Gemm", "MatMul"):
            continue
        tensor = weights.get(node.input[1])
        count = 0 if tensor is None else int(np.count_nonzero(numpy_helper.to_array(tensor)))
        outputs = 4 if tensor is None else tensor.dims[0]
        costs[node.output[0]] = 0.005 + 2e-5 * count * (-(-outputs // 4) * 4 / outputs)
    return costs


@dataclass(frozen=True)
class Said:
    """What a command said: exit code, standard output, and the error's paragraph."""

    code: int
    output: str
    error: str


def call(*words: str) -> Said:
    """``python -m secateurs WORDS`` in this process."""
    torch.manual_seed(0)
    np.random.seed(0)
    random.seed(0)
    output, talk, arguments = io.StringIO(), io.StringIO(), sys.argv
    sys.argv = ["secateurs", *words]
    code = 0
    try:
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(talk):
            runpy.run_module("secateurs", run_name="__main__", alter_sys=True)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    finally:
        sys.argv = arguments
    lines = talk.getvalue().strip().splitlines()
    return Said(code, output.getvalue(), "" if code == 0 or not lines else lines[-1])
