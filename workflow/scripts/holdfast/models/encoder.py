"""What every encoder does with a batch, and its weights; the layers are in the modules of the families."""

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F  # noqa: N812, torch's own abbreviation
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..documents import parse_json
from ..errors import PREPARE_AGAIN, WeightsError
from . import ops
from .packing import Packing
from .pooling import Tokens, batches, merge_windows, pool, window_starts
from .registry import WEIGHTS_FILE, Output, Prepared, family_module

Architecture = Mapping[str, int | float | str | bool]
Shapes = dict[str, tuple[int, ...]]
HEADER_KEY = "holdfast"  # one entry as JSON: safetensors writes several in random order, and digests must not vary
PRECISIONS = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
# Whatever the precision. The last norm's results are the states that a user gets, in the dtype of its weight: half
# precision would round a channel that stands out by more than others differ from token to token.
IN_FP32 = ("inv_freq", "relative_bias.weight", "final_norm.weight", "final_norm.bias")
# Sizes of an architecture and the largest that are believed; ESM-2 15B has 48 layers of 5120 and 20480 columns.
LARGEST = {"layers": 2**10, "width": 2**16, "heads": 2**10, "mlp_width": 2**18, "vocabulary": 2**20}
TRIED_LENGTHS, TRIED_TOKENS = (9, 70), 10  # tokens of sequences, and kinds of tokens, that every family knows
TRIED_LAYER = 1  # has every kernel; behind more layers, outliers would make rounding look like wrong kernels
TRIED_DIFFERENCE = {torch.float16: 2e-2, torch.bfloat16: 1e-1}  # centred; rounding is a tenth of it, wrong kernels all
CPU_TOKENS = 1024  # worked on at once on a CPU, so that what passes from layer to layer stays in its caches
WINDOW_TOKENS = 16384  # of the windows over one sequence that are worked on at once

# MKL's vector mathematics must not begin in several threads at once: cosines of one of them were then off by 1.5e-4,
# in 10 to 40% of processes (torch 2.13, two threads, Intel Xeon); `tests/models/test_esm.py` has the case.
torch.ones(1).cos()


