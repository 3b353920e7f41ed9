"""Prepared models: the families of encoders, and what ``model.json`` says of one, for everybody but an encoder.

A prepared model is one directory with safetensors, a tokenizer where letters are no tokens, and ``model.json``.
:mod:`.prepare` writes it, the encoders read it, and everybody else (the Snakefile, clients, the supervisor) reads only
``model.json``, which needs neither torch nor safetensors. Nothing of a model is looked up anywhere else. The sizes of
synthetic models stand here, too, so that a wrong name is found when the config is read.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from difflib import get_close_matches
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from ..documents import DocumentError, fill, other_version, read_json
from ..errors import PREPARE_AGAIN, ConfigError, WeightsError
from ..sequences import Alphabet

if TYPE_CHECKING:
    from ..sequences.tokens import Tokenizer
    from .encoder import Encoder

FORMAT_VERSION = 2
WEIGHTS_FILE = "model.safetensors"
TOKENIZER_FILE = "tokenizer.json"
DESCRIPTION_FILE = "model.json"
FAMILIES = {"esm": "esm", "esmc": "esmc", "t5": "t5", "mosaic_bert": "bert"}
"""Modules of this folder, with the ``model_type`` that transformers' ``config.json`` gives their models."""
PUBLISHED = {
    "esm": {"ESM-2 8M": 7.4e6, "ESM-2 35M": 33e6, "ESM-2 150M": 148e6, "ESM-2 650M": 650e6, "ESM-2 3B": 2.84e9},
    "esmc": {"ESM C 300M": 332e6, "ESM C 600M": 574e6},
    "t5": {"Ankh base": 453e6, "Ankh large": 1.15e9},
}
"""Encoders that may stand in for a larger one of their family, with the numbers in their weights."""
KINDS = {
    "contigs": (Alphabet.PROTEIN, Alphabet.NUCLEOTIDE),  # a protein and its bases for every stop-free frame
    "proteins": (Alphabet.PROTEIN,),
    "dna": (Alphabet.NUCLEOTIDE,),
}
"""Kinds of samples, with the alphabets of the models that embed them."""
ROLES = {"dna": Alphabet.NUCLEOTIDE, "protein": Alphabet.PROTEIN}
"""What a classifier's frames are embedded by, in the order of its features."""
POLICIES = ("whole", "window", "truncate", "refuse")
POOLINGS = ("mean", "cls", "max", "residues")
WINDOW = 1022
"""Residues in a window where neither the model nor the config has a limit: what ESM-1b was trained with."""
PREFIX = "synthetic:"
OUTLIERS = "+outliers"  # behind an architecture: with a few large channels in the residual stream, as trained models
ESM2_SIZES = {  # layers, width, heads, dtype of the released file
    "esm2_t6_8M_UR50D": (6, 320, 20, "float32"),
    "esm2_t12_35M_UR50D": (12, 480, 20, "float32"),
    "esm2_t30_150M_UR50D": (30, 640, 20, "float32"),
    "esm2_t33_650M_UR50D": (33, 1280, 20, "float32"),
    "esm2_t36_3B_UR50D": (36, 2560, 40, "float16"),
    "esm2_t48_15B_UR50D": (48, 5120, 40, "float16"),
}
DNABERT_S_SIZES = {  # layers, width, heads, mlp width, vocabulary
    "dnabert_s": (12, 768, 12, 3072, 4096),
    "dnabert_s_tiny": (2, 96, 12, 192, 256),
}
ESMC_SIZES = {  # layers, width, heads, mlp width
    "esmc_300m": (30, 960, 15, 2560),
    "esmc_600m": (36, 1152, 18, 3072),
    "esmc_6b": (80, 2560, 40, 6912),
    "esmc_tiny": (3, 64, 4, 96),
}
ESM1_SIZES = {  # layers, width, heads, a norm after the embedding
    "esm1b_t33_650M_UR50S": (33, 1280, 20, True),
    "esm1v_t33_650M_UR90S": (33, 1280, 20, False),
    "esm1b_tiny": (3, 64, 4, True),
}
T5_SIZES = {  # layers, width, heads, head width, mlp width, buckets, projection
    "prot_t5_xl_half_uniref50-enc": (24, 1024, 32, 128, 16384, 32, "relu"),
    "prost_t5": (24, 1024, 32, 128, 16384, 32, "relu"),
    "ankh_base": (48, 768, 12, 64, 3072, 64, "gated-gelu"),
    "ankh_large": (48, 1536, 16, 64, 3840, 64, "gated-gelu"),
    "prot_t5_tiny": (3, 64, 4, 16, 128, 32, "relu"),
    "ankh_tiny": (3, 64, 4, 16, 96, 64, "gated-gelu"),
}
SYNTHETIC = (*ESM2_SIZES, *DNABERT_S_SIZES, *ESMC_SIZES, *ESM1_SIZES, *T5_SIZES)
"""Architectures of which there are seeded random weights, see :mod:`.synthetic`."""


