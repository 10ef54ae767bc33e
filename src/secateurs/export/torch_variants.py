"""Networks of any widths as patches of one exported PyTorch program."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from secateurs.errors import ExportError, why
from secateurs.export.alignment import aligned, takes_all
from secateurs.export.flat import exportable
from secateurs.export.onnx import quiet, with_batch
from secateurs.export.program import program_bytes
from secateurs.export.variants import DISSOLVED, folded_slices, kept_units
from secateurs.files import Scratch
from secateurs.network import NetworkSpec, OperatorSpec
from secateurs.structure.fold import batch_norm_pairs, fold_batch_norm
from secateurs.structure.operators import base_name, is_a
from secateurs.structure.untouched import exporting

_KINDS = {
    "conv1d": "Conv", "conv2d": "Conv", "conv3d": "Conv", "conv_transpose2d": "ConvTranspose", "linear": "Gemm",
    "matmul": "MatMul", "addmm": "Gemm", "relu": "Relu", "relu_": "Relu", "relu6": "Clip", "hardtanh": "Clip",
    "hardtanh_": "Clip", "add": "Add", "add_": "Add", "mul": "Mul", "mul_": "Mul", "sigmoid": "Sigmoid",
    "silu": "Swish", "silu_": "Swish", "gelu": "Gelu", "hardswish": "HardSwish", "hardswish_": "HardSwish",
    "dropout": "Identity", "batch_norm": "BatchNormalization", "leaky_relu": "LeakyRelu", "leaky_relu_": "LeakyRelu",
}  # fmt: skip


class TorchVariants:
    """Builds patches of the traced network's exported program; the worker's engine applies them.

    Args:
        graph: a traced network (``secateurs.structure.Graph``).
        batch: batch size.

    Raises:
        ExportError: the network cannot be exported.
    """

    def __init__(self, graph: Any, batch: int = 1) -> None:
        self._graph, self.batch = graph, batch
        self._pairs: dict[str, str] = dict(batch_norm_pairs(graph))
        module = fold_batch_norm(graph).eval()
        module, args, kwargs = exportable(module, *with_batch((graph.args, graph.kwargs), batch))
        try:
            with exporting(module), quiet(), torch.no_grad():
                program = torch.export.export(module, args, kwargs, strict=False)
        except Exception as error:
            raise ExportError(
                f"{type(module).__name__} cannot be exported as a PyTorch program: {why(error)}. "
                f"Replace what the message names, or choose another target."
            ) from error
        self._folder = Scratch("program")
        self._base = Path(self._folder.name) / "base.pt2"
        self._base.write_bytes(program_bytes(program))
        traced = aligned(program.graph, graph.program.graph)
        self._exported = {ours: theirs for theirs, ours in traced.items()}
        self.operators = operators_of(program, traced)
        self.dense_bytes: bytes = self.build(graph.spec.dense_widths)

    @property
    def spec(self) -> NetworkSpec:
        """The network as numbers."""
        spec: NetworkSpec = self._graph.spec
        return spec

    def build(
        self,
        widths: np.ndarray,
        removed: frozenset[int] = frozenset(),
        rng: np.random.Generator | None = None,
    ) -> bytes:
        """The patch for ``widths[g]`` units in group ``g`` and the blocks ``removed`` gone; see ``OnnxVariants``."""
        kept = kept_units(self.spec, widths, rng)
        cut = self._graph.cut(kept, tuple(self.spec.blocks[index].name for index in sorted(removed)))
        slices = {
            name: {str(dim): _short(indices) for dim, indices in axes.items()}
            for name, axes in folded_slices(cut.slices, self._pairs).items()
        }
        bypassed = {self._present(gone): self._present(instead) for gone, instead in cut.bypassed.items()}
        constants = {
            self._exported[name]: {argument: _plain(value) for argument, value in new.items()}
            for name, new in cut.constants.items()
            if name in self._exported
        }
        patch = {"base": str(self._base), "slices": slices, "constants": constants, "bypassed": bypassed}
        return json.dumps(patch).encode()

    def _present(self, name: str) -> str:
        """The program's node for a traced node; folding dissolved some into what they read."""
        nodes = {node.name: node for node in self._graph.program.graph.nodes}
        node = nodes[name]
        while (
            node.op == "call_function"
            and node.name not in self._exported
            and (is_a(node, DISSOLVED) or takes_all(node))
        ):
            node = node.all_input_nodes[0]
        found = node.name if node.op == "placeholder" else self._exported.get(node.name)
        if found is None:
            raise ExportError(
                f"Node {name} of the traced network has no counterpart in the exported program. "
                f"Plan without removing blocks."
            )
        return found


def _plain(value: Any) -> Any:
    """An argument for JSON: None for a size that the program computes, which stays."""
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    return value if isinstance(value, (int, float)) else None


def _short(indices: Sequence[int]) -> Any:
    """A run of indices as start and length, other indices as they are."""
    if indices and indices[-1] - indices[0] == len(indices) - 1:
        return {"start": indices[0], "length": len(indices)}
    return list(indices)


def operators_of(program: torch.export.ExportedProgram, traced: Mapping[str, str]) -> tuple[OperatorSpec, ...]:
    """The program's operators, in execution order; operators and the values they write have the nodes' names.

    ``traced``: the traced network's node of each.
    """
    constant = set(program.graph_signature.inputs_to_parameters) | set(program.graph_signature.inputs_to_buffers)
    found = []
    for node in program.graph.nodes:
        if node.op != "call_function":
            continue
        reads = [entry for entry in node.all_input_nodes if entry.name not in constant]
        name = base_name(node.target)
        word = name.removeprefix("aten.") if name.startswith("aten.") else str(node.target)
        ends = (_shape(reads[0].meta) if reads else (), _shape(node.meta))
        names = tuple(entry.name for entry in reads)
        found.append(
            OperatorSpec(node.name, _KINDS.get(word, word), traced.get(node.name, ""), names, (node.name,), ends)
        )
    return tuple(found)


def _shape(meta: Mapping[str, Any]) -> tuple[int, ...]:
    value = meta.get("val")
    return tuple(int(size) for size in value.shape) if isinstance(value, torch.Tensor) else ()
