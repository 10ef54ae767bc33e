"""Every file of an unfinished run, missing or damaged: the run goes on to the same end, or is told what to do."""

from __future__ import annotations

import os
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

import secateurs as sc
from secateurs.data import Data, open_data
from secateurs.jobs import stages
from secateurs.jobs.entry import Place, run
from secateurs.jobs.settings import Settings
from secateurs.models import Loaded, Preprocessing
from secateurs.search.rows import FileRows


class Tiny(nn.Module):
    """Two convolutions and a classifier on the digits."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.head = nn.Conv2d(1, 6, 3), nn.Conv2d(6, 6, 3), nn.Linear(6, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.two(self.one(x).relu()).relu().mean((2, 3)))


def _network() -> Loaded:
    torch.manual_seed(0)
    return Loaded(Tiny().eval(), "tiny", (1, 8, 8), Preprocessing(), (10,), {})


def _digits(network: Loaded) -> Data:
    data = open_data("digits", network)
    return replace(
        data, **{part: getattr(data, part).take(48) for part in ("train", "calibration", "validation", "test")}
    )


@pytest.fixture(scope="module")
def settings(fake_target: str) -> Settings:
    more = {"criterion": "measured", "precision": "fp32", "allow_chance": True, "dense_epochs": 0}
    return Settings(macs="60%", target=fake_target, epochs=1, train_batch=16, **more)


@pytest.fixture(scope="module")
def left(settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, sc.Result]:
    """The folder of a run that was ended before its record, and what the run came to."""
    place = tmp_path_factory.mktemp("left") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stages, "make_record", _ended)
        with pytest.raises(KeyboardInterrupt):
            run(_network(), _digits(_network()), settings, Place(place))
    whole = shutil.copytree(place, place.with_name("whole"))
    return place, run(_network(), _digits(_network()), settings, Place(whole, resume=True))


def _ended(*given: object, **more: object) -> None:
    raise KeyboardInterrupt


FILES = (
    "dense.onnx",
    "plan.json",
    "repaired.safetensors",
    "model.safetensors",
    "model.onnx",
    "events.jsonl",
    "job.json",
)
FILES += ("values.sqlite3", "checkpoints/checkpoint.safetensors", "checkpoints/values.sqlite3")


def test_the_list_of_files_is_whole(left: tuple[Path, sc.Result]) -> None:
    found = {path.relative_to(left[0]).as_posix() for path in left[0].rglob("*") if path.is_file()}
    assert {name for name in found if not name.endswith(("-wal", "-shm"))} <= set(FILES), found


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["missing", "cut off", "foreign"])
@pytest.mark.parametrize("name", FILES)
def test_a_file_of_a_run_is_made_again_or_told(
    name: str, damage: str, left: tuple[Path, sc.Result], settings: Settings, tmp_path: Path
) -> None:
    folder = shutil.copytree(left[0], tmp_path / "run")
    path, whole = folder / name, left[1]
    if not path.exists():
        pytest.skip("this run has none")
    content = path.read_bytes()
    for beside in folder.glob(f"{name}-*"):  # what SQLite keeps beside it
        beside.unlink()
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(
            content[: len(content) // 2] if damage == "cut off" else b"nothing of ours, and longer than a header"
        )
    if name == "job.json" or (name == "checkpoints/values.sqlite3" and damage == "foreign"):
        with pytest.raises(sc.SecateursError, match=r"Leave out --resume|Move it out of the folder"):
            run(_network(), _digits(_network()), settings, Place(folder, resume=True))
        return
    again = run(_network(), _digits(_network()), settings, Place(folder, resume=True))
    assert again.plan == whole.plan
    assert all(torch.equal(a, b) for a, b in zip(again.module.parameters(), whole.module.parameters(), strict=True))
    for written in ("plan.json", "model.safetensors"):
        assert (folder / written).read_bytes() == (left[0].with_name("whole") / written).read_bytes()


@pytest.mark.parametrize("kind", ["link", "pipe", "folder"])
def test_rows_are_kept_in_a_file_of_the_run_alone(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "evaluations.sqlite3"
    if kind == "link":
        (tmp_path / "theirs.sqlite3").write_bytes(b"")
        path.symlink_to(tmp_path / "theirs.sqlite3")
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.mkdir()
    with pytest.raises(sc.PlanError, match="a link, or no regular file"):
        FileRows(path).put("key", {"accuracy": 0.5})
    assert kind != "link" or (tmp_path / "theirs.sqlite3").read_bytes() == b""


def test_what_the_clock_says_decides_nothing() -> None:
    """The clock that can jump is read for dates alone; whatever waits or ends reads the one that cannot."""
    source = Path(stages.__file__).parents[1]
    read = {
        f"{path.relative_to(source).as_posix()}"
        for path in source.rglob("*.py")
        if re.search(r"time\.time\(\)|datetime\.(now|utcnow|today)", path.read_text(encoding="utf-8"))
    }
    dates = {"files.py", "jobs/run_folder.py", "jobs/front.py", "latency/store.py"}
    assert read <= dates, "use time.monotonic() for whatever is decided"
