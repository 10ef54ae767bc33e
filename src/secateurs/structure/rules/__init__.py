"""One module per operator family; importing this package registers every rule.

A third party adds rules with an entry point of the group ``secateurs.rules`` that names a module; importing that
module registers them.
"""

from importlib import metadata

from secateurs.structure.rules import (  # noqa: F401
    contraction,
    convolution,
    elementwise,
    indexing,
    linear_algebra,
    movement,
    normalisation,
    ordering,
    recurrent,
    reduction,
    spectrum,
)

for _point in metadata.entry_points(group="secateurs.rules"):
    _point.load()
