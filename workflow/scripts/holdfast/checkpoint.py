"""Published checkpoints, read without running any code in them.

:func:`locate` finds a source or fetches it from the hub; :func:`read` recognises its format, compares the digest before
anything is parsed, and maps the tensors; :meth:`Checkpoint.own_tensors` matches them one by one against the names and
shapes that an encoder wants.
"""

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from . import documents, packed, pickled, reference
from .documents import DocumentError
from .errors import WeightsError
from .layout import DNABERT_S, FAIR_ESM, HUGGING_FACE_ESM, ROTARY, Layout
from .models import encoder
from .pickled import Instance, Name, UnknownContentError, UnknownNameError
from .prepared import TOKENIZER_FILE
from .tokens import VOCABULARY

# What a published checkpoint's pickle asks for: tensors, plain containers, and fair-esm's configuration.
NAMES = {**pickled.TENSORS, **pickled.STORAGES, "argparse.Namespace": Name(Instance)}
SHARD = r"[A-Za-z0-9_.-]{1,200}\.(safetensors|bin)"
DOWNLOADS = ("config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt")


@dataclass(frozen=True)
class Checkpoint:
    """A published checkpoint, read but not yet checked.

    Attributes:
        where: The path that messages name.
        model: ``esm2`` or ``dnabert_s``.
        architecture: Sizes as the checkpoint states them, by the encoder's own names.
        layout: How its tensors are named.
        tensors: Mapped from the file, by published name.
        rotary_base: Of rotary frequencies that the checkpoint may leave out; None if it may not.
        sha256: Digest of the weights (hex).
        tokenizer: The file to copy, None for ESM-2, whose alphabet is fixed.
        reference: The implementation it is compared with, for people.
        encode_reference: Its states for token ids, one [tokens, width] a sequence; None if there is none.
    """

    where: Path
    model: str
    architecture: dict[str, int | float | str | bool]
    layout: Layout
    tensors: Mapping[str, Tensor]
    rotary_base: float | None
    sha256: str
    tokenizer: Path | None
    reference: str
    encode_reference: Callable[[Sequence[Tensor]], list[Tensor]] | None

    def own_tensors(self) -> dict[str, Tensor]:
        """Every tensor of the encoder, by its own name, in the checkpoint's dtype; ``inv_freq`` in fp32.

        Raises:
            WeightsError: with the list of missing, unknown and misshapen tensors.
        """
        layout = self.layout
        try:
            architecture = packed.check_architecture(self.model, self.architecture)
        except ValueError as error:
            raise WeightsError(f"{self.where}: {error}; download it again") from None
        heads, width = int(architecture["heads"]), int(architecture["width"])
        if self.model == "esm2" and int(architecture["vocabulary"]) != len(VOCABULARY):
            raise WeightsError(
                f"{self.where}: {architecture['vocabulary']} tokens, ESM-2 has {len(VOCABULARY)}; give ESM-2"
            )
        shapes = encoder(self.model).tensor_shapes(architecture)
        bare = {layout.bare(name): name for name in self.tensors}
        rotary = sorted(name for name in bare if "inv_freq" in shapes and re.fullmatch(ROTARY, name))
        missing, misshapen = [], []
        known = set(rotary)
        if "inv_freq" in shapes and self.rotary_base is None:
            every_layer = {f"layers.{layer}.self_attn.rot_emb.inv_freq" for layer in range(int(architecture["layers"]))}
            missing += sorted(every_layer - known)
        for own, shape in shapes.items():
            parts = rotary if own == "inv_freq" else layout.published(own)
            known.update(parts)
            rows = shape[0] if own == "inv_freq" else shape[0] // len(parts)
            for part in parts:
                if part not in bare:
                    missing.append(part)
                elif (found := self.tensors[bare[part]]).shape != (rows, *shape[1:]) or not found.is_floating_point():
                    misshapen.append(f"{bare[part]} {list(found.shape)} {found.dtype} instead of {[rows, *shape[1:]]}")
        unknown = [
            name
            for name in self.tensors
            if bare[layout.bare(name)] != name
            or (layout.bare(name) not in known and not re.match(layout.ignored, layout.bare(name)))
        ]
        problems = [
            f"{len(names)} {kind}: {', '.join(name[:200] for name in names[:20])}{', ...' if len(names) > 20 else ''}"
            for kind, names in (("missing", missing), ("unknown", unknown), ("misshapen", misshapen))
            if names
        ]
        if problems:
            raise WeightsError(f"{self.where}: not the tensors of {self.model}; {'; '.join(problems)}")
        own_tensors = {
            own: torch.cat([self.tensors[bare[part]] for part in layout.published(own)])
            if own.rpartition(".")[0].endswith(".qkv")
            else self.tensors[bare[layout.published(own)[0]]].contiguous()
            for own in shapes
            if own != "inv_freq"
        }
        if "inv_freq" in shapes:
            own_tensors["inv_freq"] = self._rotary([bare[name] for name in rotary], width // heads)
        return own_tensors

    def _rotary(self, names: Sequence[str], head_width: int) -> Tensor:
        """The one set of rotary frequencies, fp32 [head width / 2]: the checkpoint's own, never rounded anew.

        Released files carry fp16-rounded values, which the model was trained with. A Hugging Face checkpoint without
        any is read by transformers as the formula in fp32, and so it is here.
        """
        if self.rotary_base is not None and not names:
            exponents = torch.arange(0, head_width, 2, dtype=torch.float32) / head_width
            return 1.0 / (self.rotary_base**exponents)
        frequencies = [self.tensors[name].float() for name in names]
        for name, other in zip(names, frequencies, strict=True):
            if not torch.equal(other, frequencies[0]):
                raise WeightsError(f"{self.where}: {name} differs from {names[0]}; download it again")
        return frequencies[0].clone()


def locate(source: str) -> Path:
    """Path of a file or directory, or of a hub id's configuration, tokenizer and weights, fetched or cached.

    Of a hub id safetensors are fetched if it has them, else .bin, and never code.

    Raises:
        WeightsError: neither a path nor a model that the hub or its cache could give.
    """
    if Path(source).exists():
        return Path(source)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, HTTPError

    try:
        path = Path(snapshot_download(source, allow_patterns=[*DOWNLOADS, "model*.safetensors*"]))
        if _weights_files(path) is None:
            path = Path(snapshot_download(source, allow_patterns=[*DOWNLOADS, "pytorch_model*.bin*"]))
    except (HFValidationError, HTTPError, OSError) as error:
        raise WeightsError(
            f"{source}: no such file or directory, and no model that the Hugging Face hub or its cache could give "
            f"({_first_line(error)}); correct the path, or the hub id and the connection"
        ) from None
    return path


def _weights_files(directory: Path) -> list[Path] | None:
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


def read(path: Path, model: str, sha256: str | None) -> Checkpoint:
    """Recognise the format, compare the digest, then map the tensors.

    Args:
        path: A fair-esm ``.pt`` file or a Hugging Face directory.
        model: ``esm2`` or ``dnabert_s``.
        sha256: Expected digest (hex) of the weights, see :func:`digest`; None to take them as they are.

    Raises:
        WeightsError: another digest, another model, files that cannot be read or that need code to be read.
    """
    if path.is_file():
        if model not in FILE_READERS or path.suffix != ".pt":
            wanted = "a fair-esm .pt file or a Hugging Face" if model in FILE_READERS else "a Hugging Face"
            raise WeightsError(f"{path}: not a source of {model}; give {wanted} directory")
        return FILE_READERS[model](path, digest([path], sha256))
    files = _weights_files(path)
    if files is None or not (path / "config.json").is_file():
        raise WeightsError(
            f"{path}: not a Hugging Face model directory; it needs config.json and model.safetensors or "
            "pytorch_model.bin (or their index and parts)"
        )
    found = digest(files, sha256)
    config = _read_json(path / "config.json")
    wanted, reader = DIRECTORY_READERS[model]
    if config.get("model_type") != wanted:
        raise WeightsError(
            f"{path / 'config.json'}: model_type is {config.get('model_type')!r:.80}, {model} has '{wanted}'; "
            "give a source of that model"
        )
    tensors: dict[str, Tensor] = {}
    for file in files:
        tensors |= _map_safetensors(file) if file.suffix == ".safetensors" else _load_tensors(file)
    try:
        return reader(path, config, tensors, found)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise WeightsError(
            f"{path / 'config.json'}: missing or wrong entry {_first_line(error)}; download it again"
        ) from None


def digest(files: Sequence[Path], expected: str | None) -> str:
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


def _read_fair_esm(path: Path, sha256: str) -> Checkpoint:
    content = _load_torch(path)
    try:
        config, tensors = content["cfg"]["model"].state, content["model"]
        stated: dict[str, int] = {
            "layers": int(config["encoder_layers"]),
            "width": int(config["encoder_embed_dim"]),
            "heads": int(config["encoder_attention_heads"]),
            "token_dropout": bool(config["token_dropout"]),
        }
    except (AttributeError, LookupError, TypeError, ValueError, OverflowError) as error:
        raise WeightsError(
            f"{path}: not an ESM-2 checkpoint of fair-esm ({type(error).__name__}: {_first_line(error)}); give the "
            ".pt file itself, not the contact regression, or a Hugging Face directory"
        ) from None
    tensors = _only_tensors(path, tensors)
    bare = {FAIR_ESM.bare(name): tensor for name, tensor in tensors.items()}
    return Checkpoint(
        where=path,
        model="esm2",
        architecture={
            **stated,
            "mlp_width": _rows(tensors, FAIR_ESM, "layers.0.mlp_in.weight"),
            "vocabulary": _rows(tensors, FAIR_ESM, "embed.weight"),
            "layer_norm_epsilon": 1e-5,  # torch.nn.LayerNorm's, which fair-esm's ESM2 uses
        },
        layout=FAIR_ESM,
        tensors=tensors,
        rotary_base=None,
        sha256=sha256,
        tokenizer=None,
        reference="fair-esm ESM2",
        encode_reference=lambda sequences: reference.encode_fair_esm(stated, bare, sequences),
    )


def _read_hugging_face_esm(path: Path, config: dict[str, Any], tensors: dict[str, Tensor], sha256: str) -> Checkpoint:
    if config["position_embedding_type"] != "rotary" or config.get("emb_layer_norm_before"):
        raise WeightsError(f"{path / 'config.json'}: an ESM without rotary positions; only ESM-2 is supported")
    alphabet = path / "vocab.txt"
    if alphabet.is_file() and tuple(alphabet.read_text().split()) != VOCABULARY:
        raise WeightsError(f"{alphabet}: not the alphabet of ESM-2 in its order; give a published ESM-2")
    return Checkpoint(
        where=path,
        model="esm2",
        architecture={**_sizes(config), "token_dropout": bool(config["token_dropout"])},
        layout=HUGGING_FACE_ESM,
        tensors=tensors,
        rotary_base=float(config.get("rope_theta", 10000.0)),
        sha256=sha256,
        tokenizer=None,
        reference="transformers EsmModel",
        encode_reference=lambda sequences: reference.encode_transformers(path, sequences),
    )


def _read_dnabert_s(path: Path, config: dict[str, Any], tensors: dict[str, Tensor], sha256: str) -> Checkpoint:
    return Checkpoint(
        where=path,
        model="dnabert_s",
        architecture={**_sizes(config), "token_types": int(config["type_vocab_size"])},
        layout=DNABERT_S,
        tensors=tensors,
        rotary_base=None,
        sha256=sha256,
        tokenizer=path / TOKENIZER_FILE,
        reference="none implements DNABERT-S: this encoder, each sequence alone",
        encode_reference=None,
    )


def _sizes(config: dict[str, Any]) -> dict[str, int | float]:
    """The sizes that every encoder has, as transformers names them."""
    return {
        "layers": int(config["num_hidden_layers"]),
        "width": int(config["hidden_size"]),
        "heads": int(config["num_attention_heads"]),
        "mlp_width": int(config["intermediate_size"]),
        "vocabulary": int(config["vocab_size"]),
        "layer_norm_epsilon": float(config["layer_norm_eps"]),
    }


# Readers of fair-esm's files by model, and of Hugging Face directories with the model_type in their config.json.
FILE_READERS = {"esm2": _read_fair_esm}
DIRECTORY_READERS = {"esm2": ("esm", _read_hugging_face_esm), "dnabert_s": ("bert", _read_dnabert_s)}


def _rows(tensors: Mapping[str, Tensor], layout: Layout, name: str) -> int:
    """Rows of a tensor that states a size; 1 without it, which the check of the names reports."""
    published = layout.published(name)[0]
    return next((len(t) for key, t in tensors.items() if layout.bare(key) == published and t.dim()), 1)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = documents.read_json(path)
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


def _load_tensors(path: Path) -> dict[str, Tensor]:
    return _only_tensors(path, _load_torch(path))


def _load_torch(path: Path) -> Any:
    """Map a torch file; tensors, plain containers and fair-esm's configuration, and nothing that runs code."""
    try:
        return pickled.read(path, NAMES)
    except UnknownNameError as name:
        raise WeightsError(
            f"{path}: refused, it holds {name}, not only tensors, and reading it could run code; get the checkpoint "
            "from its publisher"
        ) from None
    except UnknownContentError as error:
        raise WeightsError(f"{path}: truncated or not a torch checkpoint ({error}); download it again") from None


def _only_tensors(path: Path, content: object) -> dict[str, Tensor]:
    if isinstance(content, Mapping) and all(isinstance(t, Tensor) and isinstance(k, str) for k, t in content.items()):
        return dict(content)
    raise WeightsError(f"{path}: holds no plain table of tensors; give a published checkpoint")


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
