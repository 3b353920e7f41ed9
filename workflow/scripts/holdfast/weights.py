"""Published checkpoints in, a verified prepared model out.

:func:`prepare` is the one way: a source (a fair-esm ``.pt`` file, a Hugging Face directory or hub id, or
``synthetic:ARCHITECTURE``) is located, its digest taken and compared, its tensors mapped without running any code in
it, matched one by one against the names and shapes that the encoder wants, written as safetensors, and the encoder
reading that file is compared with a reference implementation reading the source. Only then does the directory appear
under its name. A synthetic source is a seeded random checkpoint in the published format; it goes the same way.

Formats: fair-esm 2.0.0 (``esm.pretrained``) and transformers' ``EsmModel`` for ESM-2; the published files of
zhihan1996/DNABERT-S for DNABERT-S.
"""

import argparse
import contextlib
import hashlib
import json
import os
import pickle
import random
import re
import shutil
import tempfile
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import tokenizers
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from . import dnabert_s, esm2
from .errors import WeightsError
from .esm2 import HEADER_KEY
from .files import sync_directory
from .prepared import DESCRIPTION_FILE, FORMAT_VERSION, MODELS, TOKENIZER_FILE, WEIGHTS_FILE, Prepared
from .tokens import VOCABULARY, NucleotideTokenizer

LARGEST_DIFFERENCE = 1e-4  # of token states in fp32; the encoders stay below 1e-5 where they are right
VERIFICATION_LENGTHS = (1, 3, 17, 64, 64, 166)  # tokens without the special ones, that is aa for ESM-2
SYNTHETIC = "synthetic:"
SEED = 20231116
PAD = VOCABULARY.index("<pad>")
ENCODERS = {"esm2": esm2, "dnabert_s": dnabert_s}
ESM2_SIZES = {  # layers, width, heads, dtype of the released file
    "esm2_t6_8M_UR50D": (6, 320, 20, torch.float32),
    "esm2_t12_35M_UR50D": (12, 480, 20, torch.float32),
    "esm2_t30_150M_UR50D": (30, 640, 20, torch.float32),
    "esm2_t33_650M_UR50D": (33, 1280, 20, torch.float32),
    "esm2_t36_3B_UR50D": (36, 2560, 40, torch.float16),
    "esm2_t48_15B_UR50D": (48, 5120, 40, torch.float16),
}
DNABERT_S_SIZES = {  # layers, width, heads, mlp width, vocabulary
    "dnabert_s": (12, 768, 12, 3072, 4096),
    "dnabert_s_tiny": (2, 96, 12, 192, 256),
}
DOWNLOADS = ("config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt")


@dataclass(frozen=True)
class Layout:
    """How a published format names what the encoder wants.

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

    def published(self, name: str) -> list[str]:
        """Published names, without prefix, of the tensors that make up one own tensor."""
        module, _, kind = name.rpartition(".")
        if module.startswith("layers."):
            _, layer, inner = module.split(".")
            return [f"{self.layer.format(layer)}.{part}.{kind}" for part in self.inside[inner]]
        return [f"{self.outside[module]}.{kind}"]


FAIR_ESM = Layout(
    prefix=r"encoder\.sentence_encoder\.|encoder\.",
    outside={"embed": "embed_tokens", "final_norm": "emb_layer_norm_after"},
    layer="layers.{}",
    inside={
        "attention_norm": ("self_attn_layer_norm",),
        "qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        "attention_output": ("self_attn.out_proj",),
        "mlp_norm": ("final_layer_norm",),
        "mlp_in": ("fc1",),
        "mlp_out": ("fc2",),
    },
    ignored=r"(lm_head|contact_head)\.",
)
HUGGING_FACE_ESM = Layout(
    prefix=r"esm\.",
    outside={"embed": "embeddings.word_embeddings", "final_norm": "encoder.emb_layer_norm_after"},
    layer="encoder.layer.{}",
    inside={
        "attention_norm": ("attention.LayerNorm",),
        "qkv": ("attention.self.query", "attention.self.key", "attention.self.value"),
        "attention_output": ("attention.output.dense",),
        "mlp_norm": ("LayerNorm",),
        "mlp_in": ("intermediate.dense",),
        "mlp_out": ("output.dense",),
    },
    ignored=r"(lm_head|contact_head|pooler)\.|(embeddings\.)?position_",
)
DNABERT_S = Layout(
    prefix=r"bert\.",
    outside={
        "embed": "embeddings.word_embeddings",
        "token_type": "embeddings.token_type_embeddings",
        "embed_norm": "embeddings.LayerNorm",
    },
    layer="encoder.layer.{}",
    inside={
        "qkv": ("attention.self.Wqkv",),
        "attention_output": ("attention.output.dense",),
        "attention_norm": ("attention.output.LayerNorm",),
        "mlp_gated": ("mlp.gated_layers",),
        "mlp_out": ("mlp.wo",),
        "mlp_norm": ("mlp.layernorm",),
    },
    ignored=r"pooler\.|embeddings\.position_ids$",
)
# One a layer in fair-esm's and older Hugging Face files, one in all in newer ones; transformers 5.23 writes that one
# under a name with a literal asterisk.
ROTARY = r"(layers\.\d+\.self_attn\.rot_emb|(encoder\.layer\.(\d+|\*)\.attention\.self\.)?rotary_embeddings)\.inv_freq"


@dataclass(frozen=True)
class Checkpoint:
    """A published checkpoint, read but not yet checked.

    Attributes:
        where: The path that messages name.
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
    architecture: dict[str, int | float | str | bool]
    layout: Layout
    tensors: Mapping[str, Tensor]
    rotary_base: float | None
    sha256: str
    tokenizer: Path | None
    reference: str
    encode_reference: Callable[[Sequence[Tensor]], list[Tensor]] | None


