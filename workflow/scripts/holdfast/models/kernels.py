"""The operations between the matrix products as Triton kernels, for half precision on CUDA.

The same functions as in :mod:`.ops`, each one pass over memory: the residual stream is added and normalised at once,
rotation and GELU work in place, and attention takes packed sequences as they come. All arithmetic is fp32, inputs and
results are in half precision, but for a residual stream that is kept in fp32. Triton compiles a kernel at its first
call, a second or two in all, and keeps it on disk under ``TRITON_CACHE_DIR``. Measurements: docs/performance.md.
"""

# mypy: disable-error-code="import-not-found,no-untyped-def"

import torch
import triton
import triton.language as tl
from torch import Tensor

from .ops import rms_norm
from .packing import Packing

__all__ = ["add_norm", "add_rms_norm", "attention", "gated", "gelu", "norm_heads", "rms_norm", "rotate"]

QUERIES, KEYS, WARPS, STAGES = 64, 64, 4, 3  # of an attention tile: the fastest of 54 on an H200 at 168 tokens
GELU_ELEMENTS = 2048
LOG2_E = tl.constexpr(1.4426950408889634)


def add_norm(
    x: Tensor, y: Tensor, weight: Tensor, bias: Tensor | None, epsilon: float, scale: float = 1.0
) -> tuple[Tensor, Tensor]:
    """As :func:`.ops.add_norm`; the sum replaces ``x``."""
    return x, _add_and_norm(x, y, weight, bias, epsilon, scale, centred=True)


