"""Compares two replays: every file with the first place in which it differs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

KEPT = "kept"
"""Folder of a replay that another one starts from; not compared."""
_SHOWN = 160


def files(folder: Path) -> dict[str, Path]:
    """The files of a replay that count, by name."""
    found = {str(path.relative_to(folder)): path for path in sorted(folder.rglob("*")) if path.is_file()}
    return {name: path for name, path in found.items() if name.split("/")[0] != KEPT}


def differences(first: Path, second: Path) -> Iterator[str]:
    """One line per file that differs."""
    here, there = files(first), files(second)
    for name in sorted({*here, *there}):
        if name not in there:
            yield f"{name}: only in {first}"
        elif name not in here:
            yield f"{name}: only in {second}"
        else:
            one, two = here[name].read_text(encoding="utf-8"), there[name].read_text(encoding="utf-8")
            if one != two:
                yield f"{name}: {_where(one, two)}"


def _where(one: str, two: str) -> str:
    """The first place in which two different texts differ: a path in the JSON, or a line."""
    try:
        found = next(_paths(json.loads(one), json.loads(two), ""), None)
    except json.JSONDecodeError:
        found = None
    return found or next(_lines(one.splitlines(), two.splitlines()), "line ends differ")


def _paths(one: Any, two: Any, path: str) -> Iterator[str]:
    if isinstance(one, dict) and isinstance(two, dict):
        for key in dict.fromkeys([*one, *two]):
            if key not in two or key not in one:
                yield f"{path}/{key} is only in the {'first' if key in one else 'second'}"
            else:
                yield from _paths(one[key], two[key], f"{path}/{key}")
        if list(one) != list(two):
            yield f"{path or '/'}: the keys are in another order"
    elif isinstance(one, list) and isinstance(two, list):
        for number, (left, right) in enumerate(zip(one, two, strict=False)):
            yield from _paths(left, right, f"{path}/{number}")
        if len(one) != len(two):
            yield f"{path or '/'}: {len(one)} items, then {len(two)}"
    elif type(one) is not type(two) or one != two:
        yield f"{path or '/'}: {_short(json.dumps(one))}, then {_short(json.dumps(two))}"


def _lines(one: list[str], two: list[str]) -> Iterator[str]:
    for number, (left, right) in enumerate(zip(one, two, strict=False), 1):
        if left != right:
            yield f"line {number}: {_short(left)}, then {_short(right)}"
    if len(one) != len(two):
        yield f"{len(one)} lines, then {len(two)}"


def _short(text: str) -> str:
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


def compare(first: Path, second: Path) -> int:
    """Prints the differences; 1 where there are some, else 0.

    Raises:
        SystemExit: a folder holds no replay.
    """
    for folder in (first, second):
        if not files(folder):
            raise SystemExit(f"replay: there is no replay in {folder}. Make one with: scripts/replay write {folder}")
    found = list(differences(first, second))
    for line in found:
        print(line)
    count = len({*files(first), *files(second)})
    print(f"{len(found)} differences in {count} files")
    return 1 if found else 0
