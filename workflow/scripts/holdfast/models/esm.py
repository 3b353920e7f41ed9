"""ESM-2, ESM-1b and ESM-1v, protein encoders: their network on packed batches, and what their published files hold.

One network: a pre-LN transformer with the exact GELU. ESM-2 (Lin et al. 2023, doi:10.1126/science.ade2574) has rotary
positions and knows no longest sequence; ESM-1b (Rives et al. 2021, doi:10.1073/pnas.2016239118) and ESM-1v (Meier et
al. 2021, doi:10.1101/2021.07.09.450648) learned a vector for each of the first positions, and ESM-1b has a norm after
the embedding. Names in the files: fair-esm 2.0.0, transformers' ``modeling_esm``.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import WeightsError
from ..sequences import Alphabet
from .checkpoint import Checkpoint, Layout, Source, stated_sizes
from .encoder import LARGEST, Architecture, Encoder, Shapes, check_sizes, layer_shapes
from .ops import Angles, layer_norm
from .packing import Packing
from .reference import encode_fair_esm, encode_transformers
from .registry import Letters, Prepared
from .torch_file import first_line, only_tensors

RESIDUES = "LAGVSERTIDPKQNFYMHWCXBUZO.-"
VOCABULARY = ("<cls>", "<pad>", "<eos>", "<unk>", *RESIDUES, "<null_1>", "<mask>")
UNMASKED_FRACTION = 1 - 0.15 * 0.8  # of residues in training; fair-esm scales by it when token_dropout is set
FIRST_POSITION = 2  # row of the first token among learned positions: the rows before it belong to padding


def letters_of(vocabulary: Sequence[str]) -> Letters:
    """The letters of a vocabulary in the order of its ids.

    Raises:
        ValueError: it lacks ``<cls>``, ``<eos>``, ``<unk>`` or one of the 20 common residues.
    """
    ids = {token: number for number, token in enumerate(vocabulary) if len(token) == 1 and token.isascii()}
    if lacking := {*"LAGVSERTIDPKQNFYMHWC"} - ids.keys():
        raise ValueError(f"the vocabulary has no token for {', '.join(sorted(lacking))}")
    start, end, unknown = (list(vocabulary).index(token) for token in ("<cls>", "<eos>", "<unk>"))
    return Letters(ids, unknown, start, end)


def read_letters(directory: Path, usual: Sequence[str]) -> Letters:
    """The letters of ``vocab.txt`` in a Hugging Face directory, or the usual ones where there is none.

    Raises:
        WeightsError: a file without the tokens of proteins.
    """
    path = directory / "vocab.txt"
    try:
        return letters_of(path.read_text().split() if path.is_file() else usual)
    except ValueError as error:
        raise WeightsError(f"{path}: {error}; give a model of proteins, or download it again") from None


def check_architecture(content: object) -> Architecture:
    """Check the sizes of a model of this family; ValueError as :func:`.encoder.check_sizes`."""
    architecture = check_sizes(content)
    if any(type(architecture.get(name)) is not bool for name in ("token_dropout", "embed_norm")):
        raise ValueError("token_dropout and embed_norm must be true or false")
    positions = architecture.get("positions")
    if type(positions) is not int or not 0 <= positions <= LARGEST["vocabulary"]:
        raise ValueError("positions must be a whole number, 0 for rotary ones")
    if not positions and int(architecture["width"]) // int(architecture["heads"]) % 2:
        raise ValueError(f"{architecture['heads']} heads do not fit a width of {architecture['width']}")
    return architecture


def tensor_shapes(architecture: Architecture) -> Shapes:
    """Name and shape of every tensor of a prepared model of these sizes."""
    width, mlp_width = int(architecture["width"]), int(architecture["mlp_width"])
    shapes: Shapes = {"embed.weight": (int(architecture["vocabulary"]), width)}
    if positions := int(architecture["positions"]):
        shapes["positions.weight"] = (positions, width)
    else:
        shapes["inv_freq"] = (width // int(architecture["heads"]) // 2,)
    norms = ["embed_norm", "final_norm"] if architecture["embed_norm"] else ["final_norm"]
    shapes |= {f"{norm}.{kind}": (width,) for norm in norms for kind in ("weight", "bias")}
    for layer in range(int(architecture["layers"])):
        shapes |= layer_shapes(layer, width, {"mlp_in": (mlp_width, width), "mlp_out": (width, mlp_width)})
    return shapes


class Esm(Encoder):
    """The encoder of this family."""

    def __init__(self, weights: Mapping[str, Tensor], prepared: Prepared) -> None:
        super().__init__(weights, prepared)
        self._scale = UNMASKED_FRACTION if prepared.architecture["token_dropout"] else 1.0

    def _states(self, tokens: Tensor, packing: Packing, last: int) -> Iterator[Tensor]:
        weights = self._weights
        x = self._embedded(tokens) * self._scale
        angles = rotary_angles(packing, weights["inv_freq"]) if "inv_freq" in weights else None
        if angles is None:
            x = x + weights["positions.weight"][packing.positions + FIRST_POSITION]
        if "embed_norm.weight" in weights:
            x = layer_norm(x, self._norm("embed_norm"))
        yield x
        normed = self._normed(x, "layers.0.attention_norm")
        for layer in range(last):
            name = f"layers.{layer}."
            following = f"layers.{layer + 1}.attention_norm" if layer + 1 < self.layers else "final_norm"
            if angles is None:
                qkv = self._linear(normed, name + "qkv").view(len(x), 3, self._heads, -1)
                attended = self._ops.attention(qkv, packing)
            else:
                attended = self._rotary_attention(normed, name + "qkv", packing, angles)
            x, normed = self._add_linear_norm(x, attended, name + "attention_output", name + "mlp_norm")
            hidden = self._linear_gelu(normed, name + "mlp_in")
            x, normed = self._add_linear_norm(x, hidden, name + "mlp_out", following)
            yield normed if layer + 1 == self.layers else x


def rotary_angles(packing: Packing, frequencies: Tensor) -> Angles:
    """Cosine and sine of each token's angles, as :func:`.ops.rotate` takes them."""
    angles = packing.positions[:, None].float() * frequencies  # fp32 [T, head width / 2]
    return Angles(angles.cos().repeat(1, 2), torch.cat((-angles.sin(), angles.sin()), dim=1))


