"""Published-format checkpoints with synthetic weights, made by the libraries that publish them.

ESM-2 comes from fair-esm's own class and goes through transformers' own writer, so that the names, the nesting and
the rotary frequencies are theirs and not this project's. DNABERT-S has no library; its files are written by name.
"""

import argparse
import json
import re
from collections import OrderedDict
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812, torch's own abbreviation
from esm.model.esm2 import ESM2
from holdfast.models.registry import Prepared
from holdfast.models.synthetic import write_tokenizer
from safetensors.torch import save_file
from torch import Tensor
from transformers import EsmConfig, EsmForMaskedLM

LAYERS, WIDTH, HEADS = 3, 48, 4
GOLDEN = Path(__file__).parents[1] / "data" / "golden_dnabert_s.npz"
GOLDEN_HEADS = 12  # not recorded in the file; test_mosaic_bert.py finds it
_TO_HUGGING_FACE = (
    (r"^embed_tokens\.", "esm.embeddings.word_embeddings."),
    (r"^emb_layer_norm_after\.", "esm.encoder.emb_layer_norm_after."),
    (r"^contact_head\.", "esm.contact_head."),
    (r"^lm_head\.weight$", "lm_head.decoder.weight"),
    (r"^layers\.(\d+)\.self_attn\.rot_emb\.", r"esm.encoder.layer.\1.attention.self.rotary_embeddings."),
    (r"^layers\.(\d+)\.self_attn\.q_proj\.", r"esm.encoder.layer.\1.attention.self.query."),
    (r"^layers\.(\d+)\.self_attn\.k_proj\.", r"esm.encoder.layer.\1.attention.self.key."),
    (r"^layers\.(\d+)\.self_attn\.v_proj\.", r"esm.encoder.layer.\1.attention.self.value."),
    (r"^layers\.(\d+)\.self_attn\.out_proj\.", r"esm.encoder.layer.\1.attention.output.dense."),
    (r"^layers\.(\d+)\.self_attn_layer_norm\.", r"esm.encoder.layer.\1.attention.LayerNorm."),
    (r"^layers\.(\d+)\.final_layer_norm\.", r"esm.encoder.layer.\1.LayerNorm."),
    (r"^layers\.(\d+)\.fc1\.", r"esm.encoder.layer.\1.intermediate.dense."),
    (r"^layers\.(\d+)\.fc2\.", r"esm.encoder.layer.\1.output.dense."),
)


