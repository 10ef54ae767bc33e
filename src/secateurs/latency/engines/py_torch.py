"""PyTorch inside a worker process. Self-contained: torch only.

A file is an exported program (``.pt2``), or a JSON patch ``{"base": program, "slices", "constants", "bypassed"}`` that
makes a narrower network of one: parameters are sliced, integer arguments replaced, removed blocks rewired.
"""

from __future__ import annotations

import contextlib
import copy
import ctypes
import json
import time
import warnings
from typing import Any

import torch

warnings.simplefilter("ignore")
_BASES: dict[str, torch.fx.GraphModule] = {}
_MALLOPT = ((-3, 32 << 20), (-1, 1 << 30))
"""glibc's M_MMAP_THRESHOLD (this is its largest) and M_TRIM_THRESHOLD in bytes."""


def keep_memory() -> None:
    """Ask the C library to keep freed memory, as jemalloc and tcmalloc do; nothing where it is not glibc.

    By default glibc hands large blocks back to the system depending on what the process did before, and fetches them
    again page by page: the same network then takes 14 ms in one process and 17 ms in another.
    """
    with contextlib.suppress(OSError, AttributeError, TypeError):
        mallopt = ctypes.CDLL(None).mallopt
        for option, value in _MALLOPT:
            mallopt(option, value)


keep_memory()


def describe() -> dict[str, Any]:
    """Runtime name and version."""
    return {"runtime": f"torch {torch.__version__}"}


def _program(path: str) -> torch.fx.GraphModule:
    return torch.export.load(path).module(check_guards=False)


def _attribute(module: torch.nn.Module, name: str) -> Any:
    owner, _, leaf = name.rpartition(".")
    return getattr(module.get_submodule(owner), leaf)


def _patched(patch: dict[str, Any]) -> torch.fx.GraphModule:
    """The base program at the patch's widths."""
    base = _BASES.get(patch["base"])
    if base is None:
        base = _BASES[patch["base"]] = _program(patch["base"])
    graph = copy.deepcopy(base.graph)
    tensors: dict[str, Any] = {}
    nodes = {node.name: node for node in graph.nodes}
    for gone, instead in patch["bypassed"].items():
        nodes[gone].replace_all_uses_with(nodes[instead])
    for name, changes in patch["constants"].items():
        if name in nodes:
            _set_arguments(nodes[name], changes)
    # In-place operators count as impure, and would keep the branch of a removed block alive.
    graph.eliminate_dead_code(lambda node: node.op in ("placeholder", "output"))
    for node in graph.nodes:
        if node.op == "get_attr" and node.target not in tensors:
            tensors[node.target] = _sliced(_attribute(base, node.target), patch["slices"].get(node.target, {}))
    return torch.fx.GraphModule(tensors, graph)


def _sliced(tensor: Any, slices: dict[str, Any]) -> Any:
    if not slices:
        return tensor
    for dim, kept in slices.items():
        if isinstance(kept, dict):
            tensor = tensor.narrow(int(dim), kept["start"], kept["length"])
        else:
            tensor = tensor.index_select(int(dim), torch.tensor(kept))
    return torch.nn.Parameter(tensor.detach().contiguous(), requires_grad=False)


def _set_arguments(node: torch.fx.Node, changes: dict[str, Any]) -> None:
    names = [argument.name for argument in node.target._schema.arguments]  # type: ignore[union-attr]
    for name in ("chunks", "split_size", "sections"):
        if isinstance(changes.get(name), list):  # parts that are no longer alike
            given = {**dict(zip(names, node.args, strict=False)), **node.kwargs}
            axis = {"vsplit": 0, "hsplit": 1, "dsplit": 2}.get(str(node.target).split(".")[1], 0)
            node.target = torch.ops.aten.split_with_sizes.default
            node.args, node.kwargs = (given["self"], changes[name], given.get("dim", axis)), {}
            return
    arguments, keywords = list(node.args), dict(node.kwargs)
    for name, value in changes.items():
        position = names.index(name)
        before = arguments[position] if position < len(arguments) else keywords.get(name)
        if isinstance(value, list) and isinstance(before, (list, tuple)):
            value = [old if new is None else new for new, old in zip(value, before, strict=True)]
        if position < len(arguments):
            arguments[position] = value
        elif value is not None:
            keywords[name] = value
    node.args, node.kwargs = tuple(arguments), keywords


class _Timed(torch.fx.Interpreter):
    """Runs a graph node by node and notes how long each operator took."""

    def __init__(self, module: torch.fx.GraphModule) -> None:
        super().__init__(module)
        self.times: dict[str, list[float]] = {}
        self._node = ""

    def run_node(self, n: torch.fx.Node) -> Any:
        self._node = n.name
        return super().run_node(n)

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        start = time.perf_counter_ns()
        result = target(*args, **kwargs)
        self.times.setdefault(self._node, []).append((time.perf_counter_ns() - start) / 1e3)
        return result


def load_module(path: str) -> torch.fx.GraphModule:
    """The program, or the patched base program, at ``path``."""
    with open(path, "rb") as file:
        patch = json.loads(file.read()) if file.read(1) == b"{" and file.seek(0) == 0 else None
    return _program(path) if patch is None else _patched(patch)


def draw_inputs(module: torch.fx.GraphModule) -> list[torch.Tensor]:
    """Random inputs of the program's shapes; integers are 0, for every table has a row 0."""
    generator = torch.Generator().manual_seed(0)
    values = [node.meta["val"] for node in module.graph.nodes if node.op == "placeholder"]
    drawn = [torch.randn(tuple(value.shape), generator=generator).to(value.dtype) for value in values]
    return [one if one.is_floating_point() or one.is_complex() else torch.zeros_like(one) for one in drawn]


class Session:
    """One program with its input."""

    def __init__(self, path: str, settings: dict[str, Any]) -> None:
        torch.set_num_threads(int(settings["threads"]))
        self._module = load_module(path)
        self._inputs = draw_inputs(self._module)
        self._timed = _Timed(self._module) if settings.get("profile") else None
        self._run: Any = torch.compile(self._module) if settings.get("compile") else self._module

    def run(self) -> None:
        """One inference."""
        with torch.inference_mode():
            if self._timed is not None:
                self._timed.run(*self._inputs)
            else:
                self._run(*self._inputs)

    def profile(self) -> dict[str, Any]:
        """Times in µs per node and run. Later runs are not profiled."""
        times = {} if self._timed is None else self._timed.times
        self._timed = None
        return {"nodes_us": times}


def load(path: str, settings: dict[str, Any]) -> Session:
    """The program at ``path``; settings: ``threads``, ``compile``, ``profile``."""
    return Session(path, settings)
