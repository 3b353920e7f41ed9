"""A job: its manifest, what one sample asks of the pool, and its receipt, what became of it; both JSON.

The Snakefile computes a manifest to know whether a receipt is still valid, the client submits it, the pool reads it
back as untrusted input. A job's name carries the digest of everything its result depends on: the content of its file,
models and settings, no path and no time. So equal work has an equal name, wherever it lies, and a changed input, model
or setting has another. The pool writes the receipt, and the workflow keeps it as ``results/SAMPLE/receipt.json``.
"""

import hashlib
import json
import os
import platform
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import Any

from .. import __version__
from ..documents import DocumentError, fill, parse_json, read_json
from ..errors import ConfigError, HoldfastError, ResourceError
from ..files import atomic_text
from ..models.registry import KINDS, POLICIES, POOLINGS, WINDOW, Output, Prepared
from ..sequences import GENETIC_CODES

FORMAT_VERSION = 4
MANIFEST_LIMIT_BYTES = 2**16
SAMPLE_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")
MODEL_PATTERN = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,63}")
RESERVED = ("ids", "length", "sha256", "record", "chunk", "frame", "records")
"""Names that no model may have: they are the file's own."""
MODELS = 64
"""Most models of a job."""
DIGEST_PATTERN = re.compile(r"[0-9a-f]{64}")
PRECISIONS = ("auto", "fp32", "fp16", "bf16")
STORE_DTYPES = ("float16", "float32")


PROVENANCE = ("sample", "fasta", "size_bytes", "run", "part", "computed_in")
"""Fields of a manifest on which the result of the whole does not depend."""
PART_PATTERN = re.compile(r"(.+-[0-9a-f]{16})\.([0-9]{6})")
"""Name of the job of a part: that of the whole, and the number."""


class ManifestError(HoldfastError):
    """A manifest that is not what this version writes."""


@dataclass(frozen=True)
class Request:
    """What a job asks of one model.

    Attributes:
        weights_sha256: Of the prepared model.
        outputs: What is made of its states, in order.
        long: What becomes of sequences of more than ``max_length`` letters, one of :data:`.registry.POLICIES`.
        max_length: 0 where ``long`` is ``whole``.
    """

    weights_sha256: str
    outputs: list[Output]
    long: str
    max_length: int


@dataclass(frozen=True)
class Manifest:
    """One sample's job.

    Attributes:
        sample: Name of the sample; also the name of its directory under ``results/``.
        kind: ``contigs``, ``proteins`` or ``dna``.
        fasta: Absolute path of its FASTA or FASTQ file.
        input_sha256: Digest of that file's bytes (hex); empty if it was not there.
        size_bytes: Its size; -1 if it was not there.
        chunk_length: Chunk length in bp (kind ``contigs``), otherwise 0.
        genetic_code: NCBI's number of the code by which frames are read (kind ``contigs``), otherwise 0.
        models: What is asked of each model, by the user's name for it.
        precision: ``auto``, ``fp32``, ``fp16`` or ``bf16``.
        store_dtype: ``float16`` or ``float32``.
        run: Run of the workflow that handed it in; empty by hand.
        part: Number of a part of the sample, from 0; -1 for the whole.
        computed_in: What the models must compute this part in: as the others do; empty for the whole.
    """

    sample: str
    kind: str
    fasta: str
    input_sha256: str
    size_bytes: int
    chunk_length: int
    genetic_code: int
    models: dict[str, Request]
    precision: str
    store_dtype: str
    run: str = ""
    part: int = -1
    computed_in: str = ""
    format_version: int = FORMAT_VERSION

    @property
    def weights(self) -> set[str]:
        """``weights_sha256`` of the models that it needs."""
        return {request.weights_sha256 for request in self.models.values()}

    @cached_property
    def digest(self) -> str:
        """16 hex digits of the SHA-256 of what its result depends on: all fields but :data:`PROVENANCE`."""
        content = {name: value for name, value in asdict(self).items() if name not in PROVENANCE}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]

    @property
    def whole(self) -> str:
        """Name of the job of the whole sample, ``SAMPLE-DIGEST``."""
        return f"{self.sample}-{self.digest}"

    @property
    def job(self) -> str:
        """Name of the job: that of the whole or, for a part, ``SAMPLE-DIGEST.NUMBER``."""
        return self.whole if self.part < 0 else f"{self.whole}.{self.part:06d}"

    def dump(self) -> str:
        """The manifest as JSON text."""
        return json.dumps(asdict(self))


def make_manifest(
    sample: str,
    kind: str,
    fasta: str,
    chunk_length: int,
    genetic_code: int,
    models: Mapping[str, Request],
    precision: str,
    store_dtype: str,
    input_sha256: str | None = None,
) -> Manifest:
    """Make the manifest of a sample; ``input_sha256`` is that of its file, where it is known, or the file is read."""
    path = str(Path(fasta).absolute())
    size_bytes, _ = fingerprint(path)
    if input_sha256 is None:
        input_sha256 = digest_of(path)
    cutting = (chunk_length, genetic_code) if kind == "contigs" else (0, 0)
    return Manifest(sample, kind, path, input_sha256, size_bytes, *cutting, dict(models), precision, store_dtype)


