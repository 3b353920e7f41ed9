"""Sequences into the token ids of a model, many at once, one behind the other and without padding.

Owns the vocabularies: ESM-2's is a table over bytes, DNABERT-S's the ``tokenizer.json`` that came with its
checkpoint. Both give the special tokens at either end of a sequence, as the models were trained.
"""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import tokenizers

from .errors import WeightsError
from .prepared import TOKENIZER_FILE

# ESM-2's vocabulary in the order of its ids; the same in fair-esm (alphabet ESM-1b) and transformers.
RESIDUES = "LAGVSERTIDPKQNFYMHWCXBUZO.-"
VOCABULARY = ("<cls>", "<pad>", "<eos>", "<unk>", *RESIDUES, "<null_1>", "<mask>")
# VirNucPro embeds the first 1024 residues of a protein.
MAX_RESIDUES_AA = 1024
_STOP = "*"
_PREPARE_AGAIN = "prepare the model again with workflow/scripts/prepare_weights.py"

# Two bytes that no ASCII text holds stand for the special tokens until the table turns them into ids.
_CLS, _EOS = b"\x80", b"\x81"


class Tokenizer(Protocol):
    """Turns sequences into tokens."""

    def __call__(self, sequences: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Return tokens int16 [T], sequences one behind the other, and their lengths int32 [n], summing to T.

        Special tokens are in both.
        """


def tokenizer(model: str, prepared_directory: str | Path) -> Tokenizer:
    """Return the tokenizer of a prepared model, ``esm2`` or ``dnabert_s``; it can be pickled.

    Raises:
        WeightsError: an unknown model, or a tokenizer file that is missing or broken.
    """
    if model == "esm2":
        return tokenize_proteins
    if model == "dnabert_s":
        return NucleotideTokenizer(Path(prepared_directory) / TOKENIZER_FILE)
    raise WeightsError(f"{prepared_directory}: no tokenizer is known for model '{model}'; use esm2 or dnabert_s")


def tokenize_proteins(sequences: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Tokenize proteins for ESM-2: ``<cls>``, one token a letter, ``<eos>``.

    One ``*`` at the end, the stop that gene finders write, is removed, and the first ``MAX_RESIDUES_AA``
    letters are taken. A letter outside ``RESIDUES``, such as J, lower case or an inner ``*``, is ``<unk>``,
    each on its own, so that a token is always a residue (transformers makes one of several in a row).

    Returns:
        Tokens int16 [T] and lengths int32 [n], see :class:`Tokenizer`.
    """
    letters = [sequence.removesuffix(_STOP)[:MAX_RESIDUES_AA].encode("ascii", "replace") for sequence in sequences]
    text = b"".join(_CLS + sequence + _EOS for sequence in letters)
    tokens = np.frombuffer(text.translate(_TOKENS), dtype=np.uint8).astype(np.int16)
    return tokens, np.array([len(sequence) + 2 for sequence in letters], dtype=np.int32)


def _token_table() -> bytes:
    """Return the 256-byte table from letters, and the two stand-ins of special tokens, to ESM-2's ids."""
    table = bytearray([VOCABULARY.index("<unk>")] * 256)
    for residue in RESIDUES:
        table[ord(residue)] = VOCABULARY.index(residue)
    table[_CLS[0]], table[_EOS[0]] = VOCABULARY.index("<cls>"), VOCABULARY.index("<eos>")
    return bytes(table)


_TOKENS = _token_table()


class NucleotideTokenizer:
    """DNABERT-S's byte pair encoding: ``[CLS]``, the tokens of the whole sequence, ``[SEP]``.

    The published file cuts and pads to 2000 tokens; both are switched off. It expects upper case; each letter
    other than ACGT is one ``[UNK]``.
    """

    def __init__(self, path: Path) -> None:
        """Load a ``tokenizer.json``.

        Threads of its own are switched off, unless TOKENIZERS_PARALLELISM says otherwise: the pool tokenizes in
        several processes already.

        Raises:
            WeightsError: the file is missing or broken.
        """
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        self._tokenizer = tokenizers.Tokenizer.from_str(_read_tokenizer(path))
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        ends = [self._tokenizer.token_to_id(token) for token in ("[CLS]", "[SEP]")]
        if self._tokenizer.encode("").ids != ends or self._tokenizer.get_vocab_size() > np.iinfo(np.int16).max:
            raise WeightsError(
                f"{path}: not the tokenizer of DNABERT-S, which writes [CLS] and [SEP]; {_PREPARE_AGAIN}"
            )

    def __call__(self, sequences: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Return tokens int16 [T] and lengths int32 [n], see :class:`Tokenizer`."""
        ids = [
            np.array(encoding.ids, dtype=np.int16) for encoding in self._tokenizer.encode_batch_fast(list(sequences))
        ]
        tokens = np.concatenate(ids) if ids else np.empty(0, dtype=np.int16)
        return tokens, np.array([len(sequence) for sequence in ids], dtype=np.int32)


def _read_tokenizer(path: Path) -> str:
    """Return the text of a ``tokenizer.json`` after the checks that ``tokenizers`` makes with a bare Exception.

    Raises:
        WeightsError: the file is missing, no JSON, or no byte pair encoding whose merges are in its vocabulary.
    """
    try:
        text = path.read_text(encoding="utf-8")
        model = json.loads(text)["model"]
        vocabulary = model["vocab"]
        merges = [merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"]]
        strangers = [
            token for left, right in merges for token in (left, right, left + right) if token not in vocabulary
        ]
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read ({error.strerror}); {_PREPARE_AGAIN}") from None
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise WeightsError(f"{path}: not a tokenizer of byte pairs ({error!r}); {_PREPARE_AGAIN}") from None
    if strangers:
        raise WeightsError(f"{path}: merges '{strangers[0]}', which is not in its vocabulary; {_PREPARE_AGAIN}")
    return text
