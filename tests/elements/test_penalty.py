from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from secateurs.elements.patterns import PatternChoice
from secateurs.elements.penalty import HardMask, Penalty, Schedule, strength_for
from secateurs.errors import PlanError

CHOICE = PatternChoice(keep=4, block=8)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )


def test_the_sizing_rule() -> None:
    assert strength_for(1e-3, 0.01, 10_000) == pytest.approx(0.069, abs=1e-3)


@pytest.mark.parametrize("steps", [24, 57, 500])
@pytest.mark.parametrize("falling", [False, True])
@pytest.mark.parametrize("make", [torch.optim.SGD, torch.optim.Adam])
def test_doomed_weights_shrink_by_epsilon_and_kept_ones_do_not(make: type, falling: bool, steps: int) -> None:
    model, epsilon = network(), 1e-3
    penalty = Penalty(model, {"0.weight": CHOICE}, Schedule(steps, epsilon, refresh_share=0.0))
    optimizer = make([model[0].weight], lr=0.01)
    before, mask = model[0].weight.detach().clone(), penalty.masks["0.weight"]
    strengths = []
    for step in range(steps):
        if falling:
            optimizer.param_groups[0]["lr"] = 0.01 * 0.5 * (1 + math.cos(math.pi * step / steps))
        model[0].weight.grad = torch.zeros_like(before)
        optimizer.step()
        penalty.step(optimizer)
        strengths.append(penalty.strength)
    after = model[0].weight.detach()
    assert torch.equal(after[mask], before[mask])
    factor = (after[~mask] / before[~mask]).double()
    assert float(factor.log().mean()) == pytest.approx(math.log(epsilon), rel=0.1)
    assert strengths == sorted(strengths)
    if not falling and steps >= 500:
        assert strengths[-1] == pytest.approx(2 * strength_for(epsilon, 0.01, steps), rel=0.1)
        assert strengths[0] < strengths[-1] / 40


def test_masks_are_looked_at_again_in_the_first_third_only() -> None:
    model = network()
    penalty = Penalty(model, {"0.weight": CHOICE}, Schedule(90, refresh_every=10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.001)
    seen = []

    def watch(name: str, weight: torch.Tensor) -> torch.Tensor:
        seen.append(penalty.steps_done)
        return weight.double().square()

    penalty._score = watch
    for _ in range(90):
        penalty.step(optimizer)
    assert seen == [10, 20, 30]


def test_refresh_lets_a_clearly_stronger_element_in() -> None:
    model = network()
    penalty = Penalty(model, {"0.weight": CHOICE}, Schedule(10))
    mask = penalty.masks["0.weight"].clone()
    assert penalty.refresh() == 0
    with torch.no_grad():
        model[0].weight[~mask] *= 10
    assert penalty.refresh() > 0
    assert not torch.equal(penalty.masks["0.weight"], mask)


def test_a_users_own_loop() -> None:
    model = network()
    choices = dict.fromkeys(("0.weight", "2.weight"), CHOICE)
    penalty = Penalty(model, choices, Schedule(steps=60, update_every=5, refresh_every=5))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-3)
    first = penalty.shrunk

    def train() -> None:
        optimizer.zero_grad()
        model(torch.randn(4, 3, 8, 8)).square().sum().backward()
        optimizer.step()

    for _ in range(60):
        train()
        penalty.step(optimizer)
    assert penalty.shrunk < first / 50
    hold = penalty.harden(optimizer)
    zeros = {name: ~mask for name, mask in hold.masks.items()}
    momenta = [optimizer.state[model[i].weight]["momentum_buffer"] for i in (0, 2)]
    assert not momenta[0][zeros["0.weight"]].any()
    kept = model[0].weight.detach().clone()
    for _ in range(3):
        train()
    for index, name in ((0, "0.weight"), (2, "2.weight")):
        assert not model[index].weight[zeros[name]].any()
        assert not momenta[index // 2][zeros[name]].any()
    assert not torch.equal(model[0].weight, kept)
    hold.release()
    train()
    assert model[0].weight[zeros["0.weight"]].any()


def test_attached_to_a_loop_that_knows_nothing_of_it() -> None:
    model, other = network(), network()
    penalty = Penalty(model, {"0.weight": CHOICE}, Schedule(20))
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.01) for m in (model, other)]
    with penalty.attached():
        for optimizer in optimizers * 3:
            optimizer.step()
    optimizers[0].step()
    assert penalty.steps_done == 3


def test_hard_mask_through_the_project_s_own_fine_tuning() -> None:
    from secateurs.data import open_data
    from secateurs.models import load
    from secateurs.recover.finetune import finetune
    from secateurs.recover.recipe import Recipe

    loaded = load("digits-resnet?width=0.5")
    data = open_data("digits", loaded, seed=0)
    model = loaded.module
    names = [name for name, p in model.named_parameters() if p.dim() == 4 and p.shape[-1] == 3]
    penalty = Penalty(model, dict.fromkeys(names, CHOICE), Schedule(steps=8, update_every=1))
    with penalty.attached():
        finetune(model, data, Recipe(epochs=1, lr=0.01, alpha=0.0, precision="fp32"))
    assert penalty.steps_done >= 8
    hold = penalty.harden()
    finetune(model, data, Recipe(epochs=1, lr=0.01, alpha=0.0, precision="fp32", ema=0.9))
    parameters = dict(model.named_parameters())
    for name, mask in hold.masks.items():
        assert not parameters[name][~mask].any()
        assert parameters[name][mask].any()


def test_unknown_names_and_senseless_schedules_are_refused() -> None:
    with pytest.raises(PlanError, match="not a parameter"):
        Penalty(network(), {"9.weight": CHOICE}, Schedule(10))
    with pytest.raises(PlanError, match="not a parameter"):
        HardMask.on(network(), {"9.weight": torch.ones(1)})
    for bad in (
        {"steps": 0},
        {"steps": 5, "epsilon": 1.0},
        {"steps": 5, "hysteresis": -1.0},
        {"steps": 5, "refresh_share": 2.0},
    ):
        with pytest.raises(PlanError, match="out of range"):
            Schedule(**bad)
