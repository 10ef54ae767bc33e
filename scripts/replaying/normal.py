"""What is left out of a replay, and how the rest is written: the one place for both.

Left out, because it differs between two runs of the same code: seconds and dates, versions of libraries, absolute
paths, what names this machine (processor, instruction set, digest of a compiled library), names of temporary files. In
the small reference of the test also everything that another processor may round otherwise, see :func:`robust`.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

MASK = "~"
LEFT_OUT = frozenset({
    "seconds", "time", "created", "versions", "evaluations_per_second", "minutes_taken", "device", "system", "runtime",
    "isa", "library", "took", "digests",
})  # fmt: skip
"""Keys whose values are replaced by :data:`MASK`, at any depth; of a mapping the keys stay."""
_TEXTS = (
    (re.compile(r"0x[0-9a-f]{6,}"), "0x"),
    (re.compile(r"\b\d{4}-\d\d-\d\d[ T]\d\d:\d\d(:\d\d)?( UTC)?"), "DATE"),
    (re.compile(re.escape(tempfile.gettempdir()) + r"/[\w./-]*"), "TEMPORARY"),
)
ROUGH = frozenset({
    "file_bytes", "memory_bytes", "peak_memory_bytes", "size_bytes", "dense_bytes", "runs", "rounds", "correct",
    "dense_correct", "tie",
})  # fmt: skip
"""What depends on the exporter's version or on rounding, other than fractions."""
GIVEN = frozenset({"features", "penalty", "lr", "limit", "keep"})
"""Fractions that a user gives, or that follow from a count."""
_FRACTION = re.compile(r"(?<![\w.])\d+\.\d+")


class Writer:
    """Writes the files of one replay, with everything left out that this module names.

    Args:
        folder: where they go.
        places: absolute paths and what stands for them, the longest first.
        reduced: for the reference of the test: see :func:`robust`.
    """

    def __init__(self, folder: Path, places: Mapping[str, str], *, reduced: bool = False) -> None:
        self.folder, self.places, self.reduced = folder, dict(places), reduced

    def text(self, name: str, content: str) -> None:
        """One text file."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(self._plain(content), encoding="utf-8")

    def value(self, name: str, value: Any) -> None:
        """JSON values that the replay itself put together."""
        self.text(name, compact(self._shown(value)))

    def document(self, name: str, content: str) -> None:
        """A JSON file of the package; that its layout is the usual one is told, too."""
        value = json.loads(content)
        usual = content == json.dumps(value, indent=1) + "\n"
        if self.reduced:
            self.value(name, value)
        else:
            self.text(name, json.dumps(self._shown(value), indent=1) + ("\n" if usual else "\n(another layout)\n"))

    def _shown(self, value: Any) -> Any:
        value = masked(value, self._plain)
        return robust(value) if self.reduced else value

    def _plain(self, text: str) -> str:
        for path, name in self.places.items():
            text = text.replace(path, name)
        for pattern, name in _TEXTS:
            text = pattern.sub(name, text)
        return text


def masked(value: Any, plain: Callable[[str], str] = str) -> Any:
    """``value`` without what :data:`LEFT_OUT` names, and the data of an event so named; ``plain`` cleans every text."""
    if isinstance(value, Mapping):
        hidden = {*LEFT_OUT, "data"} if value.get("event") in LEFT_OUT else LEFT_OUT
        return {plain(str(key)): _hidden(item) if key in hidden else masked(item, plain) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [masked(item, plain) for item in value]
    return plain(value) if isinstance(value, str) else value


def _hidden(value: Any) -> Any:
    return {key: _hidden(item) for key, item in value.items()} if isinstance(value, Mapping) else MASK


def robust(value: Any) -> Any:
    """``value`` as every machine gives it: measured and trained numbers are masked, decisions stay.

    Fractions come from floating-point sums, whose last digits differ between processors and versions; they are masked,
    not rounded, for a rounded number can lie at the edge, too.
    """
    if isinstance(value, Mapping):
        return {key: _rough(key, item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [robust(item) for item in value]
    if isinstance(value, float):
        return MASK
    return _FRACTION.sub(MASK, value) if isinstance(value, str) else value


def _rough(key: str, value: Any) -> Any:
    if key in GIVEN:
        return value
    return MASK if key in ROUGH and value is not None else robust(value)


def compact(value: Any, indent: str = "") -> str:
    """JSON of which every mapping has a line per key, and a list of plain values stands on one line."""
    deeper = indent + " "
    if isinstance(value, Mapping) and value:
        lines = [
            f"{deeper}{json.dumps(str(key), ensure_ascii=False)}: {compact(item, deeper)}"
            for key, item in value.items()
        ]
    elif isinstance(value, (list, tuple)) and any(isinstance(item, (Mapping, list, tuple)) for item in value):
        lines = [deeper + compact(item, deeper) for item in value]
    else:
        return json.dumps(value, ensure_ascii=False) + ("" if indent else "\n")
    first, last = "{}" if isinstance(value, Mapping) else "[]"
    return f"{first}\n" + ",\n".join(lines) + f"\n{indent}{last}" + ("" if indent else "\n")
