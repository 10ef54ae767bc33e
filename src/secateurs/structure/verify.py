"""The check: a cut network must compute what the dense network computes when it ignores the removed units."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from secateurs.errors import StructureError
from secateurs.plan import Plan
from secateurs.structure.apply import cut_copy, deep_copy, require_sound
from secateurs.structure.graph import Graph
from secateurs.structure.precision import Float64
from secateurs.structure.trace import evaluating, quiet, split_example, trace

TOLERANCE = 1e-6
"""Largest allowed max|difference| / max|output| in float64."""


def scratch(model: nn.Module, seed: int) -> nn.Module:
    """A float64 copy on the CPU, in evaluation mode, with every floating parameter and statistic redrawn.

    Real networks start with zero gammas or tiny layer scales, behind which a shuffled branch changes nothing.
    """
    generator = torch.Generator().manual_seed(seed)
    replaced: dict[int, object] = {}
    for module in model.modules():
        for name, tensor in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
            if id(tensor) not in replaced and tensor.is_floating_point():
                drawn = _drawn(module, name, tensor, generator)
                replaced[id(tensor)] = nn.Parameter(drawn) if isinstance(tensor, nn.Parameter) else drawn
    return deep_copy(model, replaced).cpu().double().eval()


def _drawn(module: nn.Module, name: str, tensor: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    if tensor.dim() >= 2 and tensor.numel() > max(tensor.shape):
        transposed = isinstance(module, nn.modules.conv._ConvTransposeNd)
        fan_in = tensor[:, 0].numel() if transposed else tensor[0].numel()
        limit = (6.0 / max(fan_in, 1)) ** 0.5
        return torch.empty(tensor.shape, dtype=torch.float64).uniform_(-limit, limit, generator=generator)
    uniform = torch.rand(tensor.shape, generator=generator, dtype=torch.float64)
    if name == "running_var":
        return uniform + 0.5
    sign = torch.where(torch.rand(tensor.shape, generator=generator) < 0.5, -1.0, 1.0)
    if name in ("running_mean", "bias"):
        return 0.3 * sign * uniform
    return sign * (uniform + 0.5)


def mask_removed(model: nn.Module, plan: Plan) -> nn.Module:
    """``model`` with every removed index set to zero in place: the dense network that ignores them."""
    with torch.no_grad():
        for name, axes in plan.removed().items():
            path, _, leaf = name.rpartition(".")
            module = model.get_submodule(path)
            tensor = getattr(module, leaf)
            if leaf == "running_var":
                continue
            for dim, gone in axes.items():
                tensor.index_fill_(dim, torch.tensor(gone, device=tensor.device), 0)
    return model


def random_inputs(
    args: Sequence[Any], kwargs: Mapping[str, Any], seed: int = 0
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The example with every floating tensor redrawn in float64; integer inputs are kept."""
    generator = torch.Generator().manual_seed(seed)

    def draw(leaf: Any) -> Any:
        if isinstance(leaf, torch.Tensor) and leaf.is_floating_point():
            return torch.randn(leaf.shape, generator=generator, dtype=torch.float64)
        return leaf.cpu() if isinstance(leaf, torch.Tensor) else leaf

    return pytree.tree_map(draw, tuple(args)), pytree.tree_map(draw, dict(kwargs))


def stored_example(plan: Plan) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """An example of the shapes and types that the plan stores."""
    args: list[Any] = []
    kwargs: dict[str, Any] = {}
    for entry in plan.example_shapes:
        if isinstance(entry, dict) and "keyword" in entry:
            kwargs[entry["keyword"]] = _from_shape(entry["is"])
        elif isinstance(entry, (list, tuple)) and len(entry) == 3:
            kwargs[entry[2]] = _from_shape(entry[:2])
        else:
            args.append(_from_shape(entry))
    return tuple(args), kwargs


def _from_shape(entry: Any) -> Any:
    if isinstance(entry, (list, tuple)):
        return torch.zeros(tuple(entry[0]), dtype=getattr(torch, entry[1]))
    if isinstance(entry, dict):
        if "list" in entry:
            return [_from_shape(item) for item in entry["list"]]
        return {key: _from_shape(item) for key, item in entry["dict"].items()}
    return entry


def tensors_of(output: Any) -> list[torch.Tensor]:
    """Every tensor of an output, in order."""
    return [leaf for leaf in pytree.tree_leaves(output) if isinstance(leaf, torch.Tensor)]


def relative_difference(first: Any, second: Any) -> float:
    """Largest max|a - b| / max|b| over all floating outputs; infinity where shapes, counts or finiteness differ."""
    ours, theirs = tensors_of(first), tensors_of(second)
    if len(ours) != len(theirs):
        return float("inf")
    worst = 0.0
    for a, b in zip(ours, theirs, strict=True):
        if a.shape != b.shape:
            return float("inf")
        if not b.is_floating_point():
            continue
        if not (torch.isfinite(a).all() and torch.isfinite(b).all()):
            return float("inf")
        scale = float(b.abs().max()) if b.numel() else 0.0
        gap = float((a - b).abs().max()) if b.numel() else 0.0
        worst = max(worst, gap / scale if scale else (float("inf") if gap else 0.0))
    return worst


