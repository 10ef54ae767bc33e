"""Reads, edits and writes the graph of operators that an ExecuTorch program hands to XNNPACK, as nested JSON."""

from __future__ import annotations

import importlib.resources
import json
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from secateurs.errors import ExportError

Json = dict[str, Any]


def read_graph(payload: bytes) -> Json:
    """The XNNPACK graph in a delegate's data."""
    from executorch.backends.xnnpack.serialization.xnnpack_graph_serialize import XNNHeader
    from executorch.exir._serialize._flatbuffer import _flatc_decompile

    header = XNNHeader.from_bytes(payload[: XNNHeader.EXPECTED_LENGTH])
    start = header.flatbuffer_offset
    with tempfile.TemporaryDirectory(prefix="secateurs-xnnpack-") as folder:
        (Path(folder) / "graph.bin").write_bytes(payload[start : start + header.flatbuffer_size])
        _flatc_decompile(folder, _schema(folder), str(Path(folder) / "graph.bin"), ["--raw-binary"])
        text = (Path(folder) / "graph.json").read_text()
    graph: Json = json.loads(re.sub(r"(?<![\"\w])inf\b", "Infinity", text))
    return graph


def write_graph(graph: Json) -> bytes:
    """A delegate's data for an XNNPACK graph without inline constants."""
    from executorch.backends.xnnpack.serialization.xnnpack_graph_serialize import XNNHeader
    from executorch.exir._serialize._flatbuffer import _flatc_compile

    with tempfile.TemporaryDirectory(prefix="secateurs-xnnpack-") as folder:
        source = Path(folder) / "graph.json"
        source.write_text(json.dumps(graph))
        _flatc_compile(folder, _schema(folder), str(source))
        body = (Path(folder) / "graph.bin").read_bytes()
    start = -(-XNNHeader.EXPECTED_LENGTH // 16) * 16
    end = start + -(-len(body) // 16) * 16
    header = XNNHeader(start, len(body), end, 0).to_bytes()
    return header.ljust(start, b"\0") + body.ljust(end - start, b"\0")


def _schema(folder: str) -> str:
    text = importlib.resources.files("executorch.backends.xnnpack.serialization").joinpath("schema.fbs").read_bytes()
    path = Path(folder) / "schema.fbs"
    path.write_bytes(text)
    return str(path)


def tensor_of(value: Json) -> Json:
    """The tensor in a value, quantised or not."""
    union: Json = value["xvalue_union"]
    return union.get("tensor_value", union)


def _reads(node: Json) -> dict[str, int]:
    """Values that an XNNPACK operator reads, by field."""
    return {key: value for key, value in node.items() if key.endswith("_id") and key != "output_id"}


def same_layout(graph: Json, entry: Json, value: int) -> int | None:
    """``value``, or its transpose, whichever the operator reads; None where it reads neither."""
    transposes = [
        other["xnode_union"]["output_id"]
        for other in graph["xnodes"]
        if other["xnode_union_type"] == "XNNStaticTranspose" and other["xnode_union"]["input_id"] == value
    ]
    return next((found for found in (value, *transposes) if found in _reads(entry["xnode_union"]).values()), None)


def becomes_clamp(graph: Json, entry: Json, value: int) -> bool:
    """Whether the activation fused into the removed operator must stay, which then becomes that activation."""
    writer: Json = next((other for other in graph["xnodes"] if other["xnode_union"]["output_id"] == value), {})
    if "output_min_max" not in entry or "output_min_max" in writer:
        return False
    node = {"input_id": value, "output_id": entry["xnode_union"]["output_id"], "flags": 0}
    entry |= {"xnode_union_type": "XNNClamp", "xnode_union": node}
    return True


def replace_value(graph: Json, value: int, renamed: Mapping[int, int]) -> None:
    """Let every reader of ``value`` read what stays of it; an output of the graph keeps its place.

    Raises:
        ExportError: an input of the graph would become its output.
    """
    final = value
    while final in renamed:
        final = renamed[final]
    for entry in graph["xnodes"]:
        node = entry["xnode_union"]
        node |= {key: final for key, read in _reads(node).items() if read == value}
    tensors = {tensor["id_out"]: tensor for tensor in map(tensor_of, graph["xvalues"])}
    if tensors[value]["flags"]:
        if tensors[final]["flags"]:
            raise ExportError(
                "A block whose removal joins an input of an XNNPACK graph to its output cannot be removed by editing. "
                "Plan without removing blocks, or choose another target."
            )
        for key in ("flags", "external_id"):
            tensors[final][key], tensors[value][key] = tensors[value][key], tensors[final][key]


def drop_unused(graph: Json) -> None:
    """Remove the operators and values that no output needs."""
    needed = {tensor["id_out"] for tensor in map(tensor_of, graph["xvalues"]) if tensor["flags"]}
    kept = []
    for entry in reversed(graph["xnodes"]):
        node = entry["xnode_union"]
        if node["output_id"] in needed:
            kept.append(entry)
            needed.update(_reads(node).values())
    graph["xnodes"] = kept[::-1]
    graph["xvalues"] = [value for value in graph["xvalues"] if tensor_of(value)["id_out"] in needed]


_ONE_SCALE = frozenset({
    "XNNStaticTranspose", "XNNMaxPooling2d", "XNNStaticReshape", "XNNStaticSlice", "XNNStaticConstantPad", "XNNClamp",
    "XNNStaticResizeBilinear2D", "XNNCopy",
})  # fmt: skip
"""Operators of which XNNPACK wants outputs in the scale of their inputs."""


def pass_scales_on(graph: Json) -> None:
    """Give what operators that only move numbers write the scale of what they read, which may be another value now."""
    unions = {tensor_of(one)["id_out"]: one["xvalue_union"] for one in graph["xvalues"]}
    for entry in graph["xnodes"]:
        node = entry["xnode_union"]
        if entry["xnode_union_type"] in _ONE_SCALE:
            source, made = unions[node["input_id"]], unions[node["output_id"]]
            if "quant_params" in source and "quant_params" in made:
                made["quant_params"] = dict(source["quant_params"])


def integers(tree: Any) -> Iterator[tuple[Any, Any]]:
    """Places of the integers in nested JSON."""
    entries: Iterable[tuple[Any, Any]] = tree.items() if isinstance(tree, dict) else enumerate(tree)
    for key, value in entries:
        if isinstance(value, (dict, list)):
            yield from integers(value)
        elif isinstance(value, int):
            yield tree, key
