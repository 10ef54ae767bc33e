"""From ``onnx:FILE`` to a network that was seen to compute what ONNX Runtime computes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from secateurs.errors import DataError, shortened, why
from secateurs.models.onnx_file.graph import Input, OnnxGraph, read_graph
from secateurs.models.onnx_file.network import OnnxNetwork, rebuilt
from secateurs.models.onnx_file.patterns import with_layer_norms

_IMAGE_CHANNELS = (1, 3)
_CLOSE, _CLOSE_IN_HALF = 1e-3, 2e-2
"""Largest difference from ONNX Runtime, as a share of the largest output."""


@dataclass(frozen=True)
class Opened:
    """A rebuilt network. ``example``: its inputs at batch 1; ``image``: (channels, height, width) where it takes one
    image; ``notes``: for the user."""

    module: OnnxNetwork
    example: tuple[Tensor, ...]
    image: tuple[int, int, int] | None
    notes: tuple[str, ...]


def open_onnx(where: str, options: Mapping[str, Any]) -> Opened:
    """The network of an ONNX file.

    Args:
        where: the file.
        options: ``outputs=NAME,NAME`` stops at these values; every free size of an input by its name:
            ``height=640``.

    Raises:
        DataError: the file cannot be read or rebuilt, a size is not known, or the rebuilt network computes something
            else than ONNX Runtime.
    """
    path = Path(where)
    asked = str(options.get("outputs", ""))
    graph = with_layer_norms(read_graph(path, [name for name in asked.split(",") if name]))
    sizes = {key: value for key, value in options.items() if key != "outputs"}
    shapes, free = _shapes(graph, sizes, where)
    limits = _limits(graph)
    example = _random(graph, shapes, limits, seed=0)
    last = _channels_last(graph.inputs, shapes)
    network = rebuilt(graph, example, _doubled(example), channels_last=last)
    notes, batches = _compared(network, graph, path, shapes, limits, free=free)
    if graph.half:
        notes = (*notes, f"{path} computes in float16; the network is rebuilt in float32.")
    if not batches:
        notes = (
            *notes,
            f"{path} is made for a batch of {shapes[0][0]}, and for no other: it can be looked at, not trained or "
            "judged. Export it with a free batch size.",
        )
    given = tuple(x.permute(0, 3, 1, 2).contiguous() for x in example) if last else example
    return Opened(network, given, _image(graph.inputs, given), notes)


def _shapes(graph: OnnxGraph, sizes: Mapping[str, Any], where: str) -> tuple[list[tuple[int, ...]], bool]:
    """Shapes of the inputs, and whether their batch is free. A free first size is the batch, 1 here."""
    names = {dim for one in graph.inputs for dim in one.dims if isinstance(dim, str)}
    unknown = [key for key in sizes if key not in names]
    if unknown:
        raise DataError(
            f"Model 'onnx:{where}' has no free size {unknown[0]!r}. It has {', '.join(sorted(names)) or 'none'}, and "
            "the option outputs."
        )
    firsts = {one.dims[0] for one in graph.inputs if one.dims}
    batches = {dim for dim in firsts if isinstance(dim, str) and dim not in sizes}
    lacking = sorted(names - batches - set(sizes))
    if lacking:
        listed = "; ".join(f"{one.name} {'x'.join(map(str, one.dims))}" for one in graph.inputs)
        raise DataError(
            f"Inputs of {where} have free sizes ({listed}). Say them: "
            f"'onnx:{where}?{'&'.join(f'{name}=SIZE' for name in lacking)}'."
        )
    chosen = {**dict.fromkeys(batches, 1), **sizes}
    wrong = [key for key, value in chosen.items() if not isinstance(value, int) or isinstance(value, bool) or value < 1]
    if wrong:
        raise DataError(
            f"Model 'onnx:{where}': {wrong[0]}={chosen[wrong[0]]!r} is no size. Give a whole number above 0."
        )
    return [tuple(chosen[dim] if isinstance(dim, str) else dim for dim in one.dims) for one in graph.inputs], bool(
        batches
    )


def _limits(graph: OnnxGraph) -> dict[str, int]:
    """Of inputs that choose rows of a table how many it has."""
    found: dict[str, int] = {}
    same = {one.name: one.name for one in graph.inputs}
    for node in graph.nodes:
        if node.op in ("Cast", "Identity", "Unsqueeze", "Reshape") and node.inputs[0] in same:
            same[node.outputs[0]] = same[node.inputs[0]]
        if node.op == "Gather" and node.inputs[1] in same and node.inputs[0] in graph.constants:
            rows = len(graph.constants[node.inputs[0]])
            name = same[node.inputs[1]]
            found[name] = min(rows, found.get(name, rows))
    return found


def _random(
    graph: OnnxGraph, shapes: Sequence[tuple[int, ...]], limits: Mapping[str, int], *, seed: int
) -> tuple[Tensor, ...]:
    """Inputs: floats around 0, whole numbers from 0 on; masks are all 1."""
    generator = torch.Generator().manual_seed(seed)
    return tuple(_drawn(one, shape, limits, generator) for one, shape in zip(graph.inputs, shapes, strict=True))


def _drawn(one: Input, shape: tuple[int, ...], limits: Mapping[str, int], generator: torch.Generator) -> Tensor:
    dtype = torch.from_numpy(np.zeros(0, one.dtype)).dtype
    if dtype.is_floating_point:
        return torch.randn(shape, generator=generator).to(dtype)
    if one.name in limits or dtype == torch.uint8:
        return torch.randint(0, limits.get(one.name, 256), shape, generator=generator).to(dtype)
    return torch.ones(shape, dtype=dtype)


def _doubled(example: Sequence[Tensor]) -> tuple[Tensor, ...] | None:
    """The same samples twice over, where all inputs have one first size."""
    firsts = {x.shape[0] if x.ndim else 0 for x in example}
    return tuple(torch.cat([x, x]) for x in example) if len(firsts) == 1 and 0 not in firsts else None


def _compared(
    network: nn.Module,
    graph: OnnxGraph,
    path: Path,
    shapes: Sequence[tuple[int, ...]],
    limits: Mapping[str, int],
    *,
    free: bool,
) -> tuple[tuple[str, ...], bool]:
    """How far the network is from ONNX Runtime, in words, and whether it takes several batches at once.

    Raises:
        DataError: it computes something else.
    """
    session = _session(path, graph.outputs)
    samples = [_random(graph, shapes, limits, seed=seed) for seed in (1, 2)]
    wanted = [session(inputs) for inputs in samples]
    found = [_answers(network, inputs) for inputs in samples]
    apart = max(_apart(one, other) for one, other in zip(found, wanted, strict=True))
    if not apart <= (_CLOSE_IN_HALF if graph.half else _CLOSE):
        raise DataError(
            f"The network rebuilt from {path} does not compute what ONNX Runtime does: outputs differ by {apart:.2g} "
            "of the largest, on random inputs. Stop before the part that differs with ?outputs=NAME, or export it anew."
        )
    note = f"Rebuilt from {path}: {len(graph.nodes)} nodes, within {apart:.1g} of ONNX Runtime on random inputs."
    try:
        both = _answers(network, tuple(torch.cat(pair) for pair in zip(*samples, strict=True)))
        together = [np.concatenate(pair) for pair in zip(*found, strict=True)]
        joined = _apart(both, together) <= _CLOSE
    except Exception:
        joined = False
    if free and not joined:
        raise DataError(
            f"The network rebuilt from {path} computes something else for two samples at once than for one after the "
            f"other, though the file takes any number. Export it with a fixed batch of 1."
        )
    return (note,), joined


def _session(path: Path, outputs: Sequence[str]) -> Any:
    """Runs a file up to some values: inputs -> arrays."""
    import onnx
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    try:
        model = onnx.load(str(path))
        own = [one.name for one in model.graph.output]
        source: Any = str(path)
        if list(outputs) != own:
            del model.graph.output[:]
            model.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in outputs)
            source = model.SerializeToString()
        session = onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise DataError(
            f"ONNX Runtime does not load {path} ({shortened(why(error))}), so nothing can be compared with it. Repair "
            f"the file, or export it anew."
        ) from error
    kinds = {one.name: np.float16 if "float16" in one.type else None for one in session.get_inputs()}

    def run(inputs: Sequence[Tensor]) -> list[np.ndarray]:
        fed = {
            name: x.numpy() if kinds[name] is None else x.numpy().astype(kinds[name])
            for name, x in zip(kinds, inputs, strict=True)
        }
        return [np.asarray(one) for one in session.run(list(outputs), fed)]

    return run


def _answers(network: nn.Module, inputs: Sequence[Tensor]) -> list[np.ndarray]:
    given = [x.permute(0, 3, 1, 2) for x in inputs] if getattr(network, "channels_last", False) else inputs
    with torch.inference_mode():
        found = network(*given)
    return [one.numpy() for one in (found if isinstance(found, tuple) else (found,))]


def _apart(found: Sequence[np.ndarray], wanted: Sequence[np.ndarray]) -> float:
    """Largest difference as a share of the largest output; of whole numbers the share that differs."""
    worst = 0.0
    for one, other in zip(found, wanted, strict=True):
        if one.shape != other.shape:
            return float("inf")
        if one.dtype.kind not in "f":
            worst = max(worst, float((one != other).mean()) if one.size else 0.0)
            continue
        both, right = one.astype(np.float64), other.astype(np.float64)
        if not np.array_equal(np.isfinite(both), np.isfinite(right)):
            return float("inf")
        known = np.isfinite(right)
        scale = float(np.abs(right[known]).max(initial=0.0)) or 1.0
        worst = max(worst, float(np.abs(both - right)[known].max(initial=0.0)) / scale)
    return worst


def _channels_last(inputs: Sequence[Input], shapes: Sequence[tuple[int, ...]]) -> bool:
    """Whether the only input is an image as TensorFlow has it."""
    if len(inputs) != 1 or len(shapes[0]) != 4 or inputs[0].dtype.kind != "f":
        return False
    return shapes[0][3] in _IMAGE_CHANNELS and shapes[0][1] not in _IMAGE_CHANNELS


def _image(inputs: Sequence[Input], example: Sequence[Tensor]) -> tuple[int, int, int] | None:
    if len(inputs) != 1 or example[0].ndim != 4 or not example[0].is_floating_point():
        return None
    _, channels, height, width = example[0].shape
    return channels, height, width
