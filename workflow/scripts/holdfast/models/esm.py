"""ESM-2, a protein encoder: its network on packed batches, and what its published files look like.

Token ids of a batch come in one behind the other, one state a token goes out; :mod:`.packing` keeps the sequences
apart.

Architecture: Lin et al. 2023, doi:10.1126/science.ade2574 (pre-LN transformer, rotary positions, exact GELU). Names in
its files: fair-esm 2.0.0 (``esm.model.esm2``), transformers' ``modeling_esm``.
"""

import re
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812, torch's own abbreviation
from torch import Tensor

from ..errors import WeightsError
from ..sequences.tokens import VOCABULARY
from .checkpoint import Checkpoint, Layout, Source, first_line, load_torch, only_tensors, stated_sizes
from .encoder import Architecture, Encoder, Shapes, check_sizes, layer_shapes
from .packing import Packing
from .reference import encode_fair_esm, encode_transformers

UNMASKED_FRACTION = 1 - 0.15 * 0.8  # of residues in training; fair-esm scales by it when token_dropout is set

ORDINARY = range(VOCABULARY.index("L"), VOCABULARY.index("X"))  # the 20 common residues


def check_architecture(content: object) -> Architecture:
    """Check the sizes of an ESM-2; ValueError as :func:`.encoder.check_sizes`."""
    architecture = check_sizes(content)
    if int(architecture["width"]) // int(architecture["heads"]) % 2:
        raise ValueError(f"{architecture['heads']} heads do not fit a width of {architecture['width']}")
    if architecture["vocabulary"] != len(VOCABULARY):
        raise ValueError(f"vocabulary must be {len(VOCABULARY)}, the tokens of ESM-2")
    if type(architecture.get("token_dropout")) is not bool:
        raise ValueError("token_dropout must be true or false")
    return architecture


