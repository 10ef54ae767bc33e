"""Checks that the package stays a few rooms with a door each: no circles, no crowded room, no long file or function.

Exits 1 and prints every offending place as ``file:line: why``:

- a circle among the packages, or among the files of one (imports for annotations only apart);
- a module, a function's body or a parameter list above :data:`MOST`, unless :data:`EXCEPTIONS` gives a reason; a reason
  for something that is short by now is a fault, too;
- too many files at the top, too many packages, or too many modules in a package that does not hold one per method;
- a module of :data:`TESTED_ALONE` without a test file of its own;
- two public classes of one name, unless :data:`ONE_NAME` gives a reason.

Which part may import which is checked by ``scripts/check_imports.py``, citations by ``scripts/check_citations.py``.
"""

from __future__ import annotations

import ast
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "secateurs"
MOST = {"lines": 400, "body": 60, "parameters": 8, "files at the top": 12, "packages": 17, "modules in a package": 14}
"""Of packages: the sixteen of the pipeline, and ``fpga``, which is hardware and knows nothing of PyTorch."""
WITHOUT_LIMIT = {
    "cli": "one file per verb",
    "data": "one file per form of data and per kind of task",
    "export": "one file per format, and one for its variants",
    "importance": "one file per criterion",
    "models": "one file per network, and per kind of file that networks come in",
    "jobs": "one file per stage of a run, and one per door",
    "latency": "one file per runtime, and one for its worker",
    "recover": "one file per schedule and per repair",
    "search": "one file per strategy",
    "structure": "one file per operator family",
}
"""Packages that may hold more modules, and why."""
_VERB = "a public verb: its parameters are what a user may say"
_OPERATOR = "an operator's parameters are given by its schema"
EXCEPTIONS: dict[tuple[str, str], str] = {
    ("jobs/entry.py:prune", "parameters"): _VERB,
    ("jobs/front_entry.py:front", "parameters"): _VERB,
    ("planning/entry.py:plan", "parameters"): _VERB,
    ("planning/elements/costs.py:measured_space", "parameters"): "takes what profile takes, and what is chosen from",
    ("latency/model.py:profile", "parameters"): "takes what the verb takes, and how plans are proposed",
    ("judging/evaluator.py:make_evaluator", "parameters"): "the door to a judge: network, images, and how it repairs",
    (
        "structure/graph.py:Graph.__init__",
        "parameters",
    ): "trace alone calls it: a network, its call, its programs, wishes",
    ("elements/operator.py:_run", "parameters"): _OPERATOR,
    ("elements/operator.py:_run_dense", "parameters"): _OPERATOR,
    ("elements/operator.py:_fake", "parameters"): _OPERATOR,
    ("elements/reference.py:conv2d", "parameters"): _OPERATOR,
    ("testing/structure_judge.py:_trilinear", "parameters"): _OPERATOR,
    ("testing/structure_judge.py:_group_norm", "parameters"): _OPERATOR,
}
"""(file or file:function, limit): why it may be above that limit."""
TESTED_ALONE = ("jobs", "planning", "measure", "judging")
"""Packages of which every module has a test file of its own."""

ONE_NAME: dict[str, tuple[frozenset[str], str]] = {
    "BasicBlock": (
        frozenset({"models/cifar_resnet.py", "models/resnet.py"}),
        "the papers' name of the block in both families of networks",
    ),
    "Choice": (
        frozenset({"planning/planner.py", "recover/schedules/_base.py"}),
        "one thing: the protocol is as much of the planner's as a schedule may see",
    ),
    "Factor": (
        frozenset({"search/tables.py", "structure/values.py"}),
        "the words of two fields, which never meet: variable elimination, and ids along an axis",
    ),
    "ModelError": (
        frozenset({"latency/predictor.py", "report/record.py"}),
        "one thing: the second is how result.json spells the first",
    ),
    "Schedule": (
        frozenset({"elements/penalty.py", "recover/schedules/_base.py"}),
        "both are in the docs: how a penalty grows, and when units go",
    ),
    "Session": (
        frozenset({
            f"latency/engines/{name}.py"
            for name in ("execu_torch", "fpga", "onnx_runtime", "open_vino", "py_torch", "torch_cuda", "torch_sparse")
        }),
        "one thing: every engine's loaded program, behind one protocol",
    ),
    "Task": (
        frozenset({"data/tasks/task.py", "progress.py"}),
        "the words of two fields: what a network is for, and a piece of work whose progress is shown",
    ),
}  # fmt: skip
"""Class to the files that may define it, and why."""


