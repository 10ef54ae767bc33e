"""The traced network: what can be removed together, what cannot and why, and how a choice becomes a plan."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch.utils import _pytree as pytree

from secateurs.errors import PlanError
from secateurs.network import AxisSpec, BlockSpec, GroupSpec, LayerSpec, NetworkSpec, ParameterSpec
from secateurs.plan import Fingerprint, Plan
from secateurs.structure import rules  # noqa: F401  registers every rule
from secateurs.structure.analysis import analyse
from secateurs.structure.barriers import Barrier, held_whole, matching, told_apart
from secateurs.structure.blocks import Block, blocks_of_both, find_blocks
from secateurs.structure.call import Analysis, bind, concrete_shape
from secateurs.structure.cut import Cut, block_names, cut
from secateurs.structure.followed import Followed, tie_followed
from secateurs.structure.groups import (
    Group,
    UnitMap,
    View,
    digest,
    find_groups,
    find_views,
    layer_of,
    module_path,
    source_line,
)
from secateurs.structure.input_sizes import INPUT_SIZES, InputSizes
from secateurs.structure.modes import EVALUATION, INTERPRETER, MASKED, RUN_ONLY, TRAINING, TrainingMode
from secateurs.structure.operators import is_transposed, operator_name
from secateurs.structure.partly_read import pin_partly_read
from secateurs.structure.values import Value


class Graph:
    """A network, its exported program and everything the analysis found. Made by :func:`secateurs.trace`.

    The network and the example are held by reference and never changed.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        program: torch.export.ExportedProgram,
        *,
        barriers: Iterable[str] = (),
        keep: Iterable[str] = (),
        grid: str = "auto",
        training: Sequence[torch.export.ExportedProgram] = (),
        followed: Iterable[Followed] = (),
    ) -> None:
        self.model = model
        self.args = args
        self.kwargs = kwargs
        self.program = program
        self.mode = EVALUATION
        self.made: dict[Hashable, Any] = {}
        """What other rooms made of this graph and keep as long as it lives, under names of theirs."""
        self.keep = tuple(keep)
        self.barrier_patterns, self.followed = tuple(barriers), tuple(followed)
        others = [told_apart(other.graph, number) for number, other in enumerate(training)]
        graphs = [program.graph, *others]
        blocked = matching(graphs, self.barrier_patterns)
        self._blocked = frozenset(blocked)
        self.analysis: Analysis = analyse(program, grid=grid, barriers=blocked, attributes=_attributes(model, program))
        tie_followed(self.analysis, self.followed)
        pin_partly_read(self.analysis, program.graph)
        twin = self._beside(training[0]) if training else None
        self.ways = tuple(training[1:])
        """Programs of other ways that the forward in training mode goes at random: they tie and pin units, too."""
        for way in self.ways:
            self._analysed(way)
        blocks: tuple[Block, ...] = ()
        found = find_blocks(program.graph, self.analysis)
        if twin is not None:
            theirs = find_blocks(twin.program.graph, twin.analysis)
            found, blocks = blocks_of_both((found, self.analysis), (theirs, twin.analysis))
        self.groups: tuple[Group, ...] = find_groups(self.analysis, self.keep)
        self.units = UnitMap(self.analysis, self.groups)
        self._held = frozenset({*blocked, *held_whole(graphs, self.keep)})
        self.removable_blocks: tuple[Block, ...] = tuple(b for b in found if self._held.isdisjoint(b.nodes))
        self.training_mode = TrainingMode("same")
        """What the forward in training mode does otherwise."""
        self.free_sizes: Callable[[], InputSizes] | None = None
        """Traces the network once more, otherwise: takes the keywords of :func:`secateurs.structure.trace.traced`."""
        self.training = twin
        """The same for the forward in training mode, where that does something else and could be exported: its own
        program, nodes and values, with the groups of this graph."""
        if twin is not None:
            twin.groups, twin.units, twin._held, twin.removable_blocks = self.groups, self.units, self._held, blocks

    def _beside(self, training: torch.export.ExportedProgram) -> Graph:
        twin = copy.copy(self)
        twin.program, twin.mode, twin.training, twin.training_mode = training, TRAINING, None, TrainingMode("other")
        twin.ways, twin.analysis = (), self._analysed(training)
        return twin

    def _analysed(self, program: torch.export.ExportedProgram) -> Analysis:
        """A forward in training mode, with the units of this graph."""
        attributes = _attributes(self.model, program)
        return analyse(program, barriers=self._blocked, attributes=attributes, after=self.analysis)

    @property
    def input_sizes(self) -> InputSizes:
        """Sizes of inputs that the exported forward holds for."""
        found: InputSizes = self.program.graph_module.meta[INPUT_SIZES]
        return found

    @property
    def judge_in_training(self) -> str | None:
        """How a cut network is judged in training mode, or None where that does nothing else."""
        if self.training is not None and not self.training.analysis.statistics:
            return MASKED
        if self.training is not None and not self.training_mode.reason:
            return INTERPRETER
        return RUN_ONLY if self.training_mode.kind == "other" else None

    @cached_property
    def nodes(self) -> dict[str, torch.fx.Node]:
        """Exported nodes by name, those of the forward in training mode included."""
        others = {} if self.training is None else self.training.nodes
        for way in self.ways:
            others = {**{node.name: node for node in way.graph.nodes}, **others}
        return {**others, **{node.name: node for node in self.program.graph.nodes}}

    @cached_property
    def barriers(self) -> tuple[Barrier, ...]:
        """Operators that pin what they touch: those that the user declared, and those that hold a unit of a layer."""
        found = []
        for name, reason in self.analysis.barriers:
            if name not in self._blocked and not self._holds(name):
                continue
            node = self.nodes[name]
            found.append(Barrier(operator_name(node.target), module_path(node), source_line(node), name, reason))
        told = {dataclasses.replace(barrier, node="") for barrier in found}
        others = () if self.training is None else self.training.barriers
        return (*found, *(other for other in others if dataclasses.replace(other, node="") not in told))

    def _holds(self, node: str) -> bool:
        """Whether a barrier holds a unit that nothing else had pinned before."""
        ids = self.analysis.ids
        held = self.analysis.touched.get(node, np.empty(0, dtype=np.int64))
        mine = held[np.isin(ids.classes(held), self._prunable)]
        return any(pin.reason.startswith("barrier: ") for pin, _ in ids.reasons(mine))

    @cached_property
    def _prunable(self) -> np.ndarray:
        """Classes of the ids of parameters and of whatever else a layer is made of."""
        trainable = {name for name, _ in self.model.named_parameters(remove_duplicate=False)}
        used = {(use.parameter, use.dim) for use in self.analysis.uses}
        axes = [
            ids
            for (name, dim), stack in self.analysis.axes.items()
            if name in trainable or (name, dim) in used
            for ids in stack
        ]
        return np.unique(self.analysis.ids.classes(np.concatenate([*axes, np.empty(0, dtype=np.int64)])))

    @property
    def blocks(self) -> tuple[BlockSpec, ...]:
        """Removable residual branches."""
        return self.spec.blocks

    @cached_property
    def aliases(self) -> dict[str, tuple[str, ...]]:
        """Exported parameter name to every name under which the module knows that tensor."""
        by_identity: dict[int, list[str]] = {}
        for name, tensor in _owned(self.model).items():
            by_identity.setdefault(id(tensor), []).append(name)
        owned = _owned(self.model)
        return {name: tuple(by_identity[id(tensor)]) for name, tensor in owned.items()}

    @cached_property
    def fingerprint(self) -> Fingerprint:
        """Names and shapes of every parameter, every buffer and every plain tensor attribute that the forward reads."""
        shapes = {name: tuple(tensor.shape) for name, tensor in _owned(self.model).items()}
        shapes |= {name: tuple(self.program.constants[name].shape) for name in _attributes(self.model, self.program)}
        return Fingerprint(digest=digest(shapes), shapes=shapes)

    @cached_property
    def spec(self) -> NetworkSpec:
        """The network as numbers."""
        node_blocks: dict[str, list[int]] = {}
        for number, block in enumerate(self.removable_blocks):
            for node in block.nodes:
                node_blocks.setdefault(node, []).append(number)
        frozen = {node: tuple(numbers) for node, numbers in node_blocks.items()}
        return NetworkSpec(
            groups=tuple(GroupSpec(group.name, group.units, group.min_units) for group in self.groups),
            layers=tuple(self._layers(frozen)),
            blocks=tuple(self._block_specs(frozen)),
            parameters=tuple(self._parameters(frozen)),
            fingerprint=self._identity(),
            activation_axes=self._activation_axes(),
            node_blocks=frozen,
            digest=self.fingerprint.digest,
        )

    def _identity(self) -> str:
        """Digest of names, shapes, operators and sizes: equal for networks with equal latency at equal widths.

        Stored measurements are keyed by it, so the input size and every stride count, the weights do not.
        """
        lines = [self.fingerprint.digest, *sorted(self._held)]
        for node in self.program.graph.nodes:
            if node.op == "call_function":
                result = node.meta.get("val")
                shape = _plain(tuple(result.shape)) if isinstance(result, torch.Tensor) else ""
                lines.append(f"{node.target} {shape} {_plain(node.args)} {_plain(sorted(node.kwargs.items()))}")
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]

    def _activation_axes(self) -> dict[str, AxisSpec]:
        axes = {}
        for name, value in self.analysis.values.items():
            if isinstance(value, Value) and value.factors and name not in self.analysis.origin:
                dim = value.factors[0].dim
                axes[name] = self.units.axis(value.along(dim), value.shape[dim])
        return axes

    def _layers(self, node_blocks: dict[str, tuple[int, ...]]) -> Iterable[LayerSpec]:
        seen: set[str] = set()
        for use in self.analysis.uses:
            if use.role != "out" or use.node in seen or use.kind == "embedding" or use.node in self.analysis.weights:
                continue
            seen.add(use.node)
            yield self._layer(use.node, use.parameter, use.kind, node_blocks.get(use.node, ()))

    def _layer(self, name: str, parameter: str, kind: str, blocks: tuple[int, ...]) -> LayerSpec:
        node = self.nodes[name]
        result = self.analysis.values[name]
        result = result[0] if isinstance(result, list) else result
        source = next(n for n in node.all_input_nodes if n.name not in self.analysis.weights)
        value = self.analysis.values[source.name]
        read = bind(node).get("weight")
        weight = read.meta["val"] if isinstance(read, torch.fx.Node) else self.program.state_dict.get(parameter)
        shape = concrete_shape(weight) if weight is not None else ()
        is_conv = kind in _CONVOLUTIONS
        rank = max(len(shape) - 2, 0) if is_conv else 0
        channel = len(result.shape) - rank - 1
        spatial = result.shape[channel + 1 :] if is_conv else ()
        places = int(np.prod((*result.shape[:channel], *spatial), dtype=np.int64))
        stride = node.args[3] if is_conv and len(node.args) > 3 else 1
        first = stride[0] if isinstance(stride, (list, tuple)) and stride else stride
        axis = self.units.axis
        groups, axis_kept = self.analysis.folded_grids.get(name, (1, 0))
        return LayerSpec(
            name=layer_of(parameter),
            node=name,
            parameter=parameter,
            kind="transposed" if is_transposed(node) else kind,
            inputs=axis(value.along(channel if is_conv else -1), value.shape[channel if is_conv else -1]),
            outputs=axis(result.along(channel), result.shape[channel]),
            positions=places // self.traced_batch if places % self.traced_batch == 0 else places,
            kernel_elements=int(np.prod(shape[2:], dtype=np.int64)) if is_conv else 1,
            groups=groups,
            group_inputs=value.shape[channel] // groups if is_conv and groups > 1 and axis_kept == 0 else None,
            stride=int(first) if isinstance(first, int) else 1,
            input_hw=tuple(value.shape[channel + 1 :]) if is_conv else (),
            output_hw=tuple(spatial),
            has_bias=len(node.args) > 2 and node.args[2] is not None,
            blocks=blocks,
        )

    @cached_property
    def traced_batch(self) -> int:
        """First size of the first input as it was traced: sequences may run along any axis, so no axis tells."""
        leaves = pytree.tree_leaves(self.program.example_inputs)
        shaped = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor) and leaf.dim()]
        return int(shaped[0].shape[0]) if shaped else 1

    def _block_specs(self, node_blocks: dict[str, tuple[int, ...]]) -> Iterable[BlockSpec]:
        owners = self._parameter_blocks(node_blocks)
        for number, block in enumerate(self.removable_blocks):
            inner = []
            for g in range(len(self.groups)):
                if all(number in owners.get(view.parameter, ()) for view in self.views(g)):
                    inner.append(g)
            yield BlockSpec(block.name, tuple(inner), tuple(sorted(block.nodes)), block.add)

    def _parameter_blocks(self, node_blocks: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
        return {target: node_blocks.get(node, ()) for node, target in self.analysis.origin.items()}

    def _parameters(self, node_blocks: dict[str, tuple[int, ...]]) -> Iterable[ParameterSpec]:
        owners = self._parameter_blocks(node_blocks)
        trainable = dict(self.model.named_parameters())
        for target in self.analysis.origin.values():
            shape = self.fingerprint.shapes.get(target, ())
            axes = []
            for dim, size in enumerate(shape):
                stack = self.analysis.axes.get((target, dim), [])
                axes.append(self.units.axis(stack, size))
            yield ParameterSpec(target, tuple(axes), owners.get(target, ()), target in trainable)

    def with_barriers(self, patterns: Sequence[str]) -> Graph:
        """The same export, analysed with these barriers besides its own."""
        if not isinstance(patterns, (list, tuple)):
            raise PlanError(f"The barriers are a {type(patterns).__name__}. Give patterns in a list.")
        training = () if self.training is None else (self.training.program, *self.ways)
        barriers = (*self.barrier_patterns, *patterns)
        found = Graph(
            self.model, self.args, self.kwargs, self.program, barriers=barriers, keep=self.keep,
            grid=self.analysis.grid, training=training, followed=self.followed,
        )  # fmt: skip
        found.training_mode, found.free_sizes = self.training_mode, self.free_sizes
        return found

    def views(self, group: str | int) -> tuple[View, ...]:
        """Where a group's units lie: one :class:`View` per parameter axis, in execution order."""
        number = group if isinstance(group, int) else self.group_index(group)
        if not 0 <= number < len(self.groups):
            raise PlanError(f"There is no group {number} in this network: it has {len(self.groups)}, from 0 on.")
        return self._all_views[number]

    @cached_property
    def _all_views(self) -> list[tuple[View, ...]]:
        return [find_views(self.analysis, self.groups, self.units, n) for n in range(len(self.groups))]

    def group_index(self, name: str) -> int:
        """Position of a group in ``groups``.

        Raises:
            PlanError: there is no such group.
        """
        for number, group in enumerate(self.groups):
            if group.name == name:
                return number
        known = ", ".join(group.name for group in self.groups[:8])
        raise PlanError(f"There is no group {name!r} in this network. It has {len(self.groups)} groups: {known} …")

    def cut(self, kept: Mapping[str, Sequence[int]], blocks_removed: Iterable[str] = ()) -> Cut:
        """Index lists, re-derived constants and bypasses of a choice. A group that is not named stays whole.

        Raises:
            PlanError: unknown group or block, a unit out of range, or fewer units than must stay.
        """
        return cut(self, kept, blocks_removed)

    def plan(
        self,
        kept: Mapping[str, Sequence[int]],
        blocks_removed: Iterable[str] = (),
        provenance: Mapping[str, Any] | None = None,
    ) -> Plan:
        """The choice as a self-contained plan."""
        from secateurs.structure.plans import resolved_plan

        return resolved_plan(self, kept, block_names(blocks_removed), dict(provenance or {}))

    def __repr__(self) -> str:
        from secateurs.structure.describe import describe

        return describe(self)


_CONVOLUTIONS = ("conv", "depthwise", "grouped")
"""Kinds of layers whose weight slides over space."""


def _attributes(model: torch.nn.Module, program: torch.export.ExportedProgram) -> list[str]:
    """Constants of the program that are plain tensor attributes of a module, by name."""
    found = []
    for name in program.constants:
        path, _, leaf = name.rpartition(".")
        try:
            owner = model.get_submodule(path)
        except AttributeError:
            continue
        if isinstance(vars(owner).get(leaf), torch.Tensor):
            found.append(name)
    return found


def _plain(value: Any) -> str:
    """A value as text in which nodes and symbolic sizes are all alike."""
    if isinstance(value, (list, tuple)):
        return f"[{','.join(_plain(item) for item in value)}]"
    return repr(value) if isinstance(value, (int, float, str, type(None))) else "?"


def _owned(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Parameters and buffers under every name, tied ones too."""
    owned: dict[str, torch.Tensor] = dict(model.named_parameters(remove_duplicate=False))
    owned.update(model.named_buffers(remove_duplicate=False))
    return owned
