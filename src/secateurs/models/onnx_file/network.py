"""A network that carries out an ONNX graph, with layers of ``torch.nn`` where the graph has constant weights."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from secateurs.errors import DataError, SecateursError, why
from secateurs.models.onnx_file.graph import OnnxGraph, OnnxNode
from secateurs.models.onnx_file.layers import Layer, embedding_of, layer_of, with_bias
from secateurs.models.onnx_file.operators import function_of
from secateurs.models.onnx_file.values import Value, at, plain
from secateurs.models.onnx_file.views import Numbered, Reshaped, batch_axis, runs

_ON_HOST = {"Resize": (1, 2, 3), "Upsample": (1,), "Pad": (1, 2, 3), "Clip": (1, 2), "Range": (0, 1, 2)}
"""Inputs that are plain numbers even where they are floats."""
_SIZED = ("Split", "Slice", "Expand", "Reshape", "Tile", "Pad")
"""Operators with numbers that a cut may change."""
_LARGEST = 4096
"""Whole numbers up to so many stay numbers; more are a buffer."""


@dataclass(frozen=True)
class _Step:
    """One call: of the layer ``layer``, or of the operator ``op``. ``inputs``: (kind, name or number) each, where kind
    is ``value``, ``held`` (a tensor of the network) or ``number``; ``done``: values that nobody needs after it."""

    layer: str | None
    op: str
    inputs: tuple[tuple[str, Any], ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any] = field(default_factory=dict)
    done: tuple[str, ...] = ()


class OnnxNetwork(nn.Module):
    """What an ONNX file computes. Inputs are positional, in the file's order; several outputs are a tuple.

    ``channels_last``: the file takes images [batch, height, width, channels], and this network [batch, channels, …].
    """

    def __init__(self, inputs: Sequence[str], outputs: Sequence[str], opset: int, channels_last: bool = False) -> None:
        super().__init__()
        self.inputs, self.outputs, self.opset, self.channels_last = tuple(inputs), tuple(outputs), opset, channels_last
        self.steps: tuple[_Step, ...] = ()

    def forward(self, *inputs: Tensor) -> Any:
        """The outputs; a lone one is a tensor."""
        given_as = (inputs[0].permute(0, 2, 3, 1),) if self.channels_last else inputs
        values: dict[str, Value] = dict(zip(self.inputs, given_as, strict=True))
        for step in self.steps:
            made = self.carried_out(step, values)
            values.update({name: one for name, one in zip(step.outputs, made, strict=False) if name})
            for name in step.done:
                del values[name]
        answers = tuple(values[name] for name in self.outputs)
        return answers[0] if len(answers) == 1 else answers

    def carried_out(self, step: _Step, values: Mapping[str, Value]) -> tuple[Value, ...]:
        """What a step gives."""
        given = [self._input(kind, what, values) for kind, what in step.inputs]
        if step.layer is not None:
            found = self.get_submodule(step.layer)(*given)
        else:
            found = function_of(step.op)(given, step.attributes, self.opset)
        return tuple(plain(one) for one in (found if isinstance(found, tuple) else (found,)))

    def _input(self, kind: str, what: Any, values: Mapping[str, Value]) -> Value:
        if kind == "value":
            return values[what]
        if kind == "held":
            path, _, name = what.rpartition(".")
            return getattr(self.get_submodule(path), name)
        return what


def rebuilt(
    graph: OnnxGraph, example: Sequence[Tensor], doubled: Sequence[Tensor] | None = None, *, channels_last: bool = False
) -> OnnxNetwork:
    """The network of a graph, in evaluation mode, by running it once.

    Args:
        graph: the graph.
        example: its inputs, as the file takes them.
        doubled: inputs of twice the batch, where the file is made for one batch size: what it says of shapes is then
            written for any, as far as that can be told.
        channels_last: see :class:`OnnxNetwork`.

    Raises:
        DataError: a node cannot be carried out; it is named.
    """
    network = OnnxNetwork([one.name for one in graph.inputs], graph.outputs, graph.opset, channels_last).eval()
    return _Builder(graph, network, example, doubled).built()


class _Builder:
    """Runs a graph and writes down what it does."""

    def __init__(
        self, graph: OnnxGraph, network: OnnxNetwork, example: Sequence[Tensor], doubled: Sequence[Tensor] | None
    ) -> None:
        self.graph, self.network = graph, network
        self.constants: dict[str, Value] = {name: _value(one) for name, one in graph.constants.items()}
        self.values: dict[str, Value] = {one.name: x for one, x in zip(graph.inputs, example, strict=True)}
        self.twice: dict[str, Value] | None = None
        if doubled is not None:
            self.twice = {one.name: x for one, x in zip(graph.inputs, doubled, strict=True)}
        self.held: dict[str, str] = {}
        self.steps: list[_Step] = []
        self.uses = graph.consumers()

    def built(self) -> OnnxNetwork:
        """The network."""
        with torch.no_grad():
            for node in self.graph.nodes:
                try:
                    self._take(node)
                except SecateursError:
                    raise
                except Exception as error:
                    raise DataError(
                        f"{node.op} {node.name!r} of the ONNX file cannot be rebuilt in PyTorch ({why(error)}). Stop "
                        f"before it with ?outputs=NAME, or export the network anew."
                    ) from error
        constant = [name for name in self.graph.outputs if name not in self.values]
        if constant:
            raise DataError(
                f"Output {constant[0]!r} of the ONNX file does not depend on its inputs. Name those that do: "
                "?outputs=NAME."
            )
        self.network.steps = _with_ends(self.steps, self.graph.outputs)
        used = {step.layer for step in self.network.steps}
        for path in [step.layer for step in self.steps if step.layer is not None and step.layer not in used]:
            place, _, leaf = path.rpartition(".")
            del self.network.get_submodule(place)._modules[leaf]
        _without_empty(self.network)
        return self.network

    def _take(self, node: OnnxNode) -> None:
        given = [self._known(name) for name in node.inputs]
        constant = [not name or name in self.constants for name in node.inputs]
        if all(constant):
            self._fold(node, given)
            return
        if node.op == "Add" and self._joins_bias(node, given, constant):
            return
        if node.op == "Gather" and self._is_reshape(given, constant):
            node = replace(node, op="Reshape", attributes={})
            given, constant = [given[0], np.array(given[1].shape)], [False, True]
        layer = layer_of(node, given, constant) or embedding_of(node, given, constant)
        if layer is not None:
            self._step_of_layer(node, layer)
        else:
            inputs = tuple(self._reference(node, place, name) for place, name in enumerate(node.inputs))
            self._done(node, function_of(node.op)(given, node.attributes, self.graph.opset))
            self._step_of_function(node, given, inputs)

    def _step_of_function(self, node: OnnxNode, given: Sequence[Value], inputs: Sequence[tuple[str, Any]]) -> None:
        """A call of an operator; of one with numbers that a cut may change as a module, in which it finds them."""
        view = self._view(node, given) if node.op == "Reshape" else None
        numbers = {place: what for place, (kind, what) in enumerate(inputs) if kind == "number"}
        module: nn.Module | None = None
        if view is not None:
            module, inputs = Reshaped(view), inputs[:1]
        elif node.op in _SIZED and any(np.asarray(value).dtype.kind in "iu" for value in numbers.values()):
            module = Numbered(node.op, node.attributes, self.graph.opset, numbers, len(inputs))
            inputs = [(kind, what) for kind, what in inputs if kind != "number"]
        path = None
        if module is not None:
            path = self._free(f"{_path(node, '/')}.{node.op.lower()}" if "/" in node.name else _path(node, "/"))
            self._place(path).add_module(path.rpartition(".")[2], module)
        self.steps.append(_Step(path, node.op, tuple(inputs), node.outputs, node.attributes if path is None else {}))
        self._again(self.steps[-1])
        self._freeze(node.outputs[0])

    def _freeze(self, name: str) -> None:
        """A factor that is computed from sizes, such as that of attention, becomes a constant, which no cut changes."""
        value, other = self.values.get(name), (self.twice or {}).get(name)
        if isinstance(value, np.ndarray) and value.dtype.kind == "f" and np.array_equal(value, np.asarray(other)):
            self.constants[name] = value

    def _view(self, node: OnnxNode, given: Sequence[Value]) -> Any:
        """A reshape as what it joins and splits, for any batch and any number of channels; None: not known."""
        if self.twice is None or not isinstance(given[0], Tensor):
            return None
        before, after = list(self.twice[node.inputs[0]].shape), list(self.values[node.outputs[0]].shape)
        grown = [place for place, one in enumerate(given[0].shape) if one != before[place]]
        if len(grown) > 1:
            return None
        if grown:
            place = batch_axis(given[0].shape, grown[0], after)
            if place is None:
                return None
            after[place] *= before[grown[0]] // given[0].shape[grown[0]]
        return runs(before, after, place if grown else None)

    def _again(self, step: _Step) -> None:
        """The same step for twice the batch; where that fails, the network is of one batch size."""
        if self.twice is None:
            return
        try:
            made = self.network.carried_out(step, self.twice)
        except Exception:
            self.twice = None
            return
        self.twice.update({name: one for name, one in zip(step.outputs, made, strict=False) if name})

    def _is_reshape(self, given: Sequence[Value], constant: Sequence[bool]) -> bool:
        """Whether a gather takes every number of a flat value in order, as exports write views with strides."""
        flat = constant[1] and not isinstance(given[1], Tensor) and isinstance(given[0], Tensor) and given[0].ndim == 1
        return flat and np.array_equal(given[1].ravel(), np.arange(len(given[0])))

    def _known(self, name: str) -> Value:
        return None if not name else self.constants[name] if name in self.constants else self.values[name]

    def _fold(self, node: OnnxNode, given: list[Value]) -> None:
        found = function_of(node.op)(given, node.attributes, self.graph.opset)
        made = found if isinstance(found, tuple) else (found,)
        self.constants.update({name: one for name, one in zip(node.outputs, made, strict=False) if name})

    def _done(self, node: OnnxNode, found: Any) -> None:
        made = found if isinstance(found, tuple) else (found,)
        self.values.update({name: one for name, one in zip(node.outputs, made, strict=False) if name})

    def _step_of_layer(self, node: OnnxNode, layer: Layer) -> None:
        path = self._free(_path(node, layer.weight))
        self._place(path).add_module(path.rpartition(".")[2], layer.module.eval())
        found = layer.module(*(self.values[name] for name in layer.inputs))
        self._done(node, found)
        inputs = tuple(("value", name) for name in layer.inputs)
        self.steps.append(_Step(path, node.op, inputs, node.outputs[:1]))
        self._again(self.steps[-1])

    def _joins_bias(self, node: OnnxNode, given: list[Value], constant: list[bool]) -> bool:
        """Whether the constant that a node adds became the bias of the linear layer right before it."""
        last = self.steps[-1] if self.steps else None
        if last is None or last.layer is None or sum(constant) != 1 or last.outputs[0] not in node.inputs:
            return False
        layer, added = self.network.get_submodule(last.layer), given[constant.index(True)]
        fits = isinstance(added, Tensor) and added.is_floating_point() and added.numel() == added.shape[-1:].numel()
        if not isinstance(layer, nn.Linear) or layer.bias is not None or self.uses[last.outputs[0]] != 1 or not fits:
            return False
        if added.numel() != layer.out_features:
            return False
        with_bias(layer, added)
        self._done(node, given[constant.index(False)] + added)
        self.steps[-1] = _Step(last.layer, last.op, last.inputs, node.outputs)
        self._again(self.steps[-1])
        return True

    def _reference(self, node: OnnxNode, place: int, name: str) -> tuple[str, Any]:
        if not name or name not in self.constants:
            return ("value", name) if name else ("number", None)
        value = self.constants[name]
        if isinstance(value, Tensor) and (place in _ON_HOST.get(node.op, ()) or value.numel() <= 1):
            return "number", value.numpy() if value.numel() != 1 or value.ndim > 1 else np.asarray(value.item())
        if not isinstance(value, Tensor) and np.size(value) <= _LARGEST:
            return "number", value
        return "held", self._hold(node, name)

    def _hold(self, node: OnnxNode, name: str) -> str:
        """Where a constant lies in the network: a parameter where it was trained, else a buffer."""
        if name not in self.held:
            value = self.constants[name]
            tensor = value if isinstance(value, Tensor) else torch.as_tensor(value)
            path = self._free(_path(node, name, tensor=True))
            place, leaf = self._place(path), path.rpartition(".")[2]
            if _trained(name, tensor, self.graph):
                place.register_parameter(leaf, nn.Parameter(tensor.detach().clone()))
            else:
                place.register_buffer(leaf, tensor.detach().clone())
            self.held[name] = path
        return self.held[name]

    def _place(self, path: str) -> nn.Module:
        """The module that holds what has this path."""
        place: nn.Module = self.network
        for part in path.split(".")[:-1]:
            if part not in place._modules:
                place.add_module(part, nn.Module())
            place = place.get_submodule(part)
        return place

    def _free(self, path: str) -> str:
        """The path, or one like it, that is nobody's, and below no layer."""
        parts = path.split(".")
        place: Any = self.network
        for number, part in enumerate(parts[:-1]):
            inner = place._modules.get(part)
            if inner is None and not hasattr(place, part):
                break
            if type(inner) is not nn.Module:
                parts = [*parts[:number], "_".join(parts[number:])]
                break
            place = inner
        base, count = ".".join(parts), 0
        while self._taken(path := base if not count else f"{base}_{count}"):
            count += 1
        return path

    def _taken(self, path: str) -> bool:
        place: Any = self.network
        for part in path.split("."):
            if not hasattr(place, part):
                return False
            place = getattr(place, part)
        return True


