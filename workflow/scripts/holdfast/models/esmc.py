"""ESM C, a protein encoder: its network on packed batches, and what its published files hold.

Architecture: ESM Cambrian (EvolutionaryScale 2024): a pre-LN transformer without biases in its products, LayerNorm of
queries and keys before they turn, rotary positions, SwiGLU, and residual branches divided by sqrt(layers / 36). Names
in the files: transformers' ``modeling_esmc``, and the older ``esm`` package (``transformer.blocks``).
"""

import math
import re
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import WeightsError
from ..sequences import Alphabet
from .checkpoint import Checkpoint, Layout, Source
from .encoder import Architecture, Encoder, Shapes, check_sizes
from .esm import RESIDUES, letters_of, read_letters, rotary_angles, rotary_formula
from .packing import Packing
from .reference import encode_transformers
from .registry import Prepared
from .torch_file import only_tensors

VOCABULARY = ("<cls>", "<pad>", "<eos>", "<unk>", *RESIDUES, "|", "<mask>")
HEAD_WIDTH = 64  # of every published size


def check_architecture(content: object) -> Architecture:
    """Check the sizes of an ESM C; ValueError as :func:`.encoder.check_sizes`."""
    architecture = check_sizes(content)
    base = architecture.get("rotary_base")
    if type(base) is not float or base < 1:
        raise ValueError("rotary_base must be a number from 1")
    if int(architecture["width"]) // int(architecture["heads"]) % 2:
        raise ValueError(f"{architecture['heads']} heads do not fit a width of {architecture['width']}")
    return architecture


