from __future__ import annotations

import pytest
import torch

from secateurs.elements.packing import Packed, gather, pack, unpack
from secateurs.elements.reference import conv2d
from secateurs.errors import PlanError


@pytest.mark.parametrize(
    ("filters", "channels", "groups", "block"),
    [(64, 32, 1, 32), (40, 19, 1, 16), (24, 12, 2, 8), (33, 7, 1, 32), (5, 5, 5, 8)],
)
def test_unpack_undoes_pack(filters: int, channels: int, groups: int, block: int) -> None:
    weight = torch.randn(filters, channels // groups, 3, 3) * (torch.rand(filters, channels // groups, 3, 3) < 0.3)
    packed = pack(weight, groups=groups, block=block)
    assert torch.equal(unpack(packed.weights, packed.masks, packed.shape, groups), weight)
    assert torch.equal(gather(weight, packed.weights, packed.masks, groups), packed.weights)
    assert packed.starts[-1] == packed.entries == packed.weights.shape[0]


def test_gather_is_the_adjoint_of_unpack() -> None:
    weight = torch.randn(20, 18, 3, 3) * (torch.rand(20, 18, 3, 3) < 0.2)
    packed = pack(weight, block=8)
    values = torch.randn_like(packed.weights, dtype=torch.float64)
    probe = torch.randn(packed.shape, dtype=torch.float64)
    left = (unpack(values, packed.masks, packed.shape) * probe).sum()
    # Columns past the last filter are no weights: the adjoint gives them nothing.
    right = (values * gather(probe, values, packed.masks)).sum()
    torch.testing.assert_close(left, right)


def test_explicit_masks_keep_zero_weights_and_1d_becomes_2d() -> None:
    weight = torch.zeros(16, 4, 5)
    kept = torch.zeros(16, 4, 5, dtype=torch.bool)
    kept[:, 1, 3] = True
    packed = pack(weight, block=16, kept=kept)
    assert packed.entries == 1
    assert packed.shape == (16, 4, 1, 5)


def test_density_counts_real_filters_only() -> None:
    weight = torch.ones(40, 2, 3, 3)
    weight[32:, 1] = 0
    packed = pack(weight, block=32)
    assert packed.density == pytest.approx((32 * 18 + 8 * 9) / (40 * 18))
    assert packed.index_bytes == 2 * 9 * 2 + 3 * 4


def test_reference_walks_the_packed_entries() -> None:
    weight = torch.randn(24, 6, 3, 3, dtype=torch.float64) * (torch.rand(24, 6, 3, 3) < 0.4)
    packed = pack(weight, groups=2, block=8)
    x = torch.randn(2, 12, 9, 8, dtype=torch.float64)
    actual = conv2d(
        x,
        packed.weights,
        packed.masks,
        packed.starts,
        filters=24,
        kernel=(3, 3),
        stride=(2, 1),
        padding=(1, 2, 0, 1),
        groups=2,
    )
    padded = torch.nn.functional.pad(x, (2, 1, 1, 0))
    torch.testing.assert_close(actual, torch.nn.functional.conv2d(padded, weight, stride=(2, 1), groups=2))


@pytest.mark.parametrize(
    ("shape", "groups", "block"), [((8, 4), 1, 8), ((9, 4, 3, 3), 2, 8), ((8, 4, 3, 3), 1, 12), ((8, 4, 3, 3), 1, 0)]
)
def test_what_cannot_be_packed_is_refused(shape: tuple[int, ...], groups: int, block: int) -> None:
    with pytest.raises(PlanError):
        pack(torch.randn(shape), groups=groups, block=block)


def test_packed_is_frozen() -> None:
    packed = pack(torch.randn(8, 4, 3, 3), block=8)
    assert isinstance(packed, Packed)
    with pytest.raises(AttributeError):
        packed.groups = 2  # type: ignore[misc]
