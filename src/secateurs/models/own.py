"""The user's own module, as a network with everything that is needed to feed it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from secateurs.errors import DataError, why
from secateurs.models.loaded import Loaded
from secateurs.models.loading import carried, shape_of
from secateurs.models.preprocessing import Preprocessing, as_preprocessing


def own(model: nn.Module, example: Any, normalize: str | Preprocessing | None = None, *, images: bool = True) -> Loaded:
    """A module with what is known of it.

    Args:
        model: the network; its mode is restored.
        example: its inputs; the first tensor among them is an image [batch, channels, height, width].
        normalize: how pixels reach it, see :func:`~secateurs.models.preprocessing.parse_normalize`; None: as the module
            says (built-in networks and timm's do), else not known.
        images: the network takes images; else its inputs may be any.

    Raises:
        DataError: the example is no image, or ``normalize`` is not understood or fits other channels.
    """
    if not images:
        leaves = [leaf for leaf in pytree.tree_leaves(example) if isinstance(leaf, torch.Tensor) and leaf.ndim]
        shape = tuple(leaves[0].shape[1:]) if leaves else ()
        return Loaded(model, type(model).__name__, shape, Preprocessing(), None, pixels_told=False, given=example)
    first = example
    while isinstance(first, Sequence) and first:
        first = first[0]
    shape = tuple(first.shape[1:]) if isinstance(first, torch.Tensor) else ()
    if len(shape) != 3:
        raise DataError(
            f"The example's first input has shape {(1, *shape)}; classification is of images, so it must be [batch, "
            f"channels, height, width]. Say what another network is for with task=, or loss= and metric=."
        )
    told = carried(model) if normalize is None else as_preprocessing(normalize)
    preprocessing = Preprocessing() if told is None else told.for_channels(shape[0]) if normalize is None else told
    preprocessing.check(shape[0])
    outputs = _outputs(model, first)
    return Loaded(model, type(model).__name__, shape, preprocessing, outputs, pixels_told=told is not None)


def _outputs(model: nn.Module, image: torch.Tensor) -> tuple[int, ...] | None:
    """Shape of the output without the batch, None where it is no single tensor."""
    training = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            output = model(image)
    except (Exception, SystemExit) as error:
        raise DataError(
            f"The network does not run on the example's first input, {tuple(image.shape)} of {image.dtype}: "
            f"{why(error)}. Give an example that it takes."
        ) from error
    finally:
        for module, mode in training:
            module.training = mode
    return shape_of(output, "The network")
