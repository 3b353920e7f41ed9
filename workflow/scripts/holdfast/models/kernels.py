"""The operations around the matrix products as Triton kernels, for half precision on CUDA.

The same functions as in :mod:`.ops`, each one pass over memory: the residual stream is added and normalised at once,
rotation and GELU work in place, and attention takes packed sequences as they come. All arithmetic is fp32, inputs and
results are in half precision, but for the residual stream, which is fp32. Triton compiles a kernel at its first
call, a second or two in all, and keeps it on disk under ``TRITON_CACHE_DIR``. Measurements: docs/performance.md.
"""

# mypy: disable-error-code="import-not-found,no-untyped-def"

import subprocess
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812, torch's own abbreviation
import triton
import triton.language as tl
from torch import Tensor
from triton.runtime.errors import TritonError

from . import products
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
    "rotate",
]

FAILURES = (TritonError, RuntimeError, OSError, subprocess.SubprocessError)  # of a kernel that cannot be built or run
GELU_ELEMENTS = 2048
LOG2_E = tl.constexpr(1.4426950408889634)


@dataclass
class AttentionTiles:
    """How the work of attention is cut: queries and keys of a tile, warps of a program, tiles of keys under way."""

    queries: int = 64
    keys: int = 64
    warps: int = 4
    stages: int = 3


ATTENTION = AttentionTiles()  # the fastest of 54 on an H200 at 168 tokens


