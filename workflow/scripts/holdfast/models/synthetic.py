"""Synthetic checkpoints: seeded random weights in the published formats, at the published sizes.

:func:`write_synthetic` gives what a user would name as a source, so that synthetic weights go the way of published
ones from the first byte on. The values are the same on every machine.
"""

import argparse
import io
import json
import random
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import tokenizers
import torch
from torch import Tensor

from . import esm, esmc, mosaic_bert, t5
from .checkpoint import DTYPES, Layout, as_bytes
from .encoder import Architecture, Shapes
from .registry import (
    DNABERT_S_SIZES,
    ESM1_SIZES,
    ESM2_SIZES,
    ESMC_SIZES,
    OUTLIERS,
    PREFIX,
    T5_SIZES,
    TOKENIZER_FILE,
    require_known,
)
from .safetensors_file import Entry, write_tensors

OUTLIER_SIZE = 300.0
OUTLIER_CHANNELS = (7, 33)  # that the MLPs of the first layers push, one each
SEED = 20231116


def write_synthetic(source: str, directory: Path) -> Path:
    """Write a seeded random checkpoint in the published format and return what a user would name as its source.

    Args:
        source: ``synthetic:ARCHITECTURE``, or ``synthetic:ARCHITECTURE+outliers``, see :func:`push_channels`.
        directory: To make and write to.

    Raises:
        WeightsError: no such architecture.
    """
    require_known(source)
    architecture = source.removeprefix(PREFIX).removesuffix(OUTLIERS)
    outliers = OUTLIER_SIZE if source.endswith(OUTLIERS) else 0.0
    tables: dict[Callable[[str, Path, float], Path], Mapping[str, object]] = {
        write_esm2: ESM2_SIZES,
        write_esm1: ESM1_SIZES,
        write_esmc: ESMC_SIZES,
        write_t5: T5_SIZES,
        write_dnabert_s: DNABERT_S_SIZES,
    }
    directory.mkdir()
    write = next(write for write, sizes in tables.items() if architecture in sizes)
    return write(architecture, directory, outliers)


def write_esm2(architecture: str, directory: Path, outliers: float = 0.0) -> Path:
    """As fair-esm publishes ESM-2: prefixed names, heads, fp16-rounded ``inv_freq``, contact regression beside it."""
    from esm.model.esm2 import ESM2  # the library, not the family

    layers, width, heads, named = ESM2_SIZES[architecture]
    dtype: torch.dtype = getattr(torch, named)
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
            state[prefix + name] = _on_disk(_random(name, shape, generator).to(dtype), directory)
    push_channels(state, esm.FAIR_ESM, outliers)
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


def write_esm1(architecture: str, directory: Path, outliers: float = 0.0) -> Path:
    """As fair-esm publishes ESM-1b and ESM-1v: ``args`` in place of ``cfg``, learned positions, heads."""
    layers, width, heads, embed_norm = ESM1_SIZES[architecture]
    generator = torch.Generator().manual_seed(SEED)
    sizes: Architecture = {
        "layers": layers,
        "width": width,
        "heads": heads,
        "mlp_width": 4 * width,
        "vocabulary": 33,
        "positions": 1026,
        "embed_norm": embed_norm,
    }
    state = OrderedDict()
    for own, shape in esm.tensor_shapes(sizes).items():
        parts = esm.FAIR_ESM.published(own)
        for name in parts:
            values = _random(name, (shape[0] // len(parts), *shape[1:]), generator)
            state[f"encoder.sentence_encoder.{name}"] = _on_disk(values, directory)
    state["encoder.lm_head.weight"] = state["encoder.sentence_encoder.embed_tokens.weight"]
    push_channels(state, esm.FAIR_ESM, outliers)
    args = argparse.Namespace(
        arch="roberta_large",
        encoder_layers=layers,
        encoder_embed_dim=width,
        encoder_ffn_embed_dim=4 * width,
        encoder_attention_heads=heads,
        max_positions=1024,
        token_dropout=True,
    )
    path = directory / f"{architecture}.pt"
    torch.save({"args": args, "model": state}, path)
    return path


def write_esmc(architecture: str, directory: Path, outliers: float = 0.0) -> Path:
    """As transformers publishes ESM C: configuration and weights."""
    layers, width, heads, mlp_width = ESMC_SIZES[architecture]
    sizes: Architecture = {
        "layers": layers,
        "width": width,
        "heads": heads,
        "mlp_width": mlp_width,
        "vocabulary": 64,
        "rotary_base": 10000.0,
    }
    config = {
        "architectures": ["EsmcModel"],
        "hidden_size": width,
        "intermediate_size": mlp_width,
        "model_type": "esmc",
        "num_attention_heads": heads,
        "num_hidden_layers": layers,
        "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"},
        "vocab_size": 64,
    }
    _write_directory(directory, config, esmc.HUGGING_FACE, esmc.tensor_shapes(sizes), outliers)
    return directory


def write_t5(architecture: str, directory: Path, outliers: float = 0.0) -> Path:
    """As ProtT5, ProstT5 and Ankh are published: configuration, weights, vocabulary."""
    layers, width, heads, head_width, mlp_width, buckets, projection = T5_SIZES[architecture]
    sizes: Architecture = {
        "layers": layers,
        "width": width,
        "heads": heads,
        "head_width": head_width,
        "mlp_width": mlp_width,
        "vocabulary": 160,
        "buckets": buckets,
        "reach": 128,
        "activation": t5.ACTIVATIONS[projection],
    }
    config = {
        "architectures": ["T5EncoderModel"],
        "d_ff": mlp_width,
        "d_kv": head_width,
        "d_model": width,
        "feed_forward_proj": projection,
        "layer_norm_epsilon": 1e-6,
        "model_type": "t5",
        "num_heads": heads,
        "num_layers": layers,
        "relative_attention_max_distance": 128,
        "relative_attention_num_buckets": buckets,
        "vocab_size": 160,
    }
    layout = t5.PLAIN if projection == "relu" else t5.GATED
    _write_directory(directory, config, layout, t5.tensor_shapes(sizes), outliers, query_scale=head_width**-0.5)
    write_pieces(directory / t5.VOCABULARY_FILE, spaced=projection == "relu")
    if architecture.startswith("prost"):
        (directory / "added_tokens.json").write_text(json.dumps({t5.PREFIX: 149, "<fold2AA>": 148}))
    return directory


def write_pieces(path: Path, spaced: bool) -> None:
    """Write a vocabulary of SentencePiece whose pieces are residues.

    Args:
        path: Of the file, ``spiece.model``.
        spaced: Whether every residue follows a space, as in ProtT5's, or none does.
    """
    import sentencepiece

    residues = t5.RESIDUES + "X" + t5.RARE
    made = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([" ".join(residues)] * 4),
        model_writer=made,
        model_type="word" if spaced else "char",
        vocab_size=len(residues) + (3 if spaced else 4),  # padding, end, unknown; the space
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=2,
    )
    path.write_bytes(made.getvalue())