def _without_empty(module: nn.Module) -> None:
    """Take out modules that hold nothing."""
    for name, inner in list(module.named_children()):
        _without_empty(inner)
        if type(inner) is nn.Module and not any((inner._modules, inner._parameters, inner._buffers)):
            del module._modules[name]


def _with_ends(steps: Sequence[_Step], outputs: Sequence[str]) -> tuple[_Step, ...]:
    """The steps that are needed, with what each is the last to use, so that memory is freed."""
    needed, found = set(outputs), []
    for step in reversed(steps):
        if not needed & set(step.outputs):
            continue  # such as sizes that a view needs no more
        used = {what for kind, what in step.inputs if kind == "value"}
        unused = {name for name in step.outputs if name and name not in needed}
        done = tuple(sorted((used - needed) | unused))
        needed |= used
        found.append(_Step(step.layer, step.op, step.inputs, step.outputs, step.attributes, done))
    return tuple(reversed(found))


def _value(array: np.ndarray) -> Value:
    """Floats of more than one number as a tensor, everything else as it is."""
    floats = array.dtype.kind == "f"
    return torch.from_numpy(array.copy()) if floats or array.size > _LARGEST else array


def _trained(name: str, tensor: Tensor, graph: OnnxGraph) -> bool:
    """Whether a float constant that belongs to no layer was trained, as far as the file tells: it is kept under a name
    of its own, and not a result of the export."""
    if not tensor.is_floating_point() or name not in graph.constants:
        return False
    return re.match(r"(/|onnx::|const|_?v_?[0-9]+$|val_|[0-9]+$)", name) is None


