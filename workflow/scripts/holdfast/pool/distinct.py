"""The distinct sequences of a sample and a model, in files of its work directory: what is embedded, each once.

Rows whose texts have equal tokens are one sequence. :class:`DistinctWriter` collects them as a sample is read;
:class:`DistinctSequences` maps what it left, for the supervisor, which sends tokens to workers, and for the end.
"""

import hashlib
from pathlib import Path
from typing import Self

import numpy as np

from ..sequences.tokens import Tokenizer
from .blocks import write_array


class DistinctWriter:
    """Collects the sequences of one model, row by row."""

    def __init__(self, directory: Path, model: str, tokenizer: Tokenizer) -> None:
        """Write to ``directory/MODEL.*``."""
        self._stem = directory / model
        self._tokenizer = tokenizer
        self._file = open(f"{self._stem}.tokens", "wb")  # noqa: SIM115 - closed in __exit__
        self._index: dict[bytes, int] = {}
        self._lengths: list[np.ndarray] = []
        self._rows: list[np.ndarray] = []

    def add(self, texts: list[str]) -> None:
        """Append the sequences of some rows."""
        tokens, lengths = self._tokenizer(texts)
        ends = np.cumsum(lengths, dtype=np.int64)
        numbers = np.empty(len(texts), np.int64)
        fresh = np.zeros(len(texts), bool)
        for row, (end, length) in enumerate(zip(ends.tolist(), lengths.tolist(), strict=True)):
            known = len(self._index)
            digest = hashlib.sha256(tokens[end - length : end].tobytes()).digest()
            numbers[row] = self._index.setdefault(digest, known)
            fresh[row] = len(self._index) > known
        self._file.write(tokens[np.repeat(fresh, lengths)].tobytes())
        self._lengths.append(lengths[fresh])
        self._rows.append(numbers)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Write what is left; after an exception only close."""
        self._file.close()
        if kind is not None:
            return
        contents = {
            "lengths": np.concatenate([np.empty(0, np.int32), *self._lengths]),
            "rows": np.concatenate([np.empty(0, np.int64), *self._rows]),
            "digests": np.frombuffer(b"".join(self._index), np.uint8).reshape(-1, 32),
        }
        for name, array in contents.items():
            with open(f"{self._stem}.{name}.npy", "wb") as file:
                write_array(file, array)


class DistinctSequences:
    """The sequences that a :class:`DistinctWriter` left.

    Attributes:
        lengths: Tokens of each distinct sequence, int32 [n].
        digests: SHA-256 of the tokens of each, n times 32 bytes.
        rows: Distinct sequence of each row of the sample, int64 [N].
    """

    def __init__(self, directory: Path, model: str) -> None:
        """Map the files of ``directory/MODEL.*``."""
        stem = directory / model
        self.lengths: np.ndarray = np.load(f"{stem}.lengths.npy")
        self.rows: np.ndarray = np.load(f"{stem}.rows.npy", mmap_mode="r")
        self.digests = [digest.tobytes() for digest in np.load(f"{stem}.digests.npy")]
        self._ends = np.cumsum(self.lengths, dtype=np.int64)
        self._tokens = np.memmap(f"{stem}.tokens", np.int16, "r") if len(self.lengths) else np.empty(0, np.int16)

    def tokens(self, number: int) -> np.ndarray:
        """Tokens of one distinct sequence, special tokens included, int16 [its length]."""
        end = self._ends[number]
        return self._tokens[end - self.lengths[number] : end]
