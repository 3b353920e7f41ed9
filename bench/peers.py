"""The peers, built from the very tensors that our encoder holds: fair-esm's ESM2 and transformers' EsmModel.

Both pad. A batch is cut where its rows times its longest sequence would pass the budget of tokens.
"""

from collections.abc import Callable, Iterator
from itertools import pairwise

import numpy as np
import torch
from holdfast.models.esm import FAIR_ESM, HUGGING_FACE
from models import Architecture, published
from torch import Tensor
from transformers import EsmConfig, EsmModel

PAD = 1
Forward = Callable[[Tensor], Tensor]  # padded token ids [n, T] -> states [n, T, width]


def fair_esm(architecture: Architecture, weights: dict[str, Tensor]) -> Forward:
    """fair-esm in the precision of the weights, rotary angles included, as ``model.half()`` makes it."""
    from esm.model.esm2 import ESM2  # only here, since transformers alone may be installed

    layers, width, heads = (int(architecture[name]) for name in ("layers", "width", "heads"))
    with torch.device("meta"):
        model = ESM2(layers, width, heads)
    model.lm_head = torch.nn.Identity()
    state = published(weights, FAIR_ESM)
    dtype = weights["embed.weight"].dtype
    state |= {f"layers.{layer}.self_attn.rot_emb.inv_freq": weights["inv_freq"].to(dtype) for layer in range(layers)}
    model.load_state_dict(state, strict=False, assign=True)
    model.contact_head = torch.nn.Identity()
    model.eval()

    def forward(tokens: Tensor) -> Tensor:
        states: Tensor = model(tokens, repr_layers=[layers])["representations"][layers]
        return states

    return forward


def transformers_sdpa(architecture: Architecture, weights: dict[str, Tensor], compiled: bool = False) -> Forward:
    """Transformers with SDPA attention and fp32 rotary frequencies, as it is or through ``torch.compile``."""
    config = EsmConfig(
        vocab_size=33,
        mask_token_id=32,
        pad_token_id=PAD,
        hidden_size=int(architecture["width"]),
        num_hidden_layers=int(architecture["layers"]),
        num_attention_heads=int(architecture["heads"]),
        intermediate_size=int(architecture["mlp_width"]),
        position_embedding_type="rotary",
        emb_layer_norm_before=False,
        token_dropout=True,
        layer_norm_eps=1e-5,
    )
    config._attn_implementation = "sdpa"
    with torch.device("meta"):
        model = EsmModel(config, add_pooling_layer=False)
    state = published(weights, HUGGING_FACE)
    frequencies = [name for name, _ in model.named_buffers() if name.endswith("inv_freq")]
    model.load_state_dict(state, strict=False, assign=True)
    device = weights["embed.weight"].device
    for name in [*frequencies, *(n for n, b in model.named_buffers() if n.endswith("original_inv_freq"))]:
        owner, _, leaf = name.rpartition(".")
        model.get_submodule(owner).register_buffer(leaf, weights["inv_freq"], persistent=False)
    for name, buffer in list(model.named_buffers()):
        if buffer.is_meta:
            owner, _, leaf = name.rpartition(".")
            model.get_submodule(owner).register_buffer(
                leaf, torch.zeros(buffer.shape, dtype=buffer.dtype, device=device)
            )
    missing = [name for name, parameter in model.named_parameters() if parameter.is_meta and "contact_head" not in name]
    assert not missing, missing
    model.eval()
    called = torch.compile(model, dynamic=True) if compiled else model

    def forward(tokens: Tensor) -> Tensor:
        states: Tensor = called(tokens, attention_mask=(tokens != PAD).long()).last_hidden_state
        return states

    return forward


@torch.inference_mode()
def embed(forward: Forward, ids: np.ndarray, lengths: list[int], budget_tokens: int, device: str) -> np.ndarray:
    """From host tokens to mean residue states on the host, float32 [sequences, width], in the order given."""
    begins = [0, *np.cumsum(lengths).tolist()]
    found = []
    for first, last in pairwise(_cuts(lengths, budget_tokens)):
        chosen = lengths[first:last]
        padded = np.full((len(chosen), max(chosen)), PAD, np.int64)
        for row, number in enumerate(range(first, last)):
            padded[row, : lengths[number]] = ids[begins[number] : begins[number + 1]]
        states = forward(torch.from_numpy(padded).to(device))
        ends = torch.tensor(chosen, device=device)[:, None] - 1
        place = torch.arange(max(chosen), device=device)
        residues = ((place > 0) & (place < ends))[..., None]
        means = states.float().mul_(residues).sum(1) / (ends - 1)
        found.append(means.cpu().numpy())
    return np.concatenate(found)


def padded(lengths: list[int], budget_tokens: int) -> float:
    """Tokens that :func:`embed` gives to the peer, padding included, for each that there is."""
    cuts = pairwise(_cuts(lengths, budget_tokens))
    return sum((last - first) * max(lengths[first:last]) for first, last in cuts) / sum(lengths)


def _cuts(lengths: list[int], budget_tokens: int) -> Iterator[int]:
    first, longest = 0, 0
    for number, length in enumerate(lengths):
        longest = max(longest, length)
        if number > first and longest * (number + 1 - first) > budget_tokens:
            yield first
            first, longest = number, length
    yield first
    yield len(lengths)
