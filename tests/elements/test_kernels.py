"""The compiled convolution against ``F.conv2d``: every scope, geometry, tile, instruction set and thread count."""

from __future__ import annotations

import ctypes
import itertools
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from secateurs.elements import native, reference
from secateurs.elements.operator import call_arguments, geometry, sparse_conv2d
from secateurs.elements.packing import Packed, pack, unpack
from secateurs.elements.patterns import SCOPES, PatternChoice, choose

pytestmark = pytest.mark.skipif(native.missing() is not None, reason=str(native.missing()))
TOLERANCE = 1e-5


@pytest.fixture(autouse=True)
def poisoned() -> Iterator[native.Kernels]:
    """Scratch memory full of NaN; the instruction set and the tile limits as they were afterwards."""
    library = native.require()
    threads = torch.get_num_threads()
    library.poison_scratch(True)
    yield library
    library.poison_scratch(False)
    library.use_isa(None)
    library.limit_tiles()
    torch.set_num_threads(threads)


@pytest.fixture(params=["avx512", "avx2", "neon", "plain"])
def isa(request: pytest.FixtureRequest, poisoned: native.Kernels) -> str:
    try:
        poisoned.use_isa(request.param)
    except Exception:
        pytest.skip(f"{request.param} is not available here")
    assert poisoned.isa == request.param
    return request.param


