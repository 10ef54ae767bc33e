"""Tasks by name, from their options to a :class:`~secateurs.data.tasks.task.Task`."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from secateurs.data.tasks.classification import logits_of
from secateurs.data.tasks.detection import AveragePrecision
from secateurs.data.tasks.scores import (
    CorrectKeypoints,
    Deferred,
    LabelPrecision,
    Overlap,
    PixelAccuracy,
    points_of,
    torchmetrics,
    visible,
)
from secateurs.data.tasks.targets import target_of
from secateurs.data.tasks.task import Task, classification
from secateurs.errors import DataError, PlanError, checked
from secateurs.models.external import call_factory, import_factory

Loss = Callable[[Any, Any], Tensor]


def task(name: str, **options: Any) -> Task:
    """The task of this name: ``sc.task("segmentation", ignore=255)``.

    Args:
        name: one of :data:`NAMED`, maybe with options behind a question mark as on the command line:
            ``segmentation?ignore=255``.
        options: of the task's function in this module; see docs/tasks.md.

    Raises:
        PlanError: name or option are unknown, or one is lacking.
        DataError: a package that it measures with is not installed.
    """
    plain, _, query = checked(str, name, "task(name=)", f"Give one of {', '.join(NAMED)}").partition("?")
    if plain not in NAMED:
        raise PlanError(f"Task {plain!r} is unknown. Known: {', '.join(NAMED)}; or give a secateurs.Task.")
    make = NAMED[plain]
    given = {**_read(query, make, name), **options}
    known = inspect.signature(make).parameters
    unknown = [one for one in given if one not in known]
    if unknown:
        raise PlanError(f"Task {plain} has no option {unknown[0]!r}. There are {', '.join(known) or 'none'}.")
    lacking = [one for one, how in known.items() if how.default is how.empty and one not in given]
    if lacking:
        raise PlanError(
            f"Task {plain} needs {' and '.join(lacking)}, which only you know: secateurs.task({plain!r}, "
            f"{', '.join(f'{one}=...' for one in lacking)}), or a factory that returns (train, test, task)."
        )
    return make(**given)


def asked_task(task_: Task | str | None, loss: Loss | None, metric: Any) -> Task | None:
    """The task that a caller asks for: as it is, by name, or by loss and metric alone; None: the default.

    With ``loss`` alone networks are judged by it.

    Raises:
        PlanError: a task and a loss or metric are given, or a metric without a loss.
    """
    if task_ is not None:
        if loss is not None or metric is not None:
            raise PlanError("task= holds loss and metric, so loss= or metric= beside it would do nothing. Give one.")
        if not isinstance(task_, (str, Task)):
            raise PlanError(f"task= is a {type(task_).__name__}. Give a secateurs.Task, or one of {', '.join(NAMED)}.")
        return _named(task_) if isinstance(task_, str) else task_
    if loss is None and metric is None:
        return None
    if loss is None:
        raise PlanError("metric= is given without loss=, by which networks are trained. Give both: fn(outputs, batch).")
    if metric is None:
        return Task(loss, loss, name="loss", better="lower")
    return Task(loss, metric)


def _named(text: str) -> Task:
    """The task of a name, or what ``file.py:factory`` returns."""
    if ":" not in text.partition("?")[0]:
        return task(text)
    made = call_factory(import_factory(text, "Task"), {}, f"Task {text!r}")
    if not isinstance(made, Task):
        raise DataError(f"Task {text!r} returned {type(made).__name__}, not a secateurs.Task. Return the task.")
    return made


def multilabel(loss: Loss | None = None) -> Task:
    """Several labels per sample: targets 0 or 1 [samples, labels]; binary cross-entropy, mean average precision."""
    torchmetrics("multilabel")
    return Task(
        loss or _Compared(F.binary_cross_entropy_with_logits, floats=True),
        Deferred(LabelPrecision()),
        "mean average precision",
        "%",
        "higher",
        compared=_labels,
        distance=_bernoulli,
        kind="multilabel",
    )


def segmentation(ignore: int | None = None, metric: str = "mIoU", loss: Loss | None = None) -> Task:
    """A class per pixel: logits [samples, classes, height, width], targets [samples, height, width].

    Logits of fewer pixels are brought to the target's size.

    Args:
        ignore: label of pixels that do not count.
        metric: ``mIoU`` or ``pixel-accuracy``.
        loss: instead of the mean cross-entropy over pixels.
    """
    torchmetrics("segmentation")
    if metric not in ("mIoU", "pixel-accuracy"):
        raise PlanError(f"Metric {metric!r} of task segmentation is unknown. Known: mIoU, pixel-accuracy.")
    made = Overlap(ignore) if metric == "mIoU" else PixelAccuracy(ignore)
    return Task(
        loss or _PixelEntropy(-100 if ignore is None else ignore),
        Deferred(made),
        metric.replace("-", " "),
        "%",
        "higher",
        compared=_pixels,
        distance="classes",
        kind="segmentation",
    )


def detection(
    loss: Loss,
    decode: Callable[[Any, Any], Any],
    targets: Callable[[Any], Any] = target_of,
    metric: str = "AP",
    outputs: Callable[[Any], Any] | None = None,
) -> Task:
    """Boxes: COCO's average precision.

    Args:
        loss: of the network's own framework.
        decode: from (outputs, batch) to a dict per image, see
            :class:`~secateurs.data.tasks.detection.AveragePrecision`.
        targets: from a batch to the same of the true boxes, in the same pixels.
        metric: ``AP`` or ``AP50``.
        outputs: which of the outputs carry meaning.
    """
    if metric not in ("AP", "AP50"):
        raise PlanError(f"Metric {metric!r} of task detection is unknown. Known: AP, AP50.")
    return Task(
        loss,
        AveragePrecision(),
        metric,
        "%",
        "higher",
        outputs=outputs,
        compared=_Decoded(decode, targets),
        kind="detection",
    )


def keypoints(
    loss: Loss | None = None, decode: Callable[[Any, Any], Tensor] | None = None, threshold: float = 0.1
) -> Task:
    """Points of one figure per sample: targets [samples, points, 2], or 3 with visibility.

    Args:
        loss: by default the mean square of the distances of visible points.
        decode: from (outputs, batch) to points [samples, points, 2]; by default the outputs are these.
        threshold: how near a point must be, as a share of the diagonal of the figure's box.
    """
    found = CorrectKeypoints(float(threshold), decode)
    return Task(loss or _PointDistance(decode), found, "correct keypoints", "%", "higher", kind="keypoints")


def regression(metric: str = "RMSE", unit: str = "", loss: Loss | None = None) -> Task:
    """Numbers: targets of the outputs' shape; mean squared error.

    ``metric``: ``RMSE``, ``MAE`` or ``R2``; ``unit``: of the numbers.
    """
    package = torchmetrics("regression")
    makes: dict[str, tuple[Callable[[], Any], str]] = {
        "RMSE": (lambda: package.MeanSquaredError(squared=False), "lower"),
        "MAE": (package.MeanAbsoluteError, "lower"),
        "R2": (package.R2Score, "higher"),
    }
    if metric not in makes:
        raise PlanError(f"Metric {metric!r} of task regression is unknown. Known: {', '.join(makes)}.")
    make, better = makes[metric]
    return Task(
        loss or _Compared(F.mse_loss, floats=True),
        make(),
        metric,
        "" if metric == "R2" else unit,
        better,
        compared=_Flat(),
        kind="regression",
    )


def image_to_image(peak: float = 1.0, loss: Loss | None = None) -> Task:
    """Images from images: peak signal-to-noise ratio, over all pixels of all images.

    ``peak``: largest value of a pixel less the smallest; ``loss``: by default the mean absolute error.
    """
    package = torchmetrics("image-to-image")
    metric = package.image.PeakSignalNoiseRatio(data_range=float(peak))
    return Task(loss or _Compared(F.l1_loss, floats=True), metric, "PSNR", "dB", "higher", kind="image-to-image")


def language_model(ignore: int = -100, shift: bool = True, loss: Loss | None = None) -> Task:
    """Tokens: logits [samples, length, vocabulary]; cross-entropy, perplexity.

    Args:
        ignore: label of tokens that do not count.
        shift: the logits at a place are of the next token, as in a decoder; False: of the same, as in a masked model.
        loss: instead of the mean cross-entropy over tokens.
    """
    package = torchmetrics("language-model")
    tokens = _Tokens(int(ignore), bool(shift))
    return Task(
        loss or tokens.loss,
        package.text.Perplexity(ignore_index=int(ignore)),
        "perplexity",
        "",
        "lower",
        compared=tokens,
        outputs=logits_of,
        distance="last-classes",
        kind="language-model",
    )


NAMED: dict[str, Callable[..., Task]] = {
    "classification": lambda: classification(),
    "multilabel": multilabel,
    "segmentation": segmentation,
    "detection": detection,
    "keypoints": keypoints,
    "regression": regression,
    "image-to-image": image_to_image,
    "language-model": language_model,
}
"""Tasks that are there."""


@dataclass(frozen=True)
class _Compared:
    """A loss of the first output and the target."""

    function: Callable[[Tensor, Tensor], Tensor]
    floats: bool = False

    def __call__(self, outputs: Any, batch: Any) -> Tensor:
        found, target = logits_of(outputs), target_of(batch)
        target = target.reshape(found.shape) if target.numel() == found.numel() else target
        return self.function(found, target.to(found.dtype) if self.floats else target)


@dataclass(frozen=True)
class _PixelEntropy:
    ignore: int

    def __call__(self, outputs: Any, batch: Any) -> Tensor:
        target = target_of(batch).long()
        return F.cross_entropy(_of_size(logits_of(outputs), target), target, ignore_index=self.ignore)


@dataclass(frozen=True)
class _PointDistance:
    decode: Callable[[Any, Any], Tensor] | None

    def __call__(self, outputs: Any, batch: Any) -> Tensor:
        wanted, seen = visible(batch)
        squares = (points_of(outputs, batch, self.decode) - wanted).square().sum(-1)
        return (squares * seen).sum() / seen.sum().clamp_min(1)


@dataclass(frozen=True)
class _Decoded:
    decode: Callable[[Any, Any], Any]
    targets: Callable[[Any], Any]

    def __call__(self, outputs: Any, batch: Any) -> tuple[Any, Any]:
        return self.decode(outputs, batch), self.targets(batch)


@dataclass(frozen=True)
class _Flat:
    """Outputs and targets as flat columns of one length."""

    def __call__(self, outputs: Any, batch: Any) -> tuple[Tensor, Tensor]:
        found, target = logits_of(outputs), target_of(batch)
        return found.reshape(-1), target.reshape(-1).to(found.dtype)


@dataclass(frozen=True)
class _Tokens:
    """Logits and the tokens that they are of."""

    ignore: int
    shift: bool

    def __call__(self, outputs: Any, batch: Any) -> tuple[Tensor, Tensor]:
        logits, wanted = logits_of(outputs), _tokens_of(batch)
        return (logits[:, :-1], wanted[:, 1:]) if self.shift else (logits, wanted)

    def loss(self, outputs: Any, batch: Any) -> Tensor:
        """Mean cross-entropy over the tokens that count."""
        logits, wanted = self(outputs, batch)
        return F.cross_entropy(logits.flatten(0, 1), wanted.flatten(), ignore_index=self.ignore)


def _tokens_of(batch: Any) -> Tensor:
    """The labels, or where there are none the tokens themselves."""
    if isinstance(batch, dict) and "labels" not in batch and "input_ids" in batch:
        found: Tensor = batch["input_ids"]
        return found
    tokens: Tensor = target_of(batch)
    return tokens


def _of_size(logits: Tensor, target: Tensor) -> Tensor:
    """Logits [samples, classes, height, width] in the target's size: many networks answer at a part of it."""
    if logits.ndim != 4 or target.ndim != 3 or logits.shape[2:] == target.shape[1:]:
        return logits
    return F.interpolate(logits, target.shape[1:], mode="bilinear", align_corners=False)


