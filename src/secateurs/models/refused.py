"""What a file is that cannot be read as plain tensors, and how to save a safe one; nothing of it is carried out."""

from __future__ import annotations

import pickletools
import re
import zipfile
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import IO

_STATE_KEYS = ("state_dict", "model_state_dict", "model")
_HARMLESS = re.compile(
    r"collections\.|torch\.(_utils|_tensor|storage)\.|torch\.\w+$|_codecs\.|(__builtin__|builtins)\.set$"
)
_LISTED = 3


def description(path: Path) -> str:
    """What the file is and what to do about it: ``is …. Do …``"""
    with open(path, "rb") as file:
        head = file.read(512)
    if not head:
        return "is empty. Copy it again."
    if head.startswith(b"version https://git-lfs"):
        return "is a Git LFS pointer, not the file itself. Fetch the file: git lfs pull."
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < path.stat().st_size:
        return "holds safetensors. Give it the ending .safetensors."
    if head.lstrip()[:1] == b"<":
        return "is a web page, most likely an error of the download. Download the file again."
    if head.startswith(b"PK"):
        return _of_archive(path)
    with open(path, "rb") as file:
        return _of_pickle(path, *_pickled(file))


def _of_archive(path: Path) -> str:
    if not zipfile.is_zipfile(path):
        return "is cut off: the end of its archive is missing. Copy it again."
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        inner = {name.partition("/")[2] for name in names}
        if "constants.pkl" in inner or any(name.startswith("code/") for name in inner):
            return f"is a TorchScript program, not weights. {_once(path, 'torch.jit.load', '.state_dict()')}"
        if any(name.startswith("models/") for name in inner):
            return f"is an exported program, not weights. {_once(path, 'torch.export.load', '.state_dict')}"
        content = next((name for name in names if name.endswith("data.pkl")), None)
        if content is None:
            return f"is an archive of {', '.join(names[:_LISTED]) or 'nothing'}, not weights. {_STATE}"
        with archive.open(content) as file:
            return _of_pickle(path, *_pickled(file))


_STATE = "Save model.state_dict() with safetensors.torch.save_file."


def _of_pickle(path: Path, classes: Sequence[str], words: Sequence[str], roots: Collection[str]) -> str:
    foreign = [name for name in dict.fromkeys(classes) if not _HARMLESS.match(name)]
    if not classes and not words:
        return f"is no file that torch.save wrote. {_STATE}"
    whole = next((name for name in foreign if name in roots), None)
    if whole is not None:
        return (
            f"is a whole pickled object of class {whole}, as torch.save(model) writes it, and reading that runs code "
            f"from the file. {_once(path, 'torch.load', '.state_dict()')}"
        )
    if not foreign:
        return f"holds pickled values that are not tensors alone. {_STATE}"
    more = f" and {len(foreign) - _LISTED} more" if len(foreign) > _LISTED else ""
    key = next((name for name in _STATE_KEYS if name in words), None)
    part = "['KEY OF THE WEIGHTS']" if key is None else f"[{key!r}]"
    networks = any(name.startswith("torch.nn.modules.") for name in foreign)
    part += ".state_dict()" if networks else ""
    return (
        f"holds other Python objects beside tensors ({', '.join(foreign[:_LISTED])}{more}), and reading those runs "
        f"code from the file. {_once(path, 'torch.load', part)}"
    )


def _once(path: Path, load: str, part: str) -> str:
    """How to turn a file of the user's own into a safe one."""
    options = ", weights_only=False" if load == "torch.load" else ""
    return (
        f"If you trust it, save its tensors alone, once: import torch; from safetensors.torch import save_file; "
        f"save_file({load}({str(path)!r}{options}){part}, {str(path.with_suffix('.safetensors'))!r})"
    )


def _pickled(file: IO[bytes]) -> tuple[list[str], list[str], set[str]]:
    """Classes and functions that the pickles in a file name, their strings, and of what classes their objects are."""
    classes: list[str] = []
    words: list[str] = []
    roots: set[str] = set()
    try:
        while True:  # older files of PyTorch hold several pickles
            inside = False
            for code, value, _ in pickletools.genops(file):
                named = str(value).replace(" ", ".") if code.name == "GLOBAL" else None
                named = ".".join(words[-2:]) if code.name == "STACK_GLOBAL" else named
                if named is not None:
                    classes.append(named)
                    roots |= set() if inside else {named}
                elif isinstance(value, str):
                    words.append(value)
                inside = inside or named is not None or code.name in ("EMPTY_DICT", "EMPTY_LIST", "DICT", "LIST")
    except Exception:  # the end of the file, or what is no pickle
        return classes, words, roots
