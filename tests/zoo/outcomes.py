"""What becomes of a network after a report: traced, planned uniformly, cut, judged, run at another batch, trained."""

from __future__ import annotations

import dataclasses
import importlib.util
import sys
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from reports import Report
from torch import nn

import secateurs as sc
from secateurs.errors import SecateursError
from secateurs.structure.copies import deep_copy

KEEP = 0.6
TOLERANCE = 1e-6
"""Largest max|difference| / max|output| in float64."""
OUTCOMES = (
    "right in own class", "right rebuilt", "refused with reason", "traceback", "silently wrong",
    "nothing removed silently",
)  # fmt: skip
JUDGES = Path(__file__).resolve().parents[2] / "src" / "secateurs" / "testing"


@dataclasses.dataclass(frozen=True)
class Outcome:
    """``outcome``: one of ``OUTCOMES``; ``stage``: where it ended; ``error``: the judge's figure; ``removed``: share of
    the parameters that went; ``other_batch``, ``nest``, ``trains``: ``yes`` or what went wrong."""

    outcome: str
    stage: str = ""
    reason: str = ""
    error: float = 0.0
    removed: float = 0.0
    other_batch: str = ""
    nest: str = ""
    trains: str = ""


def outcome_of(report: Report) -> Outcome:
    """All that is asked of one network."""
    torch.manual_seed(0)
    model, example = report.build().eval(), report.example(2)
    stage = "trace"
    try:
        graph = sc.trace(model, example)
        stage = "plan"
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            plan = sc.plan(graph, keep=KEEP, criterion="random", seed=1, **_barriers(report))
        stage = "apply"
        small = sc.apply(model, plan, example)
    except SecateursError as refusal:
        return Outcome("refused with reason", stage, f"{type(refusal).__name__}: {refusal}")
    except Exception as error:
        return Outcome("traceback", stage, f"{type(error).__name__}: {error}")
    found = _use(report, model, plan, small, example)
    removed = 1 - _count(small) / _count(model)
    if found.outcome == "right in own class" and removed <= 0 and not told:
        found = dataclasses.replace(found, outcome="nothing removed silently")
    return dataclasses.replace(found, removed=removed)


def _barriers(report: Report) -> dict[str, Any]:
    return {"barriers": report.barriers} if report.barriers else {}


def _use(report: Report, model: nn.Module, plan: Any, small: nn.Module, example: Any) -> Outcome:
    """Judged at two batch sizes, compared in its form, trained."""
    rebuilt = getattr(small, "secateurs_rebuilt", "")
    right = "right in own class" if type(small) is type(model) else "right rebuilt"
    try:
        error = judged(model, plan, example, example)
    except SecateursError as refusal:
        return Outcome("traceback", "judge", f"{type(refusal).__name__}: {refusal}")
    except Exception as failure:
        return Outcome("traceback", "run", f"{type(failure).__name__}: {failure}")
    checks = {
        "other_batch": _tried(lambda: _close(judged(model, plan, example, report.example(3)))),
        "nest": _tried(lambda: _same_nest(model, small, report.example(2))),
        "trains": _tried(lambda: _trained(small, report.example(4))),
    }
    wrong = (
        not error <= TOLERANCE or checks["nest"].startswith("differs") or checks["other_batch"].startswith("differs")
    )
    return Outcome("silently wrong" if wrong else right, "", str(rebuilt), error, **checks)


def judged(model: nn.Module, plan: Any, example: Any, inputs: Any) -> float:
    """The cut against the dense network in which the removed units are absent, on redrawn weights and inputs."""
    judge = _judge()
    dense = _redrawn(model)
    small = sc.apply(dense, plan, _in_float64(example, 1), check=False).eval()
    drawn = _in_float64(inputs, 2)
    args, kwargs = as_call(drawn)
    theirs = deep_copy(dense, {}).eval()
    judge.blank_removed(theirs, plan)
    with torch.no_grad(), judge.whole_operators(), judge.Absent():
        wanted = tensors(theirs(*args, **kwargs))
    args, kwargs = as_call(_in_float64(inputs, 2))
    with torch.no_grad():
        ours = tensors(small(*args, **kwargs))
    return _gap(ours, wanted)


def _judge() -> Any:
    """Today's judge, whatever code is judged."""
    for name in ("structure_judge", "structure_judge_products"):
        if name not in _LOADED:
            spec = importlib.util.spec_from_file_location(f"secateurs.testing.{name}", JUDGES / f"{name}.py")
            assert spec is not None
            assert spec.loader is not None
            _LOADED[name] = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(_LOADED[name])
    return _LOADED["structure_judge"]


_LOADED: dict[str, Any] = {}


