"""Plans that also choose kernel elements: what can be chosen, what it costs and what it loses."""

SCOPES = ("block", "in_channel", "layer")
"""Scopes of kernel elements that run faster somewhere, see :func:`secateurs.planning.elements.costs.check_elements`."""
