"""The operations around the matrix products as Triton kernels, for half precision on CUDA.

The same functions as in :mod:`.ops`, with few passes over memory: the residual stream is added and normalised at once,
GELU is taken in the product before it, and attention turns the queries that it reads and takes packed sequences as they
come. All arithmetic is fp32, inputs and results are in half precision, but for the residual
stream, which is fp32. Triton compiles a kernel at its first
call, a second or two in all, and keeps it on disk under ``TRITON_CACHE_DIR``. Measurements: docs/kernels.md.
"""

# mypy: disable-error-code="import-not-found,no-untyped-def"

import subprocess

import torch
import torch.nn.functional as F  # noqa: N812, torch's own abbreviation
import triton
import triton.language as tl
from torch import Tensor
from triton.runtime.errors import TritonError

from . import products
from .attention import attention
from .ops import Angles, Norm, rms_norm
from .packing import Packing
from .products import gelu_of

__all__ = [
    "add_linear_norm",
    "add_norm",
    "add_rms_norm",
    "attention",
    "gated",
    "gelu",
    "linear_gelu",
    "norm_rotate",
    "rms_norm",
    "rotary_attention",
    "rotate_keys",
]

FAILURES = (TritonError, AssertionError, RuntimeError, OSError, subprocess.SubprocessError)
"""Errors of a kernel that cannot be built or run; Triton asserts what it asks of operands."""
GELU_ELEMENTS = 2048


