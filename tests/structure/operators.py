"""Small networks around one operator each: a convolution, the operator, a convolution and a classifier."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Around = Callable[[nn.Module, Tensor], Tensor]
UNITS = 16


@dataclass(frozen=True)
class Operator:
    """``run`` maps the activation [2, 16, 8, 8] of the first convolution to what the second reads along axis 1.

    ``parameters``: shapes of the tensors that it uses, by name; ``units``: how many of the 16 units are a group of
    their own afterwards (0: all must stay, for a reason that has ``held`` in it).
    """

    run: Around
    parameters: dict[str, tuple[int, ...]] = field(default_factory=dict)
    units: int = UNITS
    held: str = ""


class Around1(nn.Module):
    """The network."""

    def __init__(self, operator: Operator) -> None:
        super().__init__()
        self.a, self.operator = nn.Conv2d(3, UNITS, 3, padding=1), operator
        for name, shape in operator.parameters.items():
            setattr(self, name, nn.Parameter(torch.randn(shape)))
        with torch.no_grad():
            inner = self.inner(torch.randn(2, 3, 8, 8)).shape[1]
        self.b, self.c = nn.Conv2d(inner, 12, 1), nn.Conv2d(12, 5, 1)

    def inner(self, x: Tensor) -> Tensor:
        """What the second convolution reads."""
        y = self.operator.run(self, self.a(x))
        return y.reshape(*y.shape, *(1,) * (4 - y.dim())) if y.dim() < 4 else y

    def forward(self, x: Tensor) -> Tensor:
        """Class scores per position."""
        return self.c(torch.relu(self.b(self.inner(x))))


CHANNEL = (UNITS, 1, 1)


def tokens(y: Tensor) -> Tensor:
    """[batch, positions, channels]."""
    return y.flatten(2).transpose(1, 2)


def pooled(y: Tensor) -> Tensor:
    """[batch, channels]."""
    return y.mean((2, 3))


PRODUCTS: dict[str, Operator] = {
    "tensordot": Operator(lambda m, y: torch.tensordot(y, m.w, dims=([1], [0])).permute(0, 3, 1, 2), {"w": (16, 10)}),
    "tensordot_last": Operator(
        lambda m, y: torch.tensordot(m.w, y.movedim(1, 0), dims=1).movedim(0, 1), {"w": (10, 16)}
    ),
    "tensordot_two_axes": Operator(
        lambda m, y: torch.tensordot(y, m.w, dims=([1, 2], [0, 1])).transpose(1, 2), {"w": (16, 8, 10)}
    ),
    "inner": Operator(lambda m, y: torch.inner(y.movedim(1, 3), m.w).movedim(3, 1), {"w": (10, 16)}),
    "outer": Operator(lambda m, y: torch.outer(y.mean((0, 2, 3)), m.w)[None], {"w": (7,)}),
    "addr": Operator(lambda m, y: torch.addr(m.w, y.mean((0, 2, 3)), m.v)[None], {"w": (16, 6), "v": (6,)}),
    "addmv": Operator(lambda m, y: torch.addmv(m.d, m.w, y.mean((0, 2, 3)))[None], {"d": (10,), "w": (10, 16)}),
    "addmm": Operator(lambda m, y: torch.addmm(m.d, pooled(y), m.w), {"d": (10,), "w": (16, 10)}),
    "baddbmm": Operator(
        lambda m, y: torch.baddbmm(m.d, tokens(y), m.w.expand(2, -1, -1)).transpose(1, 2),
        {"d": (1, 1, 10), "w": (16, 10)},
    ),
    "addbmm": Operator(
        lambda m, y: torch.addbmm(m.d, tokens(y), m.w.expand(2, -1, -1)).t()[None], {"d": (64, 10), "w": (16, 10)}
    ),
    "multi_dot": Operator(lambda m, y: torch.linalg.multi_dot([pooled(y), m.u, m.v]), {"u": (16, 8), "v": (8, 10)}),
    "vecdot": Operator(lambda m, y: y + torch.linalg.vecdot(y.movedim(1, 3), m.w)[:, None], {"w": (16,)}),
    "vdot_of_weights": Operator(lambda m, y: y / torch.vdot(m.u, m.v), {"u": (9,), "v": (9,)}),
    "bilinear": Operator(lambda m, y: F.bilinear(pooled(y), pooled(y), m.w), {"w": (10, 16, 16)}),
    "cdist": Operator(lambda m, y: torch.cdist(tokens(y), m.w.expand(2, -1, -1)).transpose(1, 2), {"w": (10, 16)}),
    "cdist_of_shifted": Operator(
        lambda m, y: torch.cdist(tokens(y).sigmoid(), m.w.expand(2, -1, -1)).transpose(1, 2),
        {"w": (10, 16)},
        units=0,
        held="a distance is taken over this axis",
    ),
    "cosine_similarity": Operator(lambda m, y: F.cosine_similarity(y, m.w, dim=1)[:, None] * y, {"w": (1, 16, 1, 1)}),
    "cross_of_space": Operator(lambda m, y: torch.linalg.cross(y[..., :3], y[..., 3:6])),
    "cross_of_units": Operator(lambda m, y: torch.linalg.cross(y[:, :3], y[:, 3:6], dim=1), units=10),
    "conv_tbc": Operator(
        lambda m, y: torch.conv_tbc(y.flatten(2).permute(2, 0, 1).contiguous(), m.w, m.d).permute(1, 2, 0),
        {"w": (3, 16, 10), "d": (10,)},
    ),
    "linalg_matmul": Operator(lambda m, y: torch.linalg.matmul(m.w, y.flatten(2)), {"w": (10, 16)}),
    "chain_of_weights": Operator(lambda m, y: F.linear(pooled(y), m.u @ m.v), {"u": (10, 4), "v": (4, 16)}),
    "block_diagonal_weight": Operator(
        lambda m, y: F.linear(pooled(y), torch.block_diag(m.u, m.v)), {"u": (5, 8), "v": (5, 8)}
    ),
    "diagonal_weight": Operator(lambda m, y: F.linear(pooled(y), torch.diag(m.u)), {"u": (16,)}),
    "diagonal_matrices": Operator(lambda m, y: torch.diag_embed(m.u) @ y.flatten(2), {"u": (16,)}),
    "kronecker_weight": Operator(
        lambda m, y: F.linear(pooled(y), torch.kron(m.u, m.v)), {"u": (5, 4), "v": (2, 4)}, 0, "two kinds of units"
    ),
}

ELEMENTWISE: dict[str, Operator] = {
    "floor_divide": Operator(lambda m, y: torch.floor_divide(y, 0.5) + y),
    "remainder": Operator(lambda m, y: torch.remainder(y, 0.5) + torch.fmod(y, m.w), {"w": CHANNEL}),
    "logical": Operator(lambda m, y: y * torch.logical_and(y > 0, torch.logical_or(y < 1, torch.logical_not(y > 2)))),
    "logical_xor": Operator(lambda m, y: y * torch.logical_xor(y > 0, y < 1)),
    "bits_of_masks": Operator(lambda m, y: y * (((y > 0) & (y < 1)) | ((y > 2) ^ ~(y < 3)))),
    "bits_in_place": Operator(lambda m, y: y * (y > 0).logical_and_(y < 1).bitwise_or_(y > 2).logical_not_()),
    "comparisons": Operator(
        lambda m, y: y * torch.greater(y, -1) * torch.not_equal(y, 2) * torch.less_equal(y, m.w) * torch.eq(y, y),
        {"w": CHANNEL},
    ),
    "closeness": Operator(lambda m, y: y * torch.isclose(y, y) * torch.isfinite(y) * ~torch.isnan(y)),
    "where": Operator(lambda m, y: torch.where(y > 0, y, m.w), {"w": CHANNEL}),
    "masked_fill": Operator(lambda m, y: y.masked_fill(y < 0, 0.1)),
    "blends": Operator(
        lambda m, y: torch.lerp(y, y.relu(), m.w) + torch.addcmul(y, y, m.w) + torch.addcdiv(y, y, m.w), {"w": CHANNEL}
    ),
    "clamped": Operator(lambda m, y: torch.clamp(y, min=-m.w.abs(), max=m.w.abs()), {"w": CHANNEL}),
    "activations": Operator(
        lambda m, y: F.softshrink(F.hardshrink(F.tanhshrink(y))) + F.logsigmoid(y) + F.softsign(y) + F.celu(y)
    ),
    "special": Operator(
        lambda m, y: (
            torch.special.expit(y) + torch.special.erf(y) + torch.special.log1p(y.abs()) + torch.special.exp2(y)
            + torch.special.sinc(y) + torch.special.ndtr(y) + torch.special.xlogy(y, y.abs() + 1)
        )
    ),
    "aliases": Operator(
        lambda m, y: torch.arctan2(y, m.w) + torch.arcsinh(y) + y.absolute() + torch.fix(y) + torch.hypot(y, m.w),
        {"w": CHANNEL},
    ),
    "in_place": Operator(
        lambda m, y: y.clone().abs_().mul_(2).divide_(3).subtract_(1).negative_().square_().add_(1).sqrt_()
    ),
    "comparison_in_place": Operator(lambda m, y: y * y.clone().gt_(0)),
    "filled": Operator(lambda m, y: y * torch.empty_like(y).fill_(2.0) + torch.zeros_like(y).zero_()),
    "complex": Operator(lambda m, y: torch.view_as_real(torch.complex(y, y) * torch.complex(y, -y)).flatten(3)),
    "complex_pairs": Operator(
        lambda m, y: torch.view_as_real(torch.view_as_complex(y.unflatten(3, (4, 2)).contiguous()) * 1j).flatten(3)
    ),
    "complex_parts": Operator(
        lambda m, y: torch.complex(y, y).real + torch.complex(y, y).imag + torch.polar(y.abs(), y).real
    ),
    "tabulated": Operator(lambda m, y: y + torch.bucketize(y, torch.arange(5.0).to(y.dtype))),
    "searched": Operator(lambda m, y: y + torch.searchsorted(torch.arange(5.0).to(y.dtype), y.contiguous())),
    "membership": Operator(lambda m, y: y * torch.isin(y.long(), torch.tensor([0, 1]))),
    "losses": Operator(
        lambda m, y: F.mse_loss(y, y * m.w, reduction="none") + F.smooth_l1_loss(y, y * m.w, reduction="none"),
        {"w": CHANNEL},
    ),
}  # fmt: skip

SPACE: dict[str, Operator] = {
    "fft2": Operator(lambda m, y: torch.fft.ifft2(torch.fft.fft2(y) * 2).real),
    "rfft2_filter": Operator(
        lambda m, y: torch.fft.irfft2(torch.fft.rfft2(y, norm="ortho") * torch.view_as_complex(m.w), s=(8, 8)),
        {"w": (16, 8, 5, 2)},
    ),
    "rfft_of_one_axis": Operator(lambda m, y: torch.fft.irfft(torch.fft.rfft(y, dim=2), dim=2, n=8)),
    "fftn": Operator(lambda m, y: torch.fft.fftn(y, dim=(2, 3)).abs() + torch.fft.fftn(y, s=(8, 8)).abs()),
    "fftshift": Operator(lambda m, y: torch.fft.ifftshift(torch.fft.fftshift(y, dim=(2, 3)), dim=(2, 3))),
    "fft_over_units": Operator(lambda m, y: torch.fft.fft(y, dim=1).real, units=0, held="Fourier"),
    "stft": Operator(
        lambda m, y: (
            torch.stft(y.flatten(0, 1).flatten(1), 8, window=torch.hann_window(8).to(y.dtype), return_complex=True)
            .abs()
            .unflatten(0, (2, -1))
        )
    ),
    "diff": Operator(lambda m, y: torch.diff(y, dim=3)),
    "gradient": Operator(lambda m, y: torch.gradient(y, dim=2)[0]),
    "trapezoid": Operator(lambda m, y: torch.trapezoid(y, dim=2) + torch.cumulative_trapezoid(y, dim=2)[:, :, 0]),
    "cumulative": Operator(lambda m, y: y.cumsum(2) + y.cumprod(3) + y.logcumsumexp(2)),
    "cumulative_extremes": Operator(lambda m, y: y.cummax(2)[0] + y.cummin(3)[0]),
    "cumulative_over_units": Operator(lambda m, y: y.cumsum(1), units=0, held="running total"),
    "triangles": Operator(lambda m, y: torch.tril(y) + torch.triu(y, 1)),
    "triangle_of_scores": Operator(
        lambda m, y: (torch.tril(tokens(y) @ y.flatten(2)) @ tokens(y)).transpose(1, 2),
    ),
    "sort": Operator(lambda m, y: y.sort(2)[0] + torch.msort(y.permute(2, 0, 1, 3)).permute(1, 2, 0, 3)),
    "sort_over_units": Operator(lambda m, y: y.sort(1)[0], units=0, held="ordered by value"),
    "argsort": Operator(lambda m, y: torch.take_along_dim(y, y.argsort(2), 2)),
    "topk": Operator(lambda m, y: y.topk(3, dim=2)[0]),
    "topk_gathered": Operator(lambda m, y: y.flatten(2).gather(2, y.flatten(2).topk(3, dim=2)[1])),
    "kthvalue": Operator(lambda m, y: y.kthvalue(2, dim=2)[0] + y.median(dim=2)[0] + y.nanmedian(dim=3)[0]),
    "quantiles": Operator(
        lambda m, y: y.quantile(0.5, dim=2) + y.quantile(torch.tensor([0.2, 0.8]).to(y.dtype), dim=3).sum(0)
    ),
    "extremes": Operator(lambda m, y: y - torch.aminmax(y, dim=2, keepdim=True)[0]),
    "counts": Operator(lambda m, y: y + y.count_nonzero(2)[:, :, None] + y.nanmean(2, keepdim=True)),
    "norms": Operator(
        lambda m, y: y / torch.linalg.norm(y, dim=2, keepdim=True) / torch.linalg.matrix_norm(y, keepdim=True)
    ),
    "padding_modes": Operator(
        lambda m, y: (
            F.pad(y, (1, 1, 1, 1), mode="reflect") + F.pad(y, (1, 1, 1, 1), mode="circular")
            + torch.ops.aten.replication_pad2d(y, [1, 1, 1, 1]) + torch.ops.aten.reflection_pad2d(y, [1, 1, 1, 1])
        )
    ),
    "upsampling": Operator(
        lambda m, y: (
            F.interpolate(y, scale_factor=2, mode="nearest-exact") + F.interpolate(y, size=16, mode="area")
            + F.interpolate(y, size=16, mode="bilinear", antialias=True) + F.interpolate(y, size=16, mode="bicubic")
        )
    ),
    "upsampling_of_volumes": Operator(
        lambda m, y: (
            F.interpolate(y.unflatten(3, (2, 4)), scale_factor=2, mode="nearest-exact")
            + F.interpolate(y.unflatten(3, (2, 4)), scale_factor=2, mode="trilinear")
        ).flatten(3)
    ),
    "spatial_transformer": Operator(
        lambda m, y: F.grid_sample(
            y, F.affine_grid(F.linear(pooled(y), m.w).view(-1, 2, 3), y.shape, align_corners=False), align_corners=False
        ),
        {"w": (6, 16)},
    ),
    "fold": Operator(lambda m, y: F.fold(F.unfold(y, 3, padding=1), (8, 8), 3, padding=1)),
    "fold_of_a_layer": Operator(
        lambda m, y: F.fold(F.linear(tokens(y), m.w).transpose(1, 2), (16, 16), 2, stride=2), {"w": (24, 16)}
    ),
    "group_norm_native": Operator(
        lambda m, y: torch.ops.aten.native_group_norm(y, m.w, m.w, 2, 16, 64, 16, 1e-5)[0], {"w": (16,)}
    ),
}  # fmt: skip


def _slice_written(m: nn.Module, y: Tensor) -> Tensor:
    z = torch.zeros_like(y)
    z[:, :, 2:5] = y[:, :, 2:5]
    z[:, :, 0] = y[:, :, 1]
    return z


def _halves_written(m: nn.Module, y: Tensor) -> Tensor:
    z = torch.zeros_like(y)
    z[:, :8], z[:, 8:] = y[:, 8:], y[:, :8]
    return z


def _mask_written(m: nn.Module, y: Tensor) -> Tensor:
    z = y.clone()
    z[z < 0] = 0.5
    return z


def _rows_written(m: nn.Module, y: Tensor) -> Tensor:
    z = y.clone()
    z[:, :, torch.tensor([0, 3])] = y[:, :, torch.tensor([1, 2])]
    return z


def _modulo(n: int, y: Tensor) -> Tensor:
    return (torch.arange(8) % n).view(1, 1, 8, 1).expand(y.shape)


PLACES: dict[str, Operator] = {
    "slice_written": Operator(_slice_written),
    "halves_written": Operator(_halves_written, units=8),
    "mask_written": Operator(_mask_written),
    "rows_written": Operator(_rows_written),
    "slice_scatter": Operator(lambda m, y: torch.slice_scatter(y, y[:, :, 4:], 2, 0, 4)),
    "slice_scatter_of_units": Operator(lambda m, y: torch.slice_scatter(y, y[:, 8:], 1, 0, 8), units=8),
    "select_scatter": Operator(lambda m, y: torch.select_scatter(y, y[:, :, 4], 2, 0)),
    "index_fill": Operator(lambda m, y: y.index_fill(2, torch.tensor([0, 1]), 0.0)),
    "index_add": Operator(
        lambda m, y: y.new_zeros(y.shape[0], y.shape[1], 5, 8).index_add(2, torch.arange(8) % 5, y)
    ),
    "index_add_of_units": Operator(
        lambda m, y: y.new_zeros(2, 4, 8, 8).index_add(1, torch.arange(16) % 4, y), units=0, held="picked by"
    ),
    "index_copy": Operator(lambda m, y: torch.zeros_like(y).index_copy(2, torch.arange(8).flip(0), y)),
    "scatter": Operator(lambda m, y: torch.zeros_like(y).scatter(2, _modulo(8, y), y)),
    "scatter_value": Operator(lambda m, y: y.scatter(2, y.argmax(2, keepdim=True), 0.5)),
    "scatter_add": Operator(lambda m, y: torch.zeros_like(y).scatter_add(2, y.argmax(2, keepdim=True).expand_as(y), y)),
    "scatter_reduce": Operator(lambda m, y: torch.zeros_like(y).scatter_reduce(2, _modulo(3, y), y, "amax")),
    "gather": Operator(lambda m, y: y.gather(2, y.argmax(2, keepdim=True))),
    "gather_of_tokens": Operator(
        lambda m, y: tokens(y).gather(1, F.linear(tokens(y), m.w).topk(5, dim=1)[1].expand(-1, -1, 16)).transpose(1, 2),
        {"w": (1, 16)},
    ),
    "gather_of_repeated": Operator(
        lambda m, y: (
            tokens(y)
            .gather(1, F.linear(tokens(y), m.w).topk(5, dim=1)[1].repeat(1, 1, y.shape[1]))
            .transpose(1, 2)
        ),
        {"w": (1, 16)},
    ),
    "index_computed": Operator(
        lambda m, y: tokens(y)[torch.arange(2)[:, None], F.linear(tokens(y), m.w)[..., 0].topk(5)[1]].transpose(1, 2),
        {"w": (1, 16)},
    ),
    "masked_scatter": Operator(lambda m, y: y.masked_scatter(y < 0, y.abs()), units=0, held="taken in order"),
    "meshgrid_of_positions": Operator(
        lambda m, y: y + torch.meshgrid(torch.arange(8.0).to(y), torch.arange(8.0).to(y), indexing="ij")[0]
    ),
    "meshgrid_of_units": Operator(
        lambda m, y: (
            torch.meshgrid(y.mean((0, 2, 3)), m.w, indexing="ij")[0]
            * torch.meshgrid(y.mean((0, 2, 3)), m.w, indexing="ij")[1]
        )[None],
        {"w": (4,)},
    ),
    "meshgrid_xy": Operator(
        lambda m, y: torch.meshgrid(m.w, y.mean((0, 2, 3)), indexing="xy")[1][None], {"w": (4,)}
    ),
    "cartesian_product": Operator(lambda m, y: y * torch.cartesian_prod(y[0, 0, 0], m.w).mean(), {"w": (4,)}, 15),
    "broadcast_tensors": Operator(lambda m, y: torch.broadcast_tensors(y, m.w)[1] * y, {"w": CHANNEL}),
    "stacks": Operator(lambda m, y: torch.hstack([torch.vstack([y, y])[:2], torch.dstack([y, y])[:, :, :8]]), units=16),
    "column_stack": Operator(lambda m, y: torch.column_stack([pooled(y), y.amax((2, 3))])),
    "copies": Operator(lambda m, y: torch.narrow_copy(torch.ops.aten.permute_copy(y, [0, 1, 3, 2]), 2, 0, 4)),
    "views_in_place": Operator(lambda m, y: y.clone().unsqueeze_(0).squeeze_(0).transpose_(2, 3).swapaxes_(2, 3)),
    "expanded_to_a_number": Operator(lambda m, y: y * m.w.expand(1, 16, 1, 1), {"w": (1, 1, 1, 1)}),
    "repeated_to_a_number": Operator(lambda m, y: y * m.w.repeat(1, 16, 1, 1), {"w": (1, 1, 1, 1)}),
    "expanded_constant": Operator(lambda m, y: y * torch.arange(8.0).to(y).view(1, 1, 8, 1).expand(2, 16, 8, 8)),
    "embedding_bag": Operator(
        lambda m, y: y * F.embedding_bag(torch.tensor([[0, 1], [2, 3]]), m.w)[:, :, None, None], {"w": (5, 16)}
    ),
}  # fmt: skip

MATRICES: dict[str, Operator] = {
    "inverse": Operator(lambda m, y: y * torch.linalg.inv(m.w + 9 * torch.eye(4).to(y)).sum(), {"w": (4, 4)}),
    "singular_values": Operator(lambda m, y: y / torch.linalg.svdvals(m.w)[0], {"w": (4, 6)}),
    "of_a_layer": Operator(
        lambda m, y: F.linear(pooled(y), m.w / torch.linalg.svdvals(m.w)[0]), {"w": (10, 16)}, 0, "taken as a whole"
    ),
    "exponential": Operator(lambda m, y: torch.matrix_exp(0.1 * m.w) @ y.flatten(2), {"w": (16, 16)}, 0, "stays"),
    "determinants_of_positions": Operator(lambda m, y: y * torch.linalg.det(y)[:, :, None, None]),
    "renormed_weight": Operator(lambda m, y: F.linear(pooled(y), torch.renorm(m.w, 2, 0, 1.0)), {"w": (10, 16)}),
}
ALL: dict[str, Operator] = {**PRODUCTS, **ELEMENTWISE, **SPACE, **PLACES, **MATRICES}
