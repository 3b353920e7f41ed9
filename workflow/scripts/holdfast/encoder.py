"""What both encoders do with a batch; the layers are in :mod:`.esm2` and :mod:`.dnabert_s`."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F  # noqa: N812, torch's own abbreviation
from torch import Tensor

from . import steps
from .packed import Architecture, Packing

CPU_TOKENS = 1024  # worked on at once on a CPU, so that what passes from step to step stays in its caches


class Encoder:
    """An encoder with its weights on one device.

    Attributes:
        width: Columns of a state and of an embedding.
        device: Where the weights are and results stay.
        pooled: The tokens of a sequence whose mean is its embedding.
    """

    pooled: slice

    def __init__(self, weights: dict[str, Tensor], architecture: Architecture) -> None:
        """Take the weights as :func:`.packed.read_weights` gives them."""
        self.width = int(architecture["width"])
        self.device = weights["embed.weight"].device
        self._weights = weights
        self._layers, self._heads = int(architecture["layers"]), int(architecture["heads"])
        self._epsilon = float(architecture["layer_norm_epsilon"])
        self._steps = steps.choose(weights["embed.weight"])

    @torch.inference_mode()
    def encode(self, tokens: Tensor, lengths: Sequence[int]) -> Tensor:
        """States of the last layer, for ESM-2 after the final LayerNorm.

        Args:
            tokens: integers [T], the sequences one behind the other, each with its special tokens, without <mask>.
            lengths: Tokens of each sequence; their sum is T.

        Returns:
            [T, width] on the device, in the precision of the weights.

        Raises:
            ValueError: no sequence, an empty one, or lengths that do not add up to T.
        """
        packing = Packing(lengths, self.device)
        return packing.restore(self._states_of(tokens, packing))

    @torch.inference_mode()
    def embed(self, tokens: Tensor, lengths: Sequence[int]) -> Tensor:
        """Mean state over the :attr:`pooled` tokens of each sequence: float32 [sequences, width].

        Raises:
            ValueError: as :meth:`encode`, or a sequence without tokens to pool.
        """
        packing = Packing(lengths, self.device)
        if not range(packing.lengths[0])[self.pooled]:
            raise ValueError("a protein needs at least one residue between <cls> and <eos>")
        return packing.means(self._states_of(tokens, packing), self.pooled)

    def _states_of(self, tokens: Tensor, packing: Packing) -> Tensor:
        """States in the order of the packing, [T, width]."""
        arranged = packing.arrange(tokens).long()
        if self.device.type != "cpu":
            return self._states(arranged, packing)
        return torch.cat([self._states(arranged[rows], part) for rows, part in packing.parts(CPU_TOKENS)])

    def _states(self, tokens: Tensor, packing: Packing) -> Tensor:
        """States of tokens int64 [T], both in the order of the packing, [T, width]."""
        raise NotImplementedError

    def _linear(self, x: Tensor, name: str) -> Tensor:
        return F.linear(x, self._weights[name + ".weight"], self._weights.get(name + ".bias"))

    def _norm(self, x: Tensor, name: str) -> Tensor:
        weight, bias = self._weights[name + ".weight"], self._weights[name + ".bias"]
        return F.layer_norm(x, (self.width,), weight, bias, self._epsilon)

    def _add_norm(self, x: Tensor, y: Tensor, name: str) -> tuple[Tensor, Tensor]:
        weight, bias = self._weights[name + ".weight"], self._weights[name + ".bias"]
        total, normed = self._steps.add_norm(x, y, weight, bias, self._epsilon)
        return total, normed
