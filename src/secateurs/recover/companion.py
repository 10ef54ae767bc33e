"""What may take part in every step of fine-tuning beside the student: masks, further losses."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from torch import Tensor, nn

from secateurs.data.calls import Inputs, called


class Companion:
    """Called at fixed points of every step; this one does nothing, others override what they need.

    Attributes:
        identity: settings as text; a checkpoint of another identity is refused.
    """

    identity = ""

    def attached(self, student: nn.Module, teacher: nn.Module | None) -> AbstractContextManager[object]:
        """A context around the whole training; leaves both networks as they were."""
        return nullcontext()

    def forward(self, student: nn.Module, inputs: Inputs) -> Any:
        """The student's outputs, as training should see them."""
        return called(student, inputs)

    def loss(self) -> Tensor | None:
        """A further term for the forward passes just done (the teacher's before the student's)."""
        return None

    def after_backward(self, student: nn.Module, step: int) -> None:
        """Look at the gradients of ``step`` (counted from 0) before they are applied."""

    def tensors(self) -> dict[str, Tensor]:
        """State that a resumed run needs."""
        return {}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Take up that state."""
