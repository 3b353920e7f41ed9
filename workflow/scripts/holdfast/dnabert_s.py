"""DNABERT-S, a DNA encoder, on packed batches.

Data passes through as in :mod:`.packed`: token ids one behind the other, one state a token, no padding.

Architecture: Zhou et al. 2024, arXiv:2402.08777, on DNABERT-2's network (arXiv:2306.15006): a post-LN transformer
with ALiBi (Press et al. 2021, arXiv:2108.12409) made symmetric, a gated MLP with the exact GELU, and no position
embeddings.
"""

import math
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F  # noqa: N812, torch's own abbreviation
from torch import Tensor

from .packed import Architecture, Packing, Shapes, read_weights

TABLE_ELEMENTS = 2**24  # of distance penalties held at once: 64 MiB in fp32


def tensor_shapes(architecture: Architecture) -> Shapes:
    """Name and shape of every tensor of a prepared DNABERT-S of these sizes."""
    width, mlp_width = int(architecture["width"]), int(architecture["mlp_width"])
    shapes: Shapes = {
        "embed.weight": (int(architecture["vocabulary"]), width),
        "token_type.weight": (int(architecture["token_types"]), width),
        "embed_norm.weight": (width,),
        "embed_norm.bias": (width,),
    }
    for layer in range(int(architecture["layers"])):
        shapes[f"layers.{layer}.mlp_gated.weight"] = (2 * mlp_width, width)
        for name, rows, columns in (
            ("qkv", 3 * width, width),
            ("attention_output", width, width),
            ("mlp_out", width, mlp_width),
        ):
            shapes[f"layers.{layer}.{name}.weight"] = (rows, columns)
            shapes[f"layers.{layer}.{name}.bias"] = (rows,)
        for name in ("attention_norm", "mlp_norm"):
            shapes[f"layers.{layer}.{name}.weight"] = (width,)
            shapes[f"layers.{layer}.{name}.bias"] = (width,)
    return shapes


def load(directory: str | Path, device: str | torch.device = "cpu", precision: str = "auto") -> "DnabertS":
    """Map a prepared DNABERT-S onto a device.

    Args:
        directory: As written by ``weights.prepare``.
        device: ``cpu``, ``cuda`` or ``cuda:N``.
        precision: ``fp32`` (exact: TF32 is switched off), ``fp16``, or ``auto``: fp16 on CUDA, fp32 on the CPU.

    Raises:
        WeightsError: not a prepared DNABERT-S, or a damaged one.
    """
    return DnabertS(*read_weights(directory, "dnabert_s", tensor_shapes, device, precision))


class DnabertS:
    """DNABERT-S with its weights on one device.

    Attributes:
        width: Columns of a state and of an embedding.
        device: Where the weights are and results stay.
    """

    def __init__(self, weights: dict[str, Tensor], architecture: Architecture) -> None:
        self.width = int(architecture["width"])
        self.device = weights["embed.weight"].device
        self._weights = weights
        self._layers = int(architecture["layers"])
        self._epsilon = float(architecture["layer_norm_epsilon"])
        self._slopes = torch.tensor(alibi_slopes(int(architecture["heads"])), device=self.device)

    @torch.inference_mode()
    def encode(self, tokens: Tensor, lengths: Sequence[int]) -> Tensor:
        """States of the last layer.

        Args:
            tokens: integers [T], the sequences one behind the other, each with its [CLS] and [SEP].
            lengths: Tokens of each sequence; their sum is T.

        Returns:
            [T, width] on the device, in the precision of the weights.
        """
        packing = Packing(lengths, self.device)
        return packing.restore(self._states(tokens, packing))

    @torch.inference_mode()
    def embed(self, tokens: Tensor, lengths: Sequence[int]) -> Tensor:
        """Mean state over all tokens of each sequence, [CLS] and [SEP] included: float32 [sequences, width]."""
        packing = Packing(lengths, self.device)
        return packing.means(self._states(tokens, packing), slice(None))

    def _states(self, tokens: Tensor, packing: Packing) -> Tensor:
        """States in the order of the packing, [T, width]."""
        weights = self._weights
        longest_tokens = packing.groups[-1][2]
        attend = Alibi(self._slopes, longest_tokens, weights["embed.weight"].dtype)
        x = F.embedding(packing.arrange(tokens).long(), weights["embed.weight"]) + weights["token_type.weight"][0]
        x = self._norm(x, "embed_norm")
        for layer in range(self._layers):
            name = f"layers.{layer}."
            qkv = self._linear(x, name + "qkv").view(len(x), 3, len(self._slopes), -1)
            attended = self._linear(packing.attention(qkv, attend), name + "attention_output")
            x = self._norm(attended + x, name + "attention_norm")
            gate, value = F.linear(x, weights[name + "mlp_gated.weight"]).chunk(2, dim=-1)
            x = self._norm(self._linear(F.gelu(gate) * value, name + "mlp_out") + x, name + "mlp_norm")
        return x

    def _linear(self, x: Tensor, name: str) -> Tensor:
        return F.linear(x, self._weights[name + ".weight"], self._weights[name + ".bias"])

    def _norm(self, x: Tensor, name: str) -> Tensor:
        weight, bias = self._weights[name + ".weight"], self._weights[name + ".bias"]
        return F.layer_norm(x, (self.width,), weight, bias, self._epsilon)


def alibi_slopes(heads: int) -> list[float]:
    """Slope of each head's distance penalty, as ALiBi defines them (Press et al. 2021).

    For n heads, n a power of two, the geometric series from 2^(-8/n) with that ratio; for another number the series
    of the next smaller power of two, then every second slope of the next larger one.
    """
    base = 2 ** int(math.log2(heads))
    slopes = [2 ** (-8 * (head + 1) / base) for head in range(base)]
    return slopes + [2 ** (-4 * (2 * head + 1) / base) for head in range(heads - base)]


class Alibi:
    """Attention with distance penalties, as :meth:`.packed.Packing.attention` calls it; made once a batch.

    One table serves all lengths and all blocks of queries: ``table[h, r, m] = -slope[h] * |r + shift - m|`` depends
    on differences alone, so a block that starts at query i finds its penalties ``shift - i`` columns to the right.
    A sequence of thousands of tokens thus needs no heads * tokens^2 floats. Rows and columns are multiples of 8,
    which keeps every part aligned as the memory-efficient CUDA kernel wants it.
    """

    def __init__(self, slopes: Tensor, longest_tokens: int, dtype: torch.dtype) -> None:
        longest = math.ceil(longest_tokens / 8) * 8
        self._rows = min(longest, max(8, TABLE_ELEMENTS // (2 * len(slopes) * longest) // 8 * 8))
        self._shift = (longest - 1) // self._rows * self._rows
        query = torch.arange(self._rows, device=slopes.device)[:, None] + self._shift
        distance = (query - torch.arange(self._shift + longest, device=slopes.device)).abs()
        self._table = (-slopes[:, None, None] * distance).to(dtype)

    def __call__(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Attend in blocks of queries: [sequences, heads, tokens, d], three times -> the same shape."""
        tokens = query.shape[2]
        blocks = []
        for first in range(0, tokens, self._rows):
            block = query[:, :, first : first + self._rows]
            start = self._shift - first
            penalty = self._table[None, :, : block.shape[2], start : start + tokens]
            blocks.append(F.scaled_dot_product_attention(block, key, value, attn_mask=penalty))
        return torch.cat(blocks, dim=2)
