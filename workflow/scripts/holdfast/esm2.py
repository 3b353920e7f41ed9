"""ESM-2, a protein encoder, on packed batches.

Token ids of a batch come in one behind the other, one state a token goes out; there is no padding anywhere.
Inside, the sequences stand in order of length (:class:`Packing`), so that those of equal length are one plain
view ``[sequences, tokens, ...]`` and attention needs neither a mask nor an index in any layer.
:func:`read_weights` maps a prepared model onto the device; DNABERT-S uses it and the packing as well.

Architecture: Lin et al. 2023, doi:10.1126/science.ade2574 (pre-LN transformer, rotary positions, exact GELU).
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F  # noqa: N812, torch's own abbreviation
from safetensors import SafetensorError, safe_open
from torch import Tensor

from .errors import WeightsError
from .prepared import WEIGHTS_FILE
from .prepared import read as read_description

Architecture = Mapping[str, int | float | str | bool]
Shapes = dict[str, tuple[int, ...]]

HEADER_KEY = "holdfast"  # one entry as JSON: safetensors writes several in random order, and digests must not vary
PRECISIONS = {"fp32": torch.float32, "fp16": torch.float16}
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

    def _states(self, tokens: Tensor, packing: "Packing") -> Tensor:
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


class Packing:
    """Where the sequences of one batch stand, worked out once for all layers.

    Attributes:
        positions: int64 [T], the place of each token in its sequence, in the order of the packing.
        groups: (first row, sequences, tokens of each) for every distinct length, in the order of the packing.
    """

    def __init__(self, lengths: Sequence[int], device: torch.device) -> None:
        """Order the sequences by length; ``lengths`` in tokens, at least 1 each.

        Raises:
            ValueError: no sequence, or an empty one.
        """
        if len(lengths) == 0 or min(lengths) < 1:
            raise ValueError("a batch needs at least one sequence and every sequence a token")
        given = torch.tensor(lengths)
        ordered, order = torch.sort(given, stable=True)
        starts, ordered_starts = given.cumsum(0) - given, ordered.cumsum(0) - ordered
        positions = torch.arange(int(given.sum())) - torch.repeat_interleave(ordered_starts, ordered)
        rows = torch.repeat_interleave(starts[order], ordered) + positions
        values, counts = torch.unique_consecutive(ordered, return_counts=True)
        firsts = torch.cumsum(values * counts, 0) - values * counts
        self.groups: list[tuple[int, int, int]] = list(
            zip(firsts.tolist(), counts.tolist(), values.tolist(), strict=True)
        )
        self.positions = positions.to(device)
        self._rows, self._order = rows.to(device), order.to(device)

    def arrange(self, tokens: Tensor) -> Tensor:
        """Rows of the caller's order brought into the order of the packing.

        Raises:
            ValueError: another number of rows than the lengths add up to.
        """
        if len(tokens) != len(self._rows):
            raise ValueError(f"{len(tokens)} tokens, but the lengths add up to {len(self._rows)}")
        return tokens.to(self._rows.device)[self._rows]

    def restore(self, x: Tensor) -> Tensor:
        """Rows brought back into the caller's order."""
        restored = torch.empty_like(x)
        restored[self._rows] = x
        return restored

    def split(self, x: Tensor) -> Iterator[Tensor]:
        """A view [sequences, tokens, ...] for every group."""
        for first, sequences, tokens in self.groups:
            yield x[first : first + sequences * tokens].view(sequences, tokens, *x.shape[1:])

    def attention(
        self, qkv: Tensor, attend: Callable[[Tensor, Tensor, Tensor], Tensor] = F.scaled_dot_product_attention
    ) -> Tensor:
        """Attention of every sequence to itself: [T, 3, heads, d] -> [T, heads * d].

        ``attend`` gets queries, keys and values of one group, each [sequences, heads, tokens, d].
        """
        parts = (attend(*group.permute(2, 0, 3, 1, 4)) for group in self.split(qkv))
        return torch.cat([part.transpose(1, 2).flatten(0, 1).flatten(1) for part in parts])

    def means(self, x: Tensor, tokens: slice) -> Tensor:
        """Mean over the chosen tokens of each sequence, added up in fp32, in the caller's order: [sequences, C]."""
        pooled = torch.cat([group[:, tokens].mean(1, dtype=torch.float32) for group in self.split(x)])
        restored = torch.empty_like(pooled)
        restored[self._order] = pooled
        return restored


def read_weights(
    directory: str | Path,
    model: str,
    shapes: Callable[[Architecture], Shapes],
    device: str | torch.device,
    precision: str,
) -> tuple[dict[str, Tensor], Architecture]:
    """Map the tensors of a prepared model onto a device, one after the other, and check them.

    The file is mapped, not read: on the CPU a tensor that needs no conversion stays in the page cache, which
    all processes share; on CUDA it is copied from there straight to the device. ``inv_freq`` stays fp32.

    Raises:
        WeightsError: not a prepared model of this kind, or a damaged file.
    """
    description = read_description(directory)
    path = Path(directory) / WEIGHTS_FILE
    hint = "prepare the model again with workflow/scripts/prepare_weights.py"
    if description.model != model:
        raise WeightsError(f"{directory}: holds {description.model}, not {model}; name the directory of {model}")
    if precision == "auto":
        precision = "fp16" if torch.device(device).type == "cuda" else "fp32"
    if precision == "fp32":
        torch.set_float32_matmul_precision("highest")
    weights: dict[str, Tensor] = {}
    try:
        with safe_open(path, framework="pt", device=str(device)) as file:
            architecture = json.loads(file.metadata()[HEADER_KEY])["architecture"]
            for name in file.keys():  # noqa: SIM118, not a mapping
                tensor = file.get_tensor(name)
                weights[name] = tensor.to(torch.float32 if name == "inv_freq" else PRECISIONS[precision])
    except (SafetensorError, FileNotFoundError) as error:
        raise WeightsError(f"{path}: not readable ({error}); {hint}") from None
    if {name: tuple(tensor.shape) for name, tensor in weights.items()} != shapes(architecture):
        raise WeightsError(f"{path}: its tensors do not fit the architecture in its header; {hint}")
    return weights, architecture
