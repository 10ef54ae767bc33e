"""LAP-style search: an agent that learns one pruning ratio per group, guided by latency sensitivity.

Source: LAP, Chen et al. 2022 (Neural Networks 152). That the agent is an actor-critic, that latency sensitivity takes
part in its exploration, its state and its feedback, and that the budget concerns measured latency is the paper's; every
formula and constant is our reading (docs/methods.md, "LAP latency sensitivity" and what follows it), with AMC's
published settings (arXiv 1802.03494) as defaults.

:class:`~secateurs.search.lap.strategy.Lap` is the strategy. Only :mod:`~secateurs.search.lap.environment` (gymnasium),
which it plays in, and
:mod:`~secateurs.search.lap.agent` (stable-baselines3) need the extra ``lap``; the others are numbers only.
"""
