"""Gradual pruning inside PyTorch Lightning and the Hugging Face Trainer; both packages are optional."""

from __future__ import annotations

import importlib
from typing import Any

from torch import nn

from secateurs.errors import PlanError
from secateurs.recover.schedules.gradual import Gradual


def lightning_callback(gradual: Gradual, attribute: str = "model") -> Any:
    """A Lightning callback that runs ``gradual`` at the start of every epoch.

    Args:
        gradual: the steps.
        attribute: where the Lightning module keeps the network.

    Raises:
        PlanError: neither ``lightning`` nor ``pytorch_lightning`` is installed.
    """
    base = _first(("lightning.pytorch", "pytorch_lightning"), "Lightning", "lightning").Callback

    class PruneGradually(base):  # type: ignore[misc,valid-type]
        """Replaces the network by a smaller one when a step is due."""

        def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
            """Lightning's hook."""
            module: nn.Module = getattr(pl_module, attribute)
            optimizers = trainer.optimizers
            if len(optimizers) != 1:
                raise PlanError(f"Gradual pruning needs one optimizer, this module has {len(optimizers)}.")
            setattr(pl_module, attribute, gradual.step(module, trainer.current_epoch, optimizers[0]))

    return PruneGradually()


def trainer_callback(gradual: Gradual, attribute: str | None = None) -> Any:
    """A Hugging Face ``TrainerCallback`` that runs ``gradual`` at the start of every epoch.

    Args:
        gradual: the steps.
        attribute: module inside the Trainer's model that is pruned. The Trainer keeps its model object, so this must
            be a part of it.

    Raises:
        PlanError: ``transformers`` is not installed, or no attribute is given.
    """
    if attribute is None:
        raise PlanError(
            "The Trainer keeps its model object: name the part of it to prune, such as attribute='backbone'."
        )
    base = _first(("transformers",), "The Hugging Face Trainer", "transformers").TrainerCallback
    path: str = attribute

    class PruneGradually(base):  # type: ignore[misc,valid-type]
        """Replaces a part of the model by a smaller one when a step is due."""

        def on_epoch_begin(self, args: Any, state: Any, control: Any, **named: Any) -> None:
            """The Trainer's hook."""
            model, optimizer = named["model"], named.get("optimizer")
            optimizer = getattr(optimizer, "optimizer", optimizer)
            parent, _, leaf = path.rpartition(".")
            owner = model.get_submodule(parent) if parent else model
            module: nn.Module = getattr(owner, leaf)
            # only the part's own parameters are renewed; the optimizer also holds the rest of the model
            setattr(owner, leaf, gradual.step(module, round(state.epoch or 0), _part(optimizer, module)))

    return PruneGradually()


def _part(optimizer: Any, module: nn.Module) -> Any:
    """The optimizer, if it holds parameters of ``module`` alone.

    Raises:
        PlanError: it holds others too.
    """
    if optimizer is None:
        return None
    own = {id(parameter) for parameter in module.parameters()}
    if all(id(parameter) in own for group in optimizer.param_groups for parameter in group["params"]):
        return optimizer
    raise PlanError(
        "The optimizer also trains parameters outside the pruned part. Prune the whole network (attribute of a wrapper "
        "that holds nothing else), or cut before training starts."
    )


def _first(modules: tuple[str, ...], what: str, package: str) -> Any:
    for name in modules:
        try:
            return importlib.import_module(name)
        except ImportError:
            continue
    raise PlanError(f"{what} is not installed. Install it: pip install {package}")
