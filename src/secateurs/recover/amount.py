"""How much training a number of images takes: batch, epochs and steps where the user does not say them."""

from __future__ import annotations

LEAST_STEPS = 200
"""Steps that the default number of epochs comes to at least: fewer gain little on small data (docs/accuracy.md)."""
FEW_STEPS = 30
"""So few steps are told: statistics and momentum have hardly begun to settle."""
LARGEST_BATCH = 128
"""Images per step where there are many."""
_STEPS_PER_EPOCH, _SMALLEST, _MOST_EPOCHS = 24, 8, 10


def default_batch(images: int) -> int:
    """Images per step: the largest power of two from 8 to 128 that leaves two dozen steps an epoch."""
    batch = _SMALLEST
    while 2 * batch <= min(LARGEST_BATCH, images // _STEPS_PER_EPOCH):
        batch *= 2
    return batch


def default_epochs(images: int, batch: int) -> int:
    """One, or as many as make :data:`LEAST_STEPS` steps, ten at most."""
    return min(_MOST_EPOCHS, -(-LEAST_STEPS // steps_per_epoch(images, batch)))


def steps_per_epoch(images: int, batch: int) -> int:
    """Training steps of an epoch, one at least."""
    return max(1, images // batch)


def too_few(epochs: int, images: int, batch: int) -> tuple[str, ...]:
    """A warning where the whole training is a few steps only, else nothing."""
    steps = epochs * steps_per_epoch(images, batch)
    if epochs == 0 or steps >= FEW_STEPS:
        return ()
    plural = f"{epochs} epoch{'s' if epochs != 1 else ''}"
    return (
        f"Fine-tuning is only {steps} step{'s' if steps != 1 else ''} ({plural} of {images} images at batch {batch}): "
        f"too few to gain much. Give more --epochs or a smaller --train-batch, or leave both out.",
    )