class Encoder:
    """An encoder with its weights on one device.

    A family's class has :meth:`_states`, and nothing else that a caller sees.

    Attributes:
        layers: Layers; layer 0 is the embedding of tokens.
        width: Columns of a state and of an embedding.
        device: Where the weights are and results stay.
        tokens: Which tokens of a sequence count.
        stream_dtype: Of the residual stream, whatever the precision of the products: half precision would lose what
            small channels gain beside a large one (docs/method.md).
    """

    stream_dtype = torch.float32

    def __init__(self, weights: Mapping[str, Tensor], prepared: Prepared) -> None:
        """Take the weights as :func:`read_weights` gives them, or one by one, see :class:`WidenedWeights`."""
        architecture = prepared.architecture
        self.layers, self.width = prepared.layers, prepared.width
        self.device = weights["embed.weight"].device
        residues = slice(prepared.start_tokens, -prepared.end_tokens or None)
        self.tokens = Tokens(residues, residues if prepared.mean_of == "residues" else slice(None))
        self._specials = prepared.start_tokens, prepared.end_tokens
        self._weights = weights
        self._heads = int(architecture["heads"])
        self._epsilon = float(architecture["layer_norm_epsilon"])
        self._ops = ops.choose_ops(weights["embed.weight"])
        self._dtype = weights["embed.weight"].dtype

    @torch.inference_mode()
    def settle_ops(self) -> None:
        """Have plain torch take over, and say so once, where the kernels do not do on this device what it does."""
        if self._ops is ops:
            return
        kernels, tokens = self._ops, torch.arange(sum(TRIED_LENGTHS)) % TRIED_TOKENS + TRIED_TOKENS
        try:
            found = self.encode(tokens, TRIED_LENGTHS, TRIED_LAYER).float()
        except torch.OutOfMemoryError:
            raise
        except kernels.FAILURES as error:
            self._ops = ops
            ops.say_plain(f"they cannot be built, {' '.join(str(error).split())[:200]}")
            return
        self._ops = ops
        wanted = self.encode(tokens, TRIED_LENGTHS, TRIED_LAYER).float()
        difference = float((found - wanted).norm() / (wanted - wanted.mean(0)).norm())
        if difference <= TRIED_DIFFERENCE[self._dtype]:
            self._ops = kernels
        else:
            ops.say_plain(f"they differ from it by {difference:.1e} of the states' spread")

    @torch.inference_mode()
    def encode(self, tokens: Tensor, lengths: Sequence[int], layer: int | None = None) -> Tensor:
        """The states after a layer.

        Args:
            tokens: integers of any dtype [T], the sequences one behind the other, each with its special tokens,
                without <mask>.
            lengths: Tokens of each sequence; their sum is T.
            layer: 0 for the embedding of tokens; None for the last layer, after its norm if the model ends in one.

        Returns:
            float32 [T, width] on the device.

        Raises:
            ValueError: no sequence, an empty one, or lengths that do not add up to T.
        """
        packing = Packing(lengths, self.device)
        wanted = self.layers if layer is None else layer
        found = [states for _, _, states in self._states_of(tokens, packing, {wanted})]
        return packing.restore(torch.cat(found))

    @torch.inference_mode()
    def embed(
        self, tokens: Tensor, lengths: Sequence[int], outputs: Sequence[Output], window: int | None = None
    ) -> dict[Output, Tensor]:
        """What is pooled of the states; several outputs cost one pass.

        Args:
            tokens: As for :meth:`encode`.
            lengths: As for :meth:`encode`.
            outputs: What is asked for.
            window: Residues above which a sequence is embedded in overlapping windows, each with the special tokens of
                a whole one; None to embed every sequence whole.

        Returns:
            By output float32 [sequences, width], or of ``residues`` [residues of all sequences, width], in the order of
            the sequences.

        Raises:
            ValueError: as :meth:`encode`, a sequence without residues, or a layer that the model has not.
        """
        around = sum(self._specials)
        if min(lengths, default=0) <= around:
            raise ValueError("every sequence needs at least one residue beside its special tokens")
        if not {output.layer for output in outputs} <= set(range(self.layers + 1)):
            raise ValueError(f"layers are 0 to {self.layers}")
        if window is None or max(lengths) - around <= window:
            return self._embed_whole(tokens, lengths, outputs)
        return self._embed_windows(tokens, lengths, outputs, window)

    def _embed_whole(self, tokens: Tensor, lengths: Sequence[int], outputs: Sequence[Output]) -> dict[Output, Tensor]:
        packing = Packing(lengths, self.device)
        parts: dict[Output, list[Tensor]] = {output: [] for output in outputs}
        for part, layer, states in self._states_of(tokens, packing, {output.layer for output in outputs}):
            for output in outputs:
                if output.layer == layer:
                    parts[output].append(pool(states, part, output.pooling, self.tokens))
        around = sum(self._specials)
        return {
            output: packing.restore_rows(torch.cat(found), around if output.pooling == "residues" else None)
            for output, found in parts.items()
        }

    def _embed_windows(
        self, tokens: Tensor, lengths: Sequence[int], outputs: Sequence[Output], window: int
    ) -> dict[Output, Tensor]:
        """Sequence by sequence: those that fit whole, the others as the mean over their windows."""
        found: dict[Output, list[Tensor]] = {output: [] for output in outputs}
        for sequence in tokens.split(list(lengths)):
            if len(sequence) - sum(self._specials) <= window:
                made = self._embed_whole(sequence, [len(sequence)], outputs)
            else:
                made = self._embed_by_windows(sequence, outputs, window)
            for output, values in made.items():
                found[output].append(values.float())
        return {output: torch.cat(values) for output, values in found.items()}

    def _embed_by_windows(self, sequence: Tensor, outputs: Sequence[Output], window: int) -> dict[Output, Tensor]:
        start, end = self._specials
        before, residues, behind = sequence.split([start, len(sequence) - start - end, end])
        starts = window_starts(len(residues), window)
        pieces = [torch.cat([before, residues[first : first + window], behind]) for first in starts]
        states: dict[int, list[Tensor]] = {output.layer: [] for output in outputs}
        wanted = [Output(layer, "residues") for layer in states]
        for part in batches([len(piece) for piece in pieces], WINDOW_TOKENS):
            lengths = [len(piece) for piece in pieces[part]]
            for output, values in self._embed_whole(torch.cat(pieces[part]), lengths, wanted).items():
                states[output.layer] += values.split(window)
        merged = {layer: merge_windows(values, starts, len(residues)) for layer, values in states.items()}
        whole = Tokens(slice(None), slice(None))
        alone = Packing([len(residues)], self.device)
        return {output: pool(merged[output.layer], alone, output.pooling, whole) for output in outputs}

    def _states_of(self, tokens: Tensor, packing: Packing, layers: set[int]) -> Iterator[tuple[Packing, int, Tensor]]:
        """States [T, width] after the layers asked for, of consecutive parts of the packing; to be used at once."""
        arranged = packing.arrange(tokens).long()
        parts = packing.parts(CPU_TOKENS) if self.device.type == "cpu" else [(slice(None), packing)]
        for rows, part in parts:
            for layer, states in enumerate(self._states(arranged[rows], part, max(layers))):
                if layer in layers:
                    yield part, layer, states

    def _states(self, tokens: Tensor, packing: Packing, last: int) -> Iterator[Tensor]:
        """Yield the states after each layer, from the embedding of tokens on, up to layer ``last``.

        Args:
            tokens: int64 [T], in the order of the packing.
            packing: Where the sequences stand.
            last: The last layer that is wanted.

        Yields:
            [T, width], in the order of the packing; the next step may overwrite it.
        """
        raise NotImplementedError

    def _embedded(self, tokens: Tensor) -> Tensor:
        """The embedding of tokens, with which the residual stream begins, [T, width]."""
        return F.embedding(tokens, self._weights["embed.weight"]).to(self.stream_dtype)

    def _normed(self, x: Tensor, name: str) -> Tensor:
        """The LayerNorm of the residual stream, whose weights are called ``name``, as a product takes it."""
        return ops.layer_norm(x, self._norm(name)).to(self._dtype)

    def _linear(self, x: Tensor, name: str) -> Tensor:
        return F.linear(x, *self._product(name))

    def _linear_gelu(self, x: Tensor, name: str) -> Tensor:
        gelu: Tensor = self._ops.linear_gelu(x, *self._product(name))
        return gelu

    def _rotary_attention(self, x: Tensor, name: str, packing: Packing, angles: ops.Angles) -> Tensor:
        attended: Tensor = self._ops.rotary_attention(x, *self._product(name), self._heads, packing, angles)
        return attended

    def _linear_in_fp32(self, x: Tensor, name: str) -> Tensor:
        """A product without bias whose result half precision may not hold, fp32 where the device can give that."""
        weight = self._weights[name + ".weight"]
        if x.is_cuda and x.dtype != torch.float32:
            return torch.mm(x, weight.T, out_dtype=torch.float32)
        return F.linear(x, weight).float()

    def _add_linear_norm(
        self, x: Tensor, y: Tensor, product: str, norm: str, scale: float = 1.0, after: bool = False
    ) -> tuple[Tensor, Tensor]:
        """The residual stream with a branch that ends in a product, and its norm: :func:`.ops.add_linear_norm`."""
        stream, normed = self._ops.add_linear_norm(x, y, *self._product(product), self._norm(norm), scale, after)
        return stream, normed

    def _product(self, name: str) -> tuple[Tensor, Tensor | None]:
        return self._weights[name + ".weight"], self._weights.get(name + ".bias")

    def _norm(self, name: str) -> ops.Norm:
        return ops.Norm(self._weights[name + ".weight"], self._weights.get(name + ".bias"), self._epsilon)


