"""Published checkpoints, read without running any code in them.

:func:`read_checkpoint` recognises the model, compares the digest before the weights are parsed, and maps the tensors;
:meth:`Checkpoint.own_tensors` matches them one by one against the names and shapes that an encoder wants. How a
family's files name their tensors and state their sizes stands in the family's module.
"""

import hashlib
import pickle
import pickletools
import re
import struct
import warnings
import zipfile
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..documents import DocumentError, read_json
from ..errors import WeightsError
from .registry import family_of

SHARD = r"[A-Za-z0-9_.-]{1,200}\.(safetensors|bin)"
ADAPTER_FILE = "adapter_config.json"


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
    """

    names: Sequence[str]
    shape: tuple[int, ...]
    make: Callable[[Sequence[Tensor]], Tensor] = join_rows


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
        model: The model that it holds.
        architecture: Sizes as the checkpoint states them, by the encoder's own names.
        layout: How its tensors are named.
        tensors: Mapped from the file, by published name.
        sha256: Digest of the weights (hex).
        reference: The implementation it is compared with, for people.
        ordinary: Token ids without the special ones, to compare the two on.
        encode_reference: The reference's states for token ids, one [tokens, width] a sequence; None if there is none.
        tokenizer: The file to copy, None for a fixed alphabet.
        sources: Of own tensors that the layout does not name: what makes them up, given their shape.
    """

    where: Path
    model: str
    architecture: dict[str, int | float | str | bool]
    layout: Layout
    tensors: Mapping[str, Tensor]
    sha256: str
    reference: str
    ordinary: range
    encode_reference: Callable[[Sequence[Tensor]], list[Tensor]] | None = None
    tokenizer: Path | None = None
    sources: Mapping[str, Callable[[tuple[int, ...]], Source]] = field(default_factory=dict)

    def own_tensors(self) -> dict[str, Tensor]:
        """Every tensor of the encoder, by its own name, in the checkpoint's dtype; ``inv_freq`` in fp32.

        Raises:
            WeightsError: with the list of missing, unknown and misshapen tensors.
        """
        family = family_of(self.model)
        try:
            shapes = family.tensor_shapes(family.check_architecture(self.architecture))
            sources = {
                own: self.sources[own](shape) if own in self.sources else self.layout.source(own, shape)
                for own, shape in shapes.items()
            }
            tensors = self._named(sources.values())
            return {own: source.make([tensors[name] for name in source.names]) for own, source in sources.items()}
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
            raise WeightsError(f"{self.where}: not the tensors of {self.model}; {'; '.join(problems)}")
        return found


def weights_files(directory: Path) -> list[Path] | None:
    """The weights of a Hugging Face directory in the order of their names, safetensors before .bin, None without.

    Raises:
        WeightsError: an index that cannot be read or that names files elsewhere.
    """
    for name in ("model.safetensors", "pytorch_model.bin"):
        index = directory / f"{name}.index.json"
        if (directory / name).is_file():
            return [directory / name]
        if index.is_file():
            weight_map = _read_json(index).get("weight_map")
            shards = list(weight_map.values()) if isinstance(weight_map, dict) else []
            if not shards or not all(isinstance(shard, str) and re.fullmatch(SHARD, shard) for shard in shards):
                raise WeightsError(f"{index}: 'weight_map' must name weights files beside it; download it again")
            return [directory / shard for shard in sorted(set(shards))]
    return None


