"""Matrix products as Triton kernels, with what follows the product done before a tile leaves the registers.

A program walks over tiles of the result; tiles of both factors come through tensor descriptors (TMA on an H100). What
is done at a tile's end is the ``END`` of :func:`_product`, or the rotation of :func:`_rotated`.
"""

# mypy: disable-error-code="import-not-found,no-untyped-def"

from dataclasses import dataclass
from functools import cache

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary
from triton.tools.tensor_descriptor import TensorDescriptor

from .ops import Angles


@dataclass
class Tiles:
    """How a product is cut.

    Attributes:
        rows: Of the result in a tile.
        columns: The same.
        inner: Of the summed dimension, in one step.
        group: Rows of tiles that follow each other, so that they share tiles of the weight in the cache.
        warps: Of a program.
        stages: Steps whose tiles are under way.
        persistent: Whether there is a program for each multiprocessor, rather than for each tile.
    """

    rows: int = 128
    columns: int = 256
    inner: int = 64
    group: int = 8
    warps: int = 8
    stages: int = 3
    persistent: bool = True


LINEAR_GELU = Tiles()
ADD_LINEAR = Tiles(columns=128, stages=4)
ROTATED = Tiles(columns=128, persistent=False)


def linear_gelu(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The exact GELU of a product: [T, rows of the weight]."""
    result = torch.empty((len(x), len(weight)), dtype=x.dtype, device=x.device)
    _launch(x, weight, bias, result, 1.0, "gelu", LINEAR_GELU)
    return result


def add_linear(stream: Tensor, y: Tensor, weight: Tensor, bias: Tensor | None, scale: float = 1.0) -> None:
    """Add scale * (y weight^T + bias) to the residual stream [T, width], in place."""
    _launch(y, weight, bias, stream, scale, "add", ADD_LINEAR)


def _launch(x: Tensor, weight: Tensor, bias: Tensor | None, result: Tensor, scale: float, end: str, tiles: Tiles):
    rows, columns, inner = len(x), len(weight), x.shape[1]
    count = triton.cdiv(rows, tiles.rows) * triton.cdiv(columns, tiles.columns)
    programs = min(count, _multiprocessors(x.device)) if tiles.persistent else count
    _product[(programs,)](
        TensorDescriptor.from_tensor(x, [tiles.rows, tiles.inner]),
        TensorDescriptor.from_tensor(weight, [tiles.columns, tiles.inner]),
        weight if bias is None else bias,
        TensorDescriptor.from_tensor(result, [tiles.rows, tiles.columns // 2]),
        rows,
        columns,
        inner,
        scale,
        programs,
        ROWS=tiles.rows,
        COLUMNS=tiles.columns,
        INNER=tiles.inner,
        GROUP=tiles.group,
        BIAS=bias is not None,
        END=end,
        PERSISTENT=tiles.persistent,
        num_warps=tiles.warps,
        num_stages=tiles.stages,
    )


def rotated_linear(x: Tensor, weight: Tensor, bias: Tensor | None, heads: int, angles: Angles) -> Tensor:
    """Queries, keys and values [T, 3, heads, d] of the product, queries and keys turned as by :func:`.ops.rotate`."""
    rows, width = x.shape
    half = width // heads // 2
    if weight not in _arranged:
        order = _halves_apart(heads, half).to(weight.device)
        _arranged[weight] = weight[order], None if bias is None else bias[order]
    apart, bias = _arranged[weight]
    result = torch.empty((rows, 3, heads, 2 * half), dtype=x.dtype, device=x.device)
    side = ROTATED.columns // 2
    tiles = triton.cdiv(width, side) + triton.cdiv(width, 2 * side)
    _rotated[(triton.cdiv(rows, ROTATED.rows) * tiles,)](
        TensorDescriptor.from_tensor(x, [ROTATED.rows, ROTATED.inner]),
        TensorDescriptor.from_tensor(apart, [side, ROTATED.inner]),
        weight if bias is None else bias,
        *angles,
        result,
        rows,
        width,
        HALF=half,
        ROWS=ROTATED.rows,
        SIDE=side,
        INNER=ROTATED.inner,
        GROUP=ROTATED.group,
        BIAS=bias is not None,
        num_warps=ROTATED.warps,
        num_stages=ROTATED.stages,
    )
    return result


_arranged = WeakTensorKeyDictionary()  # weight and bias with the halves of all heads apart, by the weight


def _halves_apart(heads: int, half: int) -> Tensor:
    """Rows of a product for queries, keys and values: first halves of all heads' queries and keys, second, values."""
    rows = torch.arange(3 * heads * 2 * half).view(3, heads, 2, half)
    return torch.cat([rows[:2, :, 0].flatten(), rows[:2, :, 1].flatten(), rows[2].flatten()])


@cache
def _multiprocessors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 2


@triton.jit
def gelu_of(value):
    """X * Phi(x), within 3e-6 for every x, in fp32.

    Phi is taken as the logistic function of x * q(x^2); q, of degree 4, was fitted to the smallest largest error of
    the product from -8 to 8, and does not fall below 1.59 anywhere. The coefficients are for powers of 2.
    """
    square = value * value
    q = ((3.2290402577904424e-6 * square - 8.823898404990713e-5) * square - 3.602704942637027e-4) * square
    q = (q + 0.1052266821617731) * square + 2.302045391397588
    return value / (1.0 + tl.exp2(-value * q))


@triton.jit
def _place(tile, row_tiles, column_tiles, GROUP: tl.constexpr):  # noqa: N803
    """Row and column of a tile, GROUP rows at a time."""
    in_group = GROUP * column_tiles
    first = tile // in_group * GROUP
    size = tl.minimum(row_tiles - first, GROUP)
    return first + tile % in_group % size, tile % in_group // size


@triton.jit(do_not_specialize=["rows", "programs"])
def _product(
    x, weight, bias, result, rows, columns, inner, scale, programs,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, INNER: tl.constexpr, GROUP: tl.constexpr,  # noqa: N803
    BIAS: tl.constexpr, END: tl.constexpr, PERSISTENT: tl.constexpr,  # noqa: N803
):  # fmt: skip
    """One program every so many tiles: result = gelu(x weight^T + bias), or result += scale * (...)."""
    row_tiles, column_tiles = tl.cdiv(rows, ROWS), tl.cdiv(columns, COLUMNS)
    for tile in tl.range(tl.program_id(0), row_tiles * column_tiles, programs, flatten=PERSISTENT):
        row_tile, column_tile = _place(tile, row_tiles, column_tiles, GROUP)
        row, column = row_tile * ROWS, column_tile * COLUMNS
        total = tl.zeros((ROWS, COLUMNS), tl.float32)
        for k in range(0, inner, INNER):
            total = tl.dot(x.load([row, k]), weight.load([column, k]).T, total)
        place = column + tl.arange(0, COLUMNS)
        if BIAS:
            total += tl.load(bias + place, place < columns, 0.0).to(tl.float32)[None, :]
        # in halves, so that the tile of the result takes half as much shared memory
        left, right = tl.split(tl.permute(tl.reshape(total, (ROWS, 2, COLUMNS // 2)), (0, 2, 1)))
        beside = column + COLUMNS // 2
        if END == "gelu":
            left, right = gelu_of(left), gelu_of(right)
            result.store([row, column], left.to(result.dtype))
            result.store([row, beside], right.to(result.dtype))
        else:
            result.store([row, column], (result.load([row, column]).to(tl.float32) + scale * left).to(result.dtype))
            result.store([row, beside], (result.load([row, beside]).to(tl.float32) + scale * right).to(result.dtype))


@triton.jit(do_not_specialize=["rows"])
def _rotated(
    x, weight, bias, cosine, sine, result, rows, width,
    HALF: tl.constexpr, ROWS: tl.constexpr, SIDE: tl.constexpr, INNER: tl.constexpr, GROUP: tl.constexpr,  # noqa: N803
    BIAS: tl.constexpr,  # noqa: N803
):  # fmt: skip
    """One program a tile: SIDE first halves of heads and their second halves, turned; or 2 SIDE columns of values."""
    turned_tiles = tl.cdiv(width, SIDE)
    row_tile, column_tile = _place(
        tl.program_id(0), tl.cdiv(rows, ROWS), turned_tiles + tl.cdiv(width, 2 * SIDE), GROUP
    )
    turned = column_tile < turned_tiles
    value = 2 * width + (column_tile - turned_tiles) * 2 * SIDE
    first = tl.where(turned, column_tile * SIDE, value)
    second = tl.where(turned, width + column_tile * SIDE, value + SIDE)
    row = row_tile * ROWS
    one = tl.zeros((ROWS, SIDE), tl.float32)
    two = tl.zeros((ROWS, SIDE), tl.float32)
    for k in range(0, width, INNER):
        taken = x.load([row, k])
        one = tl.dot(taken, weight.load([first, k]).T, one)
        two = tl.dot(taken, weight.load([second, k]).T, two)
    step = tl.arange(0, SIDE)
    if BIAS:
        one += tl.load(bias + first + step, first + step < 3 * width, 0.0).to(tl.float32)[None, :]
        two += tl.load(bias + second + step, second + step < 3 * width, 0.0).to(tl.float32)[None, :]
    start = result + row.to(tl.int64) * 3 * width
    below = tl.arange(0, ROWS)[:, None]
    here = row + below < rows
    if turned:
        column = first + step
        inside = here & (column < width)[None, :]
        component = (column % HALF)[None, :]
        angle = row.to(tl.int64) * 2 * HALF + HALF
        at = below * 2 * HALF + component
        c, s = tl.load(cosine + angle + at, inside, 0.0), tl.load(sine + angle + at, inside, 0.0)
        at = below * 3 * width + (column // HALF * 2 * HALF)[None, :] + component
        tl.store(start + at, one * c - two * s, inside)
        tl.store(start + HALF + at, two * c + one * s, inside)
    else:
        at = below * 3 * width + first + step[None, :]
        tl.store(start + at, one, here & (first + step < 3 * width)[None, :])
        tl.store(start + SIDE + at, two, here & (second + step < 3 * width)[None, :])
