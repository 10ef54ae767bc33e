"""What can be chosen by name: strategies, criteria, targets, and how files of a format are written.

Built-ins are ``"module:attribute"`` strings, loaded on first use, so that listing names imports nothing heavy.
Third parties add a name with an entry point of the group ``secateurs.<kind>``::

    [project.entry-points."secateurs.targets"]
    my-board = "my_package.board:Board"
"""

from __future__ import annotations

import functools
import importlib
from importlib import metadata
from typing import Any

from secateurs.errors import PlanError, SecateursError, why

_BUILT_IN: dict[str, dict[str, str]] = {
    "strategies": {
        "uniform": "secateurs.search.uniform:Uniform",
        "splamp": "secateurs.search.splamp:SpLamp",
        "knapsack": "secateurs.search.knapsack:Knapsack",
        "global-rank": "secateurs.search.global_rank:GlobalRank",
        "greedy": "secateurs.search.greedy:Greedy",
        "halp": "secateurs.search.halp:Halp",
        "lap": "secateurs.search.lap.strategy:Lap",
        "hamp": "secateurs.search.hamp.strategy:Hamp",
        "front": "secateurs.search.hamp.picked:FromFront",
    },
    "criteria": {
        "random": "secateurs.importance.random:score",
        "l1": "secateurs.importance.l1:score",
        "l2": "secateurs.importance.l2:score",
        "l2_folded": "secateurs.importance.l2_folded:score",
        "lamp": "secateurs.importance.lamp:score",
        "bn_scale": "secateurs.importance.bn_scale:score",
        "fpgm": "secateurs.importance.fpgm:score",
        "taylor": "secateurs.importance.taylor:score",
        "taylor_bn": "secateurs.importance.taylor_bn:score",
        "fisher": "secateurs.importance.fisher:score",
        "obd": "secateurs.importance.obd:score",
        "activation": "secateurs.importance.activation:score",
        "reconstruction": "secateurs.importance.reconstruction:score",
        "obs": "secateurs.importance.obs:score",
        "fisher_obs": "secateurs.importance.fisher_obs:score",
        "measured": "secateurs.importance.measured:score",
        "splamp": "secateurs.importance.splamp:score",
        "acs": "secateurs.importance.dynamic:score",
        "acs_self": "secateurs.importance.dynamic:score_self",
    },
    "targets": {
        "onnxruntime-cpu": "secateurs.latency.targets.onnxruntime:OnnxRuntimeCpu",
        "openvino-cpu": "secateurs.latency.targets.openvino:OpenVinoCpu",
        "torch-cpu": "secateurs.latency.targets.torch:TorchCpu",
        "torch-compile-cpu": "secateurs.latency.targets.torch:TorchCompileCpu",
        "torch-sparse-cpu": "secateurs.latency.targets.torch_sparse:TorchSparseCpu",
        "executorch-xnnpack": "secateurs.latency.targets.executorch:ExecutorchXnnpack",
        "torch-cuda": "secateurs.latency.targets.torch_cuda:TorchCuda",
        "torch-compile-cuda": "secateurs.latency.targets.torch_cuda:TorchCompileCuda",
        "onnxruntime-cuda": "secateurs.latency.targets.onnxruntime_cuda:OnnxRuntimeCuda",
        "tensorrt": "secateurs.latency.targets.onnxruntime_cuda:TensorRt",
        "fpga": "secateurs.latency.targets.fpga:Fpga",
    },
    "exporters": {
        "onnx": "secateurs.export.onnx:export_onnx",
        "onnx:int8": "secateurs.export.quantised:export_onnx_int8",
        "onnx:int8-signed": "secateurs.export.quantised:export_onnx_signed",
        "onnx:fp16": "secateurs.export.half:export_onnx_half",
        "pt2": "secateurs.export.program:export_program",
        "pte": "secateurs.export.executorch:export_executorch",
        "pte:int8": "secateurs.export.executorch_int8:export_executorch_int8",
        "xml": "secateurs.export.open_vino:export_openvino",
        "xml:int8": "secateurs.export.open_vino:export_openvino_int8",
    },
    "variants": {
        "onnx": "secateurs.export.variants:onnx_variants",
        "onnx:int8": "secateurs.export.quantised_variants:quantised_variants",
        "onnx:int8-signed": "secateurs.export.quantised_variants:SignedVariants",
        "onnx:fp16": "secateurs.export.half:HalfVariants",
        "pt2": "secateurs.export.torch_variants:TorchVariants",
        "pte": "secateurs.export.executorch_variants:ExecutorchVariants",
        "pte:int8": "secateurs.export.executorch_int8:ExecutorchInt8Variants",
    },
}


def kinds() -> list[str]:
    """The kinds of things that have names."""
    return list(_BUILT_IN)


def names(kind: str) -> list[str]:
    """Every registered name of ``kind``, built-ins first."""
    extra = [point.name for point in metadata.entry_points(group=f"secateurs.{kind}")]
    return list(_BUILT_IN[kind]) + sorted(set(extra) - set(_BUILT_IN[kind]))


def load(kind: str, name: str) -> Any:
    """The object registered as ``name``.

    Raises:
        PlanError: the name is unknown (the message lists the known ones).
        SecateursError: the plug-in behind the name cannot be imported.
    """
    singular = {"strategies": "strategy", "criteria": "criterion"}.get(kind, kind[:-1])
    path = _BUILT_IN[kind].get(name)
    if path is None:
        for point in metadata.entry_points(group=f"secateurs.{kind}"):
            if point.name == name:
                path = point.value
    if path is None:
        raise PlanError(f"Unknown {singular} {name!r}. Known: {', '.join(names(kind))}. See 'secateurs ls {kind}'.")
    module, _, attribute = path.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except ImportError as error:
        raise SecateursError(
            f"{singular.capitalize()} {name!r} needs {error.name or module}, which cannot be imported ({why(error)}). "
            f"Install the extra that provides it, see the README's table of extras."
        ) from error


def completed(given: Any, declared: Any) -> Any:
    """``given`` with the default of every member that ``declared`` states and it lacks.

    Members are added to what a strategy or a target declares as time goes by. What inherits from it has their defaults;
    what was written before, or does not inherit, gets them here, and nobody else need ask whether a member is there.
    """
    if declared in type(given).__mro__:
        return given
    made: Any = object.__new__(_completing(declared))
    object.__setattr__(made, "given", given)
    return made


@functools.cache
def _completing(declared: Any) -> type:
    """Objects with the members of their ``given`` first, and those of ``declared`` after."""

    def read(made: object, name: str) -> Any:
        try:
            return getattr(object.__getattribute__(made, "given"), name)
        except AttributeError:
            return object.__getattribute__(made, name)

    return type(f"Completed{declared.__name__}", (declared,), {"__getattribute__": read})


@functools.cache
def completed_kind(kind: Any, declared: Any) -> Any:
    """The same for what makes such objects, a class or a function: what it makes is :func:`completed`.

    Members that are read of the class itself are its own where it has them.
    """
    if isinstance(kind, type) and declared in kind.__mro__:
        return kind

    def make(_: type, *arguments: Any, **settings: Any) -> Any:
        return completed(kind(*arguments, **settings), declared)

    stated = {name for base in declared.__mro__[:-1] for name in vars(base) if not name.startswith("_")}
    own = {name: getattr(kind, name) for name in stated if hasattr(kind, name)}
    return type(f"Completed{declared.__name__}", (declared,), {**own, "__new__": make})
