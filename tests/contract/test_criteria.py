"""Every registered criterion keeps the contract that plug-ins are held to; a new name is tested on arrival."""

from __future__ import annotations

import pytest

from secateurs.registry import names
from secateurs.testing.criteria import CriterionContract

REFUSES = {
    "bn_scale": ("linear", "embedding"),  # they have no batch norm
    # what they read is the output of convolutions and linear layers, and an embedding is neither
    **dict.fromkeys(("taylor", "taylor_bn", "fisher", "fisher_obs", "measured"), ("embedding",)),
}
FOLLOW_PLACES = ("random",)
READ_BATCHES = ("obd", "taylor_bn", "acs", "acs_self")
"""The first two read gradients of whole batches (see their cards), the others train on them."""
REFIT = ("measured",)
"""Least squares in float32 on some images."""


class TestRegisteredCriteria(CriterionContract):
    name: str

    @pytest.fixture(autouse=True, params=names("criteria"))
    def named(self, request: pytest.FixtureRequest) -> None:
        self.name = request.param
        self.refuses = REFUSES.get(self.name, ())
        self.follows_units = self.name not in FOLLOW_PLACES
        self.sees_samples = self.name not in READ_BATCHES
        self.rounding = 0.05 if self.name in REFIT else 1e-3

    def criterion(self) -> str:
        return self.name
