"""The language models by name, and the kinds of samples that they embed: what everybody but an encoder knows of them.

A prepared model is one directory with safetensors, a tokenizer where one is needed, and ``model.json``. :mod:`.prepare`
writes it, the encoders read it, and everybody else (the Snakefile, clients, the supervisor) reads only ``model.json``,
which needs neither torch nor safetensors. An encoder is found by the name of the model in it: :func:`family_of`.
"""

import json
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, NamedTuple

from ..documents import DocumentError, fill, read_json
from ..errors import PREPARE_AGAIN, WeightsError
from ..sequences import Alphabet

if TYPE_CHECKING:
    from ..sequences.tokens import Tokenizer
    from .encoder import Encoder


class Model(NamedTuple):
    """A language model: its family (the module of its encoder), the letters of its sequences, an embedding in words."""

    family: str
    alphabet: Alphabet
    pooling: str


class Kind(NamedTuple):
    """A kind of sample: the letters of its records, and the models that embed them."""

    alphabet: Alphabet
    models: tuple[str, ...]


MODELS = {
    "esm2": Model("esm", Alphabet.PROTEIN, "mean of residues"),
    "dnabert_s": Model("mosaic_bert", Alphabet.NUCLEOTIDE, "mean of tokens"),
}
KINDS = {
    "contigs": Kind(Alphabet.NUCLEOTIDE, ("esm2", "dnabert_s")),  # both on every stop-free frame, VirNucPro's method
    "proteins": Kind(Alphabet.PROTEIN, ("esm2",)),
    "dna": Kind(Alphabet.NUCLEOTIDE, ("dnabert_s",)),
}


def family_of(model: str) -> ModuleType:
    """The module of a model's family, which imports torch.

    It has ``ENCODER``, a subclass of :class:`.encoder.Encoder`; ``check_architecture(content)``, which refuses sizes
    that are none of this family; and ``tensor_shapes(architecture)``, the tensors that such an encoder takes.
    """
    return import_module(f".{MODELS[model].family}", __package__)


FORMAT_VERSION = 1
WEIGHTS_FILE = "model.safetensors"
TOKENIZER_FILE = "tokenizer.json"
DESCRIPTION_FILE = "model.json"


@dataclass(frozen=True)
class Prepared:
    """What ``model.json`` says of a prepared model.

    Attributes:
        model: One of :data:`MODELS`.
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

    def summary(self, output: Path) -> str:
        """What was prepared in ``output`` and how it was verified, in two lines."""
        kind = "synthetic weights, random, " if self.synthetic else ""
        verified = self.verification
        return (
            f"{output}: {self.model} from {self.source} ({kind}width {self.width})\n"
            f"largest difference {verified['largest_difference']:.1e} over {verified['sequences']} sequences; "
            f"reference: {verified['reference']}"
        )


def read_prepared(directory: str | Path) -> Prepared:
    """Read ``model.json`` of a prepared model.

    Raises:
        WeightsError: no such file, another format version, or fields that do not fit.
    """
    path = Path(directory) / DESCRIPTION_FILE
    try:
        prepared = fill(Prepared, read_json(path))
    except FileNotFoundError:
        raise WeightsError(
            f"{directory}: not a prepared model, {DESCRIPTION_FILE} is missing; {PREPARE_AGAIN}"
        ) from None
    except (OSError, DocumentError) as error:
        raise WeightsError(f"{path}: not readable ({error}); {PREPARE_AGAIN}") from None
    if prepared.format_version != FORMAT_VERSION or prepared.model not in MODELS:
        raise WeightsError(
            f"{path}: model {prepared.model!r} in format {prepared.format_version}, "
            f"this version reads {', '.join(MODELS)} in format {FORMAT_VERSION}; {PREPARE_AGAIN}"
        )
    return prepared


def load_tokenizer(model: str, directory: str | Path) -> "Tokenizer":
    """The tokenizer of a prepared model; it can be pickled.

    Raises:
        WeightsError: a tokenizer file that is missing or broken.
    """
    from ..sequences.tokens import NucleotideTokenizer, tokenize_proteins  # imports numpy and tokenizers

    if MODELS[model].alphabet is Alphabet.PROTEIN:
        return tokenize_proteins
    return NucleotideTokenizer(Path(directory) / TOKENIZER_FILE)


def open_model(directory: str | Path, device: str = "cpu", precision: str = "auto") -> "Encoder":
    """Map a prepared model onto a device.

    Args:
        directory: As ``holdfast prepare`` wrote it.
        device: ``cpu``, ``cuda`` or ``cuda:N``.
        precision: ``fp32`` (exact: TF32 is switched off), ``fp16`` (rotary angles stay fp32), or ``auto``: fp16 on
            CUDA, fp32 on a CPU.

    Returns:
        The encoder; ``encode(tokens, lengths)`` gives a state a token, ``embed(tokens, lengths)`` a vector a sequence,
        of token ids of any integer dtype.

    Raises:
        WeightsError: not a prepared model, or a damaged one.
    """
    from .encoder import read_weights  # imports torch

    encoder: Encoder = family_of(read_prepared(directory).model).ENCODER(*read_weights(directory, device, precision))
    return encoder