def linear_gelu(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """As :func:`.ops.linear_gelu`; by one kernel on the cards where that was measured to pay."""
    if products.pays_on(x.device):
        return products.linear_gelu(x, weight, bias)
    return gelu(F.linear(x, weight, bias))


def rotary_attention(
    x: Tensor, weight: Tensor, bias: Tensor | None, heads: int, packing: Packing, angles: Angles
) -> Tensor:
    """As :func:`.ops.rotary_attention`: keys are turned by a pass, queries in attention, where each is read once."""
    qkv = F.linear(x, weight, bias).view(len(x), 3, heads, -1)
    rotate_keys(qkv, angles)
    return attention(qkv, packing, angles=angles)


def add_linear_norm(
    x: Tensor, y: Tensor, weight: Tensor, bias: Tensor | None, norm: Norm, scale: float = 1.0, after: bool = False
) -> tuple[Tensor, Tensor]:
    """As :func:`.ops.add_linear_norm`; the stream replaces ``x``.

    The bias is added with the branch, in fp32: half precision would lose what is small beside a large one.
    """
    return x, _add_and_norm(x, F.linear(y, weight), bias, norm, scale, after=after)


def add_norm(x: Tensor, y: Tensor, norm: Norm, scale: float = 1.0, after: bool = False) -> tuple[Tensor, Tensor]:
    """As :func:`.ops.add_norm`; the stream replaces ``x``."""
    return x, _add_and_norm(x, y, None, norm, scale, after=after)


def add_rms_norm(x: Tensor, y: Tensor, weight: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """As :func:`.ops.add_rms_norm`; the sum replaces ``x``."""
    return x, _add_and_norm(x, y, None, Norm(weight, None, epsilon), centred=False)


def _add_and_norm(
    x: Tensor,
    y: Tensor,
    bias: Tensor | None,
    norm: Norm,
    scale: float = 1.0,
    centred: bool = True,
    after: bool = False,
) -> Tensor:
    """The norm of x + scale * (y + bias); the sum, or ``after`` it the norm, replaces ``x``."""
    normed = torch.empty(x.shape, dtype=norm.weight.dtype, device=x.device)
    rows, width = x.shape
    block = triton.next_power_of_2(width)
    _add_norm[(rows,)](
        x,
        y,
        x if bias is None else bias,
        normed,
        norm.weight,
        norm.weight if norm.bias is None else norm.bias,
        norm.epsilon,
        scale,
        WIDTH=width,
        BLOCK=block,
        BIASED=bias is not None,
        CENTRED=centred,
        SHIFTED=norm.bias is not None,
        AFTER=after,
        num_warps=min(8, max(1, block // 512)),
    )
    return normed


def gated(x: Tensor, activation: str) -> Tensor:
    """As :func:`.ops.gated`."""
    rows, double = x.shape
    result = torch.empty((rows, double // 2), dtype=x.dtype, device=x.device)
    blocks = triton.cdiv(double // 2, GELU_ELEMENTS)
    _gated[(rows, blocks)](x, result, double // 2, ACTIVATION=activation, BLOCK=GELU_ELEMENTS)
    return result


def gelu(x: Tensor) -> Tensor:
    """As :func:`.ops.gelu`; the result replaces ``x``."""
    _gelu[(triton.cdiv(x.numel(), GELU_ELEMENTS),)](x, x.numel(), GELU_ELEMENTS)
    return x


def norm_rotate(qkv: Tensor, query: Tensor, key: Tensor, epsilon: float, angles: Angles) -> None:
    """As :func:`.ops.norm_rotate`, in one pass."""
    rows, _, heads, head_width = qkv.shape
    padded = triton.next_power_of_2(heads), triton.next_power_of_2(head_width // 2)
    _norm_rotate[(rows, 2)](qkv, query, key, *angles, epsilon, heads, head_width, *padded)


def rotate_keys(qkv: Tensor, angles: Angles) -> None:
    """What :func:`.ops.rotate` does, to keys only."""
    rows, _, heads, head_width = qkv.shape
    padded = triton.next_power_of_2(heads), triton.next_power_of_2(head_width // 2)
    _rotate_keys[(rows,)](qkv, *angles, heads, head_width, *padded)


@triton.jit
def _add_norm(
    x, y, bias, normed, weight, shift, epsilon, scale,
    WIDTH: tl.constexpr, BLOCK: tl.constexpr, BIASED: tl.constexpr, CENTRED: tl.constexpr,  # noqa: N803
    SHIFTED: tl.constexpr, AFTER: tl.constexpr,  # noqa: N803
):  # fmt: skip
    """One program a row: x += scale * (y + bias); normed = LayerNorm, not CENTRED RMSNorm, of x; AFTER: x = normed."""
    column = tl.max_contiguous(tl.arange(0, BLOCK), 4)  # a thread takes as many numbers of fp32 as of half precision
    inside = column < WIDTH
    at = tl.program_id(0).to(tl.int64) * WIDTH + column
    total = tl.load(x + at, inside, 0.0).to(tl.float32)
    branch = tl.load(y + at, inside, 0.0).to(tl.float32)
    if BIASED:
        branch += tl.load(bias + column, inside, 0.0).to(tl.float32)
    total += scale * branch
    if not AFTER:
        tl.store(x + at, total, inside)
    if CENTRED:
        total = tl.where(inside, total - tl.sum(total) / WIDTH, 0.0)
    spread = tl.rsqrt(tl.sum(total * total) / WIDTH + epsilon)
    result = total * spread * tl.load(weight + column, inside, 0.0).to(tl.float32)
    if SHIFTED:
        result += tl.load(shift + column, inside, 0.0).to(tl.float32)
    if AFTER:
        tl.store(x + at, result, inside)
    tl.store(normed + at, result, inside)


@triton.jit
def _norm_rotate(
    qkv, query, key, cosine, sine, epsilon, heads,
    WIDTH: tl.constexpr, HEADS: tl.constexpr, HALF: tl.constexpr,  # noqa: N803
):  # fmt: skip
    """One program a row of queries, or of keys: LayerNorm over all heads, then both halves of each head are turned."""
    row, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    head, column = tl.arange(0, HEADS)[:, None], tl.arange(0, HALF)[None, :]
    half = WIDTH // 2
    inside = (head < heads) & (column < half)
    place = head * WIDTH + column
    at = qkv + (row * 3 + part) * heads * WIDTH + place
    first, second = tl.load(at, inside, 0.0).to(tl.float32), tl.load(at + half, inside, 0.0).to(tl.float32)
    mean = (tl.sum(first) + tl.sum(second)) / (heads * WIDTH)
    first, second = tl.where(inside, first - mean, 0.0), tl.where(inside, second - mean, 0.0)
    spread = tl.rsqrt((tl.sum(first * first) + tl.sum(second * second)) / (heads * WIDTH) + epsilon)
    gain = tl.where(part == 0, query, key) + place
    first *= spread * tl.load(gain, inside, 0.0).to(tl.float32)
    second *= spread * tl.load(gain + half, inside, 0.0).to(tl.float32)
    angle = row * WIDTH + half + column
    c, s = tl.load(cosine + angle, column < half, 0.0), tl.load(sine + angle, column < half, 0.0)
    tl.store(at, first * c - second * s, inside)
    tl.store(at + half, second * c + first * s, inside)


@triton.jit
def _gated(x, result, width, ACTIVATION: tl.constexpr, BLOCK: tl.constexpr):  # noqa: N803
    """One program a block of a row: act(gate) * value."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < width
    gate = tl.load(x + row * 2 * width + column, inside, 0.0).to(tl.float32)
    value = tl.load(x + row * 2 * width + width + column, inside, 0.0).to(tl.float32)
    if ACTIVATION == "silu":
        gate = gate * tl.sigmoid(gate)
    elif ACTIVATION == "gelu":
        gate = gelu_of(gate)
    else:  # gelu_tanh, as the logistic function of twice its argument
        gate = gate * tl.sigmoid(1.5957691216057308 * (gate + 0.044715 * gate * gate * gate))
    tl.store(result + row * width + column, gate * value, inside)


@triton.jit
def _gelu(x, count, BLOCK: tl.constexpr):  # noqa: N803
    """One program a block, in place."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    tl.store(x + at, gelu_of(tl.load(x + at, at < count).to(tl.float32)), at < count)


@triton.jit
def _rotate_keys(
    qkv, cosine, sine, heads,
    WIDTH: tl.constexpr, HEADS: tl.constexpr, HALF: tl.constexpr,  # noqa: N803
):  # fmt: skip
    """One program a row."""
    row = tl.program_id(0).to(tl.int64)
    head, column = tl.arange(0, HEADS)[:, None], tl.arange(0, HALF)[None, :]
    half = WIDTH // 2
    inside = (head < heads) & (column < half)
    at = qkv + (row * 3 + 1) * heads * WIDTH + head * WIDTH + column
    first, second = tl.load(at, inside, 0.0).to(tl.float32), tl.load(at + half, inside, 0.0).to(tl.float32)
    angle = row * WIDTH + half + column
    c, s = tl.load(cosine + angle, column < half, 0.0), tl.load(sine + angle, column < half, 0.0)
    tl.store(at, first * c - second * s, inside)
    tl.store(at + half, second * c + first * s, inside)
