"""A prepared model on disk: one directory with safetensors, a tokenizer where one is needed, and ``model.json``.

``weights.py`` writes it, the encoders read it, and everybody else (the Snakefile, consumers, the
supervisor) reads only ``model.json``, which needs neither torch nor safetensors.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from . import documents
from .documents import DocumentError
from .errors import WeightsError
from .models import MODELS

FORMAT_VERSION = 1
WEIGHTS_FILE = "model.safetensors"
TOKENIZER_FILE = "tokenizer.json"
DESCRIPTION_FILE = "model.json"


@dataclass(frozen=True)
class Prepared:
    """What ``model.json`` says of a prepared model.

    Attributes:
        model: One of :data:`.models.MODELS`.
        architecture: Sizes, by the encoder's own names (layers, width, heads, ...).
        width: Columns of an embedding.
        source: The path, hub id or ``synthetic:ARCHITECTURE`` it was made from.
        source_sha256: Digest of the published checkpoint file that was read (hex).
        weights_sha256: Digest of ``model.safetensors`` (hex): the identity of this model in receipts.
        synthetic: True for seeded random weights.
        verification: The reference it was compared with and the largest difference found.
        format_version: Of this directory's layout.
    """

    model: str
    architecture: dict[str, int | float | str | bool]
    width: int
    source: str
    source_sha256: str
    weights_sha256: str
    synthetic: bool
    verification: dict[str, str | float | int | None]
    format_version: int = FORMAT_VERSION

    def write(self, directory: Path) -> None:
        """Write ``model.json``; the last file of a preparation, so that its presence means complete."""
        (directory / DESCRIPTION_FILE).write_text(json.dumps(asdict(self), indent=2) + "\n")


def read(directory: str | Path) -> Prepared:
    """Read ``model.json`` of a prepared model.

    Raises:
        WeightsError: no such file, another format version, or fields that do not fit.
    """
    path = Path(directory) / DESCRIPTION_FILE
    hint = "prepare the model again with workflow/scripts/prepare_weights.py"
    try:
        prepared = documents.fill(Prepared, documents.read_json(path))
    except FileNotFoundError:
        raise WeightsError(f"{directory}: not a prepared model, {DESCRIPTION_FILE} is missing; {hint}") from None
    except (OSError, DocumentError) as error:
        raise WeightsError(f"{path}: not readable ({error}); {hint}") from None
    if prepared.format_version != FORMAT_VERSION or prepared.model not in MODELS:
        raise WeightsError(
            f"{path}: model {prepared.model!r} in format {prepared.format_version}, "
            f"this version reads {', '.join(MODELS)} in format {FORMAT_VERSION}; {hint}"
        )
    return prepared
