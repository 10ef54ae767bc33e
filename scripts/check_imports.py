"""Checks that imports inside secateurs point one way, and that numbers-only parts never import torch.

Exits 1 and prints every offending line as ``file:line: why``. Imports inside functions count too.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent / "src" / "secateurs"

CORE = {"errors", "plan", "network", "cost", "registry", "progress", "scratch"}
"""Values that every part may use."""

MAY_IMPORT: dict[str, set[str]] = {
    **dict.fromkeys(CORE, CORE),
    "structure": CORE,
    "importance": CORE | {"structure"},
    "recover": CORE | {"structure", "models", "data"},
    "export": CORE | {"structure"},
    "elements": CORE | {"structure"},
    "latency": CORE,
    "search": CORE,
    "report": CORE,
    "models": CORE,
    "data": CORE | {"models"},
    "testing": CORE
    | {"structure", "importance", "recover", "export", "elements", "latency", "search", "models", "data"},
}
"""Part of the package to the parts it may import, itself apart. Parts not named here (the main job, the command
line) stand on top and may import everything but the command line."""

WITHOUT_TORCH = {"errors", "plan", "network", "cost", "registry", "progress", "scratch", "search", "report"}
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
            allowed = MAY_IMPORT.get(part)
            if other == part or part in {"__init__", "__main__"}:
                continue
            if allowed is None:
                if other != "cli" or part == "cli":
                    continue
            elif other in allowed:
                continue
            reason = f"{part} may not import secateurs.{other}"
        else:
            continue
        if (line, reason) not in seen:
            seen.add((line, reason))
            yield f"{relative}:{line}: {reason}"


def main() -> int:
    """1 when an import points the wrong way, else 0."""
    found = [fault for path in sorted(ROOT.rglob("*.py")) for fault in faults(path)]
    for fault in found:
        print(f"src/secateurs/{fault}")
    print(f"imports: {len(found)} pointing the wrong way" if found else "imports: all point one way")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
