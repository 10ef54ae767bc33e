"""Networks after public reports of other tools: cut and right, rebuilt and right, or refused with the reason.

``benchmarks/reported_networks.py`` writes what became of each as rows; docs/support-matrix.md shows them.
"""

from __future__ import annotations

import collections

import pytest
from outcomes import outcome_of
from reports import load_all

REPORTS = load_all()
CUT = {"cut": "right in own class", "cut rebuilt": "right rebuilt"}


@pytest.mark.parametrize("name", REPORTS)
def test_what_becomes_of_a_reported_network(name: str) -> None:
    report = REPORTS[name]
    found = outcome_of(report)
    if report.expected.startswith("refused: "):
        assert found.outcome == "refused with reason", found
        assert report.expected.removeprefix("refused: ") in found.reason, found
        return
    assert found.outcome == CUT[report.expected], found
    assert (found.other_batch, found.nest, found.trains) == ("yes", "yes", "yes"), found
    assert found.removed >= report.least, found


def test_every_report_is_another_one() -> None:
    assert len(REPORTS) >= 30
    counted = collections.Counter((report.repository, report.number) for report in REPORTS.values())
    assert [report for report, times in counted.items() if times > 1] == []