def linear_gelu(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """As :func:`.ops.linear_gelu`."""
    return LINEAR_GELU[chosen["gelu"]](x, weight, bias)


def _linear_then_gelu(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return gelu(F.linear(x, weight, bias))


def _linear_gelu_of_cublas(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """GELU in the epilogue of cuBLASLt, in its tanh form: off by up to 4.7e-4."""
    bias = weight.new_zeros(len(weight)) if bias is None else bias
    return torch._addmm_activation(bias, x, weight.t(), use_gelu=True)


def rotary_attention(
    x: Tensor, weight: Tensor, bias: Tensor | None, heads: int, packing: Packing, angles: Angles
) -> Tensor:
    """As :func:`.ops.rotary_attention`."""
    return ROTARY_ATTENTION[chosen["rotation"]](x, weight, bias, heads, packing, angles)


def _rotate_by_pass(
    x: Tensor, weight: Tensor, bias: Tensor | None, heads: int, packing: Packing, angles: Angles
) -> Tensor:
    qkv = F.linear(x, weight, bias).view(len(x), 3, heads, -1)
    rotate(qkv, angles)
    return attention(qkv, packing)


def _rotate_keys_by_pass(
    x: Tensor, weight: Tensor, bias: Tensor | None, heads: int, packing: Packing, angles: Angles
) -> Tensor:
    """Keys are turned by a pass, queries inside attention, where each is read once."""
    qkv = F.linear(x, weight, bias).view(len(x), 3, heads, -1)
    _rotate_heads(qkv, angles, heads, heads)
    return _attend(qkv, packing, angles=angles)


def _rotate_in_product(
    x: Tensor, weight: Tensor, bias: Tensor | None, heads: int, packing: Packing, angles: Angles
) -> Tensor:
    return attention(products.rotated_linear(x, weight, bias, heads, angles), packing)


def add_linear_norm(
    x: Tensor, y: Tensor, weight: Tensor, bias: Tensor | None, norm: Norm, scale: float = 1.0, after: bool = False
) -> tuple[Tensor, Tensor]:
    """As :func:`.ops.add_linear_norm`; the stream replaces ``x``."""
    return ADD_LINEAR_NORM[chosen["residual"]](x, y, weight, bias, norm, scale, after)


def _linear_then_add_norm(
    x: Tensor, y: Tensor, weight: Tensor, bias: Tensor | None, norm: Norm, scale: float, after: bool
) -> tuple[Tensor, Tensor]:
    return add_norm(x, F.linear(y, weight, bias), norm, scale, after)


def _add_linear_then_norm(
    x: Tensor, y: Tensor, weight: Tensor, bias: Tensor | None, norm: Norm, scale: float, after: bool
) -> tuple[Tensor, Tensor]:
    products.add_linear(x, y, weight, bias, scale)
    return add_norm(x, None, norm, scale, after)


chosen = {"gelu": "pass", "rotation": "pass", "residual": "pass"}
LINEAR_GELU = {"pass": _linear_then_gelu, "cublas": _linear_gelu_of_cublas, "triton": products.linear_gelu}
ROTARY_ATTENTION = {"pass": _rotate_by_pass, "queries": _rotate_keys_by_pass, "triton": _rotate_in_product}
ADD_LINEAR_NORM = {"pass": _linear_then_add_norm, "triton": _add_linear_then_norm}


def add_norm(x: Tensor, y: Tensor | None, norm: Norm, scale: float = 1.0, after: bool = False) -> tuple[Tensor, Tensor]:
    """As :func:`.ops.add_norm`; the stream replaces ``x``. Without ``y`` it is only normed."""
    return x, _add_and_norm(x, y, norm, scale, centred=True, after=after)


def add_rms_norm(x: Tensor, y: Tensor, weight: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """As :func:`.ops.add_rms_norm`; the sum replaces ``x``."""
    return x, _add_and_norm(x, y, Norm(weight, None, epsilon), 1.0, centred=False, after=False)


def _add_and_norm(x: Tensor, y: Tensor | None, norm: Norm, scale: float, centred: bool, after: bool) -> Tensor:
    normed = torch.empty(x.shape, dtype=norm.weight.dtype, device=x.device)
    rows, width = x.shape
    block = triton.next_power_of_2(width)
    _add_norm[(rows,)](
        x,
        x if y is None else y,
        normed,
        norm.weight,
        norm.weight if norm.bias is None else norm.bias,
        norm.epsilon,
        scale,
        WIDTH=width,
        BLOCK=block,
        ADDED=y is not None,
        CENTRED=centred,
        BIAS=norm.bias is not None,
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


def rotate(qkv: Tensor, angles: Angles) -> None:
    """As :func:`.ops.rotate`."""
    _rotate_heads(qkv, angles, 0, 2 * qkv.shape[2])


def _rotate_heads(qkv: Tensor, angles: Angles, first: int, count: int) -> None:
    """Turn ``count`` heads of every row, from the head ``first`` on, those of the keys behind those of the queries."""
    rows, _, heads, head_width = qkv.shape
    padded = triton.next_power_of_2(count), triton.next_power_of_2(head_width // 2)
    _rotate[(rows,)](qkv, *angles, first, count, 3 * heads * head_width, head_width, *padded)


def attention(
    qkv: Tensor,
    packing: Packing,
    slopes: Tensor | None = None,
    table: Tensor | None = None,
    scale: float | None = None,
) -> Tensor:
    """As :func:`.ops.attention`."""
    return _attend(qkv, packing, slopes, table, scale)


def _attend(
    qkv: Tensor,
    packing: Packing,
    slopes: Tensor | None = None,
    table: Tensor | None = None,
    scale: float | None = None,
    angles: Angles | None = None,
) -> Tensor:
    """Attention, of queries that are still to be turned where there are ``angles``."""
    rows, _, heads, head_width = qkv.shape
    result = torch.empty((rows, heads * head_width), dtype=qkv.dtype, device=qkv.device)
    blocks = triton.cdiv(packing.longest_tokens, ATTENTION.queries)
    _attention[(packing.sequences * heads * blocks,)](
        qkv,
        result,
        packing.bounds,
        qkv if slopes is None else slopes,
        qkv if table is None else table,
        *((qkv, qkv) if angles is None else angles),
        heads,
        blocks,
        head_width**-0.5 if scale is None else scale,
        HEAD=head_width,
        PADDED=max(16, triton.next_power_of_2(head_width)),
        HALF=max(16, triton.next_power_of_2(head_width // 2)),
        PENALTY=slopes is not None,
        REACH=0 if table is None else table.shape[1] // 2,
        TURNED=angles is not None,
        QUERIES=ATTENTION.queries,
        KEYS=ATTENTION.keys,
        num_warps=ATTENTION.warps,
        num_stages=ATTENTION.stages,
    )
    return result


@triton.jit
def _add_norm(
    x, y, normed, weight, bias, epsilon, scale,
    WIDTH: tl.constexpr, BLOCK: tl.constexpr, ADDED: tl.constexpr, CENTRED: tl.constexpr, BIAS: tl.constexpr,  # noqa: N803
    AFTER: tl.constexpr,  # noqa: N803
):  # fmt: skip
    """One program a row: x += scale * y; normed = its LayerNorm, or RMSNorm where not CENTRED; AFTER: x = normed."""
    column = tl.arange(0, BLOCK)
    inside = column < WIDTH
    at = tl.program_id(0).to(tl.int64) * WIDTH + column
    total = tl.load(x + at, inside, 0.0).to(tl.float32)
    if ADDED:
        total += scale * tl.load(y + at, inside, 0.0).to(tl.float32)
    if ADDED and not AFTER:
        tl.store(x + at, total, inside)
    if CENTRED:
        total = tl.where(inside, total - tl.sum(total) / WIDTH, 0.0)
    spread = tl.rsqrt(tl.sum(total * total) / WIDTH + epsilon)
    result = total * spread * tl.load(weight + column, inside, 0.0).to(tl.float32)
    if BIAS:
        result += tl.load(bias + column, inside, 0.0).to(tl.float32)
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
def _rotate(
    qkv, cosine, sine, skipped, heads, stride,
    WIDTH: tl.constexpr, HEADS: tl.constexpr, HALF: tl.constexpr,  # noqa: N803
):  # fmt: skip
    """One program a row: turns so many heads, behind those that are skipped."""
    row = tl.program_id(0).to(tl.int64)
    head, column = tl.arange(0, HEADS)[:, None], tl.arange(0, HALF)[None, :]
    half = WIDTH // 2
    inside = (head < heads) & (column < half)
    at = qkv + row * stride + (head + skipped) * WIDTH + column
    first, second = tl.load(at, inside, 0.0).to(tl.float32), tl.load(at + half, inside, 0.0).to(tl.float32)
    angle = row * WIDTH + half + column
    c, s = tl.load(cosine + angle, column < half, 0.0), tl.load(sine + angle, column < half, 0.0)
    tl.store(at, first * c - second * s, inside)
    tl.store(at + half, second * c + first * s, inside)


@triton.jit
def _attention(
    qkv, result, bounds, slopes, table, cosine, sine, heads, blocks, scale,
    HEAD: tl.constexpr, PADDED: tl.constexpr, HALF: tl.constexpr,  # noqa: N803
    PENALTY: tl.constexpr, REACH: tl.constexpr, TURNED: tl.constexpr,  # noqa: N803
    QUERIES: tl.constexpr, KEYS: tl.constexpr,  # noqa: N803
):  # fmt: skip
    """One program a sequence, head and tile of queries; the softmax is updated from tile to tile of keys.

    Scores stay as the product gives them, so that scaling is part of the exponent, unless there is a bias.
    """
    program = tl.program_id(0)
    block, head, sequence = program % blocks, program // blocks % heads, program // (blocks * heads)
    begin, end = tl.load(bounds + sequence), tl.load(bounds + sequence + 1)
    length = end - begin
    if block * QUERIES >= length:
        return
    stride = 3 * heads * HEAD
    column = tl.arange(0, PADDED)[None, :]
    base = qkv + begin.to(tl.int64) * stride + head * HEAD
    place = block * QUERIES + tl.arange(0, QUERIES)[:, None]
    asked = (place < length) & (column < HEAD)
    if TURNED:
        near = tl.arange(0, HALF)[None, :]
        within = (place < length) & (near < HEAD // 2)
        one = tl.load(base + place * stride + near, within, 0.0).to(tl.float32)
        two = tl.load(base + place * stride + HEAD // 2 + near, within, 0.0).to(tl.float32)
        angle = (begin.to(tl.int64) + place) * HEAD + HEAD // 2 + near
        c, s = tl.load(cosine + angle, within, 0.0), tl.load(sine + angle, within, 0.0)
        query_near = (one * c - two * s).to(qkv.dtype.element_ty)
        query_far = (two * c + one * s).to(qkv.dtype.element_ty)
    else:
        query = tl.load(base + place * stride + column, asked, 0.0)
    largest = tl.full((QUERIES,), float("-inf"), tl.float32)
    weight = tl.zeros((QUERIES,), tl.float32)
    total = tl.zeros((QUERIES, PADDED), tl.float32)
    slope = tl.load(slopes + head) * LOG2_E if PENALTY else 0.0
    factor = 1.0 if PENALTY or REACH else scale * LOG2_E
    for start in range(0, length, KEYS):
        other = start + tl.arange(0, KEYS)
        present = (other[:, None] < length) & (column < HEAD)
        row = base + heads * HEAD + other[:, None] * stride
        if TURNED:
            halved = (other[:, None] < length) & (near < HEAD // 2)
            score = tl.dot(query_near, tl.trans(tl.load(row + near, halved, 0.0)))
            score = tl.dot(query_far, tl.trans(tl.load(row + HEAD // 2 + near, halved, 0.0)), score)
        else:
            score = tl.dot(query, tl.trans(tl.load(row + column, present, 0.0)))
        if PENALTY or REACH:
            score *= scale * LOG2_E
        if PENALTY:
            score -= slope * tl.abs(place - other[None, :])
        if REACH:
            distance = tl.minimum(tl.maximum(other[None, :] - place, -REACH), REACH)
            score += tl.load(table + head * (2 * REACH + 1) + distance + REACH) * LOG2_E
        score = tl.where(other[None, :] < length, score, float("-inf"))
        risen = tl.maximum(largest, tl.max(score, 1))
        share = tl.exp2(score * factor - (risen * factor)[:, None])
        shrink = tl.exp2((largest - risen) * factor)
        weight = weight * shrink + tl.sum(share, 1)
        value = tl.load(row + heads * HEAD + column, present, 0.0)
        total = tl.dot(share.to(value.dtype), value, total * shrink[:, None])
        largest = risen
    at = result + (begin.to(tl.int64) + place) * heads * HEAD + head * HEAD + column
    tl.store(at, total / weight[:, None], asked)
