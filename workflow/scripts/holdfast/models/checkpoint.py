"""Published checkpoints, read without running any code in them.

:func:`read_checkpoint` recognises the model, compares the digest before the weights are parsed, and maps the tensors;
:meth:`Checkpoint.own_tensors` matches them one by one against the names and shapes that an encoder wants, and makes
each of those when it is asked for. How a family's files name their tensors and state their sizes stands in the family's
module.
"""

import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..documents import name_format
from ..errors import WeightsError
from ..sequences import Alphabet
from .published import CONFIGURATION_FILE, digest_files, read_json_object, weights_files
from .registry import DESCRIPTION_FILE, FAMILIES, Letters, family_module
from .safetensors_file import Entry
from .torch_file import LONGEST_START_BYTES, first_line, load_torch, only_tensors, require_unwrapped

ADAPTER_FILE = "adapter_config.json"
NAMESPACE = "argparse.Namespace"  # in fair-esm's files, the configuration
DTYPES = {torch.float64: "F64", torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}
"""As safetensors names them."""


def as_bytes(tensor: Tensor) -> memoryview:
    """The numbers of a tensor on the CPU, as they lie in memory."""
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data


def join_rows(parts: Sequence[Tensor]) -> Tensor:
    """One tensor, contiguous; a single part that is so already stays mapped."""
    return parts[0].contiguous() if len(parts) == 1 else torch.cat(list(parts))


@dataclass(frozen=True)
class Source:
    """What one tensor of an encoder is made of.

    Attributes:
        names: Published names, without prefix.
        shape: Of each tensor of these names.
        make: Makes the encoder's tensor of them, in their order; ValueError where they contradict each other.
        dtype: Of what that makes; None for that of the published tensors.
    """

    names: Sequence[str]
    shape: tuple[int, ...]
    make: Callable[[Sequence[Tensor]], Tensor] = join_rows
    dtype: torch.dtype | None = None


