"""The genuine implementations that an encoder is compared with: classes of fair-esm and of transformers.

Each takes what a published checkpoint holds and token ids, and gives the states of its last layer in fp32. Weights stay
mapped; a layer's are in memory, in fp32, while the library's own module for that layer computes. Nobody but the
families' readers of checkpoints uses them; runs of the workflow need neither library.
"""

import argparse
import contextlib
import functools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .checkpoint import map_tensors, weights_files

PAD = 1  # of the ESM family; behind a sequence and masked, so that another number would do as well


@torch.inference_mode()
def encode_fair_esm(
    sizes: Mapping[str, int | float | str | bool], tensors: Mapping[str, Tensor], sequences: Sequence[Tensor]
) -> list[Tensor]:
    """States of fair-esm's own classes in fp32, built without their slow initialisation.

    Args:
        sizes: As the family has them.
        tensors: By fair-esm's names without prefix.
        sequences: Token ids, one tensor each.

    Returns:
        [tokens, width] for each sequence.
    """
    import esm
    from esm.model.esm1 import ProteinBertModel
    from esm.model.esm2 import ESM2

    layers, width, heads = (int(sizes[name]) for name in ("layers", "width", "heads"))
    model: torch.nn.Module
    with torch.device("meta"):
        if sizes["positions"]:
            known = argparse.Namespace(
                arch="roberta_large",
                layers=layers,
                embed_dim=width,
                ffn_embed_dim=int(sizes["mlp_width"]),
                attention_heads=heads,
                max_positions=int(sizes["positions"]) - 2,
                token_dropout=bool(sizes["token_dropout"]),
                emb_layer_norm_before=bool(sizes["embed_norm"]),
            )
            model = ProteinBertModel(known, esm.Alphabet.from_architecture("roberta_large"))
        else:
            model = ESM2(layers, width, heads, token_dropout=bool(sizes["token_dropout"]))
    model.lm_head = torch.nn.Identity()
    model.load_state_dict(
        {name: tensor for name, tensor in tensors.items() if not name.startswith("lm_head.")},
        strict=False,
        assign=True,
    )
    _widen_by_layers(model)
    tokens, _ = _padded(sequences)
    states = model.eval()(tokens, repr_layers=[layers])["representations"][layers]
    return [row[: len(sequence)] for row, sequence in zip(states, sequences, strict=True)]


@torch.inference_mode()
def encode_transformers(
    directory: Path, name: str, options: Mapping[str, Any], sequences: Sequence[Tensor]
) -> list[Tensor]:
    """States of a class of transformers in fp32.

    Args:
        directory: A Hugging Face directory.
        name: Of the class.
        options: What it takes beside.
        sequences: Token ids, one tensor each.

    Returns:
        [tokens, width] for each sequence.
    """
    import transformers

    stored = map_tensors(weights_files(directory) or [])
    kinds = [tensor.dtype for part, tensor in stored.items() if not part.endswith("inv_freq")]  # a buffer keeps its own
    published = getattr(transformers, name)
    with _quiet_transformers(), _as_stored(published):
        model = published.from_pretrained(
            directory,
            dtype=functools.reduce(torch.promote_types, kinds),
            attn_implementation="eager",
            local_files_only=True,
            trust_remote_code=False,
            **options,
        )
    _widen_by_layers(model)
    tokens, mask = _padded(sequences)
    states = model.eval()(tokens, attention_mask=mask).last_hidden_state
    return [row[: len(sequence)] for row, sequence in zip(states, sequences, strict=True)]


def _widen_by_layers(model: torch.nn.Module) -> None:
    """Have a model compute in fp32 with mapped weights of any precision, its layers one at a time.

    Layers are the members of the outermost lists of modules; what is outside of them is small, and so are buffers.
    """
    lists = [name for name, module in model.named_modules() if isinstance(module, torch.nn.ModuleList)]
    inner = [name for name in lists if any(name.startswith(f"{other}.") for other in lists)]
    layers = [layer for name in lists if name not in inner for layer in model.get_submodule(name).children()]
    mapped = {parameter for layer in layers for parameter in layer.parameters()}
    for small in {*model.parameters(), *model.buffers()} - mapped:
        small.data = small.data.float() if small.is_floating_point() else small.data

    def widen(layer: torch.nn.Module, _: Any) -> None:
        for parameter in layer.parameters():
            stored[parameter] = parameter.data
            parameter.data = parameter.data.float()

    def narrow(layer: torch.nn.Module, _: Any, __: Any) -> None:
        for parameter in layer.parameters():
            parameter.data = stored.pop(parameter)

    stored: dict[torch.nn.Parameter, Tensor] = {}
    for layer in layers:
        layer.register_forward_pre_hook(widen)
        layer.register_forward_hook(narrow)


def _padded(sequences: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Tokens and mask, [sequences, longest] each."""
    tokens = torch.nn.utils.rnn.pad_sequence(list(sequences), batch_first=True, padding_value=PAD)
    mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(each) for each in sequences], batch_first=True)
    return tokens, mask


@contextlib.contextmanager
def _as_stored(published: type) -> Iterator[None]:
    """Let a class of transformers keep all weights as they are stored: T5 would have half of them copied into fp32."""
    wish = "_keep_in_fp32_modules"
    classes = {each: vars(each)[wish] for each in published.__mro__ if wish in vars(each)}
    for each in classes:
        setattr(each, wish, None)
    try:
        yield
    finally:
        for each, value in classes.items():
            setattr(each, wish, value)


@contextlib.contextmanager
def _quiet_transformers() -> Iterator[None]:
    """Without progress bars and without the report of unused heads."""
    from transformers.utils import logging

    verbosity, progress = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if progress:
            logging.enable_progress_bar()
