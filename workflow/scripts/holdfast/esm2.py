"""ESM-2, a protein encoder, on packed batches.

Token ids of a batch come in one behind the other, one state a token goes out; :mod:`.packed` keeps the sequences
apart.

Architecture: Lin et al. 2023, doi:10.1126/science.ade2574 (pre-LN transformer, rotary positions, exact GELU).
"""

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F  # noqa: N812, torch's own abbreviation
from torch import Tensor

from .packed import Architecture, Packing, Shapes, read_weights

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
        for name, rows, columns in (
            ("qkv", 3 * width, width),
            ("attention_output", width, width),
            ("mlp_in", mlp_width, width),
            ("mlp_out", width, mlp_width),
        ):
            shapes[f"layers.{layer}.{name}.weight"] = (rows, columns)
            shapes[f"layers.{layer}.{name}.bias"] = (rows,)
        for name in ("attention_norm", "mlp_norm"):
            shapes[f"layers.{layer}.{name}.weight"] = (width,)
            shapes[f"layers.{layer}.{name}.bias"] = (width,)
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


class Esm2:
    """ESM-2 with its weights on one device.

    Attributes:
        width: Columns of a state and of an embedding.
        device: Where the weights are and results stay.
    """

    def __init__(self, weights: dict[str, Tensor], architecture: Architecture) -> None:
        self.width = int(architecture["width"])
        self.device = weights["embed.weight"].device
        self._weights = weights
        self._layers = int(architecture["layers"])
        self._heads = int(architecture["heads"])
        self._epsilon = float(architecture["layer_norm_epsilon"])
        self._scale = UNMASKED_FRACTION if architecture["token_dropout"] else 1.0

    @torch.inference_mode()
    def encode(self, tokens: Tensor, lengths: Sequence[int]) -> Tensor:
        """States after the final LayerNorm, as fair-esm's last representation.

        Args:
            tokens: integers [T], the sequences one behind the other, each with its <cls> and <eos>, without <mask>.
            lengths: Tokens of each sequence; their sum is T.

        Returns:
            [T, width] on the device, in the precision of the weights.
        """
        packing = Packing(lengths, self.device)
        return packing.restore(self._states(tokens, packing))

    @torch.inference_mode()
    def embed(self, tokens: Tensor, lengths: Sequence[int]) -> Tensor:
        """Mean state over the residues of each sequence, without <cls> and <eos>: float32 [sequences, width].

        Raises:
            ValueError: a sequence without residues (fewer than 3 tokens).
        """
        if min(lengths) < 3:
            raise ValueError("a protein needs at least one residue between <cls> and <eos>")
        packing = Packing(lengths, self.device)
        return packing.means(self._states(tokens, packing), slice(1, -1))

    def _states(self, tokens: Tensor, packing: Packing) -> Tensor:
        """States in the order of the packing, [T, width]."""
        weights = self._weights
        rotation = packing.positions[:, None, None, None].float() * weights["inv_freq"]
        cosine, sine = rotation.cos(), rotation.sin()  # fp32 [T, 1, 1, head width / 2]
        x = F.embedding(packing.arrange(tokens).long(), weights["embed.weight"]) * self._scale
        for layer in range(self._layers):
            name = f"layers.{layer}."
            qkv = self._linear(self._norm(x, name + "attention_norm"), name + "qkv")
            qkv = qkv.view(len(x), 3, self._heads, -1)
            qkv[:, :2] = _rotated(qkv[:, :2].float(), cosine, sine)
            x = x + self._linear(packing.attention(qkv), name + "attention_output")
            hidden = F.gelu(self._linear(self._norm(x, name + "mlp_norm"), name + "mlp_in"))
            x = x + self._linear(hidden, name + "mlp_out")
        return self._norm(x, "final_norm")

    def _linear(self, x: Tensor, name: str) -> Tensor:
        return F.linear(x, self._weights[name + ".weight"], self._weights[name + ".bias"])

    def _norm(self, x: Tensor, name: str) -> Tensor:
        weight, bias = self._weights[name + ".weight"], self._weights[name + ".bias"]
        return F.layer_norm(x, (self.width,), weight, bias, self._epsilon)


def _rotated(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Rotary positions (Su et al. 2021, arXiv:2104.09864), component i paired with i + half: [T, 2, heads, d]."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cosine - second * sine, second * cosine + first * sine), dim=-1)
