"""COCO's average precision of boxes, computed by faster-coco-eval or pycocotools."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from secateurs.errors import DataError
from secateurs.models.external import optional

_FORM = (
    "A task's decode(outputs, batch) gives a dict per image: boxes [n, 4] as x1, y1, x2, y2 in pixels, scores [n] and "
    "labels [n]; the targets are the same without scores"
)


class AveragePrecision:
    """AP over the thresholds 0.50 to 0.95, and AP50, of all classes that occur; as COCO defines them.

    Predictions and targets are a dict per image: ``boxes`` float [n, 4] as x1, y1, x2, y2 in pixels, ``labels`` int
    [n], of predictions ``scores`` float [n], of targets maybe ``iscrowd`` bool [n].
    """

    higher_is_better = True

    def __init__(self) -> None:
        self._seen: list[tuple[dict[str, np.ndarray], dict[str, np.ndarray]]] = []

    def update(self, predictions: Sequence[Mapping[str, Any]], targets: Sequence[Mapping[str, Any]]) -> None:
        """Take the images of a batch.

        Raises:
            DataError: they are no dicts of that form, or there are more of one than of the other.
        """
        if isinstance(predictions, Mapping) or isinstance(targets, Mapping) or len(predictions) != len(targets):
            raise DataError(f"Boxes of {_many(predictions)} are compared with those of {_many(targets)}. {_FORM}.")
        for found, wanted in zip(predictions, targets, strict=True):
            self._seen.append((_read(found, "scores"), _read(wanted, "iscrowd")))

    def compute(self) -> dict[str, float]:
        """``AP`` and ``AP50``, fractions; 0 where nothing was found, and NaN where there are no boxes at all."""
        annotations: list[dict[str, Any]] = []
        results: list[dict[str, Any]] = []
        for image, (found, wanted) in enumerate(self._seen, 1):
            for place, (box, label) in enumerate(zip(wanted["boxes"], wanted["labels"], strict=True)):
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": image,
                        "category_id": int(label),
                        "bbox": _sides(box),
                        "area": float((box[2] - box[0]) * (box[3] - box[1])),
                        "iscrowd": int(wanted["iscrowd"][place]),
                    }
                )
            for box, label, score in zip(found["boxes"], found["labels"], found["scores"], strict=True):
                result = {"image_id": image, "category_id": int(label), "bbox": _sides(box), "score": float(score)}
                results.append(result)
        if not annotations:
            return {"AP": float("nan"), "AP50": float("nan")}
        if not results:
            return {"AP": 0.0, "AP50": 0.0}
        stats = _evaluated(len(self._seen), annotations, results)
        return {"AP": max(0.0, float(stats[0])), "AP50": max(0.0, float(stats[1]))}

    def reset(self) -> None:
        """Forget all."""
        self._seen = []

    def merge_state(self, other: AveragePrecision) -> None:
        """Take in what another has seen."""
        self._seen = [*self._seen, *other._seen]


def _evaluated(images: int, annotations: list[dict[str, Any]], results: list[dict[str, Any]]) -> Sequence[float]:
    """COCO's twelve figures."""
    kind, evaluation = _packages()
    labels = {one["category_id"] for one in (*annotations, *results)}
    with contextlib.redirect_stdout(io.StringIO()):
        truth = kind()
        truth.dataset = {
            "info": {},
            "images": [{"id": image} for image in range(1, images + 1)],
            "annotations": annotations,
            "categories": [{"id": label, "name": str(label)} for label in sorted(labels)],
        }
        truth.createIndex()
        made = evaluation(truth, truth.loadRes(results), "bbox")
        made.evaluate()
        made.accumulate()
        made.summarize()
    found: Sequence[float] = made.stats
    return found


def _packages() -> tuple[Any, Any]:
    """COCO's classes of the quicker package, or of the older one."""
    try:
        faster = optional("faster_coco_eval", "Task detection", "tasks")
        return faster.COCO, faster.COCOeval_faster
    except DataError:
        with contextlib.suppress(ImportError):
            from pycocotools.coco import COCO
            from pycocotools.cocoeval import COCOeval

            return COCO, COCOeval
        raise


def _read(one: Mapping[str, Any], further: str) -> dict[str, np.ndarray]:
    """A dict of arrays; raises DataError where it is none."""
    lacking = [name for name in ("boxes", "labels") if not isinstance(one, Mapping) or name not in one]
    if lacking or (further == "scores" and further not in one):
        raise DataError(f"An image's boxes have no {(lacking or [further])[0]!r}. {_FORM}.")
    held = {name: _array(one[name]) for name in ("boxes", "labels", further) if name in one}
    boxes = held["boxes"].reshape(-1, 4).astype(np.float64)
    if not np.isfinite(boxes).all() or (boxes[:, 2:] < boxes[:, :2]).any():
        wrong = boxes[(~np.isfinite(boxes)).any(1) | (boxes[:, 2:] < boxes[:, :2]).any(1)][0]
        raise DataError(f"A box is {wrong.tolist()}, which is no x1, y1, x2, y2 in pixels. {_FORM}.")
    held["boxes"] = boxes
    held.setdefault("iscrowd", np.zeros(len(boxes), dtype=np.int64))
    return held


def _array(value: Any) -> np.ndarray:
    return value.detach().float().cpu().numpy() if isinstance(value, torch.Tensor) else np.asarray(value)


def _sides(box: np.ndarray) -> list[float]:
    return [float(box[0]), float(box[1]), float(box[2] - box[0]), float(box[3] - box[1])]


def _many(value: Any) -> str:
    return f"{len(value)} images" if isinstance(value, (list, tuple)) else f"a {type(value).__name__}"
