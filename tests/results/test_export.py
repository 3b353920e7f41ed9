"""The export as UniProt publishes embeddings, read the way that readers of such files do it."""

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from holdfast.errors import InputError
from holdfast.models.registry import Output
from holdfast.results.export import export_all, export_embeddings
from holdfast.results.writer import EmbeddingsWriter

from tests.results.samples import DNA, describe_model

IDS = ["sp|P12345|A_B", "50%/a", ".", "菌"]
NAMES = ["sp|P12345|A_B", "50%25%2Fa", "%2E", "菌"]
LENGTHS = [9, 70, 1, 2]
WIDTH = 8


def vectors(rows: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(rows, WIDTH)).astype(np.float16)


def write(directory: Path) -> Path:
    """A sample with two models: means of two layers and residues of the last; means and maxima only."""
    path = directory / "embeddings.h5"
    with EmbeddingsWriter.create(path, "s", "proteins", job="s-1") as writer:
        writer.append_records(IDS, LENGTHS, LENGTHS, ["ok"] * 4)
        writer.append_rows(IDS, LENGTHS, [bytes(32)] * 4, range(4), [0] * 4, [0] * 4)
    large, small = describe_model(WIDTH, 6), describe_model(WIDTH, 3, family="t5", synthetic=True)
    with EmbeddingsWriter.reopen(path, {}) as writer:
        for layer in (2, 6):
            writer.write_matrix("large", large, Output(layer, "mean"), "float16", "fp32", [vectors(4, layer)])
        counts, blocks = np.array(LENGTHS), [vectors(82, 9)]
        writer.write_residues("large", large, Output(6, "residues"), "float16", "fp32", counts, blocks)
        for number, pooling in enumerate(("mean", "max")):
            writer.write_matrix("small", small, Output(3, pooling), "float16", "fp32", [vectors(4, number)])
    return path


def read_like_bio_embeddings(path: Path) -> dict[str, np.ndarray]:
    """As its documentation does: the attribute, not the name of the dataset, is the id."""
    with h5py.File(path, "r") as file:
        return {embedding.attrs["original_id"]: np.array(embedding) for embedding in file.values()}


def read_like_uniprot(path: Path) -> dict[str, np.ndarray]:
    """As UniProt's help page does, by the name of the dataset, which is an accession there."""
    with h5py.File(path, "r") as file:
        return {name: np.array(value) for name, value in file.items()}


def test_a_protein_is_a_vector_under_its_id(tmp_path: Path) -> None:
    output = tmp_path / "large.h5"
    assert export_embeddings(write(tmp_path), "large", output) == 4
    named, original = read_like_uniprot(output), read_like_bio_embeddings(output)
    assert (sorted(named), sorted(original)) == (sorted(NAMES), sorted(IDS))
    for row, (name, identifier) in enumerate(zip(NAMES, IDS, strict=True)):
        for found in (named[name], original[identifier]):
            np.testing.assert_array_equal(found, vectors(4, 6)[row])
            assert (found.dtype, found.shape) == (np.float16, (WIDTH,))
    with h5py.File(output) as file:
        assert dict(file.attrs) == {
            "sample": "s",
            "kind": "proteins",
            "job": "s-1",
            "model": "large",
            "family": "esm",
            "source": "facebook/x",
            "weights_sha256": "cd" * 32,
            "synthetic": False,
            "layer": 6,
            "pooling": "mean",
            "mean_of": "residues",
            "precision": "fp32",
        }


def test_a_residue_is_a_row_of_the_matrix_of_its_protein(tmp_path: Path) -> None:
    output = tmp_path / "large.h5"
    assert export_embeddings(write(tmp_path), "large", output, "residue") == 4
    found = read_like_bio_embeddings(output)
    bounds = np.cumsum([0, *LENGTHS])
    for row, identifier in enumerate(IDS):
        np.testing.assert_array_equal(found[identifier], vectors(82, 9)[bounds[row] : bounds[row + 1]])
        assert found[identifier].shape == (LENGTHS[row], WIDTH)
        np.testing.assert_array_equal(read_like_uniprot(output)[NAMES[row]], found[identifier])
    with h5py.File(output) as file:
        assert (file.attrs["pooling"], file.attrs["layer"]) == ("residues", 6)


