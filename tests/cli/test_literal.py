"""Whatever text comes from outside is printed letter for letter, by every verb, in results, progress and errors."""

from __future__ import annotations

import ast
import io
import re
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner, Result

import secateurs
from secateurs.cli import compare, elements, ls, store
from secateurs.cli.app import app
from secateurs.cli.progress import BarProgress, LineProgress
from secateurs.measure.break_even import BreakEven
from secateurs.report import console as report_console
from secateurs.report.record import Record
from secateurs.report.terminal import styled, terminal

pytestmark = pytest.mark.usefixtures("few_samples")

ODD = ("[red]", "[/b]", "[executorch]", ":smile:", "[/]", "[link=x]")
FOLDER = Path("a[red]b") / "c[" / "b] [executorch] :smile:"
NETWORK = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.ModuleDict({"one [red]": nn.Conv2d(1, 8, 3, padding=1), "two:smile:": nn.Conv2d(8, 8, 3)})
        self.head = nn.Linear(8, 10)

    def forward(self, x):
        for layer in self.body.values():
            x = layer(x).relu()
        return self.head(x.mean((2, 3)))


def make():
    torch.manual_seed(0)
    return Net()


def fails():
    raise ValueError("install it: pip install 'secateurs[executorch]' [/b] [red] :smile:")


class Odd(Net):
    def forward(self, x):
        return super().forward(x) if float(x.sum()) > 0 else self.head(x.mean((2, 3)).new_zeros(len(x), 8))


Odd.__name__ = "Odd[red][/b]"


def odd():
    return Odd()
"""


def call(*words: str | Path) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words])


def squeezed(text: str) -> str:
    """Without what wrapping adds."""
    return re.sub(r"\s+", "", text)


def says(result: Result, *wanted: str | Path, code: int = 0) -> None:
    assert result.exit_code == code, (result.output, result.exception)
    for text in wanted:
        assert squeezed(str(text)) in squeezed(result.output), result.output


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an odd name, with a network in it."""
    folder = tmp_path_factory.mktemp("literal") / FOLDER
    folder.mkdir(parents=True)
    (folder / "net.py").write_text(NETWORK)
    return folder


@pytest.fixture(scope="module")
def made(place: Path) -> Path:
    """A plan of that network."""
    path = place / "plan.json"
    words = ("plan", f"{place}/net.py:make", "--input", "1,1,8,8", "--macs", "50%", "--criterion", "l2", "-o", path)
    says(call(*words), f"Written to {path}", "body.one [red]")
    return path


def test_verbs_that_look(place: Path, made: Path, fake_target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "240")  # a long folder for temporary files must not break the lines of a table
    network = (f"{place}/net.py:make", "--input", "1,1,8,8")
    says(call("doctor", *network), f"{place}/net.py:make", "body.one [red]", "body.two:smile:")
    says(call("profile", *network, "--target", fake_target), "body.one [red]")
    says(call("compare", *network[:1], made, made, *network[1:], "--target", fake_target), made, f"{made} #2")
    other = place / "other.json"
    assert call("plan", *network, "--ratio", "0.5", "--criterion", "l1", "-o", other).exit_code == 0
    says(call("compare", made, other), made, other)
    says(call("store", "ls", "--store", place / "none.sqlite"), place / "none.sqlite", code=1)
    says(call("store", "ls"), "store.sqlite3")


def test_verbs_that_write(place: Path, made: Path) -> None:
    network = (f"{place}/net.py:make", made, "--input", "1,1,8,8")
    says(call("apply", *network, "-o", place / "small.safetensors"), place / "small.safetensors")
    says(call("export", *network, "-o", place / "small.onnx"), place / "small.onnx")
    says(call("store", "export", place / "rows.jsonl"), place / "rows.jsonl")


@pytest.fixture(scope="module")
def finished(place: Path, fake_target: str) -> Path:
    """A run of the main job in that folder."""
    words = ("--input", "1,1,8,8", "--data", "digits", "--target", fake_target, "--latency", "90%", "--criterion", "l2")
    run = place / "run"
    result = call("prune", f"{place}/net.py:make", *words, "--epochs", "0", "--allow-chance", "-o", run)
    says(result, f"Files: {run}/", f"{place}/net.py:make")
    return run


