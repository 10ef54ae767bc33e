"""Names and what stands behind them."""

from __future__ import annotations

import sys

import pytest

from secateurs.errors import SecateursError
from secateurs.registry import load


def test_a_missing_package_is_named_with_its_owner(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("strategy", "environment"):
        monkeypatch.delitem(sys.modules, f"secateurs.search.lap.{name}", raising=False)
    monkeypatch.setitem(sys.modules, "gymnasium", None)
    with pytest.raises(SecateursError, match="Strategy 'lap' needs gymnasium"):
        load("strategies", "lap")
