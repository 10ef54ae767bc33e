"""Proof of a refactoring: writes down what the package does for fixed seeds, and compares two such folders.

``scripts/replay`` is the door; CONTRIBUTING says when to use it. Nothing here imports what may move: the package is
reached through ``secateurs``, ``secateurs.testing``, ``secateurs.models``, ``secateurs.data``, its command line and its
plug-in entry points; everything else is read from the files that it leaves.
"""