def _pixels(outputs: Any, batch: Any) -> tuple[Tensor, Tensor]:
    """Logits in the size of the target, and the target as whole numbers."""
    target = target_of(batch).long()
    return _of_size(logits_of(outputs), target), target


def _labels(outputs: Any, batch: Any) -> tuple[Tensor, Tensor]:
    """The first output, and targets as whole numbers."""
    return logits_of(outputs), target_of(batch).long()


def _bernoulli(new: Tensor, old: Tensor) -> Tensor:
    """Kullback-Leibler divergence of independent labels, ``old`` against ``new``, per sample."""
    likely = old.sigmoid().detach()
    given = F.binary_cross_entropy_with_logits(new, likely, reduction="none")
    own = F.binary_cross_entropy_with_logits(old, likely, reduction="none")
    return (given - own).flatten(1).sum(1).mean()


def _read(query: str, make: Callable[..., Task], text: str) -> dict[str, Any]:
    """Options behind a question mark, in the types of the task's defaults."""
    found: dict[str, Any] = {}
    known = inspect.signature(make).parameters
    for part in filter(None, query.split("&")):
        name, _, value = part.partition("=")
        default = known[name].default if name in known else None
        try:
            if isinstance(default, bool):
                found[name] = bool(int(value))
            elif isinstance(default, (int, float)):
                found[name] = type(default)(value)
            else:
                found[name] = int(value) if value.lstrip("-").isdigit() else value
        except ValueError as error:
            raise PlanError(f"Task {text!r}: {name}={value!r} is no number. Give one.") from error
    return found
