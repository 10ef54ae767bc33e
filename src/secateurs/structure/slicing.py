"""The only code that edits a model: a copy of the user's own module, sliced by a plan."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import nn

from secateurs.errors import PlanMismatchError, StructureError
from secateurs.plan import Patch, Plan, Scale
from secateurs.structure.computed import refresh
from secateurs.structure.copies import deep_copy
from secateurs.structure.layout import arranged_as


def require_match(model: nn.Module, plan: Plan) -> None:
    """Nothing, if every name and shape is the one the plan was made for.

    Raises:
        PlanMismatchError: naming the first difference.
    """
    found: dict[str, tuple[int, ...]] = {
        name: tuple(tensor.shape)
        for tensors in (model.named_parameters(remove_duplicate=False), model.named_buffers(remove_duplicate=False))
        for name, tensor in tensors
    }
    wanted = plan.fingerprint.shapes
    for name, shape in wanted.items():
        attribute = None if name in found else _plain_tensor(model, name)
        if attribute is not None:
            found[name] = tuple(attribute.shape)
        if name not in found:
            raise PlanMismatchError(
                f"The plan was made for another network: it has {name} {list(shape)}, which {type(model).__name__} "
                "lacks. Apply it to the network it was made for, or make a new plan."
            )
        if found[name] != tuple(shape):
            raise PlanMismatchError(
                f"The plan was made for another network: {name} is {list(shape)} there and {list(found[name])} in "
                f"{type(model).__name__}. Apply it to the network it was made for, or make a new plan."
            )
    for name in found:
        if name not in wanted and not _passing(model, name):
            raise PlanMismatchError(
                f"The plan was made for another network: {type(model).__name__} has {name}, which the plan does not "
                "know. Apply it to the network it was made for, or make a new plan."
            )


def _passing(model: nn.Module, name: str) -> bool:
    """Whether it is a buffer that no checkpoint holds: a forward may have made it since the plan."""
    path, _, leaf = name.rpartition(".")
    return leaf in model.get_submodule(path)._non_persistent_buffers_set


def _plain_tensor(model: nn.Module, name: str) -> torch.Tensor | None:
    path, _, leaf = name.rpartition(".")
    try:
        value = getattr(model.get_submodule(path), leaf, None)
    except AttributeError:
        return None
    return value if isinstance(value, torch.Tensor) else None


def cut_copy(model: nn.Module, plan: Plan) -> nn.Module:
    """A cut deep copy, unchecked."""
    small = sliced_copy(model, plan.slices, tuple(bypass.module for bypass in plan.bypasses), plan.scales)
    apply_patches(small, plan.patches)
    for bypass in plan.bypasses:
        replace_module(small, bypass.module, _shortcut(small.get_submodule(bypass.module), bypass.steps))
    return small


def sliced_copy(
    model: nn.Module,
    slices: Mapping[str, Mapping[int, Sequence[int]]],
    bypassed: Sequence[str] = (),
    scales: Sequence[Scale] = (),
) -> nn.Module:
    """A deep copy with sliced parameters and buffers; ties stay tied, and PyTorch's own layers know their new sizes.

    The large tensors are never copied whole: the copy is told what stands in their place.

    Raises:
        StructureError: the module cannot be copied, or an index list is damaged.
    """
    require_sound(model, slices)
    replaced: dict[int, object] = {}
    factors: dict[str, list[Scale]] = {}
    for scale in scales:
        factors.setdefault(scale.parameter, []).append(scale)
    for name in dict.fromkeys((*slices, *factors)):
        path, _, leaf = name.rpartition(".")
        old = getattr(model.get_submodule(path), leaf)
        if id(old) not in replaced:
            new = _sliced(old, slices.get(name, {}))
            for scale in factors.get(name, ()):  # one a round: rounded as the rounds one after the other are
                _scale_rows(new, slices.get(name, {}), scale)
            replaced[id(old)] = nn.Parameter(new, old.requires_grad) if isinstance(old, nn.Parameter) else new
    small = deep_copy(model, replaced)
    for path in dict.fromkeys(name.rpartition(".")[0] for name in slices):
        if not any(path == gone or path.startswith(gone + ".") for gone in bypassed):
            sync_sizes(small.get_submodule(path))
            refresh(small.get_submodule(path))
    return small


def require_sound(model: nn.Module, slices: Mapping[str, Mapping[int, Sequence[int]]]) -> None:
    """Nothing, if index lists ascend and are the same for every name of a tied tensor.

    Some permutations change no output at all (a key's bias, a bias before a normalisation), so that running the
    network cannot show them.

    Raises:
        StructureError: naming the first damaged list.
    """
    first: dict[int, str] = {}
    for name, axes in slices.items():
        path, _, leaf = name.rpartition(".")
        tensor = getattr(model.get_submodule(path), leaf)
        for dim, kept in axes.items():
            size = tensor.shape[int(dim)]
            if any(b <= a for a, b in itertools.pairwise((-1, *kept, size))):
                raise StructureError(
                    f"The index list of {name} along dimension {dim} does not ascend between 0 and {size - 1}: "
                    "the plan is damaged. Make the plan again."
                )
        other = first.setdefault(id(tensor), name)
        if slices[other] != axes:
            raise StructureError(
                f"{name} and {other} are one tensor, but the plan cuts them differently: the plan is damaged. "
                "Make the plan again."
            )


def _sliced(tensor: torch.Tensor, axes: Mapping[int, Sequence[int]]) -> torch.Tensor:
    result = tensor.detach()
    for dim, kept in axes.items():
        result = result.index_select(int(dim), torch.tensor(list(kept), dtype=torch.long, device=tensor.device))
    arranged = arranged_as(result, tensor)
    return arranged if axes else arranged.clone(memory_format=torch.preserve_format)


def _scale_rows(tensor: torch.Tensor, axes: Mapping[int, Sequence[int]], scale: Scale) -> None:
    kept = np.asarray(axes.get(0, range(tensor.shape[0])))
    places = np.flatnonzero(np.isin(kept, np.asarray(scale.indices)))
    tensor[torch.from_numpy(places).to(tensor.device)] *= scale.factor


def sync_sizes(module: nn.Module) -> None:
    """Make the integers that PyTorch's own layers keep agree with their tensors."""
    weight = getattr(module, "weight", None)
    if isinstance(module, nn.modules.conv._ConvTransposeNd) and weight is not None:
        module.in_channels, module.out_channels = weight.shape[0], weight.shape[1] * module.groups
    elif isinstance(module, nn.modules.conv._ConvNd) and weight is not None:
        module.out_channels, module.in_channels = weight.shape[0], weight.shape[1] * module.groups
    elif isinstance(module, nn.Bilinear) and weight is not None:
        module.out_features, module.in1_features, module.in2_features = weight.shape
    elif isinstance(module, nn.Linear) and weight is not None:
        module.out_features, module.in_features = weight.shape
    elif isinstance(module, nn.modules.batchnorm._NormBase):
        sized = weight if weight is not None else module.running_mean
        if sized is not None:
            module.num_features = sized.shape[0]
    elif isinstance(module, (nn.LayerNorm, nn.RMSNorm)) and weight is not None:
        module.normalized_shape = tuple(weight.shape)
    elif isinstance(module, nn.GroupNorm) and weight is not None:
        module.num_channels = weight.shape[0]
    elif isinstance(module, nn.Embedding) and weight is not None:
        module.embedding_dim = weight.shape[1]
    elif isinstance(module, nn.RNNBase):
        first, recurrent = module.get_parameter("weight_ih_l0"), module.get_parameter("weight_hh_l0")
        module.input_size, module.hidden_size = first.shape[1], recurrent.shape[1]
    elif isinstance(module, nn.RNNCellBase):
        module.input_size, module.hidden_size = module.weight_ih.shape[1], module.weight_hh.shape[1]
    elif isinstance(module, nn.PReLU) and weight is not None:
        module.num_parameters = weight.shape[0]


def apply_patches(model: nn.Module, patches: Sequence[Patch]) -> None:
    """Set the integers that a plan names, then once more those that follow from them."""
    for patch in patches:
        module = model.get_submodule(patch.module)
        old = getattr(module, patch.attribute, None)
        value = tuple(patch.value) if isinstance(patch.value, (list, tuple)) and isinstance(old, tuple) else patch.value
        setattr(module, patch.attribute, value)
        sync_sizes(module)


def replace_module(model: nn.Module, path: str, replacement: nn.Module) -> None:
    """Put another module at ``path``."""
    parent, _, leaf = path.rpartition(".")
    owner = model.get_submodule(parent)
    owner._modules[leaf] = replacement


class Shortcut(nn.Module):
    """What is left of a residual block whose branch was removed: its shortcut, and what came after the add.

    Children keep the names they had in the block, so that weights keep their keys.
    """

    def __init__(self, children: Mapping[str, nn.Module], steps: Sequence[str]) -> None:
        super().__init__()
        for name, child in children.items():
            self.add_module(name, child)
        self.steps = tuple(steps)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The block's input through what is left."""
        for step in self.steps:
            kind, _, name = step.partition(":")
            x = getattr(self, name)(x) if kind == "module" else getattr(nn.functional, name)(x)
        return x

    def extra_repr(self) -> str:
        return " → ".join(self.steps) or "identity"


def _shortcut(block: nn.Module, steps: Sequence[str]) -> nn.Module:
    named = [step.partition(":")[2] for step in steps if step.startswith("module:")]
    shortcut = Shortcut({name: block.get_submodule(name) for name in named}, steps)
    return shortcut.train(block.training)
