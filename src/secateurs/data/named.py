"""A data source's text, read once: its form and options, and what a factory of the user's own returned."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from secateurs.data.datasets import guarded
from secateurs.data.tasks.task import Task
from secateurs.errors import DataError
from secateurs.models.external import call_factory, import_factory

FORMS = (
    "digits, parquet:TRAIN,TEST, imagefolder:DIR, coco:DIR, yolo:data.yaml, segmentation:DIR, csv:FILE, audio:DIR, "
    "file.py:factory or package.module:factory"
)
_BROKEN = ("skip", "refuse")
_KNOWN = {"fit": ("crop", "stretch", "auto"), "broken": _BROKEN, "flip": ("0", "1")}
_FREE = ("pad", "image", "label", "classes", "pixels", "unpack")
_PLACED: dict[str, tuple[str, ...]] = {"fit": ("letterbox", "stretch"), "order": ("rgb", "bgr"), "broken": _BROKEN}
FILES: dict[str, tuple[dict[str, tuple[str, ...]], tuple[str, ...]]] = {
    "coco": ({**_PLACED, "labels": ("ids", "order")}, ("train", "test", "images", "fill")),
    "yolo": (_PLACED, ("fill",)),
    "segmentation": (_PLACED, ("ignore", "fill")),
    "csv": (_PLACED, ("target", "inputs", "image", "split", "fill")),
    "audio": ({"broken": _BROKEN}, ("rate", "classes")),
}
"""Forms whose samples go by a task, with their options: those with known values, and free ones."""
_NUMBERS = {
    "pad": "a number of pixels",
    "pixels": "a number of millions of pixels",
    "unpack": "a number of gigabytes",
    **dict.fromkeys(("fill", "ignore", "rate"), "a whole number"),
}


@dataclass(frozen=True)
class Named:
    """A source as its text names it; a factory in it is called once, however often the source is opened."""

    text: str

    @property
    def name(self) -> str:
        """Without the options."""
        return self.text.partition("?")[0]

    @property
    def kind(self) -> str:
        """``digits``, ``parquet``, ``imagefolder``, one of :data:`FILES`, or ``factory``.

        Raises:
            DataError: it is none of these.
        """
        kind, _, where = self.name.partition(":")
        if self.name == "digits" or (where and kind in ("parquet", "imagefolder", *FILES)):
            return kind
        if not where:
            raise DataError(f"Unknown data {self.name!r}. Give one of: {FORMS}.")
        return "factory"

    @property
    def where(self) -> str:
        """What stands behind the form."""
        return self.name.partition(":")[2]

    @cached_property
    def options(self) -> dict[str, str]:
        """Options behind the question mark.

        Raises:
            DataError: one is unknown or has a wrong value.
        """
        options: dict[str, str] = {}
        known, free = FILES.get(self.kind, (_KNOWN, _FREE))
        for part in filter(None, self.text.partition("?")[2].split("&")):
            key, _, value = part.partition("=")
            if key not in known and key not in free:
                raise DataError(f"Data {self.text!r} has no option {key!r}. There are {', '.join([*known, *free])}.")
            if key in known and value not in known[key]:
                raise DataError(f"Data {self.text!r}: option {key}={value!r} must be one of {', '.join(known[key])}.")
            if key in _NUMBERS and not re.fullmatch("[0-9]{1,6}", value):
                raise DataError(f"Data {self.text!r}: option {key}={value!r} must be {_NUMBERS[key]}.")
            options[key] = value
        return options

    @cached_property
    def _made(self) -> tuple[Any, Any, Task | None]:
        made = call_factory(import_factory(self.name, "Data"), {}, f"Data {self.name!r}")
        right = isinstance(made, (list, tuple)) and len(made) in (2, 3)
        if not right or (len(made) == 3 and not isinstance(made[2], Task)):
            raise DataError(
                f"Data {self.name!r} returned {type(made).__name__}, not two loaders. Return (train, test), or "
                f"(train, test, task) with a secateurs.Task."
            )
        first, second = (
            list(guarded(part, name)) if isinstance(part, Iterator) else part
            for part, name in zip(made[:2], ("training", "test"), strict=True)
        )
        return first, second, made[2] if len(made) == 3 else None

    @property
    def made(self) -> tuple[Any, Any]:
        """The two loaders of a factory; what can be gone through only once is read into lists.

        Raises:
            DataError: the factory fails, or returns something else.
        """
        return self._made[:2]

    @property
    def task(self) -> Task | None:
        """What a factory says that its samples are for, if it does.

        Raises:
            DataError: as of :attr:`made`.
        """
        return self._made[2]