def prepare(source: str, model: str, output: Path, sha256: str | None = None) -> Prepared:
    """Turn a published checkpoint into a verified prepared model.

    Args:
        source: A fair-esm ``.pt`` file (fp32 or fp16; the contact-regression file beside it is not needed), a
            Hugging Face directory of ESM-2 or DNABERT-S, a hub id (``HF_HOME``, ``HF_HUB_OFFLINE`` and
            ``HF_ENDPOINT`` are respected; only configuration, tokenizer and weights are fetched), or
            ``synthetic:ARCHITECTURE`` for seeded random weights.
        model: ``esm2`` or ``dnabert_s``.
        output: The directory to write. It is complete or absent at any moment; a prepared model that is there is
            replaced, anything else is left alone.
        sha256: Expected digest (hex) of the weights file, checked before anything in it is parsed. Of weights in
            several files: the digest of their bytes one after the other in the order of their names, as
            ``cat model-*.safetensors | sha256sum`` gives it.

    Returns:
        What ``model.json`` in ``output`` says.

    Raises:
        WeightsError: the source cannot be found, has another digest, is not of this model, needs code to be read,
            misses tensors, has unknown or misshapen ones, or the encoder differs from the reference by more than
            1e-4; or ``output`` holds something else.
    """
    if model not in MODELS:
        raise WeightsError(f"model '{model}': unknown; use one of {', '.join(MODELS)}")
    output = output.absolute()
    if output.exists() and not (output / DESCRIPTION_FILE).is_file() and not _is_empty_directory(output):
        raise WeightsError(f"{output}: exists and is not a prepared model; name another directory or remove it")
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{output.name}-", dir=output.parent) as scratch_name:
        scratch = Path(scratch_name)
        if source.startswith(SYNTHETIC):
            path = _write_synthetic(source, model, scratch / "published")
        else:
            path = Path(source) if Path(source).exists() else _download(source)
        checkpoint = _read_checkpoint(path, model, sha256)
        directory = scratch / output.name
        directory.mkdir()
        prepared = _write(checkpoint, model, source, directory)
        prepared = replace(prepared, verification=_verify(checkpoint, model, directory))
        prepared.write(directory)
        _sync(directory)
        if output.exists():
            output.rename(scratch / "replaced")
        directory.rename(output)
        sync_directory(output.parent)
    return prepared


# Locating and reading


def _download(source: str) -> Path:
    """Fetch configuration, tokenizer and weights of a hub id, safetensors if it has them; never code."""
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
            shards = sorted(set(weight_map.values())) if isinstance(weight_map, dict) else []
            if not shards or any(not isinstance(shard, str) or Path(shard).name != shard for shard in shards):
                raise WeightsError(f"{index}: 'weight_map' must name weights files beside it; download it again")
            return [directory / shard for shard in shards]
    return None


