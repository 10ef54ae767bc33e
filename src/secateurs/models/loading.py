"""From a model's text (``cifar-resnet56``, ``file.py:factory`` …) to a module that is ready to run."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from secateurs.errors import DataError, why
from secateurs.files import read_json
from secateurs.models.built_in import BUILT_IN, PREPROCESSING, BuiltIn
from secateurs.models.external import build_timm, build_torchvision, build_user, config_of
from secateurs.models.from_files.hugging_face import open_hugging_face
from secateurs.models.loaded import Loaded, Shape, called, own_example
from secateurs.models.onnx_file.opening import open_onnx
from secateurs.models.preprocessing import IMAGENET, Preprocessing, as_preprocessing
from secateurs.models.weights import Weights, fitted, load_into, read_weights


def names() -> list[str]:
    """Names of the built-in networks."""
    return list(BUILT_IN)


def load(
    text: str,
    *,
    weights: str | Path | None = None,
    classes: int | None = None,
    input_shape: tuple[int, ...] | None = None,
    otherwise: Callable[[nn.Module], tuple[int, ...]] | None = None,
    normalize: str | Preprocessing | None = None,
    seed: int = 0,
) -> Loaded:
    """The network that ``text`` names, with its weights, input shape and preprocessing.

    Args:
        text: a built-in name, ``timm:NAME``, ``torchvision:NAME``, ``hf:FOLDER``, ``onnx:FILE``, ``file.py:factory``
            or ``package.module:factory``, with options behind a question mark (``mobilenet-v1?width=0.25&size=128``).
            A factory gets them as
            keyword arguments (``size`` apart, which is the input size everywhere).
        weights: a ``.safetensors`` file, or a ``.pth`` that holds only tensors (see
            :func:`~secateurs.models.weights.read_weights`). Without it the weights are random
            (built-in, timm, torchvision) or the factory's own.
        classes: outputs of a built-in network; the weights' own number where there are weights.
        input_shape: (channels, height, width); another number of sizes is that of an input that is no image.
        otherwise: gives the shape where neither the caller nor the model says it.
        normalize: see :func:`~secateurs.models.preprocessing.parse_normalize`.
        seed: of random weights.

    Raises:
        DataError: unknown name or option, unreadable or wrong weights, or an input the network does not take.
    """
    loaded, size, held = _opened(text, weights, classes, seed)
    loaded = _with_given(loaded, size, input_shape, otherwise)
    shape: tuple[Any, ...] = loaded.input_shape
    if loaded.given is None:
        shape = _resolve_shape(loaded, size, None if input_shape is None else _shape(input_shape), text, otherwise)
        if normalize is None:
            loaded = replace(loaded, preprocessing=loaded.preprocessing.for_channels(shape[0]))
        else:
            loaded = replace(loaded, preprocessing=as_preprocessing(normalize), pixels_told=True)
    loaded = replace(loaded, input_shape=shape)
    if loaded.given is None:
        loaded.preprocessing.check(shape[0])
    loaded.module.eval()
    loaded = replace(loaded, outputs=_probe(loaded, text))
    source = {
        "model": loaded.name,
        "options": dict(loaded.source),
        "weights": None if held is None else str(Path(held.path).resolve()),
        "weights_sha256": None if held is None else held.sha256,
        "input_shape": list(shape) if loaded.given is None or input_shape is not None else None,
        "preprocessing": loaded.preprocessing.to_dict() if loaded.pixels_told else None,
        "seed": seed,
    }
    return replace(loaded, source=source)


def load_module(text: str, *, weights: str | Path | None = None, seed: int = 0) -> tuple[nn.Module, tuple[str, ...]]:
    """The network that ``text`` names, in evaluation mode, and what was deduced or assumed, for the user.

    It is not run: whoever asks has an example of its inputs. Arguments and errors as those of :func:`load`.
    """
    loaded, _, _ = _opened(text, weights, None, seed)
    return loaded.module.eval(), loaded.notes


def _opened(
    text: str, weights: str | Path | None, classes: int | None, seed: int
) -> tuple[Loaded, Any, Weights | None]:
    """The network with its weights, the size that ``text`` gives, and the weights' file."""
    name, _, query = text.partition("?")
    options = _parse_options(query, text)
    size = options.pop("size", None)
    held = None if weights is None else read_weights(weights)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        loaded = _build(name, options, held, classes)
    if held is not None:
        fitting = fitted(held, loaded.module)
        load_into(loaded.module, fitting, name)
        loaded = replace(loaded, random=False, notes=(*loaded.notes, *fitting.notes))
    elif (name in BUILT_IN or name.startswith(("timm:", "torchvision:"))) and not options.get("pretrained"):
        note = f"{name} has random weights; give --weights FILE."
        loaded = replace(loaded, notes=(*loaded.notes, note), random=True)
    return loaded, size, held


