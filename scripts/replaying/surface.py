"""What people and scripts hold on to: help texts, lists of names, signatures of the public names."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Iterator
from typing import Any

from replaying.doors import call
from replaying.normal import Writer


def write(writer: Writer) -> None:
    """``help/VERB.txt``, ``ls.json`` and ``signatures.json``."""
    texts = help_texts()
    for words, text in texts.items():
        writer.text(f"help/{'-'.join(words) or 'secateurs'}.txt", text)
    listed = json.loads(call("ls", "--json").output)
    if writer.reduced:  # what is here depends on the extras that are installed
        listed = [{key: row[key] for key in ("kind", "name")} for row in listed]
    writer.value("ls.json", listed)
    writer.value("signatures.json", dict(signatures()))
    wrong = [("nothing",), ("plan",), ("ls", "bread"), ("plan", "tiny", "-o", "plan.json"), ("prune", "-o", "nowhere")]
    said = {" ".join(words): call(*words) for words in wrong}
    writer.value("usage.json", {words: {"code": one.code, "error": one.error} for words, one in said.items()})


def help_texts() -> dict[tuple[str, ...], str]:
    """The help of the command, of every verb and of the verbs of its groups, by their words."""
    found: dict[tuple[str, ...], str] = {}
    due: list[tuple[str, ...]] = [()]
    while due:
        words = due.pop()
        found[words] = call(*words, "--help").output
        _, listed, below = found[words].partition("Commands:\n")
        if listed:
            due += [(*words, name) for name in re.findall(r"^  ([a-z][a-z-]*)", below, re.MULTILINE)]
    return found


def signatures() -> Iterator[tuple[str, Any]]:
    """Public names with their parameters and defaults, and the public members of classes.

    Annotations are left out: they name classes that may be renamed.
    """
    import secateurs

    for name in secateurs.__all__:
        value = getattr(secateurs, name)
        if not callable(value):
            yield name, type(value).__name__
        elif inspect.isclass(value):
            yield name, {"": _parameters(value), **dict(_members(value))}
        else:
            yield name, _parameters(value)


def _members(kind: type) -> Iterator[tuple[str, Any]]:
    fields = getattr(kind, "model_fields", None)
    if fields is not None:
        yield "fields", {name: field.alias or name for name, field in fields.items()}
    own = {
        name: item
        for base in reversed(kind.__mro__)
        if base.__module__.startswith("secateurs")
        for name, item in vars(base).items()
    }
    for name, item in sorted(own.items()):
        if name.startswith(("_", "model_")):
            continue
        function = getattr(item, "__func__", item)
        if isinstance(item, property):
            yield name, "property"
        elif inspect.isfunction(function):
            yield name, _parameters(function)


def _parameters(function: Any) -> list[str] | str:
    try:
        found = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return "no signature"
    return [f"{'*' if one.kind is one.KEYWORD_ONLY else ''}{one.name}{_default(one.default)}" for one in found]


def _default(value: Any) -> str:
    if value is inspect.Parameter.empty:
        return ""
    plain = value is None or isinstance(value, (str, int, float, bool, tuple))
    return f"={value!r}" if plain else "=…"