def _gap(ours: list[torch.Tensor], theirs: list[torch.Tensor]) -> float:
    if len(ours) != len(theirs) or any(a.shape != b.shape for a, b in zip(ours, theirs, strict=True)):
        return float("inf")
    worst = 0.0
    for a, b in zip(ours, theirs, strict=True):
        if not b.is_floating_point():
            worst = worst if torch.equal(a, b) else float("inf")
        elif not bool(torch.isfinite(a).all() and torch.isfinite(b).all()):
            return float("inf")
        elif b.numel():
            worst = max(worst, float((a - b).abs().max()) / max(float(b.abs().max()), 1e-30))
    return worst


def _redrawn(model: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(3)
    fresh = deep_copy(model, {}).double().eval()
    with torch.no_grad():
        for name, tensor in [*fresh.named_parameters(), *fresh.named_buffers()]:
            if tensor.is_floating_point():
                size = torch.rand(tensor.shape, generator=generator, dtype=torch.float64) + 0.5
                small = tensor.dim() > 1 and tensor.numel() > max(tensor.shape)
                sign = torch.randint(0, 2, tensor.shape, generator=generator).double() * 2 - 1
                if name.endswith("running_var") or tensor.dim() == 0:
                    sign = torch.ones_like(sign)
                tensor.copy_(sign * size * ((1.5 / tensor[0].numel()) ** 0.5 if small else 1.0))
    return fresh


def _in_float64(example: Any, seed: int) -> Any:
    """The example with floats drawn anew; 0 and 1 stay what they are (masks, adjacencies)."""
    generator = torch.Generator().manual_seed(seed)

    def draw(leaf: torch.Tensor) -> torch.Tensor:
        if not leaf.is_floating_point():
            return leaf.clone()
        if bool(((leaf == 0) | (leaf == 1)).all()):
            return leaf.double()
        return torch.randn(leaf.shape, generator=generator, dtype=torch.float64)

    return mapped(example, draw)


def mapped(value: Any, change: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """A nest of any containers with every tensor changed."""
    if isinstance(value, torch.Tensor):
        return change(value)
    if isinstance(value, Mapping):
        fields = {key: mapped(item, change) for key, item in value.items()}
        return fields if type(value) is dict else type(value)(**fields)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        names = [field.name for field in dataclasses.fields(value)]
        return dataclasses.replace(value, **{name: mapped(getattr(value, name), change) for name in names})
    if isinstance(value, (list, tuple)):
        items = [mapped(item, change) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    return value


def nest(value: Any) -> Any:
    """Classes, keys and kinds of an output, without its numbers."""
    if isinstance(value, torch.Tensor):
        return ("tensor", value.dtype, tuple(value.shape))
    if isinstance(value, Mapping):
        return (type(value), [(key, nest(item)) for key, item in value.items()])
    if dataclasses.is_dataclass(value):
        return (type(value), [(f.name, nest(getattr(value, f.name))) for f in dataclasses.fields(value)])
    if isinstance(value, (list, tuple)):
        return (type(value), [nest(item) for item in value])
    return value


def tensors(value: Any) -> list[torch.Tensor]:
    """Every tensor of an output in order."""
    found: list[torch.Tensor] = []
    mapped(value, lambda leaf: (found.append(leaf), leaf)[1])
    return found


def as_call(example: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and keyword inputs of an example in any form that ``trace`` takes."""
    if isinstance(example, torch.Tensor):
        return (example,), {}
    if isinstance(example, Mapping):
        return (), dict(example)
    if len(example) == 2 and isinstance(example[0], (tuple, list)) and isinstance(example[1], Mapping):
        return tuple(example[0]), dict(example[1])
    return tuple(example), {}


def _same_nest(model: nn.Module, small: nn.Module, example: Any) -> str:
    """In evaluation and in training."""
    for training in (False, True):
        args, kwargs = as_call(example)
        with torch.no_grad():
            there, here = (nest(deep_copy(m, {}).train(training)(*args, **kwargs)) for m in (model, small))
        if here != there:
            return f"differs in {'training' if training else 'evaluation'}: {there} became {here}"[:300]
    return "yes"


def _trained(small: nn.Module, example: Any) -> str:
    small = deep_copy(small, {}).train()
    args, kwargs = as_call(example)
    floats = [leaf for leaf in tensors(small(*args, **kwargs)) if leaf.is_floating_point() and leaf.requires_grad]
    sum(leaf.pow(2).mean() for leaf in floats).backward()
    gradients = [p.grad for p in small.parameters() if p.grad is not None]
    if len(gradients) < 0.8 * sum(p.requires_grad for p in small.parameters()):
        return f"only {len(gradients)} gradients"
    if not all(bool(torch.isfinite(g).all()) for g in gradients):
        return "gradients that are not finite"
    torch.optim.SGD(small.parameters(), lr=1e-3).step()
    return "yes"


def _close(error: float) -> str:
    return "yes" if error <= TOLERANCE else f"differs by {error:.1e}"


def _tried(check: Callable[[], str]) -> str:
    try:
        return check()
    except Exception as error:
        return f"{type(error).__name__}: {error}"[:300]


def _count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
