"""The results file of one sample: ids, digests and the embeddings by every model, layer and pooling, in HDF5.

Data passes in twice, through :class:`.writer.EmbeddingsWriter`: first the records of the input and the rows (one per
sequence to embed), as the sample is read; then the matrices, when the vectors are there. Both take blocks, so no step
holds a whole sample, and both replace the file at the end, so a writer that is killed leaves it as it was. Only a
complete file can be read, whole (:func:`read_embeddings`) or in blocks (:class:`EmbeddingsFile`).
:mod:`.layout` says what it holds.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import h5py
import numpy as np

from ..documents import fill, other_version, parse_json
from ..errors import InputError
from ..models.registry import KINDS, POOLINGS
from ..sequences import GENETIC_CODES
from ..sequences.frames import FRAMES
from .layout import (
    FORMAT,
    FORMAT_VERSION,
    MATRIX_CHUNK_ROWS,
    RECORD_COLUMNS,
    RECORD_STATUSES,
    ROW_COLUMNS,
    TABLE_CHUNK_ROWS,
    Matrix,
    Root,
)

BLOCK_ROWS = 4096


@dataclass(frozen=True)
class Records:
    """Consecutive records of the input.

    Attributes:
        ids: M ids.
        length: int64 [M]; bp, or aa for kind ``proteins``.
        residues_used: int64 [M]; how many of them the models saw.
        status: M of :data:`RECORD_STATUSES`.
    """

    ids: list[str]
    length: np.ndarray
    residues_used: np.ndarray
    status: list[str]


@dataclass(frozen=True)
class Rows:
    """Consecutive rows.

    Attributes:
        ids: N ids.
        length: int32 [N].
        sha256: uint8 [N, 32].
        record: int32 [N], index into the records.
        chunk: int32 [N], from 1; 0 but for kind ``contigs``.
        frame: uint8 [N]; 0 but for kind ``contigs``.
        matrices: By ``MODEL/LAYER/POOLING`` float16 or float32 [N, D], as stored.
    """

    ids: list[str]
    length: np.ndarray
    sha256: np.ndarray
    record: np.ndarray
    chunk: np.ndarray
    frame: np.ndarray
    matrices: dict[str, np.ndarray]


@dataclass(frozen=True)
class Embeddings(Rows):
    """A whole file.

    Attributes:
        residues: By ``MODEL/LAYER/residues`` those of each row, float16 or float32 [residues, D] each.
        records: All records of the input.
        attributes: The root's attributes, and ``matrices``: of each matrix.
    """

    residues: dict[str, list[np.ndarray]]
    records: Records
    attributes: dict[str, Any]


class EmbeddingsFile:
    """A complete results file, open for reading in blocks.

    Attributes:
        path: Where it is.
        sample: Name of the sample.
        kind: One of :data:`.registry.KINDS`.
        chunk_length_bp: 0 but for kind ``contigs``.
        genetic_code: By which frames were read; likewise.
        job: Name of the job that made it.
        input_sha256: Digest of the file that its records come from (hex).
        software: Name to version of the programs that computed it.
        matrices: The attributes of each, by ``MODEL/LAYER/POOLING``.
        row_count: N.
        record_count: M.

    Raises:
        InputError: no such file, not one of ours, of another format version, or incomplete.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not self.path.is_file():
            raise InputError("no such file", path)
        if not h5py.is_hdf5(self.path):
            raise InputError("no HDF5 file, or one cut short; give an embeddings file of this workflow", path)
        self._datasets: dict[str, h5py.Dataset] = {}
        with self._speaking():
            self._file = h5py.File(self.path, "r")
        try:
            with self._speaking():
                self._describe()
        except InputError:
            self.close()
            raise

    @contextmanager
    def _speaking(self) -> Iterator[None]:
        """Say which file it is that HDF5 cannot read, or that holds what no file of ours does."""
        try:
            yield
        except (OSError, RuntimeError, ValueError, TypeError, LookupError, AttributeError) as error:
            problem = " ".join(str(error).split())[:300]
            raise InputError(f"not a readable HDF5 file ({problem}); compute it again", self.path) from None

    def _describe(self) -> None:
        attributes = self._file.attrs
        if attributes.get("format") != FORMAT:
            raise InputError("not an embeddings file of this workflow", self.path)
        found = attributes["format_version"]
        if found != FORMAT_VERSION:
            raise InputError(other_version(found, FORMAT_VERSION, "compute it again"), self.path)
        if not attributes["complete"]:
            raise InputError("incomplete, no embeddings were written yet; compute it again", self.path)
        root = fill(Root, _plain(attributes, Root))
        cut = root.chunk_length_bp > 0, root.genetic_code in GENETIC_CODES
        if root.kind not in KINDS or cut != (root.kind == "contigs",) * 2:
            raise ValueError(f"kind {root.kind}, chunk length {root.chunk_length_bp}, genetic code {root.genetic_code}")
        self.sample, self.kind = root.sample, root.kind
        self.chunk_length_bp, self.genetic_code = root.chunk_length_bp, root.genetic_code
        self.job, self.input_sha256 = root.job, root.input_sha256
        self.software: dict[str, str] = parse_json(root.software)
        self._root = root
        self.row_count = len(self._file["ids"])
        self.record_count = len(self._file["records/ids"])
        self.matrices: dict[str, dict[str, Any]] = {}
        for model in sorted(self._file.keys() - ROW_COLUMNS.keys() - {"records"}):
            group = self._file[model]
            if not isinstance(group, h5py.Group):
                raise ValueError(f"{model} is no group of layers")
            layers = [(layer, group[layer]) for layer in group]
            for layer, matrices in sorted(layers, key=lambda entry: int(entry[0])):
                for pooling in sorted(set(POOLINGS) & matrices.keys(), key=POOLINGS.index):
                    self._describe_matrix(f"{model}/{layer}/{pooling}", pooling)

    def _describe_matrix(self, name: str, pooling: str) -> None:
        dataset = self._file[name]
        matrix = fill(Matrix, _plain(dataset.attrs, Matrix))
        if f"{matrix.layer}/{matrix.pooling}" != name.partition("/")[2]:
            raise ValueError(f"{name} says that it is {matrix.layer}/{matrix.pooling}")
        self.matrices[name] = asdict(matrix)
        stored = np.dtype(dataset.dtype)
        if stored not in (np.float16, np.float32):
            raise ValueError(f"{name} is of type {stored}")
        rows = self.row_count
        if pooling == "residues":
            offsets = f"{name.rpartition('/')[0]}/offsets"
            rows = int(self._require(offsets, np.dtype("i8"), rows + 1, TABLE_CHUNK_ROWS)[-1])
        chunk_rows = min(MATRIX_CHUNK_ROWS, max(rows, 1))
        self._require(name, np.dtype((stored, matrix.width)), rows, chunk_rows)

    def _dataset(self, name: str) -> h5py.Dataset:
        """A dataset; a column is looked up and checked when it is first read."""
        if name not in self._datasets:
            table, _, column = name.rpartition("/")
            known, rows = (RECORD_COLUMNS, self.record_count) if table else (ROW_COLUMNS, self.row_count)
            self._require(name, known[column], rows, TABLE_CHUNK_ROWS)
        return self._datasets[name]

    @property
    def models(self) -> dict[str, dict[str, Any]]:
        """By model, the attributes of the last of its matrices."""
        return {name.partition("/")[0]: attributes for name, attributes in self.matrices.items()}

    def dtype(self, name: str) -> np.dtype:
        """What a matrix is stored in."""
        return np.dtype(self._dataset(name).dtype)

    def matrix_of(self, model: str, pooling: str = "mean", layer: int | None = None) -> str | None:
        """Name of a model's matrix of a pooling, of its last layer in this file if none is named; None without."""
        found = [
            name
            for name, known in self.matrices.items()
            if (name.partition("/")[0], known["pooling"]) == (model, pooling) and layer in (None, known["layer"])
        ]
        return found[-1] if found else None

    def _require(self, name: str, dtype: np.dtype, rows: int, chunk_rows: int) -> h5py.Dataset:
        """A dataset that is stored as we do it: in this file, plain, and no more rows than there are bytes for.

        HDF5 has datasets that lie in other files, or that grow to any size when they are read.
        """
        dataset = self._file[name]
        shape = dtype.shape
        if (
            dataset.shape != (rows, *shape)
            or dataset.dtype != dtype.base
            or h5py.check_string_dtype(dataset.dtype) != h5py.check_string_dtype(dtype)
            or h5py.check_enum_dtype(dataset.dtype) != h5py.check_enum_dtype(dtype)
            or dataset.chunks != (chunk_rows, *shape)
            or dataset.id.get_create_plist().get_nfilters() > 0
            or dataset.id.get_storage_size() < dataset.size * dataset.dtype.itemsize
            or dataset.file != self._file
        ):
            raise ValueError(f"{name} is not stored as this workflow stores it")
        self._datasets[name] = dataset
        return dataset

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def records(self, start: int, stop: int) -> Records:
        """The records from one index up to, not including, another."""
        with self._speaking():
            return records_of({name: self._dataset(f"records/{name}") for name in RECORD_COLUMNS}, start, stop)

    def record_blocks(self, block_rows: int = BLOCK_ROWS) -> Iterator[Records]:
        """All records of the input, in order, at most ``block_rows`` at a time."""
        for start in range(0, self.record_count, block_rows):
            yield self.records(start, start + block_rows)

    def blocks(self, matrices: Sequence[str] = (), block_rows: int = BLOCK_ROWS) -> Iterator[Rows]:
        """All rows, in order, at most ``block_rows`` at a time, with the matrices asked for."""
        for start in range(0, self.row_count, block_rows):
            yield Rows(**self._rows(start, start + block_rows, matrices))

    def residues(self, name: str, start: int, stop: int) -> list[np.ndarray]:
        """The residues of the rows from one index up to, not including, another.

        Args:
            name: ``MODEL/LAYER/residues``.
            start: First row.
            stop: Row behind the last.

        Returns:
            For each row float16 or float32 [residues, D], as stored.
        """
        with self._speaking():
            bounds = self._dataset(f"{name.rpartition('/')[0]}/offsets")[start : stop + 1]
            if len(bounds) < 2:
                return []
            if (np.diff(bounds) < 0).any() or bounds[0] < 0 or bounds[-1] > len(self._dataset(name)):
                raise ValueError(f"offsets of {name} are out of order")
            values: np.ndarray = self._dataset(name)[bounds[0] : bounds[-1]]
        return np.split(values, bounds[1:-1] - bounds[0])

    def vectors(self, name: str) -> int:
        """Vectors of a matrix: N, or all residues."""
        return len(self._dataset(name))

    def offsets(self, name: str) -> np.ndarray:
        """Where the residues of each row begin, and their number, int64 [N + 1], of ``MODEL/LAYER/residues``."""
        with self._speaking():
            offsets: np.ndarray = self._dataset(f"{name.rpartition('/')[0]}/offsets")[:]
        return offsets

    def vector_blocks(self, name: str, block_rows: int = BLOCK_ROWS) -> Iterator[np.ndarray]:
        """The vectors of a matrix, in order, float16 or float32 [at most block_rows, D], as stored."""
        for start in range(0, self.vectors(name), block_rows):
            with self._speaking():
                block = self._dataset(name)[start : start + block_rows]
            yield block

    def take(self, rows: np.ndarray, matrix: str) -> tuple[np.ndarray, np.ndarray]:
        """Some rows of one matrix.

        Args:
            rows: Their indices, ascending, int64 [k].
            matrix: Its name.

        Returns:
            Index of each row's record, int32 [k], and the embeddings as stored, float16 or float32 [k, D].
        """
        with self._speaking():
            return self._dataset("record")[rows], self._dataset(matrix)[rows]

    def read(self) -> Embeddings:
        """The whole file, at once in memory."""
        of_residues = [name for name, known in self.matrices.items() if known["pooling"] == "residues"]
        return Embeddings(
            **self._rows(0, self.row_count, [name for name in self.matrices if name not in of_residues]),
            residues={name: self.residues(name, 0, self.row_count) for name in of_residues},
            records=self.records(0, self.record_count),
            attributes=asdict(self._root) | {"software": self.software, "matrices": self.matrices},
        )

    def _rows(self, start: int, stop: int, matrices: Sequence[str]) -> dict[str, Any]:
        with self._speaking():
            columns = {name: self._dataset(name)[start:stop] for name in ROW_COLUMNS if name != "ids"}
            columns["ids"] = self._dataset("ids").asstr()[start:stop].tolist()
            columns["matrices"] = {name: self._dataset(name)[start:stop] for name in matrices}
            limits = {"record": self.record_count, "frame": len(FRAMES), "chunk": 2**31}
            for name, limit in limits.items():
                if not ((columns[name] >= 0) & (columns[name] < limit)).all():
                    raise ValueError(f"{name} is out of range")
        return columns


def records_of(columns: Mapping[str, h5py.Dataset], start: int, stop: int) -> Records:
    """Some records, from the datasets of their columns."""
    return Records(
        ids=columns["ids"].asstr()[start:stop].tolist(),
        length=columns["length"][start:stop],
        residues_used=columns["residues_used"][start:stop],
        status=[RECORD_STATUSES[code] for code in columns["status"][start:stop]],
    )


def read_embeddings(path: str | Path) -> Embeddings:
    """Read a whole results file.

    Raises:
        InputError: no such file, not one of ours, of another format version, or incomplete.
    """
    with EmbeddingsFile(path) as reader:
        return reader.read()


def _plain(attributes: h5py.AttributeManager, kind: Any) -> dict[str, Any]:
    """The attributes that are fields of ``kind``, as Python's own types."""
    values = {field.name: attributes[field.name] for field in fields(kind)}
    return {name: value.item() if isinstance(value, np.generic) else value for name, value in values.items()}
