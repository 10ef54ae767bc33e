"""A rebuilt network that does one thing in evaluation mode and another in training mode, as the user's own does."""

from __future__ import annotations

import copy
import functools
from typing import Any

import torch
from torch import nn


class TwoModes(nn.Module):
    """Two graphs over one tree of modules: ``training`` decides which of them runs.

    Parameters, buffers and layers that both read are one and the same object, under the names of the user's module.

    Args:
        evaluation: the graph in evaluation mode.
        training: the graph in training mode, made from the same modules.
    """

    def __init__(self, evaluation: torch.fx.GraphModule, training: torch.fx.GraphModule) -> None:
        super().__init__()
        _merge(self, evaluation)
        _merge(self, training)
        self._graphs = (evaluation, training)
        self._share()

    def _share(self) -> None:
        """Let both graphs read the tree of this module, so that whatever is done to it holds for them."""
        for graph in self._graphs:
            for name in ("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set"):
                graph.__dict__[name] = self.__dict__[name]

        @functools.wraps(self._graphs[0].forward)
        def forward(*args: Any, **kwargs: Any) -> Any:
            return self._graphs[self.training].forward(*args, **kwargs)

        self.__dict__["forward"] = forward  # under the names of the user's inputs

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__.copy()
        del state["forward"]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._share()

    def _replicate_for_data_parallel(self) -> TwoModes:
        replica: TwoModes = super()._replicate_for_data_parallel()
        replica._graphs = (copy.copy(self._graphs[0]), copy.copy(self._graphs[1]))
        replica._share()
        return replica

    def extra_repr(self) -> str:
        return "one graph for evaluation, one for training"


def _merge(tree: nn.Module, other: nn.Module) -> None:
    """Hang what ``other`` holds into the tree; a layer takes the place of a bare holder of its tensors."""
    for name, parameter in other._parameters.items():
        tree._parameters.setdefault(name, parameter)
    for name, buffer in other._buffers.items():
        if name not in tree._buffers:
            tree.register_buffer(name, buffer, name not in other._non_persistent_buffers_set)
    for name, child in other._modules.items():
        mine = tree._modules.get(name)
        if mine is None or child is None:
            tree._modules.setdefault(name, child)
        elif mine is not child and type(mine) is nn.Module:
            if type(child) is not nn.Module:
                _merge(child, mine)
                tree._modules[name] = child
            else:
                _merge(mine, child)
        elif mine is not child:
            _merge(mine, child)
