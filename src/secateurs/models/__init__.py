"""Networks: built in, from the user's own factory, from timm, torchvision or transformers, from ONNX files."""

from __future__ import annotations

from secateurs.models.loaded import Loaded
from secateurs.models.loading import load, load_module, names, rebuild
from secateurs.models.own import own
from secateurs.models.preprocessing import Preprocessing, parse_normalize
from secateurs.models.weights import Weights, fitted, load_into, read_weights, save_weights

__all__ = [
    "Loaded",
    "Preprocessing",
    "Weights",
    "fitted",
    "load",
    "load_into",
    "load_module",
    "names",
    "own",
    "parse_normalize",
    "read_weights",
    "rebuild",
    "save_weights",
]
