"""Least squares: every layer of a cut network is refitted to follow the dense one."""