def _read_checkpoint(path: Path, model: str, sha256: str | None) -> Checkpoint:
    """Recognise the format, compare the digest, then map the tensors."""
    if path.is_file():
        if model != "esm2" or path.suffix != ".pt":
            wanted = (
                "a fair-esm .pt file or a Hugging Face directory" if model == "esm2" else "a Hugging Face directory"
            )
            raise WeightsError(f"{path}: not a source of {model}; give {wanted}")
        return _read_fair_esm(path, _digest([path], sha256))
    files = _weights_files(path)
    if files is None or not (path / "config.json").is_file():
        raise WeightsError(
            f"{path}: not a Hugging Face model directory; it needs config.json and model.safetensors or "
            "pytorch_model.bin (or their index and parts)"
        )
    digest = _digest(files, sha256)
    config = _read_json(path / "config.json")
    wanted = {"esm2": "esm", "dnabert_s": "bert"}[model]
    if config.get("model_type") != wanted:
        raise WeightsError(
            f"{path / 'config.json'}: model_type is {config.get('model_type')!r}, {model} has '{wanted}'; "
            "give a source of that model"
        )
    tensors: dict[str, Tensor] = {}
    for file in files:
        tensors |= _map_safetensors(file) if file.suffix == ".safetensors" else _load_tensors(file)
    read = _read_hugging_face_esm if model == "esm2" else _read_dnabert_s
    try:
        return read(path, config, tensors, digest)
    except (KeyError, TypeError, ValueError) as error:
        raise WeightsError(f"{path / 'config.json'}: missing or wrong entry {error}; download it again") from None


def _digest(files: Sequence[Path], expected: str | None) -> str:
    """sha256 (hex) over the files one after the other, compared with the expected one if there is one."""
    digest = hashlib.sha256()
    for file in files:
        try:
            with open(file, "rb") as opened:
                while chunk := opened.read(2**22):
                    digest.update(chunk)
        except FileNotFoundError:
            raise WeightsError(f"{file}: the index names it, but it is missing; download it again") from None
    found = digest.hexdigest()
    if expected is not None and expected.strip().lower() != found:
        raise WeightsError(
            f"{files[0] if len(files) == 1 else files[0].parent}: sha256 is {found}, expected {expected}; "
            "download it again or correct the digest"
        )
    return found


def _read_fair_esm(path: Path, sha256: str) -> Checkpoint:
    content = _load_torch(path)
    try:
        config, tensors = vars(content["cfg"]["model"]), content["model"]
        stated: dict[str, int] = {
            "layers": int(config["encoder_layers"]),
            "width": int(config["encoder_embed_dim"]),
            "heads": int(config["encoder_attention_heads"]),
            "token_dropout": bool(config["token_dropout"]),
        }
    except (KeyError, TypeError, ValueError) as error:
        raise WeightsError(
            f"{path}: not an ESM-2 checkpoint of fair-esm ({type(error).__name__}: {error}); give the .pt file itself, "
            "not the contact regression, or a Hugging Face directory"
        ) from None
    tensors = _only_tensors(path, tensors)
    return Checkpoint(
        where=path,
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
        encode_reference=lambda sequences: _encode_fair_esm(stated, tensors, sequences),
    )


def _read_hugging_face_esm(path: Path, config: dict[str, Any], tensors: dict[str, Tensor], sha256: str) -> Checkpoint:
    if config["position_embedding_type"] != "rotary" or config.get("emb_layer_norm_before"):
        raise WeightsError(f"{path / 'config.json'}: an ESM without rotary positions; only ESM-2 is supported")
    alphabet = path / "vocab.txt"
    if alphabet.is_file() and tuple(alphabet.read_text().split()) != VOCABULARY:
        raise WeightsError(f"{alphabet}: not the alphabet of ESM-2 in its order; give a published ESM-2")
    return Checkpoint(
        where=path,
        architecture={
            "layers": int(config["num_hidden_layers"]),
            "width": int(config["hidden_size"]),
            "heads": int(config["num_attention_heads"]),
            "token_dropout": bool(config["token_dropout"]),
            "mlp_width": int(config["intermediate_size"]),
            "vocabulary": int(config["vocab_size"]),
            "layer_norm_epsilon": float(config["layer_norm_eps"]),
        },
        layout=HUGGING_FACE_ESM,
        tensors=tensors,
        rotary_base=float(config.get("rope_theta", 10000.0)),
        sha256=sha256,
        tokenizer=None,
        reference="transformers EsmModel",
        encode_reference=lambda sequences: _encode_transformers(path, sequences),
    )


