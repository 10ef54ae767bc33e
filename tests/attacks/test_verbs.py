"""Wrong words to every verb: a whole message on stderr, its exit code, nothing on stdout, and nothing left behind."""

from __future__ import annotations

import json
import os
import sqlite3
from pathlib import Path

import pytest
import typer
from click.testing import CliRunner

from secateurs.cli.app import app

COMMAND = typer.main.get_command(app)
NET = "digits-resnet?width=0.25"
FRONT = ("front", NET, "--data", "digits")
NO_IMAGES = ("prune", NET, "--data", "imagefolder:nowhere")
PRUNE = ("prune", NET, "--data", "digits", "--latency", "60%", "-o", "RUN")
KEPT = ("--ratio", "0.5", "--criterion", "random", "-o", "OUT")
RESUME = ("prune", "--resume", "-o", "JOB")

CASES: dict[str, tuple[tuple[str, ...], int, str]] = {
    # ls
    "ls of nothing known": (("ls", "nowhere"), 1, "nowhere"),
    "ls of two": (("ls", "targets", "models"), 2, "unexpected"),
    # doctor
    "no model": (("doctor",), 2, "MODEL"),
    "an unknown model": (("doctor", "resnet5000"), 1, "Unknown model"),
    "an empty model": (("doctor", ""), 1, "Unknown model"),
    "a model of blanks": (("doctor", "   "), 1, "Unknown model"),
    "a model of markup": (("doctor", "[/b]"), 1, "[/b]"),
    "a model with a newline": (("doctor", "digits-resnet\n"), 1, "Unknown model"),
    "a factory that is missing": (("doctor", "nowhere.py:make"), 1, "does not exist"),
    "a factory without a name": (("doctor", "TEXT.py:"), 1, "no factory"),
    "a factory in a folder": (("doctor", "FOLDER.py:make"), 1, "is a folder"),
    "a factory in a pipe": (("doctor", "PIPE.py:make"), 1, "is a pipe"),
    "a factory of nonsense": (("doctor", "TEXT.py:make"), 1, "SyntaxError"),
    "a factory in a module that is missing": (("doctor", "nowhere.module:make"), 1, "cannot be imported"),
    "a factory that is no function": (("doctor", "os.path:sep"), 1, "no callable"),
    "a factory that is another function": (("doctor", "os.path:join"), 1, "raised TypeError"),
    "an option that is unknown": (("doctor", f"{NET}&depth=3"), 1, "no option"),
    "an option without a value": (("doctor", "digits-resnet?width"), 1, "is not an option"),
    "a width of nan": (("doctor", "digits-resnet?width=NaN"), 1, "above zero"),
    "a width below zero": (("doctor", "digits-resnet?width=-1"), 1, "above zero"),
    "classes as a list": (("doctor", "digits-resnet?classes=[3]"), 1, "whole number"),
    "classes that are many": (("doctor", "digits-resnet?classes=99999999999"), 1, "whole number"),
    "a size of nothing": (("doctor", "digits-resnet?size=0"), 1, "must be pixels"),
    "a size as a fraction": (("doctor", "digits-resnet?size=8.5"), 1, "size"),
    "weights that are missing": (("doctor", NET, "--weights", "nowhere.pth"), 1, "does not exist"),
    "weights in a folder": (("doctor", NET, "--weights", "FOLDER"), 1, "is a folder"),
    "weights of text": (("doctor", NET, "--weights", "TEXT.pth"), 1, "Weights file"),
    "weights of another ending": (("doctor", NET, "--weights", "TEXT"), 1, "ending"),
    "empty weights": (("doctor", NET, "--weights", "EMPTY.pth"), 1, "is empty"),
    "empty safetensors": (("doctor", NET, "--weights", "EMPTY.safetensors"), 1, "not a readable safetensors"),
    "an input of words": (("doctor", NET, "--input", "large"), 1, "--input"),
    "an input of two sizes": (("doctor", NET, "--input", "8,8"), 1, "--input"),
    "an input below zero": (("doctor", NET, "--input", "1,1,-8,8"), 1, "--input"),
    "an input that is huge": (("doctor", NET, "--input", "1,1,99999999,8"), 1, "99999999"),
    "normalize is unknown": (("doctor", NET, "--normalize", "mine"), 1, "mine"),
    "barriers that match nothing": (("doctor", NET, "--barrier", "nowhere.*"), 1, "nowhere.*"),
    # profile
    "profile without a target": (("profile", NET, "--target", "nowhere"), 1, "nowhere"),
    "profile with no threads": (("profile", NET, "--threads", "0"), 2, "--threads"),
    "profile with a fraction of threads": (("profile", NET, "--threads", "1.5"), 2, "--threads"),
    "profile of no batch": (("profile", NET, "--batch", "0"), 2, "--batch"),
    "profile into a folder": (("profile", NET, "-o", "FOLDER"), 1, "folder"),
    "profile from a store of text": (("profile", NET, "--store", "TEXT"), 1, "not a database"),
    "profile from another program's store": (("profile", NET, "--store", "THEIRS"), 1, "another program"),
    # plan
    "plan without an output": (("plan", NET, "--ratio", "0.5"), 2, "-o"),
    "plan of nothing": (("plan", NET, "--ratio", "0", "-o", "OUT"), 1, "(0, 1]"),
    "plan of words": (("plan", NET, "--ratio", "half", "-o", "OUT"), 2, "--ratio"),
    "plan by an unknown criterion": (("plan", NET, "--ratio", "0.5", "--criterion", "best", "-o", "OUT"), 1, "best"),
    "plan by an unknown strategy": (("plan", NET, "--macs", "50%", "--strategy", "best", "-o", "OUT"), 1, "best"),
    "plan with a width of nothing": (("plan", NET, *KEPT, "--min-width", "0"), 2, "--min-width"),
    "plan that keeps nothing known": (("plan", NET, *KEPT, "--keep", "nowhere.*"), 1, "nowhere.*"),
    "plan on unknown data": (("plan", NET, *KEPT, "--data", "cats"), 1, "Unknown data"),
    "plan on data with an option": (("plan", NET, *KEPT, "--data", "digits?size=3"), 1, "no option"),
    "plan into a folder that is missing": (("plan", NET, "--ratio", "0.5", "-o", "no/plan.json"), 1, "does not exist"),
    # apply, export, compare
    "apply of no plan": (("apply", NET, "nowhere.json", "-o", "OUT"), 1, "cannot be read"),
    "apply of a folder": (("apply", NET, "FOLDER", "-o", "OUT"), 1, "is a folder"),
    "apply of a pipe": (("apply", NET, "PIPE", "-o", "OUT"), 1, "is a pipe"),
    "apply of text": (("apply", NET, "TEXT", "-o", "OUT"), 1, "is not JSON"),
    "apply of depth": (("apply", NET, "DEEP", "-o", "OUT"), 1, "nested too deeply"),
    "apply of a list": (("apply", NET, "LIST", "-o", "OUT"), 1, "schema"),
    "apply of bytes": (("apply", NET, "BYTES", "-o", "OUT"), 1, "cannot be read"),
    "apply into a device": (("apply", NET, "LIST", "-o", "/dev/null"), 1, "is a device"),
    "export to no format": (("export", NET, "LIST", "-o", "OUT.xyz"), 1, "not a format"),
    "export to an unknown format": (("export", NET, "LIST", "-o", "OUT", "--to", "tflite"), 1, "not a format"),
    "export to int3": (("export", NET, "LIST", "-o", "OUT", "--to", "onnx:int3"), 1, "int3"),
    "export to int8 without images": (("export", NET, "LIST", "-o", "OUT.onnx", "--to", "onnx:int8"), 1, "--data"),
    "export of text": (("export", NET, "TEXT", "-o", "OUT.onnx"), 1, "is not JSON"),
    "export into a folder": (("export", NET, "LIST", "-o", "FOLDER", "--to", "onnx"), 1, "folder"),
    "compare of nothing": (("compare",), 2, "Missing"),
    "compare of text": (("compare", "TEXT.json", "TEXT.json"), 1, "is not JSON"),
    # report
    "report of nothing": (("report", "nowhere"), 1, "no folder"),
    "report of a file": (("report", "TEXT"), 1, "no folder"),
    "report of an empty folder": (("report", "FOLDER"), 1, "holds no run"),
    "report of a run that goes on": (("report", "JOB"), 1, "has not finished"),
    "report of a damaged result": (("report", "RESULT"), 1, "result.json"),
    # store
    "store of nothing": (("store", "nowhere"), 2, "nowhere"),
    "store check of nothing": (("store", "check", "--store", "nowhere.sqlite3"), 1, "nowhere.sqlite3"),
    "store check of a folder": (("store", "check", "--store", "FOLDER"), 1, "is a folder"),
    "store check of another program's": (("store", "check", "--store", "THEIRS"), 1, "another program"),
    "store import of nothing": (("store", "import", "nowhere", "--store", "NEW"), 1, "nowhere"),
    "store import of text": (("store", "import", "TEXT", "--store", "NEW"), 1, "not a stored measurement"),
    "store import of bytes": (("store", "import", "BYTES", "--store", "NEW"), 1, "cannot be read"),
    "store import of a long line": (("store", "import", "LONG", "--store", "NEW"), 1, "more than 1048576 bytes"),
    "store import of depth": (("store", "import", "DEEP", "--store", "NEW"), 1, "not a stored measurement"),
    # prune and front
    "prune to words": ((*PRUNE[:5], "soon", "-o", "RUN"), 1, "not understood"),
    "prune to two of one": ((*PRUNE, "--latency", "50%"), 2, "--latency"),
    "prune for an unknown task": ((*PRUNE, "--task", "nothing"), 1, "nothing"),
    "prune by an unknown schedule": ((*PRUNE, "--schedule", "never"), 1, "never"),
    "prune with an unknown repair": ((*PRUNE, "--repair", "all"), 1, "all"),
    "prune with episodes for another strategy": ((*PRUNE, "--episodes", "3"), 1, "episodes"),
    "prune of elements of no kind": ((*PRUNE, "--elements", "half"), 1, "half"),
    "prune with a share below zero": ((*PRUNE, "--features", "-1"), 2, "--features"),
    "prune with a penalty of one": ((*PRUNE, "--penalty", "1"), 2, "--penalty"),
    "prune in a folder of others": ((*PRUNE[:-1], "FOLDER2"), 1, "is not empty"),
    "prune into a file": ((*PRUNE[:-1], "TEXT"), 1, "cannot be used"),
    "prune below a file": ((*PRUNE[:-1], "TEXT/run"), 1, "cannot be used"),
    "prune in a long folder": ((*PRUNE[:-1], "a" * 300), 1, "cannot be used"),
    "prune of images that are nowhere": ((*NO_IMAGES, *PRUNE[4:]), 1, "does not exist"),
    "prune of tables that are nowhere": ((*PRUNE[:2], "--data", "parquet:a,b", *PRUNE[4:]), 1, "does not exist"),
    "prune of three tables": ((*PRUNE[:2], "--data", "parquet:a,b,c", *PRUNE[4:]), 1, "names 3 files"),
    "pixels of words": ((*PRUNE[:2], "--data", "digits?pixels=many", *PRUNE[4:]), 1, "millions of pixels"),
    "resume of nothing": (("prune", "--resume", "-o", "nowhere"), 1, "no run to resume"),
    "resume of a front": (("prune", "--resume", "-o", "FRONTJOB"), 1, "is a front"),
    "resume of another verb": (("front", "--resume", "-o", "JOB"), 1, "is no front"),
    "resume with another model": ((*RESUME, "--data", "cats"), 1, "was started with"),
    "resume with another target": ((*RESUME, "--target", "openvino-cpu"), 1, "was started with"),
    "front without objectives": ((*FRONT, "-o", "RUN", "--objectives", ""), 1, "Objectives"),
    "front of unknown objectives": ((*FRONT, "-o", "RUN", "--objectives", "speed"), 1, "speed"),
    "front of twice the same": ((*FRONT, "-o", "RUN", "--objectives", "macs,macs"), 1, "macs"),
    "front of minutes of nan": ((*FRONT, "-o", "RUN", "--minutes", "nan"), 1, "minutes"),
    "front of minutes below zero": ((*FRONT, "-o", "RUN", "--minutes", "-1"), 1, "minutes"),
    "front of few": ((*FRONT, "-o", "RUN", "--population", "2"), 2, "--population"),
    "front that picks nonsense": ((*FRONT, "-o", "RUN", "--pick", "best"), 1, "best"),
    "front known from nothing": ((*FRONT, "-o", "RUN", "--known", "nowhere"), 1, "nowhere"),
    "front of no images": ((*FRONT, "-o", "RUN", "--images", "0"), 2, "--images"),
    "elements of an unknown shape": (("elements", NET, "--target", "nowhere"), 2, ""),
}  # fmt: skip


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with what the cases name, which is the current one."""
    (tmp_path / "TEXT").write_text("my notes, which are nothing that a program reads " * 30)
    for name in ("TEXT.py", "TEXT.pth", "TEXT.json"):
        (tmp_path / name).write_text("my notes, which are nothing that a program reads")
    for name in ("EMPTY.pth", "EMPTY.safetensors"):
        (tmp_path / name).touch()
    (tmp_path / "DEEP").write_text("[" * 90_000)
    (tmp_path / "LIST").write_text("[3]")
    (tmp_path / "LONG").write_text('"' + "9" * (1 << 21) + '"')
    (tmp_path / "BYTES").write_bytes(b"\xff\xfe\x00{")
    for name in ("PIPE", "PIPE.py"):
        os.mkfifo(tmp_path / name)
    for name in ("FOLDER", "FOLDER.py", "FOLDER2", "RESULT", "JOB", "FRONTJOB"):
        (tmp_path / name).mkdir()
    (tmp_path / "FOLDER2" / "thesis.tex").write_text("mine")
    (tmp_path / "RESULT" / "result.json").write_text('{"schema": "secateurs.result/1"}')
    job = {"schema": "secateurs.job/1", "latency": "60%", "target": "onnxruntime-cpu", "digests": {}}
    options = {"model": NET, "weights": None, "data": "digits", "classes": "all", "input": None, "normalize": None}
    (tmp_path / "JOB" / "job.json").write_text(json.dumps({**job, "options": options}))
    (tmp_path / "FRONTJOB" / "job.json").write_text(json.dumps({**job, "options": options, "objectives": ["macs"]}))
    theirs = sqlite3.connect(tmp_path / "THEIRS")
    theirs.execute("CREATE TABLE bookmarks (url TEXT)")
    theirs.commit()
    theirs.close()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def _held(place: Path) -> dict[str, bytes]:
    files = [path for path in place.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    return {path.relative_to(place).as_posix(): path.read_bytes() for path in files}


@pytest.mark.parametrize("name", CASES)
def test_a_verb_says_what_is_wrong(name: str, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def measured(*given: object, **more: object) -> None:
        raise AssertionError("work has begun")

    monkeypatch.setattr("secateurs.measure.bench.Bench.export", measured)
    monkeypatch.setattr("secateurs.latency.model.profile", measured)
    before = _held(place)
    words, code, told = CASES[name]
    result = CliRunner().invoke(COMMAND, words)
    assert result.exit_code == code, (result.exit_code, result.stderr, result.exception)
    said = " ".join(result.stderr.split())
    assert told in said, result.stderr
    assert code == 2 or ("secateurs: " in said and len(said) < 1500), said
    assert not any(word in said for word in ("Traceback", "bug in secateurs", "AssertionError")), said
    assert not result.stdout
    assert _held(place) == before
