"""One module per operator family; importing this package registers every rule."""

from secateurs.structure.rules import (  # noqa: F401
    contraction,
    convolution,
    elementwise,
    movement,
    normalisation,
    reduction,
)
