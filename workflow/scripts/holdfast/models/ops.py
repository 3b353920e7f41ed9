"""The operations of an encoder between its matrix products, in plain torch: exact in fp32, on any device.

:func:`choose_ops` gives the encoders either these functions or the faster ones of :mod:`.kernels`, which have the same
names. Results may take the place of the arguments.
"""

import logging
import sys
from collections.abc import Callable
from functools import cache
from types import ModuleType
from typing import NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812, torch's own abbreviation
from torch import Tensor

from .packing import Packing

LEAST_CAPABILITY = (8, 0)  # of a device for Triton, by its README; of older ones it makes no tensor core's products
BIAS_ELEMENTS = 2**24  # of biases of scores held at once: 64 MiB in fp32

log = logging.getLogger("holdfast.ops")


class Norm(NamedTuple):
    """A LayerNorm: weight and bias [width], of which the bias may be missing, and epsilon."""

    weight: Tensor
    bias: Tensor | None
    epsilon: float


class Angles(NamedTuple):
    """Of each token's rotation by its place, fp32 [T, head width] each, see :func:`rotate`.

    Attributes:
        cosine: Both halves alike.
        sine: The first half negative.
    """

    cosine: Tensor
    sine: Tensor


def choose_ops(x: Tensor) -> ModuleType:
    """The module to use for tensors like ``x``: kernels for half precision on CUDA where Triton can build them."""
    if x.is_cuda and x.dtype in (torch.float16, torch.bfloat16):
        capability = torch.cuda.get_device_capability(x.device)
        if capability < LEAST_CAPABILITY:
            say_plain(f"compute capability {capability[0]}.{capability[1]}, Triton needs {LEAST_CAPABILITY[0]}.0")
            return sys.modules[__name__]
        try:
            from . import kernels
        except (ImportError, OSError, RuntimeError) as error:
            say_plain(" ".join(str(error).split())[:200])
        else:
            return kernels
    return sys.modules[__name__]


@cache
def say_plain(reason: str) -> None:
    """Say, once in a process, that this device works without kernels."""
    log.warning("no Triton kernels on this device, plain torch is used, which is slower: %s", reason)


