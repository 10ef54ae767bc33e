"""``--strategy lap`` in planning and in the main job, on a target without a clock."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("stable_baselines3")

from secateurs.data import Data, open_data
from secateurs.errors import PlanError
from secateurs.jobs.entry import Place, run
from secateurs.jobs.settings import Settings
from secateurs.measure.profile import profile
from secateurs.models import Loaded, load
from secateurs.planning.entry import plan
from secateurs.search.legal import SearchOptions
from secateurs.search.rows import FileRows
from secateurs.structure import trace

pytestmark = pytest.mark.usefixtures("few_samples")


@pytest.fixture(scope="module")
def network() -> Loaded:
    return load("digits-resnet", seed=3)


@pytest.fixture(scope="module")
def data(network: Loaded) -> Data:
    found = open_data("digits", network)
    few = {part: getattr(found, part).take(64) for part in ("train", "calibration", "validation", "test")}
    return replace(found, **few)


def test_plan_by_lap(network: Loaded, data: Data, fake_target: str, tmp_path: Path) -> None:
    graph = trace(network.module, network.example())
    costs = profile(graph, fake_target)
    options = SearchOptions(
        episodes=4, warm_start="knapsack", checkpoint=tmp_path / "search", evaluations=tmp_path / "evaluations.sqlite3"
    )
    made = plan(graph, costs, latency="60%", strategy="lap", criterion="splamp", images=data, options=options)
    facts = made.provenance
    assert facts["strategy"] == "lap"
    assert facts["predicted_ms"] <= 0.6 * costs.dense_ms * (1 + 1e-9)
    assert facts["search"]["warm_start"] == "knapsack"
    assert len(FileRows(tmp_path / "evaluations.sqlite3")) == facts["search"]["evaluations"]
    exact = plan(graph, costs, latency="60%", strategy="lap", criterion="splamp", images=data, options=options)
    assert exact.groups == made.groups, "stored rows and checkpoint give the same plan"
    with pytest.raises(PlanError, match="--data"):
        plan(graph, costs, latency="60%", strategy="lap", criterion="splamp", options=options)
    with pytest.raises(PlanError, match="takes no --episodes"):
        plan(graph, costs, latency="60%", criterion="splamp", options=SearchOptions(episodes=4))
    with pytest.raises(PlanError, match="ddpg, td3, sac"):
        plan(graph, costs, latency="60%", strategy="lap", images=data, options=SearchOptions(agent="dqn"))


def test_schedules_that_plan_anew_refuse_lap() -> None:
    with pytest.raises(PlanError, match="hundreds of networks"):
        Settings(latency="60%", strategy="lap", schedule="soft", epochs=2)


def test_finalists_need_a_search_that_judges_and_an_epoch() -> None:
    with pytest.raises(PlanError, match="Give --strategy lap"):
        Settings(latency="60%", finalists=3)
    with pytest.raises(PlanError, match="at least one epoch"):
        Settings(latency="60%", strategy="lap", finalists=3, epochs=0)
    with pytest.raises(PlanError, match="at least 1"):
        Settings(latency="60%", finalists=0)


def test_the_whole_procedure_trains_finalists_then_regrows_to_the_best_ones_widths(
    network: Loaded, data: Data, fake_target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """docs/methods.md, "LAP procedure": search, re-ranking, prune and regrow, fine-tuning; each survives a kill."""
    from secateurs.jobs import finalists
    from secateurs.recover.schedules.regrow import PruneRegrow

    settings = Settings(
        latency="60%",
        target=fake_target,
        strategy="lap",
        criterion="splamp",
        epochs=2,
        train_batch=16,
        precision="fp32",
        lr=0.01,
        repair="statistics",
        schedule="regrow",
        episodes=6,
        warm_start="knapsack",
        finalists=3,
    )
    real, seen = finalists._trained, []

    def worst_first(*args):  # type: ignore[no-untyped-def]
        """The later a network comes, the better it seems; the second one is interrupted."""
        real(*args)
        seen.append(args[1].solution)
        if len(seen) == 2:
            raise KeyboardInterrupt
        return 0.1 * len(seen)

    monkeypatch.setattr(finalists, "_trained", worst_first)
    folder = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        run(network, data, settings, Place(folder))
    trained: list[str] = []
    original = PruneRegrow.after_backward

    def watched(self, student, step):  # type: ignore[no-untyped-def]
        trained.append(str(sorted(self.widths.items())))
        return original(self, student, step)

    monkeypatch.setattr(PruneRegrow, "after_backward", watched)
    result = run(network, data, settings, Place(folder, resume=True))
    chosen = seen[-1]
    assert len(seen) >= 4
    assert len({f"{s.widths.tolist()}{sorted(s.removed)}" for s in seen[2:]}) == len(seen[2:])
    spec = trace(network.module, network.example()).spec
    assert sorted(result.plan.blocks_removed) == sorted(spec.blocks[index].name for index in chosen.removed)
    gone = {group for index in chosen.removed for group in spec.blocks[index].groups}
    for number, group in enumerate(spec.groups):
        if number not in gone:
            kept = result.plan.groups.get(group.name, range(group.units))
            assert len(kept) == chosen.widths[number], group.name
    assert result.record.pruned_within_budget
    assert len(set(trained)) == 1, "regrowth trained towards one set of widths, the chosen one"
    assert any("goes on" in note for note in result.record.notes)


def test_the_main_job_by_lap_resumes_and_reports(
    network: Loaded, data: Data, fake_target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings(
        latency="60%",
        target=fake_target,
        strategy="lap",
        criterion="splamp",
        epochs=0,
        repair="statistics",
        episodes=5,
        warm_start="knapsack",
    )
    from secateurs.judging.judge import Judge

    real, calls = Judge.__call__, [0]

    def counted(*args):  # type: ignore[no-untyped-def]
        calls[0] += 1
        if calls[0] == 3:
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(Judge, "__call__", counted)
    folder = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        run(network, data, settings, Place(folder))
    assert len(FileRows(folder / "evaluations.sqlite3")) == 2
    result = run(network, data, settings, Place(folder, resume=True))
    record = result.record
    assert record.strategy == "lap"
    assert record.pruned_within_budget
    assert len(record.search["episodes"]) >= 5
    assert record.search["summary"]["evaluations"] == len({e["evaluations"] for e in record.search["episodes"]})
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "How the search learnt" in page
    assert "Policy per group beside latency sensitivity" in page
    measured = record.search["measured"]
    assert set(measured["groups"]) <= set(record.search["groups"])
    assert measured["agreement"] >= 0.7, "the target's times follow a formula"
    assert "the rank correlation of both is" in page
    assert not (folder / "search").exists()
