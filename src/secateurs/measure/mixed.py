"""Files of the dense network in which any layers are int8: what they answer, and how long they take."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnxruntime

from secateurs.errors import TargetError
from secateurs.export.onnx import to_model
from secateurs.export.onnx_layers import OnnxLayers, layers_of, quantised_among
from secateurs.export.quantised import Ranges, quantised, ranges_of, samples
from secateurs.latency.targets import open_target
from secateurs.latency.timing import compare
from secateurs.measure.bench import QUICK
from secateurs.progress import Progress, silent
from secateurs.provenance import store_key

if TYPE_CHECKING:
    from secateurs.latency.store import Store
    from secateurs.latency.targets._base import Target
    from secateurs.structure import Graph

MIXES = 8
"""Networks with layers in float at random that conversions are learnt from."""


@dataclass(frozen=True)
class MixedFiles:
    """Quantised files of one network. ``model``: its float file; ``ranges``: of its tensors; ``seven_bits``: as of
    :class:`secateurs.export.quantised.Quantising`."""

    model: onnx.ModelProto
    ranges: Ranges
    seven_bits: bool = False

    @classmethod
    def of(cls, graph: Graph, calibration: Iterable[Any], *, batch: int = 1, seven_bits: bool = False) -> MixedFiles:
        """Of a traced network, with ranges over calibration samples.

        Raises:
            ExportError: it cannot be exported, or the samples give no ranges.
        """
        model = to_model(graph.model, (graph.args, graph.kwargs), batch=batch)
        return cls(model, ranges_of(model, samples(calibration, batch)), seven_bits)

    @cached_property
    def layers(self) -> OnnxLayers:
        """Its layers and what passes between them."""
        return layers_of(self.model)

    @cached_property
    def possible(self) -> frozenset[str]:
        """Layers that the quantizer has an int8 form of."""
        return quantised_among(self.layers, self._made(()))

    def file(self, in_float: Collection[str]) -> bytes:
        """The file with these layers in float and all others, and what joins their values, in int8."""
        made: bytes = self._made(self.layers.nodes(in_float)).SerializeToString()
        return made

    def only(self, layer: str) -> bytes:
        """The file in which nothing but one layer is int8."""
        own = set(self.layers.operators[layer])
        made: bytes = self._made(
            [node.name for node in self.model.graph.node if node.name not in own]
        ).SerializeToString()
        return made

    def _made(self, in_float: Collection[str]) -> onnx.ModelProto:
        return quantised(self.model, self.ranges, seven_bits=self.seven_bits, in_float=in_float)


class FileAnswers:
    """Answers of a file on this machine, by ONNX Runtime on one thread."""

    def __init__(self, content: bytes) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = 1, 4
        self._session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])

    def __call__(self, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Outputs [samples, ...] for inputs [samples, ...]; the last sample is repeated where the file takes more."""
        inputs = self._session.get_inputs()
        step, count = int(inputs[0].shape[0]), len(arrays[0])
        padded = [np.concatenate([array, np.repeat(array[-1:], -count % step, axis=0)]) for array in arrays]
        parts = [
            self._session.run(
                None, {entry.name: array[first : first + step] for entry, array in zip(inputs, padded, strict=True)}
            )
            for first in range(0, count, step)
        ]
        return [np.concatenate(outputs)[:count] for outputs in zip(*parts, strict=True)]


def drawn_mixes(layers: Sequence[str], seed: int, count: int = MIXES) -> list[frozenset[str]]:
    """Mixes at random, from few layers in float to all of them."""
    rng = np.random.default_rng([seed, 41])
    shares = np.linspace(0.15, 0.85, count - 1)
    found = [frozenset(name for name in layers if rng.random() < share) for share in shares]
    return [*(mix or frozenset(layers[:1]) for mix in found), frozenset(layers)]


def mixed_ratios(
    files: MixedFiles,
    mixes: Sequence[Collection[str]],
    target: str | Target,
    network: str,
    *,
    threads: int = 1,
    batch: int = 1,
    store: Store | None = None,
    progress: Progress = silent,
) -> list[float]:
    """Latency of every mix / that of the file that is quantised throughout, from one interleaved run.

    Args:
        files: of the dense network.
        mixes: layers that are in float, for every mix.
        target: what runs quantised files.
        network: the network's fingerprint, under which the figures are kept.
        threads: of the runtime.
        batch: that the files have.
        store: where figures are kept; nothing is measured twice.
        progress: where to report.

    Raises:
        TargetError: the runtime failed, or the machine is too disturbed to measure.
    """
    opened = open_target(target)
    fingerprint, names = opened.fingerprint(threads), [sorted(mix) for mix in mixes]
    signature = store_key("mixes", f"b{batch}", network)
    held = None if store is None else store.get(fingerprint, signature)
    if held is not None and held["mixes"] == names:
        return [float(ratio) for ratio in held["ratios"]]
    made: dict[str, Any] = {"dense": files.file(())}
    made |= {str(number): files.file(mix) for number, mix in enumerate(mixes)}
    seen = compare(opened, made, threads=threads, batch=batch, protocol=QUICK, progress=progress)
    ratios = [seen[str(number)].ratio for number in range(len(mixes))]
    if any(ratio is None for ratio in ratios):
        raise TargetError(f"{opened.name} gave no ratios of mixed files. Measure again.")
    if store is not None:
        store.put(fingerprint, {signature: {"mixes": names, "ratios": ratios}})
    return [float(ratio or 0.0) for ratio in ratios]
