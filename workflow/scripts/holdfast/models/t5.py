"""T5 encoders of proteins (ProtT5, ProstT5, Ankh): their network on packed batches, and what their files hold.

Architecture: T5 (Raffel et al. 2020, arXiv:1910.10683): pre-RMSNorm, no biases, scores that are not scaled, and one
learned bias by head and distance for all layers. ProtT5 and ProstT5: Elnaggar et al. 2022,
doi:10.1109/TPAMI.2021.3095381, and Heinzinger et al. 2024, doi:10.1093/nargab/lqae150; Ankh: Elnaggar et al. 2023,
arXiv:2301.06568, with a gated MLP. Names in the files: transformers' ``modeling_t5``.
"""

import math
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812, torch's own abbreviation
from torch import Tensor

from ..documents import DocumentError, read_json
from ..errors import WeightsError
from ..sequences import Alphabet
from .checkpoint import Checkpoint, Layout
from .encoder import LARGEST, Architecture, Encoder, Shapes, check_sizes
from .packing import Packing
from .reference import encode_transformers
from .registry import Letters, Prepared

ACTIVATIONS = {"relu": "relu", "gated-gelu": "gelu_tanh"}  # by feed_forward_proj of the configuration
VOCABULARY_FILE = "spiece.model"
RESIDUES = "ACDEFGHIKLMNPQRSTVWY"
RARE = "UZOB"  # which ProtT5's authors replace by X
PREFIX = "<AA2fold>"  # which ProstT5 expects before a protein


def check_architecture(content: object) -> Architecture:
    """Check the sizes of a T5 encoder; ValueError as :func:`.encoder.check_sizes`."""
    more = {"head_width": 2**10, "buckets": 2**12, "reach": 2**12}
    architecture = check_sizes(content, LARGEST | more)
    if architecture.get("activation") not in ACTIVATIONS.values():
        raise ValueError(f"activation must be one of {', '.join(ACTIVATIONS.values())}")
    if int(architecture["buckets"]) % 4:
        raise ValueError("buckets must be a multiple of 4")
    return architecture


def tensor_shapes(architecture: Architecture) -> Shapes:
    """Name and shape of every tensor of a prepared T5 encoder of these sizes."""
    width, mlp_width = int(architecture["width"]), int(architecture["mlp_width"])
    inner = int(architecture["heads"]) * int(architecture["head_width"])
    gated = architecture["activation"] != "relu"
    shapes: Shapes = {
        "embed.weight": (int(architecture["vocabulary"]), width),
        "relative_bias.weight": (int(architecture["buckets"]), int(architecture["heads"])),
        "final_norm.weight": (width,),
    }
    for layer in range(int(architecture["layers"])):
        inside = {
            "attention_norm": (width,),
            "qkv": (3 * inner, width),
            "attention_output": (width, inner),
            "mlp_norm": (width,),
            "mlp_gated" if gated else "mlp_in": ((2 if gated else 1) * mlp_width, width),
            "mlp_out": (width, mlp_width),
        }
        shapes |= {f"layers.{layer}.{name}.weight": shape for name, shape in inside.items()}
    return shapes


class T5(Encoder):
    """A T5 encoder; what its MLP puts out is fp32 like the residual stream, since half precision overflows."""

    def __init__(self, weights: Mapping[str, Tensor], prepared: Prepared) -> None:
        super().__init__(weights, prepared)
        architecture = prepared.architecture
        self._gated = architecture["activation"] != "relu"
        reach = int(architecture["reach"])
        places = torch.arange(-reach, reach + 1, device=self.device)
        numbers = relative_buckets(places, int(architecture["buckets"]), reach)
        self._table = weights["relative_bias.weight"].float()[numbers].T.contiguous()  # [heads, 2 reach + 1]

    def _states(self, tokens: Tensor, packing: Packing, last: int) -> Iterator[Tensor]:
        weights = self._weights
        x = self._embedded(tokens)
        yield x
        normed = self._ops.rms_norm(x, weights["layers.0.attention_norm.weight"], self._epsilon)
        for layer in range(last):
            name = f"layers.{layer}."
            following = f"layers.{layer + 1}.attention_norm" if layer + 1 < self.layers else "final_norm"
            qkv = self._linear(normed, name + "qkv").view(len(x), 3, self._heads, -1)
            attended = self._ops.attention(qkv, packing, table=self._table, scale=1.0)
            x, normed = self._add_rms_norm(x, self._linear(attended, name + "attention_output"), name + "mlp_norm")
            if self._gated:
                hidden = self._ops.gated(self._linear(normed, name + "mlp_gated"), "gelu_tanh")
            else:
                hidden = F.relu_(self._linear(normed, name + "mlp_in"))
            x, normed = self._add_rms_norm(x, self._linear_in_fp32(hidden, name + "mlp_out"), following)
            yield normed if layer + 1 == self.layers else x

    def _add_rms_norm(self, x: Tensor, y: Tensor, name: str) -> tuple[Tensor, Tensor]:
        total, normed = self._ops.add_rms_norm(x, y, self._weights[name + ".weight"], self._epsilon)
        return total, normed