def require_known(source: str) -> None:
    """Refuse a synthetic source of an architecture that is none of :data:`SYNTHETIC`; any other source passes.

    Raises:
        WeightsError: it names what there is.
    """
    architecture = source.removeprefix(PREFIX).removesuffix(OUTLIERS)
    if source.startswith(PREFIX) and architecture not in SYNTHETIC:
        begun = [name for name in SYNTHETIC if architecture and name.lower().startswith(architecture.lower())]
        near = begun or get_close_matches(architecture, SYNTHETIC, 1)
        hint = f"did you mean {PREFIX}{near[0]}? Known" if near else "known"
        raise WeightsError(
            f"{source}: no such architecture; {hint} are {', '.join(SYNTHETIC)}, and {OUTLIERS} behind it or not"
        )


@dataclass(frozen=True, order=True)
class Output:
    """What is asked of a model.

    Attributes:
        layer: Whose states: 0 is the embedding of tokens, the model's number of layers the end.
        pooling: How they are pooled, one of :data:`POOLINGS`.
    """

    layer: int
    pooling: str

    @property
    def name(self) -> str:
        """Name in files: ``LAYER/POOLING``."""
        return f"{self.layer}/{self.pooling}"


@dataclass(frozen=True)
class Letters:
    """A vocabulary in which every letter is a token.

    Attributes:
        ids: Token of each letter that the model knows, upper case.
        unknown: Token of every other letter.
        start: Token before a sequence; None without.
        end: Token behind a sequence; None without.
    """

    ids: dict[str, int]
    unknown: int
    start: int | None
    end: int | None

    @property
    def largest(self) -> int:
        """The largest token."""
        return max(*self.ids.values(), self.unknown, self.start or 0, self.end or 0)


