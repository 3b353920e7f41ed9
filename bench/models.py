"""Synthetic models of the true shapes and sizes, made on the device: for the encoders, and as files for the loaders."""

import argparse
import hashlib
import json
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

import torch
from holdfast.models.checkpoint import Layout
from holdfast.models.encoder import HEADER_KEY, IN_FP32, Encoder
from holdfast.models.esm import FAIR_ESM, VOCABULARY, letters_of
from holdfast.models.mosaic_bert import MAX_DNA_BP
from holdfast.models.registry import (
    DNABERT_S_SIZES,
    ESM2_SIZES,
    WEIGHTS_FILE,
    Output,
    Prepared,
    family_module,
    read_prepared,
)
from holdfast.models.synthetic import SEED
from holdfast.pool.batches import Recipe
from safetensors.torch import save_file
from torch import Tensor

Architecture = dict[str, int | float | str | bool]


def esm2_architecture(name: str) -> Architecture:
    """Sizes of a published ESM-2."""
    layers, width, heads, _ = ESM2_SIZES[name]
    sizes: Architecture = {"layers": layers, "width": width, "heads": heads, "mlp_width": 4 * width}
    sizes |= {"vocabulary": 33, "layer_norm_epsilon": 1e-5, "token_dropout": True}
    return sizes | {"positions": 0, "embed_norm": False}


def dnabert_s_architecture() -> Architecture:
    """Sizes of the published DNABERT-S."""
    layers, width, heads, mlp_width, vocabulary = DNABERT_S_SIZES["dnabert_s"]
    sizes: Architecture = {"layers": layers, "width": width, "heads": heads, "mlp_width": mlp_width}
    return sizes | {"vocabulary": vocabulary, "token_types": 2, "layer_norm_epsilon": 1e-12}


def describe(family: str, architecture: Architecture) -> Prepared:
    """What ``model.json`` says of an ESM-2 or a DNABERT-S; the digest, by which pools know a model, is of its sizes."""
    is_protein = family == "esm"
    return Prepared(
        family=family,
        alphabet="protein" if is_protein else "nucleotide",
        architecture=architecture,
        layers=int(architecture["layers"]),
        width=int(architecture["width"]),
        letters=letters_of(VOCABULARY) if is_protein else None,
        start_tokens=1,
        end_tokens=1,
        start_is_cls=True,
        mean_of="residues" if is_protein else "tokens",
        max_length=None if is_protein else MAX_DNA_BP,
        long="whole" if is_protein else "refuse",
        source="synthetic:bench",
        source_sha256="",
        weights_sha256=hashlib.sha256(json.dumps([family, architecture]).encode()).hexdigest(),
        synthetic=True,
        verification={},
    )


def make(family: str, architecture: Architecture, device: str, dtype: torch.dtype) -> dict[str, Tensor]:
    """Seeded random weights by the encoder's own names, ``inv_freq`` as released files have it."""
    generator = torch.Generator(device).manual_seed(SEED)
    weights = {}
    for name, shape in family_module(family).tensor_shapes(architecture).items():
        values = torch.randn(shape, generator=generator, device=device)
        if name == "inv_freq":
            exponents = torch.arange(0, 2 * shape[0], 2, device=device) / (2 * shape[0])
            weights[name] = (1 / 10000**exponents).half().float()
            continue
        if len(shape) == 1:
            values = 0.1 * values + (1.0 if name.endswith("weight") else 0.0)
        elif not name.startswith(("embed.", "token_type.")):
            values /= shape[1] ** 0.5
        weights[name] = values.to(dtype).to(torch.float32 if name in IN_FP32 else dtype)
    return weights


def write_prepared(family: str, architecture: Architecture, weights: dict[str, Tensor], directory: Path) -> Path:
    """Write a prepared model as preparation does, but for the tokenizer and the comparison with a reference."""
    directory.mkdir()
    header = {HEADER_KEY: json.dumps({"architecture": architecture})}
    save_file({name: tensor.cpu() for name, tensor in weights.items()}, directory / WEIGHTS_FILE, header)
    describe(family, architecture).write(directory)
    return directory


def recipe(directory: Path) -> Recipe:
    """What the pool asks of a prepared model by default: the means after its last layer."""
    known = read_prepared(directory)
    return Recipe(known.weights_sha256, (Output(known.layers, "mean"),), None, "")


def means(encoder: Encoder, tokens: Tensor, lengths: Sequence[int]) -> Tensor:
    """The means after the last layer, float32 [sequences, width] on the device."""
    output = Output(encoder.layers, "mean")
    return encoder.embed(tokens, lengths, [output])[output]


def published(weights: dict[str, Tensor], layout: Layout) -> dict[str, Tensor]:
    """The same tensors, not copied, by a published format's names; ``inv_freq`` is left out."""
    found: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        if name != "inv_freq":
            names = layout.published(name)
            found |= dict(zip(names, tensor.chunk(len(names)), strict=True))
    return found


def write_fair_esm(architecture: Architecture, weights: dict[str, Tensor], path: Path) -> Path:
    """Write ESM-2 as fair-esm publishes it; with the contact regression, which its loader wants."""
    state = OrderedDict(
        (f"encoder.sentence_encoder.{name}", tensor.cpu().clone())
        for name, tensor in published(weights, FAIR_ESM).items()
    )
    width, layers, heads = (int(architecture[name]) for name in ("width", "layers", "heads"))
    for layer in range(layers):
        state[f"encoder.sentence_encoder.layers.{layer}.self_attn.rot_emb.inv_freq"] = weights["inv_freq"].cpu()
    state["encoder.lm_head.weight"] = state["encoder.sentence_encoder.embed_tokens.weight"]
    state["encoder.lm_head.bias"] = torch.zeros(33)
    state["encoder.lm_head.dense.weight"] = torch.zeros(width, width)
    for name in ("dense.bias", "layer_norm.weight", "layer_norm.bias"):
        state[f"encoder.lm_head.{name}"] = torch.zeros(width)
    config = argparse.Namespace(
        encoder_layers=layers, encoder_embed_dim=width, encoder_attention_heads=heads, token_dropout=True
    )
    torch.save({"cfg": {"model": config}, "model": state}, path)
    regression = {"contact_head.regression.weight": torch.zeros(1, layers * heads)}
    regression["contact_head.regression.bias"] = torch.zeros(1)
    torch.save({"model": regression}, path.with_name(f"{path.stem}-contact-regression.pt"))
    return path