def read_weights(
    directory: str | Path, prepared: Prepared, device: str | torch.device, precision: str
) -> dict[str, Tensor]:
    """Map the tensors of a prepared model onto a device, one after the other, and check them.

    The file is mapped, not read: on the CPU a tensor that needs no conversion stays in the page cache, which
    all processes share; on CUDA it is copied from there straight to the device. ``inv_freq`` stays fp32.

    Args:
        directory: Of the prepared model.
        prepared: What its ``model.json`` says.
        device: Where they go.
        precision: As :func:`.registry.open_model` has it, or ``stored`` for what is in the file.

    Raises:
        WeightsError: a damaged file, or one of another model.
    """
    family = family_module(prepared.family)
    path = Path(directory) / WEIGHTS_FILE
    if precision == "auto":
        precision = "fp16" if torch.device(device).type == "cuda" else "fp32"
    if precision in ("fp32", "stored"):
        torch.set_float32_matmul_precision("highest")
    else:
        torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False
    weights: dict[str, Tensor] = {}
    try:
        with safe_open(path, framework="pt", device=str(device)) as file:
            stated = parse_json((file.metadata() or {}).get(HEADER_KEY, "{}"))
            if not isinstance(stated, dict) or stated.get("architecture") != prepared.architecture:
                raise WeightsError(f"{path}: not the weights that model.json describes; {PREPARE_AGAIN}")
            shapes: Shapes = family.tensor_shapes(family.check_architecture(prepared.architecture))
            for name in file.keys():  # noqa: SIM118, not a mapping
                tensor = file.get_tensor(name)
                if not tensor.is_floating_point():
                    raise WeightsError(f"{path}: holds {tensor.dtype}, not floating point; {PREPARE_AGAIN}")
                wanted = torch.float32 if name in IN_FP32 else PRECISIONS.get(precision, tensor.dtype)
                weights[name] = tensor.to(wanted)
    except (SafetensorError, FileNotFoundError, ValueError) as error:
        raise WeightsError(f"{path}: not readable ({error}); {PREPARE_AGAIN}") from None
    if {name: tuple(tensor.shape) for name, tensor in weights.items()} != shapes:
        raise WeightsError(f"{path}: its tensors do not fit the architecture in its header; {PREPARE_AGAIN}")
    return weights


class WidenedWeights(Mapping[str, Tensor]):
    """Mapped weights in fp32, each made when it is asked for, so that one is in memory at a time."""

    def __init__(self, mapped: Mapping[str, Tensor]) -> None:
        """Take the weights as they are stored."""
        self._mapped = mapped

    def __iter__(self) -> Iterator[str]:
        return iter(self._mapped)

    def __len__(self) -> int:
        return len(self._mapped)

    def __getitem__(self, name: str) -> Tensor:
        return self._mapped[name].float()


def count_parameters(prepared: Prepared) -> int:
    """Numbers in the weights of a prepared model."""
    shapes: Shapes = family_module(prepared.family).tensor_shapes(prepared.architecture)
    return sum(math.prod(shape) for shape in shapes.values())


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
