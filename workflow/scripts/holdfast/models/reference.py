"""The genuine implementations that an encoder is compared with: classes of fair-esm and of transformers.

Each takes what a published checkpoint holds and token ids, and gives the states of its last layer in fp32. Nobody but
the families' readers of checkpoints uses them; runs of the workflow need neither library.
"""

import argparse
import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

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
        {name: tensor.float() for name, tensor in tensors.items() if not name.startswith("lm_head.")},
        strict=False,
        assign=True,
    )
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

    with _quiet_transformers():
        model = getattr(transformers, name).from_pretrained(
            directory,
            dtype=torch.float32,
            attn_implementation="eager",
            local_files_only=True,
            trust_remote_code=False,
            **options,
        )
    tokens, mask = _padded(sequences)
    states = model.eval()(tokens, attention_mask=mask).last_hidden_state
    return [row[: len(sequence)] for row, sequence in zip(states, sequences, strict=True)]


def _padded(sequences: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Tokens and mask, [sequences, longest] each."""
    tokens = torch.nn.utils.rnn.pad_sequence(list(sequences), batch_first=True, padding_value=PAD)
    mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(each) for each in sequences], batch_first=True)
    return tokens, mask


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
