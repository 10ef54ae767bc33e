"""Networks of Hugging Face's transformers, from a folder or by name: configuration and safetensors, never pickles."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from secateurs.errors import DataError, shortened, why
from secateurs.files import read_json, read_text
from secateurs.models.external import optional
from secateurs.models.preprocessing import Preprocessing

EXTRA = "hf"
_LENGTH = 128
_OPTIONS = ("length", "kind", "revision")


@dataclass(frozen=True)
class FromFolder:
    """A network. ``image``: (channels, height, width) where it takes images, else ``example`` holds its keyword inputs
    at batch 1; ``preprocessing``: of images, None where the folder does not say; ``random``: no weights were there."""

    module: nn.Module
    image: tuple[int, int, int] | None
    example: dict[str, torch.Tensor] | None
    preprocessing: Preprocessing | None
    notes: tuple[str, ...]
    random: bool


def open_hugging_face(where: str, options: Mapping[str, Any]) -> FromFolder:
    """The network of a folder with ``config.json`` and ``model.safetensors``, or of a name on the hub.

    It computes in float32. Without safetensors its weights are random, where the folder has no other weights either.

    Args:
        where: folder or name.
        options: ``length``: tokens of the example; ``kind``: the class in transformers, by default the first of the
            configuration's ``architectures``; ``revision``: of a name on the hub.

    Raises:
        DataError: transformers is not installed, the configuration cannot be read or needs code of its own, or the
            weights are pickles or do not fit.
    """
    unknown = [key for key in options if key not in _OPTIONS]
    if unknown:
        raise DataError(f"Model 'hf:{where}' has no option {unknown[0]!r}. There are {', '.join(_OPTIONS)}.")
    text = f"Model 'hf:{where}'"
    transformers = optional("transformers", text, EXTRA)
    folder = Path(where) if Path(where).is_dir() else None
    how = {} if folder is not None or "revision" not in options else {"revision": str(options["revision"])}
    with _quiet(transformers):
        try:
            config = transformers.AutoConfig.from_pretrained(where, trust_remote_code=False, **how)
        except Exception as error:
            raise _unreadable(where, error) from error
        cached = getattr(config, "use_cache", False)
        config.use_cache = False
        kind = _kind(transformers, config, str(options.get("kind", "")), text)
        module, notes, random = _module(kind, where, folder, config, how, text)
    if cached and getattr(module, "can_generate", bool)():
        notes = (*notes, "It computes without a cache of keys and values, and so will its exported file.")
    main = str(getattr(module, "main_input_name", "input_ids"))
    image = _image(config) if main == "pixel_values" else None
    example = None if image is not None else _example(module, main, config, int(options.get("length", _LENGTH)), text)
    return FromFolder(module, image, example, None if folder is None else _pixels(folder), notes, random)


@contextmanager
def _quiet(transformers: Any) -> Iterator[None]:
    """transformers and what it imports without progress bars and warnings: what matters is told by notes."""
    theirs, before = transformers.utils.logging, logging.root.manager.disable
    bars = theirs.is_progress_bar_enabled()
    logging.disable(logging.WARNING)
    theirs.disable_progress_bar()
    try:
        yield
    finally:
        logging.disable(before)
        if bars:
            theirs.enable_progress_bar()


def _unreadable(where: str, error: Exception) -> DataError:
    if "trust_remote_code" in str(error):
        return DataError(
            f"Model 'hf:{where}' needs Python code from its own folder, which is not run. Load it yourself and give "
            f"it as file.py:factory."
        )
    return DataError(
        f"Model 'hf:{where}' has no readable configuration ({shortened(why(error))}). Give a folder with config.json "
        f"and model.safetensors, as save_pretrained writes it, or a name on the hub where that can be reached."
    )


def _kind(transformers: Any, config: Any, asked: str, text: str) -> Any:
    """The class of the network."""
    names = [asked] if asked else [*(getattr(config, "architectures", None) or []), "AutoModel"]
    for name in names:
        found = getattr(transformers, name, None)
        if found is not None and hasattr(found, "from_pretrained"):
            return found
    raise DataError(
        f"{text}: transformers has no network {names[0]!r}. Name the class of the network: "
        "?kind=BertForSequenceClassification."
    )


def _module(
    kind: Any, where: str, folder: Path | None, config: Any, how: Mapping[str, Any], text: str
) -> tuple[nn.Module, tuple[str, ...], bool]:
    """The network in evaluation mode, what the user should know, and whether its weights are random."""
    if folder is not None and not any(folder.glob("*.safetensors")):
        _require_no_pickles(folder, text)
        make = kind.from_config if hasattr(kind, "from_config") else kind._from_config
        return make(config).float().eval(), (f"{folder} has no model.safetensors: the weights are random.",), True
    try:
        module, about = kind.from_pretrained(
            where, config=config, use_safetensors=True, dtype=torch.float32, output_loading_info=True, **how
        )
    except Exception as error:
        raise DataError(
            f"{text}: its weights cannot be read ({shortened(why(error))}). They must be safetensors of this very "
            f"network: model.save_pretrained(FOLDER) writes them."
        ) from error
    notes: list[str] = []
    stored = getattr(config, "dtype", None) or getattr(config, "torch_dtype", None)
    if stored in (torch.float16, torch.bfloat16):
        notes.append(
            f"The weights are stored in {str(stored).removeprefix('torch.')}; the network computes in float32."
        )
    missing = sorted(about.get("missing_keys", ()))
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        notes.append(f"Not in the file, so random: {', '.join(missing[:3])}{more}. Train it before it is pruned.")
    return module.eval(), tuple(notes), False


def _require_no_pickles(folder: Path, text: str) -> None:
    pickles = sorted(path.name for pattern in ("*.bin", "*.pt", "*.pth") for path in folder.glob(pattern))
    if pickles:
        raise DataError(
            f"{text} has its weights as pickles only ({', '.join(pickles[:3])}), and reading those can run code. If "
            f"you trust them, load the network with transformers and write it anew: model.save_pretrained(FOLDER)."
        )


def _image(config: Any) -> tuple[int, int, int]:
    """(channels, height, width) by the configuration."""
    vision = getattr(config, "vision_config", config)
    size = getattr(vision, "image_size", None) or 224
    height, width = size if isinstance(size, (list, tuple)) else (size, size)
    return int(getattr(vision, "num_channels", 3)), int(height), int(width)


def _example(module: nn.Module, main: str, config: Any, length: int, text: str) -> dict[str, torch.Tensor]:
    """Keyword inputs of one sample: tokens with their mask, or sound as the configuration says."""
    text_config = config.get_text_config() if hasattr(config, "get_text_config") else config
    if main == "input_ids":
        longest = getattr(text_config, "max_position_embeddings", None) or length
        length, vocabulary = min(length, int(longest)), int(text_config.vocab_size)
        ids = torch.randint(0, vocabulary, (1, length), generator=torch.Generator().manual_seed(0))
        found = {"input_ids": ids, "attention_mask": torch.ones(1, length, dtype=torch.long)}
    elif main == "input_values" and not hasattr(config, "num_mel_bins"):
        found = {main: torch.randn(1, max(length, 16_000), generator=torch.Generator().manual_seed(0))}
    elif main in ("input_values", "input_features"):
        bins, frames = (
            int(config.num_mel_bins),
            int(getattr(config, "max_length", None) or 2 * config.max_source_positions),
        )
        shape = (1, frames, bins) if main == "input_values" else (1, bins, frames)
        found = {main: torch.randn(shape, generator=torch.Generator().manual_seed(0))}
    else:
        raise DataError(
            f"{text} takes {main!r}, for which no example is known here. Load it yourself and use secateurs.prune "
            f"with an example of its inputs."
        )
    if getattr(config, "is_encoder_decoder", False):
        found["decoder_input_ids"] = torch.zeros(1, 8, dtype=torch.long)
    return found


def _pixels(folder: Path) -> Preprocessing | None:
    """What ``preprocessor_config.json`` says of pixels."""
    try:
        held = read_json(read_text(folder / "preprocessor_config.json"))
        mean, std = held["image_mean"], held["image_std"]
        if not held.get("do_normalize", True):
            mean, std = [0.0], [1.0]
        scale = 1 / float(held.get("rescale_factor") or 1 / 255) if held.get("do_rescale", True) else 1.0
        return Preprocessing(tuple(map(float, mean)), tuple(map(float, std)), scale)
    except (OSError, ValueError, KeyError, TypeError):
        return None
