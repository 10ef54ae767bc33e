"""``SparseConv2d``: a convolution that holds only the elements that stay."""

from __future__ import annotations

from torch import Tensor, nn

from secateurs.elements.native import ACTIVATIONS
from secateurs.elements.operator import geometry, sparse_conv2d
from secateurs.elements.packing import Packed, pack, unpack
from secateurs.errors import PlanError

DEFAULT_BLOCK = 32


class SparseConv2d(nn.Module):
    """Convolution over packed weights, with bias, residual and activation in the same pass.

    Made by :meth:`from_dense`. ``forward(x, residual=None)`` takes any memory format and gives
    channels_last. ``weights`` and ``bias`` are trainable; what is pruned stays pruned.
    """

    masks: Tensor
    starts: Tensor

    def __init__(self, packed: Packed, bias: Tensor | None, call: tuple[int, ...], activation: str = "none") -> None:
        super().__init__()
        if activation not in ACTIVATIONS:
            raise PlanError(f"Activation {activation!r} cannot be fused. Choose one of {', '.join(ACTIVATIONS)}.")
        self.shape = packed.shape
        self.call = list(call)
        self.activation = activation
        self.weights = nn.Parameter(packed.weights)
        self.bias = None if bias is None else nn.Parameter(bias.detach().clone())
        self.register_buffer("masks", packed.masks)
        self.register_buffer("starts", packed.starts)

    @classmethod
    def from_dense(
        cls,
        conv: nn.Conv2d | nn.Conv1d,
        kept: Tensor | None = None,
        *,
        block: int = DEFAULT_BLOCK,
        activation: str = "none",
    ) -> SparseConv2d:
        """The sparse form of ``conv``. A 1-D convolution becomes a 2-D one of height 1: give it [n, c, 1, l].

        Args:
            conv: the dense layer, pruned elements set to zero (or named by ``kept``).
            kept: bool, shaped like the weight.
            block: filters that share a pattern.
            activation: fused ``none``, ``relu``, ``relu6`` or ``silu``.

        Raises:
            PlanError: padding other than zeros, or an unknown activation.
        """
        if conv.padding_mode != "zeros":
            raise PlanError(
                f"Padding mode {conv.padding_mode!r} is not supported. Pad the input first and convolve without."
            )
        packed = pack(conv.weight, groups=conv.groups, block=block, kept=kept)
        lead = (1,) * (2 - len(conv.kernel_size))
        kernel, stride, dilation = (lead + tuple(t) for t in (conv.kernel_size, conv.stride, conv.dilation))
        if isinstance(conv.padding, str):
            total = [d * (k - 1) if conv.padding == "same" else 0 for k, d in zip(kernel, dilation, strict=True)]
            padding = (total[0] // 2, total[1] // 2, total[0] - total[0] // 2, total[1] - total[1] // 2)
        else:
            pads = (0,) * (2 - len(conv.padding)) + tuple(conv.padding)
            padding = (pads[0], pads[1], pads[0], pads[1])
        call = geometry(
            (kernel[0], kernel[1]), (stride[0], stride[1]), padding, (dilation[0], dilation[1]), conv.groups
        )
        return cls(packed, conv.bias, tuple(call), activation)

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """Convolution [n, filters, h, w] of ``x`` [n, channels, h, w], plus ``residual``, activated."""
        return sparse_conv2d(
            x, self.weights, self.masks, self.starts, self.bias, residual, self.shape[0], self.call,
            ACTIVATIONS.index(self.activation),
        )  # fmt: skip

    def dense_weight(self) -> Tensor:
        """The weight [filters, channels per group, kh, kw] with zeros where it is pruned."""
        return unpack(self.weights, self.masks, self.shape, self.call[-1])

    @property
    def density(self) -> float:
        """Share of the dense multiply-adds that are carried out."""
        return Packed(self.weights, self.masks, self.starts, self.shape, self.call[-1]).density

    def extra_repr(self) -> str:
        filters, channels, height, width = self.shape
        return (
            f"{channels * self.call[-1]}, {filters}, kernel={height}x{width}, block={self.weights.shape[1]}, "
            f"density={self.density:.3f}, activation={self.activation}"
        )