def read_checkpoint(path: Path, sha256: str | None) -> Checkpoint:
    """Recognise the model, compare the digest, then map the tensors.

    Args:
        path: A fair-esm ``.pt`` file or a Hugging Face directory.
        sha256: Expected digest (hex) of the weights, see :func:`digest_files`; None to take them as they are.

    Raises:
        WeightsError: another digest, an unknown model, files that cannot be read or that need code to be read.
    """
    from .esm import read_fair_esm, read_hugging_face_esm  # which import this module
    from .mosaic_bert import read_dnabert_s

    if path.is_file():
        if path.suffix != ".pt":
            raise WeightsError(f"{path}: not a known format; give a fair-esm .pt file or a Hugging Face directory")
        return read_fair_esm(path, digest_files([path], sha256))
    files, configuration = weights_files(path), path / "config.json"
    if files is None and (path / ADAPTER_FILE).is_file():
        raise WeightsError(
            f"{path}: a LoRA adapter; merge it into its model (merge_and_unload) and give what that saves"
        )
    if files is None or not configuration.is_file():
        raise WeightsError(
            f"{path}: not a Hugging Face model directory; it needs config.json and model.safetensors or "
            "pytorch_model.bin (or their index and parts)"
        )
    config = _read_json(configuration)
    readers = {"esm": read_hugging_face_esm, "bert": read_dnabert_s}
    reader = next((reader for kind, reader in readers.items() if config.get("model_type") == kind), None)
    if reader is None:
        kind, known = config.get("model_type"), ", ".join(map(repr, readers))
        raise WeightsError(f"{configuration}: model_type is {kind!r:.80}, known are {known}; give such a model")
    found = digest_files(files, sha256)
    tensors: dict[str, Tensor] = {}
    for file in files:
        tensors |= _map_safetensors(file) if file.suffix == ".safetensors" else only_tensors(file, load_torch(file))
    try:
        return reader(path, config, tensors, found)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise WeightsError(f"{configuration}: missing or wrong entry {first_line(error)}; download it again") from None


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


def digest_files(files: Sequence[Path], expected: str | None) -> str:
    """sha256 (hex) over the files one after the other, compared with the expected one if there is one."""
    hashed = hashlib.sha256()
    for file in files:
        try:
            with open(file, "rb") as opened:
                while chunk := opened.read(2**22):
                    hashed.update(chunk)
        except FileNotFoundError:
            raise WeightsError(f"{file}: the index names it, but it is missing; download it again") from None
    found = hashed.hexdigest()
    if expected is not None and expected.strip().lower() != found:
        raise WeightsError(
            f"{files[0] if len(files) == 1 else files[0].parent}: sha256 is {found}, expected {expected}; "
            "download it again or correct the digest"
        )
    return found


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = read_json(path)
    except DocumentError as error:
        raise WeightsError(f"{path}: {error}; download it again") from None
    if not isinstance(content, dict):
        raise WeightsError(f"{path}: not a JSON object; download it again")
    return content


def _map_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, not a mapping
    except SafetensorError as error:
        raise WeightsError(f"{path}: truncated or not safetensors ({error}); download it again") from None


# Files of torch: a zip of one pickle, which says what was saved, and of the numbers of every tensor

LARGEST_PICKLE_BYTES = 2**20  # without the tensors; the largest ESM-2, of 48 layers, has 0.2 million
LARGEST_TUPLES = 2**14  # in a pickle, which needs four a tensor; a million in each other overflow Python's stack
LARGEST_REPEATS = 16  # of a list, tuple, table or tensor: with each, what a pickle describes can double
BEFORE_ZIP = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # torch's first pickle in a file before 1.6
TENSOR_NAMES = frozenset(
    {"__builtin__.set", "builtins.set", "collections.OrderedDict"}
    | {"torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_parameter"}
    | {f"torch.{kind}Storage" for kind in ("Double", "Float", "Half", "BFloat16")}
    | {f"torch.{kind}Storage" for kind in ("Long", "Int", "Short", "Char", "Byte", "Bool")}
)
_SIMPLE = ("GLOBAL", "BINUNICODE", "SHORT_BINSTRING")


class StandIn:
    """Takes the place of an object in a pickle: holds its attributes, by name in ``state``, and does nothing."""

    state: Any = None

    def __setstate__(self, state: object) -> None:
        self.state = dict(dict.items(state))  # type: ignore[arg-type]  # TypeError where it is none


