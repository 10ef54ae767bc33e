"""Fourier transforms and complex numbers."""

from __future__ import annotations

from typing import Any

from secateurs.structure.call import Call
from secateurs.structure.operators import rule, short_name
from secateurs.structure.values import Value

_ONE = ("fft", "ifft", "rfft", "irfft", "hfft", "ihfft")
_TWO = tuple(f"{name}2" for name in _ONE)
_ALL = tuple(f"{name}n" for name in _ONE)


@rule(
    *(f"aten.fft_{name}" for name in (*_ONE, *_TWO, *_ALL)), "aten._fft_r2c", "aten._fft_c2r", "aten._fft_c2c",
)  # fmt: skip
def transform(call: Call) -> Any:
    """Mixes every entry of the transformed axes with every other; the rest passes."""
    value: Value = call["self"]
    rank = len(value.shape)
    dims = call.get("dim")
    if dims is None:  # the last ones, as many as there are sizes, or all
        sizes = call.get("s")
        dims = range(rank - len(sizes), rank) if sizes is not None else range(rank)
    mixed = {int(dim) % rank for dim in ([dims] if isinstance(dims, int) else dims)}
    call.pin_dims(value, mixed, "a Fourier transform runs over this axis")
    return value.with_shape(call.shape, [dim for dim in range(rank) if dim not in mixed])


@rule("aten.view_as_complex")
def from_pairs(call: Call) -> Any:
    """The last axis holds real and imaginary part."""
    value: Value = call["self"]
    call.pin_dims(value, [len(value.shape) - 1], "it holds real and imaginary parts")
    return value.with_shape(call.shape, range(len(value.shape) - 1))


@rule("aten.view_as_real")
def to_pairs(call: Call) -> Any:
    """Real and imaginary part as a last axis."""
    value: Value = call["self"]
    return value.with_shape(call.shape, range(len(value.shape)))


@rule("aten.stft", "aten.istft")
def short_time(call: Call) -> Any:
    """Transforms of windows along time, signal by signal."""
    value: Value = call["self"]
    lead = len(value.shape) - (1 if short_name(call.node.target) == "stft" else 2)
    others = [each for each in call.tensors() if each is not value]
    call.pin([factor.ids for each in others for factor in each.factors], "a Fourier transform uses it as a window")
    call.pin_dims(value, range(lead, len(value.shape)), "a Fourier transform runs over this axis")
    return value.with_shape(call.shape, range(lead))