def _read_dnabert_s(path: Path, config: dict[str, Any], tensors: dict[str, Tensor], sha256: str) -> Checkpoint:
    return Checkpoint(
        where=path,
        architecture={
            "layers": int(config["num_hidden_layers"]),
            "width": int(config["hidden_size"]),
            "heads": int(config["num_attention_heads"]),
            "mlp_width": int(config["intermediate_size"]),
            "vocabulary": int(config["vocab_size"]),
            "token_types": int(config["type_vocab_size"]),
            "layer_norm_epsilon": float(config["layer_norm_eps"]),
        },
        layout=DNABERT_S,
        tensors=tensors,
        rotary_base=None,
        sha256=sha256,
        tokenizer=path / TOKENIZER_FILE,
        reference="none implements DNABERT-S: this encoder, each sequence alone",
        encode_reference=None,
    )


def _rows(tensors: Mapping[str, Tensor], layout: Layout, name: str) -> int:
    """Rows of a tensor that states a size; 0 without it, which the check of the names reports."""
    published = layout.published(name)[0]
    return next((len(t) for key, t in tensors.items() if _bare(key, layout) == published and t.dim()), 0)


def _bare(name: str, layout: Layout) -> str:
    """Published name without prefix; transformers 5.23 saves a model of its own making with gamma and beta."""
    name = re.sub(r"(?<=LayerNorm\.)gamma$", "weight", re.sub(r"(?<=LayerNorm\.)beta$", "bias", name))
    return re.sub(f"^({layout.prefix})", "", name)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except ValueError as error:
        raise WeightsError(f"{path}: not JSON ({error}); download it again") from None
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
    """Map a torch file; tensors, plain containers and argparse.Namespace, and nothing that runs code."""
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL (\S+)", str(error))
        raise WeightsError(
            f"{path}: refused, it holds {found[1] if found else 'objects'}, not only tensors, and reading it could run "
            "code; get the checkpoint from its publisher"
        ) from None
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise WeightsError(
            f"{path}: truncated or not a torch checkpoint ({_first_line(error)}); download it again"
        ) from None


def _only_tensors(path: Path, content: object) -> dict[str, Tensor]:
    if isinstance(content, Mapping) and all(isinstance(t, Tensor) and isinstance(k, str) for k, t in content.items()):
        return dict(content)
    raise WeightsError(f"{path}: holds no plain table of tensors; give a published checkpoint")


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


# Checking and writing