def tensor_shapes(architecture: Architecture) -> Shapes:
    """Name and shape of every tensor of a prepared ESM-2 of these sizes."""
    width, mlp_width = int(architecture["width"]), int(architecture["mlp_width"])
    shapes: Shapes = {
        "embed.weight": (int(architecture["vocabulary"]), width),
        "inv_freq": (width // int(architecture["heads"]) // 2,),
        "final_norm.weight": (width,),
        "final_norm.bias": (width,),
    }
    for layer in range(int(architecture["layers"])):
        shapes |= layer_shapes(layer, width, {"mlp_in": (mlp_width, width), "mlp_out": (width, mlp_width)})
    return shapes


class Esm2(Encoder):
    """ESM-2; an embedding is the mean over the residues, without <cls> and <eos>."""

    pooled = slice(1, -1)

    def __init__(self, weights: dict[str, Tensor], architecture: Architecture) -> None:
        super().__init__(weights, architecture)
        self._scale = UNMASKED_FRACTION if architecture["token_dropout"] else 1.0

    def _states(self, tokens: Tensor, packing: Packing) -> Tensor:
        angles = packing.positions[:, None].float() * self._weights["inv_freq"]  # fp32 [T, head width / 2]
        cosine, sine = angles.cos().repeat(1, 2), torch.cat((-angles.sin(), angles.sin()), dim=1)
        x = F.embedding(tokens, self._weights["embed.weight"]) * self._scale
        normed = self._norm(x, "layers.0.attention_norm")
        for layer in range(self._layers):
            name = f"layers.{layer}."
            following = f"layers.{layer + 1}.attention_norm" if layer + 1 < self._layers else "final_norm"
            qkv = self._linear(normed, name + "qkv").view(len(x), 3, self._heads, -1)
            self._ops.rotate(qkv, cosine, sine)
            attended = self._linear(self._ops.attention(qkv, packing), name + "attention_output")
            x, normed = self._add_norm(x, attended, name + "mlp_norm")
            hidden = self._ops.gelu(self._linear(normed, name + "mlp_in"))
            x, normed = self._add_norm(x, self._linear(hidden, name + "mlp_out"), following)
        return normed


ENCODER = Esm2

# Published files

FAIR_ESM = Layout(
    prefix=r"encoder\.sentence_encoder\.|encoder\.",
    outside={"embed": "embed_tokens", "final_norm": "emb_layer_norm_after"},
    layer="layers.{}",
    inside={
        "attention_norm": ("self_attn_layer_norm",),
        "qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        "attention_output": ("self_attn.out_proj",),
        "mlp_norm": ("final_layer_norm",),
        "mlp_in": ("fc1",),
        "mlp_out": ("fc2",),
    },
    ignored=r"(lm_head|contact_head)\.",
)


HUGGING_FACE_ESM = Layout(
    prefix=r"esm\.",
    outside={"embed": "embeddings.word_embeddings", "final_norm": "encoder.emb_layer_norm_after"},
    layer="encoder.layer.{}",
    inside={
        "attention_norm": ("attention.LayerNorm",),
        "qkv": ("attention.self.query", "attention.self.key", "attention.self.value"),
        "attention_output": ("attention.output.dense",),
        "mlp_norm": ("LayerNorm",),
        "mlp_in": ("intermediate.dense",),
        "mlp_out": ("output.dense",),
    },
    ignored=r"(lm_head|contact_head|pooler)\.|(embeddings\.)?position_",
)


def read_fair_esm(path: Path, sha256: str) -> Checkpoint:
    """Read a ``.pt`` file of fair-esm; its digest goes into the checkpoint.

    Raises:
        WeightsError: not an ESM-2 of fair-esm.
    """
    content = load_torch(path, ["argparse.Namespace"])
    try:
        config = dict.__getitem__(dict.__getitem__(content, "cfg"), "model").state  # of tables alone, not of tensors
        tensors = only_tensors(path, dict.__getitem__(content, "model"))
        sizes: dict[str, int] = {
            "layers": int(config["encoder_layers"]),
            "width": int(config["encoder_embed_dim"]),
            "heads": int(config["encoder_attention_heads"]),
            "token_dropout": bool(config["token_dropout"]),
        }
    except (AttributeError, LookupError, TypeError, ValueError, OverflowError, RuntimeError) as error:
        raise WeightsError(
            f"{path}: not an ESM-2 checkpoint of fair-esm ({type(error).__name__}: {first_line(error)}); give the "
            ".pt file itself, not the contact regression, or a Hugging Face directory"
        ) from None
    bare = {FAIR_ESM.bare(name): tensor for name, tensor in tensors.items()}

    def frequencies(shape: tuple[int, ...]) -> Source:
        names = [f"layers.{layer}.self_attn.rot_emb.inv_freq" for layer in range(sizes["layers"])]
        return Source(names, shape, partial(_agreed, names))

    return Checkpoint(
        where=path,
        model="esm2",
        architecture={
            **sizes,
            "mlp_width": _rows(bare, "layers.0.mlp_in.weight"),
            "vocabulary": _rows(bare, "embed.weight"),
            "layer_norm_epsilon": 1e-5,  # torch.nn.LayerNorm's, which fair-esm's ESM2 uses
        },
        layout=FAIR_ESM,
        tensors=tensors,
        sha256=sha256,
        reference="fair-esm ESM2",
        ordinary=ORDINARY,
        encode_reference=partial(encode_fair_esm, sizes, bare),
        sources={"inv_freq": frequencies},
    )


def read_hugging_face_esm(path: Path, config: dict[str, Any], tensors: dict[str, Tensor], sha256: str) -> Checkpoint:
    """Take the configuration and the tensors of a Hugging Face directory.

    Raises:
        WeightsError: an ESM of another kind.
        KeyError, TypeError, ValueError, OverflowError: of an entry in the configuration.
    """
    if config["position_embedding_type"] != "rotary" or config.get("emb_layer_norm_before"):
        raise WeightsError(f"{path / 'config.json'}: an ESM without rotary positions; only ESM-2 is supported")
    alphabet = path / "vocab.txt"
    if alphabet.is_file() and tuple(alphabet.read_text().split()) != VOCABULARY:
        raise WeightsError(f"{alphabet}: not the alphabet of ESM-2 in its order; give a published ESM-2")
    base = float(config.get("rope_theta", 10000.0))

    def frequencies(shape: tuple[int, ...]) -> Source:
        names = sorted(name for name in map(HUGGING_FACE_ESM.bare, tensors) if re.fullmatch(ROTARY, name))
        return Source(names, shape, partial(_agreed, names) if names else partial(_formula, base, shape[0]))

    return Checkpoint(
        where=path,
        model="esm2",
        architecture={**stated_sizes(config), "token_dropout": bool(config["token_dropout"])},
        layout=HUGGING_FACE_ESM,
        tensors=tensors,
        sha256=sha256,
        reference="transformers EsmModel",
        ordinary=ORDINARY,
        encode_reference=partial(encode_transformers, path),
        sources={"inv_freq": frequencies},
    )


# The rotary frequencies, one set a layer in fair-esm's and older Hugging Face files, one in all in newer ones;
# transformers 5.23 writes that one under a name with a literal asterisk.
ROTARY = r"(encoder\.layer\.(\d+|\*)\.attention\.self\.)?rotary_embeddings\.inv_freq"


def _agreed(names: Sequence[str], parts: Sequence[Tensor]) -> Tensor:
    """The one set of frequencies, fp32 [head width / 2]: the checkpoint's own, never rounded anew.

    Released files carry fp16-rounded values, which the model was trained with.
    """
    for name, part in zip(names, parts, strict=True):
        if not torch.equal(part, parts[0]):
            raise ValueError(f"{name} differs from {names[0]}")
    return parts[0].float().clone()


def _formula(base: float, count: int, _: Sequence[Tensor]) -> Tensor:
    """The frequencies as transformers computes them, in fp32, where a checkpoint has none."""
    exponents = torch.arange(0, 2 * count, 2, dtype=torch.float32) / (2 * count)
    return 1.0 / (base**exponents)


def _rows(bare: Mapping[str, Tensor], own: str) -> int:
    """Rows of a tensor that states a size; 1 without it, which the check of the names reports."""
    (name,) = FAIR_ESM.published(own)
    return len(bare[name]) if name in bare and bare[name].dim() else 1
