"""What loss-aware criteria need, gathered in one shared pass over calibration data."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True)
class Statistics:
    """Per group, per unit figures. ``samples``: how many images they were gathered over."""

    samples: int = 0
    taylor: dict[str, np.ndarray] = field(default_factory=dict)
