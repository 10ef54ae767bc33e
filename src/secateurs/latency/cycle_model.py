"""Latency models that are formulas: on an FPGA the cycles of every layer are known, and nothing is measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from secateurs.errors import PlanError
from secateurs.fpga.choosing import best_engine
from secateurs.fpga.devices import Device
from secateurs.fpga.engine import Engine
from secateurs.fpga.layers import IntegerNetwork, LayerShape, LayerStep
from secateurs.latency.cycle_curve import CycleCurve, layer_ms
from secateurs.latency.predictor import LatencyModel, ModelError, SiteCost
from secateurs.latency.sites import Site
from secateurs.network import AxisSpec, LayerSpec, NetworkSpec


@dataclass(frozen=True)
class CycleFormula:
    """What tells the latency of a network at any widths on a device, by its quantised file at the dense ones.

    ``fingerprint``: of the target. The engine is the fastest one for the dense network.
    """

    spec: NetworkSpec
    network: IntegerNetwork
    device: Device
    fingerprint: Mapping[str, Any]
    batch: int = 1

    @property
    def engine(self) -> Engine:
        """That widths are rated on."""
        return best_engine({layer.name: layer.geometry for layer in self.network.layers}, self.device)

    def latency_model(self) -> LatencyModel:
        """A model without an error: nothing was fitted."""
        engine, spec = self.engine, self.spec
        curves, sites, fixed = list[CycleCurve](), list[SiteCost](), 0.0
        axes = self._axes()
        for layer in self.network.layers:
            curve = CycleCurve(layer.geometry, engine, self.device)
            if layer.name not in axes:
                fixed += layer_ms(layer.geometry, engine, self.device)
                continue
            inputs, outputs, blocks = axes[layer.name]
            sites.append(SiteCost(Site(layer.name, inputs, outputs, blocks, ("cycles", len(curves))), len(curves)))
            curves.append(curve)
        dense = sum(layer_ms(layer.geometry, engine, self.device) for layer in self.network.layers)
        return LatencyModel(
            network=spec.fingerprint,
            groups=tuple(group.name for group in spec.groups),
            dense_widths=tuple(spec.dense_widths.tolist()),
            dense_ms=dense,
            error=ModelError(0.0, 0.0, 0.0, 1.0, 0),
            target=dict(self.fingerprint),
            batch=self.batch,
            base_ms=fixed,
            sites=tuple(sites),
            curves=tuple(curves),
            noise=0.0,
            blocks=tuple(block.name for block in spec.blocks),
            digest=spec.digest,
        )

    def _axes(self) -> dict[str, tuple[AxisSpec | None, AxisSpec, tuple[int, ...]]]:
        """Axes and blocks of the layers by name; a mean has those of what is linear behind it."""
        known: dict[str, LayerSpec] = {layer.parameter.removesuffix(".weight"): layer for layer in self.spec.layers}
        found: dict[str, tuple[AxisSpec | None, AxisSpec, tuple[int, ...]]] = {}
        steps = [step for step in self.network.steps if isinstance(step, LayerStep)]
        for step in steps:
            layer = known.get(step.layer.name)
            if layer is not None:
                found[step.layer.name] = layer.inputs, layer.outputs, layer.blocks
            elif step.layer.mean:
                behind = next((known.get(one.layer.name) for one in steps if one.source == step.output), None)
                if behind is not None:
                    found[step.layer.name] = None, behind.inputs, ()
        return found

    def ms(self, points: Sequence[Any]) -> np.ndarray:
        """Times [points] of convolutions (:class:`secateurs.measure.kernel_times.KernelPoint`) with pruned elements.

        Raises:
            PlanError: one is dilated, or of two strides.
        """
        engine = self.engine
        return np.array([self._point_ms(point, engine) for point in points])

    def _point_ms(self, point: Any, engine: Engine) -> float:
        shape = point.shape
        if len(set(shape.stride)) > 1 or set(shape.dilation) != {1}:
            raise PlanError(f"A convolution of {shape} has no hardware: the engine's are of one stride, undilated.")
        top, left, bottom, right = shape.padding
        stride = shape.stride[0]
        height, width = (
            (size + lead + trail - kernel) // stride + 1
            for size, lead, trail, kernel in zip(
                shape.input_hw, (top, left), (bottom, right), shape.kernel, strict=True
            )
        )
        geometry = LayerShape(
            point.filters, point.channels, shape.kernel, stride, (top, left), shape.input_hw, (height, width)
        )
        whole = point.count >= shape.positions
        return layer_ms(geometry, engine, self.device, None if whole else max(1, round(point.count * point.channels)))