ENCODER = Esm

# Published files

FAIR_ESM = Layout(
    prefix=r"encoder\.sentence_encoder\.|encoder\.|sentence_encoder\.",
    outside={
        "embed": "embed_tokens",
        "positions": "embed_positions",
        "embed_norm": "emb_layer_norm_before",
        "final_norm": "emb_layer_norm_after",
    },
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
HUGGING_FACE = Layout(
    prefix=r"esm\.",
    outside={
        "embed": "embeddings.word_embeddings",
        "positions": "embeddings.position_embeddings",
        "embed_norm": "embeddings.layer_norm",
        "final_norm": "encoder.emb_layer_norm_after",
    },
    layer="encoder.layer.{}",
    inside={
        "attention_norm": ("attention.LayerNorm",),
        "qkv": ("attention.self.query", "attention.self.key", "attention.self.value"),
        "attention_output": ("attention.output.dense",),
        "mlp_norm": ("LayerNorm",),
        "mlp_in": ("intermediate.dense",),
        "mlp_out": ("output.dense",),
    },
    ignored=r"(lm_head|contact_head|pooler|classifier)\.|(embeddings\.)?position_(ids|embeddings\.weight)$",
)
# The rotary frequencies, one set a layer in fair-esm's and older Hugging Face files, one in all in newer ones;
# transformers 5.23 writes that one under a name with a literal asterisk.
ROTARY = (
    r"layers\.\d+\.self_attn\.rot_emb\.inv_freq|"
    r"(encoder\.layer\.(\d+|\*)\.attention\.self\.)?rotary_embeddings\.inv_freq"
)


def is_file(content: Mapping[str, Any]) -> bool:
    """Whether what a file of torch holds is of fair-esm."""
    return "model" in content and bool({"cfg", "args"} & content.keys())


def read_file(path: Path, content: Mapping[str, Any], sha256: str) -> Checkpoint:
    """Take what a ``.pt`` file of fair-esm holds: ``cfg`` for ESM-2, ``args`` for ESM-1b and ESM-1v.

    Raises:
        WeightsError: none of these models.
    """
    try:
        config = (dict.__getitem__(content["cfg"], "model") if "cfg" in content else content["args"]).state
        stated = {name.removeprefix("encoder_"): value for name, value in dict.items(config)}
        tensors = only_tensors(path, content["model"])
        if "cfg" not in content and stated.get("arch") != "roberta_large":
            raise ValueError(f"arch is {stated.get('arch')!r:.60}, ESM-1b and ESM-1v have 'roberta_large'")
        sizes: dict[str, int | float | str | bool] = {
            "layers": int(stated["layers"]),
            "width": int(stated["embed_dim"]),
            "heads": int(stated["attention_heads"]),
            "token_dropout": bool(stated.get("token_dropout", False)),
        }
    except (AttributeError, LookupError, TypeError, ValueError, OverflowError, RuntimeError) as error:
        raise WeightsError(
            f"{path}: not an ESM-2, ESM-1b or ESM-1v of fair-esm ({type(error).__name__}: {first_line(error)}); give "
            "the .pt file itself, not the contact regression, or a Hugging Face directory"
        ) from None
    bare = {FAIR_ESM.bare(name): tensor for name, tensor in tensors.items()}
    architecture = {
        **sizes,
        "mlp_width": _rows(bare, "layers.0.mlp_in.weight"),
        "vocabulary": _rows(bare, "embed.weight"),
        "layer_norm_epsilon": 1e-5,  # torch.nn.LayerNorm's, which fair-esm uses
        "positions": _rows(bare, "positions.weight") if FAIR_ESM.published("positions.weight")[0] in bare else 0,
        "embed_norm": FAIR_ESM.published("embed_norm.weight")[0] in bare,
    }

    def frequencies(shape: tuple[int, ...]) -> Source:
        names = [f"layers.{layer}.self_attn.rot_emb.inv_freq" for layer in range(int(sizes["layers"]))]
        return Source(names, shape, partial(_agreed, names), torch.float32)

    return _checkpoint(
        where=path,
        architecture=architecture,
        layout=FAIR_ESM,
        tensors=tensors,
        sha256=sha256,
        reference="fair-esm",
        encode_reference=partial(encode_fair_esm, architecture, bare),
        letters=letters_of(VOCABULARY),
        sources={"inv_freq": frequencies},
    )


def read_directory(path: Path, config: dict[str, Any], tensors: dict[str, Tensor], sha256: str) -> Checkpoint:
    """Take the configuration and the tensors of a Hugging Face directory.

    Raises:
        WeightsError: an ESM with positions of another kind.
        KeyError, TypeError, ValueError, OverflowError: of an entry in the configuration.
    """
    kind = config["position_embedding_type"]
    if kind not in ("rotary", "absolute"):
        raise WeightsError(
            f"{path / 'config.json'}: positions of type {kind!r:.40}; rotary and absolute ones are known"
        )
    base = float(config.get("rope_theta", 10000.0))

    def frequencies(shape: tuple[int, ...]) -> Source:
        names = sorted(name for name in map(HUGGING_FACE.bare, tensors) if re.fullmatch(ROTARY, name))
        make = partial(_agreed, names) if names else partial(rotary_formula, base, shape[0])
        return Source(names, shape, make, torch.float32)

    return _checkpoint(
        where=path,
        architecture={
            **stated_sizes(config),
            "token_dropout": bool(config["token_dropout"]),
            "positions": int(config["max_position_embeddings"]) if kind == "absolute" else 0,
            "embed_norm": bool(config.get("emb_layer_norm_before")),
        },
        layout=HUGGING_FACE,
        tensors=tensors,
        sha256=sha256,
        reference="transformers EsmModel",
        encode_reference=partial(encode_transformers, path, "EsmModel", {"add_pooling_layer": False}),
        letters=read_letters(path, VOCABULARY),
        sources={"inv_freq": frequencies},
    )


def _checkpoint(**facts: Any) -> Checkpoint:
    """A checkpoint of this family: learned positions end at the last one, and longer proteins go through windows."""
    positions = int(facts["architecture"]["positions"])
    longest = positions - FIRST_POSITION - 2 if positions else None  # <cls> and <eos> have a position each
    policy = "window" if positions else "whole"
    return Checkpoint(family="esm", alphabet=Alphabet.PROTEIN, max_length=longest, long=policy, **facts)


def _agreed(names: Sequence[str], parts: Sequence[Tensor]) -> Tensor:
    """The one set of frequencies, fp32 [head width / 2]: the checkpoint's own, never rounded anew.

    Released files carry fp16-rounded values, which the model was trained with.
    """
    for name, part in zip(names, parts, strict=True):
        if not torch.equal(part, parts[0]):
            raise ValueError(f"{name} differs from {names[0]}")
    return parts[0].float().clone()


def rotary_formula(base: float, count: int, _: Sequence[Tensor] = ()) -> Tensor:
    """The frequencies as transformers computes them, in fp32 [count], where a checkpoint has none."""
    exponents = torch.arange(0, 2 * count, 2, dtype=torch.float32) / (2 * count)
    return 1.0 / (base**exponents)


def _rows(bare: Mapping[str, Tensor], own: str) -> int:
    """Rows of a tensor that states a size; 1 without it, which the check of the names reports."""
    (name,) = FAIR_ESM.published(own)
    return len(bare[name]) if name in bare and bare[name].dim() else 1
