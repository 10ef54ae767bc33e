"""HAMP: a Pareto front of error against costs by memetic multi-objective evolution. Extra ``hamp``.

What the paper says and what is our reading: docs/methods.md, "HAMP objectives and encoding" and what follows it.
"""
