"""Embeddings of one file in the forms that are written by hand: HDF5 as it is, numpy, Parquet and AnnData.

All but ``.npz``, which holds every array at once, are written block by block. HDF5 and ``.npz`` take every pooling; the
others have no place for a matrix a row and refuse ``residues``.
"""

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from ..errors import ConfigError, how_to_install
from ..files import put, temporary_path
from .embeddings import EmbeddingsFile, read_embeddings


def write_h5(source: Path, output: Path) -> None:
    """Move an embeddings file to its place."""
    put(source, output)


def write_npz(source: Path, output: Path) -> None:
    """Write ``ids``, ``length`` and an array for each ``LAYER/POOLING``; of residues with ``LAYER/offsets``."""
    file = read_embeddings(source)
    arrays: dict[str, Any] = {"ids": np.array(file.ids, np.str_), "length": file.length}
    arrays |= {_key(name): matrix for name, matrix in file.matrices.items()}
    for name, rows in file.residues.items():
        key, width = _key(name), file.attributes["matrices"][name]["width"]
        arrays[key] = np.concatenate([np.empty((0, width), np.float32), *rows]) if not rows else np.concatenate(rows)
        arrays[f"{key.rpartition('/')[0]}/offsets"] = np.cumsum([0, *map(len, rows)], dtype=np.int64)
    with temporary_path(output) as temporary, open(temporary, "wb") as target:
        np.savez(target, **arrays)


def write_parquet(source: Path, output: Path) -> None:
    """Write a row a sequence: ``id``, ``length``, and a list column for each ``LAYER/POOLING``."""
    import pyarrow
    from pyarrow import parquet

    with EmbeddingsFile(source) as file, temporary_path(output) as temporary:
        names = list(file.matrices)
        columns = [("id", pyarrow.string()), ("length", pyarrow.int32())]
        for name in names:
            width = file.matrices[name]["width"]
            columns.append((_key(name), pyarrow.list_(pyarrow.from_numpy_dtype(file.dtype(name)), width)))
        schema = pyarrow.schema(columns, metadata={"sample": file.sample, "job": file.job})
        with parquet.ParquetWriter(temporary, schema) as writer:
            for rows in file.blocks(names):
                arrays = [pyarrow.array(rows.ids), pyarrow.array(rows.length)]
                for name in names:
                    values = pyarrow.array(rows.matrices[name].ravel())
                    arrays.append(pyarrow.FixedSizeListArray.from_arrays(values, file.matrices[name]["width"]))
                writer.write_table(pyarrow.table(arrays, schema=schema))


def write_h5ad(source: Path, output: Path) -> None:
    """Write AnnData: the first matrix as X, further ones in obsm, float32, ``length`` in obs.

    The library writes the file without rows, which says how each array is encoded; then the rows follow block by block.
    """
    with EmbeddingsFile(source) as file, temporary_path(output) as temporary:
        names = list(file.matrices)
        places = dict(zip(["X", *(f"obsm/{_key(name).replace('/', '_')}" for name in names[1:])], names, strict=True))
        _write_empty_h5ad(temporary, {place: file.matrices[name]["width"] for place, name in places.items()})
        with h5py.File(temporary, "r+") as target:
            for place in ("obs/_index", "obs/length", *places):
                _lengthen(target, place, file.row_count)
            start = 0
            for rows in file.blocks(names):
                here = slice(start, start := start + len(rows.ids))
                target["obs/_index"][here], target["obs/length"][here] = rows.ids, rows.length
                for place, name in places.items():
                    target[place][here] = rows.matrices[name]


def _write_empty_h5ad(path: Path, widths: Mapping[str, int]) -> None:
    """Write AnnData of no rows, with the width of each matrix by its place."""
    import anndata
    import pandas

    matrices = {place: np.empty((0, width), np.float32) for place, width in widths.items()}
    table = pandas.DataFrame({"length": np.empty(0, np.int32)}, index=pandas.Index([], dtype=object))
    data = anndata.AnnData(X=matrices.pop("X"), obs=table)
    data.obsm.update({place.removeprefix("obsm/"): matrix for place, matrix in matrices.items()})
    for names in (data.obs, data.var):  # anndata 0.12 makes strings of pandas 3 of them, which it cannot write
        names.index = names.index.astype(object)
    data.write_h5ad(path)


def _lengthen(file: h5py.File, name: str, rows: int) -> None:
    """Put a dataset of so many rows in the place of one of none, with its attributes."""
    empty = file[name]
    attributes, shape, dtype = dict(empty.attrs), (rows, *empty.shape[1:]), empty.dtype
    del file[name]
    file.create_dataset(name, shape, dtype).attrs.update(attributes)


WRITERS: dict[str, tuple[Callable[[Path, Path], None], str, bool]] = {
    ".h5": (write_h5, "", True),
    ".npz": (write_npz, "", True),
    ".parquet": (write_parquet, "pyarrow", False),
    ".h5ad": (write_h5ad, "anndata", False),
}
"""By suffix: the function, the library that it needs, and whether it has a place for residues."""


def choose_writer(output: Path, pooling: Sequence[str]) -> Callable[[Path, Path], None]:
    """The function that writes a file of this name from an embeddings file, before anything is computed.

    Raises:
        ConfigError: a suffix that is not known, a library that is not installed, or residues that have no place there.
    """
    known = ", ".join(WRITERS)
    if output.suffix not in WRITERS:
        raise ConfigError(f"{output}: the suffix says what to write; known are {known}")
    write, library, takes_residues = WRITERS[output.suffix]
    if library and importlib.util.find_spec(library) is None:
        raise ConfigError(f"{output}: needs the Python package {library}; run {how_to_install(library)}")
    if "residues" in pooling and not takes_residues:
        raise ConfigError(f"{output}: has no place for a vector a residue; write .h5 or .npz")
    return write


def _key(name: str) -> str:
    """``LAYER/POOLING`` of ``MODEL/LAYER/POOLING``."""
    return name.partition("/")[2]
