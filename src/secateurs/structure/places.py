"""Where in the user's own code an error was raised."""

from __future__ import annotations

import linecache
import os
import traceback
from dataclasses import dataclass

from torch import nn

from secateurs.structure.reach import is_library


@dataclass(frozen=True)
class CodePlace:
    """``module``: path of the innermost of the user's own modules; ``source``: the line of its code; ``layer``: path of
    the innermost module of any kind. Empty texts where the user's code has no part in it."""

    module: str = ""
    source: str = ""
    layer: str = ""

    def __str__(self) -> str:
        return f"{self.module or 'its own forward'} ({self.source})" if self.source else ""


def place_of(error: BaseException, network: nn.Module) -> CodePlace:
    """Where in a network an error was raised."""
    paths = {id(module): path for path, module in network.named_modules()}
    module = source = layer = ""
    for frame, line in traceback.walk_tb(error.__traceback__):
        code, owner = frame.f_code, frame.f_locals.get("self")
        layer = paths.get(id(owner), layer)
        if not is_library(frame.f_globals.get("__name__")):
            text = linecache.getline(code.co_filename, line).strip()
            module, source = paths.get(id(owner), module), f"{os.path.basename(code.co_filename)}:{line}: {text}"
    return CodePlace(module, source, layer)