def load_torch(path: Path, classes: Collection[str] = ()) -> Any:
    """Map what torch has saved since 1.6; nothing in it is run, and its tensors take no memory.

    Args:
        path: Of the file.
        classes: Full names of classes whose objects become a :class:`StandIn`.

    Returns:
        Tensors, plain containers and stand-ins; see :func:`require_stored` of tensors.

    Raises:
        WeightsError: damaged, saved before 1.6, or asking for anything else.
    """
    try:
        with warnings.catch_warnings(action="ignore"):  # of what is refused a moment later
            _check_pickle(path, _read_pickle(path), TENSOR_NAMES | set(classes))
            with torch.serialization.safe_globals([(StandIn, name) for name in classes]):
                return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError:
        reason = "a pickle that torch.save does not write"
    except (
        *(zipfile.BadZipFile, struct.error, EOFError, OSError, OverflowError, AssertionError),
        *(AttributeError, LookupError, RuntimeError, TypeError, ValueError),
    ) as error:
        reason = f"{type(error).__name__}: {first_line(error)}"
    raise WeightsError(f"{path}: truncated or not a torch checkpoint ({reason}); download it again")


def _read_pickle(path: Path) -> bytes:
    """The pickle in a file of torch, once the file is a zip without any large part but numbers."""
    with open(path, "rb") as file:
        if file.read(len(BEFORE_ZIP)) == BEFORE_ZIP:
            raise WeightsError(
                f"{path}: saved by torch before 1.6, which is not read; save it again with a newer torch: "
                "torch.save(torch.load(FILE), FILE)"
            )
        with zipfile.ZipFile(file) as archive:
            members = [(member.filename.partition("/")[2].lower(), member) for member in archive.infolist()]
            if any(member.compress_type != zipfile.ZIP_STORED for _, member in members):
                raise ValueError("compressed, which torch.save never does")
            if sum(member.file_size for name, member in members if not name.startswith("data/")) > LARGEST_PICKLE_BYTES:
                raise ValueError(f"a pickle of more than {LARGEST_PICKLE_BYTES} bytes")
            (pickled,) = (member for name, member in members if name == "data.pkl")
            return archive.read(pickled)


def _check_pickle(path: Path, pickled: bytes, names: Collection[str]) -> None:
    """Refuse what torch's unpickler must not see: other names, and what would take time or memory without end."""
    simple: set[object] = set()  # places in the memo that hold a name or a text
    tuples = repeats = 0
    last = ""
    for opcode, argument, _ in pickletools.genops(pickled):
        match opcode.name:
            case "GLOBAL" if (name := str(argument).replace(" ", ".")) not in names:
                raise WeightsError(
                    f"{path}: refused, it holds {name[:200]}, not only tensors, and reading it could run code; get the "
                    "checkpoint from its publisher, or save the state_dict() of a model alone"
                )
            case "BINPUT" | "LONG_BINPUT":
                (simple.add if last in _SIMPLE else simple.discard)(argument)
                continue
            case "BINGET" | "LONG_BINGET":
                repeats += argument not in simple
            case "TUPLE" | "TUPLE1" | "TUPLE2" | "TUPLE3":
                tuples += 1
        last = opcode.name
    if tuples > LARGEST_TUPLES or repeats > LARGEST_REPEATS:
        raise ValueError("nested or repeated more than any checkpoint")


def require_stored(tensor: object) -> Tensor:
    """A tensor that was loaded, as numbers alone.

    Raises:
        ValueError: not a tensor, or one of more numbers than the file holds, which strides of 0 make possible.
    """
    if not isinstance(tensor, Tensor) or tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        raise ValueError("not a tensor, or larger than what the file holds of it")
    return tensor.detach()


def only_tensors(path: Path, content: object) -> dict[str, Tensor]:
    """The tensors by name of what must be a table of tensors."""
    try:
        if isinstance(content, dict) and all(isinstance(name, str) for name in dict.keys(content)):
            return {name: require_stored(tensor) for name, tensor in dict.items(content)}
    except ValueError:
        pass
    raise WeightsError(f"{path}: holds no plain table of tensors; give a published checkpoint")


def first_line(error: BaseException) -> str:
    """The beginning of what an error says, or what it is."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