@dataclass(frozen=True)
class Module:
    """One file of the package. ``name``: dotted, without the package's own; of ``__init__.py`` that of its folder."""

    path: Path
    name: str

    @cached_property
    def text(self) -> str:
        """Its source."""
        return self.path.read_text(encoding="utf-8")

    @cached_property
    def tree(self) -> ast.Module:
        """Its syntax."""
        return ast.parse(self.text)

    @property
    def part(self) -> str:
        """The package at the top that it belongs to, or its own name."""
        return self.name.partition(".")[0]


def modules(root: Path) -> dict[str, Module]:
    """Every file of the package by its dotted name; the package's own ``__init__`` is ``""``."""
    base, found = root / "src" / PACKAGE, {}
    for path in sorted(base.rglob("*.py")):
        names = path.relative_to(base).with_suffix("").parts
        name = ".".join(names[:-1] if names[-1] == "__init__" else names)
        found[name] = Module(path, name)
    return found


def imported(module: Module, known: Mapping[str, Module]) -> dict[str, int]:
    """Files that a module imports when it runs, with the line; also those that it imports inside functions."""
    found: dict[str, int] = {}
    package = module.name if module.path.name == "__init__.py" else module.name.rpartition(".")[0]
    for node in _running(module.tree):
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = _base(node, package)
            targets = [f"{base}.{alias.name}" for alias in node.names]
        else:
            continue
        for target in targets:
            name = _file(target, known)
            if name is not None and name != module.name:
                found.setdefault(name, node.lineno)
    return found


def _running(tree: ast.AST) -> Iterator[ast.AST]:
    """Every node but those below ``if TYPE_CHECKING``."""
    for child in ast.iter_child_nodes(tree):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            for other in child.orelse:
                yield other
                yield from _running(other)
            continue
        yield child
        yield from _running(child)


def _base(node: ast.ImportFrom, package: str) -> str:
    if not node.level:
        return node.module or ""
    parts = [PACKAGE, *filter(None, package.split("."))]
    return ".".join([*parts[: len(parts) - node.level + 1], *filter(None, [node.module])])


def _file(target: str, known: Mapping[str, Module]) -> str | None:
    """The module that a dotted name leads to, None where it is not ours."""
    names = target.split(".")
    if names[0] != PACKAGE:
        return None
    for count in range(len(names), 1, -1):
        name = ".".join(names[1:count])
        if name in known:
            return name
    return None


def circles(arrows: Mapping[str, Mapping[str, int]]) -> Iterator[list[str]]:
    """One circle of every set of names that reach each other, beginning and ending with the same name."""
    reach = {name: _reached(name, arrows) for name in arrows}
    done: set[str] = set()
    for name in sorted(arrows):
        if name in reach[name] and name not in done:
            done |= {other for other in reach[name] if name in reach.get(other, ())}
            yield _shortest(name, arrows)


def _reached(start: str, arrows: Mapping[str, Mapping[str, int]]) -> set[str]:
    found: set[str] = set()
    due = list(arrows[start])
    while due:
        name = due.pop()
        if name not in found:
            found.add(name)
            due += arrows.get(name, {})
    return found


def _shortest(start: str, arrows: Mapping[str, Mapping[str, int]]) -> list[str]:
    """The shortest way from a name back to itself."""
    ways = [[start]]
    seen: set[str] = set()
    for way in ways:
        for name in sorted(arrows.get(way[-1], {})):
            if name == start:
                return [*way, name]
            if name not in seen:
                seen.add(name)
                ways.append([*way, name])
    raise AssertionError(f"{start} is in no circle")


def circle_faults(root: Path) -> Iterator[str]:
    """Circles among the packages, and among the files of each."""
    known = modules(root)
    arrows = {name: imported(module, known) for name, module in known.items() if name not in ("", "__main__")}
    parts: dict[str, dict[str, int]] = {}
    for name, targets in arrows.items():
        part = known[name].part
        for target, line in targets.items():
            other = known[target].part
            if other not in ("", part):
                parts.setdefault(part, {}).setdefault(other, line)
    for circle in circles(parts):
        yield f"packages in a circle: {' → '.join(circle)}"
    for part in sorted({known[name].part for name in arrows}):
        inside = {
            name: {target: line for target, line in targets.items() if known[target].part == part}
            for name, targets in arrows.items()
            if known[name].part == part
        }
        for circle in circles(inside):
            where = known[circle[0]].path.relative_to(root)
            yield f"{where}:{inside[circle[0]][circle[1]]}: files in a circle: {' → '.join(circle)}"