def _path(node: OnnxNode, constant: str, *, tensor: bool = False) -> str:
    """A module's or tensor's path: that of its constant where it has one, else by the node's own name."""
    own = re.match(r"(onnx::|/|const|_?v_?[0-9]+$|val_|[0-9]+$)", constant) is None and "/" not in constant
    if own and re.search(r"[A-Za-z]", constant):
        text = constant if tensor else re.sub(r"[._](weight|w|kernel|scale|gamma|running_mean)$", "", constant)
        parts = text.split(".")
    else:
        parts = [part for part in node.name.split("/") if part]
        parts = parts[:-1] if len(parts) > 1 else parts
        parts = [part for one in _unrepeated(parts) for part in one.split(".")]
        parts += ["constant"] if tensor else []
    clean = [re.sub(r"\W", "_", part) for part in parts if part]
    return ".".join(clean) or node.op.lower()


def _unrepeated(parts: Sequence[str]) -> list[str]:
    """``["layer1", "layer1.0", "conv1"]`` -> ``["layer1.0", "conv1"]``."""
    found = list(parts)
    return [
        part for place, part in enumerate(found) if not at(found, place + 1) or not _continues(part, found[place + 1])
    ]


def _continues(part: str, following: str) -> bool:
    return following.startswith(f"{part}.")
