"""The MosaicBERT network of DNABERT-2 and DNABERT-S, DNA encoders, on packed batches, and what their files hold.

Architecture: DNABERT-2 (Zhou et al. 2023, arXiv:2306.15006) and DNABERT-S (arXiv:2402.08777): a post-LN transformer
with ALiBi (Press et al. 2021, arXiv:2108.12409) made symmetric, a gated MLP with the exact GELU, and no position
embeddings. Names in their files: zhihan1996/DNABERT-S.
"""

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..sequences import Alphabet
from .checkpoint import Checkpoint, Layout, stated_sizes
from .encoder import LARGEST, Architecture, Encoder, Shapes, check_sizes, layer_shapes
from .ops import layer_norm
from .packing import Packing
from .registry import TOKENIZER_FILE, Prepared

MAX_DNA_BP = 100_000
"""About 20,000 tokens: distance penalties know no limit, but attention over more takes minutes on a CPU."""


def check_architecture(content: object) -> Architecture:
    """Check the sizes of a model of this family; ValueError as :func:`.encoder.check_sizes`."""
    return check_sizes(content, LARGEST | {"token_types": 2**10})


def tensor_shapes(architecture: Architecture) -> Shapes:
    """Name and shape of every tensor of a prepared model of these sizes."""
    width, mlp_width = int(architecture["width"]), int(architecture["mlp_width"])
    shapes: Shapes = {
        "embed.weight": (int(architecture["vocabulary"]), width),
        "token_type.weight": (int(architecture["token_types"]), width),
        "embed_norm.weight": (width,),
        "embed_norm.bias": (width,),
    }
    for layer in range(int(architecture["layers"])):
        shapes[f"layers.{layer}.mlp_gated.weight"] = (2 * mlp_width, width)
        shapes |= layer_shapes(layer, width, {"mlp_out": (width, mlp_width)})
    return shapes


class MosaicBert(Encoder):
    """The encoder of this family; a mean is over all tokens, [CLS] and [SEP] included."""

    def __init__(self, weights: Mapping[str, Tensor], prepared: Prepared) -> None:
        super().__init__(weights, prepared)
        self._slopes = torch.tensor(alibi_slopes(self._heads), device=self.device)

    def _states(self, tokens: Tensor, packing: Packing, last: int) -> Iterator[Tensor]:
        weights = self._weights
        x = layer_norm(self._embedded(tokens) + weights["token_type.weight"][0], self._norm("embed_norm"))
        yield x
        normed = x.to(self._dtype)
        for layer in range(last):
            name = f"layers.{layer}."
            qkv = self._linear(normed, name + "qkv").view(len(x), 3, self._heads, -1)
            attended = self._ops.attention(qkv, packing, self._slopes)
            product, norm = name + "attention_output", name + "attention_norm"
            x, normed = self._add_linear_norm(x, attended, product, norm, after=True)
            hidden = self._ops.gated(self._linear(normed, name + "mlp_gated"), "gelu")
            x, normed = self._add_linear_norm(x, hidden, name + "mlp_out", name + "mlp_norm", after=True)
            yield x


def alibi_slopes(heads: int) -> list[float]:
    """Slope of each head's distance penalty, as ALiBi defines them (Press et al. 2021).

    For n heads, n a power of two, the geometric series from 2^(-8/n) with that ratio; for another number the series
    of the next smaller power of two, then every second slope of the next larger one.
    """
    base = 2 ** int(math.log2(heads))
    slopes = [2 ** (-8 * (head + 1) / base) for head in range(base)]
    return slopes + [2 ** (-4 * (2 * head + 1) / base) for head in range(heads - base)]


ENCODER = MosaicBert

# Published files

HUGGING_FACE = Layout(
    prefix=r"bert\.",
    outside={
        "embed": "embeddings.word_embeddings",
        "token_type": "embeddings.token_type_embeddings",
        "embed_norm": "embeddings.LayerNorm",
    },
    layer="encoder.layer.{}",
    inside={
        "qkv": ("attention.self.Wqkv",),
        "attention_output": ("attention.output.dense",),
        "attention_norm": ("attention.output.LayerNorm",),
        "mlp_gated": ("mlp.gated_layers",),
        "mlp_out": ("mlp.wo",),
        "mlp_norm": ("mlp.layernorm",),
    },
    ignored=r"(pooler|classifier|cls\.predictions)\.|embeddings\.position_ids$",
)


def read_directory(path: Path, config: dict[str, Any], tensors: dict[str, Tensor], sha256: str) -> Checkpoint:
    """Take the configuration and the tensors of a Hugging Face directory.

    Raises:
        KeyError, TypeError, ValueError, OverflowError: of an entry in the configuration.
    """
    return Checkpoint(
        where=path,
        family="mosaic_bert",
        alphabet=Alphabet.NUCLEOTIDE,
        architecture={**stated_sizes(config), "token_types": int(config["type_vocab_size"])},
        layout=HUGGING_FACE,
        tensors=tensors,
        sha256=sha256,
        reference="none implements DNABERT-2: this encoder, each sequence alone",
        tokenizer=path / TOKENIZER_FILE,
        mean_of="tokens",
        max_length=MAX_DNA_BP,
        long="refuse",
    )