def linear_gelu(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The exact GELU of a product, [T, rows of the weight]."""
    return gelu(F.linear(x, weight, bias))


def add_linear_norm(
    x: Tensor, y: Tensor, weight: Tensor, bias: Tensor | None, norm: Norm, scale: float = 1.0, after: bool = False
) -> tuple[Tensor, Tensor]:
    """The residual stream with a branch that ends in a product, and what the next branch takes: [T, width] each.

    Args:
        x: The residual stream, fp32 whatever the precision of the products.
        y: What the branch's last product takes, [T, columns of the weight].
        weight: Of that product.
        bias: The same.
        norm: What follows.
        scale: What the branch is multiplied by.
        after: Whether the stream itself is normed, as in post-LN networks.

    Returns:
        The stream in its own dtype; its norm in that of the norm's weight.
    """
    if bias is None or y.dtype == x.dtype:
        return add_norm(x, F.linear(y, weight, bias), norm, scale, after)
    branch = F.linear(y, weight).to(x.dtype) + bias  # in half precision a large bias would round it
    return add_norm(x, branch, norm, scale, after)


def add_norm(x: Tensor, y: Tensor, norm: Norm, scale: float = 1.0, after: bool = False) -> tuple[Tensor, Tensor]:
    """As :func:`add_linear_norm`, of a branch ``y`` [T, width]."""
    total = x + y if scale == 1.0 else x + y * scale
    normed = layer_norm(total, norm)
    return normed if after else total, normed.to(norm.weight.dtype)


def layer_norm(x: Tensor, norm: Norm) -> Tensor:
    """LayerNorm in the dtype of ``x``."""
    weight, bias = norm.weight.to(x.dtype), None if norm.bias is None else norm.bias.to(x.dtype)
    return F.layer_norm(x, weight.shape, weight, bias, norm.epsilon)


def add_rms_norm(x: Tensor, y: Tensor, weight: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """The sum x + y in the dtype of ``x``, and its RMSNorm in that of ``weight``: [T, width] each.

    RMSNorm: Zhang & Sennrich 2019, arXiv:1910.07467; the mean of squares in fp32.
    """
    total = x + y
    return total, rms_norm(total, weight, epsilon)


def rms_norm(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """RMSNorm of ``x`` in the dtype of ``weight``, [T, width]."""
    wide = x.float()
    scaled = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + epsilon)
    return weight * scaled.to(weight.dtype)


def gelu(x: Tensor) -> Tensor:
    """The exact GELU."""
    return F.gelu(x)


def gated(x: Tensor, activation: str) -> Tensor:
    """A gated activation (Shazeer 2020, arXiv:2002.05202): act(gate) * value.

    Args:
        x: Gate and value beside each other, [T, 2 m].
        activation: ``silu``, ``gelu`` (exact) or ``gelu_tanh``.

    Returns:
        [T, m].
    """
    gate, value = x.chunk(2, dim=-1)
    functions: dict[str, Callable[[Tensor], Tensor]] = {"silu": F.silu, "gelu": F.gelu, "gelu_tanh": _gelu_tanh}
    return functions[activation](gate) * value


def _gelu_tanh(x: Tensor) -> Tensor:
    return F.gelu(x, approximate="tanh")


def norm_rotate(qkv: Tensor, query: Tensor, key: Tensor, epsilon: float, angles: Angles) -> None:
    """LayerNorm of the queries and of the keys, over all heads together, without bias; then :func:`rotate`. In place.

    Args:
        qkv: Queries, keys and values [T, 3, heads, d].
        query: Weight of the queries' norm [heads * d].
        key: Weight of the keys' norm [heads * d].
        epsilon: Of both.
        angles: Of each token.
    """
    for part, weight in enumerate((query, key)):
        flat = qkv[:, part].flatten(1)
        qkv[:, part] = F.layer_norm(flat, weight.shape, weight, None, epsilon).view_as(qkv[:, part])
    rotate(qkv, angles)


def rotate(qkv: Tensor, angles: Angles) -> None:
    """Rotary positions (Su et al. 2021, arXiv:2104.09864), component i paired with i + half, in fp32 and in place.

    Args:
        qkv: Queries, keys and values [T, 3, heads, d]; queries and keys are turned.
        angles: Of each token.
    """
    turned = qkv[:, :2]
    wide = turned.float()
    swapped = wide.roll(wide.shape[-1] // 2, -1)
    turned.copy_(wide.mul_(angles.cosine[:, None, None]).addcmul_(swapped, angles.sine[:, None, None]))


def rotary_attention(
    x: Tensor, weight: Tensor, bias: Tensor | None, heads: int, packing: Packing, angles: Angles
) -> Tensor:
    """The product that gives queries, keys and values, their rotation, and attention.

    Args:
        x: [T, width].
        weight: Of the product, the rows of queries, keys and values one below the other.
        bias: The same.
        heads: How many there are.
        packing: Where the sequences stand.
        angles: Of each token.

    Returns:
        [T, width].
    """
    qkv = F.linear(x, weight, bias).view(len(x), 3, heads, -1)
    rotate(qkv, angles)
    return attention(qkv, packing)


def attention(
    qkv: Tensor,
    packing: Packing,
    slopes: Tensor | None = None,
    table: Tensor | None = None,
    scale: float | None = None,
) -> Tensor:
    """Attention of every sequence to itself.

    Args:
        qkv: Queries, keys and values in the order of the packing [T, 3, heads, d].
        packing: Where the sequences stand.
        slopes: Of each head's distance penalties (ALiBi, both ways), fp32 [heads]; None without.
        table: What is added to a score by head and by the place of the key relative to the query, fp32
            [heads, 2 r + 1] for -r to r and, at either end, for all that lies farther; None without.
        scale: What a score is multiplied by before that; None for 1 / sqrt(d).

    Returns:
        [T, heads * d].
    """
    parts = []
    for group in packing.split(qkv):
        query, key, value = group.permute(2, 0, 3, 1, 4)
        if slopes is None and table is None:
            part = F.scaled_dot_product_attention(query, key, value, scale=scale)
        else:
            part = _biased(query, key, value, slopes, table, scale)
        parts.append(part.transpose(1, 2).flatten(0, 1).flatten(1))
    return torch.cat(parts)


def _biased(
    query: Tensor, key: Tensor, value: Tensor, slopes: Tensor | None, table: Tensor | None, scale: float | None
) -> Tensor:
    """Attention in blocks of queries, so that no sequence needs heads * tokens^2 biases at once."""
    heads, tokens = query.shape[1:3]
    place = torch.arange(tokens, device=query.device)
    parts = []
    for block in place.split(max(1, BIAS_ELEMENTS // (heads * tokens))):
        distance = place - block[:, None]
        if table is None:
            bias = -slopes[:, None, None] * distance.abs()  # type: ignore[index]
        else:
            reach = table.shape[1] // 2
            bias = table[:, distance.clamp(-reach, reach) + reach]
        asked = query[:, :, block[0] : block[-1] + 1]
        mask = bias[None].to(query.dtype)
        parts.append(F.scaled_dot_product_attention(asked, key, value, attn_mask=mask, scale=scale))
    return torch.cat(parts, dim=2)