def size_faults(root: Path, exceptions: Mapping[tuple[str, str], str] | None = None) -> Iterator[str]:
    """Long modules, long bodies and long parameter lists without a reason, and reasons that are needed no more."""
    reasons = EXCEPTIONS if exceptions is None else exceptions
    needed = set()
    for module in modules(root).values():
        where = module.path.relative_to(root / "src" / PACKAGE).as_posix()
        for line, name, limit, count in _sizes(module):
            key = (f"{where}:{name}" if name else where, limit)
            if key in reasons:
                needed.add(key)
                continue
            what = f"{name}() has" if name else "the module has"
            unit = {"lines": "lines", "body": "lines in its body", "parameters": "parameters"}[limit]
            yield f"src/{PACKAGE}/{where}:{line}: {what} {count} {unit}, {MOST[limit]} at most"
    for key in sorted(set(reasons) - needed):
        yield f"scripts/check_structure.py: the exception {key} is needed no more; delete it"


def _sizes(module: Module) -> Iterator[tuple[int, str, str, int]]:
    """(line, function or "", limit, count) of what is above a limit."""
    count = len(module.text.splitlines())
    if count > MOST["lines"]:
        yield 1, "", "lines", count
    for name, function in _functions(module.tree, ""):
        body = function.body[1:] if ast.get_docstring(function) is not None else function.body
        length = (body[-1].end_lineno or 0) - body[0].lineno + 1 if body else 0
        if length > MOST["body"]:
            yield function.lineno, name, "body", length
        parameters = _parameters(function)
        if parameters > MOST["parameters"] and module.part != "cli":
            yield function.lineno, name, "parameters", parameters


def _functions(tree: ast.AST, prefix: str) -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    for child in ast.iter_child_nodes(tree):
        if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield f"{prefix}{child.name}", child
            yield from _functions(child, f"{prefix}{child.name}.")
        elif isinstance(child, ast.ClassDef):
            yield from _functions(child, f"{prefix}{child.name}.")
        else:
            yield from _functions(child, prefix)


def _parameters(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Without ``self`` and ``cls``."""
    given = function.args
    named = [*given.posonlyargs, *given.args, *given.kwonlyargs, *filter(None, [given.vararg, given.kwarg])]
    return len(named) - bool(named and named[0].arg in ("self", "cls"))


def room_faults(root: Path) -> Iterator[str]:
    """Too many files at the top, packages, or modules in a package."""
    base = root / "src" / PACKAGE
    top = sorted(base.glob("*.py"))
    if len(top) > MOST["files at the top"]:
        yield f"src/{PACKAGE}: {len(top)} files at the top, {MOST['files at the top']} at most"
    packages = sorted(path.parent for path in base.glob("*/__init__.py"))
    if len(packages) > MOST["packages"]:
        yield f"src/{PACKAGE}: {len(packages)} packages, {MOST['packages']} at most"
    for package in packages:
        count = sum(path.name != "__init__.py" for path in package.rglob("*.py"))
        if count > MOST["modules in a package"] and package.name not in WITHOUT_LIMIT:
            yield f"src/{PACKAGE}/{package.name}: {count} modules, {MOST['modules in a package']} at most"


def test_faults(root: Path) -> Iterator[str]:
    """Modules of :data:`TESTED_ALONE` that have no test file of their own, where the tests mirror the package."""
    for name, module in modules(root).items():
        if module.part in TESTED_ALONE and module.path.name != "__init__.py":
            *folders, last = name.split(".")
            if not (root / "tests").joinpath(*folders, f"test_{last}.py").is_file():
                yield f"src/{PACKAGE}/{name.replace('.', '/')}.py: there is no tests/{'/'.join(folders)}/test_{last}.py"


def name_faults(root: Path, allowed: Mapping[str, tuple[frozenset[str], str]] | None = None) -> Iterator[str]:
    """Public classes of one name in several files without a reason, and reasons that are needed no more."""
    reasons, places = ONE_NAME if allowed is None else allowed, defaultdict(list)
    for module in modules(root).values():
        where = module.path.relative_to(root / "src" / PACKAGE).as_posix()
        for node in module.tree.body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                places[node.name].append((where, node.lineno))
    for name, found in sorted(places.items()):
        files = {where for where, _ in found}
        if len(found) > 1 and files != reasons.get(name, (frozenset(),))[0]:
            others = ", ".join(f"{where}:{line}" for where, line in found[1:])
            yield f"src/{PACKAGE}/{found[0][0]}:{found[0][1]}: {name} is also the name of a class in {others}"
    for name in sorted(name for name in reasons if len(places[name]) < 2):
        yield f"scripts/check_structure.py: the exception for {name} is needed no more; delete it"


RULES = (circle_faults, size_faults, room_faults, test_faults, name_faults)


def main(root: Path = ROOT) -> int:
    """1 when a rule is broken, else 0."""
    found = [fault for rule in RULES for fault in rule(root)]
    for fault in found:
        print(fault)
    print(f"structure: {len(found)} faults" if found else "structure: no circles, no crowded rooms, nothing too long")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
