"""Embeddings as UniProt publishes them: one HDF5 dataset an id, for programs that read that form.

A file holds vectors (``per-protein.h5``: the means) or matrices (``per-residue.h5``: a row a residue), as UniProt and
bio_embeddings write them. The results file stays the one to work with, which is written in a tenth of the time. An id
becomes the name of its dataset. HDF5 takes ``/`` in a name for a path and ``.`` for the place itself, so these two and
the sign that marks them are written as in URLs: ``%`` as ``%25``, ``/`` as ``%2F``, and an id that is a single ``.`` as
``%2E``. The attribute ``original_id`` of every dataset holds the id as it is.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ..errors import InputError
from ..files import check_outputs, temporary_path
from .embeddings import EmbeddingsFile
from .hdf5 import open_hdf5

ROOT_ATTRIBUTES = (*("family", "source", "weights_sha256", "synthetic", "layer", "pooling", "mean_of", "precision"),)
POOLING_OF = {"protein": "mean", "residue": "residues"}
RESIDUE_ROWS = 64


def dataset_name(identifier: str) -> str:
    """Name of the dataset of an id."""
    escaped = identifier.replace("%", "%25").replace("/", "%2F")
    return "%2E" if escaped == "." else escaped


def export_embeddings(source: Path, model: str, output: Path, per: str = "protein", layer: int | None = None) -> int:
    """Write the embeddings of one model in a results file as one dataset an id.

    Args:
        source: The results file.
        model: One that the file has a matrix of.
        output: Where; its root's attributes say sample, kind, job, and what is known of the model.
        per: ``protein`` for a vector a sequence, ``residue`` for a vector a residue.
        layer: Whose; None for the last that the file has.

    Returns:
        How many there are: float16 or float32 [D] each, or [residues, D], as in the source.

    Raises:
        InputError: the results file cannot be read, or holds no such embeddings.
    """
    check_outputs([output], [source])
    with EmbeddingsFile(source) as reader:
        name = reader.matrix_of(model, POOLING_OF[per], layer)
        if name is None:
            known = ", ".join(reader.matrices) or "none"
            of = "" if layer is None else f" of layer {layer}"
            wanted = f"'{model}'{of} with pooling {POOLING_OF[per]}"
            raise InputError(f"holds no embeddings of {wanted}; those that it has: {known}", source)
        described = {key: reader.matrices[name][key] for key in ROOT_ATTRIBUTES}
        with (
            temporary_path(output) as temporary,
            open_hdf5(temporary, "w+", libver=("earliest", "v110")) as (file, written),
        ):
            file.attrs.update({"sample": reader.sample, "kind": reader.kind, "job": reader.job, "model": model})
            file.attrs.update(described)
            for identifier, values in _values(reader, name):
                file.create_dataset(dataset_name(identifier), data=values).attrs["original_id"] = identifier
                written.check()
        return reader.row_count


def export_all(source: Path, directory: Path) -> list[Path]:
    """Write all that a results file has in this form: ``MODEL/per-protein.h5`` and ``MODEL/per-residue.h5``.

    Returns:
        The files, which are of the last layer of each model that the results file has.

    Raises:
        InputError: the results file cannot be read.
    """
    with EmbeddingsFile(source) as reader:
        there = [
            (model, per)
            for model in reader.models
            for per, pooling in POOLING_OF.items()
            if reader.matrix_of(model, pooling) is not None
        ]
    outputs = []
    for model, per in there:
        output = directory / model / f"per-{per}.h5"
        output.parent.mkdir(parents=True, exist_ok=True)
        export_embeddings(source, model, output, per)
        outputs.append(output)
    return outputs


def _values(reader: EmbeddingsFile, name: str) -> Iterator[tuple[str, np.ndarray]]:
    """Id and embedding of every row, read in blocks."""
    if reader.matrices[name]["pooling"] != "residues":
        for rows in reader.blocks([name]):
            yield from zip(rows.ids, rows.matrices[name], strict=True)
        return
    start = 0
    for rows in reader.blocks(block_rows=RESIDUE_ROWS):
        stop = start + len(rows.ids)
        yield from zip(rows.ids, reader.residues(name, start, stop), strict=True)
        start = stop
