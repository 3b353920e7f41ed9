"""What both encoders share: packed batches, and the prepared weights mapped onto a device.

Token ids of a batch come in one behind the other, one state a token goes out; there is no padding anywhere.
Inside, the sequences stand in order of length (:class:`Packing`), so that those of equal length are one plain
view ``[sequences, tokens, ...]`` and attention needs neither a mask nor an index in any layer.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F  # noqa: N812, torch's own abbreviation
from safetensors import SafetensorError, safe_open
from torch import Tensor

from . import documents
from .errors import WeightsError
from .prepared import WEIGHTS_FILE
from .prepared import read as read_description

Architecture = Mapping[str, int | float | str | bool]
Shapes = dict[str, tuple[int, ...]]

HEADER_KEY = "holdfast"  # one entry as JSON: safetensors writes several in random order, and digests must not vary
PREPARE_AGAIN = "prepare the model again with workflow/scripts/prepare_weights.py"
PRECISIONS = {"fp32": torch.float32, "fp16": torch.float16}
# Sizes of an architecture and the largest that are believed; ESM-2 15B has 48 layers of 5120 and 20480 columns.
LARGEST = {"layers": 2**10, "width": 2**16, "heads": 2**10, "mlp_width": 2**18, "vocabulary": 2**20}
LARGEST_OF_MODEL = {"esm2": LARGEST, "dnabert_s": LARGEST | {"token_types": 2**10}}


class Packing:
    """Where the sequences of one batch stand, worked out once for all layers.

    Attributes:
        sequences: How many there are.
        longest_tokens: Tokens of the longest.
        lengths: Tokens of each, in the order of the packing: ascending.
        positions: int64 [T], the place of each token in its sequence.
        bounds: int32 [sequences + 1], the row where each sequence begins, and T.
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
        starts, bounds = given.cumsum(0) - given, F.pad(ordered.cumsum(0), (1, 0))
        positions = torch.arange(int(bounds[-1])) - torch.repeat_interleave(bounds[:-1], ordered)
        rows = torch.repeat_interleave(starts[order], ordered) + positions
        self.sequences, self.longest_tokens = len(lengths), int(ordered[-1])
        self.lengths: list[int] = ordered.tolist()
        self.positions, self.bounds = positions.to(device), bounds.int().to(device)
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
        """A view [sequences, tokens, ...] for every distinct length, in the order of the packing."""
        first = 0
        for tokens, sequences in Counter(self.lengths).items():
            yield x[first : first + sequences * tokens].view(sequences, tokens, *x.shape[1:])
            first += sequences * tokens

    def parts(self, limit_tokens: int) -> Iterator[tuple[slice, "Packing"]]:
        """Rows and packing of consecutive parts of at most ``limit_tokens``, or of one longer sequence."""
        first = row = 0
        while first < self.sequences:
            last, tokens = first + 1, self.lengths[first]
            while last < self.sequences and tokens + self.lengths[last] <= limit_tokens:
                tokens += self.lengths[last]
                last += 1
            yield slice(row, row + tokens), Packing(self.lengths[first:last], self.positions.device)
            first, row = last, row + tokens

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
    if description.model != model:
        raise WeightsError(f"{directory}: holds {description.model}, not {model}; name the directory of {model}")
    if precision == "auto":
        precision = "fp16" if torch.device(device).type == "cuda" else "fp32"
    if precision == "fp32":
        torch.set_float32_matmul_precision("highest")
    else:
        torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False
    weights: dict[str, Tensor] = {}
    try:
        with safe_open(path, framework="pt", device=str(device)) as file:
            architecture = _architecture(path, model, (file.metadata() or {}).get(HEADER_KEY, "{}"))
            for name in file.keys():  # noqa: SIM118, not a mapping
                tensor = file.get_tensor(name)
                if not tensor.is_floating_point():
                    raise WeightsError(f"{path}: holds {tensor.dtype}, not floating point; {PREPARE_AGAIN}")
                weights[name] = tensor.to(torch.float32 if name == "inv_freq" else PRECISIONS[precision])
    except (SafetensorError, FileNotFoundError) as error:
        raise WeightsError(f"{path}: not readable ({error}); {PREPARE_AGAIN}") from None
    if {name: tuple(tensor.shape) for name, tensor in weights.items()} != shapes(architecture):
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


def check_architecture(model: str, content: object) -> Architecture:
    """Check the sizes of a model, wherever they were read, before anything is made of them.

    Raises:
        ValueError: one that is missing, of another type, or out of bounds; the message names it.
    """
    if not isinstance(content, dict):
        raise ValueError("no architecture")
    for name, largest in LARGEST_OF_MODEL[model].items():
        size = content.get(name)
        if type(size) is not int or not 1 <= size <= largest:
            raise ValueError(f"{name} must be a whole number from 1 to {largest}")
    epsilon, heads, width = content.get("layer_norm_epsilon"), content["heads"], content["width"]
    if type(epsilon) is not float or not 0 < epsilon < 1:
        raise ValueError("layer_norm_epsilon must be a number between 0 and 1")
    if width % heads or (model == "esm2" and width // heads % 2):
        raise ValueError(f"{heads} heads do not fit a width of {width}")
    if model == "esm2" and type(content.get("token_dropout")) is not bool:
        raise ValueError("token_dropout must be true or false")
    return content


def _architecture(path: Path, model: str, header: str) -> Architecture:
    try:
        return check_architecture(model, documents.parse_json(header)["architecture"])
    except (LookupError, TypeError, ValueError) as error:
        raise WeightsError(
            f"{path}: its header holds no architecture of a prepared model ({error}); {PREPARE_AGAIN}"
        ) from None