def rebuild(source: Mapping[str, Any], *, weights: str | Path | None = None) -> Loaded:
    """The network that :attr:`Loaded.source` describes, from ``weights`` where the file has moved.

    Raises:
        DataError: as :func:`load`; or the weights file is not the one recorded.
    """
    path = weights if weights is not None else source["weights"]
    query = "&".join(f"{key}={json.dumps(value)}" for key, value in source["options"].items() if value is not None)
    loaded = load(
        f"{source['model']}?{query}" if query else source["model"],
        weights=path,
        input_shape=None if source["input_shape"] is None else tuple(source["input_shape"]),
        normalize=None if source["preprocessing"] is None else Preprocessing.from_dict(source["preprocessing"]),
        seed=source.get("seed", 0),
    )
    recorded = source.get("weights_sha256")
    if recorded is not None and loaded.source["weights_sha256"] != recorded:
        raise DataError(
            f"Weights file {path} has changed: its SHA-256 begins "
            f"{str(loaded.source['weights_sha256'])[:12]}, recorded was {recorded[:12]}. "
            f"Give the original file with --weights."
        )
    return loaded


def carried(module: nn.Module) -> Preprocessing | None:
    """How pixels reach a network that says so itself: the built-in ones and timm's do; None where it does not."""
    if type(module) in PREPROCESSING:
        return PREPROCESSING[type(module)]
    config = config_of(module)
    if config.get("mean") is None or config.get("std") is None:
        return None
    return Preprocessing(tuple(config["mean"]), tuple(config["std"]))


def _build(name: str, options: dict[str, Any], held: Weights | None, classes: int | None) -> Loaded:
    if name in BUILT_IN:
        return _build_built_in(name, BUILT_IN[name], options, held, classes)
    unknown: Shape = (0, 0, 0)
    if name.startswith("timm:"):
        if classes is not None:
            options.setdefault("num_classes", classes)
        module, shape, preprocessing = build_timm(name.removeprefix("timm:"), options)
        return Loaded(module, name, shape, preprocessing, None, options)
    if name.startswith("torchvision:"):
        if classes is not None:
            options.setdefault("num_classes", classes)
        module = build_torchvision(name.removeprefix("torchvision:"), options)
        return Loaded(module, name, (3, 224, 224), IMAGENET, None, options)
    if name.startswith("hf:"):
        return _of_hugging_face(name, options)
    if name.startswith("onnx:"):
        return _of_onnx(name, options)
    if ":" in name:
        module = build_user(name, options)
        told, size = carried(module), config_of(module).get("input_size")
        shape = unknown if size is None else _shape(size)
        told_shape, given = own_example(module)
        shape = told_shape or shape
        return Loaded(
            module, name, shape, told or Preprocessing(), None, options, pixels_told=told is not None, given=given
        )
    raise DataError(
        f"Unknown model {name!r}. Give one of {', '.join(BUILT_IN)}, or timm:NAME, torchvision:NAME, "
        f"hf:FOLDER, onnx:FILE, file.py:factory, package.module:factory."
    )


def _of_hugging_face(name: str, options: dict[str, Any]) -> Loaded:
    found = open_hugging_face(name.removeprefix("hf:"), options)
    shape = found.image or tuple(next(iter((found.example or {}).values())).shape[1:])
    told, pixels = found.preprocessing is not None, found.preprocessing or Preprocessing()
    return Loaded(
        found.module, name, shape, pixels, None, options, found.notes, told, found.random, given=found.example
    )


def _of_onnx(name: str, options: dict[str, Any]) -> Loaded:
    opened = open_onnx(name.removeprefix("onnx:"), options)
    shape = opened.image or tuple(opened.example[0].shape[1:])
    given = None if opened.image else opened.example
    return Loaded(
        opened.module, name, shape, Preprocessing(), None, options, opened.notes, pixels_told=False, given=given
    )


def _build_built_in(
    name: str, entry: BuiltIn, options: dict[str, Any], held: Weights | None, classes: int | None
) -> Loaded:
    for key, value in options.items():
        if key not in entry.defaults:
            known = ", ".join([*entry.defaults, "size"])
            raise DataError(f"Model {name} has no option {key!r} (given {key}={value}). It has {known}.")
    if classes is not None:
        options.setdefault("classes", classes)
    deduced = {} if held is None else entry.deduce(held)
    chosen = {**entry.defaults, **deduced, **options}
    _check_options(name, chosen)
    channels = int(chosen.get("channels", 3))
    facts = [f"{key}={deduced[key]:g}" for key in deduced if key not in options and key in ("width", "classes", "bn")]
    notes = (f"From the weights: {', '.join(facts)}.",) if facts else ()
    return Loaded(
        entry.build(chosen), name, (channels, entry.size, entry.size), entry.preprocessing, None, chosen, notes
    )


