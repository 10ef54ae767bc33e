"""Plans of every network by every strategy and criterion, on the fake target."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from replaying import doors
from replaying.doors import call, fake
from replaying.networks import BUILT_IN, OWN, batches, filled
from replaying.normal import Writer

CRITERIA = ("l1", "fisher", None)
"""From the weights, from data, and what is taken by default."""
ROBUST = ("l1", "lamp", "splamp")
"""From the weights, for the reference of the test."""
JUDGING = ("lap", "hamp", "front")
"""Strategies that need images, extras or a front: left out of the reference of the test."""
OWN_REDUCED = ("residual", "concat", "attention", "grouped", "shared", "signal")


@dataclass(frozen=True)
class Case:
    """A network to plan for. ``shape``: of one input."""

    name: str
    module: torch.nn.Module
    shape: tuple[int, ...]


def cases(names: tuple[str, ...] | None = None) -> list[Case]:
    """Our own networks (``names``: only these), then built-in ones."""
    own = [Case(name, filled(make()), shape) for name, (make, shape) in OWN.items() if names is None or name in names]
    return own if names is not None else [*own, *(_built_in(text) for text in BUILT_IN)]


def _built_in(text: str) -> Case:
    from secateurs.models import load

    loaded = load(text, seed=1)
    return Case(re.sub(r"\W+", "-", text), filled(loaded.module), loaded.input_shape)


def strategies() -> list[str]:
    """Every registered strategy, whether its extra is installed or not."""
    return [row["name"] for row in json.loads(call("ls", "strategies", "--json").output)]


def write(writer: Writer, store: Path, tell: Callable[[str], None]) -> None:
    """``graphs/``, ``models/`` and ``plans/NETWORK/STRATEGY-CRITERION.json``; reduced, one file per network."""
    import secateurs as sc

    known = [name for name in strategies() if not (writer.reduced and name in JUDGING)]
    for case in cases(OWN_REDUCED if writer.reduced else None):
        tell(f"plans of {case.name}")
        torch.manual_seed(0)
        graph = sc.trace(case.module, torch.zeros(2, *case.shape))
        writer.text(f"graphs/{case.name}.txt", f"{graph}\n")
        costs = None if writer.reduced else sc.profile(graph, fake(), store=store)
        made = {name: _made(graph, costs, more) for name, more in _asked(case, known, reduced=writer.reduced).items()}
        if writer.reduced:
            if case.name in ("residual", "signal"):
                _begin_profile(graph, store)
            whole, short = json.loads(made["knapsack-l1"]), {name: _short(text) for name, text in made.items()}
            writer.value(f"plans/{case.name}.json", {"in full": whole, **short})
            continue
        for name, text in made.items():
            writer.document(f"plans/{case.name}/{name}.json", text)
        if costs is not None:
            half = costs.predict(list(sc.plan(graph, keep=0.5, criterion="l1").widths().values()))
            writer.value(
                f"models/{case.name}.json", {"dense_ms": costs.dense_ms, "error": str(costs.error), "half_ms": half}
            )


def _asked(case: Case, strategies: list[str], *, reduced: bool) -> dict[str, dict[str, Any]]:
    """Arguments of ``plan`` by the plan's name."""
    common: dict[str, Any] = {"macs": "50%"} if reduced else {"latency": "60%"}
    data = {} if reduced else {"data": batches(case.shape)}
    # With data the default measures networks, which takes a minute for those of the package.
    given = {None: data if case.name in OWN else {}, "fisher": data}
    found = {
        f"{strategy}-{criterion or 'default'}": {
            **common,
            **given.get(criterion, {}),
            "strategy": strategy,
            "criterion": criterion,
        }
        for strategy in strategies
        for criterion in (ROBUST if reduced else CRITERIA)
    }
    return {**found, **_others(reduced=reduced)}


def _begin_profile(graph: Any, store: Path) -> None:
    """The first rows of a latency model, for their names; fitting it is left to the whole replay."""
    import secateurs as sc

    doors.stops_after[0] = 40
    try:
        sc.profile(graph, fake(), store=store)
    except KeyboardInterrupt:
        return
    finally:
        doors.stops_after[0] = None


def _short(text: str) -> dict[str, Any]:
    """A plan without the indices of every parameter, which follow from the units; a digest stands for them."""
    plan: dict[str, Any] = json.loads(text)
    for name in ("slices", "group_sizes", "fingerprint"):
        if name in plan:
            plan[name] = hashlib.sha256(json.dumps(plan[name]).encode()).hexdigest()[:16]
    return plan


def _others(*, reduced: bool) -> dict[str, dict[str, Any]]:
    """Other ways to ask for a plan, without data."""
    import secateurs as sc

    legal = sc.Legal(min_width=4, blocks=False)
    found: dict[str, dict[str, Any]] = {
        "nothing-to-prune": {"macs": "500G", "criterion": "l1"},
        "out-of-reach": {"macs": "0.01%", "criterion": "l1"},
        "keep-random": {"keep": 0.6, "criterion": "random", "seed": 3},
        "macs-lamp": {"macs": "70%", "criterion": "lamp", "legal": legal},
    }
    if not reduced:
        found["several"] = {"latency": "80%", "memory": "90%", "file_size": "60%", "macs": "2x", "criterion": "l2"}
        found["absolute"] = {"latency": "0.02ms", "criterion": "bn_scale"}
    return found


def _made(graph: Any, costs: Any, asked: Mapping[str, Any]) -> str:
    """The plan's JSON, or that of the error instead of one."""
    import secateurs as sc

    try:
        made: str = sc.plan(graph, costs, **asked).to_json()
    except sc.SecateursError as error:
        told = {"error": type(error).__name__, "text": str(error), "exit_code": error.exit_code}
        return json.dumps(told, indent=1) + "\n"
    return made
