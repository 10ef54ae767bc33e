"""An operator of your own whose integer follows the widths: ``python examples/own_operator.py``.

``own::rotate`` moves the first channels behind the others. Secateurs does not know it, so it needs a rule (how units
pass: here by the operator itself, which only moves them) and, since ``first`` counts channels, what that number is
after a cut. Everything else follows: the attribute of the module that holds the number is changed along.
"""

from typing import Any

import torch
from torch import Tensor, nn

import secateurs as sc
from secateurs.structure import AfterCut, Call, move, rule


@torch.library.custom_op("own::rotate", mutates_args=())
def rotate(x: Tensor, first: int) -> Tensor:
    """``x`` [n, c, h, w] with its first channels last."""
    return torch.cat([x[:, first:], x[:, :first]], dim=1)


@rotate.register_fake
def _(x: Tensor, first: int) -> Tensor:
    return torch.empty_like(x)


def _gradient(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
    return rotate(gradient, gradient.shape[1] - ctx.first), None


def _remember(ctx: Any, inputs: tuple[Tensor, int], output: Tensor) -> None:
    ctx.first = inputs[1]


rotate.register_autograd(_gradient, setup_context=_remember)


def first_after_cut(call: AfterCut) -> dict[str, Any]:
    """How many of the channels that move are left."""
    stays = call.stays(call.input("x"), 1)
    return {"first": int(stays[: call["first"]].sum())}


@rule("own.rotate", sizes=first_after_cut)
def rotated(call: Call) -> Any:
    """Units move with their channels."""
    return move(call)


class Rotated(nn.Module):
    """Two convolutions with a rotation between them."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.first, self.b = nn.Conv2d(3, 12, 3), 5, nn.Conv2d(12, 4, 1, groups=1)
        self.gain = nn.Parameter(torch.randn(12, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """``x`` [n, 3, h, w]."""
        return self.b(rotate(self.a(x).relu(), self.first) * self.gain)


def main() -> None:
    """Cut a network that uses the operator."""
    model, example = Rotated(), torch.randn(2, 3, 8, 8)
    graph = sc.trace(model, example)
    print(graph)
    small = sc.apply(model, graph.plan({"a:out": [0, 2, 3, 7, 8, 11]}), example)
    print(f"first: {model.first} of {model.a.out_channels} channels -> {small.first} of {small.a.out_channels}")
    small(example).sum().backward()


if __name__ == "__main__":
    main()
