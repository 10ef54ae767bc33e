"""HAMP: a Pareto front of error against costs by memetic multi-objective evolution (METHODS §5). Extra ``hamp``."""
