"""Every error that secateurs raises on purpose.

The tree::

    SecateursError
    ├── StructureError            the network cannot be analysed or cut correctly
    │   └── UnsupportedOperatorError
    ├── PlanError                 a plan, a budget or a search cannot be carried out
    │   ├── InfeasibleBudgetError     no legal network is that fast
    │   └── PlanMismatchError         the plan belongs to another network
    ├── TargetError               a runtime or a device
    │   ├── TargetUnavailableError    not installed or not reachable
    │   └── UnstableTimingError       the machine is too disturbed to measure
    ├── DataError                 images, labels, folders, weights
    └── ExportError               the deployed file cannot be written or differs

Each message says what happened (with the values), where, and what to do. The
command line prints it as one paragraph without a traceback. What another library
raised is told by :func:`why` inside it.
"""

from __future__ import annotations

import re
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_TERMINAL_CODES = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-Z\\-_])")
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")
_LONG_WORD = re.compile(r"\S{1000,}")
"""What somebody gave that is no name: told by its beginning."""
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[A-Z0-9'\"(\[`])|\n+")
_ABBREVIATIONS = ("e.g.", "i.e.", "vs.", "etc.", "cf.")
NO_EXIT = "Take that call out of it."
"""What to do about a factory, a loader or a forward that calls ``sys.exit``."""
MOST = 300
"""Characters of a reason, at most."""


class SecateursError(Exception):
    """Base of every error raised on purpose. ``exit_code`` is what the command line ends with."""

    exit_code = 1

    def __init__(self, *args: object) -> None:
        super().__init__(*(_LONG_WORD.sub(_cut_off, one) if isinstance(one, str) else one for one in args))


class StructureError(SecateursError):
    """The network cannot be analysed, or the cut network is not the same function."""


class UnsupportedOperatorError(StructureError):
    """An operator without a rule stands where a rule is needed."""


class PlanError(SecateursError):
    """A plan, a budget or a search setting cannot be carried out."""


class InfeasibleBudgetError(PlanError):
    """No legal network meets the budget; the message names the fastest point and what limits it.

    ``details``: the same as data (see :func:`secateurs.search.reach.infeasible`).
    """

    exit_code = 3

    def __init__(self, message: str, details: Mapping[str, Any] | None = None) -> None:
        super().__init__(message)
        self.details: Mapping[str, Any] = dict(details or {})


class PlanMismatchError(PlanError):
    """The plan was made for another network; the message names the first difference."""


class TargetError(SecateursError):
    """A runtime or a device failed."""


class TargetUnavailableError(TargetError):
    """The target's runtime is not installed or its device is not reachable."""


class UnstableTimingError(TargetError):
    """Timings spread too widely to be trusted, even after retries."""


class DataError(SecateursError):
    """Input data, weights or folders are missing, broken or of the wrong kind."""


class ExportError(SecateursError):
    """The deployed file cannot be written, or computes something else than the module."""


def checked(kind: Any, value: Any, what: str, advice: str, error: type[SecateursError] = PlanError) -> Any:
    """``value``, where it is of this kind: the one check of what comes from files, options and callers.

    Numbers of NumPy and PyTorch count as Python's; nothing else is converted.

    Args:
        kind: what pydantic takes: a class, ``int | None``, ``Annotated[float, Field(gt=0)]`` …
        value: whatever came.
        what: names it in the message.
        advice: last sentence of the message.
        error: raised where it is of another kind.
    """
    from pydantic import ConfigDict, PydanticUserError, TypeAdapter, ValidationError

    if type(value).__module__.partition(".")[0] in ("numpy", "torch") and not getattr(value, "shape", (1,)):
        value = value.item()
    try:
        adapter = TypeAdapter(kind, config=ConfigDict(arbitrary_types_allowed=True))
    except PydanticUserError:  # the kind has a configuration of its own
        adapter = TypeAdapter(kind)
    try:
        return adapter.validate_python(value, strict=True)
    except ValidationError as found:
        first = found.errors()[0]
        where = ".".join(str(part) for part in first["loc"] if not str(part).startswith(("function-", "is-")))
        shown = shortened(repr(value), 80)
        raise error(f"{what} is {shown}{f' (at {where})' if where else ''}: {first['msg']}. {advice}.") from found


def _cut_off(found: re.Match[str]) -> str:
    return f"{found[0][:100]}…"


def interrupted(error: BaseException | None) -> bool:
    """Whether Ctrl-C led to this error, through a library that made another one of it."""
    seen: set[int] = set()
    open_: list[BaseException | None] = [error]
    while open_:
        at = open_.pop()
        if at is None or id(at) in seen:
            continue
        if isinstance(at, KeyboardInterrupt):
            return True
        seen.add(id(at))
        open_ += [at.__cause__, at.__context__]
    return False


def plain(text: str) -> str:
    """``text`` without terminal codes and other control characters; line ends stay."""
    return _CONTROL.sub("", _TERMINAL_CODES.sub("", text.replace("\r\n", "\n")))


def root(error: BaseException) -> BaseException:
    """What led to ``error``: the end of its chain of causes, or the first in it that was raised on purpose."""
    seen: list[BaseException] = []
    at: BaseException | None = error
    while at is not None and at not in seen:
        seen.append(at)
        if isinstance(at, SecateursError):
            return at
        at = at.__cause__
    return seen[-1]


def why(error: BaseException, most: int = MOST) -> str:
    """Why it failed, as ``ValueError: whole sentences``, of at most ``most`` characters.

    Terminal codes are left out, causes are followed to the first one, and an error without a message names its place.
    """
    first = root(error)
    if isinstance(first, SecateursError):
        return str(first).strip().removesuffix(".")
    kind, text = type(first).__name__, shortened(str(first), most)
    if isinstance(first, OSError) and first.strerror:
        text = f"{first.strerror}: {first.filename}" if first.filename else first.strerror
    if not text:
        return f"{kind} without a message{_place(first)}"
    return text if text.startswith(f"{kind}:") else f"{kind}: {text}"


def shortened(text: str, most: int = MOST) -> str:
    """The first paragraph of a message on one line, whole sentences of it only, without the last full stop.

    Where the first sentence alone is too long, it ends at a word, with an ellipsis.
    """
    paragraph = re.split(r"(?<!:)\n\s*\n", plain(text).strip(), maxsplit=1)[0]
    kept = ""
    for sentence in _sentences(paragraph):
        longer = f"{kept}{'' if not kept else ' ' if kept[-1] in '.!?:,;' else '; '}{sentence}"
        if kept and len(longer) > most:
            break
        kept = longer
    if len(kept) > most:
        kept = f"{kept[:most].rsplit(' ', 1)[0].rstrip('.,;: ')} …"
    return kept.removesuffix(".")


def _sentences(paragraph: str) -> list[str]:
    """Sentences, and lines that end without a full stop, each on one line."""
    found: list[str] = []
    for part in _SENTENCE_END.split(paragraph):
        sentence = " ".join(part.split())
        if found and found[-1].endswith(_ABBREVIATIONS):
            found[-1] += f" {sentence}"
        elif sentence:
            found.append(sentence)
    return found


def _place(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    return f" (in {Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
