"""ELECTRA, protein encoders such as ProtElectra: their network on packed batches, and what their files hold.

Architecture: ELECTRA (Clark et al. 2020, arXiv:2003.10555), a post-LN transformer with the exact GELU and a learned
vector for each position; embeddings of tokens may be narrower than the layers. ProtElectra: Elnaggar et al. 2022,
doi:10.1109/TPAMI.2021.3095381. Names in the files: transformers' ``modeling_electra``.
"""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from ..errors import WeightsError
from ..sequences import Alphabet
from .checkpoint import Checkpoint, Layout, stated_sizes
from .encoder import LARGEST, Architecture, Encoder, Shapes, check_sizes, layer_shapes
from .ops import layer_norm
from .packing import Packing
from .reference import encode_transformers
from .registry import Letters

RESIDUES = "ACDEFGHIKLMNPQRSTVWYX"
RARE = "UZOB"  # which the authors of ProtElectra replace by X
MORE = {"embed_width": LARGEST["width"], "positions": LARGEST["vocabulary"], "token_types": 2**10}


def check_architecture(content: object) -> Architecture:
    """Check the sizes of a model of this family; ValueError as :func:`.encoder.check_sizes`."""
    return check_sizes(content, LARGEST | MORE)


def tensor_shapes(architecture: Architecture) -> Shapes:
    """Name and shape of every tensor of a prepared model of these sizes."""
    width, mlp_width, embed_width = (int(architecture[name]) for name in ("width", "mlp_width", "embed_width"))
    rows = {"embed": "vocabulary", "positions": "positions", "token_type": "token_types"}
    shapes: Shapes = {f"{own}.weight": (int(architecture[size]), embed_width) for own, size in rows.items()}
    shapes |= {"embed_norm.weight": (embed_width,), "embed_norm.bias": (embed_width,)}
    if embed_width != width:
        shapes |= {"project.weight": (width, embed_width), "project.bias": (width,)}
    for layer in range(int(architecture["layers"])):
        shapes |= layer_shapes(layer, width, {"mlp_in": (mlp_width, width), "mlp_out": (width, mlp_width)})
    return shapes


class Electra(Encoder):
    """The encoder of this family."""

    def _states(self, tokens: Tensor, packing: Packing, last: int) -> Iterator[Tensor]:
        weights = self._weights
        x = self._embedded(tokens) + weights["positions.weight"][packing.positions] + weights["token_type.weight"][0]
        x = layer_norm(x, self._norm("embed_norm"))
        if "project.weight" in weights:
            x = self._linear(x.to(self._dtype), "project").to(self.stream_dtype)
        yield x
        normed = x.to(self._dtype)
        for layer in range(last):
            name = f"layers.{layer}."
            qkv = self._linear(normed, name + "qkv").view(len(x), 3, self._heads, -1)
            attended = self._ops.attention(qkv, packing)
            product, norm = name + "attention_output", name + "attention_norm"
            x, normed = self._add_linear_norm(x, attended, product, norm, after=True)
            hidden = self._linear_gelu(normed, name + "mlp_in")
            x, normed = self._add_linear_norm(x, hidden, name + "mlp_out", name + "mlp_norm", after=True)
            yield x


ENCODER = Electra

HUGGING_FACE = Layout(
    prefix=r"electra\.",
    outside={
        "embed": "embeddings.word_embeddings",
        "positions": "embeddings.position_embeddings",
        "token_type": "embeddings.token_type_embeddings",
        "embed_norm": "embeddings.LayerNorm",
        "project": "embeddings_project",
    },
    layer="encoder.layer.{}",
    inside={
        "qkv": ("attention.self.query", "attention.self.key", "attention.self.value"),
        "attention_output": ("attention.output.dense",),
        "attention_norm": ("attention.output.LayerNorm",),
        "mlp_in": ("intermediate.dense",),
        "mlp_out": ("output.dense",),
        "mlp_norm": ("output.LayerNorm",),
    },
    ignored=r"(discriminator_predictions|generator_\w+|classifier)\.|embeddings\.position_ids$",
)


def read_directory(path: Path, config: dict[str, Any], tensors: dict[str, Tensor], sha256: str) -> Checkpoint:
    """Take the configuration and the tensors of a Hugging Face directory; KeyError or ValueError of a wrong entry."""
    if config.get("hidden_act", "gelu") != "gelu":
        raise ValueError("hidden_act, which is not that of ELECTRA")
    sizes = {"embed_width": "embedding_size", "positions": "max_position_embeddings", "token_types": "type_vocab_size"}
    return Checkpoint(
        where=path,
        family="electra",
        alphabet=Alphabet.PROTEIN,
        architecture={**stated_sizes(config), **{own: int(config[name]) for own, name in sizes.items()}},
        layout=HUGGING_FACE,
        tensors=tensors,
        sha256=sha256,
        reference="transformers ElectraModel",
        encode_reference=partial(encode_transformers, path, "ElectraModel", {}),
        letters=_letters(path / "vocab.txt"),
        max_length=int(config["max_position_embeddings"]) - 2,  # [CLS] and [SEP] have a position each
        long="window",
    )


def _letters(path: Path) -> Letters:
    try:
        ids = {token: number for number, token in enumerate(path.read_text().split())}
        known = {letter: ids[letter] for letter in RESIDUES} | dict.fromkeys(RARE, ids["X"])
        return Letters(known, ids["[UNK]"], ids["[CLS]"], ids["[SEP]"])
    except (OSError, KeyError) as error:
        raise WeightsError(f"{path}: no vocabulary of residues ({error}); download it too") from None
