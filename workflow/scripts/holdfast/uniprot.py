"""Embeddings as UniProt publishes them: one HDF5 dataset an id, for programs that read that form.

The results file stays the one to work with, which is written in a tenth of the time. An id becomes the name of its
dataset. HDF5 takes ``/`` in a name for a path and ``.`` for the place itself, so these two and the sign that marks them
are written as in URLs: ``%`` as ``%25``, ``/`` as ``%2F``, and an id that is a single ``.`` as ``%2E``. The attribute
``original_id`` of every dataset holds the id as it is.
"""

from pathlib import Path

import h5py

from . import embeddings
from .files import temporary_path

ROOT_ATTRIBUTES = ("source", "weights_sha256", "synthetic", "layer", "pooling", "precision")


def name(identifier: str) -> str:
    """Name of the dataset of an id."""
    escaped = identifier.replace("%", "%25").replace("/", "%2F")
    return "%2E" if escaped == "." else escaped


def write(source: Path, model: str, output: Path) -> int:
    """Write the embeddings of one model in a results file as one dataset an id.

    Args:
        source: The results file.
        model: One that the file has a matrix of.
        output: Where; its root's attributes say sample, kind, job, and what is known of the model.

    Returns:
        How many there are: float16 or float32 [D] each, as in the source.

    Raises:
        InputError: the results file cannot be read.
    """
    with (
        embeddings.Reader(source) as reader,
        temporary_path(output) as temporary,
        h5py.File(temporary, "w", libver=("earliest", "v110")) as file,
    ):
        known = reader.models[model]
        file.attrs.update({"sample": reader.sample, "kind": reader.kind, "job": reader.job, "model": model})
        file.attrs.update({key: known[key] for key in ROOT_ATTRIBUTES})
        for rows in reader.blocks([model]):
            for identifier, vector in zip(rows.ids, rows.matrices[model], strict=True):
                file.create_dataset(name(identifier), data=vector).attrs["original_id"] = identifier
        return reader.row_count
