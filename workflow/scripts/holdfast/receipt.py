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
        counts: Records, rows, distinct sequences and tokens of the sample.
        pool: Pool that did the work: id, devices, precision and seconds of load.
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
    counts: dict[str, int] = field(default_factory=dict)
    pool: dict[str, str | float] = field(default_factory=dict)
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