def relative_buckets(places: Tensor, buckets: int, reach: int) -> Tensor:
    """The bucket of each place of a key relative to its query, int64: half of them for either side.

    Half of a side's buckets hold one distance each, the others widen as its logarithm, up to ``reach``; the rule, and
    the fp32 arithmetic that decides at its borders, are those of T5 (Mesh TensorFlow, transformers).
    """
    side = buckets // 2
    exact = side // 2
    distance = places.abs()
    far = torch.log(distance.float().clamp(min=1) / exact) / math.log(reach / exact) * (side - exact)
    number = torch.where(distance < exact, distance, (exact + far.long()).clamp(max=side - 1))
    return number + side * (places > 0)


ENCODER = T5

# Published files


def _layout(mlp: Mapping[str, tuple[str, ...]]) -> Layout:
    attention, dense = "layer.0.SelfAttention", "layer.1.DenseReluDense"
    return Layout(
        prefix=r"transformer\.",
        outside={
            "embed": "shared",
            "relative_bias": f"encoder.block.0.{attention}.relative_attention_bias",
            "final_norm": "encoder.final_layer_norm",
        },
        layer="encoder.block.{}",
        inside={
            "attention_norm": ("layer.0.layer_norm",),
            "qkv": (f"{attention}.q", f"{attention}.k", f"{attention}.v"),
            "attention_output": (f"{attention}.o",),
            "mlp_norm": ("layer.1.layer_norm",),
            "mlp_out": (f"{dense}.wo",),
            **{own: tuple(f"{dense}.{name}" for name in names) for own, names in mlp.items()},
        },
        ignored=r"(decoder|lm_head|classifier|classification_head)\.|encoder\.embed_tokens\.",
    )


PLAIN = _layout({"mlp_in": ("wi",)})
GATED = _layout({"mlp_gated": ("wi_0", "wi_1")})


def read_directory(path: Path, config: dict[str, Any], tensors: dict[str, Tensor], sha256: str) -> Checkpoint:
    """Take the configuration and the tensors of a Hugging Face directory.

    Raises:
        WeightsError: a vocabulary that is missing or none.
        KeyError, TypeError, ValueError, OverflowError: of an entry in the configuration.
    """
    projection = str(config.get("feed_forward_proj", "relu"))
    if projection not in ACTIVATIONS:
        raise ValueError(f"feed_forward_proj {projection!r:.40}; known are {', '.join(ACTIVATIONS)}")
    if "shared.weight" not in tensors and "encoder.embed_tokens.weight" in tensors:
        tensors = {**tensors, "shared.weight": tensors["encoder.embed_tokens.weight"]}
    return Checkpoint(
        where=path,
        family="t5",
        alphabet=Alphabet.PROTEIN,
        architecture={
            "layers": int(config["num_layers"]),
            "width": int(config["d_model"]),
            "heads": int(config["num_heads"]),
            "head_width": int(config["d_kv"]),
            "mlp_width": int(config["d_ff"]),
            "vocabulary": int(config["vocab_size"]),
            "layer_norm_epsilon": float(config["layer_norm_epsilon"]),
            "buckets": int(config["relative_attention_num_buckets"]),
            "reach": int(config.get("relative_attention_max_distance", 128)),
            "activation": ACTIVATIONS[projection],
        },
        layout=PLAIN if projection == "relu" else GATED,
        tensors=tensors,
        sha256=sha256,
        reference="transformers T5EncoderModel",
        encode_reference=partial(encode_transformers, path, "T5EncoderModel", {}),
        letters=_letters(path),
        start_is_cls=False,
    )


def _letters(path: Path) -> Letters:
    """The vocabulary of a directory: where its pieces begin with a space, as ProtT5's, rare residues become X."""
    import sentencepiece

    vocabulary = path / VOCABULARY_FILE
    if not vocabulary.is_file():
        raise WeightsError(f"{vocabulary}: missing; it holds the tokens of the residues, download it too")
    try:
        pieces = sentencepiece.SentencePieceProcessor(model_file=str(vocabulary))
    except (OSError, RuntimeError) as error:
        raise WeightsError(f"{vocabulary}: not a vocabulary of SentencePiece ({error}); download it again") from None
    ids = {pieces.id_to_piece(number): number for number in range(pieces.get_piece_size())}
    spaced = "\u2581A" in ids
    letters = {letter: ids.get(f"\u2581{letter}" if spaced else letter, -1) for letter in RESIDUES + "X" + RARE}
    if spaced:
        letters |= dict.fromkeys(RARE, letters["X"])
    if lacking := [letter for letter in RESIDUES if letters[letter] < 0]:
        raise WeightsError(f"{vocabulary}: has no token for {', '.join(lacking)}; give an encoder of proteins")
    known = {letter: number for letter, number in letters.items() if number >= 0}
    return Letters(known, pieces.unk_id(), _prefix(path), pieces.eos_id())


def _prefix(path: Path) -> int | None:
    """Token of :data:`PREFIX` where a directory adds it to its vocabulary."""
    for name in ("added_tokens.json", "tokenizer_config.json"):
        if not (path / name).is_file():
            continue
        try:
            content = read_json(path / name)
        except DocumentError as error:
            raise WeightsError(f"{path / name}: {error}; download it again") from None
        if not isinstance(content, dict):
            continue
        if type(number := content.get(PREFIX)) is int:
            return number
        decoder = content.get("added_tokens_decoder")
        for number, token in (decoder if isinstance(decoder, dict) else {}).items():
            if isinstance(token, dict) and token.get("content") == PREFIX and number.isdigit():
                return int(number)
    return None
