"""Metrics that named tasks measure by, on torchmetrics where that has them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from secateurs.data.tasks.targets import target_of
from secateurs.models.external import optional

EXTRA = "tasks"


def torchmetrics(purpose: str) -> Any:
    """The package.

    Raises:
        DataError: it is not installed.
    """
    return optional("torchmetrics", f"Task {purpose}", EXTRA)


class Deferred:
    """A metric that is made when the first answers tell how many classes there are."""

    def __init__(self, make: Callable[[Tensor], Any]) -> None:
        self._make = make
        self._metric: Any = None

    def update(self, predictions: Tensor, targets: Tensor) -> None:
        """Take answers."""
        if self._metric is None:
            self._metric = self._make(predictions).to(predictions.device)
        self._metric.update(predictions, targets)

    def compute(self) -> Any:
        """The value so far."""
        assert self._metric is not None, "nothing was seen yet"
        return self._metric.compute()

    def reset(self) -> None:
        """Forget all."""
        self._metric = None

    def merge_state(self, other: Deferred) -> None:
        """Take in what another has seen."""
        if self._metric is None:
            self._metric = copy.deepcopy(other._metric)
        elif other._metric is not None:
            self._metric.merge_state(other._metric)


@dataclass(frozen=True)
class Overlap:
    """Makes the mean over classes of intersection over union, summed over all images; of classes that occur."""

    ignore: int | None

    def __call__(self, logits: Tensor) -> Any:
        kind = torchmetrics("segmentation").classification.MulticlassJaccardIndex
        return kind(num_classes=logits.shape[1], ignore_index=self.ignore, average="macro")


@dataclass(frozen=True)
class PixelAccuracy:
    """Makes the share of pixels that are right."""

    ignore: int | None

    def __call__(self, logits: Tensor) -> Any:
        kind = torchmetrics("segmentation").classification.MulticlassAccuracy
        return kind(num_classes=logits.shape[1], ignore_index=self.ignore, average="micro")


@dataclass(frozen=True)
class LabelPrecision:
    """Makes the mean over labels of average precision."""

    def __call__(self, logits: Tensor) -> Any:
        kind = torchmetrics("multilabel").classification.MultilabelAveragePrecision
        return kind(num_labels=logits.shape[1], average="macro")


@dataclass(frozen=True)
class CorrectKeypoints:
    """Share of a sample's visible keypoints that lie within ``threshold`` of the diagonal of their bounding box."""

    threshold: float
    decode: Callable[[Any, Any], Tensor] | None = None

    def __call__(self, outputs: Any, batch: Any) -> Tensor:
        """Shares [samples]; 1 for a sample without visible keypoints."""
        found, (wanted, seen) = points_of(outputs, batch, self.decode), visible(batch)
        low = torch.where(seen[..., None], wanted, torch.inf).amin(1)
        high = torch.where(seen[..., None], wanted, -torch.inf).amax(1)
        size = (high - low).norm(dim=-1).clamp_min(1e-9)
        near = ((found - wanted).norm(dim=-1) <= self.threshold * size[:, None]) & seen
        count = seen.sum(1)
        return torch.where(count > 0, near.sum(1) / count.clamp_min(1), 1.0)


def points_of(outputs: Any, batch: Any, decode: Callable[[Any, Any], Tensor] | None) -> Tensor:
    """Keypoints [samples, points, 2] that a network gives."""
    found = decode(outputs, batch) if decode is not None else outputs
    assert isinstance(found, Tensor), "decode must give a tensor [samples, points, 2]"
    return found.reshape(len(found), -1, 2)


def visible(batch: Any) -> tuple[Tensor, Tensor]:
    """A batch's keypoints [samples, points, 2], and which of them can be seen: bool [samples, points]."""
    target = target_of(batch)
    if target.ndim == 3 and target.shape[-1] == 3:
        return target[..., :2].float(), target[..., 2] > 0
    points = target.reshape(len(target), -1, 2).float()
    return points, torch.ones(points.shape[:2], dtype=torch.bool, device=points.device)
