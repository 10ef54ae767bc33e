"""The built-in networks: their options, and how a weights file tells which variant it belongs to."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from secateurs.errors import DataError
from secateurs.models.cifar_resnet import CifarResNet
from secateurs.models.mobilenet_v1 import MobileNetV1
from secateurs.models.mobilenet_v2 import MobileNetV2
from secateurs.models.preprocessing import CENTERED, IMAGENET, Preprocessing
from secateurs.models.resnet import ResNet
from secateurs.models.vgg import Vgg16BatchNorm
from secateurs.models.weights import Weights

Options = dict[str, Any]


@dataclass(frozen=True)
class BuiltIn:
    """One built-in network.

    ``build`` makes the module from options; ``deduce`` reads the options that a weights file decides;
    ``defaults`` are the options with their values where neither the user nor the weights say otherwise.
    """

    build: Callable[[Options], nn.Module]
    deduce: Callable[[Weights], Options]
    defaults: Mapping[str, Any]
    preprocessing: Preprocessing
    size: int


def _cifar(depth: int, width: float = 1.0) -> BuiltIn:
    def build(options: Options) -> nn.Module:
        if float(options["width"]) * 16 < 1:
            raise DataError(f"Width {options['width']} leaves no channel in a CIFAR ResNet. Give at least 0.0625.")
        return CifarResNet(depth, classes=options["classes"], width=options["width"], channels=options["channels"])

    defaults = {"classes": 10, "width": width, "channels": 3}
    return BuiltIn(build, _deduce_cifar, defaults, IMAGENET, 32)


def _deduce_cifar(weights: Weights) -> Options:
    found: Options = {}
    stem, last = weights.shape("conv1.weight"), weights.shape("linear.weight")
    if stem is not None and len(stem) == 4:
        found["width"], found["channels"] = stem[0] / 16, stem[1]
    if last is not None and len(last) == 2:
        found["classes"] = last[0]
    return found


def _mobile(network: type[MobileNetV1] | type[MobileNetV2], stem: str) -> BuiltIn:
    def build(options: Options) -> nn.Module:
        return network(
            classes=options["classes"],
            width=options["width"],
            batch_norm=options["bn"],
            same=(not options["bn"]) if options["same"] is None else options["same"],
        )

    def deduce(weights: Weights) -> Options:
        found: Options = {"bn": weights.shape(f"{stem}_bn.weight") is not None}
        first, last = weights.shape(f"{stem}.weight"), weights.shape("fc.weight")
        if found["bn"] is False and weights.shape(f"{stem}.bias") is None:
            del found["bn"]
        if first is not None and len(first) == 4:
            found["width"] = _width_of(network, first[0], last)
        if last is not None and len(last) == 2:
            found["classes"] = last[0]
        if "padding" in weights.metadata:
            found["same"] = "SAME" in weights.metadata["padding"]
        return found

    defaults = {"classes": 1000, "width": 1.0, "bn": True, "same": None}
    return BuiltIn(build, deduce, defaults, CENTERED, 224)


def _width_of(network: type[nn.Module], stem: int, last: tuple[int, ...] | None) -> float:
    """Width multiplier from the first (and, being finer, the last) layer's channels."""
    if last is not None and len(last) == 2 and network is MobileNetV1 and last[1] >= 32:
        return last[1] / 1024
    if last is not None and len(last) == 2 and network is MobileNetV2 and last[1] > 1280:
        return last[1] / 1280
    return stem / 32


def _resnet(depth: int) -> BuiltIn:
    def build(options: Options) -> nn.Module:
        return ResNet(depth, classes=options["classes"])

    return BuiltIn(build, lambda weights: _last(weights, "fc.weight"), {"classes": 1000}, IMAGENET, 224)


def _vgg() -> BuiltIn:
    def build(options: Options) -> nn.Module:
        return Vgg16BatchNorm(classes=options["classes"], hidden=options["hidden"])

    def deduce(weights: Weights) -> Options:
        found = _last(weights, "classifier.6.weight")
        hidden = weights.shape("classifier.0.weight")
        if hidden is not None:
            found["hidden"] = hidden[0]
        return found

    return BuiltIn(build, deduce, {"classes": 1000, "hidden": 4096}, IMAGENET, 224)


def _last(weights: Weights, name: str) -> Options:
    shape = weights.shape(name)
    return {} if shape is None else {"classes": shape[0]}


PREPROCESSING: dict[type[nn.Module], Preprocessing] = {
    CifarResNet: IMAGENET,
    MobileNetV1: CENTERED,
    MobileNetV2: CENTERED,
    Vgg16BatchNorm: IMAGENET,
    ResNet: IMAGENET,
}
"""How pixels reach the built-in networks, for those that arrive as modules."""

BUILT_IN: dict[str, BuiltIn] = {
    **{f"cifar-resnet{depth}": _cifar(depth) for depth in (20, 32, 44, 56, 110)},
    "digits-resnet": _cifar(14, width=2.0),
    "mobilenet-v1": _mobile(MobileNetV1, "conv0"),
    "mobilenet-v2": _mobile(MobileNetV2, "stem"),
    "vgg16-bn": _vgg(),
    **{f"resnet{depth}": _resnet(depth) for depth in (18, 34, 50)},
}