def tensor_shapes(architecture: Architecture) -> Shapes:
    """Name and shape of every tensor of a prepared ESM C of these sizes."""
    width, mlp_width = int(architecture["width"]), int(architecture["mlp_width"])
    shapes: Shapes = {
        "embed.weight": (int(architecture["vocabulary"]), width),
        "inv_freq": (width // int(architecture["heads"]) // 2,),
        "final_norm.weight": (width,),
    }
    for layer in range(int(architecture["layers"])):
        inside = {
            "qkv.weight": (3 * width, width),
            "attention_output.weight": (width, width),
            "mlp_gated.weight": (2 * mlp_width, width),
            "mlp_out.weight": (width, mlp_width),
            **{f"{norm}.{kind}": (width,) for norm in ("attention_norm", "mlp_norm") for kind in ("weight", "bias")},
            **{f"{norm}.weight": (width,) for norm in ("query_norm", "key_norm")},
        }
        shapes |= {f"layers.{layer}.{name}": shape for name, shape in inside.items()}
    return shapes


class EsmC(Encoder):
    """The encoder of this family."""

    def __init__(self, weights: Mapping[str, Tensor], prepared: Prepared) -> None:
        super().__init__(weights, prepared)
        self._branch = 1 / math.sqrt(self.layers / 36)

    def _states(self, tokens: Tensor, packing: Packing, last: int) -> Iterator[Tensor]:
        weights = self._weights
        angles = rotary_angles(packing, weights["inv_freq"])
        x = self._embedded(tokens)
        yield x
        normed = self._normed(x, "layers.0.attention_norm")
        for layer in range(last):
            name = f"layers.{layer}."
            following = f"layers.{layer + 1}.attention_norm" if layer + 1 < self.layers else "final_norm"
            qkv = self._linear(normed, name + "qkv").view(len(x), 3, self._heads, -1)
            query, key = (weights[f"{name}{part}_norm.weight"] for part in ("query", "key"))
            self._ops.norm_rotate(qkv, query, key, self._epsilon, angles)
            attended = self._ops.attention(qkv, packing)
            x, normed = self._add_linear_norm(x, attended, name + "attention_output", name + "mlp_norm", self._branch)
            hidden = self._ops.gated(self._linear(normed, name + "mlp_gated"), "silu")
            x, normed = self._add_linear_norm(x, hidden, name + "mlp_out", following, self._branch)
            yield normed if layer + 1 == self.layers else x


ENCODER = EsmC

# Published files

HUGGING_FACE = Layout(
    prefix=r"esmc\.|model\.",
    outside={"embed": "embed_tokens", "final_norm": "norm"},
    layer="layers.{}",
    inside={
        "attention_norm": ("input_layernorm",),
        "qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        "query_norm": ("self_attn.q_norm",),
        "key_norm": ("self_attn.k_norm",),
        "attention_output": ("self_attn.o_proj",),
        "mlp_norm": ("post_attention_layernorm",),
        "mlp_gated": ("mlp.gate_proj", "mlp.up_proj"),
        "mlp_out": ("mlp.down_proj",),
    },
    ignored=r"(lm_head|classifier|score|sequence_head)\.|rotary_emb\.",
)
ESM_PACKAGE = Layout(
    prefix=r"model\.",
    outside={"embed": "embed", "final_norm": "transformer.norm"},
    layer="transformer.blocks.{}",
    inside={
        "attention_norm": ("attn.layernorm_qkv.0",),
        "qkv": ("attn.layernorm_qkv.1",),
        "query_norm": ("attn.q_ln",),
        "key_norm": ("attn.k_ln",),
        "attention_output": ("attn.out_proj",),
        "mlp_norm": ("ffn.0",),
        "mlp_gated": ("ffn.1",),
        "mlp_out": ("ffn.3",),
    },
    ignored=r"sequence_head\.|.*rotary\.",
)


def read_directory(path: Path, config: dict[str, Any], tensors: dict[str, Tensor], sha256: str) -> Checkpoint:
    """Take the configuration and the tensors of a Hugging Face directory.

    Raises:
        KeyError, TypeError, ValueError, OverflowError: of an entry in the configuration.
    """
    rotary = config.get("rope_parameters") or {}
    if rotary.get("rope_type", "default") != "default":
        raise ValueError(f"rope_type {rotary['rope_type']!r:.40}, 'default' is known")
    if config.get("hidden_act", "silu") != "silu" or config.get("mlp_bias") or config.get("attention_bias"):
        raise ValueError("hidden_act, mlp_bias or attention_bias, which are not those of ESM C")
    return Checkpoint(
        where=path,
        family="esmc",
        alphabet=Alphabet.PROTEIN,
        architecture={
            "layers": int(config["num_hidden_layers"]),
            "width": int(config["hidden_size"]),
            "heads": int(config["num_attention_heads"]),
            "mlp_width": int(config["intermediate_size"]),
            "vocabulary": int(config["vocab_size"]),
            "layer_norm_epsilon": 1e-5,  # torch.nn.LayerNorm's
            "rotary_base": float(rotary.get("rope_theta", config.get("rope_theta", 10000.0))),
        },
        layout=HUGGING_FACE,
        tensors=tensors,
        sha256=sha256,
        reference="transformers EsmcModel",
        encode_reference=partial(encode_transformers, path, "EsmcModel", {}),
        letters=read_letters(path, VOCABULARY),
        sources={"inv_freq": _frequencies(rotary.get("rope_theta", config.get("rope_theta", 10000.0)))},
    )


def is_file(content: Mapping[str, Any]) -> bool:
    """Whether what a file of torch holds is of the older ``esm`` package."""
    return any(str(name).endswith("transformer.blocks.0.attn.layernorm_qkv.1.weight") for name in content)


def read_file(path: Path, content: Mapping[str, Any], sha256: str) -> Checkpoint:
    """Take the tensors of a ``.pth`` file of the older ``esm`` package, whose sizes show in their shapes.

    Raises:
        WeightsError: none of this family.
    """
    tensors = only_tensors(path, content)
    bare = {ESM_PACKAGE.bare(name): tensor for name, tensor in tensors.items()}
    blocks = [found[1] for name in bare if (found := re.match(r"transformer\.blocks\.(\d{1,4})\.", name))]
    embed, down = bare.get("embed.weight"), bare.get("transformer.blocks.0.ffn.3.weight")
    if not blocks or embed is None or down is None or embed.dim() != 2 or down.dim() != 2:
        raise WeightsError(
            f"{path}: not an ESM C of the esm package; it lacks embed.weight or a block; download it again"
        )
    return Checkpoint(
        where=path,
        family="esmc",
        alphabet=Alphabet.PROTEIN,
        architecture={
            "layers": 1 + max(map(int, blocks)),
            "width": embed.shape[1],
            "heads": max(1, embed.shape[1] // HEAD_WIDTH),
            "mlp_width": down.shape[1],
            "vocabulary": embed.shape[0],
            "layer_norm_epsilon": 1e-5,
            "rotary_base": 10000.0,
        },
        layout=ESM_PACKAGE,
        tensors=tensors,
        sha256=sha256,
        reference="none installed reads this format: this encoder, each sequence alone",
        letters=letters_of(VOCABULARY),
        sources={"inv_freq": _frequencies(10000.0)},
    )


def _frequencies(base: float) -> Any:
    """What makes the rotary frequencies, which the files leave to a formula."""
    return lambda shape: Source([], shape, partial(rotary_formula, float(base), shape[0]), torch.float32)
