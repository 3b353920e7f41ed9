"""Synthetic checkpoints: seeded random weights in the published formats, at the published sizes.

:func:`write_synthetic` gives what a user would name as a source, so that synthetic weights go the way of published
ones from the first byte on. The values are the same on every machine.
"""

import argparse
import json
import random
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path

import tokenizers
import torch
from safetensors.torch import save_file
from torch import Tensor

from ..errors import WeightsError
from .encoder import Architecture
from .mosaic_bert import DNABERT_S, tensor_shapes
from .registry import TOKENIZER_FILE

PREFIX = "synthetic:"
SEED = 20231116
ESM2_SIZES = {  # layers, width, heads, dtype of the released file
    "esm2_t6_8M_UR50D": (6, 320, 20, torch.float32),
    "esm2_t12_35M_UR50D": (12, 480, 20, torch.float32),
    "esm2_t30_150M_UR50D": (30, 640, 20, torch.float32),
    "esm2_t33_650M_UR50D": (33, 1280, 20, torch.float32),
    "esm2_t36_3B_UR50D": (36, 2560, 40, torch.float16),
    "esm2_t48_15B_UR50D": (48, 5120, 40, torch.float16),
}
DNABERT_S_SIZES = {  # layers, width, heads, mlp width, vocabulary
    "dnabert_s": (12, 768, 12, 3072, 4096),
    "dnabert_s_tiny": (2, 96, 12, 192, 256),
}


def model_of(source: str) -> str:
    """The model of ``synthetic:ARCHITECTURE``; WeightsError as :func:`write_synthetic`."""
    return _find(source)[0]


def write_synthetic(source: str, directory: Path) -> Path:
    """Write a seeded random checkpoint in the published format and return what a user would name as its source.

    Args:
        source: ``synthetic:ARCHITECTURE``.
        directory: To make and write to.

    Raises:
        WeightsError: no such architecture.
    """
    _, architecture, write = _find(source)
    directory.mkdir()
    return write(architecture, directory)


def _find(source: str) -> tuple[str, str, Callable[[str, Path], Path]]:
    """Model, architecture and writer of a source."""
    architecture = source.removeprefix(PREFIX)
    if architecture in ESM2_SIZES:
        return "esm2", architecture, write_esm2
    if architecture in DNABERT_S_SIZES:
        return "dnabert_s", architecture, write_dnabert_s
    known = ", ".join([*ESM2_SIZES, *DNABERT_S_SIZES])
    raise WeightsError(f"{source}: no such architecture; use {PREFIX} with one of {known}")


def write_esm2(architecture: str, directory: Path) -> Path:
    """As fair-esm publishes ESM-2: prefixed names, heads, fp16-rounded ``inv_freq``, contact regression beside it."""
    from esm.model.esm2 import ESM2

    layers, width, heads, dtype = ESM2_SIZES[architecture]
    generator = torch.Generator().manual_seed(SEED)
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in ESM2(layers, width, heads).state_dict().items()}
    frequencies = 1.0 / (10000 ** (torch.arange(0, width // heads, 2) / (width // heads)))
    state, regression = OrderedDict(), OrderedDict()
    for name, shape in shapes.items():
        if name.startswith("contact_head."):
            regression[name] = _random(name, shape, generator)
        elif name.endswith("inv_freq"):
            state[f"encoder.sentence_encoder.{name}"] = frequencies.half().to(dtype)
        elif name == "lm_head.weight":
            state[f"encoder.{name}"] = state["encoder.sentence_encoder.embed_tokens.weight"]
        else:
            prefix = "encoder." if name.startswith("lm_head.") else "encoder.sentence_encoder."
            state[prefix + name] = _random(name, shape, generator).to(dtype)
    config = argparse.Namespace(
        encoder_layers=layers,
        encoder_embed_dim=width,
        encoder_ffn_embed_dim=4 * width,
        encoder_attention_heads=heads,
        token_dropout=True,
    )
    path = directory / f"{architecture}.pt"
    torch.save({"cfg": {"model": config}, "model": state}, path)
    torch.save({"model": regression}, directory / f"{architecture}-contact-regression.pt")
    return path


def write_dnabert_s(architecture: str, directory: Path) -> Path:
    """As DNABERT-S is published: configuration, weights with the unused pooler, tokenizer."""
    layers, width, heads, mlp_width, vocabulary = DNABERT_S_SIZES[architecture]
    sizes: Architecture = {
        "layers": layers,
        "width": width,
        "mlp_width": mlp_width,
        "vocabulary": vocabulary,
        "token_types": 2,
    }
    generator = torch.Generator().manual_seed(SEED)
    shapes = {DNABERT_S.published(own)[0]: shape for own, shape in tensor_shapes(sizes).items()}
    shapes |= {"pooler.dense.weight": (width, width), "pooler.dense.bias": (width,)}
    save_file(
        {name: _random(name, shape, generator) for name, shape in shapes.items()}, directory / "model.safetensors"
    )
    config = {
        "architectures": ["BertForMaskedLM"],
        "hidden_size": width,
        "intermediate_size": mlp_width,
        "layer_norm_eps": 1e-12,
        "model_type": "bert",
        "num_attention_heads": heads,
        "num_hidden_layers": layers,
        "type_vocab_size": 2,
        "vocab_size": vocabulary,
    }
    (directory / "config.json").write_text(json.dumps(config, indent=2))
    write_tokenizer(vocabulary, directory / TOKENIZER_FILE)
    return directory


def _random(name: str, shape: Sequence[int], generator: torch.Generator) -> Tensor:
    """Seeded values that keep the scale from layer to layer, so that embeddings differ as their sequences do."""
    values = torch.randn(tuple(shape), generator=generator)
    if len(shape) == 1:
        return 0.1 * values + (1.0 if name.endswith("weight") else 0.0)
    if name.endswith(("embed_tokens.weight", "word_embeddings.weight")):
        return values
    return values / shape[-1] ** 0.5


def write_tokenizer(vocabulary: int, path: Path) -> None:
    """Write a BPE tokenizer shaped as the published one, learned from seeded random DNA.

    With 4096 tokens it gives 500 nt 100-114 tokens (published: 100-119). Truncation and padding to 2000 are on, as
    published; a reader has to switch them off.
    """
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    bases = random.Random(SEED)
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=["[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]"], show_progress=False
    )
    tokenizer.train_from_iterator(("".join(bases.choices("ACGT", k=500)) for _ in range(400)), trainer)
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    tokenizer.enable_truncation(2000)
    tokenizer.enable_padding(length=2000, pad_id=3, pad_token="[PAD]")
    tokenizer.save(str(path))
