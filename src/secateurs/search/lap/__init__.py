"""LAP-style search: an agent that learns one pruning ratio per group, guided by latency sensitivity.

Source: LAP, Chen et al. 2022 (Neural Networks 152). That the agent is an actor-critic, that latency sensitivity takes
part in its exploration, its state and its feedback, and that the budget concerns measured latency is the paper's; every
formula and constant is our reading of METHODS §2.3, with AMC's published settings (arXiv 1802.03494) as defaults.
"""

from __future__ import annotations

from secateurs.search.lap.settings import LapSettings
from secateurs.search.lap.strategy import Lap

__all__ = ["Lap", "LapSettings"]
