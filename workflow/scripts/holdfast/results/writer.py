"""Writes the embeddings file of a sample: records and rows, then a matrix for each output of each model.

:mod:`.layout` has the layout, :mod:`.embeddings` says how data passes in.
"""

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
from .embeddings import BLOCK_ROWS, EmbeddingsFile, Records, records_of
from .hdf5 import Target, open_hdf5
from .layout import (
    DIGEST_BYTES,
    FORMAT,
    FORMAT_VERSION,
    MATRIX_CHUNK_ROWS,
    RECORD_COLUMNS,
    RECORD_STATUSES,
    ROW_COLUMNS,
    TABLE_CHUNK_ROWS,
)


class EmbeddingsWriter:
    """Fills a results file; made by :meth:`create` for the rows, then by :meth:`reopen` for the matrices.

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
    def reopen(cls, path: str | Path, software: Mapping[str, str], rows: str | Path | None = None) -> Iterator[Self]:
        """Give a writer for the matrices; afterwards the file is complete.

        Args:
            path: The results file, which :meth:`create` left.
            rows: Where that has left it, if elsewhere; it stays as it is.
            software: Name to version of the programs that computed the embeddings.
        """
        with temporary_path(path) as temporary:
            shutil.copyfile(rows or path, temporary)
            with open_hdf5(temporary, "r+") as (file, output):
                writer = cls(file, output)
                yield writer
                writer.complete(software)

    def complete(self, software: Mapping[str, str]) -> None:
        """Note the programs, and that all is there."""
        self._file.attrs.update({"software": json.dumps(dict(software)), "complete": True})

    def name_input(self, sha256: str) -> None:
        """Note the digest of the file that the records come from (hex)."""
        self._file.attrs["input_sha256"] = sha256

    def append_records(
        self,
        ids: Sequence[str],
        lengths: Sequence[int] | np.ndarray,
        used: Sequence[int] | np.ndarray,
        statuses: Sequence[str],
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

    def append_part(self, part: EmbeddingsFile) -> None:
        """Append records and rows of another file."""
        before = len(self._file["records/ids"])
        for records in part.record_blocks():
            self.append_records(records.ids, records.length, records.residues_used, records.status)
        for rows in part.blocks():
            digests = [digest.tobytes() for digest in rows.sha256]
            self.append_rows(rows.ids, rows.length, digests, rows.record + before, rows.chunk, rows.frame)

    def join_matrix(self, name: str, parts: Sequence[Path], vectors: int) -> None:
        """Write a matrix, or residues with their offsets, from those of other files, one behind the other.

        Args:
            name: ``MODEL/LAYER/POOLING``.
            parts: The files, of which one is open at a time: HDF5 holds some MB for each that is.
            vectors: How many they have together.
        """
        matrix, stop = None, 0
        for path in parts:
            with EmbeddingsFile(path) as part:
                attributes = part.matrices[name]
                if matrix is None:
                    matrix = self._create_matrix(name, vectors, attributes["width"], part.dtype(name), attributes)
                if attributes["pooling"] == "residues":
                    self._append_offsets(name, part.offsets(name)[1:] + stop)
                for block in part.vector_blocks(name):
                    start, stop = stop, stop + len(block)
                    matrix[start:stop] = block
                    self._output.check()

    def mark_empty(self, status: str) -> None:
        """Give records that are well, and of which no row was appended, another status."""
        known = self._file["records/status"]
        codes = known[:]
        empty = codes == RECORD_STATUSES.index("ok")
        empty[self._file["record"][:]] = False
        self._mark(np.flatnonzero(empty), [status] * int(empty.sum()))

    def record_blocks(self) -> Iterator[Records]:
        """All records that are there, in order, some at a time."""
        columns = dict(self._file["records"])
        for start in range(0, len(columns["ids"]), BLOCK_ROWS):
            yield records_of(columns, start, start + BLOCK_ROWS)

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
        offsets = np.cumsum(counts, dtype=np.int64)
        self._append_offsets(f"{model}/{output.name}", offsets)
        self._write(model, prepared, output, store_dtype, precision, int(counts.sum()), blocks)

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
        attributes = {
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
        matrix = self._create_matrix(name, rows, width, np.dtype(store_dtype), attributes)
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

    def _create_matrix(
        self, name: str, rows: int, width: int, dtype: np.dtype, attributes: Mapping[str, Any]
    ) -> h5py.Dataset:
        chunk_rows = min(MATRIX_CHUNK_ROWS, max(rows, 1))
        matrix = self._file.create_dataset(
            name, (rows, width), dtype, maxshape=(None, width), chunks=(chunk_rows, width)
        )
        matrix.attrs.update(attributes)
        return matrix

    def _append_offsets(self, residues: str, ends: np.ndarray) -> None:
        """Note where the residues of further rows end, int64 [rows], beside the matrix of residues of this name."""
        layer = residues.rpartition("/")[0]
        if f"{layer}/offsets" not in self._file:
            _create_column(self._file, f"{layer}/offsets", np.dtype(np.int64))
            self._append(layer, {"offsets": np.zeros(1, np.int64)})
        self._append(layer, {"offsets": ends})

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


def join_embeddings(parts: Sequence[Path], target: Path, software: Mapping[str, str]) -> None:
    """Put complete files of the parts of a sample one behind the other.

    Args:
        parts: The files, in order; all have the same matrices, or none where it has no rows.
        target: The file of the sample; replaced if it exists.
        software: Name to version of the programs that computed the embeddings.

    Raises:
        InputError: a part that cannot be read.
        OSError: the disk is full or fails.
    """
    with EmbeddingsFile(parts[0]) as first:
        cutting = (first.chunk_length_bp, first.genetic_code)
        vectors = dict.fromkeys(first.matrices, 0)
    with EmbeddingsWriter.create(target, first.sample, first.kind, *cutting, first.job) as writer:
        writer.name_input(first.input_sha256)
        for path in parts:
            with EmbeddingsFile(path) as part:
                writer.append_part(part)
                for name in vectors:
                    vectors[name] += part.vectors(name)
        for name, count in vectors.items():
            writer.join_matrix(name, parts, count)
        writer.complete(software)


def copy_embeddings(source: Path, target: Path, sample: str, job: str) -> None:
    """Copy a complete file for another sample of the same content.

    Raises:
        OSError: a file that is not there, or a disk that is full or fails.
    """
    with temporary_path(target) as temporary:
        shutil.copyfile(source, temporary)
        with open_hdf5(temporary, "r+") as (file, _):
            file.attrs.update({"sample": sample, "job": job})


def _create_column(file: h5py.File, name: str, dtype: np.dtype) -> None:
    """Create an empty column that grows by rows; a dtype with a shape makes it two-dimensional."""
    shape = dtype.shape
    file.create_dataset(name, (0, *shape), dtype.base, maxshape=(None, *shape), chunks=(TABLE_CHUNK_ROWS, *shape))
