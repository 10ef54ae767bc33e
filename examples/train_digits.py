"""Trains the demo's network, a small residual one, on scikit-learn's handwritten digits, and saves its weights.

python examples/train_digits.py digits.safetensors
"""

from __future__ import annotations

import sys
from pathlib import Path

from safetensors.torch import save_file

from secateurs.cli.progress import shown
from secateurs.cli.running import talk
from secateurs.data import accuracy, open_data
from secateurs.models import load
from secateurs.recover.finetune import finetune
from secateurs.recover.recipe import Recipe

MODEL, SEED = "digits-resnet", 0
RECIPE = Recipe(epochs=16, lr=0.1, batch=64, precision="fp32", seed=SEED)


def train(path: Path) -> float:
    """Test accuracy of the trained network, whose weights are then in ``path``."""
    with shown(talk()) as progress:
        loaded = load(MODEL, seed=SEED)
        data = open_data("digits", loaded, seed=SEED)
        finetune(loaded.module, data, RECIPE, progress=progress)
        reached = accuracy(loaded.module, data.test)
        progress.say(f"{MODEL}: {reached:.2%} on {len(data.test)} digits that it has not seen")
    save_file(loaded.module.state_dict(), path)
    return reached


if __name__ == "__main__":
    target = Path(sys.argv[1] if len(sys.argv) > 1 else "digits.safetensors")
    sys.exit(0 if train(target) >= 0.97 else f"{target}: below 97 %; something is wrong with this installation.")