@dataclass(frozen=True)
class Layout:
    """How a published format names what an encoder wants.

    Attributes:
        prefix: Pattern of what may stand before every name.
        outside: Own module name -> published one.
        layer: Published beginning of a layer's names, ``{}`` for its number.
        inside: Own module name in a layer -> the published ones, whose tensors are joined by rows.
        ignored: Pattern of names, without prefix, that no embedding depends on.
    """

    prefix: str
    outside: Mapping[str, str]
    layer: str
    inside: Mapping[str, tuple[str, ...]]
    ignored: str

    def published(self, own: str) -> list[str]:
        """Published names, without prefix, of the tensors that make up one own tensor."""
        module, _, kind = own.rpartition(".")
        if module.startswith("layers."):
            _, layer, inner = module.split(".")
            return [f"{self.layer.format(layer)}.{part}.{kind}" for part in self.inside[inner]]
        return [f"{self.outside[module]}.{kind}"]

    def source(self, own: str, shape: tuple[int, ...]) -> Source:
        """What makes up one own tensor of this shape."""
        names = self.published(own)
        return Source(names, (shape[0] // len(names), *shape[1:]))

    def bare(self, name: str) -> str:
        """Published name without prefix; transformers 5.23 saves a model of its own making with gamma and beta."""
        name = re.sub(r"(?<=LayerNorm\.)gamma$", "weight", re.sub(r"(?<=LayerNorm\.)beta$", "bias", name))
        return re.sub(f"^({self.prefix})", "", name)


@dataclass(frozen=True)
class Checkpoint:
    """A published checkpoint, read but not yet checked.

    Attributes:
        where: The path that messages name.
        family: The family that it is of.
        alphabet: The letters of its sequences.
        architecture: Sizes as the checkpoint states them, by the encoder's own names.
        layout: How its tensors are named.
        tensors: Mapped from the file, by published name.
        sha256: Digest of the weights (hex).
        reference: The implementation it is compared with, for people.
        encode_reference: The reference's states after the last layer for token ids, one [tokens, width] a sequence;
            None if there is none.
        letters: Its vocabulary where every letter is a token; otherwise ``tokenizer`` has it.
        tokenizer: The ``tokenizer.json`` to copy.
        start_is_cls: Whether the first token was trained to stand for the sequence.
        mean_of: What a mean is taken over, see :class:`.registry.Prepared`; so are the next two.
        max_length: Letters above which the model was not trained or cannot work.
        long: What becomes of longer sequences.
        sources: Of own tensors that the layout does not name: what makes them up, given their shape.
    """

    where: Path
    family: str
    alphabet: Alphabet
    architecture: dict[str, int | float | str | bool]
    layout: Layout
    tensors: Mapping[str, Tensor]
    sha256: str
    reference: str
    encode_reference: Callable[[Sequence[Tensor]], list[Tensor]] | None = None
    letters: Letters | None = None
    tokenizer: Path | None = None
    start_is_cls: bool = True
    mean_of: str = "residues"
    max_length: int | None = None
    long: str = "whole"
    sources: Mapping[str, Callable[[tuple[int, ...]], Source]] = field(default_factory=dict)

    def own_tensors(self) -> "OwnTensors":
        """Every tensor of the encoder, by its own name, in the checkpoint's dtype; ``inv_freq`` in fp32.

        Raises:
            WeightsError: with the list of missing, unknown and misshapen tensors.
        """
        family = family_module(self.family)
        try:
            shapes = family.tensor_shapes(family.check_architecture(self.architecture))
            sources = {
                own: self.sources[own](shape) if own in self.sources else self.layout.source(own, shape)
                for own, shape in shapes.items()
            }
            return OwnTensors(self.where, shapes, sources, self._named(sources.values()))
        except ValueError as error:
            raise WeightsError(f"{self.where}: {error}; download it again") from None

    def _named(self, sources: Collection[Source]) -> dict[str, Tensor]:
        """The tensors by name without prefix, once they are those of the sources and no others.

        Raises:
            WeightsError: as :meth:`own_tensors`.
        """
        wanted = {name: source.shape for source in sources for name in source.names}
        full = {self.layout.bare(name): name for name in self.tensors}
        found = {bare: self.tensors[name] for bare, name in full.items()}
        names_of = {
            "missing": [name for name in wanted if name not in found],
            "unknown": [
                name
                for name in self.tensors
                if full[bare := self.layout.bare(name)] != name
                or (bare not in wanted and not re.match(self.layout.ignored, bare))
            ],
            "misshapen": [
                f"{full[name]} {list(found[name].shape)} {found[name].dtype} instead of {list(shape)}"
                for name, shape in wanted.items()
                if name in found and (found[name].shape != shape or not found[name].is_floating_point())
            ],
        }
        problems = [
            f"{len(names)} {kind}: {', '.join(name[:200] for name in names[:20])}{', ...' if len(names) > 20 else ''}"
            for kind, names in names_of.items()
            if names
        ]
        if problems:
            raise WeightsError(f"{self.where}: not the tensors of this {self.family} model; {'; '.join(problems)}")
        return found


class OwnTensors(Mapping[str, Tensor]):
    """The tensors of an encoder, each made of published ones when it is asked for: one is in memory at a time."""

    def __init__(
        self,
        where: Path,
        shapes: Mapping[str, tuple[int, ...]],
        sources: Mapping[str, Source],
        published: Mapping[str, Tensor],
    ) -> None:
        """Take what they are made of.

        Args:
            where: The path that messages name.
            shapes: Of the encoder's tensors, by their names.
            sources: What makes up each.
            published: The tensors that the sources name.
        """
        self._where, self._shapes, self._sources, self._published = where, shapes, sources, published

    def __iter__(self) -> Iterator[str]:
        return iter(self._shapes)

    def __len__(self) -> int:
        return len(self._shapes)

    def __getitem__(self, own: str) -> Tensor:
        """Make a tensor; WeightsError where the published ones contradict each other."""
        try:
            return self._sources[own].make(self._parts(own))
        except ValueError as error:
            raise WeightsError(f"{self._where}: {error}; download it again") from None

    def entry(self, own: str) -> Entry:
        """What a tensor will be, before it is made; WeightsError for numbers of another kind than :data:`DTYPES`."""
        dtype = self._sources[own].dtype
        for part in self._parts(own) if dtype is None else ():
            dtype = part.dtype if dtype is None else torch.promote_types(dtype, part.dtype)
        if dtype not in DTYPES:
            raise WeightsError(f"{self._where}: {own} would be of {dtype}; save the model as float16 or float32")
        return Entry(DTYPES[dtype], self._shapes[own])

    def _parts(self, own: str) -> list[Tensor]:
        return [self._published[name] for name in self._sources[own].names]


def read_checkpoint(path: Path, sha256: str | None) -> Checkpoint:
    """Recognise the family, compare the digest, then map the tensors.

    Args:
        path: A file of fair-esm or of the ``esm`` package, or a Hugging Face directory.
        sha256: Expected digest (hex) of the weights, see :func:`digest_files`; None to take them as they are.

    Raises:
        WeightsError: another digest, an unknown family, files that cannot be read or that need code to be read.
    """
    if path.is_file():
        return _read_file(path, digest_files([path], sha256))
    if (path / DESCRIPTION_FILE).is_file():
        raise WeightsError(f"{path}: is prepared already; use it as it is, or give what it was made from")
    files, configuration = weights_files(path), path / CONFIGURATION_FILE
    if files is None and (path / ADAPTER_FILE).is_file():
        raise WeightsError(
            f"{path}: a LoRA adapter; merge it into its model (merge_and_unload) and give what that saves"
        )
    if files is None or not configuration.is_file():
        raise WeightsError(
            f"{path}: not a Hugging Face model directory; it needs config.json and model.safetensors or "
            "pytorch_model.bin (or their index and parts)"
        )
    config = read_json_object(configuration)
    found = config.get("model_type")
    family = next((family for family, model_type in FAMILIES.items() if model_type == found), None)
    if family is None:
        known = ", ".join(map(repr, FAMILIES.values()))
        raise WeightsError(f"{configuration}: model_type is {found!r:.80}, known are {known}; give such a model")
    digest = digest_files(files, sha256)
    tensors = map_tensors(files)
    try:
        checkpoint: Checkpoint = family_module(family).read_directory(path, config, tensors, digest)
    except (AttributeError, KeyError, TypeError, ValueError, OverflowError) as error:
        raise WeightsError(f"{configuration}: missing or wrong entry {first_line(error)}; download it again") from None
    return checkpoint


def _read_file(path: Path, sha256: str) -> Checkpoint:
    """Read one file of torch; which family it is of shows in what it holds."""
    if path.suffix == ".safetensors":
        raise WeightsError(f"{path}: says nothing of its model; give its directory, with config.json in it")
    content = load_torch(path, [NAMESPACE])
    for family in FAMILIES:
        module = family_module(family)
        if hasattr(module, "read_file") and isinstance(content, dict) and module.is_file(content):
            checkpoint: Checkpoint = module.read_file(path, content, sha256)
            return checkpoint
    raise WeightsError(
        f"{path}: not a checkpoint of fair-esm or of the esm package; give the .pt or .pth file itself, not the "
        "contact regression, or a Hugging Face directory"
    )


def stated_sizes(config: Mapping[str, Any]) -> dict[str, int | float | str | bool]:
    """The sizes that every encoder has, as transformers' ``config.json`` names them."""
    return {
        "layers": int(config["num_hidden_layers"]),
        "width": int(config["hidden_size"]),
        "heads": int(config["num_attention_heads"]),
        "mlp_width": int(config["intermediate_size"]),
        "vocabulary": int(config["vocab_size"]),
        "layer_norm_epsilon": float(config["layer_norm_eps"]),
    }


def map_tensors(files: Sequence[Path]) -> dict[str, Tensor]:
    """Map the tensors of files of safetensors or torch, by published name; they take no memory.

    Raises:
        WeightsError: a file that is damaged, or that holds anything else.
    """
    tensors: dict[str, Tensor] = {}
    for file in files:
        tensors |= _map_safetensors(file) if file.suffix == ".safetensors" else only_tensors(file, load_torch(file))
    return tensors


def _map_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, not a mapping
    except SafetensorError as error:
        with open(path, "rb") as opened:
            named = name_format(opened.read(LONGEST_START_BYTES))
        problem = f"is {named}" if named else f"truncated or not safetensors ({error}); download it again"
        raise WeightsError(f"{path}: {problem}") from None
    return require_unwrapped(path, tensors)