def make_request(name: str, prepared: Prepared, options: Mapping[str, Any]) -> Request:
    """What a config asks of a model, now that the model is known.

    Args:
        name: The user's, for errors.
        prepared: The model.
        options: ``layers`` (numbers, or ``last``), ``pooling``, and ``long`` and ``max_length``, which may be None.

    Raises:
        ConfigError: a layer that the model has not, a pooling that makes no sense for it, or a length it cannot take.
    """
    key = f"models.{name}"
    layers = [prepared.layers if layer == "last" else int(layer) for layer in options["layers"]]
    beyond = [layer for layer in layers if layer > prepared.layers]
    if beyond:
        raise ConfigError(f"{key}.layers: {beyond[0]} is beyond the model, whose layers are 0 to {prepared.layers}")
    if options["max_length"] is not None and not 2 <= options["max_length"] < 2**31:
        raise ConfigError(f"{key}.max_length: must be from 2 to {2**31 - 1}, is {options['max_length']}")
    long, limit = options["long"] or prepared.long, options["max_length"] or prepared.max_length
    if long == "whole" and options["max_length"]:
        why = "means nothing for whole sequences; choose long: window, truncate or refuse"
        raise ConfigError(f"{key}.max_length: {why}")
    fixed = prepared.max_length if prepared.long == "window" else None  # learned positions, of which there are no more
    if long == "window":
        limit = limit or WINDOW
    if fixed is not None and (long == "whole" or (limit or 0) > fixed):
        raise ConfigError(
            f"{key}: the model has positions for {fixed} letters; choose long: window, truncate or refuse"
        )
    if long == "window" and prepared.letters is None:
        raise ConfigError(
            f"{key}.long: window needs a model of letters, this one has tokens of several; choose another"
        )
    if long != "whole" and limit is None:
        raise ConfigError(f"{key}.long: {long} needs models.{name}.max_length, as the model has no limit of its own")
    if "cls" in options["pooling"] and (long == "window" or not prepared.start_is_cls):
        why = "where long is window" if prepared.start_is_cls else f"for family {prepared.family}, without such a token"
        raise ConfigError(f"{key}.pooling: cls makes no sense {why}; leave it out")
    outputs = sorted({Output(layer, pooling) for layer in layers for pooling in options["pooling"]})
    return Request(prepared.weights_sha256, outputs, long, 0 if long == "whole" else int(limit or 0))


def fingerprint(path: str | Path) -> tuple[int, int]:
    """Size in bytes and modification time in ns of a file, a hint that it has not changed; -1 and -1 without one."""
    try:
        status = os.stat(path)
    except OSError:
        return -1, -1
    return status.st_size, status.st_mtime_ns


def digest_of(path: str | Path, count: Callable[[int], object] = int) -> str:
    """SHA-256 of a file's bytes (hex), by which a job knows its input; empty if it cannot be read.

    Args:
        path: The file.
        count: Is told how many bytes have been read since the last time.
    """
    digest = hashlib.sha256()
    try:
        with open(path, "rb") as file:
            while block := file.read(2**20):
                digest.update(block)
                count(len(block))
    except OSError:
        return ""
    return digest.hexdigest()


def parse_manifest(text: str, name: str) -> Manifest:
    """Read a manifest back, trusting nothing in it.

    Args:
        text: Content of the file.
        name: What to call it in an error.

    Raises:
        ManifestError: too large, not JSON, unknown or missing keys, or a value of the wrong type or form.
    """
    if len(text.encode("utf-8", "surrogatepass")) > MANIFEST_LIMIT_BYTES:
        raise ManifestError(f"{name}: larger than {MANIFEST_LIMIT_BYTES} bytes")
    try:
        manifest = fill(Manifest, parse_json(text))
    except DocumentError as error:
        raise ManifestError(f"{name}: {error}") from None
    for key, holds in _checks(manifest).items():
        if not holds:
            raise ManifestError(f"{name}: {key}: not a value this version writes: {getattr(manifest, key)!r:.200}")
    return manifest


def _checks(manifest: Manifest) -> dict[str, bool]:
    """By field, whether its value is one that :func:`make_manifest` could have written."""
    kind = KINDS.get(manifest.kind)
    return {
        "format_version": manifest.format_version == FORMAT_VERSION,
        "sample": SAMPLE_PATTERN.fullmatch(manifest.sample) is not None,
        "kind": kind is not None,
        "fasta": manifest.fasta.startswith("/") and "\0" not in manifest.fasta,
        "input_sha256": DIGEST_PATTERN.fullmatch(manifest.input_sha256 or "0" * 64) is not None,
        "chunk_length": manifest.chunk_length in (range(3, 100_001) if manifest.kind == "contigs" else (0,)),
        "genetic_code": manifest.genetic_code in (GENETIC_CODES if manifest.kind == "contigs" else (0,)),
        "precision": manifest.precision in PRECISIONS,
        "part": -1 <= manifest.part < 10**6,
        "computed_in": manifest.computed_in in ("", *PRECISIONS[1:]),
        "store_dtype": manifest.store_dtype in STORE_DTYPES,
        "models": kind is not None
        and 0 < len(manifest.models) <= MODELS
        and all(is_model_name(name) and _is_request(request) for name, request in manifest.models.items()),
    }


