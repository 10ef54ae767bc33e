"""front.json and front.html: what is chosen from a front, and a page that stands alone."""

from __future__ import annotations

import itertools
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from secateurs.errors import DataError
from secateurs.report.front_charts import BOTTOM, LEFT, RIGHT, TOP, front_chart
from secateurs.report.front_page import render_front
from secateurs.report.front_record import Front, FrontPoint, Tuned


def made(count: int = 20, tuned: tuple[int, ...] = ()) -> Front:
    """A front whose error falls quickly and then slowly with latency."""
    points = []
    for number in range(count):
        share = 1 - number / count
        done = Tuned(
            folder=f"points/{number}",
            accuracy=0.9 - 0.01 * number,
            accuracy_recalibrated=0.5,
            latency_ms=2 * share,
            latency_ratio=share,
            file_bytes=1000,
            memory_bytes=3_000_000,
        )
        points.append(
            FrontPoint(
                number=number,
                error=0.05 + 0.8 * (1 - share) ** 4,
                costs={"latency": 2.0 * share, "macs": 1e8 * share},
                widths={"conv:out": 16 - number % 8, "a<b:out": 0 if number > 10 else 8},
                removed=("layer1.0",) if number > 10 else (),
                tuned=done if number in tuned else None,
            )
        )
    history = tuple(
        {"evaluations": 40 * (i + 1), "hypervolume": 0.7 + 0.01 * i, "quotas": {"crowding": 0.5, "hypervolume": 0.5}}
        for i in range(4)
    )
    return Front(
        model="net",
        data="digits",
        target="fake, 1 thread",
        criterion="l2",
        seed=0,
        created="now",
        objectives=("error", "latency", "macs"),
        units={"latency": "ms", "macs": "macs"},
        dense_error=0.05,
        dense_costs={"latency": 2.0, "macs": 1e8},
        group_sizes={"conv:out": 16, "a<b:out": 8},
        points=tuple(points),
        seeds=((1.0, 0.3), (0.5, 0.6)),
        history=history,
        evaluations=160,
        stopped="evaluations",
        images=500,
        rank_correlation=0.93 if tuned else None,
        command="secateurs front net -o run",
        resume="secateurs front --resume -o run",
    )


def test_json_round_trip_and_damage(tmp_path: Path) -> None:
    front, path = made(tuned=(3,)), tmp_path / "front.json"
    path.write_text(front.to_json())
    assert Front.load(path) == front
    path.write_text(front.to_json()[:-200])
    with pytest.raises(DataError, match="no front that this version reads"):
        Front.load(path)
    with pytest.raises(DataError, match="no point 99"):
        front.point(99)


def test_the_knee_is_where_the_curve_turns_and_chosen_points_are_spread() -> None:
    front = made()
    knee = front.knee()
    assert 0.2 < knee.costs["latency"] / 2.0 < 0.6
    chosen = front.spread(6)
    assert len(chosen) == 6
    assert knee in chosen
    costs = [point.costs["latency"] for point in chosen]
    assert costs == sorted(costs, reverse=True)
    assert all(point.costs["latency"] <= 0.97 * 2.0 and point.error <= 0.7 for point in chosen)
    gaps = [a - b for a, b in itertools.pairwise(costs)]
    assert max(gaps) < 3 * (costs[0] - costs[-1]) / 5
    assert len(made(3).spread(6)) <= 3


def test_the_knee_weighs_all_objectives_alike_and_dense_is_never_chosen() -> None:
    rows = ((0.0, 1.0, 0.50), (0.1, 0.3, 1.0), (0.5, 0.1, 0.50), (0.9, 0.0, 0.51))
    points = tuple(
        FrontPoint(
            number=i, error=error, costs={"latency": latency, "macs": macs}, widths={"conv:out": 16, "a<b:out": 8}
        )
        for i, (error, latency, macs) in enumerate(rows)
    )
    front = made().model_copy(update={"points": points})
    assert front.knee().number == 2
    assert made(1).spread(3) == []


