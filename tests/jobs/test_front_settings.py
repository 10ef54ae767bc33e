"""What decides a front, what of it is refused, and how a pick is read."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from secateurs.budgets import Budget
from secateurs.errors import PlanError
from secateurs.jobs.front_settings import FrontSettings, Pick


@pytest.mark.parametrize(
    "objectives",
    [(), ("beauty",), ("latency", "beauty"), ("latency", "latency"), ("latency", "memory", "file_size", "macs")],
)
def test_one_to_three_known_objectives(objectives: tuple[str, ...]) -> None:
    with pytest.raises(PlanError, match="give one to three different ones of latency, memory, file_size, macs"):
        FrontSettings(objectives=objectives)
    assert FrontSettings(objectives=("macs", "latency", "memory")).objectives == ("macs", "latency", "memory")


@pytest.mark.parametrize("screen", [50, 51])
def test_screening_takes_fewer_images_than_judging(screen: int) -> None:
    with pytest.raises(PlanError, match=f"Screening on {screen} images saves nothing .* on 50"):
        FrontSettings(images=50, screen=screen)
    assert FrontSettings(images=50, screen=49).screen == 49


@pytest.mark.parametrize(
    ("changes", "said"),
    [({"evaluations": 2}, "at least 4"), ({"population": 3}, "at least 4"), ({"minutes": 0.0}, "0 minutes")],
)
def test_a_search_that_finds_nothing_is_refused_at_once(changes: dict[str, float], said: str) -> None:
    with pytest.raises(PlanError, match=said):
        FrontSettings(**changes)  # type: ignore[arg-type]


def test_the_search_is_as_it_was_set() -> None:
    search = FrontSettings(population=12, evaluations=90, minutes=2.5, images=80, screen=20).search()
    assert (search.population, search.evaluations, search.minutes, search.screen) == (12, 90, 2.5, 20)
    endless = FrontSettings(evaluations=None).search()
    assert (endless.evaluations, endless.stagnation > 0) == (None, True)


def test_settings_survive_a_round_trip_and_what_was_not_known_has_its_default() -> None:
    settings = FrontSettings(objectives=("macs", "memory"), seed=3, minutes=1.5, keep=("head",), blocks=False)
    raw = json.loads(json.dumps(settings.to_dict()))
    assert FrontSettings.from_dict(raw) == settings
    assert FrontSettings.from_dict({**raw, "source": {"model": "x"}, "weather": "fine"}) == settings
    assert FrontSettings.from_dict({name: value for name, value in raw.items() if name != "blocks"}) == replace(
        settings, blocks=True
    )


@pytest.mark.parametrize(
    ("text", "number", "budget"),
    [
        ("knee", None, None),
        ("point=0", 0, None),
        ("point=17", 17, None),
        ("latency=3ms", None, Budget.parse("3ms", "latency")),
        ("latency=60%", None, Budget.parse("60%", "latency")),
        ("file-size=2MB", None, Budget.parse("2MB", "file_size")),
        ("file_size=2MB", None, Budget.parse("2MB", "file_size")),
    ],
)
def test_a_pick_is_read(text: str, number: int | None, budget: Budget | None) -> None:
    found = Pick.parse(text, ("latency", "file_size"))
    assert (found.text, found.number, found.budget) == (text, number, budget)


@pytest.mark.parametrize(
    "text", ["", "best", "point", "point=", "point=-1", "point=1.5", "latency", "latency=", "memory=3MB"]
)
def test_another_pick_is_refused_with_the_forms(text: str) -> None:
    with pytest.raises(
        PlanError, match=r"is not understood. Give knee, point=N, .* \(latency, macs\), such as latency"
    ):
        Pick.parse(text, ("latency", "macs"))


def test_a_pick_with_a_wrong_budget_is_told_as_a_budget() -> None:
    with pytest.raises(PlanError, match="no unit"):
        Pick.parse("latency=3", ("latency",))


def test_the_pick_of_a_number_is_what_a_user_would_type() -> None:
    assert Pick.of(4) == Pick.parse("point=4", ("latency",))
