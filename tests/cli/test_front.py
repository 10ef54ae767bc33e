"""``secateurs front`` on a target without a clock: files, resuming, picking, wrong input."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("pymoo")

from typer.testing import CliRunner, Result

from secateurs.cli.app import app
from secateurs.latency import model
from secateurs.report.front_record import Front
from secateurs.search.rows import FileRows


@pytest.fixture(scope="module", autouse=True)
def _few_samples() -> Iterator[None]:
    """The fake target is exact, so a small design is enough."""
    real = model.profile

    def profile(*args, **kwargs):  # type: ignore[no-untyped-def]
        return real(*args, **{**kwargs, "samples": 30})

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model, "profile", profile)
        yield


def call(*words: str | Path) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words])


@pytest.fixture(scope="module")
def made(fake_target: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    folder = tmp_path_factory.mktemp("front") / "run"
    words = ["front", "digits-resnet", "--data", "digits", "--target", fake_target, "-o", folder, "--json"]
    words += ["--evaluations", "40", "--population", "8", "--images", "64", "--criterion", "l2"]
    return folder, call(*words, "--points", "0", "--epochs", "0")


def test_a_front_is_written_and_told(made: tuple[Path, Result]) -> None:
    folder, result = made
    assert result.exit_code == 0, result.stderr
    front = Front.load(folder / "front.json")
    assert json.loads(result.stdout) == front.model_dump(by_alias=True, mode="json")
    assert front.objectives == ("error", "latency")
    assert front.evaluations == 40
    assert len([r for r in FileRows(folder / "evaluations.sqlite3") if "accuracy" in r]) >= 40
    latencies = [point.costs["latency"] for point in front.points]
    errors = [point.error for point in front.points]
    assert latencies == sorted(latencies, reverse=True)
    assert errors == sorted(errors)
    assert max(latencies) <= front.dense_costs["latency"] * (1 + 1e-9)
    assert front.knee() in front.points
    measured = [point.measured_ms for point in front.points]
    assert measured == pytest.approx(latencies, rel=0.1)
    assert "latency, measured" in (folder / "front.html").read_text()


def test_the_page_stands_alone(made: tuple[Path, Result]) -> None:
    page = (made[0] / "front.html").read_text()
    assert not re.findall(r"(?:src|href)\s*=|@import|https?://(?!www.w3.org)", page)
    front = Front.load(made[0] / "front.json")
    assert page.count("class='point'") == len(front.points)
    assert f"--pick point={front.points[-1].number}" in page
    assert "Hypervolume against evaluations" in page
    assert "Quotas of the selections" in page


def test_resuming_computes_nothing_again(made: tuple[Path, Result]) -> None:
    folder, _ = made
    before, rows = (folder / "front.json").read_text(), len(FileRows(folder / "evaluations.sqlite3"))
    (folder / "front.json").unlink()
    assert call("front", "--resume", "-o", folder).exit_code == 0
    fresh, old = json.loads((folder / "front.json").read_text()), json.loads(before)
    assert [p["widths"] for p in fresh["points"]] == [p["widths"] for p in old["points"]]
    assert [p["error"] for p in fresh["points"]] == [p["error"] for p in old["points"]]
    assert len(FileRows(folder / "evaluations.sqlite3")) == rows


@pytest.mark.parametrize("wanted", ["knee", "latency=90%"])
def test_a_pick_is_carried_to_a_report(made: tuple[Path, Result], wanted: str) -> None:
    folder, _ = made
    result = call("front", "--resume", "-o", folder, "--pick", wanted)
    assert result.exit_code == 0, result.stderr
    picked = folder / "picked" / wanted
    record = json.loads((picked / "result.json").read_text())
    plan = json.loads((picked / "plan.json").read_text())
    front = Front.load(folder / "front.json")
    kept = {name: len(units) for name, units in plan["groups"].items()}
    chosen = [
        p for p in front.points if {n: w for n, w in p.widths.items() if w} == {n: k for n, k in kept.items() if k}
    ]
    assert len(chosen) == 1
    if wanted == "knee":
        assert chosen[0] == front.knee()
    else:
        assert record["pruned"]["latency_ms"] <= 0.9 * record["dense"]["latency_ms"]
    assert (picked / "report.html").exists()
    assert record["strategy"] == "front"


def test_wrong_picks_and_objectives_are_refused(made: tuple[Path, Result], tmp_path: Path) -> None:
    folder, _ = made
    for wanted, said in (("best", "--pick 'best'"), ("point=999", "no point 999"), ("memory=3MB", "not understood")):
        result = call("front", "--resume", "-o", folder, "--pick", wanted)
        assert result.exit_code == 1
        assert said in result.stderr, result.stderr
    result = call("front", "digits-resnet", "--data", "digits", "--objectives", "beauty", "-o", tmp_path / "x")
    assert result.exit_code == 1
    assert "beauty" in result.stderr
    assert not (tmp_path / "x").exists()
