"""ESM-2, a protein encoder, on packed batches.

Token ids of a batch come in one behind the other, one state a token goes out; :mod:`.packed` keeps the sequences
apart.

Architecture: Lin et al. 2023, doi:10.1126/science.ade2574 (pre-LN transformer, rotary positions, exact GELU).
"""

from pathlib import Path

import torch
import torch.nn.functional as F  # noqa: N812, torch's own abbreviation
from torch import Tensor

from .encoder import Encoder
from .packed import Architecture, Packing, Shapes, layer_shapes, read_weights

UNMASKED_FRACTION = 1 - 0.15 * 0.8  # of residues in training; fair-esm scales by it when token_dropout is set


def tensor_shapes(architecture: Architecture) -> Shapes:
    """Name and shape of every tensor of a prepared ESM-2 of these sizes."""
    width, mlp_width = int(architecture["width"]), int(architecture["mlp_width"])
    shapes: Shapes = {
        "embed.weight": (int(architecture["vocabulary"]), width),
        "inv_freq": (width // int(architecture["heads"]) // 2,),
        "final_norm.weight": (width,),
        "final_norm.bias": (width,),
    }
    for layer in range(int(architecture["layers"])):
        shapes |= layer_shapes(layer, width, {"mlp_in": (mlp_width, width), "mlp_out": (width, mlp_width)})
    return shapes


def load(directory: str | Path, device: str | torch.device = "cpu", precision: str = "auto") -> "Esm2":
    """Map a prepared ESM-2 onto a device.

    Args:
        directory: As written by ``weights.prepare``.
        device: ``cpu``, ``cuda`` or ``cuda:N``.
        precision: ``fp32`` (exact: TF32 is switched off), ``fp16`` (rotary angles stay fp32), or ``auto``:
            fp16 on CUDA, fp32 on the CPU.

    Raises:
        WeightsError: not a prepared ESM-2, or a damaged one.
    """
    return Esm2(*read_weights(directory, "esm2", tensor_shapes, device, precision))


class Esm2(Encoder):
    """ESM-2; an embedding is the mean over the residues, without <cls> and <eos>."""

    pooled = slice(1, -1)

    def __init__(self, weights: dict[str, Tensor], architecture: Architecture) -> None:
        super().__init__(weights, architecture)
        self._scale = UNMASKED_FRACTION if architecture["token_dropout"] else 1.0

    def _states(self, tokens: Tensor, packing: Packing) -> Tensor:
        angles = packing.positions[:, None].float() * self._weights["inv_freq"]  # fp32 [T, head width / 2]
        cosine, sine = angles.cos().repeat(1, 2), torch.cat((-angles.sin(), angles.sin()), dim=1)
        x = F.embedding(tokens, self._weights["embed.weight"]) * self._scale
        normed = self._norm(x, "layers.0.attention_norm")
        for layer in range(self._layers):
            name = f"layers.{layer}."
            following = f"layers.{layer + 1}.attention_norm" if layer + 1 < self._layers else "final_norm"
            qkv = self._linear(normed, name + "qkv").view(len(x), 3, self._heads, -1)
            self._steps.rotate(qkv, cosine, sine)
            attended = self._linear(self._steps.attention(qkv, packing), name + "attention_output")
            x, normed = self._add_norm(x, attended, name + "mlp_norm")
            hidden = self._steps.gelu(self._linear(normed, name + "mlp_in"))
            x, normed = self._add_norm(x, self._linear(hidden, name + "mlp_out"), following)
        return normed