def random_layer(
    filters: int,
    channels: int,
    kernel: tuple[int, int],
    density: float,
    *,
    groups: int = 1,
    block: int = 32,
    seed: int = 0,
) -> tuple[Tensor, Packed]:
    """A weight whose blocks of filters share random patterns, and its packed form."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(filters, channels // groups, *kernel, generator=generator)
    per_group = filters // groups
    for group, first in itertools.product(range(groups), range(0, per_group, block)):
        rows = slice(group * per_group + first, group * per_group + min(first + block, per_group))
        weight[rows] *= torch.rand(1, channels // groups, *kernel, generator=generator) < density
    return weight, pack(weight, groups=groups, block=block)


def run(
    x: Tensor, packed: Packed, bias: Tensor | None, residual: Tensor | None, call: list[int], activation: str = "none"
) -> Tensor:
    code = native.ACTIVATIONS.index(activation)
    with torch.inference_mode():
        return sparse_conv2d(
            x, packed.weights, packed.masks, packed.starts, bias, residual, packed.shape[0], call, code
        )


def dense(
    x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None, call: list[int], activation: str = "none"
) -> Tensor:
    _, _, sh, sw, top, left, bottom, right, dh, dw, groups = call
    double = None if bias is None else bias.double()
    padded = F.pad(x.double(), (left, right, top, bottom))
    y = F.conv2d(padded, weight.double(), double, stride=(sh, sw), dilation=(dh, dw), groups=groups)
    return reference.activate(y if residual is None else y + residual.double(), activation)


def assert_close(actual: Tensor, expected: Tensor) -> None:
    assert actual.shape == expected.shape
    error = (actual.double() - expected).abs().max() / expected.abs().max().clamp(min=1e-30)
    assert float(error) <= TOLERANCE, f"relative error {float(error):.2e}"


GEOMETRIES = [
    # filters, channels, size, kernel, stride, padding, dilation, groups, block, batch
    (64, 32, (14, 14), (3, 3), (1, 1), (1, 1, 1, 1), (1, 1), 1, 32, 1),
    (64, 32, (7, 7), (3, 3), (1, 1), (1, 1, 1, 1), (1, 1), 1, 32, 3),
    (48, 19, (13, 11), (3, 3), (2, 2), (1, 1, 1, 1), (1, 1), 1, 32, 1),
    (40, 3, (30, 29), (3, 3), (1, 1), (2, 2, 2, 2), (2, 2), 1, 16, 1),
    (64, 3, (21, 23), (7, 7), (2, 2), (3, 3, 3, 3), (1, 1), 1, 32, 3),
    (33, 17, (9, 8), (5, 5), (3, 2), (3, 0, 1, 2), (1, 1), 1, 32, 1),
    (32, 16, (1, 50), (1, 5), (1, 1), (0, 2, 0, 2), (1, 1), 1, 32, 3),  # 1-D
    (32, 20, (9, 5), (1, 1), (1, 1), (0, 0, 0, 0), (1, 1), 1, 16, 3),  # flattened to one row
    (24, 20, (9, 5), (1, 1), (2, 2), (0, 0, 0, 0), (1, 1), 1, 8, 1),
    (36, 24, (9, 8), (3, 3), (1, 1), (1, 1, 1, 1), (1, 1), 3, 8, 1),
    (16, 16, (6, 6), (3, 3), (1, 1), (1, 1, 1, 1), (1, 1), 16, 8, 3),  # depthwise
    (32, 8, (40, 3), (3, 3), (1, 1), (1, 1, 1, 1), (1, 1), 1, 32, 3),
    (8, 5, (2, 2), (3, 3), (1, 1), (1, 1, 1, 1), (1, 1), 1, 8, 1),
    (96, 33, (5, 5), (3, 3), (1, 1), (0, 0, 0, 0), (2, 2), 1, 32, 1),
    (33, 16, (6, 400), (3, 3), (1, 1), (1, 1, 1, 1), (3, 5), 1, 32, 1),
    (16, 4, (5, 37), (3, 3), (1, 1), (1, 1, 1, 1), (1, 1), 1, 16, 3),  # planes transposed sixteen pixels at a time
    (16, 2, (7, 71), (5, 5), (2, 2), (2, 2, 2, 2), (1, 1), 1, 16, 1),
    (8, 1, (4, 99), (3, 3), (1, 3), (1, 1, 1, 1), (1, 1), 1, 8, 1),
]


@pytest.mark.parametrize("case", GEOMETRIES, ids=str)
@pytest.mark.parametrize("threads", [1, 2])
def test_geometries(isa: str, case: tuple, threads: int) -> None:
    filters, channels, size, kernel, stride, padding, dilation, groups, block, batch = case
    torch.set_num_threads(threads)
    weight, packed = random_layer(filters, channels, kernel, 0.45, groups=groups, block=block)
    call = geometry(kernel, stride, padding, dilation, groups)
    x, bias = torch.randn(batch, channels, *size), torch.randn(filters)
    expected = dense(x, weight, bias, None, call)
    assert_close(run(x, packed, bias, None, call), expected)
    assert_close(run(x.contiguous(memory_format=torch.channels_last), packed, bias, None, call), expected)
    residual = torch.randn_like(expected, dtype=torch.float32)
    assert_close(run(x, packed, None, residual, call, "relu"), dense(x, weight, None, residual, call, "relu"))


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize(("stride", "padding", "dilation"), [(1, 1, 1), (2, 1, 1), (1, 0, 2)])
def test_every_scope_is_packed_right(scope: str, stride: int, padding: int, dilation: int) -> None:
    weight = torch.randn(40, 24, 3, 3)
    kept = choose(weight.square(), PatternChoice(scope=scope, keep=4, pool="unit"))
    packed = pack(weight, kept=kept)
    x = torch.randn(1, 24, 11, 9)
    call = geometry((3, 3), (stride, stride), (padding,) * 4, (dilation, dilation))
    assert torch.equal(unpack(packed.weights, packed.masks, packed.shape), weight * kept)
    expected = reference.masked(x.double(), weight.double(), kept, stride=stride, padding=padding, dilation=dilation)
    assert_close(run(x, packed, None, None, call), expected)


@pytest.mark.parametrize("activation", native.ACTIVATIONS)
@pytest.mark.parametrize("filters", [32, 16, 8, 41])
def test_activations_and_residual(isa: str, activation: str, filters: int) -> None:
    weight, packed = random_layer(filters, 16, (3, 3), 0.4)
    x, bias, residual = 3 * torch.randn(2, 16, 6, 15), torch.randn(filters), 4 * torch.randn(2, filters, 6, 15)
    call = geometry((3, 3), padding=(1, 1, 1, 1))
    assert_close(run(x, packed, bias, residual, call, activation), dense(x, weight, bias, residual, call, activation))


def test_silu_at_the_ends_of_the_range(isa: str) -> None:
    packed = pack(torch.eye(8).view(8, 8, 1, 1), block=8)
    x = torch.tensor([-1e30, -200.0, -87.5, -1e-20, 0.0, 1e-20, 200.0, 1e30]).view(1, 8, 1, 1)
    actual = run(x, packed, None, None, geometry((1, 1)), "silu")
    torch.testing.assert_close(actual, F.silu(x), rtol=1e-5, atol=1e-30)


@pytest.mark.parametrize("activation", ["none", "relu", "relu6"])
def test_nan_in_the_input_reaches_the_output(isa: str, activation: str) -> None:
    _, packed = random_layer(32, 16, (1, 1), 1.0)
    x = torch.randn(1, 16, 2, 5)
    x[0, 3, 1, 2] = float("nan")
    y = run(x, packed, None, None, geometry((1, 1)), activation)
    assert bool(y[0, :, 1, 2].isnan().all())
    assert int(y.isnan().sum()) == 32


def test_every_tile_of_the_table(isa: str, poisoned: native.Kernels) -> None:
    """Each microkernel is made to run: an image of its own size, one row and column less, and one more."""
    shapes = {(filters, rows, columns, inner) for _, (filters, rows, columns, inner, _) in poisoned.tiles()}
    assert {filters for filters, *_ in shapes} & {8, 16, 32}
    for filters, rows, columns, inner in sorted(shapes):
        channels = 3 if inner == 4 else 17
        weight, packed = random_layer(filters, channels, (3, 3), 0.3, block=max(8, filters))
        call = geometry((3, 3), padding=(1, 1, 1, 1))
        poisoned.limit_tiles(rows, columns)
        for height, width in ((rows, columns), (rows + 1, columns + 1), (max(1, rows - 1), max(1, columns - 1))):
            x = torch.randn(1, channels, height, width)
            assert_close(run(x, packed, None, None, call), dense(x, weight, None, None, call))


def test_streaming_and_cached_tiles_agree(isa: str) -> None:
    """A layer too large for the first-level cache takes the prefetching tiles; its slices take the others."""
    weight, packed = random_layer(64, 160, (3, 3), 0.5)
    x, call = torch.randn(1, 160, 9, 20), geometry((3, 3), padding=(1, 1, 1, 1))
    assert_close(run(x, packed, None, None, call), dense(x, weight, None, None, call))


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_large_images_in_bands(threads: int) -> None:
    """More than the second-level cache: several bands, prefetching ahead, stores past the caches."""
    torch.set_num_threads(threads)
    for channels, filters in ((3, 32), (32, 40)):
        weight, packed = random_layer(filters, channels, (3, 3), 0.3)
        x = torch.randn(2, channels, 150, 170).contiguous(memory_format=torch.channels_last)
        call = geometry((3, 3), padding=(1, 1, 1, 1))
        assert_close(run(x, packed, None, None, call, "relu"), dense(x, weight, None, None, call, "relu"))


def test_uneven_blocks_and_empty_blocks() -> None:
    weight = torch.randn(96, 40, 3, 3)
    weight[:32, 1:] = 0.0
    weight[32:64] = 0.0
    packed = pack(weight)
    assert packed.starts.tolist() == [0, 9, 9, 9 + 360]
    x, call, bias = torch.randn(1, 40, 8, 9), geometry((3, 3), padding=(1, 1, 1, 1)), torch.randn(96)
    for threads in (1, 2):
        torch.set_num_threads(threads)
        assert_close(run(x, packed, bias, None, call), dense(x, weight, bias, None, call))
    nothing = pack(torch.zeros(32, 8, 3, 3))
    assert_close(
        run(x[:, :8], nothing, bias[:32], None, call), dense(x[:, :8], torch.zeros(32, 8, 3, 3), bias[:32], None, call)
    )


def test_strided_inputs_and_slices() -> None:
    weight, packed = random_layer(32, 16, (3, 3), 0.4)
    call = geometry((3, 3), padding=(1, 1, 1, 1))
    whole = torch.randn(2, 24, 12, 13).contiguous(memory_format=torch.channels_last)
    for x in (
        whole[:, 4:20],
        whole[:, 4:20, ::2, 1:],
        whole.contiguous()[:, :16],
        whole[:1, :16].expand(3, -1, -1, -1),
    ):
        assert_close(run(x, packed, None, None, call), dense(x, weight, None, None, call))


DIRECT = [  # filters, channels, size, kernel, stride, padding, dilation, batch
    (16, 16, (9, 32), (3, 3), (1, 1), (1, 1, 1, 1), (1, 1), 1),
    (24, 16, (5, 7), (5, 3), (1, 1), (2, 1, 2, 1), (1, 1), 3),
    (32, 32, (8, 29), (3, 3), (1, 1), (1, 1, 1, 1), (1, 1), 1),
    (64, 32, (15, 16), (3, 3), (1, 2), (1, 1, 0, 0), (1, 1), 3),
    (64, 16, (9, 33), (3, 3), (2, 2), (1, 1, 1, 1), (1, 1), 1),
    (32, 64, (7, 8), (3, 3), (1, 1), (2, 2, 2, 2), (2, 2), 1),
    (64, 64, (4, 5), (1, 1), (1, 1), (0, 0, 0, 0), (1, 1), 2),
    (40, 64, (6, 6), (3, 3), (1, 1), (1, 1, 1, 1), (1, 1), 1),  # not a multiple of 32 filters: copied
]


@pytest.mark.parametrize("case", DIRECT, ids=str)
@pytest.mark.parametrize("threads", [1, 2])
def test_input_with_zeros_around_it_is_read_where_it_lies(isa: str, case: tuple, threads: int) -> None:
    """Around the border that is promised lies NaN; the output has a pitch of its own, and NaN beyond it stays."""
    filters, channels, size, kernel, stride, padding, dilation, batch = case
    weight, packed = random_layer(filters, channels, kernel, 0.45)
    call, bias, border = geometry(kernel, stride, padding, dilation), torch.randn(filters), max(padding)
    x = torch.randn(batch, channels, *size)
    edges = (border,) * 4
    around = F.pad(F.pad(x, edges), (1, 1, 1, 1), value=float("nan")).contiguous(memory_format=torch.channels_last)
    inner = around[:, :, 1 + border : 1 + border + size[0], 1 + border : 1 + border + size[1]]
    expected = dense(x, weight, bias, None, call, "relu")
    shared, shape = call_arguments(
        tuple(x.shape), inner.stride(), None, filters, packed.block, tuple(call), "relu", threads
    )
    arguments = native.ConvArguments.from_buffer_copy(shared)
    arguments.in_border = border
    whole = torch.full((batch, shape[2] + 2, shape[3] + 2, filters), float("nan")).permute(0, 3, 1, 2)
    out = whole[:, :, 1:-1, 1:-1]
    arguments.out_stride_batch, _, arguments.out_stride_row, arguments.out_stride_column = out.stride()
    status = native.require().conv(
        ctypes.addressof(arguments), inner.data_ptr(), packed.weights.data_ptr(), packed.masks.data_ptr(),
        packed.starts.data_ptr(), bias.data_ptr(), None, out.data_ptr(),
    )  # fmt: skip
    assert status == 0
    assert_close(out, expected)
    assert int(whole.isnan().sum()) == whole.numel() - out.numel()


def test_same_result_with_any_number_of_threads() -> None:
    _, packed = random_layer(72, 48, (3, 3), 0.4)
    x, call = torch.randn(3, 48, 17, 19), geometry((3, 3), padding=(1, 1, 1, 1))
    results = []
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        results.append(run(x, packed, None, None, call))
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


def test_broken_patterns_are_refused() -> None:
    _, packed = random_layer(32, 20, (3, 3), 0.4)
    x, call = torch.randn(1, 20, 6, 6), geometry((3, 3))
    beyond = packed.masks.clone()
    beyond[0, 1] = -1  # channels 20 to 31 do not exist
    too_many = packed.masks.clone()
    too_many[0, 0] = -1
    for masks in (beyond, too_many, torch.zeros_like(packed.masks)):
        with pytest.raises(Exception, match="pattern does not fit"):
            run(x, Packed(packed.weights, masks, packed.starts, packed.shape), None, None, call)


def test_environment_variable_forces_an_instruction_set() -> None:
    import os
    import subprocess
    import sys

    code = "from secateurs.elements import native; print(native.require().isa)"
    for name in ("plain", "nonsense"):
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, "SECATEURS_ISA": name}
        )
        assert done.returncode == 0
        assert (done.stdout.strip() == name) == (name == "plain")
        assert ("nonsense is not available" in done.stderr) == (name == "nonsense")
