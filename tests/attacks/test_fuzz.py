"""Every parser of what comes from outside takes any text: a value, or an error of the package.

100 texts each; SECATEURS_FUZZ=N takes N (docs/trust.md says for how long they ran so).
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import secateurs as sc
from secateurs.budgets import AccuracyBound, Budget
from secateurs.cli.options import input_shape
from secateurs.data.named import Named
from secateurs.files import read_json
from secateurs.jobs.front_settings import FrontSettings, Pick
from secateurs.jobs.run_folder import RunFolder
from secateurs.jobs.settings import Settings
from secateurs.latency.predictor import LatencyModel
from secateurs.latency.store import Store
from secateurs.models.loading import _parse_options
from secateurs.report import Record
from secateurs.report.front_record import Front

LETTERS = "0123456789٣²½.,%xXmMkKGiBbs=-+?&:/eE \x00\n\t\"'{}[]nulltrefasN∞\U0001f600"
TEXTS = st.one_of(st.text(), st.text(LETTERS, max_size=40))
JSON: st.SearchStrategy[Any] = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8)),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=8), inner, max_size=4)),
    max_leaves=12,
)
QUICK = settings(
    max_examples=int(os.environ.get("SECATEURS_FUZZ", "100")),
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)

OF_TEXT: dict[str, Callable[[str], object]] = {
    **{name: lambda text, name=name: Budget.parse(text, name) for name in ("latency", "memory", "file_size", "macs")},  # type: ignore[misc]
    "accuracy": lambda text: AccuracyBound.parse(None, text),
    "--input": input_shape,
    "DATA": lambda text: (Named(text).kind, Named(text).options),
    "?option=": lambda text: _parse_options(text, text),
    "--pick": lambda text: Pick.parse(text, ("latency", "macs")),
    "plan": sc.Plan.from_json,
    "latency model": LatencyModel.from_json,
}


@pytest.mark.parametrize("name", OF_TEXT)
def test_any_text(name: str) -> None:
    @QUICK
    @given(TEXTS)
    def check(text: str) -> None:
        with contextlib.suppress(sc.SecateursError):
            OF_TEXT[name](text)

    check()


def in_file(read: Callable[[Path], object]) -> Callable[[str], object]:
    def work(text: str) -> object:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "job.json"
            path.write_text(text)
            return read(path)

    return work


def with_schema(schema: str, parse: Callable[[str], object]) -> Callable[[Any], object]:
    return lambda value: parse(json.dumps({**value, "schema": schema} if isinstance(value, dict) else value))


OF_JSON: dict[str, Callable[[Any], object]] = {
    "plan": with_schema("secateurs.plan/1", sc.Plan.from_json),
    "latency model": with_schema("secateurs.latency-model/1", LatencyModel.from_json),
    "result.json": with_schema("secateurs.result/1", in_file(Record.load)),
    "front.json": with_schema("secateurs.front/1", in_file(Front.load)),
    "job.json": with_schema("secateurs.job/1", in_file(lambda path: RunFolder.resume(path.parent))),
    "settings": lambda value: Settings.from_dict({"latency": "60%", **(value if isinstance(value, dict) else {})}),
    "settings, one of them": lambda value: [
        Settings.from_dict({"latency": "60%", name: value}) for name in ("lr", "epochs", "keep", "target", "seed")
    ],
    "settings of a front": lambda value: FrontSettings.from_dict({"objectives": value, "minutes": value}),
}


@pytest.mark.parametrize("name", OF_JSON)
def test_any_json(name: str) -> None:
    @QUICK
    @given(JSON)
    def check(value: Any) -> None:
        with contextlib.suppress(sc.SecateursError):
            OF_JSON[name](value)

    check()


def test_any_line_of_measurements(tmp_path: Path) -> None:
    with Store(tmp_path / "store.sqlite3") as store:
        parts = st.fixed_dictionaries({"fingerprint": JSON, "signature": JSON, "payload": JSON, "created": JSON})

        @QUICK
        @given(st.one_of(TEXTS, parts.map(json.dumps)))
        def check(line: str) -> None:
            with contextlib.suppress(sc.SecateursError):
                store.import_lines([line])

        check()


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000, "9" * 10_000, "\ud800", "", "nan", b"\xff\xfe"])
def test_json_that_cannot_be_read_is_one_kind_of_error(text: str | bytes) -> None:
    with pytest.raises(ValueError):
        read_json(text)
