"""From a model's text (``cifar-resnet56``, ``file.py:factory`` …) to a module that is ready to run."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from secateurs.errors import DataError, why
from secateurs.files import read_json
from secateurs.models.built_in import BUILT_IN, PREPROCESSING, BuiltIn
from secateurs.models.external import build_timm, build_torchvision, build_user, config_of
from secateurs.models.preprocessing import IMAGENET, Preprocessing, as_preprocessing
from secateurs.models.weights import Weights, load_into, read_weights

Shape = tuple[int, int, int]


@dataclass(frozen=True)
class Loaded:
    """A network with everything that is needed to feed it.

    ``module``: in evaluation mode; ``input_shape``: (channels, height, width), or of a network that takes no images
    its first input without the batch; ``outputs``: shape of its output
    without the batch, None where it is no single tensor; ``source``: JSON-able, :func:`rebuild` takes it;
    ``notes``: what was deduced or assumed, for the user; ``pixels_told``: whether ``preprocessing`` was given or comes
    with the network, and is no guess; ``random``: whether the weights are known to be random.
    """

    module: nn.Module
    name: str
    input_shape: tuple[Any, ...]
    preprocessing: Preprocessing
    outputs: tuple[int, ...] | None
    source: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    pixels_told: bool = True
    random: bool = False

    @property
    def classes(self) -> int | None:
        """Number of classes, None where the output is not one vector per image."""
        return self.outputs[0] if self.outputs is not None and len(self.outputs) == 1 else None

    @property
    def mean(self) -> tuple[float, ...]:
        """Means that are subtracted, on the 0-1 scale when ``scale`` is 255."""
        return self.preprocessing.mean

    @property
    def std(self) -> tuple[float, ...]:
        """Standard deviations to divide by."""
        return self.preprocessing.std

    @property
    def scale(self) -> float:
        """What pixels 0-255 are divided by first."""
        return self.preprocessing.scale

    def example(self, batch: int = 1) -> torch.Tensor:
        """A fixed random input [batch, channels, height, width]."""
        generator = torch.Generator().manual_seed(0)
        return torch.randn(batch, *self.input_shape, generator=generator)


def names() -> list[str]:
    """Names of the built-in networks."""
    return list(BUILT_IN)


def load(
    text: str,
    *,
    weights: str | Path | None = None,
    classes: int | None = None,
    input_shape: Shape | None = None,
    otherwise: Callable[[nn.Module], Shape] | None = None,
    normalize: str | Preprocessing | None = None,
    seed: int = 0,
) -> Loaded:
    """The network that ``text`` names, with its weights, input shape and preprocessing.

    Args:
        text: a built-in name, ``timm:NAME``, ``torchvision:NAME``, ``file.py:factory`` or ``package.module:factory``,
            with options behind a question mark (``mobilenet-v1?width=0.25&size=128``). A factory gets them as
            keyword arguments (``size`` apart, which is the input size everywhere).
        weights: a ``.safetensors`` file, or a ``.pth`` that holds only tensors. Without it the weights are random
            (built-in, timm, torchvision) or the factory's own.
        classes: outputs of a built-in network; the weights' own number where there are weights.
        input_shape: (channels, height, width).
        otherwise: gives the shape where neither the caller nor the model says it.
        normalize: see :func:`~secateurs.models.preprocessing.parse_normalize`.
        seed: of random weights.

    Raises:
        DataError: unknown name or option, unreadable or wrong weights, or an input the network does not take.
    """
    loaded, size, held = _opened(text, weights, classes, seed)
    shape = _resolve_shape(loaded, size, input_shape, text, otherwise)
    if normalize is None:
        loaded = replace(loaded, preprocessing=loaded.preprocessing.for_channels(shape[0]))
    else:
        loaded = replace(loaded, preprocessing=as_preprocessing(normalize), pixels_told=True)
    loaded = replace(loaded, input_shape=shape)
    loaded.preprocessing.check(shape[0])
    loaded.module.eval()
    loaded = replace(loaded, outputs=_probe(loaded, text))
    source = {
        "model": loaded.name,
        "options": dict(loaded.source),
        "weights": None if held is None else str(Path(held.path).resolve()),
        "weights_sha256": None if held is None else held.sha256,
        "input_shape": list(shape),
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
        load_into(loaded.module, held, name)
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
        input_shape=_shape(source["input_shape"]),
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
    if ":" in name:
        module = build_user(name, options)
        told, size = carried(module), config_of(module).get("input_size")
        shape = unknown if size is None else _shape(size)
        return Loaded(module, name, shape, told or Preprocessing(), None, options, pixels_told=told is not None)
    raise DataError(
        f"Unknown model {name!r}. Give one of {', '.join(BUILT_IN)}, or timm:NAME, torchvision:NAME, "
        f"file.py:factory, package.module:factory."
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
    otherwise: Callable[[nn.Module], Shape] | None,
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


def _shape(values: Any) -> Shape:
    values = tuple(values)
    if len(values) != 3 or not all(isinstance(value, int) and 0 < value < 100_000 for value in values):
        raise DataError(f"Input shape {values} must be three sizes from 1 to 99999: channels, height, width.")
    return values


def _probe(loaded: Loaded, text: str) -> tuple[int, ...] | None:
    """Shape of the output without the batch; runs the network once, which also proves that it runs."""
    try:
        with torch.inference_mode():
            result = loaded.module(loaded.example())
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
    return tuple(result.shape[1:]) if isinstance(result, torch.Tensor) else None


def _form(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))