def is_model_name(name: str) -> bool:
    """Whether a model may be called so: a key in files and a part of their names."""
    return MODEL_PATTERN.fullmatch(name) is not None and name not in RESERVED


def _is_request(request: Request) -> bool:
    return (
        DIGEST_PATTERN.fullmatch(request.weights_sha256) is not None
        and bool(request.outputs)
        and len(set(request.outputs)) == len(request.outputs)
        and all(0 <= output.layer < 2**16 and output.pooling in POOLINGS for output in request.outputs)
        and request.long in POLICIES
        and (request.max_length == 0 if request.long == "whole" else 2 <= request.max_length < 2**31)
    )


@dataclass(frozen=True)
class Receipt:
    """The outcome of a job.

    Attributes:
        job: Name of the job; its digest says what the result was made from.
        sample: Name of the sample.
        state: ``done`` or ``failed``.
        error: Why it failed, in one message; empty when done.
        embeddings: Path of the embeddings in the spool, empty when failed. In the spool it is absolute; in the
            results it is relative to the working directory where the spool lies below that.
        run: Run of the workflow that submitted the job; empty in the spool, and where the result was there already.
        input_sha256: Digest of the sample's file as the pool read it (hex); empty if it could not be read to its end.
        same_as: Job of another sample with the same content, if its result was taken; empty otherwise.
        counts: Records and their letters, rows, distinct sequences and tokens of the sample; ``computed_tokens``, those
            in its share of batches; ``inherited``, vectors found in blocks that a dead pool had left; ``cached``,
            vectors found in the shared cache.
        pool: Pool that did the work: id, host, devices, precision, ``load_s`` to load its models and, until this
            receipt, ``device_s`` that its devices worked and ``ready_s`` that they were ready while a job was open.
        software: Name to version of what the pool ran on, and the digest of its code.
        seconds: ``read_s``, ``device_s`` (this job's share of batches, by tokens) and ``total_s`` since the claim.
        genetic_code: By which frames were read, NCBI's number; 0 but for kind ``contigs``.
        synthetic: Names of those of its models whose weights are random.
        failures: Rows that were given up while the sample went on: id and reason.
        warnings: What is doubtful in the sample, for people to look at.
        origins: Where the vectors come from that were found in the shared cache: run, pool, host, user, spool, version.
        finished: Time of writing, ISO 8601 in UTC.
        size_bytes: Size of the sequence file when its digest was compared last; -1 in the spool.
        mtime_ns: Its modification time then (ns since the epoch); -1 in the spool. As long as both are what the file
            has, it is taken for the one with ``input_sha256``.
        url: Where the file lies, if that is no path; size and time are then what the storage reports. Empty otherwise.
    """

    job: str
    sample: str
    state: str
    error: str = ""
    embeddings: str = ""
    run: str = ""
    input_sha256: str = ""
    same_as: str = ""
    counts: dict[str, int] = field(default_factory=dict)
    pool: dict[str, str | float] = field(default_factory=dict)
    software: dict[str, str] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    genetic_code: int = 0
    synthetic: list[str] = field(default_factory=list)
    failures: dict[str, str] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    origins: list[dict[str, str]] = field(default_factory=list)
    finished: str = ""
    size_bytes: int = -1
    mtime_ns: int = -1
    url: str = ""

    @property
    def pool_id(self) -> str:
        """Name of the pool that left it."""
        return str(self.pool.get("id", ""))

    def write(self, path: str | Path) -> None:
        """Write as JSON, whole or not at all."""
        with atomic_text(path) as file:
            file.write(json.dumps(asdict(self), indent=2) + "\n")


def read_receipt(path: str | Path) -> Receipt | None:
    """Read a receipt; None where there is none.

    Raises:
        ResourceError: the file is there but is no receipt.
    """
    try:
        receipt = fill(Receipt, read_json(path))
        if receipt.state not in ("done", "failed"):
            raise DocumentError("state is neither done nor failed")
        if "\0" in receipt.embeddings:
            raise DocumentError("embeddings is not a path")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except DocumentError as error:
        raise ResourceError(f"{path}: not a receipt ({error}); remove it to have the sample computed again") from None
    return receipt


def software(names: Iterable[str]) -> dict[str, str]:
    """Versions: Holdfast's, with the digest of its code, Python's, and those of the packages that are installed."""
    found = {"holdfast": __version__, "holdfast_sha256": code_sha256(), "python": platform.python_version()}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def code_sha256() -> str:
    """SHA-256 of the files of this package, one behind the other in the order of their paths in it (hex)."""
    digest = hashlib.sha256()
    package = Path(__file__).parents[1]
    for path in sorted(package.rglob("*.py"), key=lambda path: path.relative_to(package).as_posix()):
        digest.update(path.read_bytes())
    return digest.hexdigest()