def test_everything_that_is_drawn_lies_inside_the_chart() -> None:
    front = made(tuned=(2, 5))
    done = front.points[2].tuned
    assert done is not None
    better = done.model_copy(update={"accuracy": 0.999, "latency_ms": 2.6})
    points = tuple(p.model_copy(update={"tuned": better}) if p.number == 2 else p for p in front.points)
    page = front_chart(front.model_copy(update={"points": points, "dense_error": 0.97}))
    places = re.findall(r"<circle cx='([\d.-]+)' cy='([\d.-]+)' r='5' class='tuned'", page)
    places += re.findall(r"<rect x='([\d.-]+)' y='([\d.-]+)'", page)
    assert len(places) == 3
    assert all(LEFT <= float(x) <= 900 - RIGHT and TOP <= float(y) <= 460 - BOTTOM for x, y in places)


class Elements(HTMLParser):
    """Counts the opened and closed elements."""

    def __init__(self) -> None:
        super().__init__()
        self.depth, self.opened = 0, 0

    def handle_starttag(self, tag: str, attrs: object) -> None:
        void = tag in ("meta", "br")
        self.depth, self.opened = self.depth + (not void), self.opened + 1

    def handle_startendtag(self, tag: str, attrs: object) -> None:
        self.opened += 1

    def handle_endtag(self, tag: str) -> None:
        self.depth -= 1


def test_the_page_stands_alone_and_every_point_has_its_command() -> None:
    front = made(tuned=(2, 5, 9))
    page = render_front(front)
    assert not re.findall(r"(?:\bsrc|\bhref)\s*=|@import|https?://", page)
    assert page.count("class='point'") == 20
    assert page.count("class='tuned'") == 3
    assert page.count("class='seed'") == 2
    for number in range(20):
        assert f'"secateurs front --resume -o run --pick point={number}"' in page
    assert "a&lt;b" in page or '"a\\u003cb:out"' in page
    assert "0.93" in page
    assert "Hypervolume against evaluations" in page
    assert "Quotas of the selections" in page
    parser = Elements()
    parser.feed(page)
    assert parser.depth == 0
    assert parser.opened > 60


def test_what_was_measured_stands_beside_the_models(tmp_path: Path) -> None:
    front = made(tuned=(4,))
    assert "latency, measured" not in render_front(front)
    points = tuple(
        p.model_copy(update={"measured_ms": 1.5, "costs": {"latency": p.costs["latency"], "memory": 4e6}})
        for p in front.points
    )
    changes = {"points": points, "units": {"latency": "ms", "memory": "bytes"}}
    changes |= {"dense_costs": {"latency": 2.0, "memory": 5e6}}
    page = render_front(front.model_copy(update=changes))
    assert page.count("<td>1.50 ms</td>") == 20
    assert "<th>memory by the model</th><th>measured</th>" in page
    assert "<td>4 MB</td><td>3 MB</td>" in page
    assert "memory, measured" not in page
    weighed = tuple(p.model_copy(update={"measured_memory_bytes": 3_500_000}) for p in points)
    page = render_front(front.model_copy(update={**changes, "points": weighed}))
    assert "<th>memory, measured</th>" in page
    assert page.count("<td>3.5 MB</td>") == 20


def test_nothing_in_a_front_ends_the_script_or_opens_an_element() -> None:
    risky = made().model_copy(update={"model": "</script><b>x", "resume": "x </script><i>", "command": "<u>"})
    page = render_front(risky)
    assert page.count("</script>") == 1
    assert "<b>x" not in page
    assert "<i>" not in page.replace("<i style", "")
    assert "<u>" not in page


def test_a_front_of_one_generation_has_no_plots() -> None:
    page = render_front(made().model_copy(update={"history": made().history[:1], "seeds": ()}))
    assert page.count("One generation only.") == 2
