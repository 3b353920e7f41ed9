"""The operations between the matrix products as Triton kernels, for half precision on CUDA.

The same functions as in :mod:`.ops`, each one pass over memory: the residual stream is added and normalised at once,
rotation and GELU work in place, and attention takes packed sequences as they come. All arithmetic is fp32, inputs and
results are fp16. Triton compiles a kernel at its first call, a second or two in all, and keeps it on disk under
``TRITON_CACHE_DIR``. Measurements: docs/performance.md.
"""

# mypy: disable-error-code="import-not-found,no-untyped-def"

import torch
import triton
import triton.language as tl
from torch import Tensor

from .packing import Packing

QUERIES, KEYS, WARPS, STAGES = 64, 64, 4, 3  # of an attention tile: the fastest of 54 on an H200 at 168 tokens
GELU_ELEMENTS = 2048
LOG2_E = tl.constexpr(1.4426950408889634)


def add_norm(x: Tensor, y: Tensor, weight: Tensor, bias: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """As :func:`.ops.add_norm`; the sum replaces ``x``."""
    normed = torch.empty_like(x)
    rows, width = x.shape
    block = triton.next_power_of_2(width)
    _add_norm[(rows,)](x, y, normed, weight, bias, epsilon, width, block, num_warps=min(8, max(1, block // 512)))
    return x, normed


def gelu(x: Tensor) -> Tensor:
    """As :func:`.ops.gelu`; the result replaces ``x``."""
    _gelu[(triton.cdiv(x.numel(), GELU_ELEMENTS),)](x, x.numel(), GELU_ELEMENTS)
    return x


def rotate(qkv: Tensor, cosine: Tensor, sine: Tensor) -> None:
    """As :func:`.ops.rotate`."""
    rows, _, heads, head_width = qkv.shape
    padded = triton.next_power_of_2(2 * heads), triton.next_power_of_2(head_width // 2)
    _rotate[(rows,)](qkv, cosine, sine, 2 * heads, head_width, *padded)


def attention(qkv: Tensor, packing: Packing, slopes: Tensor | None = None) -> Tensor:
    """As :func:`.ops.attention`."""
    rows, _, heads, head_width = qkv.shape
    result = torch.empty((rows, heads * head_width), dtype=qkv.dtype, device=qkv.device)
    blocks = triton.cdiv(packing.longest_tokens, QUERIES)
    _attention[(packing.sequences * heads * blocks,)](
        qkv,
        result,
        packing.bounds,
        qkv if slopes is None else slopes,
        heads,
        blocks,
        head_width**-0.5,
        HEAD=head_width,
        PADDED=max(16, triton.next_power_of_2(head_width)),
        PENALTY=slopes is not None,
        QUERIES=QUERIES,
        KEYS=KEYS,
        num_warps=WARPS,
        num_stages=STAGES,
    )
    return result


@triton.jit
def _add_norm(x, y, normed, weight, bias, epsilon, WIDTH: tl.constexpr, BLOCK: tl.constexpr):  # noqa: N803
    """One program a row: x += y, normed = LayerNorm(x)."""
    column = tl.arange(0, BLOCK)
    inside = column < WIDTH
    at = tl.program_id(0).to(tl.int64) * WIDTH + column
    total = tl.load(x + at, inside, 0.0).to(tl.float32) + tl.load(y + at, inside, 0.0).to(tl.float32)
    tl.store(x + at, total, inside)
    centred = tl.where(inside, total - tl.sum(total) / WIDTH, 0.0)
    scale = tl.rsqrt(tl.sum(centred * centred) / WIDTH + epsilon)
    gain = tl.load(weight + column, inside, 0.0).to(tl.float32)
    shift = tl.load(bias + column, inside, 0.0).to(tl.float32)
    tl.store(normed + at, centred * scale * gain + shift, inside)


@triton.jit
def _gelu(x, count, BLOCK: tl.constexpr):  # noqa: N803
    """One program a block: x = x * Phi(x), erf within 1.5e-7 (Abramowitz & Stegun 1964, 7.1.26)."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    value = tl.load(x + at, at < count).to(tl.float32)
    z = tl.abs(value) * 0.7071067811865476
    t = 1 / (1 + 0.3275911 * z)
    series = ((((1.061405429 * t - 1.453152027) * t + 1.421413741) * t - 0.284496736) * t + 0.254829592) * t
    tail = 0.5 * series * tl.exp(-z * z)
    tl.store(x + at, value * tl.where(value < 0, tail, 1 - tail), at < count)


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
    qkv, result, bounds, slopes, heads, blocks, scale,
    HEAD: tl.constexpr, PADDED: tl.constexpr, PENALTY: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr,  # noqa: N803
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
