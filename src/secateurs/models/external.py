"""Networks that are not built in: the user's own factories, timm and torchvision."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from secateurs.errors import DataError, why
from secateurs.files import require_regular
from secateurs.models.preprocessing import IMAGENET, Preprocessing


def import_factory(text: str, purpose: str) -> Callable[..., Any]:
    """The callable that ``file.py:name`` or ``package.module:name`` names.

    Raises:
        DataError: the file, the module or the name does not exist, or its code raises on import.
    """
    where, _, attribute = text.rpartition(":")
    if not where or not attribute:
        raise DataError(f"{purpose} {text!r} names no factory. Write file.py:factory or package.module:factory.")
    module = _import_file(Path(where), purpose) if where.endswith(".py") else _import_module(where, purpose)
    factory = getattr(module, attribute, None)
    if not callable(factory):
        public = [name for name in vars(module) if not name.startswith("_") and callable(getattr(module, name))]
        raise DataError(
            f"{purpose} {text!r}: {where} has no callable {attribute!r}. It defines {', '.join(public[:8]) or 'none'}."
        )
    return factory


def call_factory(factory: Callable[..., Any], options: Mapping[str, Any], text: str) -> Any:
    """What the user's factory returns, called with ``options`` as keyword arguments.

    Raises:
        DataError: the factory raised; its own error is the cause.
    """
    try:
        return factory(**options)
    except (Exception, SystemExit) as error:
        raise DataError(
            f"{text} raised {why(error)}. The factory is called with "
            f"{', '.join(f'{key}={value!r}' for key, value in options.items()) or 'no arguments'}; make it run alone."
        ) from error


def build_user(text: str, options: Mapping[str, Any]) -> nn.Module:
    """The module that the user's factory makes.

    Raises:
        DataError: see :func:`import_factory` and :func:`call_factory`; or the result is no ``nn.Module``.
    """
    made = call_factory(import_factory(text, "Model"), options, f"Model {text!r}")
    if not isinstance(made, nn.Module):
        raise DataError(f"Model {text!r} returned {type(made).__name__}, not a torch.nn.Module. Return the network.")
    return made


def build_timm(name: str, options: Mapping[str, Any]) -> tuple[nn.Module, tuple[int, int, int], Preprocessing]:
    """A timm network with its input shape (channels, height, width) and preprocessing.

    Raises:
        DataError: timm is not installed, or it cannot make this network.
    """
    timm = optional("timm", f"Model 'timm:{name}'")
    module = call_factory(timm.create_model, {"model_name": name, **options}, f"Model 'timm:{name}'")
    config = config_of(module)
    channels, height, width = config.get("input_size", (3, 224, 224))
    size = options.get("img_size")
    if isinstance(size, int):
        height = width = size
    channels = int(options.get("in_chans", channels))
    mean, std = config.get("mean", IMAGENET.mean), config.get("std", IMAGENET.std)
    return module, (channels, height, width), Preprocessing(tuple(mean), tuple(std))


def config_of(module: nn.Module) -> dict[str, Any]:
    """The configuration that timm's networks carry (mean, std, input_size …), {} for others."""
    for name in ("pretrained_cfg", "default_cfg"):
        found = getattr(module, name, None)
        if found and isinstance(found, Mapping):
            return dict(found)
        if found is not None and callable(getattr(found, "to_dict", None)):
            return dict(found.to_dict())
    return {}


def build_torchvision(name: str, options: Mapping[str, Any]) -> nn.Module:
    """A torchvision classification network with random weights.

    Raises:
        DataError: torchvision is not installed, or it cannot make this network.
    """
    text = f"Model 'torchvision:{name}'"
    models = optional("torchvision.models", text)
    unloaded: dict[str, Any] = {"weights": None}
    if "weights_backbone" in inspect.signature(call_factory(models.get_model_builder, {"name": name}, text)).parameters:
        unloaded["weights_backbone"] = None  # else it is downloaded
    return call_factory(models.get_model, {"name": name, **unloaded, **options}, text)


_IMPORTS_LATE = ("transformers",)
"""Packages that import torchvision long after they were imported themselves."""

_DECLARED: list[torch.library.Library] = []
"""Operators that torchvision's compiled part would bring; the library must live as long as they do."""


def optional(module: str, purpose: str, extra: str | None = None) -> ModuleType:
    """A package that need not be there.

    Where torchvision was built for another PyTorch than this one, its compiled operators do not load and its import
    fails, and with it that of packages above it such as timm, torchmetrics and transformers. Its networks need none
    of these
    operators: they are declared without a body, so that the rest loads.

    Args:
        module: dotted name.
        purpose: what needs it, for the message.
        extra: of this package that brings it.

    Raises:
        DataError: it is not installed, or broken in another way.
    """
    package = module.partition(".")[0]
    if package in _IMPORTS_LATE and importlib.util.find_spec("torchvision") is not None:
        optional("torchvision", purpose)
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise _unusable(package, purpose, error, extra) from error
    except RuntimeError as error:
        if "torchvision::" not in str(error) or _DECLARED:
            raise _unusable(package, purpose, error, extra) from error
        _declare_operators()
        return optional(module, purpose, extra)


def _declare_operators() -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        del sys.modules[name]  # what was imported of it before it failed
    _DECLARED.append(torch.library.Library("torchvision", "DEF"))
    for name in ("nms", "qnms"):
        _DECLARED[0].define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")


def _unusable(package: str, purpose: str, error: Exception, extra: str | None) -> DataError:
    wanted = package if extra is None else f"'secateurs[{extra}]'"
    return DataError(
        f"{purpose} needs {package}, which cannot be imported ({why(error)}). Install it or repair its installation: "
        f"pip install {wanted}"
    )


def _import_file(path: Path, purpose: str) -> ModuleType:
    require_regular(path, f"{purpose} file")
    if not path.is_file():
        raise DataError(f"{purpose} file {path} does not exist. Check the path before the colon.")
    path = path.resolve()
    name = f"_secateurs_user_{hashlib.sha256(str(path).encode()).hexdigest()[:12]}_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise DataError(f"{purpose} file {path} is no Python source file. Give a file that ends in .py.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    folder = str(path.parent)
    if folder not in sys.path:
        sys.path.insert(0, folder)
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise DataError(f"{purpose} file {path} raised {why(error)}. Make it import alone.") from error
    return module


def _import_module(name: str, purpose: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except (Exception, SystemExit) as error:
        raise DataError(
            f"{purpose} module {name!r} cannot be imported ({why(error)}). "
            f"Check the name before the colon; a file needs its .py ending."
        ) from error
