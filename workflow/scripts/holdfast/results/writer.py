"""Writes the embeddings file of a sample: records and rows, then a matrix for each output of each model.

:mod:`.embeddings` has the layout, and how data passes in. :func:`open_hdf5` is how HDF5 files are written here: a write
that fails is the OSError that it is, with its ``errno``.
"""

import io
import json
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import h5py
import numpy as np

from ..errors import ResourceError
from ..files import temporary_path
from ..models.registry import KINDS, Output, Prepared
from ..sequences import GENETIC_CODES
from .embeddings import (
    DIGEST_BYTES,
    FORMAT,
    FORMAT_VERSION,
    MATRIX_CHUNK_ROWS,
    RECORD_COLUMNS,
    RECORD_STATUSES,
    ROW_COLUMNS,
    TABLE_CHUNK_ROWS,
)


class Target(io.FileIO):
    """A file for HDF5 to write to; it keeps the first error for :meth:`check` and drops what is written after it.

    HDF5 2.0.0 may crash the process, or hide the error number, when one of its writes fails, so it never sees one fail.
    """

    error: OSError | None = None

    def write(self, content: Any) -> int:
        """Write all of some bytes, or none once a write has failed."""
        left = memoryview(content).cast("B")
        size = len(left)
        try:
            while self.error is None and left:
                left = left[super().write(left) :]
        except OSError as error:
            self.error = error
        return size

    def check(self) -> None:
        """Raise the first error, if there was one."""
        if self.error is not None:
            raise self.error


@contextmanager
def open_hdf5(path: Path, mode: str, **options: Any) -> Iterator[tuple[h5py.File, Target]]:
    """Give an HDF5 file to write, and what to ask early whether its writes have failed.

    Args:
        path: Where.
        mode: ``w+`` for a new file, ``r+`` for one that is there.
        options: For :class:`h5py.File`.

    Raises:
        OSError: a write failed, now or at any time before.
    """
    with Target(path, mode) as output:
        try:
            with h5py.File(output, mode.replace("w+", "w"), **options) as file:
                yield file, output
        finally:  # what HDF5 says when it reads back what was dropped is of no use
            output.check()


