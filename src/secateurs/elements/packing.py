"""Convolution weights without their pruned elements, in the order in which the kernels walk them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from secateurs.errors import PlanError

CHANNELS_PER_PLANE = 16
"""Channels whose kept positions share one 16-bit mask, and that lie together in the kernels' scratch memory."""
BLOCKS = (8, 16, 32)


@dataclass(frozen=True)
class Packed:
    """Weights of one convolution, pruned elements left out.

    ``weights`` [entries, block]: one row per kept (block, channel, position), in the order block, plane of 16 channels,
    position (row-major), channel; a column per filter of the block, zeros past the last filter. ``masks`` int16
    [blocks, planes, positions]: bit k = channel 16·plane + k keeps this position. ``starts`` int32 [blocks + 1]: first
    row of every block. A block never crosses a convolution group.
    """

    weights: Tensor
    masks: Tensor
    starts: Tensor
    shape: tuple[int, int, int, int]
    """Of the dense weight: filters, channels per convolution group, kernel height, kernel width."""
    groups: int = 1

    @property
    def block(self) -> int:
        """Filters that share a pattern."""
        return self.weights.shape[1]

    @property
    def entries(self) -> int:
        """Kept (block, channel, position) triples."""
        return self.weights.shape[0]

    @property
    def density(self) -> float:
        """Share of the dense multiply-adds that are carried out, 0–1."""
        filters, channels, height, width = self.shape
        return self.macs_per_output / (filters * channels * height * width)

    @property
    def macs_per_output(self) -> int:
        """Multiply-adds per output position, padding filters not counted."""
        sizes = filters_per_block(self.shape[0], self.groups, self.block, self.starts.device)
        return int((self.starts.diff().to(torch.int64) * sizes).sum())

    @property
    def index_bytes(self) -> int:
        """Bytes that say what stays."""
        return self.masks.numel() * 2 + self.starts.numel() * 4


def block_count(filters: int, groups: int, block: int) -> int:
    """Blocks of one convolution: each group's filters are cut separately."""
    return groups * -(-(filters // groups) // block)


def filters_per_block(filters: int, groups: int, block: int, device: torch.device | None = None) -> Tensor:
    """Filters in every block, int64 [blocks]."""
    per_group = filters // groups
    blocks = -(-per_group // block)
    sizes = torch.full((blocks,), block, dtype=torch.int64, device=device)
    sizes[-1] = per_group - block * (blocks - 1)
    return sizes.repeat(groups)


def _walk_order(dense: Tensor, groups: int, block: int) -> Tensor:
    """[filters, channels, kh, kw] in the kernels' order: [blocks, planes, positions, 16, block], padded."""
    filters, channels, height, width = dense.shape
    per_group, planes = filters // groups, -(-channels // CHANNELS_PER_PLANE)
    blocks = -(-per_group // block)
    flat = dense.reshape(groups, per_group, channels, height * width)
    spare_channels = planes * CHANNELS_PER_PLANE - channels
    flat = torch.nn.functional.pad(flat, (0, 0, 0, spare_channels, 0, blocks * block - per_group))
    flat = flat.reshape(groups * blocks, block, planes, CHANNELS_PER_PLANE, height * width)
    return flat.permute(0, 2, 4, 3, 1)


def _dense_order(walked: Tensor, shape: tuple[int, int, int, int], groups: int) -> Tensor:
    """The inverse of :func:`_walk_order`."""
    filters, channels, height, width = shape
    blocks, planes, _, _, block = walked.shape
    flat = walked.permute(0, 4, 1, 3, 2).reshape(
        groups, blocks // groups * block, planes * CHANNELS_PER_PLANE, height * width
    )
    return flat[:, : filters // groups, :channels].reshape(shape)


def mask_bits(masks: Tensor) -> Tensor:
    """int16 masks [blocks, planes, positions] as bool [blocks, planes, positions, 16]."""
    bits = torch.arange(CHANNELS_PER_PLANE, device=masks.device, dtype=torch.int32)
    return ((masks.to(torch.int32).unsqueeze(-1) >> bits) & 1).to(torch.bool)


def pack(weight: Tensor, *, groups: int = 1, block: int = 32, kept: Tensor | None = None) -> Packed:
    """``weight`` without its pruned elements.

    Any sparsity can be packed; a block keeps an element where at least one of its filters does, so only patterns that
    the filters of a block share save time.

    Args:
        weight: dense weight [filters, channels per group, kh, kw] (or [.., k] for 1-D).
        groups: of the convolution.
        block: filters that share a pattern, a multiple of 8.
        kept: bool, shaped like ``weight``; default: where ``weight`` is not zero.

    Raises:
        PlanError: the weight is not a convolution's, or the block size is not a multiple of 8.
    """
    if weight.dim() == 3:
        weight = weight.unsqueeze(2)
        kept = kept if kept is None else kept.unsqueeze(2)
    if weight.dim() != 4 or weight.shape[0] % groups:
        raise PlanError(
            f"A weight of shape {tuple(weight.shape)} with {groups} groups is no convolution that can be packed. "
            f"Give [filters, channels, height, width] with filters a multiple of groups."
        )
    if block < 8 or block % 8:
        raise PlanError(
            f"Blocks of {block} filters are not supported. Choose a multiple of 8, best 32 (AVX-512) or 16."
        )
    if kept is None:
        kept = weight != 0
    shape = (weight.shape[0], weight.shape[1], weight.shape[2], weight.shape[3])
    stays = _walk_order(kept.to(torch.uint8), groups, block).amax(-1).to(torch.bool)
    walked = _walk_order(weight.detach() * kept, groups, block)
    bits = torch.arange(CHANNELS_PER_PLANE, dtype=torch.int32, device=weight.device)
    masks = (stays.to(torch.int32) << bits).sum(-1)
    starts = torch.zeros(stays.shape[0] + 1, dtype=torch.int32, device=weight.device)
    starts[1:] = stays.flatten(1).sum(1).cumsum(0)
    masks = torch.where(masks >= 1 << 15, masks - (1 << 16), masks).to(torch.int16)
    return Packed(walked[stays].contiguous(), masks, starts, shape, groups)


def unpack(weights: Tensor, masks: Tensor, shape: tuple[int, int, int, int], groups: int = 1) -> Tensor:
    """The dense weight [filters, channels, kh, kw]; differentiable, and of static shape under tracing."""
    stays = mask_bits(masks)
    row = (stays.flatten().cumsum(0) - 1).clamp(min=0)
    if weights.shape[0] == 0:
        return weights.new_zeros(shape)
    walked = weights[row] * stays.flatten().unsqueeze(1)
    return _dense_order(walked.reshape(*stays.shape, weights.shape[1]), shape, groups)


def gather(dense: Tensor, weights: Tensor, masks: Tensor, groups: int = 1) -> Tensor:
    """Elements of ``dense`` at the packed places, shaped like ``weights``: the adjoint of :func:`unpack`."""
    block = weights.shape[1]
    stays = mask_bits(masks).flatten()
    row = (stays.cumsum(0) - 1).clamp(min=0)
    walked = _walk_order(dense, groups, block).reshape(-1, block) * stays.unsqueeze(1)
    return torch.zeros_like(weights).index_add(0, row, walked)
