"""What every encoder does with a batch, and its weights; the layers are in the modules of the families."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType

import torch
import torch.nn.functional as F  # noqa: N812, torch's own abbreviation
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..documents import parse_json
from ..errors import PREPARE_AGAIN, WeightsError
from .ops import choose_ops
from .packing import Packing
from .registry import WEIGHTS_FILE, family_of, read_prepared

Architecture = Mapping[str, int | float | str | bool]
Shapes = dict[str, tuple[int, ...]]
HEADER_KEY = "holdfast"  # one entry as JSON: safetensors writes several in random order, and digests must not vary
PRECISIONS = {"fp32": torch.float32, "fp16": torch.float16}
# Sizes of an architecture and the largest that are believed; ESM-2 15B has 48 layers of 5120 and 20480 columns.
LARGEST = {"layers": 2**10, "width": 2**16, "heads": 2**10, "mlp_width": 2**18, "vocabulary": 2**20}
CPU_TOKENS = 1024  # worked on at once on a CPU, so that what passes from layer to layer stays in its caches


class Encoder:
    """An encoder with its weights on one device.

    Attributes:
        width: Columns of a state and of an embedding.
        device: Where the weights are and results stay.
        pooled: The tokens of a sequence whose mean is its embedding.
    """

    pooled: slice

    def __init__(self, weights: dict[str, Tensor], architecture: Architecture) -> None:
        """Take the weights as :func:`read_weights` gives them."""
        self.width = int(architecture["width"])
        self.device = weights["embed.weight"].device
        self._weights = weights
        self._layers, self._heads = int(architecture["layers"]), int(architecture["heads"])
        self._epsilon = float(architecture["layer_norm_epsilon"])
        self._ops = choose_ops(weights["embed.weight"])

    @torch.inference_mode()
    def encode(self, tokens: Tensor, lengths: Sequence[int]) -> Tensor:
        """States of the last layer, for ESM-2 after the final LayerNorm.

        Args:
            tokens: integers of any dtype [T], the sequences one behind the other, each with its special tokens,
                without <mask>.
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
        total, normed = self._ops.add_norm(x, y, weight, bias, self._epsilon)
        return total, normed


def read_weights(
    directory: str | Path, device: str | torch.device, precision: str
) -> tuple[dict[str, Tensor], Architecture]:
    """Map the tensors of a prepared model onto a device, one after the other, and check them.

    The file is mapped, not read: on the CPU a tensor that needs no conversion stays in the page cache, which
    all processes share; on CUDA it is copied from there straight to the device. ``inv_freq`` stays fp32.

    Raises:
        WeightsError: not a prepared model, or a damaged file.
    """
    family = family_of(read_prepared(directory).model)
    path = Path(directory) / WEIGHTS_FILE
    if precision == "auto":
        precision = "fp16" if torch.device(device).type == "cuda" else "fp32"
    if precision == "fp32":
        torch.set_float32_matmul_precision("highest")
    else:
        torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False
    weights: dict[str, Tensor] = {}
    try:
        with safe_open(path, framework="pt", device=str(device)) as file:
            architecture = _architecture(path, family, (file.metadata() or {}).get(HEADER_KEY, "{}"))
            for name in file.keys():  # noqa: SIM118, not a mapping
                tensor = file.get_tensor(name)
                if not tensor.is_floating_point():
                    raise WeightsError(f"{path}: holds {tensor.dtype}, not floating point; {PREPARE_AGAIN}")
                weights[name] = tensor.to(torch.float32 if name == "inv_freq" else PRECISIONS[precision])
    except (SafetensorError, FileNotFoundError) as error:
        raise WeightsError(f"{path}: not readable ({error}); {PREPARE_AGAIN}") from None
    if {name: tuple(tensor.shape) for name, tensor in weights.items()} != family.tensor_shapes(architecture):
        raise WeightsError(f"{path}: its tensors do not fit the architecture in its header; {PREPARE_AGAIN}")
    return weights, architecture


def layer_shapes(layer: int, width: int, mlp: Mapping[str, tuple[int, int]]) -> Shapes:
    """Shapes of what a layer of each encoder has: matrices with their biases, and two norms."""
    shapes: Shapes = {}
    for name, shape in {"qkv": (3 * width, width), "attention_output": (width, width), **mlp}.items():
        shapes[f"layers.{layer}.{name}.weight"] = shape
        shapes[f"layers.{layer}.{name}.bias"] = shape[:1]
    for name in ("attention_norm", "mlp_norm"):
        shapes[f"layers.{layer}.{name}.weight"] = shapes[f"layers.{layer}.{name}.bias"] = (width,)
    return shapes


def check_sizes(content: object, largest: Mapping[str, int] = LARGEST) -> Architecture:
    """Check the sizes that every encoder has, wherever they were read, before anything is made of them.

    Args:
        content: What may be an architecture.
        largest: Its whole numbers, and the largest that are believed.

    Raises:
        ValueError: one that is missing, of another type, or out of bounds; the message names it.
    """
    if not isinstance(content, dict):
        raise ValueError("no architecture")
    for name, limit in largest.items():
        size = content.get(name)
        if type(size) is not int or not 1 <= size <= limit:
            raise ValueError(f"{name} must be a whole number from 1 to {limit}")
    epsilon, heads, width = content.get("layer_norm_epsilon"), content["heads"], content["width"]
    if type(epsilon) is not float or not 0 < epsilon < 1:
        raise ValueError("layer_norm_epsilon must be a number between 0 and 1")
    if width % heads:
        raise ValueError(f"{heads} heads do not fit a width of {width}")
    return content


def _architecture(path: Path, family: ModuleType, header: str) -> Architecture:
    try:
        architecture: Architecture = family.check_architecture(parse_json(header)["architecture"])
    except (LookupError, TypeError, ValueError) as error:
        raise WeightsError(
            f"{path}: its header holds no architecture of a prepared model ({error}); {PREPARE_AGAIN}"
        ) from None
    return architecture
