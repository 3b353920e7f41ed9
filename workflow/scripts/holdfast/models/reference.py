"""The genuine implementations that an encoder is compared with: fair-esm's class and transformers' EsmModel.

Each takes what a published checkpoint holds and token ids, and gives the states of its last layer in fp32. Nobody but
:mod:`.checkpoint` uses them; runs of the workflow need neither library.
"""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from ..sequences.tokens import VOCABULARY

PAD = VOCABULARY.index("<pad>")


@torch.inference_mode()
def encode_fair_esm(
    sizes: Mapping[str, int], tensors: Mapping[str, Tensor], sequences: Sequence[Tensor]
) -> list[Tensor]:
    """States of fair-esm's own class in fp32, built without its slow initialisation.

    Args:
        sizes: layers, width, heads, token_dropout.
        tensors: By fair-esm's names without prefix.
        sequences: Token ids, one tensor each.

    Returns:
        [tokens, width] for each sequence.
    """
    from esm.model.esm2 import ESM2

    with torch.device("meta"):
        model = ESM2(sizes["layers"], sizes["width"], sizes["heads"], token_dropout=bool(sizes["token_dropout"]))
    model.lm_head = torch.nn.Identity()
    model.load_state_dict(
        {name: tensor.float() for name, tensor in tensors.items() if not name.startswith("lm_head.")},
        strict=False,
        assign=True,
    )
    last = model.num_layers
    states = model.eval()(_padded(sequences), repr_layers=[last])["representations"][last]
    return [row[: len(sequence)] for row, sequence in zip(states, sequences, strict=True)]


@torch.inference_mode()
def encode_transformers(directory: Path, sequences: Sequence[Tensor]) -> list[Tensor]:
    """States of transformers' EsmModel in fp32."""
    from transformers import EsmModel

    with _quiet_transformers():
        model = EsmModel.from_pretrained(
            directory,
            dtype=torch.float32,
            add_pooling_layer=False,
            attn_implementation="eager",
            local_files_only=True,
            trust_remote_code=False,
        )
    tokens = _padded(sequences)
    states = model.eval()(tokens, attention_mask=(tokens != PAD).long()).last_hidden_state
    return [row[: len(sequence)] for row, sequence in zip(states, sequences, strict=True)]


def _padded(sequences: Sequence[Tensor]) -> Tensor:
    return torch.nn.utils.rnn.pad_sequence(list(sequences), batch_first=True, padding_value=PAD)


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