def _check_options(name: str, options: Mapping[str, Any]) -> None:
    """Raise where an option has a value of the wrong kind."""
    whole, number = ((int,), "a whole number above zero"), ((int, float), "a number above zero")
    rules = {"classes": whole, "channels": whole, "hidden": whole, "width": number}
    for key, value in options.items():
        if key in ("bn", "same"):
            if not (value is None or isinstance(value, bool) or value in (0, 1)):
                raise DataError(f"Model {name}: option {key}={value!r} must be true or false.")
        elif key in rules:
            kinds, wanted = rules[key]
            if isinstance(value, bool) or not isinstance(value, kinds) or not 0 < float(value) < 100_000:
                raise DataError(f"Model {name}: option {key}={value!r} must be {wanted}.")


def _parse_options(query: str, text: str) -> dict[str, Any]:
    options: dict[str, Any] = {}
    for part in filter(None, query.split("&")):
        key, equals, value = part.partition("=")
        if not equals or not key.isidentifier():
            raise DataError(f"Model {text!r}: {part!r} is not an option. Write NAME?option=value&option=value.")
        try:
            options[key] = read_json(value)
        except ValueError:
            options[key] = value
    return options


def _resolve_shape(
    loaded: Loaded,
    size: Any,
    explicit: Shape | None,
    text: str,
    otherwise: Callable[[nn.Module], tuple[int, ...]] | None,
) -> Shape:
    shape = loaded.input_shape if explicit is None else _shape(explicit)
    if min(shape) < 1 and size is None and otherwise is not None:
        shape = _shape(otherwise(loaded.module))
    if size is not None:
        sides = re.fullmatch(r"([1-9][0-9]{0,8})(?:x([1-9][0-9]{0,8}))?", str(size))
        if sides is None:
            raise DataError(f"Model {text!r}: size {size!r} must be pixels, such as size=128 or size=128x256.")
        height = int(sides[1])
        wanted = (shape[0] or 3, height, int(sides[2] or height))
        if explicit is not None and wanted[1:] != shape[1:]:
            raise DataError(f"Model {text!r} says size {size}, but the input is {_form(shape)}. Give one of the two.")
        shape = wanted
    if min(shape) < 1:
        raise DataError(
            f"Model {text!r} does not say its input size. Give --input 1,3,HEIGHT,WIDTH, or --data to take it from "
            f"the images."
        )
    return shape


def _with_given(
    loaded: Loaded, size: Any, asked: tuple[int, ...] | None, otherwise: Callable[[nn.Module], tuple[int, ...]] | None
) -> Loaded:
    """The same with an example of its inputs, where those are no image."""
    if loaded.given is not None:
        if size is not None or asked is not None:
            raise DataError(
                f"{loaded.name} says itself what it takes, and that is no image: --input and size say nothing of it. "
                "Give "
                f"the length of its inputs with the model's own options, such as ?length=64."
            )
        return loaded
    known = min(loaded.input_shape) > 0 or size is not None
    shape = asked if asked is not None else otherwise(loaded.module) if otherwise is not None and not known else None
    if shape is None or len(shape) == 3:
        return loaded
    if not all(isinstance(one, int) and 0 < one < 10_000_000 for one in shape):
        raise DataError(f"Input shape {tuple(shape)} must be sizes above zero.")
    given = torch.randn(1, *shape, generator=torch.Generator().manual_seed(0))
    return replace(loaded, given=given, input_shape=tuple(shape))


def _shape(values: Any) -> Shape:
    values = tuple(values)
    if len(values) != 3 or not all(isinstance(value, int) and 0 < value < 100_000 for value in values):
        raise DataError(f"Input shape {values} must be three sizes from 1 to 99999: channels, height, width.")
    return values


def _probe(loaded: Loaded, text: str) -> tuple[int, ...] | None:
    """Shape of the output without the batch; runs the network once, which also proves that it runs."""
    try:
        with torch.inference_mode():
            result = called(loaded.module, loaded.example())
    except (Exception, SystemExit) as error:
        raise DataError(
            f"Model {text!r} does not run on an input of shape {_form((1, *loaded.input_shape))}: {why(error)}. "
            f"Give the shape that it takes with --input, such as --input 1,3,224,224."
        ) from error
    return shape_of(result, f"Model {text!r}")


def shape_of(result: Any, what: str) -> tuple[int, ...] | None:
    """Shape of an output without the batch, None where it is no single tensor.

    Raises:
        DataError: it is nothing that a network could be compared by.
    """
    if result is None or isinstance(result, (str, bytes, bool, int, float)):
        raise DataError(f"{what} returned {type(result).__name__}, no tensor. Return the outputs from its forward.")
    scores = getattr(result, "logits", result)  # Hugging Face's outputs
    return tuple(scores.shape[1:]) if isinstance(scores, torch.Tensor) else None


def _form(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))
