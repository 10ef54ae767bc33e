"""Checks that every citation inside the repository is answered by the repository.

Exits 1 and prints every dangling one as ``file:line: why``:

- a page of ``docs/`` that does not exist, or a heading of it: ``docs/methods.md, "LAP rewards"``;
- a file of ``benchmarks/``, ``examples/``, ``scripts/`` or ``tests/``, and a test that a page names;
- a file that a page links to;
- a ``secateurs.module.name`` in a page, or in backticks in a docstring or comment, and a name that a page's program
  imports, that the package does not have;
- a section of a document that is not here (a section sign, METHODS, DESIGN), an entry of a tracker (issue 7), and
  labels that no page explains.
"""

from __future__ import annotations

import io
import re
import sys
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("src", "tests", "benchmarks", "docs", "examples", "scripts")
NOT_HERE = re.compile(r"§|\b(?:METHODS|DESIGN)\b|\[(?:V-abs|V-code|SEC|CHECK|INF|MEM)\]|\b[Ii]ssues? #?\d+\b")
PAGE = re.compile(r'\bdocs/([\w-]+\.md)(?:, "([^"]+)")?')
FILE = re.compile(r"\b((?:benchmarks|examples|scripts|tests)/[\w/-]+\.(?:py|csv|md|json|cpp))\b")
NAME = re.compile(r"(?<![\w./-])secateurs((?:\.[A-Za-z_]\w*)+)")
QUOTED = re.compile(r"(?<=`)~?secateurs((?:\.[A-Za-z_]\w*)+)(?=`)")
IMPORT = re.compile(r"^ *from secateurs((?:\.\w+)*) import (\([^)]*\)|[^\n#]*)", re.M)
LINK = re.compile(r"\]\(([^)#\s:]+)(?:#[^)\s]*)?\)")
TEST = re.compile(r"`(test_\w+)`")
ENTRY_POINTS = {".strategies", ".criteria", ".targets", ".rules", ".exporters", ".variants"}
"""Groups of entry points, whose names look like modules."""
EXEMPT = {"scripts/check_citations.py", "tests/test_citations.py"}
"""They hold dangling citations as examples."""


@dataclass(frozen=True)
class Repository:
    """What can be cited, below ``root``."""

    root: Path

    @cached_property
    def headings(self) -> dict[str, set[str]]:
        """Headings per page of ``docs/``."""
        pages = (self.root / "docs").glob("*.md")
        return {page.name: set(re.findall(r"^#+ +(.+?) *$", page.read_text("utf-8"), re.M)) for page in pages}

    @cached_property
    def tests(self) -> set[str]:
        """Names of all test functions."""
        texts = (path.read_text("utf-8") for path in (self.root / "tests").rglob("test_*.py"))
        return {name for text in texts for name in re.findall(r"^ *def (test_\w+)", text, re.M)}

    def has(self, dotted: str) -> bool:
        """Whether ``.part.module.name`` is a module of the package, or a name at the top of one."""
        place, names = self.root / "src" / "secateurs", dotted.strip(".").split(".")
        while names and (place / names[0]).is_dir():
            place /= names.pop(0)
        if names and (place / f"{names[0]}.py").is_file():
            place /= f"{names.pop(0)}.py"
        elif place.is_dir():
            place /= "__init__.py"
        if not names:
            return place.is_file()
        return place.is_file() and re.search(_defined(names[0]), place.read_text("utf-8"), re.M) is not None


def _defined(name: str) -> str:
    """A pattern of the lines that give a module this name."""
    return rf"^(?:(?:async )?def |class ){name}\b|^{name}\b *[:=]|\bimport\b[^\n]*\b{name}\b|^ +\"?{name}\b\"?,$"


def prose(path: Path) -> Iterator[tuple[int, str]]:
    """(first line, text) of what people read: a page, or the strings and comments of a program."""
    text = path.read_text("utf-8")
    if path.suffix != ".py":
        yield 1, text
        return
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type in (tokenize.STRING, tokenize.COMMENT):
            yield token.start[0], token.string


def faults(path: Path, repository: Repository) -> Iterator[str]:
    """One line of text for every dangling citation of a file."""
    relative = path.relative_to(repository.root)
    for first, text in prose(path):
        found = list(_dangling(text, repository, page=path.suffix == ".md"))
        if path.suffix == ".md":
            found += _dead_links(text, path)
        for start, why in found:
            yield f"{relative}:{first + text.count(chr(10), 0, start)}: {why}"


def _dangling(text: str, repository: Repository, *, page: bool) -> Iterator[tuple[int, str]]:
    for found in NOT_HERE.finditer(text):
        yield found.start(), f"{found[0]!r} cites what the repository does not hold; name a page of docs/ or the paper"
    for found in PAGE.finditer(text):
        known, heading = repository.headings.get(found[1]), " ".join((found[2] or "").split())
        if known is None:
            yield found.start(), f"there is no docs/{found[1]}"
        elif heading and heading not in known:
            yield found.start(), f"docs/{found[1]} has no heading {heading!r}"
    if not page and not text.startswith(('"""', "#")):
        return  # a text that the program works with
    for found in FILE.finditer(text):
        if not (repository.root / found[1]).is_file():
            yield found.start(), f"there is no {found[1]}"
    for found in (NAME if page else QUOTED).finditer(text):
        if found[1] not in ENTRY_POINTS and not repository.has(found[1]):
            yield found.start(), f"secateurs{found[1]} does not exist"
    for found in IMPORT.finditer(text) if page else ():
        for name in re.findall(r"(\w+)(?: +as +\w+)?", found[2]):
            if not repository.has(f"{found[1]}.{name}"):
                yield found.start(), f"secateurs{found[1]} has no {name}"
    for found in TEST.finditer(text) if page else ():
        if found[1] not in repository.tests:
            yield found.start(), f"there is no test {found[1]}"


def _dead_links(text: str, path: Path) -> Iterator[tuple[int, str]]:
    """Links of a page to files that are not there."""
    for found in LINK.finditer(text):
        if not (path.parent / found[1]).exists():
            yield found.start(), f"the link leads to {found[1]}, which is not there"


def files(root: Path) -> Iterator[Path]:
    """Every file that may cite, the change log apart: it tells of what was."""
    yield from (path for path in sorted(root.glob("*.md")) if path.name != "CHANGELOG.md")
    for folder in FOLDERS:
        for path in sorted((root / folder).rglob("*")):
            if path.suffix in {".py", ".md"} and path.relative_to(root).as_posix() not in EXEMPT:
                yield path


def main() -> int:
    """1 when a citation dangles, else 0."""
    repository = Repository(ROOT)
    found = [fault for path in files(ROOT) for fault in faults(path, repository)]
    for fault in found:
        print(fault)
    print(f"citations: {len(found)} dangling" if found else "citations: all are answered")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
