"""The terminal, letter for letter: no text is read as markup or as the name of an emoji, wherever it comes from."""

from __future__ import annotations

from typing import IO

from rich.console import Console
from rich.text import Text

Part = str | tuple[str, str]
"""Text, or text with its style."""


def terminal(stream: IO[str] | None = None, *, stderr: bool = False, soft_wrap: bool = False) -> Console:
    """The console that everything is printed on; ``stream``: instead of standard output or error."""
    return Console(file=stream, stderr=stderr, soft_wrap=soft_wrap, highlight=False, markup=False, emoji=False)


def wide(console: Console) -> Console:
    """The same for a pipe, which has no width of its own: no line may break in the middle of a table."""
    same = terminal(console.file)
    same.width = max(100, console.width)
    return same


def styled(*parts: Part) -> Text:
    """One text of several parts, such as ``styled(("Note:", "yellow"), " nothing was cut")``."""
    return Text.assemble(*parts)
