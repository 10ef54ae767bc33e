"""Checks that imports inside secateurs point one way, and that numbers-only parts never import torch.

Exits 1 and prints every offending line as ``file:line: why``. Imports inside functions count too.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent / "src" / "secateurs"

VALUES = {
    "errors",
    "network",
    "progress",
    "cost",
    "registry",
    "provenance",
    "plan",
    "budgets",
    "resources",
    "files",
}
"""Values that every part may use."""
_MEASURED = {"export", "latency", "elements", "search", "structure", "report", "fpga"}
_WEIGHED = {"structure", "models", "data", "elements", "recover", "search"}
_PLANNED = _MEASURED | _WEIGHED | {"importance", "judging", "measure"}

MAY_IMPORT: dict[str, set[str]] = {
    **dict.fromkeys(VALUES, VALUES),
    "structure": VALUES,
    "models": VALUES,
    "search": VALUES,
    "report": VALUES,
    "elements": VALUES | {"structure"},
    "export": VALUES | {"structure"},
    "data": VALUES | {"models"},
    "fpga": VALUES,
    "latency": VALUES | {"elements", "fpga"},
    "recover": VALUES | {"structure", "models", "data", "elements", "search"},
    "importance": VALUES | _WEIGHED,
    "judging": VALUES | _WEIGHED | {"importance"},
    "measure": VALUES | _MEASURED,
    "planning": VALUES | _PLANNED,
    "jobs": VALUES | _PLANNED | {"planning"},
    "cli": VALUES | _PLANNED | {"planning", "jobs"},
    "testing": VALUES | _PLANNED,
}
"""Part of the package to the parts it may import, itself apart; a part that is not named here is a fault."""

WITHOUT_TORCH = {*VALUES, "search", "report", "fpga"}
TORCH_ONLY_IN = {"latency": ("targets", "engines")}
"""Parts where only these files or folders may import torch."""
LOADED_ON_DEMAND = {Path("search/lap/agent.py")}
"""Files of numbers-only parts that may import torch, because nothing imports them before a search needs them."""


def imports(tree: ast.AST, package: list[str]) -> Iterator[tuple[int, str]]:
    """(line, absolute module name) of every import statement; ``from a import b`` gives both ``a`` and ``a.b``."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join(base + ([node.module] if node.module else []))
            yield node.lineno, module
            for alias in node.names:
                yield node.lineno, f"{module}.{alias.name}"


def part_of(relative: Path) -> str:
    """``structure`` for structure/trace.py, ``plan`` for plan.py."""
    return relative.parts[0].removesuffix(".py")


def torch_allowed(relative: Path) -> bool:
    """Whether this file may import torch."""
    part = part_of(relative)
    if relative in LOADED_ON_DEMAND:
        return True
    if part in WITHOUT_TORCH:
        return False
    places = TORCH_ONLY_IN.get(part)
    return places is None or relative.parts[1] in places


def faults(path: Path, root: Path = ROOT) -> Iterator[str]:
    """One line of text for every import of ``path`` that points the wrong way."""
    relative = path.relative_to(root)
    part = part_of(relative)
    package = ["secateurs", *relative.parent.parts]
    parts = {child.name.removesuffix(".py") for child in root.iterdir()}
    seen = set()
    for line, module in imports(ast.parse(path.read_text(encoding="utf-8")), package):
        names = module.split(".")
        if names[0] in {"torch", "torchvision", "timm"} and not torch_allowed(relative):
            reason = f"{part} may not import {names[0]}"
        elif names[0] == "secateurs" and len(names) > 1 and names[1] in parts:
            other = names[1]
            if other == part or other in MAY_IMPORT.get(part, parts):  # of a part that is not listed see unlisted
                continue
            reason = f"{part} may not import secateurs.{other}"
        else:
            continue
        if (line, reason) not in seen:
            seen.add((line, reason))
            yield f"{relative}:{line}: {reason}"


def unlisted(root: Path = ROOT) -> Iterator[str]:
    """One line of text for every part that the table does not know, and for every one that it knows in vain."""
    folders = {path.parent.name for path in root.glob("*/__init__.py")}
    parts = folders | {path.stem for path in root.glob("*.py")} - {"__init__", "__main__"}
    for part in sorted(parts - set(MAY_IMPORT)):
        yield f"{part}: no part that the check knows; list it with what it may import"
    for part in sorted(set(MAY_IMPORT) - parts):
        yield f"{part}: listed, but not there; delete it from the table"


def main() -> int:
    """1 when an import points the wrong way, else 0."""
    found = [*unlisted(), *(fault for path in sorted(ROOT.rglob("*.py")) for fault in faults(path))]
    for fault in found:
        print(f"src/secateurs/{fault}")
    print(f"imports: {len(found)} pointing the wrong way" if found else "imports: all point one way")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
