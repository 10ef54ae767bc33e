"""The plug-ins of docs/add-your-own.md keep the contracts that the page shows."""

from __future__ import annotations

import importlib
import re
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import secateurs.testing.criteria
import secateurs.testing.strategies
import secateurs.testing.structure
import secateurs.testing.targets

PAGE = Path(__file__).resolve().parents[2] / "docs" / "add-your-own.md"
ENGINE = """
    import math, pathlib

    def describe():
        return {"runtime": "my_runtime"}

    class Session:
        def __init__(self, size):
            self.size = size

        def run(self):
            return sum(math.sqrt(n) for n in range(self.size))

    def load(path, settings):
        content = pathlib.Path(path).read_bytes()
        if b"torch" not in content and b"pytorch" not in content:
            raise ValueError("this is no ONNX file")
        return Session(len(content))
"""
CLASSES = {
    "TestMyScore": secateurs.testing.criteria.CriterionContract,
    "TestMySearch": secateurs.testing.strategies.StrategyContract,
    "TestBoard": secateurs.testing.targets.TargetContract,
    "TestMyRule": secateurs.testing.structure.RuleContract,
}
LAWS = [(name, law) for name, kind in CLASSES.items() for law in dir(kind) if law.startswith("test_")]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, type]]:
    """Every test class of the page. Each section is a module, beside an engine and the runtime that it speaks of."""
    folder = tmp_path_factory.mktemp("page")
    (folder / "engine.py").write_text(textwrap.dedent(ENGINE))
    (folder / "my_runtime.py").write_text("")
    described = folder / "my_runtime-1.0.dist-info"
    described.mkdir()
    (described / "METADATA").write_text("Metadata-Version: 2.1\nName: my_runtime\nVersion: 1.0\n")
    found: dict[str, type] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        for number, section in enumerate(PAGE.read_text(encoding="utf-8").split("\n## ")):
            programs = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
            if "MyOperator()" in section:
                programs = ["from torch import nn\nMyOperator = nn.Hardswish\n", *programs]
            name = f"my_section_{number}"
            (folder / f"{name}.py").write_text("\n".join(programs))
            module = importlib.import_module(name)
            found |= {name: kind for name, kind in vars(module).items() if name.startswith("Test")}
        yield found
    for name in [name for name in sys.modules if name.startswith("my_section_")]:
        del sys.modules[name]


@pytest.mark.parametrize(("name", "law"), LAWS)
def test_the_pages_plug_ins_keep_their_contracts(page: dict[str, type], name: str, law: str) -> None:
    torch.manual_seed(0)
    assert issubclass(page[name], CLASSES[name])
    getattr(page[name](), law)()


def test_the_page_shows_every_contract(page: dict[str, type]) -> None:
    assert set(page) == set(CLASSES)
