"""What ONNX operators do, in PyTorch: one file per family; layers with weights are in ``layers.py``."""

from __future__ import annotations

from secateurs.models.onnx_file.operators import computing, moving, pooling
from secateurs.models.onnx_file.values import OPERATORS, Operator

FAMILIES = (computing, moving, pooling)
LAYERS = ("Conv", "ConvTranspose", "BatchNormalization")
"""Operators whose weights are constants, which become layers."""


def known(name: str) -> bool:
    """Whether an operator can be rebuilt."""
    return name in OPERATORS or name in LAYERS


def function_of(name: str) -> Operator:
    """What an operator does."""
    return OPERATORS[name]