class EmbeddingsWriter:
    """Fills a results file; made by :meth:`create`, then by :meth:`reopen`.

    Every method raises OSError where the disk is full or fails.
    """

    def __init__(self, file: h5py.File, output: Target) -> None:
        self._file = file
        self._output = output
        self._sample: str = file.attrs["sample"]

    @classmethod
    @contextmanager
    def create(
        cls,
        path: str | Path,
        sample: str,
        kind: str,
        chunk_length_bp: int = 0,
        genetic_code: int = 0,
        job: str = "",
    ) -> Iterator[Self]:
        """Give a writer for records and rows; afterwards the file is there, not yet complete.

        Args:
            path: The results file; replaced if it exists.
            sample: Name of the sample.
            kind: One of :data:`.registry.KINDS`.
            chunk_length_bp: For kind ``contigs``; 0 otherwise.
            genetic_code: Likewise, one of :data:`.GENETIC_CODES`.
            job: Name of the job; empty where there is none.
        """
        if kind not in KINDS or not (kind == "contigs") == (chunk_length_bp > 0) == (genetic_code in GENETIC_CODES):
            raise ValueError(f"kind {kind!r} with chunk length {chunk_length_bp} and genetic code {genetic_code}")
        attributes = {"format": FORMAT, "format_version": FORMAT_VERSION, "sample": sample, "kind": kind}
        attributes |= {"chunk_length_bp": chunk_length_bp, "genetic_code": genetic_code}
        attributes |= {"job": job, "input_sha256": "", "complete": False}
        with temporary_path(path) as temporary, open_hdf5(temporary, "w+") as (file, output):
            file.attrs.update(attributes)
            for name, dtype in RECORD_COLUMNS.items():
                _create_column(file, f"records/{name}", dtype)
            for name, dtype in ROW_COLUMNS.items():
                _create_column(file, name, dtype)
            yield cls(file, output)

    @classmethod
    @contextmanager
    def reopen(cls, path: str | Path, software: Mapping[str, str]) -> Iterator[Self]:
        """Give a writer for the matrices; afterwards the file is complete.

        Args:
            path: What :meth:`create` left.
            software: Name to version of the programs that computed the embeddings.
        """
        with temporary_path(path) as temporary:
            shutil.copyfile(path, temporary)
            with open_hdf5(temporary, "r+") as (file, output):
                yield cls(file, output)
                file.attrs.update({"software": json.dumps(dict(software)), "complete": True})

    def name_input(self, sha256: str) -> None:
        """Note the digest of the file that the records came from, once it is known (hex)."""
        self._file.attrs["input_sha256"] = sha256

    def append_records(
        self, ids: Sequence[str], lengths: Sequence[int], used: Sequence[int], statuses: Sequence[str]
    ) -> None:
        """Append records of the input, in its order: every record, whether rows follow from it or not."""
        codes = [RECORD_STATUSES.index(status) for status in statuses]
        self._append("records", {"ids": ids, "length": lengths, "residues_used": used, "status": codes})

    def append_rows(
        self,
        ids: Sequence[str],
        lengths: Sequence[int] | np.ndarray,
        sha256: Sequence[bytes],
        record: Sequence[int] | np.ndarray,
        chunk: Sequence[int] | np.ndarray,
        frame: Sequence[int] | np.ndarray,
    ) -> None:
        """Append rows, one value each in every column; what they mean is in the layout above."""
        digests = np.frombuffer(b"".join(sha256), np.uint8).reshape(-1, DIGEST_BYTES)
        columns = {"ids": ids, "length": lengths, "sha256": digests, "record": record, "chunk": chunk, "frame": frame}
        self._append("/", columns)

    def mark_empty(self, status: str) -> None:
        """Give records that are well, and of which no row was appended, another status."""
        known = self._file["records/status"]
        codes = known[:]
        empty = codes == RECORD_STATUSES.index("ok")
        empty[self._file["record"][:]] = False
        self._mark(np.flatnonzero(empty), [status] * int(empty.sum()))

    def count_statuses(self) -> dict[str, int]:
        """Records of each status."""
        found = np.bincount(self._file["records/status"][:], minlength=len(RECORD_STATUSES)).tolist()
        return dict(zip(RECORD_STATUSES, found, strict=True))

    def _mark(self, records: np.ndarray, statuses: Sequence[str]) -> None:
        """Note that records have no rows (any more)."""
        for name, values in (("status", [RECORD_STATUSES.index(status) for status in statuses]), ("residues_used", 0)):
            column = self._file["records"][name][:]
            column[records] = values
            if len(column):
                self._file["records"][name][:] = column

    def fail_rows(self, failed: np.ndarray, statuses: Sequence[str]) -> list[tuple[str, int]]:
        """Take rows out and mark their records; before any matrix is written.

        Args:
            failed: bool [N].
            statuses: For the record of each row that is taken out.

        Returns:
            Id and index of the record of each of them.
        """
        ids = [text.decode() for text in self._file["ids"][:][failed]]
        records = self._file["record"][:][failed]
        self._mark(records, statuses)
        for name in ROW_COLUMNS:
            kept = self._file[name][:][~failed]
            self._file[name].resize(len(kept), axis=0)
            if len(kept):
                self._file[name][:] = kept
        return list(zip(ids, records.tolist(), strict=True))

    def write_matrix(
        self,
        model: str,
        prepared: Prepared,
        output: Output,
        store_dtype: str,
        precision: str,
        blocks: Iterable[np.ndarray],
    ) -> None:
        """Write one vector a row.

        Args:
            model: Its name in the file.
            prepared: The model.
            output: Layer and pooling.
            store_dtype: ``float16`` or ``float32``.
            precision: What the model computed in.
            blocks: float32 [k, width] each, in the order of the rows, together as many.

        Raises:
            ResourceError: a value that is not finite, or that float16 cannot hold.
        """
        self._write(model, prepared, output, store_dtype, precision, len(self._file["ids"]), blocks)

    def write_residues(
        self,
        model: str,
        prepared: Prepared,
        output: Output,
        store_dtype: str,
        precision: str,
        counts: np.ndarray,
        blocks: Iterable[np.ndarray],
    ) -> None:
        """Write one vector a residue, and where those of each row begin.

        Args:
            model: As for :meth:`write_matrix`, and so are the others.
            prepared: The model.
            output: Layer, and the pooling ``residues``.
            store_dtype: Of the file.
            precision: Of the model.
            counts: Residues of each row, int64 [N].
            blocks: float16 or float32 [k, width] each, together as many as all counts.

        Raises:
            ResourceError: as there.
        """
        offsets = np.cumsum([0, *counts], dtype=np.int64)
        column = f"{model}/{output.layer}/offsets"
        _create_column(self._file, column, offsets.dtype)
        self._file[column].resize(len(offsets), axis=0)
        self._file[column][:] = offsets
        self._write(model, prepared, output, store_dtype, precision, int(offsets[-1]), blocks)

    def _write(
        self,
        model: str,
        prepared: Prepared,
        output: Output,
        store_dtype: str,
        precision: str,
        rows: int,
        blocks: Iterable[np.ndarray],
    ) -> None:
        name, width = f"{model}/{output.name}", prepared.width
        chunk_rows = min(MATRIX_CHUNK_ROWS, max(rows, 1))
        matrix = self._file.create_dataset(
            name, (rows, width), store_dtype, maxshape=(None, width), chunks=(chunk_rows, width)
        )
        matrix.attrs.update(
            {
                "family": prepared.family,
                "alphabet": prepared.alphabet,
                "width": width,
                "source": prepared.source,
                "source_sha256": prepared.source_sha256,
                "weights_sha256": prepared.weights_sha256,
                "synthetic": prepared.synthetic,
                "layer": output.layer,
                "pooling": output.pooling,
                "mean_of": prepared.mean_of,
                "precision": precision,
            }
        )
        start = 0
        for block in blocks:
            stop = start + len(block)
            if block.shape[1:] != (width,) or stop > rows:
                raise ValueError(f"matrix {name} is ({rows}, {width}): no place for {block.shape} at row {start}")
            matrix[start:stop] = self._stored(block, name, store_dtype)
            self._output.check()
            start = stop
        if start != rows:
            raise ValueError(f"matrix {name} has {start} of {rows} rows")

    def _append(self, table: str, columns: Mapping[str, Sequence[Any] | np.ndarray]) -> None:
        counts = {name: len(column) for name, column in columns.items()}
        if len(set(counts.values())) != 1:
            raise ValueError(f"columns differ in number of rows: {counts}")
        for name, column in columns.items():
            dataset = self._file[table][name]
            start = len(dataset)
            dataset.resize(start + len(column), axis=0)
            if len(column):
                dataset[start:] = column
        self._output.check()

    def _stored(self, block: np.ndarray, name: str, store_dtype: str) -> np.ndarray:
        if not np.isfinite(block).all():
            larger = "larger than float16 holds, or " if block.dtype == np.float16 else ""
            dtype = "store_dtype: float32, or " if larger else ""
            raise ResourceError(
                f"sample '{self._sample}': {name} gave values {larger}not finite; set {dtype}precision: fp32 or bf16 "
                "in the config"
            )
        with np.errstate(over="ignore"):
            stored = block.astype(store_dtype)
        if not np.isfinite(stored).all():
            raise ResourceError(
                f"sample '{self._sample}': {name} gave {np.abs(block).max():g}, more than {store_dtype} holds; "
                "set store_dtype: float32 in the config"
            )
        return stored


def _create_column(file: h5py.File, name: str, dtype: np.dtype) -> None:
    """Create an empty column that grows by rows; a dtype with a shape makes it two-dimensional."""
    shape = dtype.shape
    file.create_dataset(name, (0, *shape), dtype.base, maxshape=(None, *shape), chunks=(TABLE_CHUNK_ROWS, *shape))