def write_dnabert_s(architecture: str, directory: Path, outliers: float = 0.0) -> Path:
    """As DNABERT-S is published: configuration, weights with the unused pooler, tokenizer."""
    layers, width, heads, mlp_width, vocabulary = DNABERT_S_SIZES[architecture]
    sizes: Architecture = {
        "layers": layers,
        "width": width,
        "mlp_width": mlp_width,
        "vocabulary": vocabulary,
        "token_types": 2,
    }
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
    pooler = {"pooler.dense.weight": (width, width), "pooler.dense.bias": (width,)}
    shapes = mosaic_bert.tensor_shapes(sizes)
    _write_directory(directory, config, mosaic_bert.HUGGING_FACE, shapes, outliers, pooler)
    write_tokenizer(vocabulary, directory / TOKENIZER_FILE)
    return directory


def _write_directory(
    directory: Path,
    config: dict[str, Any],
    layout: Layout,
    shapes: Shapes,
    outliers: float,
    more: Shapes | None = None,
    query_scale: float = 1.0,
) -> None:
    """Write configuration and seeded random weights, and more tensors that no embedding depends on.

    Where a family does not scale the scores of attention, its queries are trained small: ``query_scale``.
    """
    generator = torch.Generator().manual_seed(SEED)
    published: Shapes = {}
    for own, shape in shapes.items():
        if own != "inv_freq":  # which these formats leave to a formula
            parts = layout.published(own)
            published |= {name: (shape[0] // len(parts), *shape[1:]) for name in parts}
    published |= more or {}
    entries = {name: Entry(DTYPES[torch.float32], shape) for name, shape in published.items()}
    pushed = _pushed_channels(published, layout, outliers)

    def contents() -> Iterator[tuple[str, memoryview]]:
        for name, shape in published.items():
            values = _random(name, shape, generator)
            if name in pushed:
                _push(values, pushed[name], outliers)
            yield name, as_bytes(values * query_scale if name.endswith("SelfAttention.q.weight") else values)

    write_tensors(directory / "model.safetensors", entries, None, contents())
    (directory / "config.json").write_text(json.dumps(config, indent=2))


def push_channels(tensors: Mapping[str, Tensor], layout: Layout, size: float) -> None:
    """Give the residual stream a few channels of about a size, from the first layers on; 0 for none.

    Trained transformers have such channels, of hundreds to thousands: one of ESM-2 3B's holds 95% of the norm of its
    vectors. The MLP of a layer pushes a channel, by its last bias, or, where it has none, by its last product.

    Args:
        tensors: Of a checkpoint, by published names with or without a prefix; changed in place.
        layout: Of these names.
        size: In units of the other channels, which are about 1.
    """
    for name, channel in _pushed_channels(tensors, layout, size).items():
        _push(tensors[name], channel, size)


def _pushed_channels(names: Iterable[str], layout: Layout, size: float) -> dict[str, int]:
    """The tensors that push a channel, by name, and which one."""
    found: dict[str, int] = {}
    for layer, channel in enumerate(OUTLIER_CHANNELS if size else ()):
        (bias,), (weight,) = (layout.published(f"layers.{layer}.mlp_out.{kind}") for kind in ("bias", "weight"))
        pushing = [name for name in names if name.endswith((bias, weight))]
        found |= {name: channel for name in pushing if name.endswith(bias) or len(pushing) == 1}
    return found


def _push(tensor: Tensor, channel: int, size: float) -> None:
    """Push a channel by a bias, or by a row of a product's weights; in place."""
    if tensor.ndim == 1:
        tensor[channel] += size
    else:
        tensor[channel] *= size


def _random(name: str, shape: Sequence[int], generator: torch.Generator) -> Tensor:
    """Seeded values that keep the scale from layer to layer, so that embeddings differ as their sequences do."""
    values = torch.randn(tuple(shape), generator=generator)
    if len(shape) == 1:
        return 0.1 * values + (1.0 if name.endswith("weight") else 0.0)
    if name.endswith(("embed_tokens.weight", "word_embeddings.weight", "shared.weight", "embed_positions.weight")):
        return values
    return values / shape[-1] ** 0.5


def _on_disk(values: Tensor, directory: Path) -> Tensor:
    """The same values in a mapped file, which has no name and goes with the tensor: they take no memory."""
    path = directory / "values"
    mapped = torch.from_file(str(path), shared=True, size=values.numel(), dtype=values.dtype).view(values.shape)
    path.unlink()
    return mapped.copy_(values)


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
