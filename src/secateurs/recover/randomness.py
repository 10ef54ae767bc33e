"""Random numbers of a training run that follow from their place in it alone."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def generator_for(*key: int) -> torch.Generator:
    """A generator that follows from the key (numbers of 0 or more; equal length means equal meaning)."""
    entropy = np.random.SeedSequence([len(key), *key])
    return torch.Generator().manual_seed(int(entropy.generate_state(1, np.uint64)[0] >> 1))


def seed_all(generator: torch.Generator) -> None:
    """Seed the global generators, which dropout and the user's own data sets draw from."""
    seed = int(torch.randint(0, 2**62, (1,), generator=generator))
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)


@contextmanager
def undisturbed() -> Iterator[None]:
    """Leave the caller's global random states as they were."""
    python, array = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(array)
