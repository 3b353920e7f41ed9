"""A receipt: what became of one job. Written by the pool, kept by the workflow as ``results/SAMPLE/receipt.json``."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

from . import documents
from .documents import DocumentError
from .errors import ResourceError
from .files import atomic_text


@dataclass(frozen=True)
class Receipt:
    """The outcome of a job.

    Attributes:
        job: Name of the job; its digest says what the result was made from.
        sample: Name of the sample.
        state: ``done`` or ``failed``.
        error: Why it failed, in one message; empty when done.
        embeddings: Absolute path of the embeddings in the spool; empty when failed.
        run: Run of the workflow that submitted the job; empty in the spool, and where the result was there already.
        input_sha256: Digest of the sample's file as the pool read it (hex); empty if it could not be read to its end.
        counts: Records, rows, distinct sequences and tokens of the sample; ``computed_tokens``, those in its share of
            batches; ``inherited``, vectors found in blocks that a dead pool had left.
        pool: Pool that did the work: id, host, devices, precision, ``load_s`` to load its models and, until this
            receipt, ``device_s`` that its devices worked and ``ready_s`` that they were ready while a job was open.
        software: Name to version of what the pool ran on, and the digest of its code.
        seconds: ``read_s``, ``device_s`` (this job's share of batches, by tokens) and ``total_s`` since the claim.
        failures: Rows that were given up while the sample went on: id and reason.
        finished: Time of writing, ISO 8601 in UTC.
        size_bytes: Size of the sequence file when the job was made; -1 if it was not there.
        mtime_ns: Its modification time (ns since the epoch); -1 if it was not there.
    """

    job: str
    sample: str
    state: str
    error: str = ""
    embeddings: str = ""
    run: str = ""
    input_sha256: str = ""
    counts: dict[str, int] = field(default_factory=dict)
    pool: dict[str, str | float] = field(default_factory=dict)
    software: dict[str, str] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    finished: str = ""
    size_bytes: int = -1
    mtime_ns: int = -1

    def write(self, path: str | Path) -> None:
        """Write as JSON, whole or not at all."""
        with atomic_text(path) as file:
            file.write(json.dumps(asdict(self), indent=2) + "\n")


def read(path: str | Path) -> Receipt | None:
    """Read a receipt; None where there is none.

    Raises:
        ResourceError: the file is there but is no receipt.
    """
    try:
        receipt = documents.fill(Receipt, documents.read_json(path))
        if receipt.state not in ("done", "failed"):
            raise DocumentError("state is neither done nor failed")
        if "\0" in receipt.embeddings:
            raise DocumentError("embeddings is not a path")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except DocumentError as error:
        raise ResourceError(f"{path}: not a receipt ({error}); remove it to have the sample computed again") from None
    return receipt
