"""Attention as one Triton kernel, which takes packed sequences as they come and writes no scores."""

# mypy: disable-error-code="import-not-found,no-untyped-def"

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from .ops import Angles
from .packing import Packing

LOG2_E = tl.constexpr(1.4426950408889634)


@dataclass
class AttentionTiles:
    """How the work of attention is cut: queries and keys of a tile, warps of a program, tiles of keys under way."""

    queries: int = 64
    keys: int = 64
    warps: int = 4
    stages: int = 3


ATTENTION = AttentionTiles()  # the fastest of 54 on an H200 at 168 tokens
ATTENTION_OF_64 = AttentionTiles(keys=32)  # for heads of that width: on an H100 3% to 20% faster, others are slower


def attention(
    qkv: Tensor,
    packing: Packing,
    slopes: Tensor | None = None,
    table: Tensor | None = None,
    scale: float | None = None,
    angles: Angles | None = None,
) -> Tensor:
    """As :func:`.ops.attention`, of queries that are still to be turned where there are ``angles``."""
    rows, _, heads, head_width = qkv.shape
    result = torch.empty((rows, heads * head_width), dtype=qkv.dtype, device=qkv.device)
    tiles = ATTENTION_OF_64 if head_width == 64 else ATTENTION
    blocks = triton.cdiv(packing.longest_tokens, tiles.queries)
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
        QUERIES=tiles.queries,
        KEYS=tiles.keys,
        num_warps=tiles.warps,
        num_stages=tiles.stages,
    )
    return result


@triton.jit(do_not_specialize=["blocks"])
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