def check_plan(
    model: nn.Module, plan: Plan, example: Any = None, *, seed: int = 0, graph: Graph | None = None
) -> float:
    """Relative difference between the cut network and its oracle on redrawn parameters.

    The oracle is the user's own dense network with the removed indices set to zero; where a statistic spans units
    (normalisation or softmax over them) it is the interpreter of the exported graph.

    Args:
        model: the dense network.
        plan: what stays.
        example: inputs; without it, inputs of the plan's stored shapes.
        seed: of the redrawn parameters and inputs.
        graph: the traced network, if at hand (else it is traced where it is needed).

    Raises:
        StructureError: the cut network does not run, or the difference is above 1e-6.
    """
    args, kwargs = split_example(example) if example is not None else stored_example(plan)
    needs_graph = plan.rebuild is not None or bool(plan.provenance.get("statistics"))
    if needs_graph and graph is None:
        graph = trace(model, (args, kwargs), grid=str(plan.provenance.get("grid", "auto")))
    if graph is not None and needs_graph:
        args, kwargs = graph.program.example_inputs  # the batch that the graph was traced with
    require_sound(model, plan.slices)

    def drawn() -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The same inputs for every run, which may change them in place."""
        return random_inputs(args, kwargs, seed)

    dense = scratch(model, seed)
    with torch.no_grad(), quiet(), Float64():
        try:
            small = _carried_out(dense, plan, graph)
            inputs, keywords = drawn()
            ours = small(*inputs, **keywords)
        except Exception as error:
            raise StructureError(
                f"The cut network does not run ({type(error).__name__}: {str(error).strip().splitlines()[0][:200]}). "
                "The original is intact. Please report the architecture; --keep PATTERN leaves the layer alone."
            ) from error
        theirs: Any = None
        if not plan.provenance.get("statistics"):
            inputs, keywords = drawn()
            theirs = mask_removed(dense, plan)(*inputs, **keywords)
    if theirs is None or not _finite(theirs):  # not finite: something divides by what is zero now, a weight's own size
        from secateurs.structure.interpreter import interpret

        graph = graph or trace(model, (args, kwargs), grid=str(plan.provenance.get("grid", "auto")))
        with torch.no_grad(), quiet(), Float64():
            theirs = interpret(graph, plan, dense, *drawn())
    error_found = relative_difference(ours, theirs)
    if not error_found <= TOLERANCE:
        where = first_difference(dense, small, plan, *drawn())
        raise StructureError(
            f"The cut network computes something else: relative difference {error_found:.2g} (allowed {TOLERANCE:g}), "
            f"first at {where}. The original is intact. Please report the architecture; "
            "--keep PATTERN leaves the layer alone."
        )
    return error_found


def _finite(result: Any) -> bool:
    return all(bool(tensor.isfinite().all()) for tensor in tensors_of(result) if tensor.is_floating_point())


def _carried_out(dense: nn.Module, plan: Plan, graph: Graph | None) -> nn.Module:
    if plan.rebuild is None:
        return cut_copy(dense, plan)
    from secateurs.structure.rebuild import build, cut_of

    assert graph is not None
    return build(graph, cut_of(graph, plan), dense, plan.rebuild).double().eval()


def first_difference(
    dense: nn.Module, small: nn.Module, plan: Plan, inputs: Sequence[Any], keywords: Mapping[str, Any]
) -> str:
    """Module path whose output differs first between the masked dense and the cut network."""
    ours = _outputs(small, *copy.deepcopy((inputs, keywords)))
    theirs = _outputs(mask_removed(dense, plan), inputs, keywords)
    for name, output in ours.items():
        other = theirs.get(name)
        if other is None or output.dim() != other.dim():
            continue
        if output.shape != other.shape:
            other = _kept_channels(name, other, plan)
        if output.shape == other.shape and relative_difference(output, other) > TOLERANCE:
            return name or "the output"
    return "the output"


def _kept_channels(name: str, output: torch.Tensor, plan: Plan) -> torch.Tensor:
    for leaf in ("weight", "bias"):
        axes = plan.slices.get(f"{name}.{leaf}", {})
        if 0 in axes:
            total = plan.fingerprint.shapes[f"{name}.{leaf}"][0]
            for dim in (1, output.dim() - 1):
                if output.shape[dim] == total:
                    return output.index_select(dim, torch.tensor(axes[0]))
    return output


def _outputs(model: nn.Module, inputs: Sequence[Any], keywords: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}

    def remember(name: str) -> Any:
        def hook(module: nn.Module, arguments: Any, output: Any) -> None:
            if isinstance(output, torch.Tensor) and name not in found:
                found[name] = output.detach()

        return hook

    handles = [module.register_forward_hook(remember(name)) for name, module in model.named_modules()]
    try:
        with torch.no_grad(), evaluating(model), Float64():
            model(*inputs, **keywords)
    except Exception:
        pass
    finally:
        for handle in handles:
            handle.remove()
    return found
