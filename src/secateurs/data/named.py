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

FORMS = "digits, parquet:TRAIN,TEST, imagefolder:DIR, file.py:factory or package.module:factory"
_KNOWN = {"fit": ("crop", "stretch", "auto"), "broken": ("skip", "refuse"), "flip": ("0", "1")}
_FREE = ("pad", "image", "label", "classes", "pixels", "unpack")
_NUMBERS = {"pad": "pixels", "pixels": "millions of pixels", "unpack": "gigabytes"}


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
        """``digits``, ``parquet``, ``imagefolder``, or ``factory``.

        Raises:
            DataError: it is none of these.
        """
        kind, _, where = self.name.partition(":")
        if self.name == "digits" or (where and kind in ("parquet", "imagefolder")):
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
        for part in filter(None, self.text.partition("?")[2].split("&")):
            key, _, value = part.partition("=")
            if key not in _KNOWN and key not in _FREE:
                raise DataError(f"Data {self.text!r} has no option {key!r}. There are {', '.join([*_KNOWN, *_FREE])}.")
            if key in _KNOWN and value not in _KNOWN[key]:
                raise DataError(f"Data {self.text!r}: option {key}={value!r} must be one of {', '.join(_KNOWN[key])}.")
            if key in _NUMBERS and not re.fullmatch("[0-9]{1,4}", value):
                raise DataError(f"Data {self.text!r}: option {key}={value!r} must be a number of {_NUMBERS[key]}.")
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