def fair_esm_state(dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """State of a small fair-esm model with synthetic weights and the fp16-rounded ``inv_freq`` of released files."""
    torch.manual_seed(7)
    state = {}
    for name, tensor in ESM2(LAYERS, WIDTH, HEADS).state_dict().items():
        if name.endswith("inv_freq"):
            state[name] = tensor.half().to(dtype)
        else:
            state[name] = (tensor + 0.05 * torch.randn_like(tensor)).to(dtype)
    state["lm_head.weight"] = state["embed_tokens.weight"]
    return state


def write_fair_esm(path: Path, state: dict[str, Tensor], regression: bool = True, layers: int = LAYERS) -> Path:
    """Write a state as fair-esm publishes it, prefixed and with its configuration."""
    prefixed = OrderedDict(
        (("encoder." if name.startswith("lm_head.") else "encoder.sentence_encoder.") + name, tensor)
        for name, tensor in state.items()
        if not name.startswith("contact_head.")
    )
    config = argparse.Namespace(
        encoder_layers=layers, encoder_embed_dim=WIDTH, encoder_attention_heads=HEADS, token_dropout=True
    )
    torch.save({"cfg": {"model": config}, "model": prefixed}, path)
    if regression:
        heads = OrderedDict((name, tensor) for name, tensor in state.items() if name.startswith("contact_head."))
        torch.save({"model": heads}, path.with_name(f"{path.stem}-contact-regression.pt"))
    return path


def write_esm2(directory: Path) -> Path:
    """A small ESM-2 as fair-esm publishes it."""
    return write_fair_esm(directory / "esm2_small.pt", fair_esm_state())


def hugging_face_state(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same state under transformers' names, with one ``inv_freq`` a layer as in the older published files."""
    renamed = {}
    for name, tensor in state.items():
        for pattern, replacement in _TO_HUGGING_FACE:
            name = re.sub(pattern, replacement, name)
        renamed[name] = tensor
    return renamed


def hugging_face_config() -> EsmConfig:
    """As facebook/esm2_* have it, with the sizes of the small model."""
    return EsmConfig(
        vocab_size=33,
        mask_token_id=32,
        pad_token_id=1,
        hidden_size=WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        intermediate_size=4 * WIDTH,
        position_embedding_type="rotary",
        emb_layer_norm_before=False,
        token_dropout=True,
        layer_norm_eps=1e-5,
    )


def write_hugging_face_esm(directory: Path, state: dict[str, Tensor], binary: bool = False) -> Path:
    """Write a state as facebook/esm2_* are published, as safetensors or as ``pytorch_model.bin``."""
    hugging_face_config().save_pretrained(directory)
    tensors = hugging_face_state(state)
    if binary:
        torch.save(OrderedDict(tensors), directory / "pytorch_model.bin")
    else:
        del tensors["lm_head.decoder.weight"]  # shared with the embedding, so published files leave it out
        save_file(tensors, directory / "model.safetensors", {"format": "pt"})
    return directory


def write_by_transformers(directory: Path, state: dict[str, Tensor], shard_size: str = "1GB") -> Path:
    """Write a state with transformers' current ``save_pretrained``, in parts of at most this size."""
    model = EsmForMaskedLM(hugging_face_config())
    tensors = hugging_face_state(state)
    frequencies = [tensors.pop(name) for name in list(tensors) if name.endswith("inv_freq")]
    model.load_state_dict(tensors | {"esm.rotary_embeddings.inv_freq": frequencies[0].float()})
    model.save_pretrained(directory, max_shard_size=shard_size)
    return directory


def golden_weights() -> dict[str, Tensor]:
    """Synthetic weights of the golden file, under DNABERT-S's published names."""
    with np.load(GOLDEN) as golden:
        return {name[2:]: torch.from_numpy(golden[name]) for name in golden.files if name.startswith("w.")}


def write_dnabert_s(
    directory: Path, tensors: dict[str, Tensor], heads: int = GOLDEN_HEADS, binary: bool = False, prefix: str = ""
) -> Path:
    """Write DNABERT-S tensors as published: configuration that asks for remote code, weights, tokenizer."""
    directory.mkdir(exist_ok=True)
    vocabulary, width = tensors["embeddings.word_embeddings.weight"].shape
    config = {
        "architectures": ["BertForMaskedLM"],
        "auto_map": {"AutoModel": "bert_layers.BertModel"},
        "hidden_size": width,
        "intermediate_size": tensors["encoder.layer.0.mlp.wo.weight"].shape[1],
        "layer_norm_eps": 1e-12,
        "model_type": "bert",
        "num_attention_heads": heads,
        "num_hidden_layers": sum(name.endswith("mlp.wo.weight") for name in tensors),
        "type_vocab_size": len(tensors["embeddings.token_type_embeddings.weight"]),
        "vocab_size": vocabulary,
    }
    (directory / "config.json").write_text(json.dumps(config))
    (directory / "bert_layers.py").write_text("raise SystemExit('remote code ran')\n")
    write_tokenizer(vocabulary, directory / "tokenizer.json")
    named = {name if name.startswith("cls.") else prefix + name: tensor for name, tensor in tensors.items()}
    if binary:
        torch.save(OrderedDict(named), directory / "pytorch_model.bin")
    else:
        save_file(named, directory / "model.safetensors")
    return directory


def mosaic_bert(tensors: dict[str, Tensor], heads: int, tokens: Tensor) -> list[Tensor]:
    """The states of one sequence after each layer, as the papers define the network, in fp64 [tokens, width].

    Args:
        tensors: By DNABERT-S's published names.
        heads: A power of two times 1 or 1.5, for which ALiBi's slopes are written out here.
        tokens: Of the sequence, special ones included.
    """
    state = {name: tensor.double() for name, tensor in tensors.items()}
    power = 2 ** (heads.bit_length() - 1)
    slopes = [2 ** (-8 * (n + 1) / power) for n in range(power)]
    slopes += [2 ** (-4 * (2 * n + 1) / power) for n in range(heads - power)]
    place = torch.arange(len(tokens))
    penalty = torch.tensor(slopes).double()[:, None, None] * (place[:, None] - place).abs()

    def dense(x: Tensor, name: str) -> Tensor:
        return F.linear(x, state[f"{name}.weight"], state.get(f"{name}.bias"))

    def norm(x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"], 1e-12)

    x = state["embeddings.word_embeddings.weight"][tokens.long()] + state["embeddings.token_type_embeddings.weight"][0]
    found = [norm(x, "embeddings.LayerNorm")]
    for layer in range(sum(name.endswith("mlp.wo.weight") for name in state)):
        name, x = f"encoder.layer.{layer}.", found[-1]
        query, key, value = (
            part.unflatten(1, (heads, -1)).transpose(0, 1)
            for part in dense(x, f"{name}attention.self.Wqkv").chunk(3, 1)
        )
        scores = query @ key.transpose(1, 2) / query.shape[-1] ** 0.5 - penalty
        attended = (scores.softmax(-1) @ value).transpose(0, 1).flatten(1)
        x = norm(dense(attended, f"{name}attention.output.dense") + x, f"{name}attention.output.LayerNorm")
        gate, up = dense(x, f"{name}mlp.gated_layers").chunk(2, 1)
        found.append(norm(dense(F.gelu(gate) * up, f"{name}mlp.wo") + x, f"{name}mlp.layernorm"))
    return found


def verified_difference(description: Prepared) -> float:
    """Largest difference from the reference that ``model.json`` tells of."""
    difference = description.verification["largest_difference"]
    assert isinstance(difference, float)
    return difference


def require_verified(description: Prepared) -> None:
    """The model is as its reference; another implementation also rounds differently, the encoder itself need not."""
    difference = verified_difference(description)
    assert difference < 1e-5
    assert difference > 0 or str(description.verification["reference"]).startswith("none implements")