def add_rms_norm(x: Tensor, y: Tensor, weight: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """As :func:`.ops.add_rms_norm`; the sum replaces ``x``."""
    return x, _add_and_norm(x, y, weight, None, epsilon, 1.0, centred=False)


def _add_and_norm(
    x: Tensor, y: Tensor, weight: Tensor, bias: Tensor | None, epsilon: float, scale: float, centred: bool
) -> Tensor:
    normed = torch.empty(x.shape, dtype=weight.dtype, device=x.device)
    rows, width = x.shape
    block = triton.next_power_of_2(width)
    _add_norm[(rows,)](
        x,
        y,
        normed,
        weight,
        weight if bias is None else bias,
        epsilon,
        scale,
        WIDTH=width,
        BLOCK=block,
        CENTRED=centred,
        BIAS=bias is not None,
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


def norm_heads(qkv: Tensor, query: Tensor, key: Tensor, epsilon: float) -> None:
    """As :func:`.ops.norm_heads`."""
    rows, _, heads, head_width = qkv.shape
    width = heads * head_width
    block = triton.next_power_of_2(width)
    _norm_heads[(rows, 2)](qkv, query, key, epsilon, WIDTH=width, BLOCK=block, num_warps=min(8, max(1, block // 512)))


def gelu(x: Tensor) -> Tensor:
    """As :func:`.ops.gelu`; the result replaces ``x``."""
    _gelu[(triton.cdiv(x.numel(), GELU_ELEMENTS),)](x, x.numel(), GELU_ELEMENTS)
    return x


def rotate(qkv: Tensor, cosine: Tensor, sine: Tensor) -> None:
    """As :func:`.ops.rotate`."""
    rows, _, heads, head_width = qkv.shape
    padded = triton.next_power_of_2(2 * heads), triton.next_power_of_2(head_width // 2)
    _rotate[(rows,)](qkv, cosine, sine, 2 * heads, head_width, *padded)


def attention(
    qkv: Tensor,
    packing: Packing,
    slopes: Tensor | None = None,
    table: Tensor | None = None,
    scale: float | None = None,
) -> Tensor:
    """As :func:`.ops.attention`."""
    rows, _, heads, head_width = qkv.shape
    result = torch.empty((rows, heads * head_width), dtype=qkv.dtype, device=qkv.device)
    blocks = triton.cdiv(packing.longest_tokens, QUERIES)
    _attention[(packing.sequences * heads * blocks,)](
        qkv,
        result,
        packing.bounds,
        qkv if slopes is None else slopes,
        qkv if table is None else table,
        heads,
        blocks,
        head_width**-0.5 if scale is None else scale,
        HEAD=head_width,
        PADDED=max(16, triton.next_power_of_2(head_width)),
        PENALTY=slopes is not None,
        REACH=0 if table is None else table.shape[1] // 2,
        QUERIES=QUERIES,
        KEYS=KEYS,
        num_warps=WARPS,
        num_stages=STAGES,
    )
    return result


@triton.jit
def _add_norm(
    x, y, normed, weight, bias, epsilon, scale,
    WIDTH: tl.constexpr, BLOCK: tl.constexpr, CENTRED: tl.constexpr, BIAS: tl.constexpr,  # noqa: N803
):  # fmt: skip
    """One program a row: x += scale * y; normed = LayerNorm(x), or RMSNorm(x) where it is not centred."""
    column = tl.arange(0, BLOCK)
    inside = column < WIDTH
    at = tl.program_id(0).to(tl.int64) * WIDTH + column
    total = tl.load(x + at, inside, 0.0).to(tl.float32) + scale * tl.load(y + at, inside, 0.0).to(tl.float32)
    tl.store(x + at, total, inside)
    if CENTRED:
        total = tl.where(inside, total - tl.sum(total) / WIDTH, 0.0)
    spread = tl.rsqrt(tl.sum(total * total) / WIDTH + epsilon)
    result = total * spread * tl.load(weight + column, inside, 0.0).to(tl.float32)
    if BIAS:
        result += tl.load(bias + column, inside, 0.0).to(tl.float32)
    tl.store(normed + at, result, inside)


@triton.jit
def _norm_heads(qkv, query, key, epsilon, WIDTH: tl.constexpr, BLOCK: tl.constexpr):  # noqa: N803
    """One program a row of queries, or of keys: LayerNorm without bias, in place."""
    column = tl.arange(0, BLOCK)
    inside = column < WIDTH
    part = tl.program_id(1)
    at = qkv + (tl.program_id(0).to(tl.int64) * 3 + part) * WIDTH + column
    value = tl.load(at, inside, 0.0).to(tl.float32)
    value = tl.where(inside, value - tl.sum(value) / WIDTH, 0.0)
    spread = tl.rsqrt(tl.sum(value * value) / WIDTH + epsilon)
    gain = tl.load(tl.where(part == 0, query, key) + column, inside, 0.0).to(tl.float32)
    tl.store(at, value * spread * gain, inside)


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
        gate = _gelu_of(gate)
    else:  # gelu_tanh, as the logistic function of twice its argument
        gate = gate * tl.sigmoid(1.5957691216057308 * (gate + 0.044715 * gate * gate * gate))
    tl.store(result + row * width + column, gate * value, inside)


@triton.jit
def _gelu_of(value):
    """X * Phi(x), erf within 1.5e-7 (Abramowitz & Stegun 1964, 7.1.26)."""
    z = tl.abs(value) * 0.7071067811865476
    t = 1 / (1 + 0.3275911 * z)
    series = ((((1.061405429 * t - 1.453152027) * t + 1.421413741) * t - 0.284496736) * t + 0.254829592) * t
    tail = 0.5 * series * tl.exp(-z * z)
    return value * tl.where(value < 0, tail, 1 - tail)


@triton.jit
def _gelu(x, count, BLOCK: tl.constexpr):  # noqa: N803
    """One program a block, in place."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    tl.store(x + at, _gelu_of(tl.load(x + at, at < count).to(tl.float32)), at < count)


@triton.jit
def _rotate(qkv, cosine, sine, heads, WIDTH: tl.constexpr, HEADS: tl.constexpr, HALF: tl.constexpr):  # noqa: N803
    """One program a row: turns the queries and keys of all heads."""
    row = tl.program_id(0).to(tl.int64)
    head, column = tl.arange(0, HEADS)[:, None], tl.arange(0, HALF)[None, :]
    half = WIDTH // 2
    inside = (head < heads) & (column < half)
    at = qkv + row * (heads // 2 * 3 * WIDTH) + head * WIDTH + column
    first, second = tl.load(at, inside, 0.0).to(tl.float32), tl.load(at + half, inside, 0.0).to(tl.float32)
    angle = row * WIDTH + half + column
    c, s = tl.load(cosine + angle, column < half, 0.0), tl.load(sine + angle, column < half, 0.0)
    tl.store(at, first * c - second * s, inside)
    tl.store(at + half, second * c + first * s, inside)


@triton.jit
def _attention(
    qkv, result, bounds, slopes, table, heads, blocks, scale,
    HEAD: tl.constexpr, PADDED: tl.constexpr, PENALTY: tl.constexpr, REACH: tl.constexpr,  # noqa: N803
    QUERIES: tl.constexpr, KEYS: tl.constexpr,  # noqa: N803
):  # fmt: skip
    """One program a sequence, head and tile of queries; the softmax is updated from tile to tile of keys."""
    program = tl.program_id(0)
    block, head, sequence = program % blocks, program // blocks % heads, program // (blocks * heads)
    begin, end = tl.load(bounds + sequence), tl.load(bounds + sequence + 1)
    length = end - begin
    if block * QUERIES >= length:
        return
    stride = 3 * heads * HEAD
    column = tl.arange(0, PADDED)[None, :]
    base = qkv + begin.to(tl.int64) * stride + head * HEAD + column
    place = block * QUERIES + tl.arange(0, QUERIES)[:, None]
    asked = (place < length) & (column < HEAD)
    query = tl.load(base + place * stride, asked, 0.0)
    largest = tl.full((QUERIES,), float("-inf"), tl.float32)
    weight = tl.zeros((QUERIES,), tl.float32)
    total = tl.zeros((QUERIES, PADDED), tl.float32)
    slope = tl.load(slopes + head) * LOG2_E if PENALTY else 0.0
    for start in range(0, length, KEYS):
        other = start + tl.arange(0, KEYS)
        present = (other[:, None] < length) & (column < HEAD)
        key = tl.load(base + heads * HEAD + other[:, None] * stride, present, 0.0)
        score = tl.dot(query, tl.trans(key)) * (scale * LOG2_E)
        if PENALTY:
            score -= slope * tl.abs(place - other[None, :])
        if REACH:
            distance = tl.minimum(tl.maximum(other[None, :] - place, -REACH), REACH)
            score += tl.load(table + head * (2 * REACH + 1) + distance + REACH) * LOG2_E
        score = tl.where(other[None, :] < length, score, float("-inf"))
        risen = tl.maximum(largest, tl.max(score, 1))
        share = tl.exp2(score - risen[:, None])
        shrink = tl.exp2(largest - risen)
        weight = weight * shrink + tl.sum(share, 1)
        value = tl.load(base + 2 * heads * HEAD + other[:, None] * stride, present, 0.0)
        total = tl.dot(share.to(value.dtype), value, total * shrink[:, None])
        largest = risen
    at = result + (begin.to(tl.int64) + place) * heads * HEAD + head * HEAD + column
    tl.store(at, total / weight[:, None], asked)
