"""``secateurs ls``: what is here."""

from __future__ import annotations

import json
import shutil

import pytest
from typer.testing import CliRunner

from secateurs.cli.app import app


def targets() -> dict[str, dict[str, object]]:
    rows = json.loads(CliRunner().invoke(app, ["ls", "targets", "--json"]).stdout)
    return {row["name"]: row for row in rows}


def test_every_target_has_its_own_words() -> None:
    found = targets()
    usable = [row["about"] for row in found.values() if row["available"] and ":" not in str(row["name"])]
    assert len(set(usable)) == len(usable)
    assert "`" not in "".join(map(str, usable))
    assert "compile" in str(found["torch-compile-cpu"]["about"])


def test_other_machines_are_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    which = shutil.which
    monkeypatch.setattr(shutil, "which", lambda name, *more: "/ssh" if name == "ssh" else which(name, *more))
    assert targets()["ssh://HOST/TARGET"]["available"] is True
    monkeypatch.setattr(shutil, "which", lambda name, *more: None if name == "ssh" else which(name, *more))
    row = targets()["ssh://HOST/TARGET"]
    assert row["available"] is False
    assert "not installed" in str(row["about"])


def test_precisions_are_listed_behind_their_target() -> None:
    found = targets()
    names = list(found)
    assert names.index("onnxruntime-cpu:int8") == names.index("onnxruntime-cpu") + 1
    assert found["onnxruntime-cpu:int8"]["available"] is True
    assert "torch-cpu:int8" not in found
