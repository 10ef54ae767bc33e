"""The whole method in one page, on the public API only: trace, profile, plan, cut, measure, correct, repair, report.

    python examples/mini_prune.py            a small network on scikit-learn's digits, pruned to half of its latency

What ``secateurs prune`` adds: interleaved measurement in processes of their own, repair by least squares, resuming,
a report, and care with bad input. The measurement here is written by hand, so this file also checks the package.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnxruntime
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

import secateurs as sc

BUDGET = 0.5  # of the dense latency


class Net(nn.Module):
    """Two residual stages and a classifier for 16×16 images."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = block(1, 32)
        self.first = nn.Sequential(block(32, 32), block(32, 32, active=False))
        self.down = block(32, 64, stride=2)
        self.second = nn.Sequential(block(64, 64), block(64, 64, active=False))
        self.classify = nn.Linear(64, 10)

    def forward(self, images: Tensor) -> Tensor:
        x = self.stem(images)
        x = self.down(F.relu(x + self.first(x)))
        return self.classify(F.relu(x + self.second(x)).mean(dim=(2, 3)))


def block(channels: int, units: int, stride: int = 1, active: bool = True) -> nn.Sequential:
    """Convolution, batch norm and, where wanted, ReLU."""
    layers = [nn.Conv2d(channels, units, 3, stride, 1, bias=False), nn.BatchNorm2d(units)]
    return nn.Sequential(*layers, nn.ReLU()) if active else nn.Sequential(*layers)


def digits() -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """(images [n, 1, 16, 16], labels [n]) to train on and, a third of all, to test on."""
    held = load_digits()
    images = torch.tensor(held.images, dtype=torch.float32)[:, None] / 8 - 1
    images, labels = F.interpolate(images, scale_factor=2.0), torch.tensor(held.target)
    train, test = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0)).split(1200)
    return (images[train], labels[train]), (images[test], labels[test])


def batches(data: tuple[Tensor, Tensor], size: int = 64) -> Iterator[tuple[Tensor, Tensor]]:
    """The data in shuffled batches."""
    images, labels = data
    for chosen in torch.randperm(len(labels)).split(size):
        yield images[chosen], labels[chosen]


def fit(model: nn.Module, data: tuple[Tensor, Tensor], epochs: int, rate: float, teacher: nn.Module | None) -> None:
    """Train in place, towards the labels and, where there is one, the teacher."""
    optimizer = torch.optim.SGD(model.parameters(), rate, momentum=0.9, nesterov=True, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=epochs * -(-len(data[1]) // 64))
    model.train()
    for _ in range(epochs):
        for images, labels in batches(data):
            logits = model(images)
            loss = F.cross_entropy(logits, labels)
            if teacher is not None:
                wanted = teacher(images).detach().softmax(1)
                loss = loss + F.kl_div(logits.log_softmax(1), wanted, reduction="batchmean")
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    model.eval()


def accuracy(model: nn.Module, data: tuple[Tensor, Tensor]) -> float:
    """Fraction of the labels that the model finds."""
    with torch.no_grad():
        return float((model(data[0]).argmax(dim=1) == data[1]).float().mean())


def session(model: nn.Module, example: Tensor, path: Path) -> onnxruntime.InferenceSession:
    """The model exported to ONNX and opened in ONNX Runtime."""
    torch.onnx.export(model, (example,), path, dynamo=True, verbose=False)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def latency_ratio(small: nn.Module, dense: nn.Module, example: Tensor) -> float:
    """Latency of ``small`` / latency of ``dense``: the median over turns of the best run of each in that turn."""
    with tempfile.TemporaryDirectory() as folder:
        both = [session(model, example, Path(folder) / f"{i}.onnx") for i, model in enumerate((small, dense))]
    feed = {both[0].get_inputs()[0].name: example.numpy()}
    turns = [[min(timed(one, feed) for _ in range(20)) for one in both] for _ in range(60)]
    return statistics.median(fast / slow for fast, slow in turns)


def timed(one: onnxruntime.InferenceSession, feed: dict[str, np.ndarray]) -> float:
    """Seconds of one run."""
    start = time.perf_counter()
    one.run(None, feed)
    return time.perf_counter() - start


def main() -> int:
    """0 if the budget is met and the accuracy is within 2 points."""
    warnings.simplefilter("ignore")  # the ONNX exporter's
    torch.manual_seed(0)
    train, test = digits()
    example, dense = train[0][:1], Net()
    fit(dense, train, epochs=6, rate=0.1, teacher=None)
    print(f"dense: accuracy {accuracy(dense, test):.2%}")
    graph = sc.trace(dense, example)
    costs = sc.profile(graph, target="onnxruntime-cpu")
    print(f"{len(graph.groups)} groups; latency model off by {costs.error.mean_abs:.1%} on unseen networks")
    aim, ratio, small, seen = 0.97 * BUDGET, 0.0, dense, list(batches(train))
    for attempt in range(6):
        plan = sc.plan(graph, costs, latency=aim, data=seen)
        tried = sc.apply(dense, plan, example)
        measured = latency_ratio(tried, dense, example)
        print(f"plan {attempt + 1}: aimed at {aim:.1%}, measured {measured:.1%} of dense, {[*plan.widths().values()]}")
        if ratio < measured <= BUDGET:  # the slowest within the budget keeps most
            ratio, small = measured, tried
        if ratio >= 0.94 * BUDGET:
            break
        aim = min(0.9, aim * 0.97 * BUDGET / measured)
    if ratio == 0:
        sys.exit(f"no plan was within {BUDGET:.0%} of the latency when measured")
    before = accuracy(small, test)
    fit(small, train, epochs=6, rate=0.05, teacher=dense)
    print(f"pruned: {ratio:.1%} of the latency, accuracy {before:.2%} cut, {accuracy(small, test):.2%} fine-tuned")
    return 0 if accuracy(small, test) >= accuracy(dense, test) - 0.02 else 1


if __name__ == "__main__":
    sys.exit(main())
