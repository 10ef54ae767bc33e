"""How to fine-tune: one frozen value, and the learning rate that follows from it."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass

from secateurs.errors import PlanError


@dataclass(frozen=True)
class Recipe:
    """Stochastic gradient descent with Nesterov momentum, linear warm-up and cosine decay, with distillation.

    ``lr``: peak rate, None chooses by whether the network has batch norm; ``warmup``: share of all steps;
    ``weight_decay``: on weights only, not on biases and norms; ``alpha``: share of the distillation term in the loss
    (0: labels only) at ``temperature``; ``label_smoothing``: in the label term; ``ema``: decay of an average of the
    weights that becomes the result, None for none; ``precision`` and ``layout``: ``auto`` measures what is faster
    here (bfloat16, channels last); ``clip_norm``: longest gradient, None for any.
    """

    epochs: int = 1
    lr: float | None = None
    batch: int = 128
    momentum: float = 0.9
    weight_decay: float = 5e-4
    warmup: float = 0.15
    alpha: float = 0.9
    temperature: float = 4.0
    label_smoothing: float = 0.0
    ema: float | None = None
    precision: str = "auto"
    layout: str = "auto"
    clip_norm: float | None = None
    augment: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        checks = {
            "epochs": self.epochs >= 0,
            "lr": self.lr is None or (math.isfinite(self.lr) and self.lr > 0),
            "batch": self.batch >= 1,
            "momentum": 0 <= self.momentum < 1,
            "weight_decay": self.weight_decay >= 0,
            "warmup": 0 <= self.warmup < 1,
            "alpha": 0 <= self.alpha <= 1,
            "temperature": self.temperature > 0,
            "label_smoothing": 0 <= self.label_smoothing < 1,
            "ema": self.ema is None or 0 < self.ema < 1,
            "layout": self.layout in ("auto", "contiguous", "channels_last"),
            "precision": self.precision in ("auto", "fp32", "bf16"),
            "clip_norm": self.clip_norm is None or self.clip_norm > 0,
        }
        for name, good in checks.items():
            if not good:
                raise PlanError(f"Fine-tuning setting {name}={getattr(self, name)!r} is out of range. {_RANGES[name]}")

    def to_json(self) -> str:
        """Stable text, for telling whether a checkpoint belongs to this recipe."""
        return json.dumps(asdict(self), sort_keys=True)


_RANGES = {
    "epochs": "Give 0 or more.",
    "lr": "Give a rate above zero, such as 0.05.",
    "batch": "Give 1 or more images.",
    "momentum": "Give at least 0 and below 1.",
    "weight_decay": "Give 0 or more.",
    "warmup": "Give a share of all steps, at least 0 and below 1.",
    "alpha": "Give a share from 0 to 1.",
    "temperature": "Give a number above zero.",
    "label_smoothing": "Give at least 0 and below 1.",
    "ema": "Give a decay between 0 and 1, such as 0.999.",
    "layout": "Give auto, contiguous or channels_last.",
    "precision": "Give auto, fp32 or bf16.",
    "clip_norm": "Give a length above zero.",
}


def learning_rate(step: int, steps: int, peak: float, warmup: float) -> float:
    """Rate at ``step`` of ``steps``: linear from a twentieth of ``peak`` over the warm-up, then a half cosine to 0."""
    rising = int(steps * warmup)
    if step < rising:
        return peak * (0.05 + 0.95 * step / rising)
    return peak * 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1, steps - rising)))
