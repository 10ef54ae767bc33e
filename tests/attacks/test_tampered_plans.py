"""Plans that somebody changed: refused with the first difference, and the network is untouched."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import secateurs as sc
from secateurs.models import load

Raw = dict[str, Any]


class Sized(nn.Module):
    """Keeps the width of its first layer as an integer, and attention whose scale a plan holds."""

    def __init__(self) -> None:
        super().__init__()
        self.width, self.heads, self.size = 16, 4, 4
        self.first = nn.Linear(8, 16)
        self.qkv = nn.Linear(16, 48)
        self.last = nn.Linear(16, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x).view(-1, 5, self.width)
        q, k, v = self.qkv(x).view(-1, 5, 3, self.heads, self.size).permute(2, 0, 3, 1, 4)
        y = nn.functional.scaled_dot_product_attention(q, k, v)
        return self.last(y.transpose(1, 2).flatten(2)).mean(1)


@pytest.fixture(scope="module")
def dense() -> nn.Module:
    return load("digits-resnet?width=0.5", seed=1).module


@pytest.fixture(scope="module")
def made(dense: nn.Module) -> sc.Plan:
    graph = sc.trace(dense, torch.zeros(1, 3, 32, 32))
    kept = {group.name: tuple(range(group.units - group.units // 2)) for group in graph.groups}
    return graph.plan(kept, [graph.removable_blocks[-1].name])


def first_group(raw: Raw) -> str:
    return next(iter(raw["groups"]))


def change(path: str, value: Any) -> Callable[[Raw], None]:
    """A change of the entry at a dotted path; ``*``: the first key."""

    def work(raw: Raw) -> None:
        *parents, last = path.split(".")
        at: Any = raw
        for name in parents:
            at = at[int(name)] if isinstance(at, list) else at[next(iter(at)) if name == "*" else name]
        last = next(iter(at)) if last == "*" else last
        at[int(last) if isinstance(at, list) else last] = value(at[last]) if callable(value) else value

    return work


def rename(where: str) -> Callable[[Raw], None]:
    def work(raw: Raw) -> None:
        name = next(iter(raw[where]))
        raw[where]["nowhere"] = raw[where].pop(name)

    return work


PATCH = {"module": "", "attribute": "training", "value": 3}
TAMPERED: dict[str, tuple[Callable[[Raw], None], str]] = {
    "digest": (change("fingerprint.digest", "0" * 16), "fingerprint.digest"),
    "shape": (change("fingerprint.shapes.*", [1]), "another network"),
    "shape of another size": (change("fingerprint.shapes.*", lambda shape: [*shape, 1]), "another network"),
    "group renamed": (rename("groups"), "in one of groups and group_sizes only"),
    "group size renamed": (rename("group_sizes"), "in one of groups and group_sizes only"),
    "group size raised": (change("group_sizes.*", lambda size: size * 10), "group_sizes"),
    "group size 0": (change("group_sizes.*", 0), "do not ascend"),
    "group size negative": (change("group_sizes.*", -1), "do not ascend"),
    "units twice": (change("groups.*", [0, 0]), "do not ascend"),
    "units backwards": (change("groups.*", [1, 0]), "do not ascend"),
    "units out of range": (change("groups.*", [10**9]), "do not ascend"),
    "units negative": (change("groups.*", [-1]), "do not ascend"),
    "other units": (change("groups.*", lambda kept: kept[:-1]), "keeps other units than slices"),
    "slice renamed": (rename("slices"), "which the network lacks"),
    "slice along nothing": (change("slices.*", {"9": [0]}), "along dimension 9"),
    "slice along -1": (change("slices.*", {"-1": [0]}), "along dimension -1"),
    "slice out of range": (change("slices.*", {"0": [10**9]}), "keeps other units"),
    "slice backwards": (change("slices.*", {"0": [1, 0]}), "keeps other units"),
    "slice of a buffer out of range": (
        change("slices", lambda slices: {**slices, "bn1.running_mean": {"0": [10**9]}}),
        "bn1.running_mean along dimension 0 does not ascend",
    ),
    "block twice": (change("blocks_removed", lambda blocks: blocks * 2), "removed twice"),
    "block forgotten": (change("blocks_removed", []), "is not removed"),
    "patch of nothing": (change("patches", [{**PATCH, "module": "nowhere"}]), "which the network lacks"),
    "patch of a method": (change("patches", [{**PATCH, "attribute": "forward"}]), "holds no size"),
    "patch of a mode": (change("patches", [PATCH]), "holds no size"),
    "patch of a class": (change("patches", [{**PATCH, "attribute": "__class__"}]), "holds no size"),
    "patch with a text": (
        change("patches", [{"module": "conv1", "attribute": "out_channels", "value": "8"}]),
        "sets conv1.out_channels",
    ),
    "bypass of nothing": (change("bypasses.0.module", "nowhere"), "which the network lacks"),
    "bypass of another block": (change("bypasses.0.block", "nowhere"), "is not removed"),
    "bypass through nothing": (change("bypasses.0.steps", ["module:nowhere"]), "the step"),
    "bypass calls anything": (change("bypasses.0.steps", ["call:__import__"]), "the step"),
    "bypass without a kind": (change("bypasses.0.steps", ["relu"]), "the step"),
    "scale of nothing": (change("scales", [{"parameter": "x", "indices": [0], "factor": 1.0}]), "scales"),
    "scale by nan": (
        change("scales", [{"parameter": "conv1.weight", "indices": [0], "factor": float("nan")}]),
        "multiplies by nan",
    ),
    "scale by 0": (change("scales", [{"parameter": "conv1.weight", "indices": [0], "factor": 0}]), "multiplies by 0"),
    "elements of a bias": (
        change("elements", {"bn1.bias": {"scope": "layer", "pattern": [[0]]}}),
        "no weight of a convolution",
    ),
}


@pytest.mark.parametrize("name", TAMPERED)
def test_a_plan_that_was_changed_is_refused(name: str, made: sc.Plan, dense: nn.Module) -> None:
    tamper, told = TAMPERED[name]
    raw = json.loads(made.to_json())
    tamper(raw)
    before = {key: tensor.clone() for key, tensor in dense.state_dict().items()}
    with pytest.raises(sc.PlanError, match=told):
        sc.apply(dense, sc.Plan.from_json(json.dumps(raw)))
    assert all(torch.equal(tensor, before[key]) for key, tensor in dense.state_dict().items())


def test_what_follows_from_the_groups_cannot_be_changed() -> None:
    dense, example = Sized(), torch.randn(2, 5, 8)
    graph = sc.trace(dense, example, grid="columns")
    made = graph.plan({group.name: tuple(range(group.units // 2)) for group in graph.groups})
    assert sc.apply(dense, made, example) is not None
    raw = json.loads(made.to_json())
    assert raw["scales"]
    for name in [name for name in ("patches", "scales") if raw[name]]:
        with pytest.raises(sc.PlanError, match=rf"{name}\[0\] is .* follows"):
            sc.apply(dense, sc.Plan.from_json(json.dumps({**raw, name: []})), example)


DAMAGED = [
    "", "null", "[]", "3", "[" * 9000, '{"schema": ' * 2000, "9" * 9000, "1e999", '{"schema": "secateurs.plan/1"}',
    '{"schema": {}}', "\ud800", "NaN",
]  # fmt: skip


@pytest.mark.parametrize("text", DAMAGED)
def test_a_plan_of_any_json_is_a_message(text: str) -> None:
    with pytest.raises(sc.PlanError, match=r"plan (is not JSON|has schema|is damaged)"):
        sc.Plan.from_json(text)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("groups", []), ("groups", {"a": 3}), ("groups", {"a": ["0"]}), ("groups", {"a": [1.5]}),
        ("slices", {"a": {"x": [0]}}), ("slices", {"a": {"0": ["٣"]}}), ("patches", [3]), ("scales", {}),
        ("fingerprint", None), ("provenance", 3), ("unknown", 1), ("rebuild", 3), ("group_sizes", {"a": 10**400}),
    ],
)  # fmt: skip
def test_types_in_a_plan_are_checked(field: str, value: object, made: sc.Plan) -> None:
    raw = {**json.loads(made.to_json()), field: value}
    with pytest.raises(sc.PlanError):
        sc.apply(nn.Linear(1, 1), sc.Plan.from_json(json.dumps(raw)))
