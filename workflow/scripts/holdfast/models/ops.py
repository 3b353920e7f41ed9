"""The operations of an encoder between its matrix products, in plain torch: exact in fp32, on any device.

:func:`choose_ops` gives the encoders either these functions or the faster ones of :mod:`.kernels`, which have the same
names. Results may take the place of the arguments.
"""

import logging
import subprocess
import sys
from types import ModuleType

import torch
import torch.nn.functional as F  # noqa: N812, torch's own abbreviation
from torch import Tensor

from .packing import Packing

PENALTY_ELEMENTS = 2**24  # of distance penalties held at once: 64 MiB in fp32

log = logging.getLogger("holdfast.ops")


def choose_ops(x: Tensor) -> ModuleType:
    """The module to use for tensors like ``x``: kernels for half precision on CUDA where Triton can build them."""
    if x.is_cuda and x.dtype == torch.float16:
        try:
            from . import kernels

            kernels.gelu(x.flatten()[:1].clone())
        except (ImportError, OSError, RuntimeError, subprocess.SubprocessError) as error:
            log.warning("Triton cannot build its kernels, plain torch is used, about a fifth slower: %s", error)
        else:
            return kernels
    return sys.modules[__name__]


def add_norm(x: Tensor, y: Tensor, weight: Tensor, bias: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """The sum x + y and its LayerNorm: [T, width] each."""
    total = x + y
    return total, F.layer_norm(total, weight.shape, weight, bias, epsilon)


def gelu(x: Tensor) -> Tensor:
    """The exact GELU."""
    return F.gelu(x)


def rotate(qkv: Tensor, cosine: Tensor, sine: Tensor) -> None:
    """Rotary positions (Su et al. 2021, arXiv:2104.09864), component i paired with i + half, in fp32 and in place.

    Args:
        qkv: Queries, keys and values [T, 3, heads, d]; queries and keys are turned.
        cosine: Of each token's angles, fp32 [T, d], both halves alike.
        sine: The same, its first half negative.
    """
    turned = qkv[:, :2]
    wide = turned.float()
    swapped = wide.roll(wide.shape[-1] // 2, -1)
    turned.copy_(wide.mul_(cosine[:, None, None]).addcmul_(swapped, sine[:, None, None]))


def attention(qkv: Tensor, packing: Packing, slopes: Tensor | None = None) -> Tensor:
    """Attention of every sequence to itself.

    Args:
        qkv: Queries, keys and values in the order of the packing [T, 3, heads, d].
        packing: Where the sequences stand.
        slopes: Of each head's distance penalties (ALiBi, both ways), fp32 [heads]; None without.

    Returns:
        [T, heads * d].
    """
    parts = []
    for group in packing.split(qkv):
        query, key, value = group.permute(2, 0, 3, 1, 4)
        if slopes is None:
            part = F.scaled_dot_product_attention(query, key, value)
        else:
            part = _penalised(query, key, value, slopes)
        parts.append(part.transpose(1, 2).flatten(0, 1).flatten(1))
    return torch.cat(parts)


def _penalised(query: Tensor, key: Tensor, value: Tensor, slopes: Tensor) -> Tensor:
    """Attention in blocks of queries, so that no sequence needs heads * tokens^2 penalties at once."""
    tokens = query.shape[2]
    place = torch.arange(tokens, device=query.device)
    parts = []
    for block in place.split(max(1, PENALTY_ELEMENTS // (len(slopes) * tokens))):
        penalty = -slopes[:, None, None] * (block[:, None] - place).abs()
        asked = query[:, :, block[0] : block[-1] + 1]
        parts.append(F.scaled_dot_product_attention(asked, key, value, attn_mask=penalty[None].to(query.dtype)))
    return torch.cat(parts, dim=2)