@dataclass(frozen=True)
class Prepared:
    """What ``model.json`` says of a prepared model.

    Attributes:
        family: One of :data:`FAMILIES`.
        alphabet: Name of the :class:`.Alphabet` of its sequences, in lower case.
        architecture: Sizes, by the encoder's own names (layers, width, heads, ...).
        layers: Layers, of which 0 is the embedding of tokens and the last one the end.
        width: Columns of an embedding.
        letters: Its vocabulary; None where ``tokenizer.json`` has it.
        start_tokens: Special tokens before a sequence.
        end_tokens: Special tokens behind a sequence.
        start_is_cls: Whether the first token was trained to stand for the sequence, so that ``cls`` makes sense.
        mean_of: What a mean is taken over, by the family's convention: ``residues``, or all ``tokens``, special ones
            too.
        max_length: Letters above which the model was not trained or cannot work; None without such a limit.
        long: What becomes of longer sequences unless the config says otherwise, one of :data:`POLICIES`.
        source: The path, hub id or ``synthetic:ARCHITECTURE`` it was made from.
        source_sha256: Digest of the published checkpoint file that was read (hex).
        weights_sha256: Digest of ``model.safetensors`` (hex): the identity of this model in receipts.
        synthetic: True for seeded random weights.
        verification: The reference it was compared with and the largest difference found.
        configuration_sha256: Digest of the published configuration (hex); empty where the file has none beside it.
        format_version: Of this directory's layout.
    """

    family: str
    alphabet: str
    architecture: dict[str, int | float | str | bool]
    layers: int
    width: int
    letters: Letters | None
    start_tokens: int
    end_tokens: int
    start_is_cls: bool
    mean_of: str
    max_length: int | None
    long: str
    source: str
    source_sha256: str
    weights_sha256: str
    synthetic: bool
    verification: dict[str, str | float | int | None]
    configuration_sha256: str = ""
    format_version: int = FORMAT_VERSION

    @property
    def is_protein(self) -> bool:
        """Whether its sequences are proteins; otherwise they are nucleotides."""
        return self.alphabet == Alphabet.PROTEIN.name.lower()

    def fits(self, kind: str) -> bool:
        """Whether the model embeds samples of a kind."""
        return Alphabet[self.alphabet.upper()] in KINDS[kind]

    @property
    def around(self) -> int:
        """Special tokens of a sequence."""
        return self.start_tokens + self.end_tokens

    def write(self, directory: Path) -> None:
        """Write ``model.json``; the last file of a preparation, so that its presence means complete."""
        (directory / DESCRIPTION_FILE).write_text(json.dumps(asdict(self), indent=2) + "\n")

    def summary(self, output: Path) -> str:
        """What was prepared in ``output`` and how it was verified, in two lines."""
        kind = "synthetic weights, random, " if self.synthetic else ""
        verified = self.verification
        return (
            f"{output}: {self.family} from {self.source} ({kind}{self.layers} layers, width {self.width})\n"
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
        content = read_json(path)
        version = content.get("format_version") if isinstance(content, dict) else None
        if version != FORMAT_VERSION:
            raise WeightsError(f"{path}: {other_version(version, FORMAT_VERSION, PREPARE_AGAIN)}")
        prepared = fill(Prepared, content)
        if prepared.family not in FAMILIES or prepared.alphabet.upper() not in Alphabet.__members__:
            raise DocumentError(f"family {prepared.family!r:.40} of {prepared.alphabet!r:.40} is unknown")
        if prepared.long not in POLICIES or prepared.mean_of not in ("residues", "tokens"):
            raise DocumentError("long or mean_of is none that this version knows")
    except (FileNotFoundError, NotADirectoryError):
        raise WeightsError(
            f"{directory}: not a prepared model, {DESCRIPTION_FILE} is missing; make one: holdfast prepare SOURCE "
            "--output DIR"
        ) from None
    except (OSError, DocumentError) as error:
        raise WeightsError(f"{path}: not readable ({error}); {PREPARE_AGAIN}") from None
    return prepared


def choose_method(alphabets: Mapping[str, str], named: Mapping[str, str | None]) -> dict[str, str]:
    """The model for each of :data:`ROLES`: the one that is named, or the only one of the alphabet.

    Args:
        alphabets: Of the models there are, by name.
        named: Those that the config names; None where it does not.

    Raises:
        ConfigError: none, several and none named, or one of another alphabet.
    """
    method = {}
    for role, alphabet in ROLES.items():
        fitting = sorted(name for name, found in alphabets.items() if found == alphabet.name.lower())
        known = ", ".join(fitting) or "none"
        name = named.get(role) or (fitting[0] if len(fitting) == 1 else None)
        if name is None:
            raise ConfigError(f"method.{role}: frames are classified with one such model, there are: {known}; name it")
        if name not in fitting:
            raise ConfigError(f"method.{role}: {name} is no model for it; those are: {known}")
        method[role] = name
    return method


def family_module(family: str) -> ModuleType:
    """The module of a family, which imports torch.

    It has ``ENCODER``, a subclass of :class:`.encoder.Encoder`; ``check_architecture(content)``, which refuses sizes
    that are none of this family; ``tensor_shapes(architecture)``, the tensors that such an encoder takes; and
    ``read_directory(path, config, tensors, sha256)``, which makes a :class:`.checkpoint.Checkpoint` of a published one.
    """
    return import_module(f".{family}", __package__)


def largest_published(family: str, parameters: float) -> str | None:
    """Name of the largest published encoder of a family with at most so many numbers in its weights."""
    fitting = [(size, name) for name, size in PUBLISHED.get(family, {}).items() if size <= parameters]
    return max(fitting)[1] if fitting else None


def load_tokenizer(prepared: Prepared, directory: str | Path) -> "Tokenizer":
    """The tokenizer of a prepared model; it can be pickled. A process reads the same file once.

    Raises:
        WeightsError: a tokenizer file that is missing or broken.
    """
    from ..sequences.tokens import LetterTokenizer  # imports numpy and tokenizers

    if prepared.letters is None:
        path = Path(directory) / TOKENIZER_FILE
        return _load_byte_pairs(path, path.stat().st_mtime_ns if path.exists() else 0)
    return LetterTokenizer(**asdict(prepared.letters))


@lru_cache(maxsize=8)
def _load_byte_pairs(path: Path, written_ns: int) -> "Tokenizer":
    """A tokenizer of byte pairs; ``written_ns`` tells the file from another of the same name."""
    from ..sequences.tokens import BytePairTokenizer

    return BytePairTokenizer(path)


def open_model(directory: str | Path, device: str = "cpu", precision: str = "auto") -> "Encoder":
    """Map a prepared model onto a device.

    Args:
        directory: As ``holdfast prepare`` wrote it.
        device: ``cpu``, ``cuda`` or ``cuda:N``.
        precision: ``fp32`` (exact: TF32 is switched off), ``fp16``, ``bf16`` (rotary angles stay fp32 in both), or
            ``auto``: fp16 on CUDA, fp32 on a CPU.

    Returns:
        The encoder; ``encode(tokens, lengths)`` gives a state a token, ``embed(tokens, lengths, outputs)`` what is
        pooled of them, for token ids of any integer dtype.

    Raises:
        WeightsError: not a prepared model, or a damaged one.
    """
    from .encoder import read_weights  # imports torch

    prepared = read_prepared(directory)
    weights = read_weights(directory, prepared, device, precision)
    encoder: Encoder = family_module(prepared.family).ENCODER(weights, prepared)
    encoder.settle_ops()
    return encoder
