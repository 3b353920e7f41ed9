"""A job manifest: what one sample asks of the pool, as a small YAML file.

The Snakefile computes a manifest to know whether a receipt is still valid, the consumer submits it, the pool reads it
back as untrusted input. A job's name carries the digest of everything its result depends on, so equal work has an
equal name and a changed input, model or setting has another.
"""

import hashlib
import json
import os
import re
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from pathlib import Path

import yaml

from . import documents
from .documents import DocumentError
from .errors import HoldfastError
from .models import KINDS

FORMAT_VERSION = 1
MAX_BYTES = documents.YAML_LIMIT_BYTES
SAMPLE_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")
DIGEST_PATTERN = re.compile(r"[0-9a-f]{64}")
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

    @cached_property
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
    size_bytes, mtime_ns = fingerprint(path)
    needed = {model: models[model] for model in KINDS[kind].models}
    if kind != "contigs":
        chunk_length = 0
    return Manifest(sample, kind, str(path), size_bytes, mtime_ns, chunk_length, needed, precision, store_dtype)


def fingerprint(path: str | Path) -> tuple[int, int]:
    """Size in bytes and modification time in ns of a file, by which it is known; -1 and -1 if it is not there."""
    try:
        status = os.stat(path)
    except OSError:
        return -1, -1
    return status.st_size, status.st_mtime_ns


def parse(text: str, name: str) -> Manifest:
    """Read a manifest back, trusting nothing in it.

    Args:
        text: Content of the file.
        name: What to call it in an error.

    Raises:
        ManifestError: not YAML, unknown or missing keys, or a value of the wrong type or form.
    """
    if len(text.encode()) > MAX_BYTES:
        raise ManifestError(f"{name}: larger than {MAX_BYTES} bytes")
    try:
        content = documents.parse_yaml(text)
    except DocumentError as error:
        raise ManifestError(f"{name}: {error}") from None
    wanted = {field.name for field in fields(Manifest)}
    if not isinstance(content, dict) or set(content) != wanted:
        found = sorted(map(str, content)) if isinstance(content, dict) else type(content).__name__
        raise ManifestError(f"{name}: needs exactly the keys {', '.join(sorted(wanted))}, found {found}")
    manifest = Manifest(**content)
    for key, problem in _problems(manifest):
        raise ManifestError(f"{name}: {key}: {problem}")
    return manifest


def _problems(manifest: Manifest) -> list[tuple[str, str]]:
    def is_integer(value: object) -> bool:
        return isinstance(value, int) and not isinstance(value, bool)

    checks = {
        "format_version": is_integer(manifest.format_version) and manifest.format_version == FORMAT_VERSION,
        "sample": isinstance(manifest.sample, str) and SAMPLE_PATTERN.fullmatch(manifest.sample) is not None,
        "kind": isinstance(manifest.kind, str) and manifest.kind in KINDS,
        "fasta": isinstance(manifest.fasta, str) and manifest.fasta.startswith("/") and "\0" not in manifest.fasta,
        "size_bytes": is_integer(manifest.size_bytes),
        "mtime_ns": is_integer(manifest.mtime_ns),
        "chunk_length": is_integer(manifest.chunk_length) and 0 <= manifest.chunk_length <= 100_000,
        "precision": isinstance(manifest.precision, str) and manifest.precision in PRECISIONS,
        "store_dtype": isinstance(manifest.store_dtype, str) and manifest.store_dtype in STORE_DTYPES,
        "models": isinstance(manifest.models, dict)
        and all(isinstance(value, str) and DIGEST_PATTERN.fullmatch(value) for value in manifest.models.values()),
    }
    problems = [
        (key, f"not a value this version writes: {getattr(manifest, key)!r:.200}")
        for key, holds in checks.items()
        if not holds
    ]
    if not problems:
        if set(manifest.models) != set(needed := KINDS[manifest.kind].models):
            problems.append(("models", f"kind {manifest.kind} needs {' and '.join(needed)}"))
        if (manifest.kind == "contigs") != (manifest.chunk_length >= 3):
            problems.append(("chunk_length", f"{manifest.chunk_length} does not fit kind {manifest.kind}"))
    return problems