def _own_tensors(checkpoint: Checkpoint, model: str) -> dict[str, Tensor]:
    """Every tensor of the encoder, by its own name, in the checkpoint's dtype; ``inv_freq`` in fp32.

    Raises:
        WeightsError: with the list of missing, unknown and misshapen tensors.
    """
    architecture, layout = checkpoint.architecture, checkpoint.layout
    heads, width = int(architecture["heads"]), int(architecture["width"])
    if heads < 1 or width % heads or (model == "esm2" and width // heads % 2):
        raise WeightsError(f"{checkpoint.where}: {heads} heads do not fit a width of {width}; download it again")
    bare = {_bare(name, layout): name for name in checkpoint.tensors}
    shapes = ENCODERS[model].tensor_shapes(architecture)
    rotary = sorted(name for name in bare if "inv_freq" in shapes and re.fullmatch(ROTARY, name))
    missing, misshapen = [], []
    known = set(rotary)
    if "inv_freq" in shapes and checkpoint.rotary_base is None:
        every_layer = {f"layers.{layer}.self_attn.rot_emb.inv_freq" for layer in range(int(architecture["layers"]))}
        missing += sorted(every_layer - known)
    for own, shape in shapes.items():
        parts = rotary if own == "inv_freq" else layout.published(own)
        known.update(parts)
        rows = shape[0] if own == "inv_freq" else shape[0] // len(parts)
        for part in parts:
            if part not in bare:
                missing.append(part)
            elif (found := checkpoint.tensors[bare[part]]).shape != (rows, *shape[1:]) or not found.is_floating_point():
                misshapen.append(f"{bare[part]} {list(found.shape)} {found.dtype} instead of {[rows, *shape[1:]]}")
    unknown = [
        name
        for name in checkpoint.tensors
        if bare[_bare(name, layout)] != name
        or (_bare(name, layout) not in known and not re.match(layout.ignored, _bare(name, layout)))
    ]
    problems = [
        f"{len(names)} {kind}: {', '.join(names[:20])}{', ...' if len(names) > 20 else ''}"
        for kind, names in (("missing", missing), ("unknown", unknown), ("misshapen", misshapen))
        if names
    ]
    if problems:
        raise WeightsError(f"{checkpoint.where}: not the tensors of {model}; {'; '.join(problems)}")
    own_tensors = {
        own: torch.cat([checkpoint.tensors[bare[part]] for part in layout.published(own)])
        if own.rpartition(".")[0].endswith(".qkv")
        else checkpoint.tensors[bare[layout.published(own)[0]]].contiguous()
        for own in shapes
        if own != "inv_freq"
    }
    if "inv_freq" in shapes:
        own_tensors["inv_freq"] = _rotary(checkpoint, [bare[name] for name in rotary], width // heads)
    return own_tensors


def _rotary(checkpoint: Checkpoint, names: Sequence[str], head_width: int) -> Tensor:
    """The one set of rotary frequencies, fp32 [head width / 2]: the checkpoint's own, never rounded anew.

    Released files carry fp16-rounded values, which the model was trained with. A Hugging Face checkpoint without any
    is read by transformers as the formula in fp32, and so it is here.
    """
    if checkpoint.rotary_base is not None and not names:
        exponents = torch.arange(0, head_width, 2, dtype=torch.float32) / head_width
        return 1.0 / (checkpoint.rotary_base**exponents)
    frequencies = [checkpoint.tensors[name].float() for name in names]
    for name, other in zip(names, frequencies, strict=True):
        if not torch.equal(other, frequencies[0]):
            raise WeightsError(f"{checkpoint.where}: {name} differs from {names[0]}; download it again")
    return frequencies[0].clone()


def _write(checkpoint: Checkpoint, model: str, source: str, directory: Path) -> Prepared:
    """Write weights, tokenizer and a description that is not verified yet."""
    tensors = _own_tensors(checkpoint, model)
    vocabulary = int(checkpoint.architecture["vocabulary"])
    if model == "esm2" and vocabulary != len(VOCABULARY):
        raise WeightsError(f"{checkpoint.where}: {vocabulary} tokens, ESM-2 has {len(VOCABULARY)}; give ESM-2")
    if checkpoint.tokenizer is not None:
        _copy_tokenizer(checkpoint.tokenizer, vocabulary, directory / TOKENIZER_FILE)
    prepared = Prepared(
        model=model,
        architecture=checkpoint.architecture,
        width=int(checkpoint.architecture["width"]),
        source=source,
        source_sha256=checkpoint.sha256,
        weights_sha256="",
        synthetic=source.startswith(SYNTHETIC),
        verification={},
    )
    header = {
        "model": model,
        "architecture": prepared.architecture,
        "source": source,
        "source_sha256": prepared.source_sha256,
        "synthetic": prepared.synthetic,
        "format_version": FORMAT_VERSION,
    }
    save_file(tensors, directory / WEIGHTS_FILE, {HEADER_KEY: json.dumps(header)})
    prepared = replace(prepared, weights_sha256=_digest([directory / WEIGHTS_FILE], None))
    prepared.write(directory)
    # safetensors creates files for their owner alone; the other files follow the umask.
    (directory / WEIGHTS_FILE).chmod((directory / DESCRIPTION_FILE).stat().st_mode)
    return prepared


def _copy_tokenizer(source: Path, vocabulary: int, target: Path) -> None:
    """Copy ``tokenizer.json`` as it is, once it can be read and fits the embedding table."""
    if not source.is_file():
        raise WeightsError(f"{source}: missing; DNABERT-S needs the tokenizer of its checkpoint, download it too")
    NucleotideTokenizer(source)
    ids = tokenizers.Tokenizer.from_file(str(source)).get_vocab().values()
    if max(ids) >= vocabulary:
        raise WeightsError(f"{source}: token {max(ids)} has no row among {vocabulary}; it belongs to another model")
    shutil.copyfile(source, target)


def _sync(directory: Path) -> None:
    for file in directory.iterdir():
        with open(file, "rb") as opened:
            os.fsync(opened.fileno())
    sync_directory(directory)


def _is_empty_directory(path: Path) -> bool:
    return path.is_dir() and next(path.iterdir(), None) is None


# Verification


def _verify(checkpoint: Checkpoint, model: str, directory: Path) -> dict[str, str | float | int | None]:
    """Compare the encoder on the prepared files with the reference on the source, one model in memory at a time.

    Raises:
        WeightsError: they differ by more than :data:`LARGEST_DIFFERENCE`.
    """
    generator = torch.Generator().manual_seed(SEED)
    if checkpoint.encode_reference is not None:
        first, last, low, high = 0, 2, 4, 24  # <cls>, <eos>, the 20 common residues
    else:
        first, last, low, high = 1, 2, 5, int(checkpoint.architecture["vocabulary"])  # [CLS], [SEP], DNA
    sequences = [
        torch.cat(
            (torch.tensor([first]), torch.randint(low, high, (length,), generator=generator), torch.tensor([last]))
        )
        for length in VERIFICATION_LENGTHS
    ]
    encoder = ENCODERS[model].load(directory, "cpu", "fp32")
    states = encoder.encode(torch.cat(sequences), [len(s) for s in sequences]).split([len(s) for s in sequences])
    if checkpoint.encode_reference is None:
        references = [encoder.encode(sequence, [len(sequence)]) for sequence in sequences]
    else:
        del encoder
        references = checkpoint.encode_reference(sequences)
    pairs = zip(states, references, strict=True)
    difference = float(torch.stack([(ours - theirs).abs().max() for ours, theirs in pairs]).max())
    if not difference <= LARGEST_DIFFERENCE:
        raise WeightsError(
            f"{checkpoint.where}: the encoder differs from the reference ({checkpoint.reference}) by {difference:.1e}, "
            f"allowed are {LARGEST_DIFFERENCE:.0e}; these weights are not used, please report this"
        )
    return {"reference": checkpoint.reference, "largest_difference": difference, "sequences": len(sequences)}


@torch.inference_mode()
def _encode_fair_esm(
    sizes: Mapping[str, int], tensors: Mapping[str, Tensor], sequences: Sequence[Tensor]
) -> list[Tensor]:
    """States of fair-esm's own class in fp32, built without its slow initialisation."""
    from esm.model.esm2 import ESM2

    with torch.device("meta"):
        model = ESM2(sizes["layers"], sizes["width"], sizes["heads"], token_dropout=bool(sizes["token_dropout"]))
    model.lm_head = torch.nn.Identity()
    state = {_bare(name, FAIR_ESM): tensor.float() for name, tensor in tensors.items()}
    model.load_state_dict(
        {name: tensor for name, tensor in state.items() if not name.startswith("lm_head.")}, strict=False, assign=True
    )
    last = model.num_layers
    states = model.eval()(_padded(sequences), repr_layers=[last])["representations"][last]
    return [row[: len(sequence)] for row, sequence in zip(states, sequences, strict=True)]


@torch.inference_mode()
def _encode_transformers(directory: Path, sequences: Sequence[Tensor]) -> list[Tensor]:
    """States of transformers' EsmModel in fp32."""
    from transformers import EsmModel

    with _quiet_transformers():
        model = EsmModel.from_pretrained(
            directory,
            dtype=torch.float32,
            add_pooling_layer=False,
            attn_implementation="eager",
            local_files_only=True,
            trust_remote_code=False,
        )
    tokens = _padded(sequences)
    states = model.eval()(tokens, attention_mask=(tokens != PAD).long()).last_hidden_state
    return [row[: len(sequence)] for row, sequence in zip(states, sequences, strict=True)]


def _padded(sequences: Sequence[Tensor]) -> Tensor:
    return torch.nn.utils.rnn.pad_sequence(list(sequences), batch_first=True, padding_value=PAD)


@contextlib.contextmanager
def _quiet_transformers() -> Iterator[None]:
    """Without progress bars and without the report of unused heads."""
    from transformers.utils import logging

    verbosity, progress = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if progress:
            logging.enable_progress_bar()


# Synthetic checkpoints


def _write_synthetic(source: str, model: str, directory: Path) -> Path:
    """Write a seeded random checkpoint in the published format and return what a user would name as its source."""
    architecture = source.removeprefix(SYNTHETIC)
    names = ESM2_SIZES if model == "esm2" else DNABERT_S_SIZES
    if architecture not in names:
        raise WeightsError(f"{source}: no architecture of {model}; use {SYNTHETIC} with one of {', '.join(names)}")
    directory.mkdir()
    if model == "esm2":
        return write_synthetic_esm2(architecture, directory)
    _write_synthetic_dnabert_s(architecture, directory)
    return directory


def write_synthetic_esm2(architecture: str, directory: Path) -> Path:
    """As fair-esm publishes ESM-2: prefixed names, heads, fp16-rounded ``inv_freq``, contact regression beside it."""
    from esm.model.esm2 import ESM2

    layers, width, heads, dtype = ESM2_SIZES[architecture]
    generator = torch.Generator().manual_seed(SEED)
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in ESM2(layers, width, heads).state_dict().items()}
    frequencies = 1.0 / (10000 ** (torch.arange(0, width // heads, 2) / (width // heads)))
    state, regression = OrderedDict(), OrderedDict()
    for name, shape in shapes.items():
        if name.startswith("contact_head."):
            regression[name] = _random(name, shape, generator)
        elif name.endswith("inv_freq"):
            state[f"encoder.sentence_encoder.{name}"] = frequencies.half().to(dtype)
        elif name == "lm_head.weight":
            state[f"encoder.{name}"] = state["encoder.sentence_encoder.embed_tokens.weight"]
        else:
            prefix = "encoder." if name.startswith("lm_head.") else "encoder.sentence_encoder."
            state[prefix + name] = _random(name, shape, generator).to(dtype)
    config = argparse.Namespace(
        encoder_layers=layers,
        encoder_embed_dim=width,
        encoder_ffn_embed_dim=4 * width,
        encoder_attention_heads=heads,
        token_dropout=True,
    )
    path = directory / f"{architecture}.pt"
    torch.save({"cfg": {"model": config}, "model": state}, path)
    torch.save({"model": regression}, directory / f"{architecture}-contact-regression.pt")
    return path


def _write_synthetic_dnabert_s(architecture: str, directory: Path) -> None:
    """As DNABERT-S is published: configuration, weights with the unused pooler, tokenizer."""
    layers, width, heads, mlp_width, vocabulary = DNABERT_S_SIZES[architecture]
    sizes: esm2.Architecture = {
        "layers": layers,
        "width": width,
        "mlp_width": mlp_width,
        "vocabulary": vocabulary,
        "token_types": 2,
    }
    generator = torch.Generator().manual_seed(SEED)
    shapes = {DNABERT_S.published(own)[0]: shape for own, shape in dnabert_s.tensor_shapes(sizes).items()}
    shapes |= {"pooler.dense.weight": (width, width), "pooler.dense.bias": (width,)}
    save_file(
        {name: _random(name, shape, generator) for name, shape in shapes.items()}, directory / "model.safetensors"
    )
    config = {
        "architectures": ["BertForMaskedLM"],
        "hidden_size": width,
        "intermediate_size": mlp_width,
        "layer_norm_eps": 1e-12,
        "model_type": "bert",
        "num_attention_heads": heads,
        "num_hidden_layers": layers,
        "type_vocab_size": 2,
        "vocab_size": vocabulary,
    }
    (directory / "config.json").write_text(json.dumps(config, indent=2))
    write_synthetic_tokenizer(vocabulary, directory / TOKENIZER_FILE)


def _random(name: str, shape: Sequence[int], generator: torch.Generator) -> Tensor:
    """Seeded values that keep the scale from layer to layer, so that embeddings differ as their sequences do."""
    values = torch.randn(tuple(shape), generator=generator)
    if len(shape) == 1:
        return 0.1 * values + (1.0 if name.endswith("weight") else 0.0)
    if name.endswith(("embed_tokens.weight", "word_embeddings.weight")):
        return values
    return values / shape[-1] ** 0.5


def write_synthetic_tokenizer(vocabulary: int, path: Path) -> None:
    """Write a BPE tokenizer shaped as the published one, learned from seeded random DNA.

    With 4096 tokens it gives 500 nt 100-114 tokens (published: 100-119). Truncation and padding to 2000 are on, as
    published; a reader has to switch them off.
    """
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    bases = random.Random(SEED)
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=["[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]"], show_progress=False
    )
    tokenizer.train_from_iterator(("".join(bases.choices("ACGT", k=500)) for _ in range(400)), trainer)
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    tokenizer.enable_truncation(2000)
    tokenizer.enable_padding(length=2000, pad_id=3, pad_token="[PAD]")
    tokenizer.save(str(path))