def test_the_main_job_and_its_report(finished: Path) -> None:
    says(call("report", finished), f"Page: {finished / 'report.html'}", str(finished.parent / "net.py:make"))
    again = call("prune", "digits-resnet", "--data", "digits", "--latency", "50%", "-o", finished)
    says(again, f"secateurs prune --resume -o {finished}", code=1)


def test_a_front(place: Path, fake_target: str) -> None:
    pytest.importorskip("pymoo")
    words = (f"{place}/net.py:make", "--input", "1,1,8,8", "--data", "digits", "--target", fake_target)
    limits = (
        "--evaluations",
        "30",
        "--population",
        "8",
        "--images",
        "32",
        "--criterion",
        "l2",
        "--points",
        "0",
        "--allow-chance",
    )
    says(call("front", *words, *limits, "-o", place / "front"), place / "front" / "front.html")


def test_errors(place: Path, run_folder: Path) -> None:
    said = "ValueError: install it: pip install 'secateurs[executorch]' [/b] [red] :smile:"
    says(call("doctor", f"{place}/net.py:fails", "--input", "1,1,8,8"), said, code=1)
    says(call("doctor", f"{place}/net.py:odd", "--input", "1,1,8,8"), "Odd[red][/b]", code=1)
    for verb in ("doctor", "profile", "elements"):
        says(call(verb, "nothing[/b][executorch]"), "'nothing[/b][executorch]'", code=1)
    says(call("ls", "[/b]"), "'[/b]'", code=1)
    says(call("apply", "digits-resnet", "[/b].json", "-o", place / "x"), "[/b].json", code=1)
    says(call("prune", "digits-resnet", "--data", "[red][/b]", "--latency", "50%", "-o", run_folder), "[red]", code=1)
    says(call("frob[/b]"), "frob[/b]", code=2)
    says(call("prune", "digits-resnet", "-o", run_folder, "--[red][/b]"), "--[red][/b]", code=2)


def shown(show: object, *values: object) -> str:
    """What a verb's own display prints for people."""
    stream = io.StringIO()
    show(*values, terminal(stream))  # type: ignore[operator]
    return squeezed(stream.getvalue())


@pytest.mark.parametrize("text", ODD)
def test_displays(text: str, finished: Path) -> None:
    row = {"kind": "targets", "name": f"n{text}", "available": False, "about": f"pip install 'secateurs{text}'"}
    assert f"pipinstall'secateurs{text}'" in shown(ls._show, [row])
    one = BreakEven(f"conv{text}", "3x3", 8, 8, 9, 1, 1.0, {4: 0.5, 9: 1.0}, 0.5)
    assert f"conv{text}" in shown(elements._show, [one])
    timed = {"name": text, "latency_ms": 1.0, "latency_spread": 0.1, "ratio": 1.0, "ratio_upper": 1.0}
    assert text in shown(compare._show, [{**timed, "tie_with_dense": True}])
    holding = {"fingerprint": (("target", text), ("device", text)), "rows": 1, "newest": 0.0}
    assert shown(store._show, {"targets": [holding], "file_bytes": 1, "store": text}).count(text) == 3
    record = Record.load(finished / "result.json").model_copy(update={"model": text, "notes": (text, f"see {text}")})
    stream = io.StringIO()
    report_console.show(record, Console(file=stream, width=200))  # whatever the console thinks of markup
    assert stream.getvalue().count(text) == 3


@pytest.mark.parametrize("text", ODD)
def test_progress(text: str) -> None:
    for kind, forced in ((BarProgress, True), (LineProgress, False)):
        stream = io.StringIO()
        console = terminal(stream)
        if forced:
            console = Console(file=stream, force_terminal=True, width=200, color_system=None)
        with kind(console) as progress, progress.task(f"measure {text}", 3) as task:
            task.advance(1, f"note {text}")
            if isinstance(progress, BarProgress):
                progress.bars.refresh()
                assert f"note {text}" in stream.getvalue()
            progress.say(f"said {text}")
        assert f"measure {text}" in stream.getvalue()
        assert f"said {text}" in stream.getvalue()


def test_text_with_a_style() -> None:
    assert styled(("[red]", "green"), " :smile: [/b]").plain == "[red] :smile: [/b]"


def test_consoles_are_made_in_one_place() -> None:
    root = Path(secateurs.__file__).parent
    for path in root.rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        calls = {
            node.func.id for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
        }
        markup = [
            node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module == "rich.markup"
        ]
        assert not markup, path
        assert "Console" not in calls or path.name == "terminal.py", path
