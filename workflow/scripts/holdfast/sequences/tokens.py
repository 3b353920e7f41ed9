"""Sequences into the token ids of a model, many at once, one behind the other and without padding.

Either every letter is a token, or pieces of several letters are, by the ``tokenizer.json`` that came with a
checkpoint. Both give the special tokens at either end of a sequence, as the models were trained. Which vocabulary a
model has stands in its ``model.json``.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import tokenizers

from ..documents import read_json
from ..errors import PREPARE_AGAIN, WeightsError

_UNKNOWN, _START, _END = "[UNK]", "[CLS]", "[SEP]"
_TEMPLATE = [
    {"SpecialToken": {"id": _START, "type_id": 0}},
    {"Sequence": {"id": "A", "type_id": 0}},
    {"SpecialToken": {"id": _END, "type_id": 0}},
]

# Two bytes that no ASCII text holds stand for the special tokens until the table turns them into ids.
_START_BYTE, _END_BYTE = b"\x80", b"\x81"


class Tokenizer(Protocol):
    """Turns sequences into tokens."""

    def __call__(self, sequences: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Return tokens int16 [T], sequences one behind the other, and their lengths int32 [n], summing to T.

        Special tokens are in both.
        """


class LetterTokenizer:
    """A token for each letter of a sequence, so that a token is always a residue."""

    def __init__(self, ids: Mapping[str, int], unknown: int, start: int | None, end: int | None) -> None:
        """Take a vocabulary, see :class:`.registry.Letters`."""
        self._table = np.full(256, unknown, np.int16)
        for letter, number in ids.items():
            self._table[ord(letter)] = number
        self._start = b"" if start is None else _START_BYTE
        self._end = b"" if end is None else _END_BYTE
        for byte, special in ((_START_BYTE, start), (_END_BYTE, end)):
            self._table[byte[0]] = unknown if special is None else special

    def __call__(self, sequences: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Return tokens int16 [T] and lengths int32 [n], see :class:`Tokenizer`.

        A letter that the model does not know, such as J, lower case or an inner ``*`` for ESM-2, is unknown, each on
        its own (transformers makes one token of several in a row).
        """
        letters = [sequence.encode("ascii", "replace") for sequence in sequences]
        text = b"".join(self._start + sequence + self._end for sequence in letters)
        around = len(self._start) + len(self._end)
        lengths = np.array([len(sequence) + around for sequence in letters], dtype=np.int32)
        return self._table[np.frombuffer(text, np.uint8)], lengths


class BytePairTokenizer:
    """The byte pair encoding of DNABERT-2 and DNABERT-S: ``[CLS]``, the tokens of the whole sequence, ``[SEP]``.

    Vocabulary and merges are the checkpoint's own. The published file also cuts and pads to 2000 tokens, which is left
    out. It expects upper case; each letter other than ACGT is one ``[UNK]``.
    """

    SPECIAL_TOKENS = 5
    """The first of the vocabulary: [UNK], [CLS], [SEP], [PAD], [MASK]."""

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