def test_a_layer_is_exported_by_its_number(tmp_path: Path) -> None:
    export_embeddings(write(tmp_path), "large", tmp_path / "large.h5", layer=2)
    np.testing.assert_array_equal(read_like_bio_embeddings(tmp_path / "large.h5")["菌"], vectors(4, 2)[3])


def test_many_rows_are_exported_in_blocks(tmp_path: Path) -> None:
    """More than there are in a block of residues, of changing lengths, some without any."""
    path, counts = tmp_path / "embeddings.h5", np.arange(200) % 7
    ids = [f"p{row}" for row in range(200)]
    with EmbeddingsWriter.create(path, "s", "proteins") as writer:
        writer.append_records(ids, counts.tolist(), counts.tolist(), ["ok"] * 200)
        writer.append_rows(ids, counts, [bytes(32)] * 200, range(200), [0] * 200, [0] * 200)
    values = vectors(int(counts.sum()), 3)
    with EmbeddingsWriter.reopen(path, {}) as writer:
        output = Output(6, "residues")
        writer.write_residues("m", describe_model(WIDTH, 6), output, "float16", "fp32", counts, [values])
    assert export_embeddings(path, "m", tmp_path / "out.h5", "residue") == 200
    found = read_like_bio_embeddings(tmp_path / "out.h5")
    assert [len(found[name]) for name in ids] == counts.tolist()
    np.testing.assert_array_equal(np.concatenate([found[name] for name in ids]), values)


def test_all_that_there_is_is_exported_into_a_directory(tmp_path: Path) -> None:
    written = export_all(write(tmp_path), tmp_path / "uniprot")
    names = ["large/per-protein.h5", "large/per-residue.h5", "small/per-protein.h5"]
    assert [path.relative_to(tmp_path / "uniprot").as_posix() for path in written] == names
    assert sorted(path for path in (tmp_path / "uniprot").rglob("*") if path.is_file()) == written
    np.testing.assert_array_equal(read_like_bio_embeddings(written[0])["."], vectors(4, 6)[2])
    assert read_like_bio_embeddings(written[1])["50%/a"].shape == (70, WIDTH)
    np.testing.assert_array_equal(read_like_bio_embeddings(written[2])["."], vectors(4, 0)[2])


@pytest.mark.parametrize(
    ("asked", "problem"),
    [
        (("esm2",), "holds no embeddings of 'esm2' with pooling mean; those that it has: large/2/mean, large/6/mean, "),
        (("small", "residue"), "holds no embeddings of 'small' with pooling residues; those that it has: "),
        (("large", "protein", 3), "holds no embeddings of 'large' of layer 3 with pooling mean; those that it has: "),
        (("large", "residue", 2), "holds no embeddings of 'large' of layer 2 with pooling residues; those that it "),
    ],
)
def test_what_is_not_there_is_named_and_leaves_no_file(tmp_path: Path, asked: tuple[Any, ...], problem: str) -> None:
    source = write(tmp_path)
    model, *rest = asked
    with pytest.raises(InputError) as refused:
        export_embeddings(source, model, tmp_path / "out.h5", *rest)
    assert str(refused.value).startswith(f"{source}: {problem}")
    assert list(tmp_path.iterdir()) == [source]


def test_frames_of_a_dna_model_are_exported_too(tmp_path: Path) -> None:
    path = tmp_path / "embeddings.h5"
    with EmbeddingsWriter.create(path, "s", "dna") as writer:
        writer.append_records(["a"], [9], [9], ["ok"])
        writer.append_rows(["a"], [9], [bytes(32)], [0], [0], [0])
    with EmbeddingsWriter.reopen(path, {}) as writer:
        described = describe_model(WIDTH, 2, **DNA)
        writer.write_matrix("dna", described, Output(2, "mean"), "float32", "fp32", [vectors(1, 1).astype(np.float32)])
    (written,) = export_all(path, tmp_path / "uniprot")
    with h5py.File(written) as file:
        assert (file.attrs["mean_of"], file["a"].dtype) == ("tokens", np.float32)
