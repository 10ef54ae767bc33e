"""``secateurs front`` on a target without a clock: files, resuming, picking, wrong input."""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path

import pytest

pytest.importorskip("pymoo")

from typer.testing import CliRunner, Result

from secateurs.cli.app import app
from secateurs.jobs.front import FrontJob
from secateurs.jobs.front_settings import Pick
from secateurs.report.front_record import Front, FrontPoint
from secateurs.search.rows import FileRows

pytestmark = pytest.mark.usefixtures("few_samples")


def call(*words: str | Path) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words])


def put(folder: Path, text: str) -> None:
    """Another front.json, as that of a run which kept no digest of it: a changed one is made again."""
    (folder / "front.json").write_text(text)
    job = json.loads((folder / "job.json").read_text())
    del job["digests"]["front.json"]
    (folder / "job.json").write_text(json.dumps(job))


@pytest.fixture(scope="module")
def made(fake_target: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    folder = tmp_path_factory.mktemp("front") / "run"
    words = ["front", "digits-resnet?width=1", "--data", "digits", "--target", fake_target, "-o", folder, "--json"]
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


def kept_of(plan: Path) -> dict[str, int]:
    """Units that stay, without the groups of removed blocks."""
    groups = json.loads(plan.read_text())["groups"]
    return {name: len(units) for name, units in groups.items() if units}


def kept_by(point: FrontPoint) -> dict[str, int]:
    return {name: width for name, width in point.widths.items() if width}


@pytest.fixture
def copied(made: tuple[Path, Result], tmp_path: Path) -> Path:
    """The front in a folder of its own."""
    return Path(shutil.copytree(made[0], tmp_path / "copy"))


def test_a_pick_by_budget_is_measured_to_be_within_it(made: tuple[Path, Result]) -> None:
    folder, _ = made
    result = call("front", "--resume", "-o", folder, "--pick", "latency=90%")
    assert result.exit_code == 0, result.stderr
    picked = folder / "picked" / "latency=90%"
    record = json.loads((picked / "result.json").read_text())
    points = Front.load(folder / "front.json").points
    assert sum(kept_by(point) == kept_of(picked / "plan.json") for point in points) == 1
    assert record["budget"] == "90%"
    assert record["pruned"]["latency_ms"] <= 0.9 * record["dense"]["latency_ms"]
    assert (picked / "report.html").exists()
    assert record["strategy"] == "front"


def test_a_picked_point_is_that_point_however_slow_it_turns_out(copied: Path) -> None:
    front = Front.load(copied / "front.json")
    wrong = tuple(p.model_copy(update={"costs": {"latency": p.costs["latency"] / 3}}) for p in front.points)
    put(copied, front.model_copy(update={"points": wrong}).to_json())
    result = call("front", "--resume", "-o", copied, "--pick", "knee")
    assert result.exit_code == 0, result.stderr
    picked, name = copied / "picked" / "knee", f"point {front.knee().number} of the front"
    record = json.loads((picked / "result.json").read_text())
    assert kept_of(picked / "plan.json") == kept_by(front.knee())
    assert record["budget"] == name
    assert record["budgets"] == []
    assert "budget" not in " ".join(record["notes"])
    assert re.search(rf"P{name[1:]}: [\d.]+ ms measured", " ".join(result.stdout.split()))


def test_a_pick_may_be_trained_longer_in_a_folder_of_its_own(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def carry(job: FrontJob, front: Front, pick: Pick, folder: Path) -> None:
        asked.append((pick.number, folder.relative_to(copied).as_posix(), job.settings.epochs))
        raise KeyboardInterrupt

    monkeypatch.setattr(FrontJob, "carry", carry)
    for words in ((), ("--epochs", "0"), ("--epochs", "30")):
        result = call("front", "--resume", "-o", copied, "--pick", "knee", *words)
        assert result.exit_code == 130
        assert f"-o {copied} --pick knee" in result.stderr
    knee = Front.load(copied / "front.json").knee().number
    assert asked == [(knee, "picked/knee", 0), (knee, "picked/knee", 0), (knee, "picked/knee, epochs=30", 30)]


def test_a_budget_below_the_front_is_refused_and_nothing_outside_it_is_made(copied: Path) -> None:
    front = Front.load(copied / "front.json")
    slowest = front.points[0]
    put(copied, front.model_copy(update={"points": (slowest,)}).to_json())
    budget = f"latency={50 * slowest.costs['latency'] / front.dense_costs['latency']:.1f}%"
    result = call("front", "--resume", "-o", copied, "--pick", budget)
    assert result.exit_code == 3, result.stderr
    assert f"by the models point {slowest.number} takes" in result.stderr
    assert not (copied / "picked" / budget).exists()


def test_the_dense_point_cannot_be_picked(copied: Path) -> None:
    front = Front.load(copied / "front.json")
    dense = front.points[0].model_copy(update={"widths": front.group_sizes, "removed": ()})
    put(copied, front.model_copy(update={"points": (dense, *front.points[1:])}).to_json())
    result = call("front", "--resume", "-o", copied, "--pick", f"point={dense.number}")
    assert result.exit_code == 1
    assert "nothing to cut" in result.stderr


def test_a_wrong_pick_leaves_the_front_alone(copied: Path) -> None:
    (copied / "evaluations.sqlite3").unlink()
    assert call("front", "--resume", "-o", copied, "--pick", "point=999").exit_code == 1
    assert Front.load(copied / "front.json").points


def test_other_options_beside_resume_are_refused_and_the_right_verb_is_named(copied: Path) -> None:
    result = call("front", "--resume", "-o", copied, "--images", "32")
    assert result.exit_code == 1
    assert "started with images 64, now it is 32" in result.stderr
    assert call("front", "--resume", "-o", copied, "--epochs", "3").exit_code == 1
    result = call("front", "digits-resnet?width=1", "--data", "digits", "-o", copied)
    assert result.exit_code == 1
    assert f"secateurs front --resume -o {copied}" in " ".join(result.stderr.split())
    result = call("prune", "--resume", "-o", copied)
    assert result.exit_code == 1
    assert "is a front" in result.stderr


def test_damaged_evaluations_are_told_as_such(copied: Path) -> None:
    rows, front = copied / "evaluations.sqlite3", copied / "front.json"
    before, damaged = Front.load(front), front.read_text()[:-50]
    front.write_text(damaged)
    assert call("front", "--resume", "-o", copied).exit_code == 0
    assert Front.load(front).points == before.points  # made again from its rows
    put(copied, damaged)
    result = call("front", "--resume", "-o", copied)
    assert result.exit_code == 1
    assert "Delete this file and continue with" in result.stderr
    front.unlink()
    for name in ("evaluations.sqlite3-wal", "evaluations.sqlite3-shm"):
        (copied / name).unlink(missing_ok=True)
    content = bytearray(rows.read_bytes())
    content[4096:] = b"\xff" * (len(content) - 4096)
    rows.write_bytes(content)
    result = call("front", "--resume", "-o", copied)
    assert result.exit_code == 1
    assert "Evaluations cannot be kept in" in result.stderr, result.stderr
    assert rows.exists()


def interrupted(_: FrontJob) -> Front:
    raise KeyboardInterrupt


def test_known_fronts_are_remembered_for_the_sitting_after_a_kill(copied: Path, tmp_path: Path) -> None:
    folder = tmp_path / "second"
    words = [
        "front",
        "digits-resnet?width=1",
        "--data",
        "digits",
        "--objectives",
        "macs",
        "-o",
        folder,
        "--criterion",
        "l2",
    ]
    words += ["--evaluations", "4", "--population", "4", "--images", "64", "--points", "0", "--known", copied]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FrontJob, "run", interrupted)
        assert call(*words).exit_code == 130
    assert not (folder / "evaluations.sqlite3").exists()
    result = call("front", "--resume", "-o", folder)
    assert result.exit_code == 0, result.stderr
    count = sum("accuracy" in row for row in FileRows(copied / "evaluations.sqlite3"))
    said = " ".join(result.stderr.split())
    assert f"{count} evaluations taken over from {copied}. {count} of them are of this network" in said


def test_a_known_front_is_searched_on_with_another_seed_on_its_own_images(copied: Path, tmp_path: Path) -> None:
    labels = []

    def stopped(job: FrontJob) -> Front:
        labels.append(job.data.validation.labels.tolist())
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FrontJob, "run", stopped)
        start = ("front", "digits-resnet?width=1", "--data", "digits")
        for number, words in enumerate(((), ("--seed", "1"), ("--seed", "1", "--known", copied))):
            assert call(*start, "-o", tmp_path / str(number), *words).exit_code == 130
        assert call("front", "--resume", "-o", tmp_path / "2").exit_code == 130
    assert labels[0] != labels[1]
    assert labels[0] == labels[2] == labels[3]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--pick", "latncy=3ms"), "'latncy=3ms' is not understood"),
        (("--pick", "latency=3"), "no unit"),
        (("--minutes", "0"), "0 minutes"),
        (("--images", "50", "--screen", "50"), "saves nothing"),
        (("--evaluations", "2"), "at least 4"),
        (("--known", "nowhere"), "no evaluations to start from in nowhere"),
    ],
)
def test_wrong_input_is_refused_before_anything_is_made(words: tuple[str, ...], said: str, tmp_path: Path) -> None:
    result = call("front", "digits-resnet?width=1", "--data", "digits", "-o", tmp_path / "x", *words)
    assert result.exit_code == 1
    assert said in " ".join(result.stderr.split()), result.stderr
    assert not (tmp_path / "x").exists()


def test_without_ray_its_option_names_the_extra(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.delitem(sys.modules, "secateurs.judging.cluster", raising=False)
    result = call("front", "digits-resnet?width=1", "--data", "digits", "-o", tmp_path / "x", "--ray", "local")
    assert result.exit_code == 1
    assert "pip install 'secateurs[ray]'" in result.stderr
    assert not (tmp_path / "x").exists()


def test_wrong_picks_and_objectives_are_refused(made: tuple[Path, Result], tmp_path: Path) -> None:
    folder, _ = made
    for wanted, said in (("best", "--pick 'best'"), ("point=999", "no point 999"), ("memory=3MB", "not understood")):
        result = call("front", "--resume", "-o", folder, "--pick", wanted)
        assert result.exit_code == 1
        assert said in result.stderr, result.stderr
    result = call("front", "digits-resnet?width=1", "--data", "digits", "--objectives", "beauty", "-o", tmp_path / "x")
    assert result.exit_code == 1
    assert "beauty" in result.stderr
    assert not (tmp_path / "x").exists()
