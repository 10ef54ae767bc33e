"""What the report shows of a search that judged candidates."""

from __future__ import annotations

from xml.etree import ElementTree

from secateurs.report.searching import learning_curve, policy_chart, sections

EPISODES = [
    {"phase": "start", "reward": -0.5, "accuracy": 0.5, "latency_ms": 1.0, "evaluations": 1},
    {"phase": "warm-up", "reward": -0.7, "accuracy": 0.3, "latency_ms": 1.0, "evaluations": 2},
    {"phase": "agent", "reward": -0.4, "accuracy": 0.6, "latency_ms": 0.9, "evaluations": 3},
]
SEARCH = {
    "summary": {
        "evaluations": 3,
        "evaluations_per_second": 0.5,
        "agent": "ddpg",
        "reward": "r3",
        "warm_start": "knapsack",
    },
    "episodes": EPISODES,
    "groups": ["a:out", "a_group_with_a_very_long_name_in_it:out<"],
    "policy": [0.25, 1.0],
    "relative_sensitivity": [1.0, -0.1],
    "sensitivity": {"widths": [[9] * 9] * 2, "saved": [[0.01 * step for step in range(9)], [-0.01] * 9]},
}


def test_the_line_is_the_best_so_far() -> None:
    tree = ElementTree.fromstring(learning_curve(EPISODES))
    marks = list(tree.iter("circle"))
    assert [mark.get("class") for mark in marks] == ["mark final", "mark held-out", "mark candidate"]
    [line] = list(tree.iter("polyline"))
    heights = [float(point.split(",")[1]) for point in line.get("points", "").split()]
    assert heights[0] == heights[1] > heights[2]


def test_policy_and_curve_of_every_group() -> None:
    tree = ElementTree.fromstring(policy_chart(SEARCH))
    assert len(list(tree.iter("polyline"))) == 2
    widths = [float(node.get("width", "0")) for node in tree.iter("rect") if node.get("class") == "kept"]
    assert widths[0] == 50.0
    assert widths[1] == 200.0, "the most sensitive group fills its bar"
    assert widths[3] == 0.0, "a negative sensitivity draws nothing"


def test_measured_curves_lie_beside_the_modelled() -> None:
    seen = {**SEARCH, "measured": {"groups": ["a:out"], "saved": [[0.02] * 9], "agreement": 0.875}}
    lines = list(ElementTree.fromstring(policy_chart(seen)).iter("polyline"))
    assert [line.get("class") for line in lines] == ["line", "line seen", "line"]
    assert "0.88" in sections(seen)[1][1]
    assert "rough guide" in sections(seen)[1][1], "below 0.9"
    good = {**seen, "measured": {**seen["measured"], "agreement": 0.93}}
    assert "rough guide" not in sections(good)[1][1]
    assert "measured" not in sections(SEARCH)[1][1]


def test_sections_only_where_something_was_learnt() -> None:
    assert sections({}) == ()
    assert sections({"summary": {}, "episodes": []}) == ()
    headings = [heading for heading, _ in sections(SEARCH)]
    assert headings == ["How the search learnt", "Policy per group beside latency sensitivity"]
    content = sections(SEARCH)[0][1]
    assert "3 different networks judged" in content
    assert "started from knapsack" in content


def test_sensitivities_of_another_cost_are_not_called_latency() -> None:
    of_macs = {**SEARCH, "unit": "macs"}
    heading, content = sections(of_macs)[1]
    assert heading == "Policy per group beside multiply-add sensitivity"
    assert "latency" not in content
