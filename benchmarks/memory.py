"""How much memory ``trace``, ``plan`` and ``apply`` take of a vision transformer, against its weights.

    python benchmarks/memory.py                  # ViT-B, 86 M parameters
    python benchmarks/memory.py --width 1024 --depth 24   # ViT-L, 304 M

The network is built here with random weights, so nothing is downloaded. Each step runs in a process of its own that
makes the network, reports its largest resident memory (the weights and PyTorch itself are in it), and ends; ``apply``
takes the plan from a file. The bound is three times the weights and 1 GB. One row per step in
``benchmarks/results/memory.csv``; it is about memory, so a busy machine does not matter. Needs no GPU and no data.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from result_rows import append
from torch import nn

import secateurs as sc

RESULTS = Path(__file__).parent / "results" / "memory.csv"
STEPS = ("trace", "plan", "apply")


class Attention(nn.Module):
    """Heads with a fused projection, as vision transformers have them."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.head = heads, width // heads
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, tokens, _ = x.shape
        q, k, v = self.qkv(x).reshape(batch, tokens, 3, self.heads, self.head).permute(2, 0, 3, 1, 4).unbind(0)
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2)
        return self.out(mixed.reshape(batch, tokens, self.heads * self.head))


class Block(nn.Module):
    """Attention and a two-layer perceptron, each behind a normalisation and beside a shortcut."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.first, self.attention = nn.LayerNorm(width), Attention(width, heads)
        self.second = nn.LayerNorm(width)
        self.up, self.act, self.down = nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attention(self.first(x))
        return x + self.down(self.act(self.up(self.second(x))))


class Transformer(nn.Module):
    """A vision transformer on 224 x 224 pixels in patches of 16."""

    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 16, 16)
        self.token = nn.Parameter(torch.zeros(1, 1, width))
        self.places = nn.Parameter(0.02 * torch.randn(1, 14 * 14 + 1, width))
        self.blocks = nn.Sequential(*(Block(width, width // 64) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 1000)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.places
        return self.head(self.norm(self.blocks(x))[:, 0])


def step(name: str, width: int, depth: int, plan: Path) -> dict[str, float]:
    """Do one step in this process; its largest resident memory, and what the weights take."""
    torch.manual_seed(0)
    model, example = Transformer(width, depth).eval(), torch.randn(1, 3, 224, 224)
    begin = time.perf_counter()
    if name == "apply":
        sc.apply(model, sc.Plan.load(plan), example)
    else:
        graph = sc.trace(model, example)
        if name == "plan":
            sc.plan(graph, keep=0.5, criterion="l1").save(plan)
    seconds = time.perf_counter() - begin
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    count = sum(parameter.numel() for parameter in model.parameters())
    return {"parameters": count, "weights_mb": count * 4 / 1e6, "peak_mb": peak / 1e6, "seconds": seconds}


def main() -> None:
    """Measure every step and write its row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=768, help="of the tokens, a multiple of 64 (default 768)")
    parser.add_argument("--depth", type=int, default=12, help="blocks (default 12)")
    parser.add_argument("--step", choices=STEPS, help=argparse.SUPPRESS)
    parser.add_argument("--plan", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.step is not None:
        print(json.dumps(step(given.step, given.width, given.depth, given.plan)))
        return
    over = []
    with tempfile.TemporaryDirectory(prefix="secateurs-memory-") as folder:
        for name in STEPS:
            words = ["--width", str(given.width), "--depth", str(given.depth), "--step", name]
            command = [sys.executable, __file__, *words, "--plan", str(Path(folder) / "plan.json")]
            out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            found = json.loads(out.strip().splitlines()[-1])
            bound = 3 * found["weights_mb"] + 1000
            row = {
                "step": name,
                "network": f"vision transformer, width {given.width}, depth {given.depth}",
                "parameters": int(found["parameters"]),
                "weights_mb": round(found["weights_mb"], 1),
                "peak_mb": round(found["peak_mb"], 1),
                "bound_mb": round(bound, 1),
                "seconds": round(found["seconds"], 1),
                "system": f"{platform.system()} {platform.machine()}",
                "torch": torch.__version__,
                "secateurs": sc.__version__,
                "date": time.strftime("%Y-%m-%d"),
            }
            print(row, flush=True)
            append(row, RESULTS)
            over += [name] if found["peak_mb"] > bound else []
    if over:
        raise SystemExit(f"More than three times the weights and 1 GB: {', '.join(over)}.")


if __name__ == "__main__":
    main()
