"""Your own training loop around the cut: gradual pruning in steps, your optimizer, your loss, your schedule.

    python examples/own_loop.py            a small network on scikit-learn's digits, in two steps to half of its latency

Everything that `secateurs prune` does while it trains is a public piece; this file puts them together by hand.
"""

from __future__ import annotations

import sys

import torch
from torch import nn

import secateurs as sc
from secateurs.data import accuracy, open_data
from secateurs.models import load
from secateurs.plan import Plan
from secateurs.recover.distillation import distillation_loss
from secateurs.recover.recipe import learning_rate
from secateurs.recover.refit.least_squares import least_squares
from secateurs.recover.schedules.gradual import Gradual
from secateurs.recover.training import train

EPOCHS, BATCH, PEAK = 6, 64, 0.05


def main() -> int:
    """Trains a dense network, prunes it to half of its latency in two steps of a hand-written loop."""
    loaded = load("digits-resnet")
    data, example, dense = open_data("digits", loaded), loaded.example(), loaded.module
    train(dense, data)
    print(f"dense  {accuracy(dense, data.test):.2%}")

    costs = sc.profile(sc.trace(dense, example), target="onnxruntime-cpu")
    calibration = [inputs for inputs, _ in data.calibration.batches(64)]

    def replan(module: nn.Module, share: float) -> Plan:
        """The best plan for the network as it is now, for a share of the dense network's latency."""
        batches = list(data.calibration.batches(64))
        return sc.plan(sc.trace(module.eval(), example), costs, latency=f"{share * costs.dense_ms}ms", data=batches)

    gradual = Gradual(replan, [(0, 0.7), (2, 0.5)])
    student: nn.Module = dense
    optimizer = torch.optim.SGD(student.parameters(), lr=PEAK, momentum=0.9, nesterov=True, weight_decay=5e-4)
    steps = EPOCHS * (len(data.train) // BATCH)
    step = 0
    for epoch in range(EPOCHS):
        before = student
        student = gradual.step(student, epoch, optimizer, example)
        if student is not before and gradual.plan is not None:
            least_squares(dense, student, gradual.plan, calibration)
            print(
                f"epoch {epoch}  cut to {sum(gradual.plan.widths().values())} units  {accuracy(student, data.test):.2%}"
            )
        student.train()
        order = torch.Generator().manual_seed(epoch)
        for inputs, labels in data.train.batches(BATCH, shuffle=True, augment=True, generator=order, drop_last=True):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step, steps, PEAK, 0.15)
            with torch.no_grad():
                wanted = dense(inputs)
            loss = distillation_loss(student(inputs), labels, wanted)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step += 1
        print(f"epoch {epoch}  {accuracy(student, data.validation):.2%} on validation images")
    assert gradual.plan is not None
    gradual.plan.save("own_loop.plan.json")
    reached = accuracy(student, data.test)
    print(f"pruned {reached:.2%}, {sum(gradual.plan.widths().values())} units; the plan is in own_loop.plan.json")
    return 0 if reached > 0.95 else 1


if __name__ == "__main__":
    sys.exit(main())
