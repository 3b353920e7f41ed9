"""Embeddings as UniProt publishes them: one HDF5 dataset an id, for programs that read that form.

The results file stays the one to work with, which is written in a tenth of the time. An id becomes the name of its
dataset. HDF5 takes ``/`` in a name for a path and ``.`` for the place itself, so these two and the sign that marks them
are written as in URLs: ``%`` as ``%25``, ``/`` as ``%2F``, and an id that is a single ``.`` as ``%2E``. The attribute
``original_id`` of every dataset holds the id as it is.
"""

from pathlib import Path

from ..errors import InputError
from ..files import temporary_path
from .embeddings import EmbeddingsFile
from .writer import open_hdf5

ROOT_ATTRIBUTES = ("source", "weights_sha256", "synthetic", "layer", "pooling", "precision")


def dataset_name(identifier: str) -> str:
    """Name of the dataset of an id."""
    escaped = identifier.replace("%", "%25").replace("/", "%2F")
    return "%2E" if escaped == "." else escaped


def export_embeddings(source: Path, model: str, output: Path) -> int:
    """Write the embeddings of one model in a results file as one dataset an id.

    Args:
        source: The results file.
        model: One that the file has a matrix of.
        output: Where; its root's attributes say sample, kind, job, and what is known of the model.

    Returns:
        How many there are: float16 or float32 [D] each, as in the source.

    Raises:
        InputError: the results file cannot be read, or holds no embeddings of the model.
    """
    with EmbeddingsFile(source) as reader:
        if model not in reader.models:
            known = ", ".join(reader.models) or "none"
            raise InputError(f"holds no embeddings of '{model}'; name a model that it has: {known}", source)
        described = {key: reader.models[model][key] for key in ROOT_ATTRIBUTES}
        with (
            temporary_path(output) as temporary,
            open_hdf5(temporary, "w+", libver=("earliest", "v110")) as (file, written),
        ):
            file.attrs.update({"sample": reader.sample, "kind": reader.kind, "job": reader.job, "model": model})
            file.attrs.update(described)
            for rows in reader.blocks([model]):
                for identifier, vector in zip(rows.ids, rows.matrices[model], strict=True):
                    file.create_dataset(dataset_name(identifier), data=vector).attrs["original_id"] = identifier
                written.check()
        return reader.row_count
