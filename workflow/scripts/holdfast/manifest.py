"""A job manifest: what one sample asks of the pool, as a small YAML file.

The Snakefile computes a manifest to know whether a receipt is still valid, the consumer submits it, the pool reads it
back as untrusted input. A job's name carries the digest of everything its result depends on, so equal work has an
equal name and a changed input, model or setting has another.
"""

import hashlib
import json
import os
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import yaml

from .errors import HoldfastError

FORMAT_VERSION = 1
MAX_BYTES = 64 * 1024
SAMPLE_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")
INTEGER_PATTERN = re.compile(r"-?[0-9]{1,18}|-?[1-8][0-9]{18}")
MAX_CHUNK_BP = 100_000
DIGEST_PATTERN = re.compile(r"[0-9a-f]{64}")
MODELS_OF_KIND = {"contigs": ("esm2", "dnabert_s"), "proteins": ("esm2",), "dna": ("dnabert_s",)}
PRECISIONS = ("auto", "fp32", "fp16")
STORE_DTYPES = ("float16", "float32")


class ManifestError(HoldfastError):
    """A manifest that is not what this version writes."""


@dataclass(frozen=True)
class Manifest:
    """One sample's job.

    Attributes:
        sample: Name of the sample; also the name of its directory under ``results/``.
        kind: ``contigs``, ``proteins`` or ``dna``.
        fasta: Absolute path of its FASTA or FASTQ file.
        size_bytes: Size of that file when the job was made; -1 if it was not there.
        mtime_ns: Its modification time (ns since the epoch); -1 if it was not there.
        chunk_length: Chunk length in bp (kind ``contigs``), otherwise 0.
        models: ``weights_sha256`` of each model the kind needs.
        precision: ``auto``, ``fp32`` or ``fp16``.
        store_dtype: ``float16`` or ``float32``.
    """

    sample: str
    kind: str
    fasta: str
    size_bytes: int
    mtime_ns: int
    chunk_length: int
    models: dict[str, str]
    precision: str
    store_dtype: str
    format_version: int = FORMAT_VERSION

    @property
    def job(self) -> str:
        """``SAMPLE-DIGEST``: 16 hex digits of the SHA-256 of all fields."""
        canonical = json.dumps(asdict(self), sort_keys=True)
        return f"{self.sample}-{hashlib.sha256(canonical.encode()).hexdigest()[:16]}"

    def dump(self) -> str:
        """The manifest as YAML text."""
        return yaml.safe_dump(asdict(self), sort_keys=False)


def make(
    sample: str, kind: str, fasta: str, chunk_length: int, models: dict[str, str], precision: str, store_dtype: str
) -> Manifest:
    """Make the manifest of a sample, looking at its file's size and time but not into it."""
    path = Path(fasta).absolute()
    try:
        status = os.stat(path)
        size_bytes, mtime_ns = status.st_size, status.st_mtime_ns
    except OSError:
        size_bytes = mtime_ns = -1
    needed = {model: models[model] for model in MODELS_OF_KIND[kind]}
    if kind != "contigs":
        chunk_length = 0
    return Manifest(sample, kind, str(path), size_bytes, mtime_ns, chunk_length, needed, precision, store_dtype)


def parse(text: str, name: str) -> Manifest:
    """Read a manifest back, trusting nothing in it.

    Args:
        text: Content of the file.
        name: What to call it in an error.

    Raises:
        ManifestError: not YAML, unknown or missing keys, or a value of the wrong type or form.
    """
    if len(text.encode("utf-8", "surrogatepass")) > MAX_BYTES:
        raise ManifestError(f"{name}: larger than {MAX_BYTES} bytes")
    try:
        content = yaml.load(text, Loader=_PlainLoader)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise ManifestError(f"{name}: not YAML: {' '.join(str(error).split())}") from None
    wanted = {field.name for field in fields(Manifest)}
    if not isinstance(content, dict) or set(content) != wanted:
        raise ManifestError(f"{name}: needs exactly the keys {', '.join(sorted(wanted))}")
    for key in ("size_bytes", "mtime_ns", "chunk_length", "format_version"):
        if not isinstance(content[key], str) or not INTEGER_PATTERN.fullmatch(content[key]):
            raise ManifestError(f"{name}: {key}: not a whole number")
        content[key] = int(content[key])
    manifest = Manifest(**content)
    for problem in _problems(manifest):
        raise ManifestError(f"{name}: {problem}")
    return manifest


class _PlainLoader(yaml.BaseLoader):
    """Reads text, lists and mappings of text: no tags, no aliases, so nothing that grows."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("an alias, which this version never writes")
        node: yaml.Node | None = super().compose_node(parent, index)
        return node


def _problems(manifest: Manifest) -> Iterator[str]:
    """What in a manifest this version would not write; every field but the whole numbers may hold anything."""
    text = {key: getattr(manifest, key) for key in ("sample", "kind", "fasta", "precision", "store_dtype")}
    wrong = [key for key, value in text.items() if not isinstance(value, str)]
    if wrong:
        yield f"{wrong[0]}: not text"
        return
    if not SAMPLE_PATTERN.fullmatch(manifest.sample):
        yield "sample: letters, digits and _ . - only, at most 128"
    for key, known in (("kind", MODELS_OF_KIND), ("precision", PRECISIONS), ("store_dtype", STORE_DTYPES)):
        if text[key] not in known:
            yield f"{key}: none of {', '.join(known)}"
            return
    if not manifest.fasta.startswith("/") or "\0" in manifest.fasta:
        yield "fasta: not an absolute path"
    if manifest.format_version != FORMAT_VERSION:
        yield f"format_version: {manifest.format_version}, this version reads {FORMAT_VERSION}"
    needed = MODELS_OF_KIND[manifest.kind]
    if not isinstance(manifest.models, dict) or sorted(manifest.models) != sorted(needed):
        yield f"models: kind {manifest.kind} needs {' and '.join(needed)}"
    elif not all(isinstance(value, str) and DIGEST_PATTERN.fullmatch(value) for value in manifest.models.values()):
        yield "models: not SHA-256 digests"
    if manifest.chunk_length > MAX_CHUNK_BP or (manifest.kind == "contigs") != (manifest.chunk_length >= 3):
        yield f"chunk_length: {manifest.chunk_length} does not fit kind {manifest.kind}"
