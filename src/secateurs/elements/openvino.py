"""Sparse networks in OpenVINO: the convolution as an extension operator, compiled for the installed runtime.

``to_openvino`` gives a model for ``openvino.save_model``; every program that reads or compiles it, in Python or C++,
first loads the library that ``extension`` names: ``core.add_extension(path)``. Needs the extra ``openvino``, whose
wheel brings the runtime's headers, and a C++ compiler; both only where the library is made.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from secateurs.elements import native
from secateurs.errors import StructureError, TargetUnavailableError, why
from secateurs.structure.untouched import exporting

LIBRARY = "libsecateurs_openvino.so"
OPERATOR = "SecateursSparseConv2d"
_TRANSLATED = "secateurs.sparse_conv2d.default"
_TO_CHANNELS_LAST, _TO_PLANAR = (0, 2, 3, 1), (0, 3, 1, 2)


def extension(folder: Path | None = None) -> Path:
    """Path of the extension library, compiled at the first call; it needs nothing but the OpenVINO that loads it.

    Args:
        folder: where to put it (default: the folder of the compiled kernels).

    Raises:
        TargetUnavailableError: OpenVINO, its headers or a C++ compiler are missing.
    """
    try:
        import openvino
    except ImportError as error:
        raise TargetUnavailableError(
            "OpenVINO is not installed, so there are no headers to compile its extension against. "
            "Install it: pip install 'secateurs[openvino]'."
        ) from error
    root = Path(openvino.__file__).parent
    runtime = [next(iter(sorted((root / "libs").glob(f"lib{name}.*so*"))), None) for name in ("openvino", "tbb")]
    if None in runtime or not (root / "include" / "openvino" / "op" / "op.hpp").exists():
        raise TargetUnavailableError(
            f"OpenVINO {openvino.__version__} in {root} has no headers or no shared libraries for Linux. "
            f"Install the package from PyPI: pip install --force-reinstall openvino."
        )
    recipe = native.Build(
        LIBRARY,
        ("openvino",),
        (f"-isystem{root / 'include'}",),
        tuple(str(path) for path in runtime),
    )
    return native.build(folder, recipe)


def to_openvino(module: fx.GraphModule, example: Tensor) -> Any:
    """``openvino.Model`` of a network that :func:`secateurs.elements.convert.convert` returned.

    Its sparse convolutions are ``SecateursSparseConv2d`` operators on [n, h, w, c] tensors; transpositions stand only
    where other operators read or write planar ones. Save it with ``compress_to_fp16=False``.

    Args:
        module: the converted network.
        example: an input; its shape becomes the model's.

    Raises:
        TargetUnavailableError: see :func:`extension`.
        StructureError: OpenVINO does not translate an operator of the network.
    """
    library = extension()
    import openvino
    from openvino.frontend.pytorch import ConversionExtension
    from openvino.utils.node_factory import NodeFactory

    factory = NodeFactory()
    factory.add_extension(str(library))
    with torch.inference_mode(False), torch.no_grad(), exporting(module):
        program = torch.export.export(module, (example,), strict=False)
    translation = ConversionExtension(_TRANSLATED, functools.partial(_translate, create=factory.create))
    try:
        model = openvino.convert_model(program, extension=[translation])
    except Exception as error:
        raise StructureError(
            f"OpenVINO {openvino.__version__} does not translate this network: {why(error)}. "
            f"Operators that it lacks must be replaced before the conversion."
        ) from error
    model.reshape(list(example.shape))
    return model


def _translate(context: Any, *, create: Callable[..., Any]) -> list[Any]:
    """The OpenVINO nodes of one sparse convolution, from its PyTorch arguments."""
    from openvino import opset13 as ops

    masks = context.get_input(2).get_node().data.astype(np.int16)
    weights = context.get_input(1).get_node()
    if weights.shape[0] == 0:  # a constant without elements would be dropped; no mask leads to this one
        weights = ops.constant(np.zeros((1, weights.shape[1]), np.float32))
    filters, geometry, activation = (context.get_values_from_const_input(index) for index in (6, 7, 8))
    x, bias, residual = (context.get_input(index) for index in (0, 4, 5))
    inputs = [
        _channels_last(x),
        weights,
        ops.constant(masks.view(np.uint8)),  # bytes: the CPU plugin widens 16-bit integers
        context.get_input(3).get_node(),
        ops.constant(np.zeros(filters, np.float32)) if _is_none(bias) else bias.get_node(),
    ]
    if not _is_none(residual):
        inputs.append(_channels_last(residual))
    attributes = {
        "geometry": [int(number) for number in geometry],
        "filters": int(filters),
        "activation": native.ACTIVATIONS[int(activation)],
    }
    node = create(OPERATOR, inputs, attributes)
    return ops.transpose(node, ops.constant(np.array(_TO_PLANAR))).outputs()


def _is_none(value: Any) -> bool:
    """Whether an optional argument was left out: its stand-in is of no operator set and reads nothing."""
    node = value.get_node()
    return node.get_type_name() == "PtFrameworkNode" and node.get_input_size() == 0


def _channels_last(value: Any) -> Any:
    """``value`` [n, c, h, w] as [n, h, w, c]; what a sparse convolution has just turned is taken as it was."""
    from openvino import opset13 as ops

    node = value.get_node()
    if node.get_type_name() == "Transpose" and node.input_value(0).get_node().get_type_name() == OPERATOR:
        return node.input_value(0)
    return ops.transpose(value, ops.constant(np.array(_TO_CHANNELS_LAST))).output(0)
