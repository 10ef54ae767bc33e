"""Patterns of a plan made better by images."""

from __future__ import annotations

import pytest
import torch

import secateurs as sc
from secateurs.data import Data
from secateurs.elements.patterns import SCOPES as PATTERN_SCOPES
from secateurs.elements.selection import eligible, patterns
from secateurs.models import Loaded
from secateurs.planning.elements.refinement import refined
from secateurs.structure import apply
from secateurs.structure.kernel_elements import masks_of


@pytest.mark.parametrize("scope", PATTERN_SCOPES)
def test_images_refine_patterns_of_every_scope(network: Loaded, data: Data, scope: str) -> None:
    model = network.module
    found = patterns(model, dict.fromkeys(eligible(model), 4), scope=scope)
    plan = sc.trace(model, network.example()).plan({}, ()).model_copy(update={"elements": found})
    done = refined(model, plan, data, network.example())
    assert done.elements.keys() == found.keys()
    small = apply(model, plan, network.example(), check=False)
    before, after = masks_of(small, found), masks_of(small, done.elements)
    for name, pattern in done.elements.items():
        assert pattern.scope == scope
        assert int(after[name].sum()) == int(before[name].sum())
    same = [torch.equal(before[name], after[name]) for name in found]
    assert all(same) if scope in ("layer", "filter", "kernel") else not all(same)
