"""Networks with pruned kernel elements inside a worker process, on the sparse convolution. Needs secateurs and torch.

A file is what the engine of the target ``torch-cpu`` takes. When it is loaded, its convolutions are packed from where
their weights are not zero; the compiled kernels run them, and everything else is PyTorch's.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import torch

from secateurs.elements import native
from secateurs.elements.convert import convert
from secateurs.elements.runner import Runner

_ENGINES = Path(__file__).resolve().parent
_specification = importlib.util.spec_from_file_location("secateurs_py_torch", _ENGINES / "py_torch.py")
assert _specification is not None
assert _specification.loader is not None
py_torch = importlib.util.module_from_spec(_specification)
_specification.loader.exec_module(py_torch)


def describe() -> dict[str, Any]:
    """Runtime name and version."""
    return {"runtime": f"torch {torch.__version__} with sparse kernels ({native.require().isa})"}


class Session:
    """One network, converted, with its input."""

    def __init__(self, path: str, settings: dict[str, Any]) -> None:
        torch.set_num_threads(int(settings["threads"]))
        program = py_torch.load_module(path)
        self._inputs = py_torch.draw_inputs(program)
        # A loaded program refuses eval(); the same graph in a plain module does not.
        plain = torch.fx.GraphModule(program, program.graph)
        self._run = Runner(convert(plain, self._inputs[0]), self._inputs[0], threads=int(settings["threads"]))

    def run(self) -> None:
        """One inference."""
        self._run(self._inputs[0])


def load(path: str, settings: dict[str, Any]) -> Session:
    """The network at ``path``; settings: ``threads``."""
    return Session(path, settings)
