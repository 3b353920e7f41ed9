"""Sequences into the token ids of a model, many at once, one behind the other and without padding.

Owns the vocabularies: ESM-2's is a table over bytes, DNABERT-S's the ``tokenizer.json`` that came with its
checkpoint. Both give the special tokens at either end of a sequence, as the models were trained.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import tokenizers

from ..documents import read_json
from ..errors import PREPARE_AGAIN, WeightsError

# ESM-2's vocabulary in the order of its ids; the same in fair-esm (alphabet ESM-1b) and transformers.
RESIDUES = "LAGVSERTIDPKQNFYMHWCXBUZO.-"
VOCABULARY = ("<cls>", "<pad>", "<eos>", "<unk>", *RESIDUES, "<null_1>", "<mask>")
# VirNucPro embeds the first 1024 residues of a protein.
MAX_RESIDUES_AA = 1024
_STOP = "*"
_UNKNOWN, _START, _END = "[UNK]", "[CLS]", "[SEP]"
_TEMPLATE = [
    {"SpecialToken": {"id": _START, "type_id": 0}},
    {"Sequence": {"id": "A", "type_id": 0}},
    {"SpecialToken": {"id": _END, "type_id": 0}},
]

# Two bytes that no ASCII text holds stand for the special tokens until the table turns them into ids.
_CLS, _EOS = b"\x80", b"\x81"


class Tokenizer(Protocol):
    """Turns sequences into tokens."""

    def __call__(self, sequences: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Return tokens int16 [T], sequences one behind the other, and their lengths int32 [n], summing to T.

        Special tokens are in both.
        """


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

    Vocabulary and merges are the checkpoint's own. The published file also cuts and pads to 2000 tokens, which is left
    out. It expects upper case; each letter other than ACGT is one ``[UNK]``.
    """

    def __init__(self, path: Path) -> None:
        """Load a ``tokenizer.json``.

        Threads of its own are switched off, unless TOKENIZERS_PARALLELISM says otherwise: the pool tokenizes in
        several processes already.

        Raises:
            WeightsError: the file is missing or broken.
        """
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        vocabulary, merges = _read_tokenizer(path)
        self._tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, merges, unk_token=_UNKNOWN))
        self._tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
        self._tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
            single=f"{_START} $A {_END}", special_tokens=[(token, vocabulary[token]) for token in (_START, _END)]
        )

    def __call__(self, sequences: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Return tokens int16 [T] and lengths int32 [n], see :class:`Tokenizer`."""
        ids = [
            np.array(encoding.ids, dtype=np.int16) for encoding in self._tokenizer.encode_batch_fast(list(sequences))
        ]
        tokens = np.concatenate(ids) if ids else np.empty(0, dtype=np.int16)
        return tokens, np.array([len(sequence) for sequence in ids], dtype=np.int32)


def _read_tokenizer(path: Path) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Return vocabulary and merges of a ``tokenizer.json`` that is shaped as the published one.

    The rest of the file is compared and not used: a normalizer or a regular expression of somebody else's making would
    run for every sequence.

    Raises:
        WeightsError: the file is missing, no JSON, or no byte pair encoding whose merges are in its vocabulary.
    """
    try:
        content = read_json(path)
        model = content["model"]
        vocabulary = model.pop("vocab")
        merges = [tuple(merge.split(" ") if isinstance(merge, str) else merge) for merge in model.pop("merges")]
        kind, unknown = model.pop("type", "BPE"), model.pop("unk_token", None)
        shape = (kind, unknown, content["pre_tokenizer"], content["normalizer"], any(model.values()))
        template = (content["post_processor"] or {}).get("single")
        used = (token for left, right in merges for token in (left, right, left + right))
        stranger = next((token for token in used if token not in vocabulary), None)
        ids = list(vocabulary.values())
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read ({error.strerror}); {PREPARE_AGAIN}") from None
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        raise WeightsError(f"{path}: not a tokenizer of byte pairs ({error!r:.200}); {PREPARE_AGAIN}") from None
    if stranger is not None:
        raise WeightsError(f"{path}: merges {stranger!r:.80}, which is not in its vocabulary; {PREPARE_AGAIN}")
    if (
        shape != ("BPE", _UNKNOWN, {"type": "Whitespace"}, None, False)
        or template != _TEMPLATE
        or not {_UNKNOWN, _START, _END} <= vocabulary.keys()
        or not all(type(number) is int and 0 <= number <= np.iinfo(np.int16).max for number in ids)
    ):
        raise WeightsError(f"{path}: not the tokenizer of DNABERT-S, which writes [CLS] and [SEP]; {PREPARE_AGAIN}")
    return vocabulary, merges
